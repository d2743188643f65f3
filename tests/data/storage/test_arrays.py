"""Names in folders: endings in any case, without files left by operating systems. Rows of arrays on disk."""

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from histoblend.data.errors import InputError
from histoblend.data.storage.arrays import (
    StoredRows,
    files_under,
    find_name,
    names_in,
    walk,
)
from histoblend.data.storage.atomic import sync_tree


@pytest.fixture
def littered(tmp_path):
    """Files of ours, and some that operating systems leave behind."""
    for name in ("a.csv", "B.CSV", "deep/c.txt", ".DS_Store", "._a.csv", "Thumbs.db", "deep/desktop.ini"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a.csv").write_text("copy")
    return tmp_path


def test_names_match_an_ending_in_any_case(littered):
    assert names_in(littered, ".csv") == names_in(littered, ".CSV") == ["B.CSV", "a.csv"]


def test_files_under_a_folder_are_ours_only(littered):
    assert files_under(littered) == ["B.CSV", "a.csv", "deep/c.txt"]


def test_files_of_operating_systems_are_not_flushed(littered, monkeypatch):
    """The Finder and Windows keep such files open or make them read-only."""
    opened = []
    monkeypatch.setattr("histoblend.data.storage.atomic.os.fsync", opened.append)
    for name in (".DS_Store", "Thumbs.db"):
        (littered / name).unlink()
        (littered / name).symlink_to("nowhere")
    sync_tree(littered)
    assert len(opened) == 3 + 2  # three files and two folders


def test_a_link_to_a_folder_is_entered_only_on_request(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").write_text("")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    assert [name for name, _ in walk(tmp_path / "in")] == ["link"]
    assert [name for name, _ in walk(tmp_path / "in", lambda *_: True)] == ["link", "link/a.txt"]


def test_a_name_is_found_in_another_case_unless_there_are_two(tmp_path):
    assert find_name(tmp_path, "labels.csv") == tmp_path / "labels.csv"
    (tmp_path / "Labels.CSV").write_text("")
    assert find_name(tmp_path, "labels.csv") == tmp_path / "Labels.CSV"
    (tmp_path / "LABELS.csv").write_text("")
    with pytest.raises(InputError, match=r"expected one labels.csv; got LABELS.csv and Labels.CSV"):
        find_name(tmp_path, "labels.csv")
    (tmp_path / "labels.csv").write_text("")
    assert find_name(tmp_path, "labels.csv") == tmp_path / "labels.csv"
    assert find_name(tmp_path / "nowhere", "labels.csv") == tmp_path / "nowhere" / "labels.csv"


def resident(path):
    """Kilobytes of a mapped file that are in the memory of this process."""
    maps = Path("/proc/self/smaps").read_text(errors="replace")
    return sum(map(int, re.findall(rf"{re.escape(str(path))}\n(?:(?!Rss).*\n)*Rss:\s+(\d+)", maps)))


ONLY_LINUX = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux shows resident pages")
SOME = [900, 0, 3, 3]


@ONLY_LINUX
@pytest.mark.parametrize("index", [
    3, slice(2, 900), slice(None), SOME, np.array(SOME), np.arange(1000) % 7 == 0, slice(0, 0), [],
    (slice(5, 9), [2, 1]), (np.array(SOME), slice(1, 3)), (np.arange(1000) % 2 == 0, [0]), (7, 1),
])  # fmt: skip
def test_stored_rows_are_those_of_the_array_and_do_not_stay_in_memory(tmp_path, index):
    values = np.random.default_rng(0).integers(0, 256, (1000, 48, 3)).astype(np.uint8)
    np.save(tmp_path / "values.npy", values)
    stored = pickle.loads(pickle.dumps(StoredRows(tmp_path / "values.npy")))  # noqa: S301 - our own
    assert (stored.shape, stored.dtype, stored.ndim, len(stored)) == (values.shape, values.dtype, 3, 1000)
    got = stored[index]
    rows, columns = index if isinstance(index, tuple) else (index, slice(None))
    np.testing.assert_array_equal(got, values[rows][..., columns, :])
    got[...] = 0  # a copy: the next reader sees the file
    np.testing.assert_array_equal(np.asarray(stored), values)
    assert resident(tmp_path / "values.npy") == 0


@pytest.mark.parametrize("advice", [True, False])
def test_mapped_rows_are_those_of_the_array(tmp_path, monkeypatch, advice):
    if not advice:  # as on Windows
        monkeypatch.delattr(os, "posix_fadvise")
    values = np.arange(3000, dtype=np.float32).reshape(1000, 3)
    np.save(tmp_path / "values.npy", values)
    with open(tmp_path / "values.npy", "ab") as file:
        file.write(b"a seal")
    for start, stop in ((0, 10), (700, 1000), (5, 5)):
        stored = StoredRows(tmp_path / "values.npy")
        stored.announce(start, stop)
        rows = stored.mapped(start, stop)
        np.testing.assert_array_equal(rows, values[start:stop])
        assert not rows.flags.writeable
    del rows
    assert resident(tmp_path / "values.npy") == 0


def test_a_file_that_lost_its_end_is_refused(tmp_path):
    np.save(tmp_path / "values.npy", np.zeros((20, 3), np.float32))
    stored = StoredRows(tmp_path / "values.npy")
    with open(stored.path, "r+b") as file:
        file.truncate(os.path.getsize(stored.path) - 1)
    with pytest.raises(InputError, match=r"values\.npy: expected .*Rebuild with --rebuild"):
        stored[:2]
