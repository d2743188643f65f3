"""Size, shape and stain of one nucleus, as `skimage.measure.regionprops` measures them."""

from __future__ import annotations

import numpy as np

from histoblend.features.handcrafted.kernel import part


@part
def mark_border(labels: np.ndarray, border: np.ndarray) -> None:
    """Copy the labels of pixels that have a side neighbour with another label (or none); 0 elsewhere."""
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


@part
def _perimeter(border: np.ndarray, label: int, places: np.ndarray, start: int, stop: int) -> float:
    """Length of the line through the centres of the border pixels, as scikit-image estimates it."""
    straight, diagonal, mixed = 0, 0, 0
    for place in range(start, stop):
        row, column = places[0, place], places[1, place]
        if border[row + 1, column + 1] != label:
            continue
        code = 1
        for r in range(3):
            for c in range(3):
                if border[row + r, column + c] == label:
                    code += 10 if r != 1 and c != 1 else 2
        # the pixel itself was counted as a side
        code -= 2
        if code == 5 or code == 7 or code == 15 or code == 17 or code == 25 or code == 27:
            straight += 1
        elif code == 21 or code == 33:
            diagonal += 1
        elif code == 13 or code == 23:
            mixed += 1
    return straight + np.sqrt(2.0) * diagonal + (1.0 + np.sqrt(2.0)) / 2.0 * mixed


@part
def _chain_area(sides: np.ndarray, which: int, height: int, chain: np.ndarray) -> int:
    """Sum of the first pixel columns on or right of the lower convex chain through the points (k, sides[which, k]).

    One for each pixel row (odd k); coordinates are doubled.
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
        # small whole numbers: the quotient of two that divide is exact
        total += int(np.ceil(position / (2.0 * (b - a))))
    return total


@part
def _convex_area(room: np.ndarray, height: int) -> int:
    """Pixels whose centre lies in or on the hull of all edge midpoints of a part's pixels.

    `room[0]` and `room[1]` are the part's first and last column in each of its rows.
    """
    # k = 2 row + 1 are the pixel rows, even k the lines between them; the right side is mirrored
    for k in range(2 * height + 1):
        above, below = max((k - 1) // 2, 0), min(k // 2, height - 1)
        shift = k % 2
        room[2, k] = 2 * min(room[0, above], room[0, below]) - shift
        room[3, k] = -2 * max(room[1, above], room[1, below]) - shift
    area = height
    for side in range(2, 4):
        area -= _chain_area(room, side, height, room[4])
    return area


@part
def _rim(levels: np.ndarray, labels: np.ndarray, top: int, bottom: int, first: int, last: int, level: float) -> float:
    """Level minus the mean of the pixels outside all nuclei in the box, 3 pixels wider; 0 when there are none."""
    height, width = labels.shape
    total, count = 0, 0
    for row in range(max(top - 3, 0), min(bottom + 4, height)):
        for column in range(max(first - 3, 0), min(last + 4, width)):
            if labels[row, column] == 0:
                total += levels[row, column]
                count += 1
    return level - total / count if count > 0 else 0.0


@part
def measure_shape(
    levels: np.ndarray,
    labels: np.ndarray,
    border: np.ndarray,
    number: int,
    places: np.ndarray,
    starts: np.ndarray,
    room: np.ndarray,
    out: np.ndarray,
) -> None:
    """`NUCLEUS` up to the rim of one part, then its centroid (row, column) and twice the angle of its major axis."""
    start, stop = starts[number], starts[number + 1]
    area, top, bottom, first, last = stop - start, places[0, start], places[0, stop - 1], labels.shape[1], 0
    for row in range(bottom - top + 1):
        room[0, row], room[1, row] = labels.shape[1], -1
    rows, columns, rows2, columns2, products, total, squares = 0, 0, 0, 0, 0, np.int64(0), np.int64(0)
    for place in range(start, stop):
        row, column = places[0, place], places[1, place]
        level = np.int64(levels[row, column])
        first, last = min(first, column), max(last, column)
        row -= top
        room[0, row], room[1, row] = min(room[0, row], column), max(room[1, row], column)
        rows += row
        columns += column
        rows2 += row * row
        columns2 += column * column
        products += row * column
        total += level
        squares += level * level
    # whole numbers up to here: exact variances
    count = float(area) * area
    down, across = (area * rows2 - rows * rows) / count, (area * columns2 - columns * columns) / count
    mixed, grain = (area * products - rows * columns) / count, (area * squares - total * total) / count
    root = np.sqrt((across - down) * (across - down) + 4.0 * mixed * mixed)
    long, short = (across + down + root) / 2.0, max((across + down - root) / 2.0, 0.0)
    perimeter = _perimeter(border, number + 1, places, start, stop)
    out[number, 0], out[number, 1] = area, perimeter
    # a lattice of pixels that touch by corners alone has no estimated perimeter
    out[number, 2] = 4.0 * np.pi * area / (perimeter * perimeter) if perimeter > 0.0 else 0.0
    out[number, 3], out[number, 4] = np.sqrt(1.0 - short / long), area / _convex_area(room, bottom - top + 1)
    out[number, 5] = area / ((bottom - top + 1) * (last - first + 1))
    out[number, 6], out[number, 7] = 4.0 * np.sqrt(long), 4.0 * np.sqrt(short)
    out[number, 8], out[number, 9] = total / area / 255.0, np.sqrt(grain) / 255.0
    out[number, 10] = _rim(levels, labels, top, bottom, first, last, total / area) / 255.0
    out[number, 13], out[number, 14] = top + rows / area, columns / area
    # twice the angle: cosine and sine, scaled by eccentricity
    out[number, 15] = out[number, 3] * (across - down) / root if root > 0.0 else 0.0
    out[number, 16] = out[number, 3] * 2.0 * mixed / root if root > 0.0 else 0.0
