"""Heads on a table that is spread over a cluster's memories: logistic regression by sums, XGBoost by xgboost.dask."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from histoblend.data.storage.store import Store, StoredArray
from histoblend.models.heads import HEADS, LogisticHead, XGBoostHead
from histoblend.models.spread import blocks_of, fit_logistic
from histoblend.pipelines.engine.cluster import Cluster, explained
from histoblend.pipelines.engine.fits import FitTask, Fitted
from histoblend.pipelines.engine.worker_fits import pack, read_probabilities

#: Rows of a block: so many that a table has about so many blocks, within these bounds. They do not depend on the
#: cluster, so that sums come out the same on any.
BLOCKS = 64
FEWEST_ROWS = 256
MOST_BYTES = 64_000_000

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
                head: Any = HEADS[task.head](task.seed)
                grow = self._logistic if isinstance(head, LogisticHead) else self._xgboost
                grow(head, task)
                predicted = self._predict(head, task)
            # Of all workers' threads, whether they had to do or waited: what the fit kept busy.
            yield predicted, head, (time.perf_counter() - started) * self.cluster.threads()

    def _logistic(self, head: LogisticHead, task: FitTask) -> None:
        chosen = np.arange(len(self.columns)) if task.columns is None else task.columns
        blocks = self.blocks
        if task.columns is not None:
            blocks = self._on_blocks("take", [np.arange(high - low) for low, high in self._spans()], columns=chosen)
        rows = head.choosers(len(task.rows))
        pieces = self._pieces(task.rows[rows], chosen)
        count = len(task.rows)
        chooser = self.cluster.spread(
            "histoblend.models.spread", "choose_strength",
            [task.head], [task.seed], [task.labels[rows]], [task.groups[rows]], [count], *([piece] for piece in pieces),
        )  # fmt: skip
        head.choose(chooser[0].result())
        known = np.full(self.edges[-1], -1, np.int8)
        known[task.rows] = task.labels
        # Sent with a task, not scattered: what a lost worker held can then be made again.
        labels = self.cluster.spread(
            "histoblend.models.spread", "keep", [known[low:high] for low, high in self._spans()]
        )
        fit_logistic(head, partial(self._total, blocks, labels), task.labels, len(chosen))

    def _total(self, blocks: list[Any], labels: list[Any], name: str, *arguments: Any) -> np.ndarray:
        """Sum of a function of models/spread.py over all blocks, in their order."""
        shared = [self.cluster.spread("histoblend.models.spread", "keep", [argument])[0] for argument in arguments]
        parts = self.cluster.spread(
            "histoblend.models.spread", name, blocks, labels, *([one] * len(blocks) for one in shared)
        )
        groups = [parts[at : at + TOGETHER] for at in range(0, len(parts), TOGETHER)]
        sums = [
            self.cluster.spread("histoblend.models.spread", "add_up", *([part] for part in group))[0]
            for group in groups
        ]
        total: np.ndarray = np.sum(np.stack(self.cluster.client.gather(sums)), axis=0)
        return total

    def _xgboost(self, head: XGBoostHead, task: FitTask) -> None:
        width = len(self.columns) if task.columns is None else len(task.columns)
        names = np.arange(width) if task.columns is None else task.columns
        head.columns_, head.boosters_ = [], []
        for inside, outside, chosen in head.plan(task.labels, task.groups, width):
            trees = head.trees if len(outside) else min(head.fewest, head.trees)
            parameters = head.parameters(len(chosen))
            booster = self._grow(parameters, task.rows[inside], task.labels[inside], names[chosen], trees, head.bins)
            if len(outside):
                pieces = self._pieces(task.rows[outside], names[chosen])
                content = bytes(booster.save_raw("ubj"))
                best = self.cluster.spread(
                    "histoblend.models.spread", "best_trees",
                    [task.head], [task.seed], [content], [task.labels[outside]], *([piece] for piece in pieces),
                )  # fmt: skip
                booster = booster[: best[0].result()]
            booster.set_param({"nthread": 1})
            head.columns_.append(chosen)
            head.boosters_.append(booster)
        head.classes_, head.n_features_in_ = np.array([0, 1]), width
        head.n_trees_ = [booster.num_boosted_rounds() for booster in head.boosters_]

    def _grow(
        self,
        parameters: dict[str, Any],
        rows: np.ndarray,
        labels: np.ndarray,
        columns: np.ndarray,
        trees: int,
        bins: int,
    ) -> Any:
        """Grow trees by xgboost.dask; again from the start where a worker goes meanwhile."""
        import dask.array as da
        from dask.delayed import delayed
        from xgboost.dask import DaskQuantileDMatrix, train

        client = self.cluster.client
        for tried in range(TRIES):
            pieces = self._pieces(rows, columns)
            sizes = [len(local) for local in blocks_of(rows, self.edges) if len(local)]
            table = da.concatenate(
                [
                    da.from_delayed(delayed(piece), (size, len(columns)), np.float32)
                    for piece, size in zip(pieces, sizes, strict=True)
                ]
            )
            known = da.from_array(labels.astype(np.float32), chunks=(tuple(sizes),))
            try:
                with client.as_current():
                    matrix = DaskQuantileDMatrix(client, table, known, max_bin=bins)
                    return train(client, parameters, matrix, num_boost_round=trees)["booster"]
            except Exception as error:  # whichever of XGBoost, Dask and the system notices first
                if tried == TRIES - 1:
                    raise
                self.cluster.screen.warn(
                    f"a worker went while trees grew ({type(error).__name__}): they are grown again"
                )
                self.cluster.wait()
        raise AssertionError("the last try returns or raises")

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

    def _pieces(self, rows: np.ndarray, columns: np.ndarray) -> list[Any]:
        """Futures of some rows and columns, one for each block that holds any, where the block lies."""
        local = blocks_of(rows, self.edges)
        return [one for one, inside in zip(self._on_blocks("take", local, columns), local, strict=True) if len(inside)]

    def _on_blocks(self, name: str, rows: list[np.ndarray], columns: np.ndarray) -> list[Any]:
        return self.cluster.spread("histoblend.models.spread", name, self.blocks, rows, [columns] * len(rows))

    def _spans(self) -> list[tuple[int, int]]:
        return list(zip(self.edges[:-1], self.edges[1:], strict=True))


def rows_of_block(shape: tuple[int, ...]) -> int:
    """Rows of a block of a table of float32."""
    wanted = -(-shape[0] // BLOCKS)
    return max(FEWEST_ROWS, min(wanted, MOST_BYTES // (4 * shape[1])))
