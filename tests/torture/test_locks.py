"""Locks on file systems without locking, reused process numbers, and caches shared by runs."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from histoblend.data.errors import InputError
from histoblend.features.networks.onnx_export import open_session
from histoblend.pipelines.runtime import lock
from tests.torture.commands import ROOT, command

pytestmark = pytest.mark.torture


@pytest.fixture
def other():
    """Another running process."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield {"pid": process.pid, "host": socket.gethostname(), "started": psutil.Process(process.pid).create_time()}
    process.kill()
    process.wait()


@pytest.fixture
def without_locks(monkeypatch):
    monkeypatch.setattr(lock, "_lock", lambda handle: None)


def held(folder, holder):
    folder.mkdir(exist_ok=True)
    (folder / ".lock").write_text(holder if isinstance(holder, str) else json.dumps(holder))
    return folder


def anonymous(said):
    """The text without the name and process numbers of this machine."""
    return re.sub(r"process \d+", "process <n>", said.replace(socket.gethostname(), "<host>"))


def test_a_lock_of_a_running_process_is_kept_without_file_locks(tmp_path, other, without_locks, faults):
    folder = held(tmp_path / "run", other)
    words = f"process {other['pid']} on {other['host']} has been working"
    with pytest.raises(InputError, match=words) as error, lock.run_lock(folder, print):
        pass
    assert json.loads((folder / ".lock").read_text()) == other
    sees = anonymous(f"error: {error.value}".replace(str(tmp_path), "runs"))
    faults("a second process on a file system without locks", 1, 1, sees)


def test_a_lock_of_another_machine_is_not_taken(tmp_path, other, without_locks, faults):
    folder = held(tmp_path / "run", other | {"host": "another-machine", "pid": 1})
    with pytest.raises(InputError, match="process 1 on another-machine"), lock.run_lock(folder, print):
        pass
    faults("a lock of another machine on a network share without locks", 1, 1, "error: … process <n> on <host> …")


@pytest.mark.parametrize("change", [{"started": 5.0}, {"pid": 2**22 - 3}, {"started": None}, {"pid": "none"}])
def test_a_reused_process_number_holds_no_lock(tmp_path, other, without_locks, change, faults):
    folder, said = held(tmp_path / "run", other | change), []
    with lock.run_lock(folder, said.append):
        holder = json.loads((folder / ".lock").read_text())
        assert (holder["pid"], holder["host"]) == (os.getpid(), socket.gethostname())
    assert len(said) == 1
    assert "taking over the lock" in said[0]
    assert (folder / ".lock").read_text() == ""
    faults("a process number reused by another process", 1, 1, anonymous(said[0]))


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_truncated_lock_file_is_rewritten(tmp_path, other, without_locks, cut, faults):
    folder = held(tmp_path / "run", json.dumps(other)[:cut])
    with lock.run_lock(folder, print):
        assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()
    faults("a truncated lock file", 1, 1, "nothing")


@pytest.mark.length
def test_two_parallel_runs_under_one_folder_give_the_results_of_each_alone(tmp_path, faults):
    alone = command("heads", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    words = ["--set", "data.n=120", "--set", "data.slides=12", "--set", "split.folds=2", "--set", "engine.workers=1"]
    words += ["--set", "features.families=['colour']", "--set", "heads.features=['colour']"]
    pair = [
        subprocess.Popen(
            [sys.executable, "-m", "histoblend.pipelines", "heads", "--runs", tmp_path / "both", "--run", name, *words],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in ("first", "second")
    ]  # fmt: skip
    for process in pair:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    for name in ("first", "second"):
        for file in ("1-patches/pixels.npy", "2-features/values.npy", "4-heads/predictions.parquet"):
            actual = (tmp_path / "both" / name / file).read_bytes()
            assert actual == (tmp_path / "alone" / "one" / file).read_bytes(), file
    faults("two parallel runs in one folder", 2, 2, "nothing: the results of each run alone")


def embedded(path):
    """Embeddings of two pictures. They are compared because the order of parts in a network file may vary."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3)).astype(np.float32)
    return open_session(path.read_bytes()).run(None, {"images": pictures})[0].tobytes()


EXPORT = """
import sys
from pathlib import Path
from histoblend.features.networks.onnx_export import export_onnx
from histoblend.features.networks.recipe import Recipe
print(export_onnx(Recipe(weights="random"), None, Path(sys.argv[1])))
"""


def exporting(cache):
    """Start a process that exports a network to a cache."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", EXPORT, cache], cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.length
def test_processes_share_the_cache_of_exported_networks(tmp_path, faults):
    """Two parallel exports after a killed one; then the file is altered and exported again."""
    cache = tmp_path / "networks"
    killed = exporting(cache)
    deadline = time.monotonic() + 60
    while not list(cache.glob(".export-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    assert list(cache.glob(".export-*"))
    made = set()
    for process in [exporting(cache) for _ in range(2)]:
        said, complaint = process.communicate(timeout=300)
        assert process.returncode == 0, complaint
        made.add(said.strip())
    (path,) = (Path(name) for name in made)
    content, expected = path.read_bytes(), embedded(path)
    for altered in (content[:-1], content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]):
        path.write_bytes(altered)
        process = exporting(cache)
        process.communicate(timeout=300)
        assert process.returncode == 0
        assert embedded(path) == expected
    # A child of the killed process ran on for a while and may have written files after the first check.
    assert sorted(file.suffix for file in cache.iterdir()) == [".onnx", ".sha256"]
    faults("two processes export to one cache in which another was killed", 3, 3, "nothing: one complete file")
    faults("an exported network in the cache altered or truncated", 2, 2, "nothing: it is exported again")


def test_partial_files_of_a_running_process_are_kept(tmp_path, other):
    folder = tmp_path / "run"
    folder.mkdir()
    running, dead = folder / f".a.{other['pid']}-1.partial", folder / f".b.{2**22 - 3}-1.partial"
    running.touch()
    dead.touch()
    with lock.run_lock(folder, print):
        time.sleep(0)
    assert running.exists()
    assert not dead.exists()
