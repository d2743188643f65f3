"""Size, shape and stain of a nucleus, as measured by `skimage.measure.regionprops`."""

from __future__ import annotations

import numpy as np

from histoblend.features.handcrafted.kernel import inner_kernel


@inner_kernel
def mark_border(labels: np.ndarray, border: np.ndarray) -> None:
    """Copy the labels of pixels with a side neighbour outside the patch or of another label; write 0 elsewhere."""
    height, width = labels.shape
    for row in range(height):
        for column in range(width):
            label = labels[row, column]
            inside = (
                0 < row < height - 1
                and 0 < column < width - 1
                and labels[row - 1, column] == label
                and labels[row + 1, column] == label
                and labels[row, column - 1] == label
                and labels[row, column + 1] == label
            )
            border[row + 1, column + 1] = 0 if inside else label


@inner_kernel
def classify_border(border: np.ndarray, kinds: np.ndarray) -> None:
    """Write how each border pixel adds to the perimeter: 1 straight, 2 diagonally, 3 by a mean of both, 0 not at all.

    These are the kinds of scikit-image's `perimeter`. `border` has a margin of one.
    """
    height, width = kinds.shape
    for row in range(height):
        for column in range(width):
            label = border[row + 1, column + 1]
            sides, corners = np.int32(0), np.int32(0)
            for k in range(0, 3, 2):
                sides += np.int32(border[row + k, column + 1] == label) + np.int32(border[row + 1, column + k] == label)
                corners += np.int32(border[row + k, column] == label) + np.int32(border[row + k, column + 2] == label)
            kind = np.int32(1) if (sides == 2 or sides == 3) and corners <= 2 else np.int32(0)
            kind = np.int32(2) if (sides == 0 and corners == 2) or (sides == 1 and corners == 3) else kind
            kind = np.int32(3) if sides == 1 and (corners == 1 or corners == 2) else kind
            kinds[row, column] = kind if label > 0 else np.int32(0)


@inner_kernel
def sum_background(levels: np.ndarray, labels: np.ndarray, sums: np.ndarray, background: np.ndarray) -> None:
    """Write, for each pixel, the level sum of all background pixels above and to the left, plus 2³² times their number.

    `background` has one row and one column more than the patch. `sums` is scratch memory for one row.
    """
    height, width = labels.shape
    for column in range(width + 1):
        background[0, column], sums[column] = 0, 0
    for row in range(height):
        for column in range(width):
            both = np.int64(levels[row, column]) + (np.int64(1) << 32)
            sums[column] += both if labels[row, column] == 0 else np.int64(0)
        background[row + 1, 0], total = 0, np.int64(0)
        for column in range(width):
            total += sums[column]
            background[row + 1, column + 1] = total


@inner_kernel
def _chain_area(sides: np.ndarray, which: int, height: int, chain: np.ndarray) -> int:
    """Sum over pixel rows of the first column on or right of the lower convex chain through (k, sides[which, k]).

    Coordinates are doubled, so pixel rows are the odd k.
    """
    length = 0
    for k in range(2 * height + 1):
        while length >= 2:
            a, b = chain[length - 2], chain[length - 1]
            first = sides[which, a]
            if (sides[which, b] - first) * (k - a) >= (sides[which, k] - first) * (b - a):
                length -= 1
            else:
                break
        chain[length] = k
        length += 1
    edge, total = 0, 0
    for k in range(1, 2 * height, 2):
        while chain[edge + 1] < k:
            edge += 1
        a, b = chain[edge], chain[edge + 1]
        position = sides[which, a] * (b - a) + (sides[which, b] - sides[which, a]) * (k - a)
        # whole numbers, so the quotient is exact if it is a whole number
        total += int(np.ceil(position / (2.0 * (b - a))))
    return total


@inner_kernel
def _convex_area(scratch: np.ndarray, height: int) -> int:
    """Number of pixels whose centre is in or on the convex hull of the midpoints of all pixel edges.

    `scratch[0]` and `scratch[1]` are the first and last column of the nucleus in each of its rows.
    """
    # pixel rows are k = 2 row + 1, and even k are the lines between them; the right side is mirrored
    for k in range(2 * height + 1):
        above, below = max((k - 1) // 2, 0), min(k // 2, height - 1)
        shift = k % 2
        scratch[2, k] = 2 * min(scratch[0, above], scratch[0, below]) - shift
        scratch[3, k] = -2 * max(scratch[1, above], scratch[1, below]) - shift
    area = height
    for side in range(2, 4):
        area -= _chain_area(scratch, side, height, scratch[4])
    return area


@inner_kernel
def _rim(background: np.ndarray, top: int, bottom: int, first: int, last: int, level: float) -> float:
    """Level minus the mean of the background pixels in the box, widened by 3 pixels; 0 if there are none."""
    top, bottom = max(top - 3, 0), min(bottom + 4, background.shape[0] - 1)
    first, last = max(first - 3, 0), min(last + 4, background.shape[1] - 1)
    both = background[bottom, last] - background[top, last] - background[bottom, first] + background[top, first]
    count = both >> 32
    return level - (both - (count << 32)) / count if count > 0 else 0.0


@inner_kernel
def measure_shape(
    levels: np.ndarray,
    kinds: np.ndarray,
    background: np.ndarray,
    number: int,
    coordinates: np.ndarray,
    starts: np.ndarray,
    scratch: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write `NUCLEUS` up to the rim of one nucleus, its centroid (row, column) and twice its major axis angle."""
    start, stop = starts[number], starts[number + 1]
    area, top, bottom, first = stop - start, coordinates[0, start], coordinates[0, stop - 1], levels.shape[1]
    last = np.int64(0)
    for row in range(bottom - top + 1):
        scratch[0, row], scratch[1, row] = levels.shape[1], -1
    rows, columns, rows2, columns2, products, total, squares = 0, 0, 0, 0, 0, np.int64(0), np.int64(0)
    straight, diagonal, mean_of_both = 0, 0, 0
    for k in range(start, stop):
        row, column = coordinates[0, k], coordinates[1, k]
        level, kind = np.int64(levels[row, column]), kinds[row, column]
        first, last = min(first, column), max(last, column)
        row -= top
        scratch[0, row], scratch[1, row] = min(scratch[0, row], column), max(scratch[1, row], column)
        rows += row
        columns += column
        rows2 += row * row
        columns2 += column * column
        products += row * column
        total += level
        squares += level * level
        straight += kind == 1
        diagonal += kind == 2
        mean_of_both += kind == 3
    # all sums so far are whole numbers, so the variances are exact
    count = float(area) * area
    down, across = (area * rows2 - rows * rows) / count, (area * columns2 - columns * columns) / count
    mixed, grain = (area * products - rows * columns) / count, (area * squares - total * total) / count
    root = np.sqrt((across - down) * (across - down) + 4.0 * mixed * mixed)
    long, short = (across + down + root) / 2.0, max((across + down - root) / 2.0, 0.0)
    perimeter = straight + np.sqrt(2.0) * diagonal + (1.0 + np.sqrt(2.0)) / 2.0 * mean_of_both
    out[number, 0], out[number, 1] = area, perimeter
    # pixels that touch only at corners may have an estimated perimeter of 0
    out[number, 2] = 4.0 * np.pi * area / (perimeter * perimeter) if perimeter > 0.0 else 0.0
    out[number, 3], out[number, 4] = np.sqrt(1.0 - short / long), area / _convex_area(scratch, bottom - top + 1)
    out[number, 5] = area / ((bottom - top + 1) * (last - first + 1))
    out[number, 6], out[number, 7] = 4.0 * np.sqrt(long), 4.0 * np.sqrt(short)
    out[number, 8], out[number, 9] = total / area / 255.0, np.sqrt(grain) / 255.0
    out[number, 10] = _rim(background, top, bottom, first, last, total / area) / 255.0
    out[number, 13], out[number, 14] = top + rows / area, columns / area
    # cosine and sine of twice the angle, scaled by eccentricity
    out[number, 15] = out[number, 3] * (across - down) / root if root > 0.0 else 0.0
    out[number, 16] = out[number, 3] * 2.0 * mixed / root if root > 0.0 else 0.0
