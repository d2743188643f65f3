"""Nuclei of a batch of patches: found on the light absorbed in red, measured one by one, pooled over a region."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import numba
import numpy as np

from features.column import REGION_WORDS, Column, Row
from features.stain import Planes

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

    The light absorbed in red (`features.stain.Planes.absorbed`), which is haematoxylin's doing, is smoothed with the
    binomial filter (1, 4, 6, 4, 1) / 16 both ways, borders reflected. A pixel is nuclear when it exceeds the mean of
    Otsu's threshold (`skimage.filters.threshold_otsu`) and the mean of the plane over the 25 × 25 pixels around, and
    level 31, so that pale nuclei beside dark ones are found, and blank and evenly stained patches have none. Holes of
    at most 16 pixels are filled (`skimage.morphology.remove_small_holes`). Touching nuclei are split: from each pixel
    one climbs the plane, smoothed four times, to the highest of the eight neighbours, and pixels that end on the same
    top are one nucleus (of equals the first in reading order is higher). Parts of at least 12 pixels are nuclei,
    measured as `skimage.measure.regionprops` does. A nucleus belongs to the centre when its centroid lies there. Two
    nuclei are neighbours in Gabriel's graph, a part of Delaunay's, when no third lies inside the circle that has their
    centroids as a diameter.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, 106), dtype float32
        By region: `PATCH`, then `NUCLEUS` by pool; `GRAPH` last. Without nuclei 0.

    References
    ----------
    Otsu (1979), IEEE Trans Syst Man Cybern 9(1):62-66.
    Wolberg, Street & Mangasarian (1994), Cancer Lett 77(2-3):163-171.
    Gabriel & Sokal (1969), Syst Zool 18(3):259-278.
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
    smooth, lines = np.empty((height, width), np.int32), np.empty((height, width + 4), np.int32)
    mask, seen = np.empty((height, width), np.bool_), np.empty((height + 2) * (width + 2), np.bool_)
    tops, places, starts = np.empty((3, height * width), np.int32)
    for levels, target in zip(planes.absorbed, labels, strict=True):
        _fill_tops(levels, smooth, lines, mask, seen, tops, places)
        _gather(tops, target, mask, starts, places)
    return labels


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _reflect(position: int, size: int) -> int:
    if position < 0:
        return -1 - position
    return position if position < size else 2 * size - 1 - position


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _smooth(plane: np.ndarray, lines: np.ndarray) -> None:
    """Binomial filter of levels times 256, in place and in whole numbers, rounded half up; `lines` is room."""
    height, width = plane.shape
    for row in range(height):
        line = lines[row]
        line[2 : width + 2] = plane[row]
        line[1], line[0], line[width + 2], line[width + 3] = line[2], line[3], line[width + 1], line[width]
        far, near, middle = line[:width], line[1 : width + 1], line[2 : width + 2]
        near2, far2, target = line[3 : width + 3], line[4 : width + 4], plane[row]
        for column in range(width):
            target[column] = 6 * middle[column] + 4 * (near[column] + near2[column]) + far[column] + far2[column]
    lines[:height, :width] = plane
    for row in range(height):
        up, down = lines[_reflect(row - 1, height)], lines[_reflect(row + 1, height)]
        up2, down2 = lines[_reflect(row - 2, height)], lines[_reflect(row + 2, height)]
        here, target = lines[row], plane[row]
        for column in range(width):
            total = 6 * here[column] + 4 * (up[column] + down[column]) + up2[column] + down2[column]
            target[column] = (total + 128) >> 8


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _otsu(plane: np.ndarray) -> int:
    """Otsu's threshold: the lower class ends with it. Sums are whole numbers, so equal splits are equal."""
    histogram = np.zeros(256, np.int64)
    for row in range(plane.shape[0]):
        for column in range(plane.shape[1]):
            histogram[(plane[row, column] + 128) >> 8] += 1
    count, total = 0, 0
    for level in range(256):
        count += histogram[level]
        total += level * histogram[level]
    # a constant plane has no split: its level is the threshold
    best, threshold = -1.0, (plane[0, 0] + 128) >> 8
    below, weight = 0, 0
    for level in range(255):
        below += histogram[level]
        weight += level * histogram[level]
        if histogram[level] == 0 or below == count:
            # an empty bin splits the pixels as the bin before it did: the first of equals stands
            continue
        apart = float(weight) / below - float(total - weight) / (count - below)
        between = float(below) * float(count - below) * apart * apart
        if between > best:
            best, threshold = between, level
    return threshold


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fill_mask(levels: np.ndarray, smooth: np.ndarray, threshold: int, mask: np.ndarray) -> None:
    """Mark pixels above the mean of the threshold and the mean level of the square around, borders reflected."""
    height, width = levels.shape
    sums = np.zeros(width + 2 * _REACH, np.int32)
    side = 2 * _REACH + 1
    for row in range(-_REACH, _REACH):
        line = levels[_reflect(row, height)]
        for column in range(width):
            sums[column + _REACH] += line[column]
    for row in range(height):
        enters = levels[_reflect(row + _REACH, height)]
        leaves = levels[_reflect(row - _REACH - 1, height)]
        for column in range(width):
            sums[column + _REACH] += enters[column]
            if row > 0:
                sums[column + _REACH] -= leaves[column]
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


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fill_holes(mask: np.ndarray, seen: np.ndarray, places: np.ndarray) -> None:
    """Fill parts of the background (diagonals do not count) of few pixels; `seen` is room for a rim around the mask."""
    height, width = mask.shape
    stride = width + 2
    steps = (-stride, stride, -1, 1)
    seen[:] = True
    for row in range(height):
        seen[(row + 1) * stride + 1 : (row + 1) * stride + 1 + width] = mask[row]
    for start in range(stride, seen.size - stride):
        if seen[start]:
            continue
        seen[start] = True
        places[0] = start
        found, done = 1, 0
        while done < found:
            here = places[done]
            done += 1
            for step in steps:
                if not seen[here + step]:
                    seen[here + step] = True
                    places[found] = here + step
                    found += 1
        if found <= _LARGEST_HOLE:
            for k in range(found):
                mask[places[k] // stride - 1, places[k] % stride - 1] = True


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _climb(mask: np.ndarray, heights: np.ndarray, tops: np.ndarray) -> None:
    """`tops[k]`: the pixel on which one ends who climbs from pixel k inside the mask; -1 outside."""
    height, width = mask.shape
    flat = heights.reshape(height * width)
    for row in range(height):
        for column in range(width):
            here = row * width + column
            tops[here] = -1
            if not mask[row, column]:
                continue
            best, level = here, flat[here]
            for r in range(max(row - 1, 0), min(row + 2, height)):
                for c in range(max(column - 1, 0), min(column + 2, width)):
                    k = r * width + c
                    # of equals the first in reading order is higher
                    if mask[r, c] and (flat[k] > level or (flat[k] == level and k < best)):
                        best, level = k, flat[k]
            tops[here] = best
    for k in range(tops.size):
        if tops[k] >= 0:
            top = tops[k]
            while tops[top] != top:
                top = tops[top]
            step = k
            while tops[step] != top:
                after = tops[step]
                tops[step] = top
                step = after


@numba.njit(cache=True, nogil=True, error_model="numpy")
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
    smooth[:] = levels
    smooth <<= 8
    _smooth(smooth, lines)
    threshold = _otsu(smooth)
    _fill_mask(levels, smooth, threshold, mask)
    _fill_holes(mask, seen, places)
    for _ in range(3):
        _smooth(smooth, lines)
    _climb(mask, smooth, tops)
    return threshold


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _gather(tops: np.ndarray, labels: np.ndarray, mask: np.ndarray, starts: np.ndarray, places: np.ndarray) -> int:
    """Give numbers to the parts that are large enough and list their pixels, in reading order; take the others away.

    Part k (labels k + 1) holds ``places[starts[k]:starts[k + 1]]``.
    """
    sizes = np.zeros(tops.size, np.int64)
    for k in range(tops.size):
        if tops[k] >= 0:
            sizes[tops[k]] += 1
    kept = 0
    starts[0] = 0
    for k in range(tops.size):
        if sizes[k] >= _SMALLEST:
            starts[kept + 1] = starts[kept] + sizes[k]
            kept += 1
            sizes[k] = -kept
    filled = starts[: kept + 1].copy()
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            k = row * mask.shape[1] + column
            label = max(-sizes[tops[k]], 0) if tops[k] >= 0 else 0
            labels[row, column] = label
            mask[row, column] = label > 0
            if label > 0:
                places[filled[label - 1]] = k
                filled[label - 1] += 1
    return kept


@numba.njit(cache=True, nogil=True, error_model="numpy")
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


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _perimeter(border: np.ndarray, label: int, width: int, places: np.ndarray) -> float:
    """Length of the line through the centres of the border pixels, as scikit-image estimates it."""
    straight, diagonal, mixed = 0, 0, 0
    for place in places:
        row, column = place // width + 1, place % width + 1
        if border[row, column] != label:
            continue
        sides = (
            np.int64(border[row - 1, column] == label)
            + np.int64(border[row + 1, column] == label)
            + np.int64(border[row, column - 1] == label)
            + np.int64(border[row, column + 1] == label)
        )
        corners = (
            np.int64(border[row - 1, column - 1] == label)
            + np.int64(border[row - 1, column + 1] == label)
            + np.int64(border[row + 1, column - 1] == label)
            + np.int64(border[row + 1, column + 1] == label)
        )
        code = 1 + 2 * sides + 10 * corners
        if code in (5, 7, 15, 17, 25, 27):
            straight += 1
        elif code in (21, 33):
            diagonal += 1
        elif code in (13, 23):
            mixed += 1
    return straight + np.sqrt(2.0) * diagonal + (1.0 + np.sqrt(2.0)) / 2.0 * mixed


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _first_columns(sides: np.ndarray, chain: np.ndarray, out: np.ndarray) -> None:
    """First pixel column on or right of the lower convex chain through the points (k, sides[k]).

    One for each pixel row (odd k); coordinates are doubled.
    """
    length = 0
    for k in range(sides.size):
        while length >= 2:
            a, b = chain[length - 2], chain[length - 1]
            if (sides[b] - sides[a]) * (k - a) >= (sides[k] - sides[a]) * (b - a):
                length -= 1
            else:
                break
        chain[length] = k
        length += 1
    edge = 0
    for row in range(out.size):
        k = 2 * row + 1
        while chain[edge + 1] < k:
            edge += 1
        a, b = chain[edge], chain[edge + 1]
        position = sides[a] * (b - a) + (sides[b] - sides[a]) * (k - a)
        out[row] = -((-position) // (2 * (b - a)))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _convex_area(left: np.ndarray, right: np.ndarray, room: np.ndarray) -> int:
    """Pixels whose centre lies in or on the hull of all edge midpoints of a part's pixels.

    `left` and `right` are the part's first and last column in each of its rows; `room` is (5, 2 rows + 1).
    """
    height = left.size
    lefts, rights, chain, first, last = room
    # k = 2 row + 1 are the pixel rows, even k the lines between them; the right side is mirrored
    for k in range(2 * height + 1):
        if k % 2:
            lefts[k], rights[k] = 2 * left[k // 2] - 1, -2 * right[k // 2] - 1
        else:
            above, below = max(k // 2 - 1, 0), min(k // 2, height - 1)
            lefts[k] = 2 * min(left[above], left[below])
            rights[k] = -2 * max(right[above], right[below])
    _first_columns(lefts[: 2 * height + 1], chain, first[:height])
    _first_columns(rights[: 2 * height + 1], chain, last[:height])
    area = 0
    for row in range(height):
        area += -last[row] - first[row] + 1
    return area


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _rim(levels: np.ndarray, labels: np.ndarray, box: tuple[int, int, int, int], level: float) -> float:
    """Level minus the mean of the pixels outside all nuclei in the box, 3 pixels wider; 0 when there are none."""
    height, width = labels.shape
    top, bottom, first, last = box
    total, count = 0, 0
    for row in range(max(top - 3, 0), min(bottom + 4, height)):
        for column in range(max(first - 3, 0), min(last + 4, width)):
            outside = labels[row, column] == 0
            total += levels[row, column] * outside
            count += outside
    return level - total / count if count > 0 else 0.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _measure(
    levels: np.ndarray,
    labels: np.ndarray,
    border: np.ndarray,
    label: int,
    places: np.ndarray,
    room: np.ndarray,
    out: np.ndarray,
) -> None:
    """`NUCLEUS` up to the rim of one part, then its centroid (row, column) and twice the angle of its major axis."""
    width = labels.shape[1]
    area = places.size
    top, bottom, first, last = places[0] // width, places[area - 1] // width, width, 0
    left, right = room[5, : bottom - top + 1], room[6, : bottom - top + 1]
    left[:] = width
    right[:] = -1
    sums = np.zeros(7, np.int64)
    for place in places:
        row, column = place // width, place % width
        level = np.int64(levels[row, column])
        first, last = min(first, column), max(last, column)
        left[row - top] = min(left[row - top], column)
        right[row - top] = max(right[row - top], column)
        r, c = row - top, column
        sums[0] += r
        sums[1] += c
        sums[2] += r * r
        sums[3] += c * c
        sums[4] += r * c
        sums[5] += level
        sums[6] += level * level
    # whole numbers up to here: exact variances
    down = (area * sums[2] - sums[0] * sums[0]) / (float(area) * area)
    across = (area * sums[3] - sums[1] * sums[1]) / (float(area) * area)
    mixed = (area * sums[4] - sums[0] * sums[1]) / (float(area) * area)
    grain = (area * sums[6] - sums[5] * sums[5]) / (float(area) * area)
    root = np.sqrt((across - down) ** 2 + 4.0 * mixed * mixed)
    long, short = (across + down + root) / 2.0, max((across + down - root) / 2.0, 0.0)
    perimeter = _perimeter(border, label, width, places)
    out[0], out[1] = area, perimeter
    # a lattice of pixels that touch by corners alone has no estimated perimeter
    out[2] = 4.0 * np.pi * area / (perimeter * perimeter) if perimeter > 0.0 else 0.0
    out[3], out[4] = np.sqrt(1.0 - short / long), area / _convex_area(left, right, room[:5])
    out[5] = area / ((bottom - top + 1) * (last - first + 1))
    out[6], out[7] = 4.0 * np.sqrt(long), 4.0 * np.sqrt(short)
    out[8], out[9] = sums[5] / area / 255.0, np.sqrt(grain) / 255.0
    out[10] = _rim(levels, labels, (top, bottom, first, last), sums[5] / area) / 255.0
    out[13], out[14] = top + sums[0] / area, sums[1] / area
    # twice the angle: cosine and sine, scaled by eccentricity
    out[15] = out[3] * (across - down) / root if root > 0.0 else 0.0
    out[16] = out[3] * 2.0 * mixed / root if root > 0.0 else 0.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _neighbours(table: np.ndarray, apart: np.ndarray, out: np.ndarray) -> None:
    """Gaps and crowds into the table, the trees' and Gabriel's statistics into out[1:7]; squared distances are room."""
    n = len(table)
    for i in range(n):
        nearest, crowd = np.inf, 0
        for j in range(n):
            distance = (table[i, 13] - table[j, 13]) ** 2 + (table[i, 14] - table[j, 14]) ** 2
            apart[i, j] = distance
            if i != j:
                nearest = min(nearest, distance)
                crowd += distance <= _NEAR * _NEAR
        table[i, 11], table[i, 12] = np.sqrt(nearest) if n > 1 else 0.0, crowd
    if n < 2:
        return
    _tree(n, apart, out)
    # lengths beyond a typical one, so that equal edges have a spread of exactly zero
    edges, total, squares, usual = 0, 0.0, 0.0, table[0, 11]
    for i in range(n):
        for j in range(i):
            limit = apart[i, j] * (1.0 - 1e-9)
            free = True
            for k in range(n):
                if apart[i, k] + apart[j, k] < limit:
                    free = False
                    break
            if free:
                beyond = np.sqrt(apart[i, j]) - usual
                edges += 1
                total += beyond
                squares += beyond * beyond
    mean = total / edges
    out[4], out[5], out[6] = usual + mean, np.sqrt(max(squares / edges - mean * mean, 0.0)), 2.0 * edges / n


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _tree(n: int, apart: np.ndarray, out: np.ndarray) -> None:
    """Mean, spread and maximum of the minimum spanning tree's edges, by Prim's algorithm, into out[1:4]."""
    nearest = apart[0, :n].copy()
    nearest[0] = -1.0
    edges = np.empty(n - 1)
    for k in range(n - 1):
        best, distance = -1, np.inf
        for j in range(n):
            if 0.0 <= nearest[j] < distance:
                best, distance = j, nearest[j]
        edges[k] = np.sqrt(distance)
        nearest[best] = -1.0
        for j in range(n):
            if nearest[j] >= 0.0:
                nearest[j] = min(nearest[j], apart[best, j])
    out[1], out[2], out[3] = edges.mean(), edges.std(), edges.max()


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _cover(levels: np.ndarray, mask: np.ndarray, top: int, left: int, height: int, width: int, out: np.ndarray) -> None:
    """Fraction covered, and mean level inside minus outside (0 when either is empty), of a box."""
    inside, within, outside = np.int64(0), np.int64(0), np.int64(0)
    for row in range(top, top + height):
        for column in range(left, left + width):
            level = np.int64(levels[row, column])
            marked = np.int64(mask[row, column])
            inside += marked
            within += level * marked
            outside += level
    outside -= within
    count = height * width
    out[1] = inside / count
    if 0 < inside < count:
        out[2] = (within / inside - outside / (count - inside)) / 255.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _quantile90(values: np.ndarray) -> float:
    values = np.sort(values)
    position = 0.9 * (values.size - 1)
    rank = int(position)
    after = min(rank + 1, values.size - 1)
    return values[rank] + (values[after] - values[rank]) * (position - rank)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _pool(table: np.ndarray, height: int, width: int, out: np.ndarray) -> None:
    """Pool the nuclei of the patch and of its centre; the last column of the table takes their place in the centre."""
    n = len(table)
    top, left = (height - 32) // 2, (width - 32) // 2
    nearest, distance, central, cosine, sine, weight = 0, np.inf, 0, 0.0, 0.0, 0.0
    for k in range(n):
        row, column = table[k, 13], table[k, 14]
        inside = top <= row < top + 32 and left <= column < left + 32
        table[k, 17] = inside
        central += inside
        away = (row - (height - 1) / 2.0) ** 2 + (column - (width - 1) / 2.0) ** 2
        # of equals the larger one: its place in the list depends on how the patch lies
        if away < distance * (1.0 - 1e-9):
            nearest, distance = k, away
        cosine += table[k, 15]
        sine += table[k, 16]
        weight += table[k, 3]
    out[0], out[42] = n, central
    graph = out[97:]
    graph[7] = max(1.0 - np.hypot(cosine, sine) / weight, 0.0) if weight > 0.0 else 0.0
    graph[8] = np.sqrt(distance)
    for k in range(13):
        values = table[:, k]
        total, inner, highest = 0.0, 0.0, -np.inf
        for j in range(n):
            total += values[j]
            if table[j, 17] > 0.0:
                inner += values[j]
                highest = max(highest, values[j])
        out[3 + 3 * k], out[4 + 3 * k], out[5 + 3 * k] = total / n, values.std(), _quantile90(values)
        out[47 + 3 * k] = values[nearest]
        if central > 0:
            out[45 + 3 * k], out[46 + 3 * k] = inner / central, highest
            if central < n:
                out[84 + k] = inner / central - (total - inner) / (n - central)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _nuclei_kernel(planes: np.ndarray, out: np.ndarray) -> None:
    n, height, width = planes.shape
    pixels = height * width
    smooth, lines = np.empty((height, width), np.int32), np.empty((height, width + 4), np.int32)
    mask, seen = np.empty((height, width), np.bool_), np.empty((height + 2) * (width + 2), np.bool_)
    labels, border = np.empty((height, width), np.int32), np.zeros((height + 2, width + 2), np.int32)
    tops, places, starts = np.empty(pixels, np.int32), np.empty(pixels, np.int32), np.empty(pixels, np.int32)
    room = np.empty((7, 2 * height + 1), np.int64)
    most = pixels // _SMALLEST + 1
    whole, apart = np.empty((most, 18)), np.empty((most, most))
    top, left = (height - 32) // 2, (width - 32) // 2
    for i in range(n):
        threshold = _fill_tops(planes[i], smooth, lines, mask, seen, tops, places)
        kept = _gather(tops, labels, mask, starts, places)
        _mark_border(labels, border)
        for k in range(kept):
            part = places[starts[k] : starts[k + 1]]
            _measure(planes[i], labels, border, k + 1, part, room, whole[k])
        _cover(planes[i], mask, 0, 0, height, width, out[i])
        _cover(planes[i], mask, top, left, 32, 32, out[i, 42:])
        out[i, 97] = threshold / 255.0
        if kept > 0:
            _neighbours(whole[:kept], apart, out[i, 97:])
            _pool(whole[:kept], height, width, out[i])


_OTSU = "Otsu (1979), IEEE Trans Syst Man Cybern 9(1):62-66"
_SHAPES = "Wolberg, Street & Mangasarian (1994), Cancer Lett 77(2-3):163-171"
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
        yield Column(f"nuclei_{row.name}_absorbed_whole", *row[1:4], f"{row.words}, whole patch.", _GABRIEL)


COLUMNS = tuple(_columns())
