"""Time the phantom's compiled kernels against the same kernels interpreted, and one thread against two.

Run from the repository's root: ``python -m benchmarks.phantom``. Checks first that compiled and interpreted pictures
agree to one grey level, and that two threads draw what one draws. The aim is 1,500 patches a second on two cores.
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
AIM = 1500


def planned(n):
    """Return the phantom that all timings share."""
    return phantom(n, slides=6 if n < 100 else 24, seed=0)


def interpret(path):
    """Draw a few patches without the compiler (this runs in a child process) and print the seconds of one."""
    few = planned(INTERPRETED)
    start = time.process_time()
    # the interpreter reads a record's fields as attributes only from a recarray
    images, _ = draw(few._patches.view(np.recarray), few._stains, few.size)
    print((time.process_time() - start) / INTERPRETED)
    np.save(path, images)


def interpreted():
    """Return pictures and seconds a patch of the interpreted kernels."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.phantom", str(path)]
        environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
        child = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)  # noqa: S603
        return np.load(path), float(child.stdout)


def pass_over(drawn, threads):
    """Draw everything in chunks; return wall seconds, core seconds and a picture a chunk."""
    wall, core = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        first = list(pool.map(lambda chunk: drawn.render(*chunk)[0], drawn.chunks(CHUNK)))
    return time.perf_counter() - wall, time.process_time() - core, np.stack(first)


def main():
    """Print patches a second each way, and the ratios."""
    expected, plain = interpreted()
    images = planned(INTERPRETED).render(0, INTERPRETED)
    assert np.abs(images.astype(int) - expected).max() <= 1
    drawn = planned(PATCHES)
    one, core, first = pass_over(drawn, 1)
    two, _, second = pass_over(drawn, 2)
    assert np.array_equal(first, second)
    print(f"interpreted           {1 / plain:9.2f} patches a core-second")
    print(f"compiled              {PATCHES / core:9.0f} patches a core-second, ratio {PATCHES / core * plain:.0f}")
    print(f"compiled, one thread  {PATCHES / one:9.0f} patches a second")
    print(f"compiled, two threads {PATCHES / two:9.0f} patches a second, ratio {one / two:.2f}; the aim is {AIM}")


if __name__ == "__main__":
    interpret(sys.argv[1]) if len(sys.argv) > 1 else main()
