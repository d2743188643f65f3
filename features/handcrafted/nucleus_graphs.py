"""Graphs of the nuclei of a patch: gaps, minimum spanning tree, Gabriel and Delaunay graphs, and Voronoi cells.

Each nucleus looks for neighbours only as far as its Voronoi cell requires, so the cost is proportional to the number of
nuclei.
"""

from __future__ import annotations

import numpy as np

from histoblend.features.handcrafted.kernel import inner_kernel

NEAR = 20.0
#: Side of the squares into which centroids are sorted, in pixels.
SQUARE = 10
#: Neighbours are first looked for within this distance; few Voronoi cells require more.
_REACH = 30.0


@inner_kernel
def standard_deviation(values: np.ndarray, count: int, mean: float) -> float:
    """Standard deviation of the first `count` values."""
    total = 0.0
    for k in range(count):
        total += (values[k] - mean) * (values[k] - mean)
    return np.sqrt(total / count)


@inner_kernel
def _sort_into_squares(n: int, table: np.ndarray, columns: int, starts: np.ndarray, order: np.ndarray) -> None:
    """List the nuclei by the square of their centroid: square k has the nuclei ``order[starts[k]:starts[k + 1]]``.

    `columns` is the number of squares in a row.
    """
    for k in range(starts.size):
        starts[k] = 0
    for i in range(n):
        starts[int(table[i, 13]) // SQUARE * columns + int(table[i, 14]) // SQUARE] += 1
    for k in range(1, starts.size):
        starts[k] += starts[k - 1]
    for i in range(n - 1, -1, -1):
        square = int(table[i, 13]) // SQUARE * columns + int(table[i, 14]) // SQUARE
        starts[square] -= 1
        order[starts[square]] = i


@inner_kernel
def _list_neighbours(
    i: int,
    reach: float,
    table: np.ndarray,
    rows: int,
    columns: int,
    starts: np.ndarray,
    order: np.ndarray,
    members: np.ndarray,
    near: np.ndarray,
) -> int:
    """List all other nuclei within reach of nucleus i; return how many.

    Their numbers are written into `members`, and their offsets down and across and squared distances into `near`.
    """
    row, column, count = table[i, 13], table[i, 14], 0
    top, bottom = int(max(row - reach, 0.0)) // SQUARE, min(int(row + reach) // SQUARE, rows - 1)
    left, right = int(max(column - reach, 0.0)) // SQUARE, min(int(column + reach) // SQUARE, columns - 1)
    for square in range(top * columns, bottom * columns + 1, columns):
        for k in range(starts[square + left], starts[square + right + 1]):
            down, across = table[order[k], 13] - row, table[order[k], 14] - column
            members[count] = order[k]
            near[0, count], near[1, count], near[2, count] = down, across, down * down + across * across
            # the next one overwrites those beyond reach and nucleus i itself
            count += (near[2, count] <= reach * reach) & (order[k] != i)
    return count


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
def _cut_cell(
    count: int, members: np.ndarray, near: np.ndarray, polygon: np.ndarray, clipped: np.ndarray, corners: int
) -> tuple[int, float]:
    """Cut the polygon down to the part that is nearer to nucleus i than to any of its neighbours.

    Returns its number of corners and the squared distance of the farthest corner.
    """
    farthest = np.inf
    # near nuclei first, because these make most others irrelevant
    for attempt in range(2):
        for k in range(count):
            is_near = near[2, k] < NEAR * NEAR / 2.0
            if is_near != (attempt == 0) or near[2, k] >= 4.0 * farthest or near[2, k] == 0.0:
                continue
            corners = _clip(polygon, clipped, corners, near[0, k], near[1, k], members[k])
            farthest = 0.0
            for corner in range(corners):
                row, column = polygon[0, corner], polygon[1, corner]
                farthest = max(farthest, row * row + column * column)
    return corners, farthest


@inner_kernel
def _add_edge(sums: np.ndarray, graph: int, length: float) -> None:
    """Add an edge to the sums of a graph: number, first length, sums of excess and squared excess, longest."""
    # excess over the first length, so that equal edges have a spread of exactly zero
    if sums[graph, 0] == 0.0:
        sums[graph, 1] = length
    excess = length - sums[graph, 1]
    sums[graph, 0] += 1.0
    sums[graph, 2] += excess
    sums[graph, 3] += excess * excess
    sums[graph, 4] = max(sums[graph, 4], length)


@inner_kernel
def _add_gabriel_edges(
    i: int,
    count: int,
    farthest: float,
    members: np.ndarray,
    near: np.ndarray,
    edges: np.ndarray,
    lengths: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Add the Gabriel edges of nucleus i to lower nuclei to the sums, and list their ends and squared lengths."""
    for k in range(count):
        # the middle of an edge is in the cells of both ends
        if members[k] > i or near[2, k] > 4.0 * farthest:
            continue
        joined, inside = True, -0.5e-9 * near[2, k]
        for other in range(count):
            # the circle is where the directions to both ends are at right angles
            if near[2, other] - (near[0, other] * near[0, k] + near[1, other] * near[1, k]) < inside:
                joined = False
                break
        if joined:
            edge = int(sums[0, 0])
            edges[0, edge], edges[1, edge], lengths[edge] = i, members[k], near[2, k]
            _add_edge(sums, np.int64(0), np.sqrt(near[2, k]))


@inner_kernel
def _root(trees: np.ndarray, i: int) -> int:
    """First nucleus of the tree that contains nucleus i."""
    while trees[i] != i:
        trees[i] = trees[trees[i]]
        i = trees[i]
    return i


@inner_kernel
def _measure_tree(
    n: int,
    count: int,
    edges: np.ndarray,
    lengths: np.ndarray,
    trees: np.ndarray,
    shortest: np.ndarray,
    chosen: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write mean, spread and maximum of the minimum spanning tree's edges into out[1:4].

    All of them are Gabriel edges. Borůvka's algorithm: every tree is joined to another by its shortest edge, until one
    tree remains.
    """
    for i in range(n):
        trees[i] = i
    before, joined, total, longest = np.int64(-1), np.int64(0), 0.0, 0.0
    while before < joined < n - 1:
        before = joined
        for i in range(n):
            shortest[i] = -1
        for edge in range(count):
            first, second = _root(trees, edges[0, edge]), _root(trees, edges[1, edge])
            if first != second:
                # of equal edges the first, so that no circle is closed
                if shortest[first] < 0 or lengths[edge] < lengths[shortest[first]]:
                    shortest[first] = edge
                if shortest[second] < 0 or lengths[edge] < lengths[shortest[second]]:
                    shortest[second] = edge
        for i in range(n):
            if shortest[i] >= 0:
                first, second = _root(trees, edges[0, shortest[i]]), _root(trees, edges[1, shortest[i]])
                if first != second:
                    trees[second] = first
                    chosen[joined] = np.sqrt(lengths[shortest[i]])
                    total += chosen[joined]
                    longest = max(longest, chosen[joined])
                    joined += 1
    out[1], out[3] = total / joined, longest
    out[2] = standard_deviation(chosen, joined, out[1])


@inner_kernel
def measure_graphs(
    n: int,
    table: np.ndarray,
    height: int,
    width: int,
    starts: np.ndarray,
    members: np.ndarray,
    near: np.ndarray,
    polygon: np.ndarray,
    clipped: np.ndarray,
    edges: np.ndarray,
    lengths: np.ndarray,
    sums: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write gaps and crowding into the table, and all measures of graphs into out[1:11].

    All arrays from `starts` to `sums` are scratch memory: `starts` for all squares and one more, `members` (3, n) and
    `near` (3, n) for neighbours, `polygon` (3, n + 4) and `clipped` (4, n + 4), and `edges` (2, m) and `lengths` (m,)
    for at most m Gabriel edges.
    """
    rows, columns = (height - 1) // SQUARE + 1, (width - 1) // SQUARE + 1
    order = members[1]
    _sort_into_squares(n, table, columns, starts, order)
    for k in range(5):
        sums[0, k], sums[1, k] = 0.0, 0.0
    mean_area, area_squares = float(height * width) / n, 0.0
    for i in range(n):
        for k in range(4):
            # the outer edges of the patch's pixels
            polygon[0, k] = (-0.5 if k in (0, 3) else height - 0.5) - table[i, 13]
            polygon[1, k] = (-0.5 if k < 2 else width - 0.5) - table[i, 14]
            polygon[2, k] = -1.0
        reach, farthest, count, corners = 0.0, _REACH * _REACH / 4.0, np.int64(0), np.int64(4)
        # at most two rounds, because a larger reach can only make the cell smaller
        while 2.0 * np.sqrt(farthest) > reach:
            reach = 2.0 * np.sqrt(farthest)
            count = _list_neighbours(i, reach, table, rows, columns, starts, order, members[0], near)
            corners, farthest = _cut_cell(count, members[0], near, polygon, clipped, corners)
            # without neighbours, the reach becomes that of the whole patch; the factor is for rounding
            farthest = min(farthest * (1.0 + 1e-6), float(height * height + width * width))
        nearest, crowd, area = np.inf, 0, 0.0
        for k in range(count):
            nearest = min(nearest, near[2, k])
            crowd += near[2, k] <= NEAR * NEAR
        table[i, 11], table[i, 12] = np.sqrt(nearest) if n > 1 else 0.0, crowd
        for k in range(corners):
            after = k + 1 if k + 1 < corners else 0
            area += (polygon[0, k] * polygon[1, after] - polygon[0, after] * polygon[1, k]) / 2.0
            down, across = polygon[0, after] - polygon[0, k], polygon[1, after] - polygon[1, k]
            neighbour = int(polygon[2, k])
            # count each edge once
            if neighbour > i and down * down + across * across > 1e-12:
                down, across = table[neighbour, 13] - table[i, 13], table[neighbour, 14] - table[i, 14]
                _add_edge(sums, np.int64(1), np.sqrt(down * down + across * across))
        area_squares += (abs(area) - mean_area) * (abs(area) - mean_area)
        _add_gabriel_edges(i, count, farthest, members[0], near, edges, lengths, sums)
    if n > 1:
        _measure_tree(n, int(sums[0, 0]), edges, lengths, members[0], members[2], near[0], out)
        for graph in range(2):
            if sums[graph, 0] > 0.0:
                mean = sums[graph, 2] / sums[graph, 0]
                spread = np.sqrt(max(sums[graph, 3] / sums[graph, 0] - mean * mean, 0.0))
                out[4 + 3 * graph], out[5 + 3 * graph] = sums[graph, 1] + mean, spread
        out[6], out[9] = 2.0 * sums[0, 0] / n, sums[1, 4]
        spread = np.sqrt(area_squares / n) / mean_area
        out[10] = 1.0 - 1.0 / (1.0 + spread)
