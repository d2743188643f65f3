"""Memory limits below what a command needs are reported before libraries crash."""

import resource

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
    limits = [150 * MB, 400 * MB, 700 * MB, 1500 * MB, least - MB]
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


CGROUPS = [
    (2, ("memory.max", "memory.current")),
    (1, ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")),
]


@pytest.mark.parametrize(("version", "names"), CGROUPS)
def test_cached_files_do_not_count_against_a_container_limit(tmp_path, version, names):
    limit, used = (tmp_path / name for name in names)
    limit.parent.mkdir(exist_ok=True)
    limit.write_text("1000000000\n")
    used.write_text("900000000\n")
    inactive = "inactive_file" if version == 2 else "total_inactive_file"
    (limit.parent / "memory.stat").write_text(f"anon 5\n{inactive} 300000000\n")
    assert resources._cgroup_available(tmp_path) == 400_000_000


def test_a_container_without_a_limit_has_none(tmp_path):
    for name, text in (("memory.max", "max"), ("memory.current", "5"), ("memory.stat", "inactive_file 1")):
        (tmp_path / name).write_text(text)
    assert resources._cgroup_available(tmp_path) is None
    assert resources._cgroup_available(tmp_path / "elsewhere") is None


def test_fits_that_do_not_fit_in_memory_are_refused_before_they_start(monkeypatch, faults):
    monkeypatch.setattr(resources, "available_memory", lambda: 700 * MB)
    resources.check_start("heads", networks=False)
    with pytest.raises(InputError, match=r"embeddings needs at least 2\.0 GB of memory; 700\.0 MB are available"):
        resources.check_start("embeddings", networks=True)
    with pytest.raises(InputError, match=r"2 parallel fits need at least 1\.0 GB of memory") as error:
        resources.check_memory(1000 * MB, "2 parallel fits")
    faults("tables larger than the available memory", 1, 1, f"error: {error.value}")
