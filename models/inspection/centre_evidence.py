"""Share of an evidence map inside the centre of the patch."""

from __future__ import annotations

import numpy as np

from histoblend.data.patches import CENTRE


def centre_cells(rows: int, columns: int, side: int) -> np.ndarray:
    """Share of each map cell that is inside the patch's centre. The map covers the whole square patch.

    Parameters
    ----------
    rows, columns : int
        Cells of the map.
    side : int
        Side of the patch, px. The centre is `CENTRE` px wide.

    Returns
    -------
    ndarray of shape (rows, columns), dtype float64, 0 to 1
        The mean is the centre's share of the patch area.
    """
    low, high = max(0.0, (side - CENTRE) / 2), min(float(side), (side + CENTRE) / 2)

    def overlap(count: int) -> np.ndarray:
        edges = np.linspace(0, side, count + 1)
        inside = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
        return np.asarray(inside.clip(min=0) * count / side)

    return np.outer(overlap(rows), overlap(columns))


def area_share(rows: int, columns: int, side: int, *, border: bool = True) -> float:
    """Centre's share of the area, which is the value of :func:`centre_shares` for evenly spread evidence."""
    return float(centre_shares(np.ones((1, rows, columns)), side, border=border)[0])


def centre_shares(maps: np.ndarray, side: int, *, border: bool = True) -> np.ndarray:
    """Share of the evidence for tumour (the positive values) that is inside the centre.

    Parameters
    ----------
    maps : ndarray of shape (n, rows, columns), float
    side : int
        Side of the patches, px.
    border : bool
        Whether the outermost cells count. Their values are lower because they also see the zero padding.

    Returns
    -------
    ndarray of shape (n,), dtype float64
        0 to 1; NaN if no counted cell is positive.
    """
    _, rows, columns = maps.shape
    positive = np.asarray(maps, np.float64).clip(min=0) * _counted_cells(rows, columns, border)
    total = positive.sum(axis=(1, 2))
    inside = (positive * centre_cells(rows, columns, side)).sum(axis=(1, 2))
    return np.where(total > 0, inside / np.where(total > 0, total, 1), np.nan)


def _counted_cells(rows: int, columns: int, border: bool) -> np.ndarray:
    """Mask of shape (rows, columns): all cells or, without the border, all but the outermost."""
    counted = np.ones((rows, columns), dtype=bool)
    if not border:
        counted[[0, -1], :] = counted[:, [0, -1]] = False
    return counted
