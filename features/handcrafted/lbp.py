"""Local binary pattern features of a batch of patches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numba.extending import intrinsic

from histoblend.features.handcrafted.channels import Planes
from histoblend.features.handcrafted.column import REGION_WORDS, Column
from histoblend.features.handcrafted.kernel import fused_kernel, inner_kernel, kernel

CHANNELS = ("grey", "haematoxylin")
PATTERNS = ((8, 1), (16, 2), (24, 3))
#: Points and radii per region.
REGIONS = {"whole": PATTERNS, "centre": PATTERNS[:1], "contrast": PATTERNS[:1]}
#: If point and pixel differ by less than this, single precision cannot tell which is higher.
_DOUBT = 2e-4
#: Extra bit of a pixel with a point that single precision cannot decide.
_UNSURE = 1 << 31
#: If at least one pixel in this many is undecided, deciding the whole range together is faster.
_DENSE = 6


def lbp(planes: Planes) -> np.ndarray:
    """Histograms of uniform rotation-invariant local binary patterns of grey and haematoxylin.

    The patterns are those of `skimage.feature.local_binary_pattern(method="uniform")` with (points, radius) (8, 1),
    (16, 2) and (24, 3) on 8-bit levels. They are computed on the whole patch. The centre's histogram uses (8, 1) only,
    because its 1,024 pixels are too few for more bins. The ring is the part of the patch outside the centre. If a patch
    has no ring, the ring's fractions equal the centre's.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, 148), dtype float32
        Fractions of the region's pixels, ordered by region (whole patch, centre, centre minus ring), channel, radius
        and pattern. Patterns 0 to P are the number of points not below the pixel's level. The last bin counts all
        patterns that are not uniform.

    References
    ----------
    Ojala, Pietikäinen & Mäenpää (2002), IEEE Trans Pattern Anal Mach Intell 24(7):971-987.
    """
    n, height, width = planes.grey.shape
    bins = sum(points + 2 for points, _ in PATTERNS)
    counts = np.zeros((n, len(CHANNELS), bins), np.int64)
    centre = np.zeros((n, len(CHANNELS), PATTERNS[0][0] + 2), np.int64)
    for channel, levels in enumerate((planes.grey, planes.haematoxylin)):
        first = 0
        for points, radius in PATTERNS:
            # the centre uses the first radius only; counts of the others are discarded
            inner = centre if first == 0 else np.empty((n, len(CHANNELS), points + 2), np.int64)
            _lbp_kernel(levels, *_circle(points, radius), radius, channel, first, counts, inner)
            first += points + 2
    outside = height * width - 1024
    ring = (counts[..., : centre.shape[2]] - centre) / outside if outside else centre / 1024
    blocks = (counts / (height * width), centre / 1024, centre / 1024 - ring)
    return np.concatenate([block.reshape(n, -1) for block in blocks], axis=1).astype(np.float32)


@cache
def _circle(points: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Neighbour positions, rounded to five places as scikit-image does."""
    angles = 2 * np.pi * np.arange(points, dtype=np.float64) / points
    return np.round(-radius * np.sin(angles), 5), np.round(radius * np.cos(angles), 5)


# fused is safe here: pixels that single precision cannot decide are decided again in double precision
@fused_kernel
def _interpolate(padded: np.ndarray, right: float, border: int, across: np.ndarray) -> None:
    """Interpolate every row of `padded` at the columns of its pixels plus `right`."""
    height, width = across.shape
    shift = np.uint64(int(np.floor(right)) + border)
    near = np.float32(right - np.floor(right))
    far = np.float32(1.0) - near
    for row in range(height):
        for column in range(width):
            # unsigned, because a loop whose index may be negative is not vectorised
            k = np.uint64(column) + shift
            across[row, column] = far * padded[row, k] + near * padded[row, k + np.uint64(1)]


@fused_kernel
def _mark_points(
    padded: np.ndarray, across: np.ndarray, downs: np.ndarray, border: int, bits: np.ndarray, codes: np.ndarray
) -> None:
    """Set the bit of each of two points in every pixel that the interpolated point is not below.

    Uses single precision. Pixels that it cannot decide get the bit `_UNSURE`.
    """
    height, width = codes.shape
    zero, none, doubt, unsure = np.float32(0.0), np.uint32(0), np.float32(_DOUBT), np.uint32(_UNSURE)
    bit1, bit2 = bits[0], bits[1]
    base1, base2 = int(np.floor(downs[0])) + border, int(np.floor(downs[1])) + border
    near1, near2 = np.float32(downs[0] - np.floor(downs[0])), np.float32(downs[1] - np.floor(downs[1]))
    far1, far2 = np.float32(1.0) - near1, np.float32(1.0) - near2
    # neighbours on whole pixels are exact
    if bits[2]:
        doubt = zero
    for row in range(height):
        for column in range(width):
            centre = padded[row + border, np.uint64(column) + np.uint64(border)]
            above1 = far1 * across[row + base1, column] + (near1 * across[row + base1 + 1, column] - centre)
            above2 = far2 * across[row + base2, column] + (near2 * across[row + base2 + 1, column] - centre)
            code = (bit1 if above1 >= zero else none) | (bit2 if above2 >= zero else none)
            # levels are never below 0, so a pixel of level 0 is always decided
            near = min(abs(above1), abs(above2)) < min(doubt, centre)
            codes[row, column] |= code | (unsure if near else none)


@inner_kernel
def _decide(
    padded: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    nears: np.ndarray,
    border: int,
    row: int,
    start: int,
    size: int,
    codes: np.ndarray,
) -> None:
    """Decide part of a row in double precision, with scikit-image's order of operations."""
    for point in range(rows.size):
        down, right = rows[point], columns[point]
        if down == np.floor(down) and right == np.floor(right):
            continue
        bit, at = np.uint32(1) << np.uint32(point), np.uint64(int(np.floor(right)) + border + start)
        # computed from the sum, as in scikit-image, because its rounding decides ties
        lower = row + down - np.floor(row + down)
        above = int(np.floor(down)) + row + border
        for k in range(size):
            left, here = np.uint64(k) + at, np.uint64(k) + np.uint64(start)
            near = nears[point, here]
            first = (1.0 - near) * padded[above, left] + near * padded[above, left + np.uint64(1)]
            second = (1.0 - near) * padded[above + 1, left] + near * padded[above + 1, left + np.uint64(1)]
            value = (1.0 - lower) * first + lower * second
            code, centre = codes[row, here] & ~bit, padded[row + border, here + np.uint64(border)]
            codes[row, here] = code | (bit if value >= centre else np.uint32(0))


@inner_kernel
def _decide_unsure(
    padded: np.ndarray, rows: np.ndarray, columns: np.ndarray, nears: np.ndarray, border: int, codes: np.ndarray
) -> None:
    """Decide the undecided pixels: if they are many, all from the first to the last in a row, else one by one."""
    height, width = codes.shape
    for row in range(height):
        count = 0
        for column in range(width):
            count += codes[row, column] >= np.uint32(_UNSURE)
        if count == 0:
            continue
        first, last = 0, width - 1
        while codes[row, first] < np.uint32(_UNSURE):
            first += 1
        while codes[row, last] < np.uint32(_UNSURE):
            last -= 1
        size = last + 1 - first
        step = size if _DENSE * count > size else 1
        for column in range(first, last + 1, step):
            if step > 1 or codes[row, column] >= np.uint32(_UNSURE):
                _decide(padded, rows, columns, nears, border, row, column, step, codes)


@intrinsic
def _count_bits(_: Any, code: Any) -> Any:
    """Count the bits set, with a single processor instruction where available."""
    return code(code), lambda _, builder, __, arguments: builder.ctpop(arguments[0])


@inner_kernel
def _count_patterns(codes: np.ndarray, points: int, patterns: np.ndarray, counts: np.ndarray) -> None:
    """Count the patterns of all pixels.

    `counts` has four partial histograms, so that equal neighbouring pixels do not wait for the same counter.
    """
    height, width = codes.shape
    # as in scikit-image, each point is compared with the next, but the last is not compared with the first
    inner, mixed = np.uint32((1 << (points - 1)) - 1), np.uint8(points + 1)
    for pattern in range(32):
        counts[0, pattern], counts[1, pattern], counts[2, pattern], counts[3, pattern] = 0, 0, 0, 0
    for row in range(height):
        for column in range(width):
            code = codes[row, column] & np.uint32(_UNSURE - 1)
            uniform = _count_bits(np.uint32((code ^ (code >> np.uint32(1))) & inner)) <= 2
            patterns[row, column] = np.uint8(_count_bits(code)) if uniform else mixed
        for column in range(0, width - 3, 4):
            counts[0, patterns[row, column]] += 1
            counts[1, patterns[row, column + 1]] += 1
            counts[2, patterns[row, column + 2]] += 1
            counts[3, patterns[row, column + 3]] += 1
        for column in range(width - width % 4, width):
            counts[0, patterns[row, column]] += 1


@kernel
def _lbp_kernel(
    planes: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    radius: int,
    channel: int,
    first: int,
    whole: np.ndarray,
    centre: np.ndarray,
) -> None:
    """Count the patterns of all pixels into whole[:, channel, first:] and the centre's into centre[:, channel]."""
    n, height, width = planes.shape
    points, border = rows.size, radius + 1
    padded = np.empty((height + 2 * border, width + 2 * border), np.float32)
    for row in range(height + 2 * border):
        for column in range(width + 2 * border):
            padded[row, column] = 0.0
    across = np.empty((height + 2 * border, width), np.float32)
    codes, patterns = np.empty((height, width), np.uint32), np.empty((height, width), np.uint8)
    downs, bits = np.empty(2), np.empty(3, np.uint32)
    nears = np.empty((points, width))
    for point in range(points):
        for column in range(width):
            nears[point, column] = column + columns[point] - np.floor(column + columns[point])
    counts = np.empty((4, 32), np.int32)
    top, left = (height - 32) // 2, (width - 32) // 2
    for i in range(n):
        for row in range(height):
            for column in range(width):
                padded[row + border, np.uint64(column) + np.uint64(border)] = planes[i, row, column]
                codes[row, column] = 0
        for point in range(points // 2 + 1):
            # points of the upper and lower half of the circle share columns, except the two at the ends
            other = points - point if 0 < point < points // 2 else point
            downs[0], downs[1] = rows[point], rows[other]
            bits[0], bits[1] = 1 << point, 1 << other
            bits[2] = rows[point] == np.floor(rows[point]) and columns[point] == np.floor(columns[point])
            _interpolate(padded, columns[point], border, across)
            _mark_points(padded, across, downs, border, bits, codes)
        _decide_unsure(padded, rows, columns, nears, border, codes)
        _count_patterns(codes, points, patterns, counts)
        for k in range(points + 2):
            whole[i, channel, first + k] = counts[0, k] + counts[1, k] + counts[2, k] + counts[3, k]
            centre[i, channel, k] = 0
        for row in range(top, top + 32):
            for column in range(left, left + 32):
                centre[i, channel, patterns[row, column]] += 1


_OJALA = "Ojala, Pietikäinen & Mäenpää (2002), IEEE Trans Pattern Anal Mach Intell 24(7):971-987"


def _columns() -> Iterator[Column]:
    for region, patterns in REGIONS.items():
        for channel in CHANNELS:
            for points, radius in patterns:
                for pattern in range(points + 2):
                    mixed = pattern == points + 1
                    neighbours = f"{points} neighbours (radius {radius} px)"
                    words = f"pattern of {neighbours} is not uniform"
                    if not mixed:
                        words = f"pattern is uniform, with {pattern} of {neighbours} at or above the pixel's level"
                    yield Column(
                        f"lbp_r{radius}-{'mixed' if mixed else f'p{pattern}'}_{channel}_{region}",
                        "1",
                        -1 if region == "contrast" else 0,
                        1,
                        f"Fraction of pixels whose {words}, {channel}, {REGION_WORDS[region]}.",
                        _OJALA,
                    )


COLUMNS = tuple(_columns())
