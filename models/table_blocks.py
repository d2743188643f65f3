"""Operations on blocks of rows of a table that does not fit into memory.

On a cluster, functions on a block run on the worker that has the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

#: A table is cut into about this many blocks, within bounds on their rows and bytes. The blocks do not depend on the
#: machine or cluster, so sums are the same on any of them.
BLOCKS = 64
FEWEST_ROWS = 256
MAX_BYTES = 64_000_000

#: Number of blocks whose sums are added up first; on a cluster, by one worker.
TOGETHER = 32


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


def in_groups(parts: Sequence[Any]) -> list[Sequence[Any]]:
    """Divide the results of blocks into groups that are added up first."""
    return [parts[start : start + TOGETHER] for start in range(0, len(parts), TOGETHER)]


def block_edges(shape: tuple[int, ...]) -> list[int]:
    """First row of each block, then the number of rows, for a float32 table of this shape."""
    even = -(-shape[0] // BLOCKS)
    step = max(FEWEST_ROWS, min(even, MAX_BYTES // (4 * shape[1])))
    return [*range(0, shape[0], step), shape[0]]


def blocks_of(rows: np.ndarray, edges: Sequence[int]) -> list[np.ndarray]:
    """Divide ascending row numbers into blocks at ``edges``; each is counted from the first row of its block."""
    cuts = np.searchsorted(rows, edges)
    return [rows[low:high] - start for low, high, start in zip(cuts[:-1], cuts[1:], edges[:-1], strict=True)]
