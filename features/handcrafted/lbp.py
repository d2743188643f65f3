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
#: First of the extra bits of a pixel that mark four points of which single precision cannot decide all.
_UNSURE = 1 << 24
#: If at least one pixel in this many is undecided, deciding the whole row together is faster.
_DENSE = 2
#: Rows and columns of zeros around the patch: the largest radius.
_BORDER = 3
#: Number of pixels that are handled together.
_STRIP = 1024


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
    counts = np.empty((n, len(CHANNELS), sum(points + 2 for points, _ in PATTERNS)), np.int64)
    centre = np.empty((n, len(CHANNELS), PATTERNS[0][0] + 2), np.int64)
    for channel, levels in enumerate((planes.grey, planes.haematoxylin)):
        _lbp_kernel(
            levels, np.array([points for points, _ in PATTERNS]), *_positions(height, width), channel, counts, centre
        )
    outside = height * width - 1024
    ring = (counts[..., : centre.shape[2]] - centre) / outside if outside else centre / 1024
    blocks = (counts / (height * width), centre / 1024, centre / 1024 - ring)
    return np.concatenate([block.reshape(n, -1) for block in blocks], axis=1).astype(np.float32)


@cache
def _positions(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions of the points of each pattern around each pixel. Patterns of fewer points leave the last ones at 0.

    Returns
    -------
    offsets : ndarray of shape (pattern, 24), dtype int64
        Distance of the pixel above and to the left of the point, in the padded patch as one row.
    downs, rights : ndarrays of shape (pattern, 24, height) and (pattern, 24, width), dtype float64
        Distance of the point from that pixel, from 0 to 1, for each row and each column of the patch. It is computed
        from the sum, as in scikit-image, because its rounding decides ties.
    """
    most = max(points for points, _ in PATTERNS)
    offsets, shares = np.zeros((len(PATTERNS), most), np.int64), []
    for axis, size in enumerate((height, width)):
        shares.append(np.zeros((len(PATTERNS), most, size)))
        for pattern, (points, radius) in enumerate(PATTERNS):
            angles = 2 * np.pi * np.arange(points, dtype=np.float64) / points
            # rounded to five places as in scikit-image
            circle = np.round(-radius * np.sin(angles) if axis == 0 else radius * np.cos(angles), 5)
            positions = np.arange(size) + circle[:, None]
            offsets[pattern, :points] += np.floor(circle).astype(np.int64) * (1 if axis else width + 2 * _BORDER)
            shares[axis][pattern, :points] = positions - np.floor(positions)
    return offsets, shares[0], shares[1]


@inner_kernel
def _mark_axes(
    padded: np.ndarray, middle: int, pattern: int, half: int, offsets: np.ndarray, codes: np.ndarray
) -> None:
    """Set the bits of the points on whole pixels, to the right, above, to the left and below, and clear all others."""
    # unsigned, because a loop whose index may be negative is not vectorised
    here, none = np.uint64(middle), np.uint32(0)
    across, down = np.uint64(offsets[pattern, 0]), np.uint64(offsets[pattern, half + half // 2])
    right, above, left = np.uint32(1), np.uint32(1 << half // 2), np.uint32(1 << half)
    below = np.uint32(1 << (half + half // 2))
    for j in range(codes.size):
        k = np.uint64(j) + here
        level = padded[k]
        code = (right if padded[k + across] >= level else none) | (left if padded[k - across] >= level else none)
        code |= (above if padded[k - down] >= level else none) | (below if padded[k + down] >= level else none)
        codes[j] = code


# fused is safe in this and the next function: pixels that single precision cannot decide are decided again
@fused_kernel
def _interpolate(padded: np.ndarray, start: int, stride: int, share: float, lines: np.ndarray, line: int) -> None:
    """Interpolate between each pixel from number `start` and the pixel below it."""
    near = np.float32(share)
    far, above, below = np.float32(1.0) - near, np.uint64(start), np.uint64(start + stride)
    for j in range(lines.shape[1]):
        k = np.uint64(j)
        lines[line, k] = far * padded[k + above] + near * padded[k + below]


@fused_kernel
def _mark_points(
    padded: np.ndarray,
    middle: int,
    lines: np.ndarray,
    apart: int,
    shares: np.ndarray,
    bits: np.ndarray,
    codes: np.ndarray,
) -> None:
    """Set the bit of each of four points in every pixel that the interpolated point is not below.

    `lines` are interpolated at the rows of the upper and the lower two points. They begin at the left points' column;
    the right points are `apart` columns further. `shares` are the fractions of a column that remain. The fifth bit is
    set in pixels with a point that single precision cannot decide.
    """
    here, right, one = np.uint64(middle), np.uint64(apart), np.uint64(1)
    near1, near2 = np.float32(shares[0]), np.float32(shares[1])
    far1, far2 = np.float32(1.0) - near1, np.float32(1.0) - near2
    bit1, bit2, bit3, bit4, unsure = bits[0], bits[1], bits[2], bits[3], bits[4]
    zero, none, doubt = np.float32(0.0), np.uint32(0), np.float32(_DOUBT)
    for j in range(codes.size):
        k = np.uint64(j)
        level = padded[k + here]
        above1 = far1 * lines[0, k] + (near1 * lines[0, k + one] - level)
        above2 = far2 * lines[0, k + right] + (near2 * lines[0, k + right + one] - level)
        above3 = far1 * lines[1, k] + (near1 * lines[1, k + one] - level)
        above4 = far2 * lines[1, k + right] + (near2 * lines[1, k + right + one] - level)
        code = (bit1 if above1 >= zero else none) | (bit2 if above2 >= zero else none)
        code |= (bit3 if above3 >= zero else none) | (bit4 if above4 >= zero else none)
        # levels are never below 0, so a pixel of level 0 is always decided
        near = min(abs(above1), abs(above2), abs(above3), abs(above4)) < min(doubt, level)
        codes[j] |= code | (unsure if near else none)


@inner_kernel
def _decide_row(
    padded: np.ndarray,
    middle: int,
    stride: int,
    row: int,
    pattern: int,
    points: int,
    offsets: np.ndarray,
    downs: np.ndarray,
    rights: np.ndarray,
    codes: np.ndarray,
    start: int,
) -> None:
    """Decide all points of a row in double precision, with scikit-image's order of operations."""
    none, one = np.uint32(0), np.uint64(1)
    for point in range(points):
        if point % (points // 4) == 0:
            continue
        bit, down = np.uint32(1) << np.uint32(point), downs[pattern, point, row]
        here, above, first = np.uint64(middle), np.uint64(middle + offsets[pattern, point]), np.uint64(start)
        below = above + np.uint64(stride)
        for column in range(rights.shape[2]):
            k = np.uint64(column)
            near = rights[pattern, point, k]
            upper = (1.0 - near) * padded[k + above] + near * padded[k + above + one]
            lower = (1.0 - near) * padded[k + below] + near * padded[k + below + one]
            is_bit = (1.0 - down) * upper + down * lower >= padded[k + here]
            codes[k + first] = (codes[k + first] & ~bit) | (bit if is_bit else none)


@inner_kernel
def _decide_unsure(
    padded: np.ndarray,
    stride: int,
    row: int,
    pattern: int,
    points: int,
    offsets: np.ndarray,
    downs: np.ndarray,
    rights: np.ndarray,
    pairs: np.ndarray,
    row_downs: np.ndarray,
    codes: np.ndarray,
    start: int,
) -> None:
    """Decide the undecided points of a row: if there are many, all points of the row, else one by one.

    The codes of the row begin at `start`. `pairs` and `row_downs` are scratch memory.
    """
    width, count, unsure, first = rights.shape[2], 0, np.uint32(_UNSURE), np.uint64(start)
    for column in range(width):
        count += codes[np.uint64(column) + first] >= unsure
    middle, half = (row + _BORDER) * stride + _BORDER, points // 2
    if _DENSE * count > width:
        _decide_row(padded, middle, stride, row, pattern, points, offsets, downs, rights, codes, start)
    elif count > 0:
        # pairs of a column and a group of four points are listed first, without branches that are hard to predict
        listed, groups, one = np.uint64(0), np.uint64(0), np.uint64(1)
        for column in range(width):
            pairs[0, listed] = column
            listed += np.uint64(codes[np.uint64(column) + first] >= unsure)
        for k in range(listed):
            code = codes[np.uint64(pairs[0, k]) + first]
            for quarter in range(1, half // 2):
                pairs[1, groups] = pairs[0, k] << np.uint32(3) | np.uint32(quarter)
                groups += np.uint64(code >> np.uint32(24 + quarter) & np.uint32(1))
        for point in range(points):
            row_downs[point] = downs[pattern, point, row]
        for k in range(groups):
            right, angle = np.uint64(pairs[1, k] >> np.uint32(3)), np.uint64(pairs[1, k] & np.uint32(7))
            here, code = np.uint64(middle) + right, codes[right + first]
            # the point and its mirror images
            for corner in range(4):
                turn = np.uint64(half) * np.uint64((corner + 1) // 2)
                turn = turn - angle if corner % 2 else turn + angle
                near, down = rights[np.uint64(pattern), turn, right], row_downs[turn]
                above = here + np.uint64(offsets[np.uint64(pattern), turn])
                below = above + np.uint64(stride)
                upper = (1.0 - near) * padded[above] + near * padded[above + one]
                lower = (1.0 - near) * padded[below] + near * padded[below + one]
                # a shift instead of a branch, which would be hard to predict
                is_above = np.uint32((1.0 - down) * upper + down * lower >= padded[here])
                code = (code & ~(np.uint32(1) << np.uint32(turn))) | (is_above << np.uint32(turn))
            codes[right + first] = code


@intrinsic
def _count_bits(_: Any, code: Any) -> Any:
    """Count the bits set, with a single processor instruction where available."""
    return code(code), lambda _, builder, __, arguments: builder.ctpop(arguments[0])


@inner_kernel
def _count_patterns(codes: np.ndarray, start: int, points: int, patterns: np.ndarray, counts: np.ndarray) -> None:
    """Write the patterns of a row, whose codes begin at `start`, and count them.

    `counts` has four partial histograms, so that equal neighbouring pixels do not wait for the same counter.
    """
    # as in scikit-image, each point is compared with the next, but the last is not compared with the first
    inner, mixed = np.uint32((1 << (points - 1)) - 1), np.uint8(points + 1)
    width, first = patterns.size, np.uint64(start)
    for column in range(width):
        code = np.uint32(codes[np.uint64(column) + first] & np.uint32(_UNSURE - 1))
        uniform = _count_bits(np.uint32((code ^ (code >> np.uint32(1))) & inner)) <= 2
        patterns[column] = np.uint8(_count_bits(code)) if uniform else mixed
    for column in range(0, width - 3, 4):
        k = np.uint64(column)
        counts[0, patterns[k]] += 1
        counts[1, patterns[k + np.uint64(1)]] += 1
        counts[2, patterns[k + np.uint64(2)]] += 1
        counts[3, patterns[k + np.uint64(3)]] += 1
    for column in range(width - width % 4, width):
        counts[0, patterns[column]] += 1


@inner_kernel
def _mark_strip(
    padded: np.ndarray,
    stride: int,
    row: int,
    pattern: int,
    points: int,
    offsets: np.ndarray,
    downs: np.ndarray,
    rights: np.ndarray,
    lines: np.ndarray,
    shares: np.ndarray,
    bits: np.ndarray,
    codes: np.ndarray,
) -> None:
    """Write the codes of some rows, from `row`, as far as single precision can decide them.

    `lines`, `shares` and `bits` are scratch memory.
    """
    middle, half = (row + _BORDER) * stride + _BORDER, points // 2
    _mark_axes(padded, middle, pattern, half, offsets, codes)
    for quarter in range(1, half // 2):
        # four points share two rows and two columns
        upper, lower = half - quarter, half + quarter
        for line in range(2):
            point = lower if line else upper
            _interpolate(padded, middle + offsets[pattern, point], stride, downs[pattern, point, 0], lines, line)
        shares[0], shares[1] = rights[pattern, upper, 0], rights[pattern, quarter, 0]
        bits[0], bits[1], bits[2] = 1 << upper, 1 << quarter, 1 << lower
        bits[3], bits[4] = 1 << (points - quarter), _UNSURE << quarter
        _mark_points(padded, middle, lines, offsets[pattern, quarter] - offsets[pattern, upper], shares, bits, codes)


@kernel
def _lbp_kernel(
    planes: np.ndarray,
    patterns: np.ndarray,
    offsets: np.ndarray,
    downs: np.ndarray,
    rights: np.ndarray,
    channel: int,
    whole: np.ndarray,
    centre: np.ndarray,
) -> None:
    """Count the patterns of all pixels into whole[:, channel], and those of the first radius in the centre."""
    n, height, width = planes.shape
    stride = width + 2 * _BORDER
    # strips of a few rows stay in the processor cache
    rows = max(_STRIP // stride, 1)
    padded = np.empty((height + 2 * _BORDER + rows + 1) * stride, np.float32)
    for k in range(padded.size):
        padded[k] = 0.0
    # points are up to twice the largest radius apart
    lines, codes = np.empty((2, rows * stride + 2 * _BORDER + 1), np.float32), np.empty(rows * stride, np.uint32)
    shares, bits, pairs = np.empty(2), np.empty(5, np.uint32), np.empty((2, 5 * width + 1), np.uint32)
    row_patterns, counts = np.empty(width, np.uint8), np.empty((4, 32), np.int32)
    row_downs, top, left = np.empty(downs.shape[1]), (height - 32) // 2, (width - 32) // 2
    for i in range(n):
        for row in range(height):
            start = np.uint64((row + _BORDER) * stride + _BORDER)
            for column in range(width):
                padded[start + np.uint64(column)] = planes[i, row, column]
        for k in range(centre.shape[2]):
            centre[i, channel, k] = 0
        first = 0
        for p in range(len(patterns)):
            points = patterns[p]
            for k in range(32):
                counts[0, k], counts[1, k], counts[2, k], counts[3, k] = 0, 0, 0, 0
            for row in range(height):
                if row % rows == 0:
                    _mark_strip(padded, stride, row, p, points, offsets, downs, rights, lines, shares, bits, codes)
                start = row % rows * stride
                _decide_unsure(padded, stride, row, p, points, offsets, downs, rights, pairs, row_downs, codes, start)
                _count_patterns(codes, start, points, row_patterns, counts)
                if p == 0 and top <= row < top + 32:
                    for column in range(left, left + 32):
                        centre[i, channel, row_patterns[column]] += 1
            for k in range(points + 2):
                whole[i, channel, first + k] = counts[0, k] + counts[1, k] + counts[2, k] + counts[3, k]
            first += points + 2


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
