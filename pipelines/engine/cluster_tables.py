"""A table made by a cluster: tasks go out, parts come in as Parquet files, and are joined to the step's own table."""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.patches import PIXELS, PatchSet
from histoblend.data.storage.arrays import files_under
from histoblend.data.storage.store import Store, StoredArray
from histoblend.features.extract import holds, write_rows
from histoblend.features.slide_stain import NormalisedPixels
from histoblend.pipelines.engine.cluster import Cluster
from histoblend.pipelines.engine.worker import (
    JOB,
    NETWORKS,
    Part,
    from_parquet,
    job_key,
    job_text,
    make_part,
    pixels_digest,
)
from histoblend.pipelines.run_files import VALUES

if TYPE_CHECKING:
    from histoblend.features.networks.embeddings import EmbeddingCompute, SideBySide

PARTS = "parts"

_NAME = re.compile(r"part-(\d{9})-(\d{9})-[0-9a-f]+\.parquet")

#: How often parts that turn out damaged are made again.
ROUNDS = 3


@dataclass
class Spent:
    """What the parts of a table took, summed up."""

    core_seconds: float = 0.0
    seconds: float = 0.0
    read: int = 0
    written: int = 0
    parts: int = 0
    workers: set[str] = field(default_factory=set)

    def add(self, part: Part) -> None:
        """Count a part that was made."""
        self.core_seconds += part.core_seconds
        self.seconds += part.seconds
        self.read += part.read
        self.written += part.written
        self.parts += 1
        self.workers.add(part.worker)

    def notes(self) -> dict[str, Any]:
        """For the step's manifest."""
        return {
            "parts": self.parts,
            "workers": len(self.workers),
            "core_seconds": round(self.core_seconds, 1),
            "task_seconds": round(self.seconds, 1),
            "bytes_read": self.read,
            "bytes_written": self.written,
        }


def extract_on_cluster(
    cluster: Cluster,
    recipe: dict[str, Any],
    columns: list[str],
    patches: PatchSet,
    shown: np.ndarray | NormalisedPixels,
    folder: Path,
    *,
    shard: int,
    networks: Path | None = None,
    progress: Callable[[int], None],
) -> Spent:
    """Compute a table on a cluster's workers into ``folder/values.npy``, bit for bit as one machine does.

    Each part is a file that carries its digest in its name; those that an earlier call left are used, damaged ones are
    made again.

    Parameters
    ----------
    cluster : Cluster
    recipe : dict
        See :func:`pipelines.engine.worker.job_text`.
    columns : list of str
    patches : PatchSet
    shown : ndarray or NormalisedPixels
        Its pixels, or these stain-normalised: workers then find the stains of each slide in the job.
    folder : Path
        Of the step under way.
    shard : int
        Patches a part.
    networks : Path, optional
        Folder of the networks' files that the recipe names.
    progress : callable
        Takes the number of patches just finished, or found finished.
    """
    spent = Spent()
    if holds(folder / VALUES, (len(patches.pixels), len(columns))):
        progress(len(patches.pixels))
        return spent
    cluster.connect()
    pixels = StoredArray.find(cluster.publish(patches.folder / PIXELS, f"patches-{patches.digest[:16]}"), PIXELS)
    text = job_text(pixels, columns, recipe | (_stains(shown) if isinstance(shown, NormalisedPixels) else {}))
    key = job_key(text)
    store = _parts_folder(cluster, folder, key)
    if networks is not None:
        for name in files_under(networks):
            store.inside(NETWORKS).upload(networks / name, name)
    store.make().write(JOB, text.encode())
    sums = patches.table["sha256"].tolist()
    wanted = [(start, min(start + shard, len(sums))) for start in range(0, len(sums), shard)]
    found = _parts_there(store, wanted)
    if found:
        progress(sum(stop - start for start, stop in found))
    for _ in range(ROUNDS):
        missing = [rows for rows in wanted if rows not in found]
        tasks = [(make_part, (store.url, key, *rows, pixels_digest(sums[slice(*rows)]))) for rows in missing]
        for part in cluster.run(tasks):
            spent.add(part)
            found[part.start, part.stop] = part.name
            progress(part.stop - part.start)
        damaged = _join(store, [(rows, found[rows]) for rows in wanted], columns, folder / VALUES)
        if not damaged:
            break
        for rows in damaged:
            store.remove(found.pop(rows))
        progress(-sum(stop - start for start, stop in damaged))
    else:
        raise InputError(f"{store.url}: parts came back damaged {ROUNDS} times. Look at that folder's disk or network.")
    if not cluster.engine.store:
        store.remove_all()
    return spent


def _stains(shown: NormalisedPixels) -> dict[str, Any]:
    """Stains of each slide, and the number of each patch's: a slide's patches share them."""
    stains, of = np.unique(shown.stains.reshape(len(shown), -1), axis=0, return_inverse=True)
    return {"stains": stains.tolist(), "stains_of": of.ravel().tolist()}


def embed_on_cluster(
    cluster: Cluster,
    compute: EmbeddingCompute | SideBySide,
    columns: list[str],
    patches: PatchSet,
    shown: np.ndarray | NormalisedPixels,
    folder: Path,
    *,
    shard: int,
    progress: Callable[[int], None],
) -> Spent:
    """Embed patches on a cluster's workers, which get the networks as files; see :func:`extract_on_cluster`."""
    from histoblend.features.networks.stored import store_networks

    with tempfile.TemporaryDirectory() as place:
        networks = Path(place, NETWORKS)
        entries = store_networks(compute, patches.pixels.shape[1], networks)
        sums = {name: hashlib.sha256((networks / name).read_bytes()).hexdigest() for name in files_under(networks)}
        recipe = {"networks": entries, "files": sums}
        options: dict[str, Any] = {"shard": shard, "networks": networks, "progress": progress}
        return extract_on_cluster(cluster, recipe, columns, patches, shown, folder, **options)


def _parts_folder(cluster: Cluster, folder: Path, key: str) -> Store:
    """Where a table's parts lie: in the step's folder, or for good in the store, for whoever wants Parquet."""
    if not cluster.engine.store:
        return Store(str(folder.resolve() / PARTS))
    return cluster.store.inside(f"{folder.name.removesuffix('.partial')}-{key[:16]}")


def _parts_there(store: Store, wanted: list[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """Parts of these very rows that an earlier call left."""
    names = ((_NAME.fullmatch(name), name) for name in store.names())
    rows = {(int(match[1]), int(match[2])): name for match, name in names if match}
    return {each: rows[each] for each in wanted if each in rows}


def _join(
    store: Store, parts: list[tuple[tuple[int, int], str]], columns: list[str], target: Path
) -> list[tuple[int, int]]:
    """Stream the parts into one table; return the rows of those that are damaged, and then write none."""
    damaged: list[tuple[int, int]] = []

    def blocks() -> Iterator[np.ndarray]:
        for rows, name in parts:
            content = store.read_sealed(name)
            if content is None:
                damaged.append(rows)
            elif not damaged:
                yield from_parquet(content, columns)
        if damaged:
            raise _Damaged

    total = parts[-1][0][1] if parts else 0
    with contextlib.suppress(_Damaged):
        write_rows(target, blocks(), (total, len(columns)), np.float32)
    return damaged


class _Damaged(Exception):  # noqa: N818 - what was found, not that it is an error
    pass
