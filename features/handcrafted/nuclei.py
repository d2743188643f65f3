"""Nucleus features of a batch of patches: shapes, pooled over a region, and graphs of the nuclei."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import numpy as np

from histoblend.data.kernel_cache import recompiled_with
from histoblend.features.handcrafted.channels import Planes
from histoblend.features.handcrafted.column import REGION_WORDS, Column, Row
from histoblend.features.handcrafted.kernel import inner_kernel, kernel
from histoblend.features.handcrafted.nuclei_segmentation import SMALLEST, find_nuclear_pixels, number_nuclei
from histoblend.features.handcrafted.nucleus_graphs import NEAR, SQUARE, measure_graphs, standard_deviation
from histoblend.features.handcrafted.nucleus_shape import classify_border, mark_border, measure_shape, sum_background

_FILES = ("nuclei_segmentation", "nucleus_graphs", "nucleus_shape")
_spanning_kernel, _spanning_inner_kernel = recompiled_with(kernel, *_FILES), recompiled_with(inner_kernel, *_FILES)

#: One number per region.
PATCH = (
    Row("count", "1", 0, inf, "Number of nuclei"),
    Row("fraction", "1", 0, 1, "Fraction of pixels covered by nuclei"),
    Row("contrast", "1", -1, 1, "Mean level inside nuclei minus mean level outside (0 if either is empty)"),
)
#: One number per nucleus, pooled over the nuclei of a region.
NUCLEUS = (
    Row("area", "px²", 0, inf, "area"),
    Row("perimeter", "px", 0, inf, "perimeter"),
    Row("circularity", "1", 0, inf, "circularity (4π area / perimeter²)"),
    Row("eccentricity", "1", 0, 1, "eccentricity (fitted ellipse)"),
    Row("solidity", "1", 0, 1, "solidity (area / area of the convex hull)"),
    Row("extent", "1", 0, 1, "extent (area / area of the bounding box)"),
    Row("major", "px", 0, inf, "major axis (fitted ellipse)"),
    Row("minor", "px", 0, inf, "minor axis (fitted ellipse)"),
    Row("intensity", "1", 0, 1, "intensity (mean level inside)"),
    Row("grain", "1", 0, 0.5, "chromatin contrast (standard deviation of the level inside)"),
    Row("rim", "1", -1, 1, "rim contrast (mean level inside minus mean background level within 3 px of its box)"),
    Row("gap", "px", 0, inf, "gap (centroid distance to the nearest other nucleus, 0 if alone)"),
    Row("crowd", "1", 0, inf, f"crowding (number of other nuclei within {NEAR:g} px)"),
)
#: One number per patch, mostly from graphs of the nuclei.
GRAPH = (
    Row("threshold", "1", 0, 1, "Otsu's threshold of the smoothed plane"),
    Row("tree-mean", "px", 0, inf, "Mean edge of the minimum spanning tree of the nuclei (0 below two nuclei)"),
    Row("tree-spread", "px", 0, inf, "Standard deviation of the edges of the minimum spanning tree"),
    Row("tree-max", "px", 0, inf, "Longest edge of the minimum spanning tree"),
    Row("gabriel-mean", "px", 0, inf, "Mean edge of the Gabriel graph of the nuclei (0 without edges)"),
    Row("gabriel-spread", "px", 0, inf, "Standard deviation of the edges of the Gabriel graph"),
    Row("gabriel-degree", "1", 0, inf, "Mean number of Gabriel neighbours of a nucleus"),
    Row("delaunay-mean", "px", 0, inf, "Mean edge of the Delaunay graph of the nuclei (0 without edges)"),
    Row("delaunay-spread", "px", 0, inf, "Standard deviation of the edges of the Delaunay graph"),
    Row("delaunay-max", "px", 0, inf, "Longest edge of the Delaunay graph"),
    Row("cell-disorder", "1", 0, 1, "Area disorder of Voronoi cells, 1 − 1 / (1 + spread / mean) (0 below two nuclei)"),
    Row("orientation", "1", 0, 1, "Spread of the major axis directions, weighted by eccentricity (0 without nuclei)"),
    Row("central-gap", "px", 0, inf, "Distance from the patch middle to the nearest centroid (0 without nuclei)"),
)
#: How each region pools `NUCLEUS`.
POOLS = {
    "whole": ("mean", "spread", "q90"),
    "centre": ("mean", "max", "nearest"),
    "contrast": ("mean",),
}
_WIDTH = len(NUCLEUS)


def nuclei(planes: Planes) -> np.ndarray:
    """Segment nuclei and measure their number, cover, spacing, size, shape and stain.

    Segmentation uses the light absorbed in red (`channels.Planes.absorbed`), which haematoxylin dominates. The plane is
    smoothed with the binomial filter (1, 4, 6, 4, 1) / 16 in both directions, borders reflected. A pixel is nuclear if
    it exceeds level 31 and the mean of two values: Otsu's threshold (`skimage.filters.threshold_otsu`) and the mean of
    the plane over the surrounding 25 × 25 pixels. This finds pale nuclei beside dark ones, and none in blank or evenly
    stained patches. Holes of at most 16 pixels are filled (`skimage.morphology.remove_small_holes`).

    Touching nuclei are split by hill climbing on the plane, smoothed four times. From each pixel, the climb moves to
    the highest of the eight neighbours. Pixels that end at the same peak form one nucleus. Among equal levels, the
    first in reading order counts as higher. Segments of at least 12 pixels are nuclei. They are measured as by
    `skimage.measure.regionprops`. A nucleus belongs to the centre if its centroid is inside it.

    The Gabriel graph joins two nuclei if no third centroid is inside the circle whose diameter joins their centroids.
    The Voronoi cell of a nucleus is the part of the patch that is nearer to its centroid than to any other. The
    Delaunay graph joins two nuclei if their cells share a side longer than a millionth of a pixel. This leaves out
    nuclei whose cells meet only outside the patch, and does not depend on how ties are broken.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, 110), dtype float32
        Per region: `PATCH`, then `NUCLEUS` by pool. `GRAPH` is last. Without nuclei, measures of nuclei are 0.

    References
    ----------
    Otsu (1979), IEEE Trans Syst Man Cybern 9(1):62-66.
    Wolberg, Street & Mangasarian (1994), Cancer Lett 77(2-3):163-171.
    Gabriel & Sokal (1969), Syst Zool 18(3):259-278.
    Marcelpoil & Usson (1992), J Theor Biol 154(3):359-369 (Voronoi cells).
    """
    out = np.zeros((len(planes), len(COLUMNS)))
    _nuclei_kernel(planes.absorbed, out)
    return out.astype(np.float32)


@inner_kernel
def _cover(levels: np.ndarray, mask: np.ndarray, rows: int, columns: int, out: np.ndarray, offset: int) -> None:
    """Write the fraction covered, and the mean level inside minus outside (0 if either is empty), of a central box."""
    height, width = levels.shape
    nuclear, level_inside, level_total = 0, np.int64(0), np.int64(0)
    left = np.uint64((width - columns) // 2)
    for row in range((height - rows) // 2, (height - rows) // 2 + rows):
        for k in range(columns):
            value, is_nuclear = np.int32(levels[row, np.uint64(k) + left]), mask[row, np.uint64(k) + left]
            nuclear += is_nuclear
            level_inside += value if is_nuclear else np.int32(0)
            level_total += value
    count, level_outside = rows * columns, level_total - level_inside
    out[offset + 1], out[offset + 2] = nuclear / count, 0.0
    if 0 < nuclear < count:
        out[offset + 2] = (level_inside / nuclear - level_outside / (count - nuclear)) / 255.0


@inner_kernel
def _quantile90(values: np.ndarray, n: int, highest: np.ndarray) -> float:
    """90 % quantile of the first n values. Only the highest values are sorted, into `highest`."""
    rank_position = 0.9 * (n - 1)
    rank = int(rank_position)
    size = n - rank
    for k in range(n):
        position = min(k, size)
        if position == size and values[k] <= highest[size - 1]:
            continue
        position = min(position, size - 1)
        while position > 0 and highest[position - 1] < values[k]:
            highest[position] = highest[position - 1]
            position -= 1
        highest[position] = values[k]
    after = highest[max(size - 2, 0)]
    return highest[size - 1] + (after - highest[size - 1]) * (rank_position - rank)


@_spanning_inner_kernel
def _pool_nuclei(
    n: int, table: np.ndarray, height: int, width: int, values: np.ndarray, scratch: np.ndarray, out: np.ndarray
) -> None:
    """Pool the nuclei of the patch and of its centre. The last table column records which are in the centre."""
    top, left = (height - 32) // 2, (width - 32) // 2
    nearest, nearest_distance, central, cosine, sine, weight = 0, np.inf, 0, 0.0, 0.0, 0.0
    for k in range(n):
        row, column = table[k, 13], table[k, 14]
        inside = top <= row < top + 32 and left <= column < left + 32
        table[k, 17] = inside
        central += inside
        down, across = row - (height - 1) / 2.0, column - (width - 1) / 2.0
        squared_distance = down * down + across * across
        # the tolerance gives ties to the first nucleus, independent of rounding
        if squared_distance < nearest_distance * (1.0 - 1e-9):
            nearest, nearest_distance = k, squared_distance
        cosine += table[k, 15]
        sine += table[k, 16]
        weight += table[k, 3]
    out[0], out[42] = n, central
    out[108] = max(1.0 - np.sqrt(cosine * cosine + sine * sine) / weight, 0.0) if weight > 0.0 else 0.0
    out[109] = np.sqrt(nearest_distance)
    for k in range(13):
        total, central_total, highest = 0.0, 0.0, -np.inf
        for j in range(n):
            values[j] = table[j, k]
            total += values[j]
            if table[j, 17] > 0.0:
                central_total += values[j]
                highest = max(highest, values[j])
        out[3 + 3 * k], out[4 + 3 * k] = total / n, standard_deviation(values, n, total / n)
        out[5 + 3 * k] = _quantile90(values, n, scratch)
        out[47 + 3 * k] = values[nearest]
        if central > 0:
            out[45 + 3 * k], out[46 + 3 * k] = central_total / central, highest
            if central < n:
                out[84 + k] = central_total / central - (total - central_total) / (n - central)


@_spanning_kernel
def _nuclei_kernel(planes: np.ndarray, table: np.ndarray) -> None:
    n, height, width = planes.shape
    pixels = height * width
    smooth, lines = np.empty((height, width), np.int32), np.empty((height + 2, width + 4), np.int32)
    mask, visited = np.empty((height, width), np.bool_), np.empty((height + 2) * (width + 2), np.bool_)
    labels, border = np.empty((height, width), np.int32), np.empty((height + 2, width + 2), np.int32)
    for row in range(height + 2):
        for column in range(width + 2):
            border[row, column] = 0
    kinds, background = np.empty((height, width), np.uint8), np.empty((height + 1, width + 1), np.int64)
    column_sums = np.empty(width + 1, np.int64)
    uphill, coordinates = np.empty((height, width), np.uint32), np.empty((2, pixels), np.int32)
    listed, sizes, starts = np.empty(pixels, np.uint32), np.empty(pixels, np.int32), np.empty(pixels, np.int32)
    scratch = np.empty((5, 2 * height + 1), np.int64)
    most_nuclei = pixels // SMALLEST + 1
    measures, values, more_values = np.empty((most_nuclei, 18)), np.empty(most_nuclei), np.empty(most_nuclei)
    squares = np.empty(((height - 1) // SQUARE + 1) * ((width - 1) // SQUARE + 1) + 1, np.int64)
    members, near = np.empty((3, most_nuclei), np.int64), np.empty((3, most_nuclei))
    polygon, clipped = np.empty((3, most_nuclei + 4)), np.empty((4, most_nuclei + 4))
    # edges of a Gabriel graph hardly cross, so there are far fewer than pixels
    edges, lengths, sums = np.empty((2, pixels), np.int64), np.empty(pixels), np.empty((2, 5))
    for i in range(n):
        levels, out = planes[i], table[i]
        threshold = find_nuclear_pixels(levels, smooth, lines, mask, visited, uphill, sizes)
        count = number_nuclei(uphill, labels, mask, listed, sizes, starts, coordinates)
        mark_border(labels, border)
        classify_border(border, kinds)
        sum_background(levels, labels, column_sums, background)
        for number in range(count):
            measure_shape(levels, kinds, background, number, coordinates, starts, scratch, measures)
        for region in range(2):
            rows, columns = (height, width) if region == 0 else (32, 32)
            _cover(levels, mask, rows, columns, out, 42 * region)
        out[97] = threshold / 255.0
        if count > 0:
            measure_graphs(
                count, measures, height, width, squares, members, near, polygon, clipped, edges, lengths, sums, out[97:]
            )
            _pool_nuclei(count, measures, height, width, values, more_values, out)


_OTSU = "Otsu (1979), IEEE Trans Syst Man Cybern 9(1):62-66"
_SHAPES = "Wolberg, Street & Mangasarian (1994), Cancer Lett 77(2-3):163-171"
_VORONOI = "Marcelpoil & Usson (1992), J Theor Biol 154(3):359-369"
_GABRIEL = "Gabriel & Sokal (1969), Syst Zool 18(3):259-278"
_POOL_WORDS = {
    "mean": "mean {} of nuclei",
    "spread": "standard deviation of the {} of nuclei",
    "q90": "90 % quantile of the {} of nuclei",
    "max": "maximum {} of nuclei",
    "nearest": "{} of the nucleus nearest to the middle of the patch",
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
                words = _POOL_WORDS[pool].format(row.words)
                yield Column(
                    f"nuclei_{row.name}-{pool}_absorbed_{region}",
                    row.unit,
                    low,
                    high,
                    f"{words[0].upper()}{words[1:]} (0 without nuclei){end}",
                    _SHAPES,
                )
    for row in GRAPH:
        reference = _VORONOI if row.name.startswith(("delaunay", "cell")) else _GABRIEL
        yield Column(f"nuclei_{row.name}_absorbed_whole", *row[1:4], f"{row.words}, whole patch.", reference)


COLUMNS = tuple(_columns())
