"""Heads on a table that is spread over a cluster's memories."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.storage.store import Store, StoredArray
from histoblend.models.heads.registry import new_head
from histoblend.models.table_blocks import blocks_of
from histoblend.pipelines.engine.cluster import Cluster, explained
from histoblend.pipelines.engine.fits import FitTask, Fitted
from histoblend.pipelines.engine.worker_fits import pack, read_probabilities

#: Rows of a block: so many that a table has about so many blocks, within these bounds. They do not depend on the
#: cluster, so that sums come out the same on any.
BLOCKS = 64
FEWEST_ROWS = 256
MOST_BYTES = 64_000_000

#: Functions on blocks that no head has for itself.
SPREAD = "histoblend.models.table_blocks"

#: Partial sums that are added up on a worker before they travel.
TOGETHER = 32

#: How often trees are grown anew after a worker went: XGBoost's own part of the work does not survive that.
TRIES = 4


@dataclass(frozen=True)
class SpreadFits:
    """Fits one after another, each on all workers.

    Attributes
    ----------
    cluster : Cluster
    columns : list of str
    place : Store
        Where workers leave predictions.
    edges : list of int
        First row of each block, and the number of rows.
    blocks : list of Future
        Of ndarray (rows, columns) float32; read again from the store where a worker goes.
    """

    cluster: Cluster
    columns: list[str]
    place: Store
    edges: list[int]
    blocks: list[Any]

    @classmethod
    @contextlib.contextmanager
    def over(cls, cluster: Cluster, array: StoredArray, columns: list[str], place: Store) -> Iterator[SpreadFits]:
        """Read a table into the workers' memories, and let go of it in the end."""
        edges = [*range(0, array.shape[0], rows_of_block(array.shape)), array.shape[0]]
        starts, stops = edges[:-1], edges[1:]
        blocks = cluster.spread(
            "histoblend.pipelines.engine.worker_fits", "read_block", [array.text] * len(starts), starts, stops
        )
        yield cls(cluster, columns, place, edges, blocks)
        for block in blocks:
            block.release()

    def __call__(self, tasks: Sequence[FitTask]) -> Iterator[Fitted]:
        """Yield what each task gives, in their order."""
        for task in tasks:
            started = time.perf_counter()
            with explained():
                head = new_head(task.head, task.seed).fit_spread(SpreadTask(self, task))
                predicted = self._predict(head, task)
            # Of all workers' threads, whether they had to do or waited: what the fit kept busy.
            yield predicted, head, (time.perf_counter() - started) * self.cluster.threads()

    def _predict(self, head: Any, task: FitTask) -> np.ndarray:
        """Probabilities of the rows to predict: written by the workers as Parquet, a file a block."""
        stored = self.place.write_sealed(f"head-{task.name}", ".npz", pack(head, np.empty(0), 0.0))
        local = [(number, rows) for number, rows in enumerate(blocks_of(task.out, self.edges)) if len(rows)]
        count = len(local)
        futures = self.cluster.spread(
            "histoblend.pipelines.engine.worker_fits", "predict_block",
            [self.place.url] * count, [stored] * count,
            [f"{task.name}-{number:06d}" for number, _ in local], [self.blocks[number] for number, _ in local],
            [rows for _, rows in local], [task.columns] * count,
        )  # fmt: skip
        names = [name for name, _ in self.cluster.client.gather(futures)]
        predicted = [read_probabilities(self.place, name) for name in names]
        for name in [stored, *names]:
            self.place.remove(name)
        return np.concatenate(predicted)

    def pieces(self, rows: np.ndarray, columns: np.ndarray) -> list[Any]:
        """Futures of some rows and columns, one for each block that holds any, where the block lies."""
        local = blocks_of(rows, self.edges)
        return [one for one, inside in zip(self.on_blocks("take", local, columns), local, strict=True) if len(inside)]

    def on_blocks(self, name: str, rows: list[np.ndarray], columns: np.ndarray) -> list[Any]:
        """Futures of a function of models/table_blocks.py on some rows and columns of every block."""
        return self.cluster.spread(SPREAD, name, self.blocks, rows, [columns] * len(rows))

    def spans(self) -> list[tuple[int, int]]:
        """First row of each block, and of the next."""
        return list(zip(self.edges[:-1], self.edges[1:], strict=True))


@dataclass(frozen=True)
class SpreadTask:
    """The rows and columns that one fit learns from: a :class:`models.heads.head.SpreadTable`.

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
        parts = cluster.spread(module, name, blocks, labels, *([one] * len(blocks) for one in shared))
        groups = [parts[at : at + TOGETHER] for at in range(0, len(parts), TOGETHER)]
        sums = [cluster.spread(SPREAD, "add_up", *([part] for part in group))[0] for group in groups]
        total: np.ndarray = np.sum(np.stack(cluster.client.gather(sums)), axis=0)
        return total

    def call(self, module: str, name: str, rows: np.ndarray, columns: np.ndarray | None, *arguments: Any) -> Any:
        """What a function makes of some rows, which one worker gets in pieces after the other arguments."""
        pieces = self.fits.pieces(self.task.rows[rows], self._columns if columns is None else self._columns[columns])
        every = [[argument] for argument in (*arguments, *pieces)]
        return self.fits.cluster.spread(module, name, *every)[0].result()

    def grow_trees(
        self, parameters: dict[str, Any], rows: np.ndarray, columns: np.ndarray, trees: int, bins: int
    ) -> Any:
        """Grow trees by xgboost.dask; again from the start where a worker goes meanwhile."""
        import dask.array as da
        from dask.delayed import delayed
        from xgboost.dask import DaskQuantileDMatrix, train

        cluster, client = self.fits.cluster, self.fits.cluster.client
        here, chosen = self.task.rows[rows], self._columns[columns]
        for tried in range(TRIES):
            pieces = self.fits.pieces(here, chosen)
            sizes = [len(local) for local in blocks_of(here, self.fits.edges) if len(local)]
            table = da.concatenate(
                [
                    da.from_delayed(delayed(piece), (size, len(chosen)), np.float32)
                    for piece, size in zip(pieces, sizes, strict=True)
                ]
            )
            known = da.from_array(self.labels[rows].astype(np.float32), chunks=(tuple(sizes),))
            try:
                with client.as_current():
                    matrix = DaskQuantileDMatrix(client, table, known, max_bin=bins)
                    return train(client, parameters, matrix, num_boost_round=trees)["booster"]
            except InputError:
                raise
            except Exception as error:  # whichever of XGBoost, Dask and the system notices first
                if tried == TRIES - 1:
                    raise
                cluster.screen.warn(f"a worker went while trees grew ({type(error).__name__}): they are grown again")
                cluster.wait()
        raise AssertionError("the last try returns or raises")

    @functools.cached_property
    def _columns(self) -> np.ndarray:
        return np.arange(len(self.fits.columns)) if self.task.columns is None else self.task.columns

    @functools.cached_property
    def _blocks(self) -> tuple[list[Any], list[Any]]:
        """Blocks of the fit's columns, and their labels: -1 for rows that are not learned from."""
        spans, blocks = self.fits.spans(), self.fits.blocks
        if self.task.columns is not None:
            blocks = self.fits.on_blocks("take", [np.arange(high - low) for low, high in spans], self._columns)
        known = np.full(self.fits.edges[-1], -1, np.int8)
        known[self.task.rows] = self.task.labels
        # Sent with a task, not scattered: what a lost worker held can then be made again.
        return blocks, self.fits.cluster.spread(SPREAD, "keep", [known[low:high] for low, high in spans])


def rows_of_block(shape: tuple[int, ...]) -> int:
    """Rows of a block of a table of float32."""
    wanted = -(-shape[0] // BLOCKS)
    return max(FEWEST_ROWS, min(wanted, MOST_BYTES // (4 * shape[1])))
