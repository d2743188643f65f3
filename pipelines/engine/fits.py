"""Fits of heads: what a fit needs and returns, and how fits run in parallel on this machine."""

from __future__ import annotations

import contextlib
import functools
import itertools
import pkgutil
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from histoblend.data.storage.arrays import Rows, StoredRows
from histoblend.models.heads.head import Head
from histoblend.models.heads.registry import new_head
from histoblend.models.table_blocks import add_up, block_edges, blocks_of, in_groups, take
from histoblend.pipelines.runtime.resources import trim_memory
from histoblend.pipelines.tables import FeatureSets


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


#: Fits on larger tables read blocks of rows instead of copying all rows into memory.
IN_MEMORY_ROWS = 20_000


class Recent:
    """Which blocks of a table were read last. Fits read those first, because they are probably still in the file cache.

    So a fit alone reads a table forwards and backwards in turn, and fits in parallel follow each other.
    """

    def __init__(self) -> None:
        self._times, self._last = itertools.count(1), dict[int, int]()

    def order(self, count: int) -> Iterator[int]:
        """Yield the numbers of ``count`` blocks."""
        left = set(range(count))
        while left:
            number = max(left, key=lambda block: (self._last.get(block, 0), -block))
            left.remove(number)
            self._last[number] = next(self._times)
            yield number


@dataclass(frozen=True)
class BlockTask:
    """Rows and columns for one fit, read in blocks, as a :class:`models.heads.head.SpreadTable`.

    Attributes
    ----------
    table : Rows
    rows : ndarray of int
    labels, groups : ndarray of shape (len(rows),)
    columns : ndarray of int or None
        None for all.
    recent : Recent
        Shared by the fits on this table.
    """

    table: Rows
    rows: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    columns: np.ndarray | None
    recent: Recent = field(default_factory=Recent)

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.table.shape[1] if self.columns is None else len(self.columns)

    def total(self, module: str, name: str, *arguments: Any) -> np.ndarray:
        """Sum of a function over all blocks, in their order and grouped as on a cluster."""
        function, edges = pkgutil.resolve_name(f"{module}:{name}"), block_edges(self.table.shape)
        known = np.full(edges[-1], -1, np.int8)
        known[self.rows] = self.labels
        count, parts = len(edges) - 1, dict[int, np.ndarray]()
        for number, block in _blocks(self.table, edges, self.recent.order(count)):
            chosen = block if self.columns is None else np.take(block, self.columns, axis=1)
            parts[number] = function(chosen, known[edges[number] : edges[number + 1]], *arguments)
        return add_up(*(add_up(*group) for group in in_groups([parts[number] for number in range(count)])))

    def call(self, module: str, name: str, rows: np.ndarray, columns: np.ndarray | None, *arguments: Any) -> Any:
        """Call a function. Its last argument is some rows of the table."""
        if self.columns is not None:
            columns = self.columns if columns is None else self.columns[columns]
        return pkgutil.resolve_name(f"{module}:{name}")(*arguments, selected(self.table, self.rows[rows], columns))


def selected(table: Rows, rows: np.ndarray, columns: np.ndarray | None) -> np.ndarray:
    """Some rows, ascending, and columns (None for all) of a table, ndarray of shape (len(rows), len(columns))."""
    values = np.empty((len(rows), table.shape[1] if columns is None else len(columns)), np.float32)
    filled = 0
    for part in _parts(table, rows, columns):
        values[filled : filled + len(part)] = part
        filled += len(part)
    return values


def _parts(table: Rows, rows: np.ndarray, columns: np.ndarray | None) -> Iterator[np.ndarray]:
    """Yield some rows and columns of each block that has any of the rows."""
    edges = block_edges(table.shape)
    inside = {number: local for number, local in enumerate(blocks_of(rows, edges)) if len(local)}
    for number, block in _blocks(table, edges, inside):
        yield take(block, inside[number], columns)


def _blocks(table: Rows, edges: Sequence[int], numbers: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield blocks of a table and their numbers. The system reads the next block while one is used."""
    left = iter(numbers)
    number = next(left, None)
    while number is not None:
        following = next(left, None)
        if not isinstance(table, StoredRows):
            yield number, table[edges[number] : edges[number + 1]]
        else:
            if following is not None:
                table.announce(edges[following], edges[following + 1])
            yield number, table.mapped(edges[number], edges[number + 1])
        number = following


def fit(
    head: str,
    table: Rows,
    labels: np.ndarray,
    groups: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
    seed: int,
    columns: np.ndarray | None = None,
    recent: Recent | None = None,
) -> Fitted:
    """Fit a head on ``rows`` of a table and predict ``out``. Arguments: :class:`FitTask`, :class:`BlockTask`."""
    from threadpoolctl import threadpool_limits

    # CPU time of this thread, the only one, does not depend on what else the machine does.
    started = time.thread_time()
    model = new_head(head, seed)
    # One thread per fit: sums in matrix products then have the same order for any number of cores and workers.
    with threadpool_limits(1):
        if table.shape[0] > IN_MEMORY_ROWS and type(model).fit_spread is not Head.fit_spread:
            model.fit_spread(BlockTask(table, rows, labels, groups, columns, recent or Recent()))
        else:
            model.fit(selected(table, rows, columns), labels, groups)
        predicted = np.concatenate([model.predict_proba(part)[:, 1] for part in _parts(table, out, columns)])
    trim_memory()
    return predicted, model, time.thread_time() - started


@dataclass(frozen=True)
class LocalFits:
    """Fits in parallel on this machine.

    Attributes
    ----------
    table : Rows
    columns : list of str
    workers : int
        Fits that run in parallel. The results do not depend on it.
    """

    table: Rows
    columns: list[str]
    workers: int

    def __call__(self, tasks: Sequence[FitTask]) -> Iterator[Fitted]:
        """Yield the result of each task, in their order."""
        from joblib import Parallel, delayed
        from threadpoolctl import threadpool_limits

        # Fits that read blocks spend their time outside of Python, so threads suffice, and need less memory.
        prefer = "threads" if self.table.shape[0] > IN_MEMORY_ROWS else "processes"
        recent = Recent()
        pool = Parallel(n_jobs=max(1, min(self.workers, len(tasks))), prefer=prefer, return_as="generator")
        # Threads share this limit: the one that a fit sets would end with the first fit.
        with threadpool_limits(1):
            yield from pool(
                delayed(fit)(
                    task.head,
                    self.table,
                    task.labels,
                    task.groups,
                    task.rows,
                    task.out,
                    task.seed,
                    task.columns,
                    recent,
                )
                for task in tasks
            )


def local_fitters(
    sets: FeatureSets, workers: int, scratch: Path, check: Callable[[str, tuple[int, int]], None]
) -> Fitters:
    """Fitters on this machine.

    Parameters
    ----------
    sets : FeatureSets
    workers : int
        Fits that run in parallel, and threads that join a table.
    scratch : Path
        Folder for tables that must first be joined. It is removed after use.
    check : callable
        ``check(name, shape)`` must raise if fits on a set do not fit in memory.
    """

    @contextlib.contextmanager
    def opened(name: str) -> Iterator[Fitter]:
        table = StoredRows(sets.file(name, scratch, workers))
        check(name, table.shape)
        yield LocalFits(table, sets.columns(name), workers)
        shutil.rmtree(scratch, ignore_errors=True)

    return opened


@dataclass(frozen=True)
class _OnDemand:
    """A fitter that is opened for its first fits."""

    columns: list[str]
    opened: Callable[[], Fitter]

    def __call__(self, tasks: Sequence[FitTask]) -> Iterator[Fitted]:
        """Yield the result of each task, in their order."""
        return self.opened()(tasks) if tasks else iter(())


def on_demand(fitters: Fitters, columns: Callable[[str], list[str]]) -> Fitters:
    """Open fitters for their first fits, so that a resumed step reads no table whose fits are all finished.

    Parameters
    ----------
    fitters : Fitters
    columns : callable
        Names of the columns of a set.
    """

    @contextlib.contextmanager
    def opened(name: str) -> Iterator[Fitter]:
        with contextlib.ExitStack() as stack:
            yield _OnDemand(columns(name), functools.cache(lambda: stack.enter_context(fitters(name))))

    return opened
