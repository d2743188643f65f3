"""The lock of a run folder, and what is left of the folder; tests/torture/test_locks.py has damaged and old locks."""

import json
import os

import pytest

from histoblend.data.errors import InputError
from histoblend.pipelines.runtime import lock


def start(folder):
    with lock.run_lock(folder, print):
        assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()
        raise InputError("wrong data")


def refused(folder):
    with pytest.raises(InputError, match="wrong data"):
        start(folder)


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
    with lock.run_lock(tmp_path / "x", print):
        assert len(tried) == 2
        with pytest.raises(InputError, match=f"process {os.getpid()}"), lock.run_lock(tmp_path / "x", print):
            pass
