"""The disk refuses each call that writes, in turn: one error, no half-written file, and the same result afterwards."""

import errno
import shutil

import numpy as np
import pytest

from histoblend.data.errors import InputError
from histoblend.models.bundle import open_bundle
from tests.torture.disk import Disk, heads, whole_baseline

pytestmark = pytest.mark.torture
SEED = 8
#: Errors of a disk, and words of the message that a user sees.
ANSWERS = {errno.ENOSPC: "no space is left", errno.EDQUOT: "quota", errno.EROFS: "read-only"}


def calls_of(run, runs):
    """Number of calls that write in an undisturbed run, and its results."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, runs)
        expected = run(runs)
        return disk.calls, expected


def refused(run, runs, call, number, expected):
    """Refuse the `call`-th write of a run, then run again with free space; return the error message, or ""."""
    said = ""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, runs, call, number)
        try:
            actual = run(runs)
        except InputError as error:
            said = str(error)
            assert ANSWERS[number] in said
        else:
            # Only the sync of a folder was refused; all files are complete.
            assert actual == expected
        assert disk.calls >= call, "nothing was refused"
    assert run(runs) == expected
    assert list(runs.rglob("*.partial")) == []
    return said.replace(str(runs), "runs")


def test_a_full_disk_at_any_call_is_one_error_and_the_run_resumes(tmp_path, faults, at_length):
    calls, expected = calls_of(heads, tmp_path / "whole")
    assert calls > 40
    seen = {number: [] for number in ANSWERS}
    for call in range(1, calls + 1, 1 if at_length else 40):
        number = list(ANSWERS)[call % len(ANSWERS)]
        runs = tmp_path / f"refused-{call}"
        seen[number].append(refused(heads, runs, call, number, expected))
        shutil.rmtree(runs)
    lines = [line for messages in seen.values() for line in messages]
    assert sum(map(bool, lines)) > len(lines) / 2
    for number, messages in seen.items():
        sees = f"error: {max(messages)}"
        faults(f"`heads`: each write in turn fails ({ANSWERS[number]})", len(messages), len(messages), sees)


@pytest.mark.length
def test_a_full_disk_during_report_or_bundle_is_one_error_and_the_run_resumes(tmp_path, faults):
    first, _ = calls_of(heads, tmp_path / "begun")
    shutil.copytree(tmp_path / "begun", tmp_path / "whole")
    calls, expected = calls_of(whole_baseline, tmp_path / "whole")
    # Half of the calls are among the last ones, which write the bundle and the other outputs.
    rng, last = np.random.default_rng(SEED), 60
    early = rng.choice(np.arange(1, calls - last), 6, replace=False)
    late = calls - rng.choice(last, 6, replace=False)
    assert first < calls
    for index, call in enumerate(map(int, [*early, *late])):
        runs = tmp_path / f"refused-{call}"
        shutil.copytree(tmp_path / "begun", runs)
        number = list(ANSWERS)[index % len(ANSWERS)]
        said = refused(whole_baseline, runs, call, number, expected)
        open_bundle(runs / "one" / "bundle")
        shutil.rmtree(runs)
    tried = len(early) + len(late)
    faults("`baseline`: a random write of the report or bundle fails", tried, tried, f"error: {said}", SEED)
