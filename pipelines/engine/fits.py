"""Where heads are fitted: on this machine's processes, each on a worker of a cluster, or on a table spread over all."""

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
        Part of the names of files.
    head : str
        Row of :data:`models.heads.registry.HEADS`.
    rows : ndarray of int
        Rows to learn from.
    labels, groups : ndarray of shape (len(rows),)
        Of these rows: no other label gets to a fit.
    out : ndarray of int
        Rows to predict.
    seed : int
    columns : ndarray of int, optional
        Columns to use; all when left out.
    """

    name: str
    head: str
    rows: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    out: np.ndarray
    seed: int
    columns: np.ndarray | None = None


#: Probabilities of the rows to predict, the fitted head, and seconds of one core.
Fitted = tuple[np.ndarray, Any, float]


class Fitter(Protocol):
    """Fits heads on one set of columns."""

    @property
    def columns(self) -> list[str]:
        """Their names."""
        ...

    def __call__(self, tasks: Sequence[FitTask]) -> Iterator[Fitted]:
        """Yield what each task gives, in their order."""
        ...


#: Opens the fitter of a set of columns by the set's name.
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
    """Fit a head on ``rows`` of a table, predict ``out``; arguments as of :class:`FitTask`."""
    from threadpoolctl import threadpool_limits

    started = time.perf_counter()
    # One thread in every fit: matrix products then add in one order, whatever the number of cores and workers.
    inside, outside = (values[part] if columns is None else values[np.ix_(part, columns)] for part in (rows, out))
    with threadpool_limits(1):
        model = new_head(head, seed).fit(inside, labels, groups)
        predicted = model.predict_proba(outside)[:, 1]
    return predicted, model, time.perf_counter() - started


@dataclass(frozen=True)
class LocalFits:
    """Fits side by side in processes of this machine.

    Attributes
    ----------
    values : ndarray of shape (n, columns), float32
    columns : list of str
    workers : int
        Fits that run at once. The result does not depend on it.
    """

    values: np.ndarray
    columns: list[str]
    workers: int

    def __call__(self, tasks: Sequence[FitTask]) -> Iterator[Fitted]:
        """Yield what each task gives, in their order."""
        from joblib import Parallel, delayed

        pool = Parallel(n_jobs=max(1, min(self.workers, len(tasks))), prefer="processes", return_as="generator")
        yield from pool(
            delayed(fit)(task.head, self.values, task.labels, task.groups, task.rows, task.out, task.seed, task.columns)
            for task in tasks
        )


def local_fitters(sets: Mapping[str, Table], workers: int, check: Callable[[str, np.ndarray], None]) -> Fitters:
    """Fitters on this machine; ``check`` is asked whether memory holds a set."""

    @contextlib.contextmanager
    def opened(name: str) -> Iterator[Fitter]:
        values, columns = sets[name]
        check(name, values)
        yield LocalFits(values, columns, workers)

    return opened
