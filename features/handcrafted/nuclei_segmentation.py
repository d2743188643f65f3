"""Segment nuclei: threshold the light absorbed in red locally, then split touching nuclei."""

from __future__ import annotations

import numpy as np

from histoblend.features.handcrafted.channels import Planes
from histoblend.features.handcrafted.kernel import inner_kernel, kernel

SMALLEST = 12
_LARGEST_HOLE = 16
_LOWEST_LEVEL = 31
_REACH = 12


def nucleus_labels(planes: Planes) -> np.ndarray:
    """Label the nuclei that `nuclei` measures.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, height, width), dtype int32
        Number of the nucleus, from 1 in each patch; 0 outside nuclei.
    """
    n, height, width = planes.absorbed.shape
    labels = np.empty((n, height, width), np.int32)
    smooth, lines = np.empty((height, width), np.int32), np.empty((height + 2, width + 4), np.int32)
    mask, visited = np.empty((height, width), np.bool_), np.empty((height + 2) * (width + 2), np.bool_)
    uphill, coordinates = np.empty((height, width), np.uint32), np.empty((2, height * width), np.int32)
    listed, (sizes, starts) = np.empty(height * width, np.uint32), np.empty((2, height * width), np.int32)
    for levels, target in zip(planes.absorbed, labels, strict=True):
        find_nuclear_pixels(levels, smooth, lines, mask, visited, uphill, sizes)
        number_nuclei(uphill, target, mask, listed, sizes, starts, coordinates)
    return labels


@inner_kernel
def _reflect(position: int, size: int) -> int:
    if position < 0:
        return -1 - position
    return position if position < size else 2 * size - 1 - position


@inner_kernel
def _smooth(plane: np.ndarray, lines: np.ndarray) -> None:
    """Apply the binomial filter to levels times 256, in place, with integers rounded half up. `lines` is scratch."""
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


@inner_kernel
def _otsu(plane: np.ndarray, counts: np.ndarray) -> int:
    """Otsu's threshold, the highest level of the lower class. Sums are whole numbers, so equal splits compare equal.

    `counts` is scratch memory for four partial histograms, so that equal neighbouring pixels do not wait for the same
    counter.
    """
    height, width = plane.shape
    for level in range(256):
        counts[0, level], counts[1, level], counts[2, level], counts[3, level] = 0, 0, 0, 0
    for row in range(height):
        for quarter in range(width // 4):
            for k in range(4):
                counts[k, np.uint32(plane[row, np.uint64(4 * quarter + k)] + 128) >> np.uint32(8)] += 1
        for column in range(width - width % 4, width):
            counts[0, (plane[row, column] + 128) >> 8] += 1
    count, total = height * width, 0
    for level in range(256):
        counts[0, level] += counts[1, level] + counts[2, level] + counts[3, level]
        total += level * counts[0, level]
    # a constant plane cannot be split, so its level is the threshold
    best, threshold = -1.0, (plane[0, 0] + 128) >> 8
    count_below, sum_below = 0, 0
    for level in range(255):
        count_below += counts[0, level]
        sum_below += level * counts[0, level]
        if counts[0, level] == 0 or count_below == count:
            # an empty bin splits the pixels as the previous bin did, and the first of equal splits is kept
            continue
        difference = float(sum_below) / count_below - float(total - sum_below) / (count - count_below)
        variance = float(count_below) * float(count - count_below) * difference * difference
        if variance > best:
            best, threshold = variance, level
    return threshold


@inner_kernel
def _fill_mask(levels: np.ndarray, smooth: np.ndarray, threshold: int, mask: np.ndarray, sums: np.ndarray) -> None:
    """Mark pixels above the mean of the threshold and the surrounding square's mean level, borders reflected.

    `sums` is scratch memory for one row, widened on both sides.
    """
    height, width = levels.shape
    for column in range(width + 2 * _REACH):
        sums[column] = 0
    side = 2 * _REACH + 1
    for row in range(-_REACH, _REACH):
        source_row = _reflect(row, height)
        for column in range(width):
            sums[column + _REACH] += levels[source_row, column]
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
            # compares twice the level, in 256ths, with threshold plus mean
            above = 2 * side * side * smooth[row, column] > 256 * (side * side * threshold + total)
            mask[row, column] = above and smooth[row, column] > 256 * _LOWEST_LEVEL
            total -= sums[column]


@inner_kernel
def _fill_holes(mask: np.ndarray, visited: np.ndarray, queue: np.ndarray) -> None:
    """Fill small 4-connected holes of the mask. `visited` and `queue` are scratch; `visited` has a margin of one."""
    height, width = mask.shape
    stride = width + 2
    for k in range(visited.size):
        visited[k] = True
    for row in range(height):
        for column in range(width):
            visited[(row + 1) * stride + 1 + column] = mask[row, column]
    # the first pixel of a hole, in reading order, has no hole pixel above it or to its left; listing all such pixels
    # behind the queue avoids branches that are hard to predict
    first = _LARGEST_HOLE + 4
    after = np.uint64(first)
    for pixel in range(visited.size - 2 * stride):
        above = np.uint64(pixel)
        left = above + np.uint64(stride - 1)
        queue[after] = pixel + stride
        after += np.uint64(visited[above] & visited[left] & (not visited[left + np.uint64(1)]))
    for place in range(first, int(after)):
        start = queue[place]
        if visited[start]:
            continue
        visited[start] = True
        queue[0] = start
        queued, done = 1, 0
        while done < queued and queued <= _LARGEST_HOLE:
            pixel = queue[done]
            done += 1
            for step in (-stride, stride, -1, 1):
                if not visited[pixel + step]:
                    visited[pixel + step] = True
                    queue[queued] = pixel + step
                    queued += 1
        large = queued > _LARGEST_HOLE
        for k in range(queued):
            if large:
                visited[queue[k]] = False
            else:
                mask[queue[k] // stride - 1, queue[k] % stride - 1] = True


@inner_kernel
def _climb(mask: np.ndarray, heights: np.ndarray, padded: np.ndarray, uphill: np.ndarray) -> None:
    """Write into `uphill` the highest of each pixel and its neighbours inside the mask.

    `padded` is scratch memory for the heights with a margin of one on each side.
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
            # among equals, the first in reading order counts as higher
            for r in range(3):
                for c in range(3):
                    level = padded[row + r, column + c]
                    step = np.int32((r - 1) * width + c - 1) if level > best else step
                    best = max(best, level)
            uphill[row, column] = np.int32(row * width + column) + step


@kernel
def find_nuclear_pixels(
    levels: np.ndarray,
    smooth: np.ndarray,
    lines: np.ndarray,
    mask: np.ndarray,
    visited: np.ndarray,
    uphill: np.ndarray,
    queue: np.ndarray,
) -> int:
    """Fill `mask` with the nuclear pixels and `uphill` with their next pixel uphill, and return Otsu's threshold.

    All other arrays except `levels` are scratch memory.
    """
    height, width = levels.shape
    for row in range(height):
        for column in range(width):
            smooth[row, column] = np.int32(levels[row, column]) << 8
    _smooth(smooth, lines)
    threshold = _otsu(smooth, np.empty((4, 256), np.int32))
    _fill_mask(levels, smooth, threshold, mask, queue)
    _fill_holes(mask, visited, queue)
    for _ in range(3):
        _smooth(smooth, lines)
    _climb(mask, smooth, lines, uphill)
    return threshold


@kernel
def number_nuclei(
    uphill: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    listed: np.ndarray,
    sizes: np.ndarray,
    starts: np.ndarray,
    coordinates: np.ndarray,
) -> int:
    """Label the segments that are large enough, list their pixels in reading order and unmark all other segments.

    A segment consists of the pixels from which `uphill` leads to the same peak; `uphill` is changed. Segment k has
    label k + 1, and its rows and columns are ``coordinates[:, starts[k]:starts[k + 1]]``. `listed` and `sizes` are
    scratch memory. Returns the number of segments.
    """
    height, width = labels.shape
    marked, peaks, count = mask.reshape(height * width), uphill.reshape(height * width), 0
    for row in range(height):
        for column in range(width):
            labels[row, column] = 0
    # listing the pixels and doubling all steps avoid branches that are hard to predict
    for pixel in range(height * width):
        listed[count] = pixel
        count += marked[pixel]
    change = np.uint32(1)
    while change != 0:
        change = np.uint32(0)
        for k in range(count):
            near = peaks[listed[k]]
            far = peaks[near]
            peaks[listed[k]] = far
            change |= near ^ far
    for k in range(count):
        sizes[listed[k]] = 0
    for k in range(count):
        sizes[peaks[listed[k]]] += 1
    segments, total = 0, 0
    for k in range(count):
        # only peaks have a size
        if sizes[listed[k]] >= SMALLEST:
            # position of the segment's next pixel, which ends up as the start of the next segment
            segments += 1
            starts[segments] = total
            total += sizes[listed[k]]
            sizes[listed[k]] = -segments
    starts[0], row = 0, 0
    for k in range(count):
        pixel = listed[k]
        while pixel >= (row + 1) * width:
            row += 1
        label = max(-sizes[peaks[pixel]], 0)
        labels[row, pixel - row * width] = label
        marked[pixel] = label > 0
        if label > 0:
            coordinates[0, starts[label]], coordinates[1, starts[label]] = row, pixel - row * width
            starts[label] += 1
    return segments
