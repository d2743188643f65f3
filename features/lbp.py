"""Local binary patterns of a batch of patches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numba
import numpy as np

from features.column import REGION_WORDS, Column
from features.stain import Planes

CHANNELS = ("grey", "haematoxylin")
PATTERNS = ((8, 1), (16, 2), (24, 3))
REGIONS = ("whole", "centre")


def lbp(planes: Planes) -> np.ndarray:
    """Histograms of uniform rotation-invariant local binary patterns of grey and haematoxylin.

    `skimage.feature.local_binary_pattern(method="uniform")` with (points, radius) (8, 1), (16, 2) and (24, 3) on
    8-bit levels. Patterns are found on the whole patch; the centre's histogram counts those of its pixels, at (8, 1)
    alone: its 1,024 pixels are too few for more bins.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, 128), dtype float32
        Fractions of the region's pixels, by channel, radius and pattern (number of points not darker than the pixel,
        0 to P, then the patterns that are not uniform), the whole patch first, then the centre.

    References
    ----------
    Ojala, Pietikäinen & Mäenpää (2002), IEEE Trans Pattern Anal Mach Intell 24(7):971-987.
    """
    n, height, width = planes.grey.shape
    bins = sum(points + 2 for points, _ in PATTERNS)
    counts = np.zeros((n, 2, len(CHANNELS), bins), np.int64)
    for channel, levels in enumerate((planes.grey, planes.haematoxylin)):
        first = 0
        for points, radius in PATTERNS:
            part = counts[:, :, channel, first : first + points + 2]
            _lbp_kernel(levels, *_circle(points, radius), radius, part)
            first += points + 2
    whole = counts[:, 0].reshape(n, -1) / (height * width)
    centre = counts[:, 1, :, : PATTERNS[0][0] + 2].reshape(n, -1) / 1024
    return np.concatenate([whole, centre], axis=1).astype(np.float32)


@cache
def _circle(points: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Neighbour positions, rounded to five places as scikit-image does."""
    angles = 2 * np.pi * np.arange(points, dtype=np.float64) / points
    return np.round(-radius * np.sin(angles), 5), np.round(radius * np.cos(angles), 5)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _interpolate(padded: np.ndarray, right: float, border: int, weights: np.ndarray, across: np.ndarray) -> None:
    """Interpolate every row of `padded` at its pixels' columns plus `right`, in scikit-image's order of operations."""
    width = across.shape[1]
    at = int(np.floor(right)) + border
    for column in range(width):
        position = column + right
        weights[column] = position - np.floor(position)
    for row in range(across.shape[0]):
        # slices: an index that may be negative keeps the loop from being vectorised
        first, second, line = padded[row, at : at + width], padded[row, at + 1 : at + 1 + width], across[row]
        for column in range(width):
            line[column] = (1.0 - weights[column]) * first[column] + weights[column] * second[column]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _mark_point(padded: np.ndarray, across: np.ndarray, down: float, border: int, bit: int, codes: np.ndarray) -> None:
    """Set `bit` of every pixel whose neighbour `down` rows below, interpolated, is not below the pixel."""
    height, width = codes.shape
    mark = np.uint32(1) << np.uint32(bit)
    base = int(np.floor(down)) + border
    for row in range(height):
        # from the sum, not from the offset alone: scikit-image's rounding decides ties
        position = row + down
        lower = position - np.floor(position)
        above, below = across[row + base], across[row + base + 1]
        centre, code = padded[row + border, border : border + width], codes[row]
        for column in range(width):
            value = (1.0 - lower) * above[column] + lower * below[column]
            code[column] |= mark if value >= centre[column] else np.uint32(0)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _ones(code: np.uint32) -> np.uint32:
    """Count the bits set in 32 bits."""
    code = code - ((code >> np.uint32(1)) & np.uint32(0x55555555))
    code = (code & np.uint32(0x33333333)) + ((code >> np.uint32(2)) & np.uint32(0x33333333))
    code = (code + (code >> np.uint32(4))) & np.uint32(0x0F0F0F0F)
    code = code + (code >> np.uint32(8))
    return (code + (code >> np.uint32(16))) & np.uint32(63)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _lbp_kernel(planes: np.ndarray, rows: np.ndarray, columns: np.ndarray, radius: int, counts: np.ndarray) -> None:
    n, height, width = planes.shape
    points = rows.size
    border = radius + 1
    padded = np.zeros((height + 2 * border, width + 2 * border))
    codes, patterns = np.empty((height, width), np.uint32), np.empty(width, np.uint8)
    weights, across = np.empty(width), np.empty((height + 2 * border, width))
    # scikit-image compares each point with the next, but not the last with the first
    inner = np.uint32((1 << (points - 1)) - 1)
    top, left = (height - 32) // 2, (width - 32) // 2
    for i in range(n):
        padded[border : border + height, border : border + width] = planes[i]
        codes[:] = 0
        for point in range(points // 2 + 1):
            # the circle's upper and lower half meet the same columns
            _interpolate(padded, columns[point], border, weights, across)
            _mark_point(padded, across, rows[point], border, point, codes)
            if 0 < point < points // 2:
                _mark_point(padded, across, rows[points - point], border, points - point, codes)
        for row in range(height):
            for column in range(width):
                code = codes[row, column]
                changes = _ones((code ^ (code >> np.uint32(1))) & inner)
                patterns[column] = _ones(code) if changes <= 2 else points + 1
            for column in range(width):
                counts[i, 0, patterns[column]] += 1
            if top <= row < top + 32:
                for column in range(left, left + 32):
                    counts[i, 1, patterns[column]] += 1


_OJALA = "Ojala, Pietikäinen & Mäenpää (2002), IEEE Trans Pattern Anal Mach Intell 24(7):971-987"


def _columns() -> Iterator[Column]:
    for region, patterns in (("whole", PATTERNS), ("centre", PATTERNS[:1])):
        for channel in CHANNELS:
            for points, radius in patterns:
                for pattern in range(points + 2):
                    mixed = pattern == points + 1
                    words = "no uniform pattern" if mixed else f"a uniform pattern with {pattern}"
                    yield Column(
                        f"lbp_r{radius}-{'mixed' if mixed else f'p{pattern}'}_{channel}_{region}",
                        "1",
                        0,
                        1,
                        f"Fraction of pixels with {words} of {points} points at radius {radius} not below the pixel, "
                        f"{channel}, {REGION_WORDS[region]}.",
                        _OJALA,
                    )


COLUMNS = tuple(_columns())
