"""Nuclei of a batch of patches: measured one by one and in their graphs, and pooled over a region."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import numpy as np

from histoblend.data.kernel_cache import tied
from histoblend.features.handcrafted.channels import Planes
from histoblend.features.handcrafted.column import REGION_WORDS, Column, Row
from histoblend.features.handcrafted.kernel import kernel, part
from histoblend.features.handcrafted.nuclei_segmentation import SMALLEST, fill_tops, gather_pixels
from histoblend.features.handcrafted.nucleus_graphs import (
    NEAR,
    measure_cells,
    measure_gabriel,
    measure_gaps,
    measure_tree,
    standard_deviation,
)
from histoblend.features.handcrafted.nucleus_shape import mark_border, measure_shape

_FILES = ("nuclei_segmentation", "nucleus_graphs", "nucleus_shape")
_spanning_kernel, _spanning_part = tied(kernel, *_FILES), tied(part, *_FILES)

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
    Row("crowd", "1", 0, inf, f"number of other nuclei within {NEAR:g} px"),
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


@_spanning_part
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
        out[3 + 3 * k], out[4 + 3 * k] = total / n, standard_deviation(values, n, total / n)
        out[5 + 3 * k] = _quantile90(values, n, room)
        out[47 + 3 * k] = values[nearest]
        if central > 0:
            out[45 + 3 * k], out[46 + 3 * k] = inner / central, highest
            if central < n:
                out[84 + k] = inner / central - (total - inner) / (n - central)


@_spanning_kernel
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
    most = pixels // SMALLEST + 1
    whole, apart, values, others = np.empty((most, 18)), np.empty((most, most)), np.empty(most), np.empty(most)
    box, polygon, cut = np.empty(4), np.empty((3, most + 4)), np.empty((4, most + 4))
    box[0], box[1], box[2], box[3] = -0.5, height - 0.5, -0.5, width - 0.5
    for i in range(n):
        levels, out = planes[i], table[i]
        threshold = fill_tops(levels, smooth, lines, mask, seen, tops, sizes)
        kept = gather_pixels(tops, labels, mask, sizes, starts, places)
        mark_border(labels, border)
        for number in range(kept):
            measure_shape(levels, labels, border, number, places, starts, room, whole)
        for region in range(2):
            rows, columns = (height, width) if region == 0 else (32, 32)
            _cover(levels, mask, rows, columns, out, 42 * region)
        out[97] = threshold / 255.0
        if kept > 0:
            measure_gaps(kept, whole, apart)
            _pool(kept, whole, height, width, values, others, out)
        if kept > 1:
            measure_tree(kept, apart, values, others, out[97:])
            measure_gabriel(kept, apart, whole[0, 11], out[97:])
            measure_cells(kept, whole, apart, box, sizes, polygon, cut, out[97:])


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
