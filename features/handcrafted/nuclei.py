"""Nuclei of a batch of patches: found on the light absorbed in red, measured one by one, pooled over a region."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import numpy as np

from histoblend.features.handcrafted.channels import Planes
from histoblend.features.handcrafted.column import REGION_WORDS, Column, Row
from histoblend.features.handcrafted.kernel import kernel, part

_SMALLEST = 12
_LARGEST_HOLE = 16
_LOWEST_LEVEL = 31
_REACH = 12
_NEAR = 20.0

#: One number a region.
PATCH = (
    Row("count", "1", 0, inf, "Number of nuclei"),
    Row("fraction", "1", 0, 1, "Fraction of pixels that nuclei cover"),
    Row("contrast", "1", -1, 1, "Mean level inside nuclei minus outside (0 when either is empty)"),
)
#: One number a nucleus, pooled over those of a region.
NUCLEUS = (
    Row("area", "px²", 0, inf, "area"),
    Row("perimeter", "px", 0, inf, "perimeter"),
    Row("circularity", "1", 0, inf, "circularity 4π area / perimeter²"),
    Row("eccentricity", "1", 0, 1, "eccentricity of the ellipse with the same second moments"),
    Row("solidity", "1", 0, 1, "solidity (area / area of the convex hull)"),
    Row("extent", "1", 0, 1, "extent (area / area of the upright box)"),
    Row("major", "px", 0, inf, "major axis of the ellipse with the same second moments"),
    Row("minor", "px", 0, inf, "minor axis of the ellipse with the same second moments"),
    Row("intensity", "1", 0, 1, "mean level inside"),
    Row("grain", "1", 0, 0.5, "chromatin contrast: standard deviation of the level inside"),
    Row("rim", "1", -1, 1, "mean level inside minus that of the box around it, 3 px wider, outside all nuclei"),
    Row("gap", "px", 0, inf, "distance between centroids to the nearest other nucleus (0 when alone)"),
    Row("crowd", "1", 0, inf, f"number of other nuclei within {_NEAR:g} px"),
)
#: One number for the graphs over the whole patch.
GRAPH = (
    Row("threshold", "1", 0, 1, "Otsu's threshold of the smoothed plane"),
    Row("tree-mean", "px", 0, inf, "Mean edge of the minimum spanning tree of the nuclei (0 below two)"),
    Row("tree-spread", "px", 0, inf, "Standard deviation of the edges of the minimum spanning tree"),
    Row("tree-max", "px", 0, inf, "Longest edge of the minimum spanning tree"),
    Row("gabriel-mean", "px", 0, inf, "Mean edge of the Gabriel graph of the nuclei (0 without edges)"),
    Row("gabriel-spread", "px", 0, inf, "Standard deviation of the edges of the Gabriel graph"),
    Row("gabriel-degree", "1", 0, inf, "Mean number of Gabriel neighbours of a nucleus"),
    Row("delaunay-mean", "px", 0, inf, "Mean edge of Delaunay's graph of the nuclei (0 without edges)"),
    Row("delaunay-spread", "px", 0, inf, "Standard deviation of the edges of Delaunay's graph"),
    Row("delaunay-max", "px", 0, inf, "Longest edge of Delaunay's graph"),
    Row("cell-disorder", "1", 0, 1, "Area disorder of the nuclei's cells: 1 − 1 / (1 + spread / mean) (0 without)"),
    Row("orientation", "1", 0, 1, "Spread of the major axes' directions, weighted by eccentricity (0 without)"),
    Row("central-gap", "px", 0, inf, "Distance of the nearest centroid from the patch's middle (0 without nuclei)"),
)
#: Pools that each region has, of `NUCLEUS`.
POOLS = {
    "whole": ("mean", "spread", "q90"),
    "centre": ("mean", "max", "nearest"),
    "contrast": ("mean",),
}
_WIDTH = len(NUCLEUS)


def nuclei(planes: Planes) -> np.ndarray:
    """Find nuclei, and give their number, cover, spacing, size, shape and stain.

    The light absorbed in red (`channels.Planes.absorbed`), which is haematoxylin's doing, is smoothed with the
    binomial filter (1, 4, 6, 4, 1) / 16 both ways, borders reflected. A pixel is nuclear when it exceeds the mean of
    Otsu's threshold (`skimage.filters.threshold_otsu`) and the mean of the plane over the 25 × 25 pixels around, and
    level 31, so that pale nuclei beside dark ones are found, and blank and evenly stained patches have none. Holes of
    at most 16 pixels are filled (`skimage.morphology.remove_small_holes`). Touching nuclei are split: from each pixel
    one climbs the plane, smoothed four times, to the highest of the eight neighbours, and pixels that end on the same
    top are one nucleus (of equals the first in reading order is higher). Parts of at least 12 pixels are nuclei,
    measured as `skimage.measure.regionprops` does. A nucleus belongs to the centre when its centroid lies there. Two
    nuclei are neighbours in Gabriel's graph, a part of Delaunay's, when no third lies inside the circle that has their
    centroids as a diameter. A nucleus' cell is the part of the patch that is nearer to its centroid than to any other
    (Voronoi); two are neighbours in Delaunay's graph when their cells share more than a millionth of a pixel of a side,
    which leaves out edges that only meet beyond the patch, and does not depend on how ties are broken.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, 110), dtype float32
        By region: `PATCH`, then `NUCLEUS` by pool; `GRAPH` last. Without nuclei 0.

    References
    ----------
    Otsu (1979), IEEE Trans Syst Man Cybern 9(1):62-66.
    Wolberg, Street & Mangasarian (1994), Cancer Lett 77(2-3):163-171.
    Gabriel & Sokal (1969), Syst Zool 18(3):259-278.
    Marcelpoil & Usson (1992), J Theor Biol 154(3):359-369 (cells).
    """
    out = np.zeros((len(planes), len(COLUMNS)))
    _nuclei_kernel(planes.absorbed, out)
    return out.astype(np.float32)


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
        _fill_tops(levels, smooth, lines, mask, seen, tops, sizes)
        _gather(tops, target, mask, sizes, starts, places)
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
def _fill_tops(
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
def _gather(
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
        if sizes[k] >= _SMALLEST:
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


@part
def _mark_border(labels: np.ndarray, border: np.ndarray) -> None:
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
def _measure(
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


@part
def _spread(values: np.ndarray, count: int, mean: float) -> float:
    """Standard deviation of the first values."""
    total = 0.0
    for k in range(count):
        total += (values[k] - mean) * (values[k] - mean)
    return np.sqrt(total / count)


@part
def _gaps(n: int, table: np.ndarray, apart: np.ndarray) -> None:
    """Gaps and crowds into the table, and squared distances."""
    for i in range(n):
        nearest, crowd = np.inf, 0
        for j in range(n):
            down, across = table[i, 13] - table[j, 13], table[i, 14] - table[j, 14]
            distance = down * down + across * across
            apart[i, j] = distance
            if i != j:
                nearest = min(nearest, distance)
                crowd += distance <= _NEAR * _NEAR
        table[i, 11], table[i, 12] = np.sqrt(nearest) if n > 1 else 0.0, crowd


@part
def _tree(n: int, apart: np.ndarray, nearest: np.ndarray, edges: np.ndarray, out: np.ndarray) -> None:
    """Mean, spread and maximum of the minimum spanning tree's edges, by Prim's algorithm, into out[1:4]."""
    for j in range(n):
        nearest[j] = apart[0, j]
    nearest[0] = -1.0
    total, longest = 0.0, 0.0
    for k in range(n - 1):
        best, distance = -1, np.inf
        for j in range(n):
            if 0.0 <= nearest[j] < distance:
                best, distance = j, nearest[j]
        edges[k] = np.sqrt(distance)
        total += edges[k]
        longest = max(longest, edges[k])
        nearest[best] = -1.0
        for j in range(n):
            nearest[j] = min(nearest[j], apart[best, j])
    out[1], out[3] = total / (n - 1), longest
    out[2] = _spread(edges, n - 1, out[1])


@part
def _gabriel(n: int, apart: np.ndarray, usual: float, out: np.ndarray) -> None:
    """Mean and spread of Gabriel's edges, and mean number of neighbours, into out[4:7]."""
    # lengths beyond a typical one, so that equal edges have a spread of exactly zero
    edges, total, squares = 0, 0.0, 0.0
    for i in range(n):
        between = 0
        for j in range(i):
            limit = apart[i, j] * (1.0 - 1e-9)
            # what lay between i and the one before often lies before this one as well
            if apart[i, between] + apart[j, between] < limit:
                continue
            free = True
            for k in range(n):
                if apart[i, k] + apart[j, k] < limit:
                    free, between = False, k
                    break
            if free:
                beyond = np.sqrt(apart[i, j]) - usual
                edges += 1
                total += beyond
                squares += beyond * beyond
    mean = total / edges
    out[4], out[5], out[6] = usual + mean, np.sqrt(max(squares / edges - mean * mean, 0.0)), 2.0 * edges / n


@part
def _cut(polygon: np.ndarray, cut: np.ndarray, corners: int, down: float, across: float, owner: int) -> int:
    """Cut off what is nearer to (down, across) than to the origin; return how many corners are left.

    `polygon` holds rows, columns and owners: of the side from a corner to the next, the nucleus beyond, or -1.
    `cut` is room.
    """
    half = (down * down + across * across) / 2.0
    farthest = -np.inf
    for k in range(corners):
        cut[3, k] = polygon[0, k] * down + polygon[1, k] * across - half
        farthest = max(farthest, cut[3, k])
    # a corner on the line is not cut off because of its rounding
    if farthest <= 1e-12 * half:
        return corners
    kept = 0
    for k in range(corners):
        after = k + 1 if k + 1 < corners else 0
        here, there = cut[3, k], cut[3, after]
        if here <= 0.0:
            cut[0, kept], cut[1, kept], cut[2, kept] = polygon[0, k], polygon[1, k], polygon[2, k]
            kept += 1
        if (here <= 0.0) != (there <= 0.0):
            share = here / (here - there)
            cut[0, kept] = polygon[0, k] + share * (polygon[0, after] - polygon[0, k])
            cut[1, kept] = polygon[1, k] + share * (polygon[1, after] - polygon[1, k])
            # where the polygon is left, the new side begins
            cut[2, kept] = owner if here <= 0.0 else polygon[2, k]
            kept += 1
    for k in range(kept):
        polygon[0, k], polygon[1, k], polygon[2, k] = cut[0, k], cut[1, k], cut[2, k]
    return kept


@part
def _cell(
    n: int,
    i: int,
    table: np.ndarray,
    apart: np.ndarray,
    box: np.ndarray,
    first: np.ndarray,
    polygon: np.ndarray,
    cut: np.ndarray,
) -> int:
    """Cell of nucleus i in the box, relative to its centroid; return the number of its corners.

    `first` is room for four numbers.
    """
    for k in range(4):
        polygon[0, k] = (box[0] if k in (0, 3) else box[1]) - table[i, 13]
        polygon[1, k] = (box[2] if k < 2 else box[3]) - table[i, 14]
        polygon[2, k] = -1.0
    for side in range(4):
        first[side] = -1
    for j in range(n):
        down, across = table[j, 13] > table[i, 13], table[j, 14] > table[i, 14]
        side = 2 * down + across
        if apart[i, j] > 0.0 and (first[side] < 0 or apart[i, j] < apart[i, first[side]]):
            first[side] = j
    corners, reach = 4, np.inf
    # the nearest on each side first: they spare most others
    for turn in range(n + 4):
        j = first[turn] if turn < 4 else turn - 4
        if j < 0 or apart[i, j] >= 4.0 * reach or apart[i, j] == 0.0:
            continue
        if turn >= 4 and (j == first[0] or j == first[1] or j == first[2] or j == first[3]):
            continue
        corners = _cut(polygon, cut, corners, table[j, 13] - table[i, 13], table[j, 14] - table[i, 14], j)
        reach = 0.0
        for k in range(corners):
            reach = max(reach, polygon[0, k] * polygon[0, k] + polygon[1, k] * polygon[1, k])
    return corners


@part
def _cells(
    n: int,
    table: np.ndarray,
    apart: np.ndarray,
    box: np.ndarray,
    first: np.ndarray,
    polygon: np.ndarray,
    cut: np.ndarray,
    out: np.ndarray,
) -> None:
    """Mean, spread and maximum of Delaunay's edges, and the disorder of the cells' areas, into out[7:11].

    `box` is the patch: its first and last row and column, to the pixels' outer edges.
    """
    # lengths beyond a typical one, so that equal edges have a spread of exactly zero
    edges, total, squares, longest, usual = 0, 0.0, 0.0, 0.0, table[0, 11]
    mean_area, area_squares = (box[1] - box[0]) * (box[3] - box[2]) / n, 0.0
    for i in range(n):
        corners, area = _cell(n, i, table, apart, box, first, polygon, cut), 0.0
        for k in range(corners):
            after = k + 1 if k + 1 < corners else 0
            area += (polygon[0, k] * polygon[1, after] - polygon[0, after] * polygon[1, k]) / 2.0
            down, across = polygon[0, after] - polygon[0, k], polygon[1, after] - polygon[1, k]
            neighbour = int(polygon[2, k])
            # each edge once
            if neighbour > i and down * down + across * across > 1e-12:
                length = np.sqrt(apart[i, neighbour])
                edges += 1
                longest = max(longest, length)
                total += length - usual
                squares += (length - usual) * (length - usual)
        area_squares += (abs(area) - mean_area) * (abs(area) - mean_area)
    spread = np.sqrt(area_squares / n) / mean_area
    out[10] = 1.0 - 1.0 / (1.0 + spread)
    if edges > 0:
        mean = total / edges
        out[7], out[8], out[9] = usual + mean, np.sqrt(max(squares / edges - mean * mean, 0.0)), longest


@part
def _cover(levels: np.ndarray, mask: np.ndarray, rows: int, columns: int, out: np.ndarray, first: int) -> None:
    """Fraction covered, and mean level inside minus outside (0 when either is empty), of a box in the middle."""
    height, width = levels.shape
    inside, within, total = 0, np.int64(0), np.int64(0)
    left = np.uint64((width - columns) // 2)
    for row in range((height - rows) // 2, (height - rows) // 2 + rows):
        for k in range(columns):
            value, marked = np.int32(levels[row, np.uint64(k) + left]), mask[row, np.uint64(k) + left]
            inside += marked
            within += value if marked else np.int32(0)
            total += value
    count, outside = rows * columns, total - within
    out[first + 1], out[first + 2] = inside / count, 0.0
    if 0 < inside < count:
        out[first + 2] = (within / inside - outside / (count - inside)) / 255.0


@part
def _quantile90(values: np.ndarray, n: int, highest: np.ndarray) -> float:
    """90 % quantile of the first n values; only those above it are put in order, in `highest`."""
    position = 0.9 * (n - 1)
    rank = int(position)
    wanted = n - rank
    for k in range(n):
        place = min(k, wanted)
        if place == wanted and values[k] <= highest[wanted - 1]:
            continue
        place = min(place, wanted - 1)
        while place > 0 and highest[place - 1] < values[k]:
            highest[place] = highest[place - 1]
            place -= 1
        highest[place] = values[k]
    after = highest[max(wanted - 2, 0)]
    return highest[wanted - 1] + (after - highest[wanted - 1]) * (position - rank)


@part
def _pool(
    n: int, table: np.ndarray, height: int, width: int, values: np.ndarray, room: np.ndarray, out: np.ndarray
) -> None:
    """Pool the nuclei of the patch and of its centre; the last column of the table takes their place in the centre."""
    top, left = (height - 32) // 2, (width - 32) // 2
    nearest, distance, central, cosine, sine, weight = 0, np.inf, 0, 0.0, 0.0, 0.0
    for k in range(n):
        row, column = table[k, 13], table[k, 14]
        inside = top <= row < top + 32 and left <= column < left + 32
        table[k, 17] = inside
        central += inside
        down, across = row - (height - 1) / 2.0, column - (width - 1) / 2.0
        away = down * down + across * across
        # of equals the larger one: its place in the list depends on how the patch lies
        if away < distance * (1.0 - 1e-9):
            nearest, distance = k, away
        cosine += table[k, 15]
        sine += table[k, 16]
        weight += table[k, 3]
    out[0], out[42] = n, central
    out[108] = max(1.0 - np.sqrt(cosine * cosine + sine * sine) / weight, 0.0) if weight > 0.0 else 0.0
    out[109] = np.sqrt(distance)
    for k in range(13):
        total, inner, highest = 0.0, 0.0, -np.inf
        for j in range(n):
            values[j] = table[j, k]
            total += values[j]
            if table[j, 17] > 0.0:
                inner += values[j]
                highest = max(highest, values[j])
        out[3 + 3 * k], out[4 + 3 * k] = total / n, _spread(values, n, total / n)
        out[5 + 3 * k] = _quantile90(values, n, room)
        out[47 + 3 * k] = values[nearest]
        if central > 0:
            out[45 + 3 * k], out[46 + 3 * k] = inner / central, highest
            if central < n:
                out[84 + k] = inner / central - (total - inner) / (n - central)


@kernel
def _nuclei_kernel(planes: np.ndarray, table: np.ndarray) -> None:
    n, height, width = planes.shape
    pixels = height * width
    smooth, lines = np.empty((height, width), np.int32), np.empty((height + 2, width + 4), np.int32)
    mask, seen = np.empty((height, width), np.bool_), np.empty((height + 2) * (width + 2), np.bool_)
    labels, border = np.empty((height, width), np.int32), np.empty((height + 2, width + 2), np.int32)
    for row in range(height + 2):
        for column in range(width + 2):
            border[row, column] = 0
    tops, places = np.empty((height, width), np.int32), np.empty((2, pixels), np.int32)
    sizes, starts = np.empty(pixels, np.int32), np.empty(pixels, np.int32)
    room = np.empty((5, 2 * height + 1), np.int64)
    most = pixels // _SMALLEST + 1
    whole, apart, values, others = np.empty((most, 18)), np.empty((most, most)), np.empty(most), np.empty(most)
    box, polygon, cut = np.empty(4), np.empty((3, most + 4)), np.empty((4, most + 4))
    box[0], box[1], box[2], box[3] = -0.5, height - 0.5, -0.5, width - 0.5
    for i in range(n):
        levels, out = planes[i], table[i]
        threshold = _fill_tops(levels, smooth, lines, mask, seen, tops, sizes)
        kept = _gather(tops, labels, mask, sizes, starts, places)
        _mark_border(labels, border)
        for number in range(kept):
            _measure(levels, labels, border, number, places, starts, room, whole)
        for region in range(2):
            rows, columns = (height, width) if region == 0 else (32, 32)
            _cover(levels, mask, rows, columns, out, 42 * region)
        out[97] = threshold / 255.0
        if kept > 0:
            _gaps(kept, whole, apart)
            _pool(kept, whole, height, width, values, others, out)
        if kept > 1:
            _tree(kept, apart, values, others, out[97:])
            _gabriel(kept, apart, whole[0, 11], out[97:])
            _cells(kept, whole, apart, box, sizes, polygon, cut, out[97:])


_OTSU = "Otsu (1979), IEEE Trans Syst Man Cybern 9(1):62-66"
_SHAPES = "Wolberg, Street & Mangasarian (1994), Cancer Lett 77(2-3):163-171"
_VORONOI = "Marcelpoil & Usson (1992), J Theor Biol 154(3):359-369"
_GABRIEL = "Gabriel & Sokal (1969), Syst Zool 18(3):259-278"
_POOL_WORDS = {
    "mean": "Mean",
    "spread": "Standard deviation",
    "q90": "90 % quantile",
    "max": "Maximum",
    "nearest": "Of the nucleus nearest the patch's middle,",
}


def _columns() -> Iterator[Column]:
    for region, pools in POOLS.items():
        end = f", {REGION_WORDS[region]}."
        if region != "contrast":
            for row in PATCH:
                yield Column(f"nuclei_{row.name}_absorbed_{region}", *row[1:4], row.words + end, _OTSU)
        for row in NUCLEUS:
            for pool in pools:
                low, high = row.low, row.high
                if pool == "spread":
                    low, high = 0, (row.high - row.low) / 2
                elif region == "contrast":
                    low, high = row.low - row.high, row.high - row.low
                words = f"{_POOL_WORDS[pool]} {'the' if pool == 'nearest' else 'over nuclei of the'} {row.words}"
                yield Column(
                    f"nuclei_{row.name}-{pool}_absorbed_{region}",
                    row.unit,
                    low,
                    high,
                    f"{words} (0 without nuclei){end}",
                    _SHAPES,
                )
    for row in GRAPH:
        reference = _VORONOI if row.name.startswith(("delaunay", "cell")) else _GABRIEL
        yield Column(f"nuclei_{row.name}_absorbed_whole", *row[1:4], f"{row.words}, whole patch.", reference)


COLUMNS = tuple(_columns())
