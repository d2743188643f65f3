"""Full disks and exhausted memory: a one-line error, exit status 2, and the same result once there is space."""

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from histoblend.data.errors import InputError
from histoblend.pipelines.runtime import resources
from tests import ROOT
from tests.processes import run_command

QUICK = ["data.n=60", "data.slides=12", "split.folds=2", "features.families=['colour']", "heads.features=['colour']"]
QUICK += ["engine.workers=1", "features.shard=20"]
RESULTS = ("1-patches/pixels.npy", "2-features/values.npy")

pytestmark = pytest.mark.torture


def features(runs, largest=None):
    """Run the step ``features`` with a limit of ``largest`` bytes per file."""
    settings = [word for setting in QUICK for word in ("--set", setting)]
    return run_command("features", "--runs", runs, "--run", "room", *settings, largest=largest)


def one_line(done):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.strip().count("\n") == 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    assert features(runs).returncode == 0
    return [(runs / "room" / name).read_bytes() for name in RESULTS]


def test_a_limit_on_file_size_is_a_one_line_error_and_the_run_resumes(tmp_path, undisturbed, faults, at_length):
    limits = (100, 3_000, 8_000, 60_000, 900_000) if at_length else (3_000, 60_000)
    for largest in limits:
        done = features(tmp_path, largest)
        one_line(done)
        assert "larg" in done.stderr or "no space" in done.stderr
        assert not (tmp_path / "room" / "2-features").exists()
    assert features(tmp_path).returncode == 0
    assert [(tmp_path / "room" / name).read_bytes() for name in RESULTS] == undisturbed
    faults("a limit on file size", len(limits), len(limits), done.stderr.strip().replace(str(tmp_path), "runs"))


def test_a_full_disk_is_a_one_line_error_and_the_run_resumes(tmp_path, undisturbed, faults):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("only the superuser can mount a small disk")
    try:
        predicted = features(disk)
        one_line(predicted)
        assert "decoded patches need" in predicted.stderr
        subprocess.run(["mount", "-o", "remount,size=1720k", disk], check=True)
        done = features(disk)
        one_line(done)
        assert "no space is left" in done.stderr or "need" in done.stderr
        subprocess.run(["mount", "-o", "remount,size=9m", disk], check=True)
        assert features(disk).returncode == 0
        assert [(disk / "room" / name).read_bytes() for name in RESULTS] == undisturbed
    finally:
        subprocess.run(["umount", disk], check=True)
    faults("a full disk", 2, 2, predicted.stderr.strip().replace(str(disk), "runs"))


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "no space is left"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "quota"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "read-only"),
        (OSError("1000 requested and 24 written"), "no space is left"),
        (shutil.Error([("a", "b", "[Errno 122] Disk quota exceeded: 'b'")]), "quota"),
        (shutil.Error([("a", "b", "[Errno 30] Read-only file system: 'b'")]), "read-only"),
    ],
)
def test_disk_errors_of_libraries_name_the_folder(tmp_path, raised, words, faults):
    with pytest.raises(InputError, match=words) as found, resources.report_shortages(tmp_path / "not" / "there"):
        raise raised
    assert str(tmp_path) in str(found.value)
    assert "run the same command again to resume" in str(found.value)
    faults(f"error of a library: {raised}", 1, 1, str(found.value).replace(str(tmp_path), "runs"))


def test_a_memory_error_gives_the_requested_size(tmp_path, faults):
    with (
        pytest.raises(InputError, match=r"memory ran out.*PiB.*available now") as found,
        resources.report_shortages(tmp_path),
    ):
        np.empty(2**53, np.float32)
    faults("an array larger than any memory", 1, 1, str(found.value))


def test_other_errors_are_not_changed(tmp_path):
    with pytest.raises(OSError, match="Permission"), resources.report_shortages(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_memory_is_checked_before_it_is_allocated():
    code = (
        "import resource; from histoblend.pipelines.runtime import resources\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000,) * 2)\n"
        "assert 0 < resources.available_memory() < 2_000_000_000\n"
        "resources.check_memory(1_000_000, 'a few columns')\n"
        "resources.check_memory(3_000_000_000, 'the columns')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "the columns need at least 3.0 GB of memory" in done.stderr
