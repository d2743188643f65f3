"""Locks where the file system knows none, numbers of processes used again, and caches that runs share."""

import json
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from data.errors import InputError
from pipelines import locking
from tests.torture.commands import ROOT, command

pytestmark = pytest.mark.torture


@pytest.fixture
def other():
    """A living process that is not this one."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield {"pid": process.pid, "host": socket.gethostname(), "started": psutil.Process(process.pid).create_time()}
    process.kill()
    process.wait()


@pytest.fixture
def without_locks(monkeypatch):
    monkeypatch.setattr(locking, "_lock", lambda handle: None)


def held(folder, holder):
    folder.mkdir(exist_ok=True)
    (folder / ".lock").write_text(holder if isinstance(holder, str) else json.dumps(holder))
    return folder


def test_without_locks_of_the_file_system_a_living_process_is_not_disturbed(tmp_path, other, without_locks, faults):
    folder = held(tmp_path / "run", other)
    words = f"process {other['pid']} on {other['host']} has been working"
    with pytest.raises(InputError, match=words) as found, locking.run_lock(folder, print):
        pass
    assert json.loads((folder / ".lock").read_text()) == other
    faults("a second process where the file system knows no locks", 1, 1, f"error: {found.value}".replace(
        str(tmp_path), "runs"))  # fmt: skip


def test_a_lock_of_another_machine_is_not_taken(tmp_path, other, without_locks, faults):
    folder = held(tmp_path / "run", other | {"host": "another-machine", "pid": 1})
    with pytest.raises(InputError, match="process 1 on another-machine"), locking.run_lock(folder, print):
        pass
    faults("a lock of another machine on a share without locks", 1, 1, "error: … process <n> on <host> …")


@pytest.mark.parametrize("change", [{"started": 5.0}, {"pid": 2**22 - 3}, {"started": None}, {"pid": "none"}])
def test_a_number_used_again_holds_nothing(tmp_path, other, without_locks, change, faults):
    folder, said = held(tmp_path / "run", other | change), []
    with locking.run_lock(folder, said.append):
        holder = json.loads((folder / ".lock").read_text())
        assert (holder["pid"], holder["host"]) == (os.getpid(), socket.gethostname())
    assert len(said) == 1
    assert "which has ended, taken over" in said[0]
    assert (folder / ".lock").read_text() == ""
    faults("a process number used again by another process", 1, 1, said[0])


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_lock_file_cut_by_a_kill_is_written_anew(tmp_path, other, without_locks, cut, faults):
    folder = held(tmp_path / "run", json.dumps(other)[:cut])
    with locking.run_lock(folder, print):
        assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()
    faults("a lock file cut off in its middle", 1, 1, "nothing")


@pytest.mark.length
def test_two_runs_at_once_under_one_folder_end_like_each_alone(tmp_path, faults):
    alone = command("heads", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    words = ["--set", "data.n=120", "--set", "data.slides=12", "--set", "split.folds=2", "--set", "engine.workers=1"]
    words += ["--set", "features.families=['colour']", "--set", "heads.features=['colour']"]
    pair = [
        subprocess.Popen(
            [sys.executable, "-m", "pipelines", "heads", "--runs", tmp_path / "both", "--run", name, *words],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in ("first", "second")
    ]  # fmt: skip
    for process in pair:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    for name in ("first", "second"):
        for file in ("1-patches/pixels.npy", "2-features/values.npy", "4-heads/predictions.parquet"):
            found = (tmp_path / "both" / name / file).read_bytes()
            assert found == (tmp_path / "alone" / "one" / file).read_bytes(), file
    faults("two runs at once under one folder", 2, 2, "nothing: each ends as it would alone")


def test_leftovers_of_a_living_process_stay(tmp_path, other):
    folder = tmp_path / "run"
    folder.mkdir()
    living, dead = folder / f".a.{other['pid']}-1.partial", folder / f".b.{2**22 - 3}-1.partial"
    living.touch()
    dead.touch()
    with locking.run_lock(folder, print):
        time.sleep(0)
    assert living.exists()
    assert not dead.exists()
