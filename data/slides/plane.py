"""A slide at one resolution, cut into blocks whose pixels come out of regions of a level that never overlap."""

from __future__ import annotations

import math

import numba
import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.slides.slide import Slide

#: Side of a block in pixels of the plane, unless a patch is larger: 0.8 MB as RGB.
BLOCK = 512
#: Side of the largest region that is read at once, in pixels of a level: 64 MB as RGBA.
MOST_REGION = 4096
#: Micrometres a pixel of the slide's finest level over those wanted, beyond which there is nothing to see.
MOST_COARSE = 2.0


class Plane:
    """A slide brought to a resolution.

    Regions of the level are averaged over the area of each pixel. Where the level's resolution is so near that patches
    would differ by less than half a pixel, its pixels are taken as they are.

    Parameters
    ----------
    slide : Slide
    spacing : float or pair of float
        Wanted micrometres a pixel, across and down.
    patch : int
        Side of the patches that are going to be cut, in pixels: a block is never smaller. 0 where none will be.

    Attributes
    ----------
    level : int
        That is read.
    scale : tuple of float
        Pixels of the level a pixel of the plane, across and down; 1 where pixels are taken as they are.
    spacing : tuple of float
        Micrometres a pixel, across and down.
    width, height : int
        Pixels; the last ones may cover the slide's edge in part.
    block : int
        Side of a block in pixels.
    rows, columns : int
        Of blocks.

    Raises
    ------
    InputError
        The slide is far coarser than wanted.
    """

    def __init__(self, slide: Slide, spacing: float | tuple[float, float], *, patch: int = 0) -> None:
        across, down = spacing if isinstance(spacing, tuple) else (spacing, spacing)
        tolerance = 0.5 / patch if patch else 1e-6
        self.slide, self.level = slide, slide.level_for(min(across, down), tolerance)
        level = slide.levels[self.level]
        fine = [side * level.downsample for side in slide.spacing]
        if min(fine) > MOST_COARSE * across:
            raise InputError(
                f"{slide.path}: expected at most {MOST_COARSE * across:g} µm a pixel, for patches of {across:g} µm; "
                f"the finest level has {min(fine):g}. Scan it finer, or give the true size: MPP=… (--mpp)."
            )
        wanted = [across / fine[0], down / fine[1]]
        if all(abs(scale - 1) < tolerance for scale in wanted):
            wanted = [1.0, 1.0]
        self.scale = (wanted[0], wanted[1])
        self.spacing = (fine[0] * self.scale[0], fine[1] * self.scale[1])
        self.block = _block_side(patch, max(self.scale))
        self.width, self._left = _cuts(level.width, self.scale[0], self.block)
        self.height, self._top = _cuts(level.height, self.scale[1], self.block)
        self.rows, self.columns = len(self._top) - 1, len(self._left) - 1

    @property
    def to_slide(self) -> tuple[float, float]:
        """Level-0 pixels a pixel, across and down."""
        downsample = self.slide.levels[self.level].downsample
        return self.scale[0] * downsample, self.scale[1] * downsample

    def region(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Left, top, width and height of what a block is made of, in pixels of the level."""
        left, top = self._left[column], self._top[row]
        return left, top, self._left[column + 1] - left, self._top[row + 1] - top

    def shape(self, row: int, column: int) -> tuple[int, int]:
        """Height and width of a block in pixels; those at the right and lower edge are smaller."""
        return (
            min(self.block, self.height - row * self.block),
            min(self.block, self.width - column * self.block),
        )

    def read(self, row: int, column: int) -> np.ndarray:
        """Read a block: one region of the level.

        Returns
        -------
        ndarray of shape (height, width, 3), dtype uint8

        Raises
        ------
        InputError
            See :meth:`data.slides.slide.Slide.read`.
        """
        left, top, width, height = self.region(row, column)
        pixels = self.slide.read(self.level, left, top, width, height)
        if self.scale == (1.0, 1.0):
            return pixels
        first = (column * self.block * self.scale[0] - left, row * self.block * self.scale[1] - top)
        return area_mean(pixels, self.scale, self.shape(row, column), first)


def area_mean(
    pixels: np.ndarray, scale: tuple[float, float], shape: tuple[int, int], first: tuple[float, float] = (0.0, 0.0)
) -> np.ndarray:
    """Average a picture over the area that each pixel of a coarser one covers.

    Parameters
    ----------
    pixels : ndarray of shape (height, width, 3), dtype uint8
    scale : tuple of float
        Pixels of it a pixel of the result, across and down.
    shape : tuple of int
        Height and width of the result. What of a pixel lies outside the picture does not count.
    first : tuple of float
        Where the result's left upper corner lies in the picture, across and down.

    Returns
    -------
    ndarray of the given shape with three colours, dtype uint8
    """
    out = np.empty((*shape, 3), np.uint8)
    _average(np.ascontiguousarray(pixels), *map(float, (*first, *scale)), out)
    return out


def _block_side(patch: int, scale: float) -> int:
    """Side of a block: not below that of a patch, and as large as regions may be."""
    least = BLOCK * math.ceil(patch / BLOCK) if patch else 1
    fits = 2 ** int(math.log2(max(MOST_REGION / scale, 1)))
    return max(least, min(BLOCK, fits))


def _cuts(length: int, scale: float, block: int) -> tuple[int, list[int]]:
    """Pixels of a plane along one side of a level, and where the level is cut for its blocks."""
    pixels = max(1, math.ceil(length / scale - 1e-3))
    cuts = [round(start * scale) for start in range(0, pixels, block)]
    while len(cuts) > 1 and cuts[-1] >= length:
        # What is left is less than half a pixel of the level.
        cuts.pop()
        pixels = len(cuts) * block
    return pixels, [*cuts, length]


@numba.njit(cache=True, nogil=True)
def _span(first, scale, length):  # type: ignore[no-untyped-def]
    """What of a pixel's side lies in the picture; next to nothing, of the nearest pixel, where it lies outside."""
    start = min(max(first, 0.0), length - 1e-6)
    return start, min(max(first + scale, start + 1e-6), float(length))


@numba.njit(cache=True, nogil=True)
def _average(pixels, left, top, scale_x, scale_y, out):  # type: ignore[no-untyped-def]
    height, width = pixels.shape[:2]
    line = np.empty((width, 3), np.float32)
    for i in range(out.shape[0]):
        upper, lower = _span(top + i * scale_y, scale_y, height)
        line[:] = 0
        for y in range(int(upper), int(np.ceil(lower))):
            share = np.float32((min(lower, y + 1.0) - max(upper, float(y))) / (lower - upper))
            for x in range(width):
                for channel in range(3):
                    line[x, channel] += share * np.float32(pixels[y, x, channel])
        for j in range(out.shape[1]):
            start, end = _span(left + j * scale_x, scale_x, width)
            red, green, blue = np.float32(0), np.float32(0), np.float32(0)
            for x in range(int(start), int(np.ceil(end))):
                share = np.float32((min(end, x + 1.0) - max(start, float(x))) / (end - start))
                red += share * line[x, 0]
                green += share * line[x, 1]
                blue += share * line[x, 2]
            out[i, j, 0] = np.uint8(red + np.float32(0.5))
            out[i, j, 1] = np.uint8(green + np.float32(0.5))
            out[i, j, 2] = np.uint8(blue + np.float32(0.5))
