"""Fits on a cluster: each on a worker that reads the whole table, or on a table spread over all of them."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histoblend.data.storage.store import Store, StoredArray
from histoblend.pipelines.engine.cluster import Cluster
from histoblend.pipelines.engine.fits import FitTask, Fitted, Fitter, Fitters
from histoblend.pipelines.tables import FeatureSets

#: Bytes of a table from which on ``engine.heads = "auto"`` spreads it.
SPREAD_FROM = 8_000_000_000
TABLES = "tables"


@dataclass(frozen=True)
class WholeFits:
    """Each fit on a worker of a cluster that reads the whole table: the same numbers as on this machine, bit for bit.

    Attributes
    ----------
    cluster : Cluster
    array : StoredArray
    columns : list of str
    place : Store
        Where workers leave fits.
    """

    cluster: Cluster
    array: StoredArray
    columns: list[str]
    place: Store

    def __call__(self, tasks: Sequence[FitTask]) -> Iterator[Fitted]:
        """Yield what each task gives, in their order."""
        from histoblend.pipelines.engine.worker_fits import fit_whole, unpack

        calls = [
            (
                fit_whole,
                (
                    self.place.url, task.name, self.array.text, task.head, task.labels, task.groups, task.rows,
                    task.out, task.seed, task.columns,
                ),
            )
            for task in tasks
        ]  # fmt: skip
        for name in self.cluster.run(calls, ordered=True):
            yield unpack(self.place, name)
            self.place.remove(name)


def cluster_fitters(cluster: Cluster, kind: str, sets: FeatureSets, folder: Path) -> Fitters:
    """Fitters on a cluster.

    Parameters
    ----------
    cluster : Cluster
    kind : {"auto", "whole", "spread"}
        See ``engine.heads``.
    sets : FeatureSets
    folder : Path
        Of the step under way, for tables that have to be put together.
    """

    @contextlib.contextmanager
    def opened(name: str) -> Iterator[Fitter]:
        from histoblend.pipelines.engine.spread_fits import SpreadFits
        from histoblend.pipelines.runtime.artefacts import file_digest

        cluster.connect()
        scratch = folder / TABLES
        path = sets.file(name, scratch)
        # In a store named by its content, so that a run which was broken off finds it there.
        table = cluster.publish(path, f"{TABLES}-{file_digest(path)[:16]}" if cluster.engine.store else "")
        array = StoredArray.find(table, path.name)
        place = _results_folder(cluster, folder).make()
        try:
            if is_spread(kind, array.shape):
                with SpreadFits.over(cluster, array, sets.columns(name), place) as fitter:
                    yield fitter
            else:
                yield WholeFits(cluster, array, sets.columns(name), place)
        finally:
            place.remove_all()
        if cluster.engine.store:
            table.remove_all()
        shutil.rmtree(scratch, ignore_errors=True)

    return opened


def is_spread(kind: str, shape: tuple[int, ...]) -> bool:
    """Whether heads are fitted on a spread table of this shape."""
    return kind == "spread" or (kind == "auto" and 4 * int(np.prod(shape, dtype=np.int64)) > SPREAD_FROM)


def _results_folder(cluster: Cluster, folder: Path) -> Store:
    """Where workers leave what they fitted, for the moment."""
    if not cluster.engine.store:
        return Store(str(folder.resolve() / "remote"))
    return cluster.store.inside(f"{folder.name.removesuffix('.partial')}-{secrets.token_hex(8)}")
