"""Fits on a cluster: each by one worker that reads the whole table, or by all workers on a table spread over them."""

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
from histoblend.pipelines.run_files import JOINED
from histoblend.pipelines.tables import FeatureSets

#: With ``engine.heads = "auto"``, tables of more bytes than this are spread.
SPREAD_FROM = 8_000_000_000


@dataclass(frozen=True)
class WholeFits:
    """Each fit by one worker that reads the whole table. Results are bit-identical to those of this machine.

    Attributes
    ----------
    cluster : Cluster
    array : StoredArray
    columns : list of str
    results : Store
        Folder to which workers write fits.
    """

    cluster: Cluster
    array: StoredArray
    columns: list[str]
    results: Store

    def __call__(self, tasks: Sequence[FitTask]) -> Iterator[Fitted]:
        """Yield the result of each task, in their order."""
        from histoblend.pipelines.engine.worker_fits import fit_whole, unpack

        calls = [
            (
                fit_whole,
                (
                    self.results.url, task.name, self.array.text, task.head, task.labels, task.groups, task.rows,
                    task.out, task.seed, task.columns,
                ),
            )
            for task in tasks
        ]  # fmt: skip
        for name in self.cluster.run(calls, ordered=True):
            yield unpack(self.results, name)
            self.results.remove(name)


def cluster_fitters(cluster: Cluster, kind: str, sets: FeatureSets, folder: Path) -> Fitters:
    """Fitters on a cluster.

    Parameters
    ----------
    cluster : Cluster
    kind : {"auto", "whole", "spread"}
        See ``engine.heads``.
    sets : FeatureSets
    folder : Path
        Folder of the current step, for tables that must first be joined.
    """

    @contextlib.contextmanager
    def opened(name: str) -> Iterator[Fitter]:
        from histoblend.pipelines.engine.spread_fits import SpreadFits
        from histoblend.pipelines.runtime.artefacts import file_digest

        cluster.connect()
        scratch = folder / JOINED
        path = sets.file(name, scratch)
        # The folder in the store is named by the digest of the table, so that a resumed run uses it again.
        table = cluster.publish(path, f"{JOINED}-{file_digest(path)[:16]}" if cluster.engine.store else "")
        array = StoredArray.find(table, path.name)
        results = _results_folder(cluster, folder).make()
        try:
            if is_spread(kind, array.shape):
                with SpreadFits.over(cluster, array, sets.columns(name), results) as fitter:
                    yield fitter
            else:
                yield WholeFits(cluster, array, sets.columns(name), results)
        finally:
            results.remove_all()
        if cluster.engine.store:
            table.remove_all()
        shutil.rmtree(scratch, ignore_errors=True)

    return opened


def is_spread(kind: str, shape: tuple[int, ...]) -> bool:
    """Whether a table of this shape is spread over the cluster to fit heads."""
    return kind == "spread" or (kind == "auto" and 4 * int(np.prod(shape, dtype=np.int64)) > SPREAD_FROM)


def _results_folder(cluster: Cluster, folder: Path) -> Store:
    """Folder to which workers write their fits until they are read back."""
    if not cluster.engine.store:
        return Store(str(folder.resolve() / "remote"))
    return cluster.store.inside(f"{folder.name.removesuffix('.partial')}-{secrets.token_hex(8)}")
