"""Time the phantom's compiled kernels against the same kernels interpreted, and one thread against two.

Run from the repository root: ``python -m benchmarks.phantom``. The benchmark first checks that compiled and interpreted
images agree to one grey level, and that one and two threads draw the same images. The target is 1,500 patches per
second on two cores.
"""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from histoblend.data.phantom.drawing import draw
from histoblend.data.phantom.patches import phantom

PATCHES = 3000
INTERPRETED = 6
CHUNK = 250
TARGET = 1500


def planned(n):
    """Return the phantom that all timings use."""
    return phantom(n, slides=6 if n < 100 else 24, seed=0)


def interpret(path):
    """Draw a few patches without compilation, in a child process, and print the seconds per patch."""
    few = planned(INTERPRETED)
    start = time.process_time()
    # without Numba, fields of a record are attributes only in a recarray
    images, _ = draw(few._patches.view(np.recarray), few._stains, few.size)
    print((time.process_time() - start) / INTERPRETED)
    np.save(path, images)


def interpreted():
    """Return the images and the seconds per patch of the interpreted kernels."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.phantom", str(path)]
        environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
        child = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)  # noqa: S603
        return np.load(path), float(child.stdout)


def draw_all(planned_phantom, threads):
    """Draw all patches in chunks; return wall-clock seconds, core seconds and the first image of each chunk."""
    wall, core = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        first = list(pool.map(lambda chunk: planned_phantom.render(*chunk)[0], planned_phantom.chunks(CHUNK)))
    return time.perf_counter() - wall, time.process_time() - core, np.stack(first)


def main():
    """Print patches per second of each way, and the ratios."""
    expected, plain = interpreted()
    images = planned(INTERPRETED).render(0, INTERPRETED)
    assert np.abs(images.astype(int) - expected).max() <= 1
    planned_phantom = planned(PATCHES)
    one, core, first = draw_all(planned_phantom, 1)
    two, _, second = draw_all(planned_phantom, 2)
    assert np.array_equal(first, second)
    print(f"interpreted           {1 / plain:9.2f} patches per core-second")
    print(f"compiled              {PATCHES / core:9.0f} patches per core-second, ratio {PATCHES / core * plain:.0f}")
    print(f"compiled, one thread  {PATCHES / one:9.0f} patches per second")
    print(
        f"compiled, two threads {PATCHES / two:9.0f} patches per second, ratio {one / two:.2f}; the target is {TARGET}"
    )


if __name__ == "__main__":
    interpret(sys.argv[1]) if len(sys.argv) > 1 else main()
