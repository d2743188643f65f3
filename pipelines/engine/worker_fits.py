"""Tasks of cluster workers for heads: fit on a table in the store, predict a block, and write results as files."""

from __future__ import annotations

import functools
import io
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.storage.arrays import files_under
from histoblend.data.storage.expansion import check_zip_members
from histoblend.data.storage.store import Store, StoredArray
from histoblend.models.heads.registry import head_from

_reading = threading.Lock()


def fit_whole(
    results: str,
    name: str,
    array: str,
    head: str,
    labels: np.ndarray,
    groups: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
    seed: int,
    columns: np.ndarray | None,
) -> str:
    """Fit a head on ``rows`` of a table and predict ``out``; return the name of the file with both.

    Arguments are those of :func:`pipelines.engine.fits.fit`, with ``results`` as the folder of the file and the table
    as :attr:`data.storage.store.StoredArray.text`. The result is bit-identical.
    """
    from histoblend.pipelines.engine.fits import fit

    with _reading:  # the threads of a worker share one table
        table = _table(array)
    predicted, model, seconds = fit(head, table, labels, groups, rows, out, seed, columns)
    return Store(results).write_sealed(f"fit-{name}", ".npz", pack(model, predicted, seconds))


def read_block(array: str, start: int, stop: int) -> np.ndarray:
    """Rows of a table in the store (:attr:`data.storage.store.StoredArray.text`)."""
    return StoredArray.parse(array).rows(start, stop)


def predict_block(
    results: str, head: str, stem: str, X: np.ndarray, rows: np.ndarray, columns: np.ndarray | None
) -> tuple[str, float]:
    """Predict some rows of a block with a stored head; return the name of the Parquet file, and core-seconds."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from threadpoolctl import threadpool_limits

    from histoblend.models.table_blocks import take

    started = time.thread_time()
    with threadpool_limits(1):
        probability = _stored_head(results, head).predict_proba(take(X, rows, columns))[:, 1]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"probability": probability}), buffer)
    return Store(results).write_sealed(stem, ".parquet", buffer.getvalue()), time.thread_time() - started


def read_probabilities(store: Store, name: str) -> np.ndarray:
    """Probabilities that :func:`predict_block` wrote, ndarray of shape (rows,), float64."""
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(_read_result(store, name))).column("probability").to_numpy()


def pack(model: Any, predicted: np.ndarray, seconds: float) -> bytes:
    """A fitted head and its predictions as one file, without pickle."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder))
        files = {name: np.frombuffer(Path(folder, name).read_bytes(), np.uint8) for name in files_under(Path(folder))}
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {f"file-{name}": content for name, content in files.items()}
    np.savez(buffer, allow_pickle=False, predicted=predicted, seconds=np.float64(seconds), **arrays)
    return buffer.getvalue()


def unpack(store: Store, name: str) -> tuple[np.ndarray, Any, float]:
    """Predictions, fitted head and seconds from a file that :func:`pack` made."""
    content = _read_result(store, name)
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        check_zip_members(f"{store.url}/{name}", arrays.zip, len(content))
        files = {key.removeprefix("file-"): arrays[key].tobytes() for key in arrays if key.startswith("file-")}
        head = head_from(files, f"{store.url}/{name}")
        return arrays["predicted"], head, float(arrays["seconds"])


def _read_result(store: Store, name: str) -> bytes:
    content = store.read_sealed(name)
    if content is None:
        raise InputError(f"{store.url}/{name}: the result of a worker is missing or was altered. Run again.")
    return content


@functools.lru_cache(maxsize=1)
def _table(text: str) -> np.ndarray:
    """A table of the store. Local files are memory-mapped, so the workers of a machine share one copy."""
    array = StoredArray.parse(text)
    folder = array.store.local
    if folder is not None:
        return np.load(folder / array.name, mmap_mode="r", allow_pickle=False)
    return array.rows(0, array.shape[0])


@functools.lru_cache(maxsize=4)
def _stored_head(results: str, name: str) -> Any:
    return unpack(Store(results), name)[1]
