"""Graphs of the nuclei of a patch: gaps, minimum spanning tree, Gabriel and Delaunay graphs, and Voronoi cells."""

from __future__ import annotations

from typing import Any

import numpy as np

from histoblend.features.handcrafted.kernel import inner_kernel

NEAR = 20.0


@inner_kernel
def standard_deviation(values: np.ndarray, count: int, mean: float) -> float:
    """Standard deviation of the first `count` values."""
    total = 0.0
    for k in range(count):
        total += (values[k] - mean) * (values[k] - mean)
    return np.sqrt(total / count)


@inner_kernel
def measure_gaps(n: int, table: np.ndarray, distances: np.ndarray) -> None:
    """Write gaps and crowding into the table, and squared distances into `distances`."""
    for i in range(n):
        nearest, crowd = np.inf, 0
        for j in range(n):
            down, across = table[i, 13] - table[j, 13], table[i, 14] - table[j, 14]
            distance = down * down + across * across
            distances[i, j] = distance
            if i != j:
                nearest = min(nearest, distance)
                crowd += distance <= NEAR * NEAR
        table[i, 11], table[i, 12] = np.sqrt(nearest) if n > 1 else 0.0, crowd


@inner_kernel
def measure_tree(n: int, distances: np.ndarray, nearest: np.ndarray, edges: np.ndarray, out: np.ndarray) -> None:
    """Write mean, spread and maximum of the minimum spanning tree's edges (Prim's algorithm) into out[1:4]."""
    for j in range(n):
        nearest[j] = distances[0, j]
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
            nearest[j] = min(nearest[j], distances[best, j])
    out[1], out[3] = total / (n - 1), longest
    out[2] = standard_deviation(edges, n - 1, out[1])


@inner_kernel
def measure_gabriel(n: int, distances: np.ndarray, typical: float, out: np.ndarray) -> None:
    """Write mean and spread of the Gabriel edges, and the mean number of neighbours, into out[4:7]."""
    # lengths relative to a typical one, so that equal edges have a spread of exactly zero
    edges, total, squares = 0, 0.0, 0.0
    for i in range(n):
        blocker = 0
        for j in range(i):
            limit = distances[i, j] * (1.0 - 1e-9)
            # the nucleus that blocked the previous edge of i often blocks this one too
            if distances[i, blocker] + distances[j, blocker] < limit:
                continue
            joined = True
            for k in range(n):
                if distances[i, k] + distances[j, k] < limit:
                    joined, blocker = False, k
                    break
            if joined:
                excess = np.sqrt(distances[i, j]) - typical
                edges += 1
                total += excess
                squares += excess * excess
    mean = total / edges
    out[4], out[5], out[6] = typical + mean, np.sqrt(max(squares / edges - mean * mean, 0.0)), 2.0 * edges / n


@inner_kernel
def _clip(polygon: np.ndarray, clipped: np.ndarray, corners: int, down: float, across: float, owner: int) -> int:
    """Cut off the part of the polygon nearer to (down, across) than to the origin; return the number of corners.

    The rows of `polygon` are the corners' rows and columns, and for the side from each corner to the next, the nucleus
    on its other side (or -1). `clipped` is scratch memory.
    """
    half = (down * down + across * across) / 2.0
    farthest = -np.inf
    for k in range(corners):
        clipped[3, k] = polygon[0, k] * down + polygon[1, k] * across - half
        farthest = max(farthest, clipped[3, k])
    # keep corners that are past the line only by rounding
    if farthest <= 1e-12 * half:
        return corners
    kept = 0
    for k in range(corners):
        after = k + 1 if k + 1 < corners else 0
        here, there = clipped[3, k], clipped[3, after]
        if here <= 0.0:
            clipped[0, kept], clipped[1, kept], clipped[2, kept] = polygon[0, k], polygon[1, k], polygon[2, k]
            kept += 1
        if (here <= 0.0) != (there <= 0.0):
            share = here / (here - there)
            clipped[0, kept] = polygon[0, k] + share * (polygon[0, after] - polygon[0, k])
            clipped[1, kept] = polygon[1, k] + share * (polygon[1, after] - polygon[1, k])
            # the new side begins where the outline leaves the kept part
            clipped[2, kept] = owner if here <= 0.0 else polygon[2, k]
            kept += 1
    for k in range(kept):
        polygon[0, k], polygon[1, k], polygon[2, k] = clipped[0, k], clipped[1, k], clipped[2, k]
    return kept


@inner_kernel
def _cell(
    n: int,
    i: int,
    table: np.ndarray,
    distances: np.ndarray,
    box: np.ndarray,
    nearest: np.ndarray,
    polygon: np.ndarray,
    clipped: np.ndarray,
) -> int:
    """Write the Voronoi cell of nucleus i within the box, relative to its centroid; return its number of corners.

    `nearest` is scratch memory for four numbers.
    """
    for k in range(4):
        polygon[0, k] = (box[0] if k in (0, 3) else box[1]) - table[i, 13]
        polygon[1, k] = (box[2] if k < 2 else box[3]) - table[i, 14]
        polygon[2, k] = -1.0
    for quadrant in range(4):
        nearest[quadrant] = -1
    for j in range(n):
        down, across = table[j, 13] > table[i, 13], table[j, 14] > table[i, 14]
        quadrant = 2 * down + across
        if distances[i, j] > 0.0 and (nearest[quadrant] < 0 or distances[i, j] < distances[i, nearest[quadrant]]):
            nearest[quadrant] = j
    corners: Any = np.int64(4)
    farthest = np.inf
    # the nearest nucleus in each quadrant first, because these make most others irrelevant
    for attempt in range(n + 4):
        j = nearest[attempt] if attempt < 4 else attempt - 4
        if j < 0 or distances[i, j] >= 4.0 * farthest or distances[i, j] == 0.0:
            continue
        if attempt >= 4 and (j == nearest[0] or j == nearest[1] or j == nearest[2] or j == nearest[3]):
            continue
        corners = _clip(polygon, clipped, corners, table[j, 13] - table[i, 13], table[j, 14] - table[i, 14], j)
        farthest = 0.0
        for k in range(corners):
            farthest = max(farthest, polygon[0, k] * polygon[0, k] + polygon[1, k] * polygon[1, k])
    return corners


@inner_kernel
def measure_cells(
    n: int,
    table: np.ndarray,
    distances: np.ndarray,
    box: np.ndarray,
    nearest: np.ndarray,
    polygon: np.ndarray,
    clipped: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write mean, spread and maximum of the Delaunay edges, and the disorder of the cell areas, into out[7:11].

    `box` is the outline of the patch: first and last row and column, at the outer edges of the pixels.
    """
    # lengths relative to a typical one, so that equal edges have a spread of exactly zero
    edges, total, squares, longest, typical = 0, 0.0, 0.0, 0.0, table[0, 11]
    mean_area, area_squares = (box[1] - box[0]) * (box[3] - box[2]) / n, 0.0
    for i in range(n):
        corners, area = _cell(n, i, table, distances, box, nearest, polygon, clipped), 0.0
        for k in range(corners):
            after = k + 1 if k + 1 < corners else 0
            area += (polygon[0, k] * polygon[1, after] - polygon[0, after] * polygon[1, k]) / 2.0
            down, across = polygon[0, after] - polygon[0, k], polygon[1, after] - polygon[1, k]
            neighbour = int(polygon[2, k])
            # count each edge once
            if neighbour > i and down * down + across * across > 1e-12:
                length = np.sqrt(distances[i, neighbour])
                edges += 1
                longest = max(longest, length)
                total += length - typical
                squares += (length - typical) * (length - typical)
        area_squares += (abs(area) - mean_area) * (abs(area) - mean_area)
    spread = np.sqrt(area_squares / n) / mean_area
    out[10] = 1.0 - 1.0 / (1.0 + spread)
    if edges > 0:
        mean = total / edges
        out[7], out[8], out[9] = typical + mean, np.sqrt(max(squares / edges - mean * mean, 0.0)), longest
