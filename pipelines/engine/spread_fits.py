"""Fits of heads on a table that is spread over the memory of a cluster's workers."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from histoblend.data.storage.store import Store, StoredArray
from histoblend.models.heads.registry import new_head
from histoblend.models.table_blocks import add_up, block_edges, blocks_of, in_groups
from histoblend.pipelines.engine.cluster import Cluster, explained
from histoblend.pipelines.engine.fits import FitTask, Fitted
from histoblend.pipelines.engine.worker_fits import pack, read_probabilities

#: Module of the functions on blocks that all heads share.
SPREAD = "histoblend.models.table_blocks"


@dataclass(frozen=True)
class SpreadFits:
    """Fits that run one after the other, each on all workers.

    Attributes
    ----------
    cluster : Cluster
    columns : list of str
    results : Store
        Folder to which workers write predictions.
    edges : list of int
        First row of each block, then the number of rows.
    blocks : list of Future
        Each a block of shape (rows, columns), float32. Blocks of a lost worker are read again from the store.
    """

    cluster: Cluster
    columns: list[str]
    results: Store
    edges: list[int]
    blocks: list[Any]

    @classmethod
    @contextlib.contextmanager
    def over(cls, cluster: Cluster, array: StoredArray, columns: list[str], results: Store) -> Iterator[SpreadFits]:
        """Read a table into the workers' memory, and release it on exit."""
        edges = block_edges((array.shape[0], array.shape[1]))
        starts, stops = edges[:-1], edges[1:]
        blocks = cluster.spread(
            "histoblend.pipelines.engine.worker_fits", "read_block", [array.text] * len(starts), starts, stops
        )
        yield cls(cluster, columns, results, edges, blocks)
        for block in blocks:
            block.release()

    def __call__(self, tasks: Sequence[FitTask]) -> Iterator[Fitted]:
        """Yield the result of each task, in their order."""
        for task in tasks:
            started = time.perf_counter()
            with explained():
                head = new_head(task.head, task.seed).fit_spread(SpreadTask(self, task))
                predicted = self._predict(head, task)
            # Counts all threads of all workers, idle or not, because the fit reserves them.
            yield predicted, head, (time.perf_counter() - started) * self.cluster.threads()

    def _predict(self, head: Any, task: FitTask) -> np.ndarray:
        """Probabilities of the rows to predict. Workers write them as Parquet, one file per block."""
        stored = self.results.write_sealed(f"head-{task.name}", ".npz", pack(head, np.empty(0), 0.0))
        local = [(number, rows) for number, rows in enumerate(blocks_of(task.out, self.edges)) if len(rows)]
        count = len(local)
        futures = self.cluster.spread(
            "histoblend.pipelines.engine.worker_fits", "predict_block",
            [self.results.url] * count, [stored] * count,
            [f"{task.name}-{number:06d}" for number, _ in local], [self.blocks[number] for number, _ in local],
            [rows for _, rows in local], [task.columns] * count,
        )  # fmt: skip
        names = [name for name, _ in self.cluster.client.gather(futures)]
        predicted = [read_probabilities(self.results, name) for name in names]
        for name in [stored, *names]:
            self.results.remove(name)
        return np.concatenate(predicted)

    def pieces(self, rows: np.ndarray, columns: np.ndarray) -> list[Any]:
        """Futures of some rows and columns, one for each block that contains any, on the worker of that block."""
        local = blocks_of(rows, self.edges)
        return [
            piece for piece, inside in zip(self.on_blocks("take", local, columns), local, strict=True) if len(inside)
        ]

    def on_blocks(self, name: str, rows: list[np.ndarray], columns: np.ndarray) -> list[Any]:
        """Futures of calls of a function of :mod:`models.table_blocks` on some rows and columns of every block."""
        return self.cluster.spread(SPREAD, name, self.blocks, rows, [columns] * len(rows))

    def spans(self) -> list[tuple[int, int]]:
        """First row of each block and of the next block."""
        return list(zip(self.edges[:-1], self.edges[1:], strict=True))


@dataclass(frozen=True)
class SpreadTask:
    """Rows and columns for one fit, as a :class:`models.heads.head.SpreadTable`.

    Attributes
    ----------
    fits : SpreadFits
    task : FitTask
    """

    fits: SpreadFits
    task: FitTask

    @property
    def labels(self) -> np.ndarray:
        """0 or 1, ndarray of shape (n,)."""
        return self.task.labels

    @property
    def groups(self) -> np.ndarray:
        """Slides, ndarray of shape (n,)."""
        return self.task.groups

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self._columns)

    def total(self, module: str, name: str, *arguments: Any) -> np.ndarray:
        """Sum of a function over all blocks, in their order."""
        cluster = self.fits.cluster
        blocks, labels = self._blocks
        shared = [cluster.spread(SPREAD, "keep", [argument])[0] for argument in arguments]
        parts = cluster.spread(module, name, blocks, labels, *([argument] * len(blocks) for argument in shared))
        sums = [cluster.spread(SPREAD, "add_up", *([part] for part in group))[0] for group in in_groups(parts)]
        return add_up(*cluster.client.gather(sums))

    def call(self, module: str, name: str, rows: np.ndarray, columns: np.ndarray | None, *arguments: Any) -> Any:
        """Call a function on one worker. Its last arguments are some rows of the table, in pieces."""
        pieces = self.fits.pieces(self.task.rows[rows], self._columns if columns is None else self._columns[columns])
        calls = [[argument] for argument in (*arguments, *pieces)]
        return self.fits.cluster.spread(module, name, *calls)[0].result()

    @functools.cached_property
    def _columns(self) -> np.ndarray:
        return np.arange(len(self.fits.columns)) if self.task.columns is None else self.task.columns

    @functools.cached_property
    def _blocks(self) -> tuple[list[Any], list[Any]]:
        """Blocks with the fit's columns, and their labels; rows outside the fit have label -1."""
        spans, blocks = self.fits.spans(), self.fits.blocks
        if self.task.columns is not None:
            blocks = self.fits.on_blocks("take", [np.arange(high - low) for low, high in spans], self._columns)
        labels = np.full(self.fits.edges[-1], -1, np.int8)
        labels[self.task.rows] = self.task.labels
        # Sent as tasks, not scattered: Dask can then make the labels of a lost worker again.
        return blocks, self.fits.cluster.spread(SPREAD, "keep", [labels[low:high] for low, high in spans])
