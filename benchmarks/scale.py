"""What a cluster costs: seconds and bytes a patch, the scheduler's share of a part, the best part, 1, 2 and 4 workers.

Run from the repository's root: ``python -m benchmarks.scale [patches]``. Checks first that a cluster's table is one
machine's, bit for bit; then measures the model behind docs/scale.md, holds it against runs, and extrapolates it.
"""

import contextlib
import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from joblib import cpu_count

from histoblend.pipelines.config import EngineConfig, load_config
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

#: Slides, and patches of each, of a hospital.
SLIDES, EACH = 1_000, 50_000
THREADS = (16, 64, 256)


class Quiet(Screen):
    """Says nothing."""

    def say(self, line):
        """Nothing."""

    def warn(self, line):
        """Nothing."""

    @contextlib.contextmanager
    def progress(self, label, total, unit="patches"):
        """Nothing."""
        yield lambda count: None


@contextlib.contextmanager
def local_cluster(folder, workers):
    """Yield a cluster of processes on this machine, connected."""
    cluster = Cluster(EngineConfig(scheduler="dask-local"), folder, workers, Quiet())
    with contextlib.closing(cluster):
        cluster.connect()
        yield cluster


def empty_task_s(cluster):
    """Seconds that the scheduler and the client spend on a task that does nothing."""
    from histoblend.models.table_blocks import keep

    tasks = [(keep, (number,)) for number in range(EMPTY)]
    started = time.perf_counter()
    assert sum(cluster.run(tasks)) == EMPTY * (EMPTY - 1) // 2
    return (time.perf_counter() - started) / EMPTY


def table_s(cluster, run, folder, shard):
    """Wall seconds of a table in parts of `shard` patches, and what its parts took."""
    folder.mkdir()
    names = run.columns
    recipe = {"families": list(chosen_families(run.config))}
    started = time.perf_counter()
    spent = extract_on_cluster(
        cluster, recipe, names, patches_of(run), folder, shard=shard, progress=lambda count: None
    )
    wall = time.perf_counter() - started
    np.testing.assert_array_equal(np.load(folder / "values.npy", mmap_mode="r"), run.expected)
    return wall, spent


def measure(root, patches):
    """Print the measurements; return what the model is made of."""
    settings = [f"data.n={patches}", f"data.slides={max(8, patches // 50)}"]
    run = plan_run(load_config(Path("configs/phantom.toml"), settings), root, screen=Quiet())
    features = run.step("features").folder
    run.expected = np.load(features / "values.npy", mmap_mode="r")
    run.columns = read_values(features)[1]
    print(f"{patches} patches, {len(run.columns)} columns, {cpu_count()} cores; every table below equals one machine's")
    print(f"{'workers':>8}{'part':>6}{'wall s':>9}{'model s':>9}{'core ms/patch':>15}{'read B':>9}{'written B':>11}")
    found = {}
    for workers in WORKERS:
        with local_cluster(root / "cluster", workers) as cluster:
            table_s(cluster, run, root / f"warm-{workers}", 32)  # kernels are loaded
            overhead = empty_task_s(cluster)
            for shard in SHARDS:
                wall, spent = table_s(cluster, run, root / f"{workers}-{shard}", shard)
                each = spent.core_seconds / patches
                model = modelled(patches, shard, min(workers, cpu_count()), each, overhead)
                found[workers, shard] = (each, overhead, spent.read / patches, spent.written / patches)
                print(
                    f"{workers:>8}{shard:>6}{wall:>9.2f}{model:>9.2f}{1e3 * each:>15.2f}"
                    f"{found[workers, shard][2]:>9.0f}{found[workers, shard][3]:>11.0f}"
                )
            print(f"{'':8}a task that does nothing: {1e3 * overhead:.2f} ms")
    return found


def modelled(patches, shard, threads, each, overhead):
    """Seconds: the longer of what workers compute and the scheduler hands out, and the last part's end."""
    return max(patches * each / threads, patches / shard * overhead) + shard * each


def best_part(patches, each, overhead):
    """Patches a part with the least of scheduler's work and waiting for the last part: both grow to the same."""
    return round((patches * overhead / each) ** 0.5)


def extrapolate(found):
    """Print what a hospital's slides take."""
    each, overhead, read, written = found[2, 128]
    patches = SLIDES * EACH
    part = min(best_part(patches, each, overhead), 4096)
    print(f"\n{SLIDES:,} slides × {EACH:,} patches = {patches:,}; parts of {part} ({patches // part:,} of them)")
    terabytes = f"read {patches * read / 1e12:.2f} TB, written {patches * written / 1e12:.2f} TB"
    print(f"core-hours {patches * each / 3600:.0f}; {terabytes}")
    print(f"scheduler {patches / part * overhead / 60:.1f} min in all")
    for threads in THREADS:
        hours = modelled(patches, part, threads, each, overhead) / 3600
        rate = patches * (read + written) / (hours * 3600) / 1e6
        print(f"{threads:>5} threads: {hours:.2f} h, {rate:,.0f} MB/s from and to the store")


def main():
    """Run everything in a folder that goes away."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    patches = int(sys.argv[1]) if len(sys.argv) > 1 else PATCHES
    with tempfile.TemporaryDirectory() as folder:
        extrapolate(measure(Path(folder), patches))


if __name__ == "__main__":
    main()
