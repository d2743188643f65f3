"""The disk refuses each file in turn, at each moment of its writing: one error, nothing half-written, same result."""

import errno
import shutil

import numpy as np
import pytest

from histoblend.data.errors import InputError
from histoblend.models.bundle import open_bundle
from tests.torture.disk import Disk, heads, whole_baseline

pytestmark = pytest.mark.torture
SEED = 8
#: What a disk may answer, and the words of it that a user sees.
ANSWERS = {errno.ENOSPC: "no space is left", errno.EDQUOT: "quota", errno.EROFS: "read-only"}


def calls_of(run, runs):
    """Number of calls that write in a run that is left in peace, and its results."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, runs)
        expected = run(runs)
        return disk.calls, expected


def refused(run, runs, call, number, expected):
    """A run whose `call`-th call to write is refused, and again with room; the line shown, or nothing."""
    said = ""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, runs, call, number)
        try:
            found = run(runs)
        except InputError as error:
            said = str(error)
            assert ANSWERS[number] in said
        else:
            # A folder's list of names that could not be brought to the disk: whole files matter more.
            assert found == expected
        assert disk.calls >= call, "nothing was refused"
    assert run(runs) == expected
    assert list(runs.rglob("*.partial")) == []
    return said.replace(str(runs), "runs")


def test_a_disk_full_at_any_call_is_told_and_gone_on_from(tmp_path, faults, at_length):
    calls, expected = calls_of(heads, tmp_path / "whole")
    assert calls > 40
    seen = {number: [] for number in ANSWERS}
    for call in range(1, calls + 1, 1 if at_length else 40):
        number = list(ANSWERS)[call % len(ANSWERS)]
        runs = tmp_path / f"refused-{call}"
        seen[number].append(refused(heads, runs, call, number, expected))
        shutil.rmtree(runs)
    lines = [line for found in seen.values() for line in found]
    assert sum(map(bool, lines)) > len(lines) / 2
    for number, found in seen.items():
        sees = f"error: {max(found)}"
        faults(f"`heads`: each call in turn that writes refused ({ANSWERS[number]})", len(found), len(found), sees)


@pytest.mark.length
def test_a_disk_full_under_the_report_and_the_bundle_is_told_and_gone_on_from(tmp_path, faults):
    first, _ = calls_of(heads, tmp_path / "begun")
    shutil.copytree(tmp_path / "begun", tmp_path / "whole")
    calls, expected = calls_of(whole_baseline, tmp_path / "whole")
    # Half of them in the last part, which writes the bundle and what lies beside it.
    rng, last = np.random.default_rng(SEED), 60
    early = rng.choice(np.arange(1, calls - last), 6, replace=False)
    late = calls - rng.choice(last, 6, replace=False)
    assert first < calls
    for place, call in enumerate(map(int, [*early, *late])):
        runs = tmp_path / f"refused-{call}"
        shutil.copytree(tmp_path / "begun", runs)
        number = list(ANSWERS)[place % len(ANSWERS)]
        said = refused(whole_baseline, runs, call, number, expected)
        open_bundle(runs / "one" / "bundle")
        shutil.rmtree(runs)
    tried = len(early) + len(late)
    faults("`baseline`: a random call that writes report or bundle refused", tried, tried, f"error: {said}", SEED)
