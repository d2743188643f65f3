"""Core-seconds, memory and AUC of heads as rows grow: fits in memory, and fits on blocks of rows of a file.

Run from the repository root: ``python -m benchmarks.heads [columns] [rows …]``. The table is synthetic: columns are
correlated, slides differ in level and prevalence, and the label shifts some directions slightly. A fifth of the slides
is held out. Two fits run in parallel, as in a run, each without another quarter of the other slides. Printed are the
core-seconds of one fit, the largest proportional set size (PSS) of the process and its workers, in which a shared or
mapped page counts once, and the AUC on the slides that were held out. ``python -m benchmarks.heads 2256 220025 blocks``
skips the fits in memory.
"""

import contextlib
import multiprocessing
import re
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import psutil
from sklearn.metrics import roc_auc_score

from histoblend.data.storage.arrays import StoredRows
from histoblend.models.heads.registry import HEADS
from histoblend.pipelines.engine import fits

SLIDES = 216
DIRECTIONS = 40
ROWS = (5_000, 20_000, 80_000)
COLUMNS = 848


def write_table(path, rows, columns):
    """Write values (rows, columns) float32; return labels and slides."""
    rng = np.random.default_rng(0)
    slides = np.sort(rng.integers(0, SLIDES, rows))
    labels = (rng.random(rows) < rng.beta(0.7, 0.9, SLIDES)[slides]).astype(int)
    mixing = rng.normal(size=(DIRECTIONS, columns)).astype(np.float32)
    effect = 0.35 * rng.normal(size=DIRECTIONS)
    levels = 0.8 * rng.normal(size=(SLIDES, DIRECTIONS))
    np.lib.format.open_memmap(path, "w+", np.float32, (rows, columns))
    for start in range(0, rows, 10_000):
        block = slice(start, min(start + 10_000, rows))
        hidden = levels[slides[block]] + np.outer(labels[block] - 0.5, effect)
        hidden += rng.normal(size=hidden.shape)
        noise = rng.standard_normal((len(hidden), columns), dtype=np.float32)
        # A new mapping for each block: pages of one that stays open count as memory.
        np.load(path, mmap_mode="r+")[block] = 0.5 * (hidden.astype(np.float32) @ mixing) + noise
    return labels, slides


@contextlib.contextmanager
def peak_pss():
    """Yield a function that returns the largest PSS of this process and its children so far, in MB."""
    peak, stop = [0.0], threading.Event()

    def sample():
        total = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(OSError, psutil.Error):
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                total += int(re.search(r"^Pss:\s+(\d+) kB", text, re.M)[1]) / 1024
        peak[0] = max(peak[0], total)

    def watch():
        while not stop.wait(0.2):
            sample()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: peak[0]
    finally:
        stop.set()
        watcher.join()


def measure(queue, head, path, labels, slides, limit):
    """Put the core-seconds of a fit, the peak memory in MB and the AUC into a queue."""
    fits.IN_MEMORY_ROWS = limit
    table = StoredRows(path)
    out = np.flatnonzero(slides % 5 == 0)
    tasks = []
    for fold in (1, 2):
        rows = np.flatnonzero((slides % 5 != 0) & (slides % 5 != fold))
        tasks.append(fits.FitTask("", head, rows, labels[rows], slides[rows], out, 0))
    with peak_pss() as peak:
        results = list(fits.LocalFits(table, [], 2)(tasks))
    scores = [roc_auc_score(labels[out], predicted) for predicted, *_ in results]
    queue.put((np.mean([seconds for *_, seconds in results]), peak(), np.mean(scores)))


def in_process(*arguments):
    """Measure in a process of its own, whose memory no earlier measurement has used."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=measure, args=(queue, *arguments))
    process.start()
    result = queue.get()
    process.join()
    return result


def main(columns=COLUMNS, *counts, kinds=("memory", "blocks")):
    """Print one line per number of rows, head and kind of fit."""
    limits = {"memory": 10**9, "blocks": 0}
    print(f"{columns:,} columns, {SLIDES} slides, 2 fits in parallel")
    print(f"{'rows':>9}  {'head':9s} {'fit in':7s} {'core-s':>8} {'PSS MB':>8}   AUC")
    for count in counts or ROWS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "values.npy")
            known = write_table(path, count, columns)
            for head in HEADS:
                for kind in kinds:
                    seconds, peak, auc = in_process(head, path, *known, limits[kind])
                    print(f"{count:>9,}  {head:9s} {kind:7s} {seconds:8.1f} {peak:8.0f}   {auc:.4f}", flush=True)


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if argument != "blocks"]
    main(*map(int, given), kinds=("blocks",) if "blocks" in sys.argv else ("memory", "blocks"))
