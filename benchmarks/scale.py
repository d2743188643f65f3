"""Measure the costs of a cluster: seconds and bytes per patch, scheduler overhead and best part size.

Run from the repository root: ``python -m benchmarks.scale [patches]``. The benchmark uses 1, 2 and 4 workers. It first
checks that the cluster's table is bit-identical to one machine's. It then measures the cost model of docs/scale.md,
compares it with measured times and extrapolates it.
"""

import contextlib
import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from joblib import cpu_count

from histoblend.pipelines.config import EngineConfig
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.engine.cluster import Cluster
from histoblend.pipelines.engine.cluster_tables import extract_on_cluster
from histoblend.pipelines.plan import plan_run
from histoblend.pipelines.results import patches_of
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.tables import chosen_families, read_values

PATCHES = 4000
SHARDS = (32, 128, 512)
WORKERS = (1, 2, 4)
EMPTY = 2000

#: Number of slides of a hospital, and of patches per slide.
SLIDES, PATCHES_PER_SLIDE = 1_000, 50_000
THREADS = (16, 64, 256)


class Quiet(Screen):
    """A screen without output."""

    def say(self, line):
        """Do nothing."""

    def warn(self, line):
        """Do nothing."""

    @contextlib.contextmanager
    def progress(self, label, total, unit="patches"):
        """Do nothing."""
        yield lambda count: None


@contextlib.contextmanager
def local_cluster(folder, workers):
    """Yield a connected cluster of processes on this machine."""
    cluster = Cluster(EngineConfig(scheduler="dask-local"), folder, workers, Quiet())
    with contextlib.closing(cluster):
        cluster.connect()
        yield cluster


def empty_task_seconds(cluster):
    """Seconds that scheduler and client need for an empty task."""
    from histoblend.models.table_blocks import keep

    tasks = [(keep, (number,)) for number in range(EMPTY)]
    started = time.perf_counter()
    assert sum(cluster.run(tasks)) == EMPTY * (EMPTY - 1) // 2
    return (time.perf_counter() - started) / EMPTY


def table_seconds(cluster, run, folder, shard):
    """Wall-clock seconds of a table in parts of `shard` patches, and the resources that its parts used."""
    folder.mkdir()
    names = run.columns
    recipe = {"families": list(chosen_families(run.config))}
    started = time.perf_counter()
    patches = patches_of(run)
    used = extract_on_cluster(
        cluster, recipe, names, patches, patches.pixels, folder, shard=shard, progress=lambda count: None
    )
    wall = time.perf_counter() - started
    np.testing.assert_array_equal(np.load(folder / "values.npy", mmap_mode="r"), run.expected)
    return wall, used


def measure(root, patches):
    """Print the measurements; return the parameters of the cost model."""
    settings = [f"data.n={patches}", f"data.slides={max(8, patches // 50)}"]
    run = plan_run(load_config(Path("configs/phantom.toml"), settings), root, screen=Quiet())
    features = run.step("features").folder
    run.expected = np.load(features / "values.npy", mmap_mode="r")
    run.columns = read_values(features)[1]
    print(f"{patches} patches, {len(run.columns)} columns, {cpu_count()} cores; all tables equal that of one machine")
    print(f"{'workers':>8}{'part':>6}{'wall s':>9}{'model s':>9}{'core ms/patch':>15}{'read B':>9}{'written B':>11}")
    costs = {}
    for workers in WORKERS:
        with local_cluster(root / "cluster", workers) as cluster:
            table_seconds(cluster, run, root / f"warm-{workers}", 32)  # loads kernels
            overhead = empty_task_seconds(cluster)
            for shard in SHARDS:
                wall, used = table_seconds(cluster, run, root / f"{workers}-{shard}", shard)
                core_seconds_per_patch = used.core_seconds / patches
                model = modelled_seconds(patches, shard, min(workers, cpu_count()), core_seconds_per_patch, overhead)
                costs[workers, shard] = (core_seconds_per_patch, overhead, used.read / patches, used.written / patches)
                print(
                    f"{workers:>8}{shard:>6}{wall:>9.2f}{model:>9.2f}{1e3 * core_seconds_per_patch:>15.2f}"
                    f"{costs[workers, shard][2]:>9.0f}{costs[workers, shard][3]:>11.0f}"
                )
            print(f"{'':8}an empty task: {1e3 * overhead:.2f} ms")
    return costs


def modelled_seconds(patches, shard, threads, core_seconds_per_patch, overhead):
    """Modelled seconds: the longer of computing and scheduling, plus the time of the last part."""
    return max(patches * core_seconds_per_patch / threads, patches / shard * overhead) + shard * core_seconds_per_patch


def best_part_size(patches, core_seconds_per_patch, overhead):
    """Patches per part that minimise the sum of scheduling and waiting for the last part; both are equal there."""
    return round((patches * overhead / core_seconds_per_patch) ** 0.5)


def extrapolate(costs):
    """Print the extrapolated cost of a hospital's slides."""
    core_seconds_per_patch, overhead, read, written = costs[2, 128]
    patches = SLIDES * PATCHES_PER_SLIDE
    part = min(best_part_size(patches, core_seconds_per_patch, overhead), 4096)
    print(f"\n{SLIDES:,} slides × {PATCHES_PER_SLIDE:,} patches = {patches:,}; {patches // part:,} parts of {part}")
    terabytes = f"read {patches * read / 1e12:.2f} TB, written {patches * written / 1e12:.2f} TB"
    print(f"core-hours {patches * core_seconds_per_patch / 3600:.0f}; {terabytes}")
    print(f"scheduler {patches / part * overhead / 60:.1f} min in all")
    for threads in THREADS:
        hours = modelled_seconds(patches, part, threads, core_seconds_per_patch, overhead) / 3600
        rate = patches * (read + written) / (hours * 3600) / 1e6
        print(f"{threads:>5} threads: {hours:.2f} h, {rate:,.0f} MB/s from and to storage")


def main():
    """Run all measurements in a temporary folder."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    patches = int(sys.argv[1]) if len(sys.argv) > 1 else PATCHES
    with tempfile.TemporaryDirectory() as folder:
        extrapolate(measure(Path(folder), patches))


if __name__ == "__main__":
    main()
