"""Time and memory of every step from the ensemble to the report, for a run whose patches are repeated.

Run from the repository root: ``python -m benchmarks.report [RUN [patches …]]``. RUN is the folder of a finished run; by
default the baseline on the phantom is made. Every table of the run is repeated within the same slides, until it has at
least ``patches`` patches (by default 10 and 75 times as many as the run has). Scores must not change, which is checked
before the table is printed. Memory is the largest proportional set size (PSS) of the process and its children: mapped
files count, and pages shared by several processes count once.

Steps whose cost does not depend on the number of patches are taken from the run: saliency, the refit's models, and the
predictions of patches with altered stains.
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq

from histoblend.data.ignored import ignored
from histoblend.data.patches import PatchSet, table_digest
from histoblend.pipelines.analysis import stain
from histoblend.pipelines.comparison import compare
from histoblend.pipelines.config import Config
from histoblend.pipelines.plan import ENSEMBLE_ONLY, plan_run
from histoblend.pipelines.run import Run
from histoblend.pipelines.runtime.artefacts import FinishedStep, read_manifest
from histoblend.pipelines.steps.outputs import publish

ROWS = 4096

#: Steps whose results are repeated, and steps that do not depend on the number of patches.
REPEATED = ("prepare", "features", "features-normalised", "embeddings", "embeddings-normalised", "heads", "cnn")
FIXED = ("saliency", "refit", "predictions")
#: Steps that are built, in order.
BUILT = (
    "ensemble", "ladder", "models", "bundle", "importances", "attributions", "leakage", "stain",
    "sections", "figures", "report",
)  # fmt: skip

#: Of one number of patches: seconds and peak PSS (MB) of each step, ladder, and size of the page (MB).
Measured = tuple[dict[str, tuple[float, float]], pd.DataFrame, float]


class Repeated:
    """An array whose rows are repeated without using more memory."""

    def __init__(self, array: np.ndarray, times: int) -> None:
        self.array, self.shape = array, (times * len(array), *array.shape[1:])
        self.dtype, self.ndim = array.dtype, array.ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        return self.array[np.arange(len(self))[key] % len(self.array)]


def repeat_table(table: pd.DataFrame, times: int) -> pd.DataFrame:
    """Repeat the rows of a table; each copy of a patch gets its own id."""
    parts = [table.assign(patch_id=table["patch_id"] + f"-{number}") for number in range(times)]
    return pd.concat(parts, ignore_index=True)


def repeat_step(source: Path, target: Path, patches: int, times: int) -> None:
    """Write a step's folder with its patch tables repeated; other files are linked."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if ignored(path.name):
            continue
        copy = target / path.name
        if path.suffix == ".parquet" and "patch_id" in pq.read_schema(path).names:
            repeat_table(pd.read_parquet(path), times).to_parquet(copy, index=False)
        elif path.name == "values.npy":
            values = np.load(path, mmap_mode="r")
            whole = np.lib.format.open_memmap(copy, "w+", values.dtype, (times * patches, values.shape[1]))
            for start in range(0, times * patches, ROWS):
                rows = np.arange(start, min(start + ROWS, times * patches)) % patches
                whole[start : start + len(rows)] = values[rows]
            whole.flush()
        else:
            os.symlink(path.resolve(), copy)


def repeated(source: Path, times: int, folder: Path) -> Run:
    """A run whose steps before the ensemble contain every patch `times` times."""
    facts = json.loads((source / "7-report" / "facts.json").read_text(encoding="utf-8"))
    run = plan_run(Config.model_validate(facts["configuration"]), folder)
    if not (source / "6-ensemble").is_dir():
        run.leave_out(ENSEMBLE_ONLY)
    table = pd.read_parquet(source / "1-patches" / "patches.parquet")
    for name in (*REPEATED, *FIXED):
        step = run.plan[name].folder
        if not (source / step).is_dir():
            continue
        copies = times if name in REPEATED else 1
        repeat_step(source / step, run.folder / step, len(table), copies)
        manifest = read_manifest(source / step)
        run.finished[name] = FinishedStep(run.folder / step, manifest | {"rows": manifest["rows"] * copies})
    pixels = np.load(source / "1-patches" / "pixels.npy", mmap_mode="r")
    whole = repeat_table(table, times)
    patches = PatchSet(Repeated(pixels, times), whole, table_digest(whole), source)  # type: ignore[arg-type]
    run.open("patches", lambda: patches)
    return run


@contextlib.contextmanager
def peak_pss(interval_s: float = 0.1) -> Iterator[Callable[[], float]]:
    """Sample the PSS of this process and its children. Yields a function that returns the peak in MB."""
    me, peak, stop = psutil.Process(), [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(interval_s):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(OSError, psutil.Error):
                    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                    total += 1024 * int(rollup.partition("\nPss:")[2].split()[0])
            peak[0] = max(peak[0], total / 1e6)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: peak[0]
    finally:
        stop.set()
        watcher.join()


def measure(source: Path, times: int) -> Measured:
    """Build every step with every patch repeated."""
    stain.probe_stain = lambda run, folder: _copied(source / "analysis" / "stain" / "predictions.parquet", folder)  # type: ignore[assignment]
    costs = {}
    with tempfile.TemporaryDirectory(prefix="histoblend-report-") as name:
        run = repeated(source, times, Path(name))

        def compare_with_itself() -> None:
            (run.root / "other").symlink_to(run.folder)
            compare([run.config.name, "other"], run.root, out=None, draws=2000, seed=0, screen=run.screen)

        tasks: dict[str, Callable[[], object]] = {
            step: lambda step=step: run.step(step) for step in BUILT if run.has(step)
        }
        tasks |= {"publish": lambda: publish(run), "compare": compare_with_itself}
        for step, task in tasks.items():
            started = time.perf_counter()
            with peak_pss() as peak:
                task()
            costs[step] = time.perf_counter() - started, peak()
        page = run.step("report").folder
        return costs, pd.read_csv(page / "ladder.csv"), (page / "report.html").stat().st_size / 1e6


def _copied(path: Path, folder: Path) -> dict[str, int]:
    shutil.copy(path, folder)
    return {}


def main(run: str = "", *patches: str) -> None:
    """Measure, check and print."""
    if not run:
        subprocess.run([sys.executable, "-m", "histoblend.pipelines", "baseline"], check=True)
        run = "runs/phantom"
    source = Path(run)
    count = len(pd.read_parquet(source / "1-patches" / "patches.parquet"))
    factors = [1, *(-(-int(number) // count) for number in patches or (10 * count, 75 * count))]
    results: list[Measured] = []
    for times in factors:  # in processes of their own, so that no memory is left from another
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            results.append(pool.submit(measure, source, times).result())
    first = results[0][1]
    for _, ladder, _ in results[1:]:
        np.testing.assert_allclose(ladder.auc, first.auc, rtol=0, atol=1e-9)
        np.testing.assert_allclose(ladder.brier, first.brier, rtol=0, atol=1e-9)
    print(f"{'patches':14}" + "".join(f"{times * count:>22,}" for times in factors))
    for step in results[0][0]:
        cells = (f"{costs[step][0]:10.1f} s {costs[step][1]:7,.0f} MB" for costs, *_ in results)
        print(f"{step:14}" + "".join(f"{cell:>22}" for cell in cells))
    print(f"{'page':14}" + "".join(f"{size:19.2f} MB" for *_, size in results))


if __name__ == "__main__":
    main(*sys.argv[1:])
