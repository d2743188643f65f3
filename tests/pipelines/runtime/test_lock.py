"""The lock of a run folder, and what is left of the folder; tests/torture/test_locks.py has damaged and old locks.

The lock is tried on every system: with the locks of Unix, of Windows, and without any.
"""

import contextlib
import errno
import fcntl
import json
import os
import struct
import sys
import threading
from types import SimpleNamespace

import pytest

from histoblend.data.errors import InputError
from histoblend.pipelines.runtime import lock
from histoblend.pipelines.runtime.lock import run_lock


def locking(handle, mode, count):
    """Windows' lock of bytes from the position on, by Linux' lock of the same kind: of an open file, not a process."""
    assert mode == "LK_NBLCK"
    start = os.lseek(handle, 0, os.SEEK_CUR)
    try:
        fcntl.fcntl(handle, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, count, 0))
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


def unsupported(*_):
    raise OSError(errno.EINVAL, "Invalid argument")


@pytest.fixture(params=["Unix", "Windows", "Unix share", "Windows share"])
def system(request, monkeypatch):
    if request.param.startswith("Windows"):
        if not hasattr(fcntl, "F_OFD_SETLK"):
            pytest.skip("needs locks of open files, which Linux has")
        does = unsupported if "share" in request.param else locking
        monkeypatch.setitem(sys.modules, "fcntl", None)
        monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=does, LK_NBLCK="LK_NBLCK"))
    elif "share" in request.param:
        monkeypatch.setattr(fcntl, "flock", unsupported)
    return request.param


def test_a_second_process_is_refused_and_told_who_works(system, tmp_path):
    (tmp_path / "notes.txt").touch()
    with (
        run_lock(tmp_path, print),
        pytest.raises(InputError, match=f"process {os.getpid()} on .* has been working in this run folder since 2"),
        run_lock(tmp_path, print),
    ):
        pass
    said = []
    with run_lock(tmp_path, said.append):
        assert (tmp_path / ".lock").stat().st_size < 1000
    assert said == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "notes.txt"]


def test_of_several_at_once_one_gets_the_folder(system, tmp_path, monkeypatch):
    """Also if each looks who works there before another has written its name."""
    together, reading, answered, results = threading.Barrier(4), threading.Barrier(4), threading.Event(), []
    is_alive = lock._is_alive

    def wait_for_other_readers(holder):
        with contextlib.suppress(threading.BrokenBarrierError):
            reading.wait(0.3)
        return is_alive(holder)

    monkeypatch.setattr(lock, "_is_alive", wait_for_other_readers)

    def answer(word):
        results.append(word)
        if len(results) == 4:
            answered.set()

    def start():
        together.wait(10)
        try:
            with run_lock(tmp_path, print):
                answer("works")
                answered.wait(10)
        except InputError:
            answer("refused")

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["refused"] * 3 + ["works"]


def test_a_process_killed_while_it_started_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_lock", lambda handle: None)
    (tmp_path / ".lock.starting").touch()
    with pytest.raises(InputError, match=r"delete .*\.lock\.starting, then run again"), run_lock(tmp_path, print):
        pass
    assert (tmp_path / ".lock.starting").exists()


def start_with_wrong_data(folder):
    with run_lock(folder, print):
        assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()
        raise InputError("wrong data")


def refused(folder):
    with pytest.raises(InputError, match="wrong data"):
        start_with_wrong_data(folder)


@pytest.mark.parametrize("before", ["", "runs", "runs/x"])
def test_a_refused_start_leaves_the_folders_that_were_there(tmp_path, before):
    (tmp_path / before).mkdir(parents=True, exist_ok=True)
    refused(tmp_path / "runs" / "x")
    assert [path.name for path in tmp_path.iterdir()] == (["runs"] if before else [])
    assert not (tmp_path / "runs" / "x").exists()


@pytest.mark.parametrize("content", ["1-patches/manifest.json", "1-patches.partial/pixels.npy", "notes.txt"])
def test_a_folder_with_any_content_stays(tmp_path, content):
    path = tmp_path / "x" / content
    path.parent.mkdir(parents=True)
    path.write_text("hours of work")
    refused(tmp_path / "x")
    assert path.read_text() == "hours of work"
    assert (tmp_path / "x" / ".lock").read_text() == ""


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_void(tmp_path, monkeypatch):
    """Between opening and locking the file, the previous holder ends and removes it."""
    original, tried = lock._lock, []

    def late(handle):
        tried.append(handle)
        if len(tried) == 1:
            (tmp_path / "x" / ".lock").unlink()
            (tmp_path / "x").rmdir()
        return original(handle)

    monkeypatch.setattr(lock, "_lock", late)
    with run_lock(tmp_path / "x", print):
        assert len(tried) == 2
        with pytest.raises(InputError, match=f"process {os.getpid()}"), run_lock(tmp_path / "x", print):
            pass
