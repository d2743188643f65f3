"""Fits of heads: what a fit needs and returns, and how fits run in parallel on this machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from histoblend.models.heads.registry import new_head
from histoblend.pipelines.tables import Table


@dataclass(frozen=True)
class FitTask:
    """One fit.

    Attributes
    ----------
    name : str
        Used in the names of files.
    head : str
        Name of a row of :data:`models.heads.registry.HEADS`.
    rows : ndarray of int
        Rows to fit on.
    labels, groups : ndarray of shape (len(rows),)
        Labels and groups of these rows. A fit gets no other labels.
    out : ndarray of int
        Rows to predict.
    seed : int
    columns : ndarray of int, optional
        Columns to use. All by default.
    """

    name: str
    head: str
    rows: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    out: np.ndarray
    seed: int
    columns: np.ndarray | None = None


#: Probabilities of the rows to predict, the fitted head, and core-seconds.
Fitted = tuple[np.ndarray, Any, float]


class Fitter(Protocol):
    """Fits heads on one set of columns."""

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        ...

    def __call__(self, tasks: Sequence[FitTask]) -> Iterator[Fitted]:
        """Yield the result of each task, in their order."""
        ...


#: Opens the fitter of a set of columns, given the name of the set.
Fitters = Callable[[str], AbstractContextManager[Fitter]]


def fit(
    head: str,
    values: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
    seed: int,
    columns: np.ndarray | None = None,
) -> Fitted:
    """Fit a head on ``rows`` of a table and predict ``out``. Arguments are those of :class:`FitTask`."""
    from threadpoolctl import threadpool_limits

    # CPU time of this thread, the only one, does not depend on what else the machine does.
    started = time.thread_time()
    # One thread per fit: sums in matrix products then have the same order for any number of cores and workers.
    inside, outside = (values[part] if columns is None else values[np.ix_(part, columns)] for part in (rows, out))
    with threadpool_limits(1):
        model = new_head(head, seed).fit(inside, labels, groups)
        predicted = model.predict_proba(outside)[:, 1]
    return predicted, model, time.thread_time() - started


@dataclass(frozen=True)
class LocalFits:
    """Fits in parallel processes of this machine.

    Attributes
    ----------
    values : ndarray of shape (n, columns), float32
    columns : list of str
    workers : int
        Fits that run in parallel. The results do not depend on it.
    """

    values: np.ndarray
    columns: list[str]
    workers: int

    def __call__(self, tasks: Sequence[FitTask]) -> Iterator[Fitted]:
        """Yield the result of each task, in their order."""
        from joblib import Parallel, delayed

        pool = Parallel(n_jobs=max(1, min(self.workers, len(tasks))), prefer="processes", return_as="generator")
        yield from pool(
            delayed(fit)(task.head, self.values, task.labels, task.groups, task.rows, task.out, task.seed, task.columns)
            for task in tasks
        )


def local_fitters(sets: Mapping[str, Table], workers: int, check: Callable[[str, np.ndarray], None]) -> Fitters:
    """Fitters on this machine. ``check(name, values)`` must raise if a set does not fit in memory."""

    @contextlib.contextmanager
    def opened(name: str) -> Iterator[Fitter]:
        values, columns = sets[name]
        check(name, values)
        yield LocalFits(values, columns, workers)

    return opened
