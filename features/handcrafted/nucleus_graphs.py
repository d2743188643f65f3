"""Graphs of a patch's nuclei: gaps, minimum spanning tree, Gabriel's and Delaunay's graphs, and Voronoi cells."""

from __future__ import annotations

import numpy as np

from histoblend.features.handcrafted.kernel import part

NEAR = 20.0


@part
def standard_deviation(values: np.ndarray, count: int, mean: float) -> float:
    """Standard deviation of the first values."""
    total = 0.0
    for k in range(count):
        total += (values[k] - mean) * (values[k] - mean)
    return np.sqrt(total / count)


@part
def measure_gaps(n: int, table: np.ndarray, apart: np.ndarray) -> None:
    """Gaps and crowds into the table, and squared distances."""
    for i in range(n):
        nearest, crowd = np.inf, 0
        for j in range(n):
            down, across = table[i, 13] - table[j, 13], table[i, 14] - table[j, 14]
            distance = down * down + across * across
            apart[i, j] = distance
            if i != j:
                nearest = min(nearest, distance)
                crowd += distance <= NEAR * NEAR
        table[i, 11], table[i, 12] = np.sqrt(nearest) if n > 1 else 0.0, crowd


@part
def measure_tree(n: int, apart: np.ndarray, nearest: np.ndarray, edges: np.ndarray, out: np.ndarray) -> None:
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
    out[2] = standard_deviation(edges, n - 1, out[1])


@part
def measure_gabriel(n: int, apart: np.ndarray, usual: float, out: np.ndarray) -> None:
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
def measure_cells(
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
