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


SCN = """<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:0">
<collection name="glass" uuid="urn:uuid:1" sizeX="{glass[0]}" sizeY="{glass[1]}"><image name="scan" uuid="urn:uuid:2">
<creationDate>2026-01-01T00:00:00Z</creationDate><device model="made up" version="1"/>
<pixels sizeX="{pixels[0]}" sizeY="{pixels[1]}">
<dimension sizeX="{pixels[0]}" sizeY="{pixels[1]}" r="0" ifd="0"/></pixels>
<view sizeX="{view[0]}" sizeY="{view[1]}" offsetX="{corner[0]}" offsetY="{corner[1]}" spacingZ="0"/>
<scanSettings><objectiveSettings><objective>10</objective></objectiveSettings><illuminationSettings>
<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource></illuminationSettings>
</scanSettings></image></collection></scn>"""


def write_scn(path, pixels, *, corner, size, nm=972):
    """Write RGB pixels as the scanned part, from ``corner`` on, of a Leica SCN slide of ``size`` px of ``nm`` nm."""
    shape = pixels.shape[1::-1]
    sides = {"glass": size, "view": shape, "corner": corner}
    told = {name: [nm * side for side in pair] for name, pair in sides.items()}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(
            pixels,
            tile=(128, 128),
            photometric="rgb",
            compression="zlib",
            metadata=None,
            software="",
            description=SCN.format(pixels=shape, **told),
            resolution=(1e7 / nm, 1e7 / nm),
            resolutionunit="CENTIMETER",
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
