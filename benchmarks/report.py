"""Time the report of a finished run, and of the same run with its patches repeated many times.

Run from the repository root: ``python -m benchmarks.report [CONFIG RUN [patches]]``. RUN is the name of a finished run,
and CONFIG is its configuration file. Without them, the baseline on the phantom is updated and used. Every table of the
run is repeated within the same slides, until it has at least ``patches`` patches (default 220,025). The scores must not
change, which is checked before the times are printed.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from histoblend.data.ignored import ignored
from histoblend.data.patches import PatchSet, table_digest
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import ENSEMBLE_ONLY, plan_run
from histoblend.pipelines.run import Run
from histoblend.pipelines.runtime.artefacts import FinishedStep, read_manifest
from histoblend.pipelines.runtime.resources import peak_memory

ROWS = 4096

#: Steps whose tables are repeated.
GIVEN = ("prepare", "features", "embeddings", "heads", "cnn", "ensemble", "stain", "saliency")


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


def repeated(run: Run, times: int, folder: Path) -> Run:
    """A run whose steps before the ladder contain every patch `times` times. These steps are never rebuilt."""
    table = pd.read_parquet(run.folder / "1-patches" / "patches.parquet")
    large = plan_run(run.config, folder, screen=run.screen)
    if not (run.folder / "6-ensemble").is_dir():
        large.leave_out(ENSEMBLE_ONLY)
    for name in GIVEN:
        step = large.plan[name].folder
        if not (run.folder / step).is_dir():
            continue
        # These steps use a sample of patches of fixed size.
        copies = 1 if name in ("stain", "saliency") else times
        repeat_step(run.folder / step, large.folder / step, len(table), copies)
        manifest = read_manifest(run.folder / step)
        large.finished[name] = FinishedStep(large.folder / step, manifest | {"rows": manifest["rows"] * copies})
    pixels = np.load(run.folder / "1-patches" / "pixels.npy", mmap_mode="r")
    whole = repeat_table(table, times)
    patches = PatchSet(Repeated(pixels, times), whole, table_digest(whole), run.folder)  # type: ignore[arg-type]
    large.open("patches", lambda: patches)
    return large


def measure(run: Run) -> tuple[float, float, pd.DataFrame]:
    """Seconds and peak memory (MB) of ladder, analyses, figures and page, and the ladder table."""
    started = time.perf_counter()
    with peak_memory() as peak:
        page = run.step("report").folder
    return time.perf_counter() - started, peak(), pd.read_csv(page / "ladder.csv")


def main(config: str = "configs/phantom.toml", name: str = "", patches: str = "220025") -> None:
    """Time, check and print."""
    if not name:
        name = load_config(Path(config)).name
        subprocess.run([sys.executable, "-m", "histoblend.pipelines", "baseline", "--config", config], check=True)  # noqa: S603
    run = plan_run(load_config(Path(config), [f"name={name}"]), Path("runs"))
    count = len(pd.read_parquet(run.folder / "1-patches" / "patches.parquet"))
    times = -(-int(patches) // count)
    with tempfile.TemporaryDirectory(prefix="histoblend-report-") as folder:
        small = measure(repeated(run, 1, Path(folder) / "once"))
        large_run = repeated(run, times, Path(folder) / "many")
        large = measure(large_run)
        size = (large_run.step("report").folder / "report.html").stat().st_size / 1e6
    np.testing.assert_allclose(large[2].auc, small[2].auc, rtol=0, atol=1e-9)
    np.testing.assert_allclose(large[2].brier, small[2].brier, rtol=0, atol=1e-9)
    for words, (seconds, peak, _), rows in (("original", small, count), ("repeated", large, times * count)):
        print(f"{words}: {rows:,} patches in {seconds:.1f} s, peak {peak:,.0f} MB")
    print(f"{times} times as many patches take {large[0] / small[0]:.1f} times as long; the page has {size:.1f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
