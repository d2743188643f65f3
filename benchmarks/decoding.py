"""Time the reading of Kaggle's uncompressed TIFFs against Pillow, tifffile and OpenCV, one file at a time each.

Run from the repository's root: ``python -m benchmarks.decoding [FOLDER]``, a folder of 96 × 96 patches (the real
sample's by default, or patches written for the purpose). Checks first that all give the same pixels. The aim is 20,000
patches a second with a warm cache on two cores.
"""

import io
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from histoblend.data.patches import CHUNK, write_pixels
from histoblend.data.sources.tiff import PatchReader
from histoblend.data.storage.arrays import names_in
from tests.conftest import SAMPLE

AIM = 20_000
FILES = 8192
PASSES = 5


def folder():
    """Return the folder to read: as given, the real sample's, or a made one."""
    if len(sys.argv) > 1:
        return Path(sys.argv[1])
    if SAMPLE.is_dir():
        return SAMPLE / "train"
    made = Path(tempfile.mkdtemp())
    rng = np.random.default_rng(0)
    for number in range(1024):
        image = io.BytesIO()
        tifffile.imwrite(image, rng.integers(0, 256, (96, 96, 3), dtype=np.uint8), photometric="rgb")
        (made / f"{number:04d}.tif").write_bytes(image.getvalue())
    return made


def readers(place):
    """Return, by name, functions from a list of names to their pixels."""
    reader = PatchReader(place, 96, convert=False)
    ways = {
        "ours": lambda names: reader.read(names)[0],
        "Pillow": lambda names: np.stack([np.asarray(Image.open(place / name)) for name in names]),
        "tifffile": lambda names: np.stack([tifffile.imread(place / name) for name in names]),
    }
    try:
        import cv2
    except ImportError:
        return ways
    cv2.setNumThreads(1)
    return ways | {"OpenCV": lambda names: np.stack([cv2.imread(str(place / name))[..., ::-1] for name in names])}


def rate(read, names, threads):
    """Return files a second: the best of a few passes, since other work on the machine only slows one down."""
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    best = 0.0
    for _ in range(PASSES):
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            for _ in pool.map(read, chunks):
                pass
            best = max(best, len(names) / (time.perf_counter() - start))
    return best


class Repeated:
    """The names as a source, so that the whole way into ``pixels.npy`` can be timed."""

    def __init__(self, place, names):
        import pandas as pd

        self.size, self.names, self._reader = 96, names, PatchReader(place, 96, convert=False)
        self.table = pd.DataFrame({"patch_id": [f"{number}" for number in range(len(names))]})

    def read(self, start, stop):
        """Decode rows ``start`` to ``stop``."""
        return self._reader.read(self.names[start:stop])


def prepared(place, names):
    """Return patches a second through decoding, hashing and writing."""
    best = 0.0
    for _ in range(PASSES):
        with tempfile.TemporaryDirectory() as target:
            start = time.perf_counter()
            write_pixels(Repeated(place, names), Path(target), workers=2)
            best = max(best, len(names) / (time.perf_counter() - start))
    return best


def main():
    """Print files a second each way, and the ratio to Pillow."""
    place = folder()
    found = names_in(place, ".tif")
    names = (found * (FILES // len(found) + 1))[:FILES]
    ways = readers(place)
    expected = ways["Pillow"](found[:256])
    assert all(np.array_equal(read(found[:256]), expected) for read in ways.values())
    print(f"{len(found)} files, warm, best of {PASSES} passes; files a second on one and two threads, ratio to Pillow")
    rates = {}
    for name, read in ways.items():
        some = names if name in {"ours", "OpenCV"} else names[:2048]
        rates[name] = rate(read, some, 1), rate(read, some, 2)
    for name, (one, two) in rates.items():
        print(f"{name:<10}{one:>10.0f}{two:>10.0f}{max(one, two) / max(rates['Pillow']):>8.1f}")
    print(
        f"decoded, hashed and written on two threads: {prepared(place, names):.0f} patches a second; the aim is {AIM}"
    )


if __name__ == "__main__":
    main()
