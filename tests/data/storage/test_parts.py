"""Parts in files: restored unchanged, missing when damaged, removed when they belong to another computation."""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from histoblend.data.storage.atomic import write_atomically
from histoblend.data.storage.parts import KEY, Parts

ARRAYS = {
    "values": np.arange(6, dtype=np.float16).reshape(2, 3),
    "none": np.empty((0, 4), np.float32),
    "words": np.array(["a", "bcd"]),
    "number": np.float64(0.1),
}


@pytest.fixture
def parts(tmp_path):
    return Parts(tmp_path / "a" / "parts")


def test_a_part_is_restored_as_it_was_stored(parts):
    parts.keep("one", ARRAYS)
    for restored in (parts.find("one"), Parts(parts.folder).find("one"), parts.read("one")):
        assert list(restored) == list(ARRAYS)
        for name, array in ARRAYS.items():
            assert restored[name].dtype == array.dtype
            np.testing.assert_array_equal(restored[name], array)
    assert "one" in parts
    assert list(parts.find("one", "words")) == ["words"]
    assert [path.name for path in parts.folder.iterdir()] == ["one.npz"]


def test_a_later_part_replaces_one_of_the_same_name(parts):
    for number in (1, 2):
        parts.keep("one", {"number": number})
    assert int(parts.find("one")["number"]) == 2


def test_the_last_32_bytes_are_the_sha256_of_the_rest(parts):
    parts.keep("one", ARRAYS)
    content = parts.path("one").read_bytes()
    assert content[-32:] == hashlib.sha256(content[:-32]).digest()


def test_an_absent_part_is_missing(parts):
    assert parts.find("one") is None
    assert "one" not in parts
    parts.drop("one")
    with pytest.raises(FileNotFoundError):
        parts.read("one")
    parts.keep("one", {"a": 1})
    assert parts.find("one", "b") is None
    parts.drop("one")
    assert parts.find("one") is None


def test_every_altered_byte_and_every_cut_is_noticed(parts):
    parts.keep("one", {"values": np.arange(3, dtype=np.uint8)})
    path = parts.path("one")
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        assert parts.find("one") is None, position
        path.write_bytes(whole[:position])
        assert parts.find("one") is None, position
    path.write_bytes(whole + b"x")
    assert parts.find("one") is None
    path.write_bytes(whole)
    assert parts.find("one")["values"].tolist() == [0, 1, 2]


def test_reading_a_damaged_part_says_what_to_do(parts):
    parts.keep("one", ARRAYS)
    parts.path("one").write_bytes(parts.path("one").read_bytes()[:200])
    with pytest.raises(OSError, match=r"run the same command again: '.*one\.npz'"):
        parts.read("one")


class MakesFolder:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["pickle", "npy", "npz", "text"])
def test_a_sealed_file_of_another_kind_is_missing_and_runs_no_code(parts, tmp_path, kind):
    touched = tmp_path / "touched"
    poison = MakesFolder(touched)
    array = np.array([poison], object)
    write = {
        "pickle": lambda file: pickle.dump(poison, file),
        "npy": lambda file: np.save(file, array),
        "npz": lambda file: np.savez(file, array=array),
        "text": lambda file: file.write(b"text"),
    }[kind]
    write_atomically(parts.path("one"), write, seal=True)
    assert "one" in parts
    assert parts.find("one") is None
    assert not touched.exists()


def test_python_objects_are_refused_and_the_old_part_stays(parts):
    parts.keep("one", {"a": 1})
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        parts.keep("one", {"a": 2, "b": np.array([{}], object)})
    assert int(parts.find("one")["a"]) == 1
    assert [path.name for path in parts.folder.iterdir()] == ["one.npz"]


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "../one", "a/b", "a\\b", "a\0"])
def test_a_name_must_be_a_plain_file_name(parts, name):
    with pytest.raises(ValueError, match="the name of a part must be a plain file name"):
        parts.keep(name, ARRAYS)
    with pytest.raises(ValueError, match="the name of a part must be a plain file name"):
        parts.find(name)


def test_opening_removes_only_files_of_killed_writers(parts):
    parts.keep("one", ARRAYS)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    running = parts.folder / f".two.npz.{os.getppid()}-1.partial"
    for path in (parts.folder / f".two.npz.{ended.pid}-1.partial", running):
        path.write_bytes(b"half")
    again = Parts(parts.folder)
    assert sorted(path.name for path in parts.folder.iterdir()) == [running.name, "one.npz"]
    assert "one" in again
    assert "two" not in again


def test_two_writers_of_one_part_leave_one_whole_part(parts):
    arrays = [{"values": np.full(50_000, number)} for number in range(2)]
    parts.keep("one", arrays[0])
    ready = threading.Barrier(2)

    def write(number):
        ready.wait()
        for _ in range(20):
            parts.keep("one", arrays[number])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert len(set(parts.find("one")["values"].tolist())) == 1
    assert len(set(parts.find("one")["values"].tolist())) == 1
    assert [path.name for path in parts.folder.iterdir()] == ["one.npz"]


@pytest.mark.parametrize("refused", ["fsync", "replace"])
def test_a_failed_write_leaves_the_part_unchanged(parts, monkeypatch, refused):
    parts.keep("one", {"a": 1})

    def full(*_):
        raise OSError(28, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, refused, full)
        with pytest.raises(OSError, match="no space left"):
            parts.keep("one", {"a": 2})
    assert int(parts.find("one")["a"]) == 1
    assert [path.name for path in parts.folder.iterdir()] == ["one.npz"]


def test_parts_of_another_key_are_removed(tmp_path):
    folder = tmp_path / "parts"
    Parts(folder, {"a": 1, "b": [2]}).keep("one", ARRAYS)
    assert "one" in Parts(folder, {"b": [2], "a": 1})
    assert "one" in Parts(folder)
    for key in ({"a": 1}, {"a": 1, "b": [3]}, {}):
        Parts(folder, key).keep("one", ARRAYS)
        assert "one" in Parts(folder, key)
        again = Parts(folder, {"a": 1, "b": [2]})
        assert "one" not in again
        again.keep("one", ARRAYS)


@pytest.mark.parametrize("damage", [None, b"", b"{}"], ids=["missing", "empty", "altered"])
def test_parts_whose_key_is_missing_or_damaged_are_removed(tmp_path, damage):
    parts = Parts(tmp_path / "parts", {"a": 1})
    parts.keep("one", ARRAYS)
    if damage is None:
        parts.drop(KEY)
    else:
        parts.path(KEY).write_bytes(damage)
    assert "one" not in Parts(parts.folder, {"a": 1})
    assert sorted(path.name for path in parts.folder.iterdir()) == [f"{KEY}.npz"]


def test_a_folder_that_cannot_be_emptied_is_not_given_the_new_key(tmp_path, monkeypatch):
    parts = Parts(tmp_path / "parts", {"a": 1})
    parts.keep("one", ARRAYS)

    def refuse(*_, **__):
        raise PermissionError("busy")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(PermissionError):
            Parts(parts.folder, {"a": 2})
    assert "one" in Parts(parts.folder, {"a": 1})


def test_forgetting_removes_the_folder_and_a_late_writer_does_not_recreate_it(parts):
    parts.keep("one", ARRAYS)
    parts.forget()
    assert not parts.folder.exists()
    with pytest.raises(FileNotFoundError):
        parts.keep("two", ARRAYS)
    assert not parts.folder.exists()
    assert parts.find("one") is None


def test_parts_can_be_pickled(parts):
    pickle.loads(pickle.dumps(parts)).keep("one", ARRAYS)  # noqa: S301 - our own
    assert "one" in parts
