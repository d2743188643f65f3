"""Time reading Kaggle's uncompressed TIFFs against Pillow, tifffile and OpenCV.

Run from the repository root: ``python -m benchmarks.decoding [FOLDER]``. FOLDER contains 96 × 96 patches. The default
is the real sample or, if that is missing, generated patches. The benchmark first checks that all readers give the same
pixels. The target is 20,000 patches per second with a warm cache on two cores.
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

TARGET = 20_000
FILES = 8192
PASSES = 5


def folder():
    """Return the folder to read: the given one, the real sample or generated patches."""
    if len(sys.argv) > 1:
        return Path(sys.argv[1])
    if SAMPLE.is_dir():
        return SAMPLE / "train"
    target = Path(tempfile.mkdtemp())
    rng = np.random.default_rng(0)
    for number in range(1024):
        image = io.BytesIO()
        tifffile.imwrite(image, rng.integers(0, 256, (96, 96, 3), dtype=np.uint8), photometric="rgb")
        (target / f"{number:04d}.tif").write_bytes(image.getvalue())
    return target


def readers(path):
    """Return, for each reader, a function from file names to pixels."""
    reader = PatchReader(path, 96, convert=False)
    decoders = {
        "ours": lambda names: reader.read(names)[0],
        "Pillow": lambda names: np.stack([np.asarray(Image.open(path / name)) for name in names]),
        "tifffile": lambda names: np.stack([tifffile.imread(path / name) for name in names]),
    }
    try:
        import cv2
    except ImportError:
        return decoders
    cv2.setNumThreads(1)
    return decoders | {"OpenCV": lambda names: np.stack([cv2.imread(str(path / name))[..., ::-1] for name in names])}


def rate(read, names, threads):
    """Return files per second, the best of a few passes because other work on the machine slows passes down."""
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    best = 0.0
    for _ in range(PASSES):
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            for _ in pool.map(read, chunks):
                pass
            best = max(best, len(names) / (time.perf_counter() - start))
    return best


class FileSource:
    """A data source of the named files, to time the whole path into ``pixels.npy``."""

    def __init__(self, path, names):
        import pandas as pd

        self.size, self.names, self._reader = 96, names, PatchReader(path, 96, convert=False)
        self.table = pd.DataFrame({"patch_id": [f"{number}" for number in range(len(names))]})

    def read(self, start, stop):
        """Decode rows ``start`` to ``stop``."""
        return self._reader.read(self.names[start:stop])


def prepared(path, names):
    """Return patches per second for decoding, hashing and writing."""
    best = 0.0
    for _ in range(PASSES):
        with tempfile.TemporaryDirectory() as target:
            start = time.perf_counter()
            write_pixels(FileSource(path, names), Path(target), workers=2)
            best = max(best, len(names) / (time.perf_counter() - start))
    return best


def main():
    """Print files per second of each reader, and the ratio to Pillow."""
    path = folder()
    files = names_in(path, ".tif")
    names = (files * (FILES // len(files) + 1))[:FILES]
    decoders = readers(path)
    expected = decoders["Pillow"](files[:256])
    assert all(np.array_equal(read(files[:256]), expected) for read in decoders.values())
    print(f"{len(files)} files, warm cache, best of {PASSES}; files per second on one and two threads, ratio to Pillow")
    rates = {}
    for name, read in decoders.items():
        timed_names = names if name in {"ours", "OpenCV"} else names[:2048]
        rates[name] = rate(read, timed_names, 1), rate(read, timed_names, 2)
    for name, (one, two) in rates.items():
        print(f"{name:<10}{one:>10.0f}{two:>10.0f}{max(one, two) / max(rates['Pillow']):>8.1f}")
    print(
        f"decoded, hashed and written on two threads: {prepared(path, names):.0f} patches per second; "
        f"the target is {TARGET}"
    )


if __name__ == "__main__":
    main()
