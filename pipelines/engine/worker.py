"""Tasks of cluster workers for tables: read pixels from a store, compute one part, and write it to the store.

Only names, row numbers and counts pass between workers and scheduler.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.storage.store import Store, StoredArray
from histoblend.pipelines.runtime.provenance import code_digest, library_versions

JOB = "job.json"
NETWORKS = "networks"

#: Column of a part with each patch's row number in the patch table.
ROW = "row"

_opening = threading.Lock()


@dataclass(frozen=True)
class Part:
    """A part of a table, stored as one file.

    Attributes
    ----------
    start, stop : int
        Rows of the table: from ``start`` to before ``stop``.
    name : str
        Name of the file. It contains the digest of the content.
    seconds : float
        Wall time, including reading and writing.
    core_seconds : float
        CPU time of the thread that computed the part.
    read, written : int
        Bytes.
    worker : str
        Address of the worker.
    """

    start: int
    stop: int
    name: str
    seconds: float
    core_seconds: float
    read: int
    written: int
    worker: str


def job_text(pixels: StoredArray, columns: list[str], recipe: Mapping[str, Any]) -> str:
    """The job as JSON: everything that the parts of a table are computed from.

    Parameters
    ----------
    pixels : StoredArray
        (n, height, width, 3) uint8.
    columns : list of str
    recipe : mapping
        ``families``, or ``networks`` (:func:`features.networks.stored.store_networks`) and ``files`` (SHA-256 by name).
        For normalised stains also ``stains`` (:func:`features.slide_stain.stains_of`, one row of 6 values per slide)
        and ``stains_of``, the number of the row for each patch.
    """
    versions = {"code": code_digest(("data", "features")), "libraries": library_versions()}
    content = {"pixels": pixels.text, "columns": columns, "recipe": dict(recipe), **versions}
    return json.dumps(content, sort_keys=True)


def job_key(text: str) -> str:
    """SHA-256 (hex) of a job."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class _Job:
    pixels: StoredArray
    columns: list[str]
    compute: Callable[[np.ndarray], np.ndarray]
    stains: np.ndarray | None


def make_part(folder: str, key: str, start: int, stop: int, digest: str) -> Part:
    """Compute rows ``start`` to ``stop`` of a job's table and write them to the store as Parquet.

    Parameters
    ----------
    folder : str
        Address of the job's folder.
    key : str
        Digest of the job, from :func:`job_key`.
    start, stop : int
    digest : str
        :func:`pixels_digest` of these patches. It proves that they are the patches that the run split and audited.

    Raises
    ------
    InputError
        This worker has other code or libraries than the run, or the pixels are not those of the run.
    features.extract.NonFiniteError
        A value is NaN or infinite.
    """
    from threadpoolctl import threadpool_limits

    from histoblend.features.extract import checked
    from histoblend.features.slide_stain import normalise_by_slide

    started, cpu_started = time.perf_counter(), time.thread_time()
    store = Store(folder)
    with _opening:  # the threads of a worker share one job
        job = _open_job(folder, key)
    pixels = job.pixels.rows(start, stop)
    actual = pixels_digest([hashlib.sha256(patch.data).hexdigest() for patch in pixels])
    if actual != digest:
        raise InputError(
            f"{job.pixels.store.url}/{job.pixels.name}: rows {start} to {stop} are not the patches of this run. "
            "Remove the file and run again."
        )
    inputs = pixels if job.stains is None else normalise_by_slide(pixels, job.stains[start:stop])
    with threadpool_limits(1):
        values = checked(job.compute(inputs), start, (stop - start, len(job.columns)), np.float32)
    content = to_parquet(values, job.columns, start)
    name = store.write_sealed(f"part-{start:09d}-{stop:09d}", ".parquet", content)
    seconds, core_seconds = time.perf_counter() - started, time.thread_time() - cpu_started
    return Part(start, stop, name, seconds, core_seconds, pixels.nbytes, len(content), _worker())


def pixels_digest(sums: list[str]) -> str:
    """One digest of the SHA-256 sums of several patches."""
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def to_parquet(values: np.ndarray, columns: list[str], start: int) -> bytes:
    """Rows of a float32 table as a Parquet file, with their row numbers from ``start``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = [pa.array(np.arange(start, start + len(values))), *(pa.array(column) for column in values.T)]
    buffer = io.BytesIO()
    # No dictionaries or compression: measured values hardly repeat.
    table = pa.table(arrays, [ROW, *columns])
    pq.write_table(table, buffer, use_dictionary=False, compression="none", write_statistics=False)
    return buffer.getvalue()


def from_parquet(content: bytes, columns: list[str]) -> np.ndarray:
    """Values of a file written by :func:`to_parquet`, ndarray of shape (rows, columns), float32."""
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content), columns=columns)
    values = np.empty((table.num_rows, len(columns)), np.float32)
    for column, name in enumerate(columns):
        values[:, column] = table.column(name).to_numpy()
    return values


@functools.lru_cache(maxsize=4)
def _open_job(folder: str, key: str) -> _Job:
    """Read a job and open its networks, once per worker."""
    store = Store(folder)
    text = store.read(JOB).decode()
    if job_key(text) != key:
        raise InputError(f"{folder}/{JOB}: expected the job of this run; the file was altered. Run again.")
    content = json.loads(text)
    _check_worker(content)
    array = StoredArray.parse(content["pixels"])
    recipe = content["recipe"]
    stains = None
    if "stains" in recipe:
        stains = np.array(recipe["stains"], dtype=np.float64)[recipe["stains_of"]].reshape(-1, 2, 3)
    return _Job(array, content["columns"], _compute(recipe, store), stains)


def _check_worker(content: Mapping[str, Any]) -> None:
    """Refuse to work with other code or libraries than the machine that started the run: results could differ."""
    if content["code"] != code_digest(("data", "features")):
        raise InputError(f"worker {_worker()} runs other code than this run. Restart it, or update its image.")
    installed = library_versions()
    differ = sorted(name for name, version in content["libraries"].items() if installed.get(name) != version)
    if differ:
        versions = ", ".join(
            f"{name} {content['libraries'][name]} (worker: {installed.get(name, 'none')})" for name in differ
        )
        raise InputError(
            f"worker {_worker()} has other libraries than this run: {versions}. Install requirements-dask.txt "
            "there, on the same version of Python."
        )


def _compute(recipe: Mapping[str, Any], store: Store) -> Callable[[np.ndarray], np.ndarray]:
    if "families" in recipe:
        from histoblend.features.handcrafted.families import compile_kernels, compute

        compile_kernels(recipe["families"])
        return functools.partial(compute, families=recipe["families"])
    from histoblend.features.networks.stored import open_networks

    contents = {name: store.inside(NETWORKS).read(name) for name in recipe["files"]}
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != recipe["files"][name]:
            raise InputError(f"{store.url}/{NETWORKS}/{name} was altered. Remove it and run again.")
    return open_networks(recipe["networks"], contents)


def _worker() -> str:
    """Address of the worker that runs this code, or "here" outside a cluster."""
    from distributed import get_worker

    try:
        return str(get_worker().address)
    except ValueError:  # a test, or a benchmark without a cluster
        return "here"
