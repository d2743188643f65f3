"""Tables computed on a cluster: each task writes one part as a Parquet file, and the parts are joined to one table."""

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
from histoblend.data.storage.arrays import StoredRows, files_under
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
    from histoblend.features.networks.embeddings import ConcatenatedEmbeddings, EmbeddingCompute

PARTS = "parts"

_PART_NAME = re.compile(r"part-(\d{9})-(\d{9})-[0-9a-f]+\.parquet")

#: Attempts to get a table without damaged parts.
ROUNDS = 3


@dataclass
class PartTotals:
    """Time, bytes and workers that the parts of a table took, in total."""

    core_seconds: float = 0.0
    seconds: float = 0.0
    read: int = 0
    written: int = 0
    parts: int = 0
    workers: set[str] = field(default_factory=set)

    def add(self, part: Part) -> None:
        """Add a computed part to the totals."""
        self.core_seconds += part.core_seconds
        self.seconds += part.seconds
        self.read += part.read
        self.written += part.written
        self.parts += 1
        self.workers.add(part.worker)

    def notes(self) -> dict[str, Any]:
        """Totals for the step's manifest."""
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
    images: np.ndarray | StoredRows | NormalisedPixels,
    folder: Path,
    *,
    shard: int,
    networks: Path | None = None,
    progress: Callable[[int], None],
) -> PartTotals:
    """Compute a table on a cluster into ``folder/values.npy``; it is bit-identical to that of one machine.

    Each part is a file whose name contains its digest. Parts of an interrupted run are used again; damaged parts are
    computed again.

    Parameters
    ----------
    cluster : Cluster
    recipe : dict
        See :func:`pipelines.engine.worker.job_text`.
    columns : list of str
    patches : PatchSet
    images : ndarray, StoredRows or NormalisedPixels
        Pixels of the patches, as stored or stain-normalised. If normalised, the job holds the stains of each slide.
    folder : Path
        Folder of the current step.
    shard : int
        Patches per part.
    networks : Path, optional
        Folder of the network files that the recipe names.
    progress : callable
        Called with the number of patches just computed, or found in existing parts.
    """
    usage = PartTotals()
    if holds(folder / VALUES, (len(patches.pixels), len(columns))):
        progress(len(patches.pixels))
        return usage
    cluster.connect()
    pixels = StoredArray.find(cluster.publish(patches.folder / PIXELS, f"patches-{patches.digest[:16]}"), PIXELS)
    text = job_text(pixels, columns, recipe | (_stains(images) if isinstance(images, NormalisedPixels) else {}))
    key = job_key(text)
    store = _parts_folder(cluster, folder, key)
    if networks is not None:
        for name in files_under(networks):
            store.inside(NETWORKS).upload(networks / name, name)
    store.make().write(JOB, text.encode())
    sums = patches.table["sha256"].tolist()
    spans = [(start, min(start + shard, len(sums))) for start in range(0, len(sums), shard)]
    parts = _existing_parts(store, spans)
    if parts:
        progress(sum(stop - start for start, stop in parts))
    for _ in range(ROUNDS):
        missing = [span for span in spans if span not in parts]
        tasks = [(make_part, (store.url, key, *span, pixels_digest(sums[slice(*span)]))) for span in missing]
        for part in cluster.run(tasks):
            usage.add(part)
            parts[part.start, part.stop] = part.name
            progress(part.stop - part.start)
        damaged = _join(store, [(span, parts[span]) for span in spans], columns, folder / VALUES)
        if not damaged:
            break
        for span in damaged:
            store.remove(parts.pop(span))
        progress(-sum(stop - start for start, stop in damaged))
    else:
        raise InputError(
            f"{store.url}: parts were damaged {ROUNDS} times in a row. Check that folder's disk or network."
        )
    if not cluster.engine.store:
        store.remove_all()
    return usage


def _stains(images: NormalisedPixels) -> dict[str, Any]:
    """The distinct stains, one row per slide, and for each patch the number of its row."""
    stains, row = np.unique(images.stains.reshape(len(images), -1), axis=0, return_inverse=True)
    return {"stains": stains.tolist(), "stains_of": row.ravel().tolist()}


def embed_on_cluster(
    cluster: Cluster,
    compute: EmbeddingCompute | ConcatenatedEmbeddings,
    columns: list[str],
    patches: PatchSet,
    images: np.ndarray | StoredRows | NormalisedPixels,
    folder: Path,
    *,
    shard: int,
    progress: Callable[[int], None],
) -> PartTotals:
    """Embed patches on a cluster. Workers get the networks as files; see :func:`extract_on_cluster`."""
    from histoblend.features.networks.stored import store_networks

    with tempfile.TemporaryDirectory() as temporary:
        networks = Path(temporary, NETWORKS)
        entries = store_networks(compute, patches.pixels.shape[1], networks)
        sums = {name: hashlib.sha256((networks / name).read_bytes()).hexdigest() for name in files_under(networks)}
        recipe = {"networks": entries, "files": sums}
        options: dict[str, Any] = {"shard": shard, "networks": networks, "progress": progress}
        return extract_on_cluster(cluster, recipe, columns, patches, images, folder, **options)


def _parts_folder(cluster: Cluster, folder: Path, key: str) -> Store:
    """Folder of a table's parts: in the step's folder, or in the store, where the Parquet files are kept."""
    if not cluster.engine.store:
        return Store(str(folder.resolve() / PARTS))
    return cluster.store.inside(f"{folder.name.removesuffix('.partial')}-{key[:16]}")


def _existing_parts(store: Store, spans: list[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """File names of parts, of exactly these rows, that an interrupted run left."""
    names = ((_PART_NAME.fullmatch(name), name) for name in store.names())
    existing = {(int(match[1]), int(match[2])): name for match, name in names if match}
    return {span: existing[span] for span in spans if span in existing}


def _join(
    store: Store, parts: list[tuple[tuple[int, int], str]], columns: list[str], target: Path
) -> list[tuple[int, int]]:
    """Stream the parts into one table. If any are damaged, return their rows and write no table."""
    damaged: list[tuple[int, int]] = []

    def blocks() -> Iterator[np.ndarray]:
        for span, name in parts:
            content = store.read_sealed(name)
            if content is None:
                damaged.append(span)
            elif not damaged:
                yield from_parquet(content, columns)
        if damaged:
            raise _DamagedPartError

    total = parts[-1][0][1] if parts else 0
    with contextlib.suppress(_DamagedPartError):
        write_rows(target, blocks(), (total, len(columns)), np.float32)
    return damaged


class _DamagedPartError(Exception):
    pass
