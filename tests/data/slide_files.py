"""Slides for tests: tiled pyramidal TIFF files, and stand-ins of any size that hold no pixels."""

import threading

import numpy as np
import tifffile

from histoblend.data.slides.slide import Level, Slide


def write_tiff(path, pixels, *, mpp=0.972, steps=(), tile=128, **options):
    """Write RGB pixels as tiled TIFF; each of `steps` is a coarser level of every so many-th pixel."""
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, step in enumerate((1, *steps)):
            resolution = {"resolution": (1e4 / mpp / step,) * 2, "resolutionunit": "CENTIMETER"} if mpp else {}
            file.write(
                np.ascontiguousarray(pixels[::step, ::step]),
                tile=(tile, tile),
                photometric="rgb",
                compression="zlib",
                subfiletype=1 if number else 0,
                metadata=None,
                **resolution,
                **options,
            )
    return path


class Bare(Slide):
    """A slide of given levels; its pixels count columns in red and rows in green."""

    def __init__(self, *sizes, spacing=(0.5, 0.5)):
        self.path = "bare.svs"
        self.levels = tuple(Level(*size, sizes[0][0] / size[0]) for size in sizes)
        self.spacing, self.reads, self._lock = spacing, [], threading.Lock()

    def read(self, level, left, top, width, height):
        with self._lock:
            self.reads.append((level, left, top, width, height))
        assert width > 0
        assert height > 0
        assert left + width <= self.levels[level].width
        assert top + height <= self.levels[level].height
        y, x = np.indices((height, width))
        return np.stack([(x + left) % 251, (y + top) % 241, (x + y + left + top) % 7], axis=2).astype(np.uint8)


def most_reads(slide):
    """How often the most read pixel of each level was read, by level."""
    found = {}
    for number, level in enumerate(slide.levels):
        counts = np.zeros((level.height, level.width), np.uint8)
        for _, left, top, width, height in (read for read in slide.reads if read[0] == number):
            counts[top : top + height, left : left + width] += 1
        found[number] = int(counts.max())
    return found
