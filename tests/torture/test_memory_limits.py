"""Memory limits below what a command needs are reported before libraries crash."""

import resource
from functools import partial

import pytest

from histoblend.data.errors import InputError
from histoblend.pipelines.runtime import resources
from tests.torture.commands import command, one_line

pytestmark = pytest.mark.torture
MB = 1_000_000


@pytest.mark.parametrize("step", ["heads", "ensemble"])
def test_a_limit_below_what_libraries_map_is_reported_at_once(tmp_path, step, faults):
    least = resources.MIN_SPACE[step == "ensemble"]
    # Below 120 MB Python itself does not start.
    limits = [150 * MB, least - MB]
    if step == "heads":
        limits += [400 * MB, 700 * MB, 1500 * MB]
    for most in limits:
        done = command(step, tmp_path, limit=lambda most=most: resource.setrlimit(resource.RLIMIT_AS, (most, most)))
        said = one_line(done)
        assert f"{step} needs at least {least / 1e9:.1f} GB of address space" in said
        assert list(tmp_path.iterdir()) == []
    faults(f"`{step}` with too little address space (`ulimit -v`), from 150 MB", len(limits), len(limits), said)


def test_the_least_address_space_is_enough(tmp_path, faults):
    least = resources.MIN_SPACE[False]
    done = command("heads", tmp_path, limit=lambda: resource.setrlimit(resource.RLIMIT_AS, (least, least)))
    assert done.returncode == 0, done.stderr
    faults("`heads` on a small data set with the minimum address space", 1, 1, "nothing: it finishes")


def control_group(folder, version, limit):
    """Files of a control group with 900 MB in use, 300 of them cached."""
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in zip(names, (limit, "900000000"), strict=True):
        (folder / name).write_text(f"{text}\n")
    own = "active_file 250000000\ninactive_file 50000000\n"
    below = "active_file 0\ninactive_file 1000\ntotal_active_file 250000000\ntotal_inactive_file 50000000\n"
    (folder / "memory.stat").write_text(f"anon 5\n{own if version == 2 else below}")


@pytest.mark.parametrize(("version", "line"), [(2, "0::/a/b\n"), (1, "5:cpu:/x\n4:memory:/a/b\n0::/\n")])
def test_memory_is_limited_by_the_own_control_group_and_those_around_it(tmp_path, version, line):
    own, top = tmp_path / "own", tmp_path / ("" if version == 2 else "memory")
    own.write_text(line)
    available = partial(resources._cgroup_available, tmp_path, own)
    assert available() is None
    control_group(top, version, 5_000_000_000)  # all that a container sees of its group
    assert available() == 4_400_000_000
    control_group(top / "a", version, 1_000_000_000)
    assert available() == 400_000_000
    control_group(top / "a" / "b", version, "max" if version == 2 else 2**63 - 4096)
    assert available() == 400_000_000
    control_group(top / "a" / "b", version, 700_000_000)
    assert available() == 100_000_000
    own.unlink()
    assert available() is None


def test_fits_that_do_not_fit_in_memory_are_refused_before_they_start(monkeypatch, faults):
    monkeypatch.setattr(resources, "available_memory", lambda: 700 * MB)
    resources.check_start("heads", networks=False)
    with pytest.raises(InputError, match=r"embeddings needs at least 2\.0 GB of memory; 700\.0 MB are available"):
        resources.check_start("embeddings", networks=True)
    with pytest.raises(InputError, match=r"2 parallel fits need at least 1\.0 GB of memory") as error:
        resources.check_memory(1000 * MB, "2 parallel fits")
    faults("tables larger than the available memory", 1, 1, f"error: {error.value}")
