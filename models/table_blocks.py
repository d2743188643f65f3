"""Blocks of rows of a table that no memory holds whole: what is taken from them, and their sums added up.

The functions on a block run where the block is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def take(X: np.ndarray, rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
    """Some rows of a block, and of them some columns (all for None)."""
    return np.ascontiguousarray(X[rows] if columns is None else X[np.ix_(rows, columns)])


def keep(value: np.ndarray) -> np.ndarray:
    """Return a value as it is: a task that holds it where others need it."""
    return value


def add_up(*parts: np.ndarray) -> np.ndarray:
    """Sum of arrays, from the first to the last."""
    total: np.ndarray = np.sum(np.stack(parts), axis=0)
    return total


def blocks_of(rows: np.ndarray, edges: Sequence[int]) -> list[np.ndarray]:
    """Ascending row numbers cut at the edges of blocks, each counted from its block's first row."""
    cuts = np.searchsorted(rows, edges)
    return [rows[low:high] - start for low, high, start in zip(cuts[:-1], cuts[1:], edges[:-1], strict=True)]
