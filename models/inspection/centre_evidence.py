"""Share of a map's evidence inside the patch's centre."""

from __future__ import annotations

import numpy as np

from histoblend.data.patches import CENTRE


def centre_cells(rows: int, columns: int, side: int) -> np.ndarray:
    """Share of each cell of a map, laid over a square patch, inside the patch's centre.

    Parameters
    ----------
    rows, columns : int
    side : int
        Of the patch, px; the centre is `CENTRE` px wide.

    Returns
    -------
    ndarray of shape (rows, columns), dtype float64, 0 to 1
        The mean is the centre's share of the area.
    """
    low, high = max(0.0, (side - CENTRE) / 2), min(float(side), (side + CENTRE) / 2)

    def along(count: int) -> np.ndarray:
        edges = np.linspace(0, side, count + 1)
        inside = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
        return np.asarray(inside.clip(min=0) * count / side)

    return np.outer(along(rows), along(columns))


def area_share(rows: int, columns: int, side: int, *, border: bool = True) -> float:
    """Centre's share of the area: what :func:`centre_shares` comes to where evidence is spread evenly."""
    return float(centre_shares(np.ones((1, rows, columns)), side, border=border)[0])


def centre_shares(maps: np.ndarray, side: int, *, border: bool = True) -> np.ndarray:
    """Share of the evidence for tumour, that is of what is above zero, that lies inside the centre.

    Parameters
    ----------
    maps : ndarray of shape (n, rows, columns), float
    side : int
        Of the patches, px.
    border : bool
        Whether the outermost cells count: they see what a picture is padded with, and hold less for that alone.

    Returns
    -------
    ndarray of shape (n,), dtype float64
        0 to 1; NaN where nothing that counts is above zero.
    """
    _, rows, columns = maps.shape
    positive = np.asarray(maps, np.float64).clip(min=0) * _counted(rows, columns, border)
    total = positive.sum(axis=(1, 2))
    inside = (positive * centre_cells(rows, columns, side)).sum(axis=(1, 2))
    return np.where(total > 0, inside / np.where(total > 0, total, 1), np.nan)


def _counted(rows: int, columns: int, border: bool) -> np.ndarray:
    """Which cells count, ndarray of shape (rows, columns) of bool: all, or all but the outermost."""
    counted = np.ones((rows, columns), dtype=bool)
    if not border:
        counted[[0, -1], :] = counted[:, [0, -1]] = False
    return counted
