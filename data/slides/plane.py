"""A slide resampled to one resolution and split into blocks, which read non-overlapping regions of a level."""

from __future__ import annotations

import math

import numba
import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.slides.slide import Slide

#: Side of a block in pixels of the plane, unless a patch is larger. A block has 0.8 MB as RGB.
BLOCK = 512
#: Maximum side of a region that is read in one call, in pixels of a level. It has 64 MB as RGBA.
MAX_REGION = 4096
#: Maximum ratio of the pixel size of the finest level to the requested pixel size.
MAX_COARSENESS = 2.0


class Plane:
    """A slide resampled to one resolution.

    Each pixel is the mean over its area in the level. If the resolution of the level is so close that patches would
    differ by less than half a pixel, the pixels of the level are used unchanged.

    Parameters
    ----------
    slide : Slide
    spacing : float or pair of float
        Requested micrometres per pixel, horizontally and vertically.
    patch : int
        Side in pixels of the patches to be cut; a block is never smaller. 0 if no patches are cut.

    Attributes
    ----------
    level : int
        Level that is read.
    scale : tuple of float
        Level pixels per plane pixel, horizontally and vertically; 1 if pixels are used unchanged.
    spacing : tuple of float
        Micrometres per pixel, horizontally and vertically.
    width, height : int
        Size in pixels. The last pixels may extend beyond the slide's edge.
    block : int
        Side of a block in pixels.
    rows, columns : int
        Numbers of blocks.

    Raises
    ------
    InputError
        If the slide is much coarser than requested.
    """

    def __init__(self, slide: Slide, spacing: float | tuple[float, float], *, patch: int = 0) -> None:
        across, down = spacing if isinstance(spacing, tuple) else (spacing, spacing)
        tolerance = 0.5 / patch if patch else 1e-6
        self.slide, self.level = slide, slide.level_for(min(across, down), tolerance)
        level = slide.levels[self.level]
        pixel_sizes = [side * level.downsample for side in slide.spacing]
        if min(pixel_sizes) > MAX_COARSENESS * across:
            raise InputError(
                f"{slide.path}: expected at most {MAX_COARSENESS * across:g} µm per pixel for patches with {across:g}; "
                f"got {min(pixel_sizes):g}. Scan at a finer resolution, or give the true pixel size: MPP=… (--mpp)."
            )
        scales = [across / pixel_sizes[0], down / pixel_sizes[1]]
        if all(abs(scale - 1) < tolerance for scale in scales):
            scales = [1.0, 1.0]
        self.scale = (scales[0], scales[1])
        self.spacing = (pixel_sizes[0] * self.scale[0], pixel_sizes[1] * self.scale[1])
        self.block = _block_side(patch, max(self.scale))
        self.width, self._left = _block_borders(level.width, self.scale[0], self.block)
        self.height, self._top = _block_borders(level.height, self.scale[1], self.block)
        self.rows, self.columns = len(self._top) - 1, len(self._left) - 1

    @property
    def to_slide(self) -> tuple[float, float]:
        """Level-0 pixels per plane pixel, horizontally and vertically."""
        downsample = self.slide.levels[self.level].downsample
        return self.scale[0] * downsample, self.scale[1] * downsample

    def region(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Return left, top, width and height of the region of a block, in pixels of the level."""
        left, top = self._left[column], self._top[row]
        return left, top, self._left[column + 1] - left, self._top[row + 1] - top

    def shape(self, row: int, column: int) -> tuple[int, int]:
        """Return height and width of a block in pixels; blocks at the right and lower edges are smaller."""
        return (
            min(self.block, self.height - row * self.block),
            min(self.block, self.width - column * self.block),
        )

    def read(self, row: int, column: int) -> np.ndarray:
        """Read one block.

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
    """Downsample an image by averaging over the area of each new pixel.

    Parameters
    ----------
    pixels : ndarray of shape (height, width, 3), dtype uint8
    scale : tuple of float
        Input pixels per output pixel, horizontally and vertically.
    shape : tuple of int
        Height and width of the output. Only the part of a pixel inside the image is averaged.
    first : tuple of float
        Position of the output's upper left corner in the image, horizontally and vertically.

    Returns
    -------
    ndarray of shape (*shape, 3), dtype uint8
    """
    out = np.empty((*shape, 3), np.uint8)
    _average(np.ascontiguousarray(pixels), *map(float, (*first, *scale)), out)
    return out


def _block_side(patch: int, scale: float) -> int:
    """Return the side of a block: at least that of a patch, and up to `BLOCK` if its region is not too large."""
    least = BLOCK * math.ceil(patch / BLOCK) if patch else 1
    largest = 2 ** int(math.log2(max(MAX_REGION / scale, 1)))
    return max(least, min(BLOCK, largest))


def _block_borders(length: int, scale: float, block: int) -> tuple[int, list[int]]:
    """Return the number of plane pixels along one side of a level and the borders of the blocks, in level pixels."""
    pixels = max(1, math.ceil(length / scale - 1e-3))
    borders = [round(start * scale) for start in range(0, pixels, block)]
    while len(borders) > 1 and borders[-1] >= length:
        # The remaining block would be less than half a level pixel wide.
        borders.pop()
        pixels = len(borders) * block
    return pixels, [*borders, length]


@numba.njit(cache=True, nogil=True)
def _span(first, scale, length):  # type: ignore[no-untyped-def]
    """Return the part of a pixel's side inside the image; outside, a tiny part of the nearest pixel."""
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
