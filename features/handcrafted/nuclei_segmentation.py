"""Segmentation of nuclei: pixels above a local threshold of the light absorbed in red; touching nuclei are split."""

from __future__ import annotations

import numpy as np

from histoblend.features.handcrafted.channels import Planes
from histoblend.features.handcrafted.kernel import kernel, part

SMALLEST = 12
_LARGEST_HOLE = 16
_LOWEST_LEVEL = 31
_REACH = 12


def nucleus_labels(planes: Planes) -> np.ndarray:
    """Give numbers to the nuclei that `nuclei` measures.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, height, width), dtype int32
        0 outside nuclei.
    """
    n, height, width = planes.absorbed.shape
    labels = np.empty((n, height, width), np.int32)
    smooth, lines = np.empty((height, width), np.int32), np.empty((height + 2, width + 4), np.int32)
    mask, seen = np.empty((height, width), np.bool_), np.empty((height + 2) * (width + 2), np.bool_)
    tops, places = np.empty((height, width), np.int32), np.empty((2, height * width), np.int32)
    sizes, starts = np.empty((2, height * width), np.int32)
    for levels, target in zip(planes.absorbed, labels, strict=True):
        fill_tops(levels, smooth, lines, mask, seen, tops, sizes)
        gather_pixels(tops, target, mask, sizes, starts, places)
    return labels


@part
def _reflect(position: int, size: int) -> int:
    if position < 0:
        return -1 - position
    return position if position < size else 2 * size - 1 - position


@part
def _smooth(plane: np.ndarray, lines: np.ndarray) -> None:
    """Binomial filter of levels times 256, in place and in whole numbers, rounded half up; `lines` is room."""
    height, width = plane.shape
    for row in range(height):
        for column in range(width):
            lines[height, column + 2] = plane[row, column]
        lines[height, 1], lines[height, 0] = plane[row, 0], plane[row, 1]
        lines[height, width + 2], lines[height, width + 3] = plane[row, width - 1], plane[row, width - 2]
        for column in range(width):
            near = lines[height, column + 1] + lines[height, column + 3]
            far = lines[height, column] + lines[height, column + 4]
            lines[row, column] = 6 * lines[height, column + 2] + 4 * near + far
    for row in range(height):
        up, down = _reflect(row - 1, height), _reflect(row + 1, height)
        up2, down2 = _reflect(row - 2, height), _reflect(row + 2, height)
        for column in range(width):
            near, far = lines[up, column] + lines[down, column], lines[up2, column] + lines[down2, column]
            plane[row, column] = (6 * lines[row, column] + 4 * near + far + 128) >> 8


@part
def _otsu(plane: np.ndarray, counts: np.ndarray) -> int:
    """Otsu's threshold: the lower class ends with it. Sums are whole numbers, so equal splits are equal.

    `counts` is room for four counters, so that equal neighbours need not wait.
    """
    height, width = plane.shape
    for level in range(256):
        counts[0, level], counts[1, level], counts[2, level], counts[3, level] = 0, 0, 0, 0
    for row in range(height):
        for column in range(0, width - 3, 4):
            for k in range(4):
                counts[k, (plane[row, column + k] + 128) >> 8] += 1
        for column in range(width - width % 4, width):
            counts[0, (plane[row, column] + 128) >> 8] += 1
    count, total = height * width, 0
    for level in range(256):
        counts[0, level] += counts[1, level] + counts[2, level] + counts[3, level]
        total += level * counts[0, level]
    # a constant plane has no split: its level is the threshold
    best, threshold = -1.0, (plane[0, 0] + 128) >> 8
    below, weight = 0, 0
    for level in range(255):
        below += counts[0, level]
        weight += level * counts[0, level]
        if counts[0, level] == 0 or below == count:
            # an empty bin splits the pixels as the bin before it did: the first of equals stands
            continue
        apart = float(weight) / below - float(total - weight) / (count - below)
        between = float(below) * float(count - below) * apart * apart
        if between > best:
            best, threshold = between, level
    return threshold


@part
def _fill_mask(levels: np.ndarray, smooth: np.ndarray, threshold: int, mask: np.ndarray) -> None:
    """Mark pixels above the mean of the threshold and the mean level of the square around, borders reflected."""
    height, width = levels.shape
    sums = np.empty(width + 2 * _REACH, np.int32)
    for column in range(width + 2 * _REACH):
        sums[column] = 0
    side = 2 * _REACH + 1
    for row in range(-_REACH, _REACH):
        line = _reflect(row, height)
        for column in range(width):
            sums[column + _REACH] += levels[line, column]
    for row in range(height):
        enters, leaves = _reflect(row + _REACH, height), _reflect(row - _REACH - 1, height)
        for column in range(width):
            sums[column + _REACH] += levels[enters, column]
            if row > 0:
                sums[column + _REACH] -= levels[leaves, column]
        for k in range(_REACH):
            sums[_REACH - 1 - k] = sums[_REACH + k]
            sums[_REACH + width + k] = sums[_REACH + width - 1 - k]
        total = 0
        for column in range(side - 1):
            total += sums[column]
        for column in range(width):
            total += sums[column + side - 1]
            # twice the level, in 256ths, against threshold plus mean
            above = 2 * side * side * smooth[row, column] > 256 * (side * side * threshold + total)
            mask[row, column] = above and smooth[row, column] > 256 * _LOWEST_LEVEL
            total -= sums[column]


@part
def _fill_holes(mask: np.ndarray, seen: np.ndarray, places: np.ndarray) -> None:
    """Fill parts of the background (diagonals do not count) of few pixels; `seen` is room for a rim around the mask."""
    height, width = mask.shape
    stride = width + 2
    for k in range(seen.size):
        seen[k] = True
    for row in range(height):
        for column in range(width):
            seen[(row + 1) * stride + 1 + column] = mask[row, column]
    for start in range(stride, seen.size - stride):
        # the first pixel of a hole, in reading order, has none above it and none before it
        if seen[start] or not seen[start - 1] or not seen[start - stride]:
            continue
        seen[start] = True
        places[0] = start
        found, done = 1, 0
        while done < found and found <= _LARGEST_HOLE:
            here = places[done]
            done += 1
            for step in (-stride, stride, -1, 1):
                if not seen[here + step]:
                    seen[here + step] = True
                    places[found] = here + step
                    found += 1
        large = found > _LARGEST_HOLE
        for k in range(found):
            if large:
                seen[places[k]] = False
            else:
                mask[places[k] // stride - 1, places[k] % stride - 1] = True


@part
def _climb(mask: np.ndarray, heights: np.ndarray, padded: np.ndarray, tops: np.ndarray) -> None:
    """`tops[k]`: the pixel on which one ends who climbs from pixel k inside the mask; -1 outside.

    `padded` is room for the heights with a margin of one on each side.
    """
    height, width = mask.shape
    for row in range(height + 2):
        for column in range(width + 2):
            padded[row, column] = -1
    for row in range(height):
        for column in range(width):
            padded[row + 1, column + 1] = heights[row, column] if mask[row, column] else -1
    for row in range(height):
        for column in range(width):
            best, step = np.int32(-1), np.int32(0)
            # of equals the first in reading order is higher
            for r in range(3):
                for c in range(3):
                    level = padded[row + r, column + c]
                    step = np.int32((r - 1) * width + c - 1) if level > best else step
                    best = max(best, level)
            here = row * width + column
            tops[row, column] = here + step if padded[row + 1, column + 1] >= 0 else -1
    flat = tops.reshape(height * width)
    for k in range(flat.size):
        if flat[k] >= 0:
            top = flat[k]
            while flat[top] != top:
                top = flat[top]
            place = k
            while flat[place] != top:
                after = flat[place]
                flat[place] = top
                place = after


@kernel
def fill_tops(
    levels: np.ndarray,
    smooth: np.ndarray,
    lines: np.ndarray,
    mask: np.ndarray,
    seen: np.ndarray,
    tops: np.ndarray,
    places: np.ndarray,
) -> int:
    """Find the nuclear pixels and their tops, and return Otsu's threshold; all but `levels` is room."""
    height, width = levels.shape
    for row in range(height):
        for column in range(width):
            smooth[row, column] = np.int32(levels[row, column]) << 8
    _smooth(smooth, lines)
    threshold = _otsu(smooth, np.empty((4, 256), np.int32))
    _fill_mask(levels, smooth, threshold, mask)
    _fill_holes(mask, seen, places)
    for _ in range(3):
        _smooth(smooth, lines)
    _climb(mask, smooth, lines, tops)
    return threshold


@kernel
def gather_pixels(
    tops: np.ndarray, labels: np.ndarray, mask: np.ndarray, sizes: np.ndarray, starts: np.ndarray, places: np.ndarray
) -> int:
    """Give numbers to the parts that are large enough and list their pixels, in reading order; take the others away.

    Part k (labels k + 1) holds the rows and columns ``places[:, starts[k]:starts[k + 1]]``; `sizes` is room.
    """
    height, width = tops.shape
    for k in range(height * width):
        sizes[k] = 0
    for row in range(height):
        for column in range(width):
            if tops[row, column] >= 0:
                sizes[tops[row, column]] += 1
    kept, total = 0, 0
    for k in range(height * width):
        if sizes[k] >= SMALLEST:
            # where the part's next pixel goes, which after its last one is where the next part starts
            kept += 1
            starts[kept] = total
            total += sizes[k]
            sizes[k] = -kept
    starts[0] = 0
    for row in range(height):
        for column in range(width):
            top = tops[row, column]
            label = max(-sizes[top], 0) if top >= 0 else 0
            labels[row, column] = label
            mask[row, column] = label > 0
            if label > 0:
                places[0, starts[label]], places[1, starts[label]] = row, column
                starts[label] += 1
    return kept
