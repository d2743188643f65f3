"""Operations on blocks of rows of a table that does not fit into memory.

Functions on a block run on the worker that has the block.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def take(X: np.ndarray, rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
    """Select rows and columns of a block (all columns for None)."""
    return np.ascontiguousarray(X[rows] if columns is None else X[np.ix_(rows, columns)])


def keep(value: np.ndarray) -> np.ndarray:
    """Return a value unchanged: a task that keeps it on the worker that needs it."""
    return value


def add_up(*parts: np.ndarray) -> np.ndarray:
    """Add up arrays in the given order."""
    total: np.ndarray = np.sum(np.stack(parts), axis=0)
    return total


def blocks_of(rows: np.ndarray, edges: Sequence[int]) -> list[np.ndarray]:
    """Divide ascending row numbers into blocks at ``edges``; each is counted from the first row of its block."""
    cuts = np.searchsorted(rows, edges)
    return [rows[low:high] - start for low, high, start in zip(cuts[:-1], cuts[1:], edges[:-1], strict=True)]
