"""Apply a batch function to many patches, shard by shard, and resume after an interruption."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.storage.arrays import open_array
from histoblend.data.storage.atomic import is_sealed, remove_unfinished_files, write_atomically
from histoblend.data.storage.parts import Parts
from histoblend.data.workers import count_workers

Compute = Callable[[Any], np.ndarray]
Progress = Callable[[int], None]


class Pixels(Protocol):
    """Patches that shards are cut from: an array, or an object that reads or computes rows on request."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""

    @property
    def dtype(self) -> Any:
        """Type of the array."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Return some rows, in the form that the computation takes."""


class NonFiniteError(ValueError):
    """A function of patches returned NaN or infinity.

    Attributes
    ----------
    column, row : int
        Position of the first such value in the whole table.
    value : float
        The first such value.
    count : int
        Number of such values in the shard.
    """

    def __init__(self, column: int, row: int, value: float, count: int) -> None:
        # Pass on all arguments: an exception from a worker process is rebuilt from them.
        super().__init__(column, row, value, count)
        self.column, self.row, self.value, self.count = column, row, value, count

    def __str__(self) -> str:
        return (
            f"column {self.column} of patch row {self.row} must be finite; got {self.value} ({self.count} such values "
            "in its shard). Inspect the pixels of this patch, and define the feature for them."
        )


def extract_shards(
    compute: Compute,
    pixels: Pixels,
    folder: str | os.PathLike[str],
    width: int,
    *,
    shard_size: int = 256,
    workers: int = 1,
    prefer: Literal["processes", "threads"] = "processes",
    dtype: type[np.floating[Any]] = np.float32,
    progress: Progress | None = None,
) -> np.ndarray:
    """Compute a table of numbers for all patches, shard by shard, and write it to `folder`/values.npy.

    Each finished shard is stored in `folder`/shards (:class:`data.storage.parts.Parts`), so a second call resumes an
    interrupted one. A shard is named after its rows, so shards of a call with another `shard_size` are not confused. If
    `values.npy` already exists with the right shape, it is returned unchanged. Every file ends with the SHA-256 of its
    content, and a damaged file is computed again.

    Parameters
    ----------
    compute : callable
        Picklable; takes (m, height, width, 3) uint8 and returns (m, `width`) of `dtype`. A row must depend on its own
        patch only.
    pixels : ndarray of shape (n, height, width, 3), dtype uint8
        RGB patches, 0 to 255, or an array-like object (:class:`Pixels`). A memory map is passed to the workers by
        reference.
    folder : path
        Created if missing. It must belong to this computation only.
    width : int
        Number of columns that `compute` returns.
    shard_size : int
        Patches per shard. Together with `workers`, it limits memory use.
    workers : int
        Number of workers. 1 computes in this process; more run under joblib with one thread each; -1 uses one per core
        (:func:`data.workers.count_workers`).
    prefer : {"processes", "threads"}
        Kind of workers. Threads suit functions that release the interpreter lock.
    dtype : type
        Type of the result: float32, or float16, which halves the size at lower precision.
    progress : callable, optional
        Called with the number of patches just finished, including those stored by an earlier call.

    Returns
    -------
    ndarray of shape (n, width)
        Read-only memory map of `folder`/values.npy, bit-identical for any shard size, order and number of workers.

    Raises
    ------
    NonFiniteError
        If a result contains NaN or infinity.
    ValueError
        If an argument or a result has the wrong shape.
    TypeError
        If pixels are not uint8 or results are not of `dtype`.
    """
    workers = count_workers(workers)
    _check_arguments(pixels, width, shard_size)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "values.npy"
    rows = pixels.shape[0]
    report = progress or (lambda _: None)
    remove_unfinished_files(folder)
    shards = Parts(folder / "shards")
    if holds(target, (rows, width), dtype):
        report(rows)
    else:
        ranges = [(start, min(start + shard_size, rows)) for start in range(0, rows, shard_size)]
        pending = [span for span in ranges if shards.find(_shard_name(*span)) is None]
        for start, stop in set(ranges).difference(pending):
            report(stop - start)
        for finished in _compute_shards(compute, pixels, shards, width, dtype, pending, workers, prefer):
            report(finished)
        blocks = (shards.read(_shard_name(*span))["values"] for span in ranges)
        write_rows(target, blocks, (rows, width), dtype)
    shards.forget()
    return open_array(target, mapped=True)


def _check_arguments(pixels: Pixels, width: int, shard_size: int) -> None:
    if len(pixels.shape) != 4 or pixels.shape[-1] != 3:
        raise ValueError(f"pixels must have shape (n, height, width, 3); got {pixels.shape}.")
    if pixels.dtype != np.uint8:
        raise TypeError(f"pixels must be uint8, 0 to 255; got {pixels.dtype}. Convert before calling.")
    for name, value in (("width", width), ("shard_size", shard_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}.")


def _shard_name(start: int, stop: int) -> str:
    return f"rows-{start:08d}-{stop:08d}"


def holds(path: Path, shape: tuple[int, int], dtype: type[np.floating[Any]] = np.float32) -> bool:
    """Return whether `path` is a complete array of this shape and type; a damaged file is not."""
    try:
        array = open_array(path, mapped=True)
    except (OSError, InputError):
        return False
    return array.shape == shape and array.dtype == dtype and is_sealed(path)


def _compute_shards(
    compute: Compute,
    pixels: Pixels,
    shards: Parts,
    width: int,
    dtype: type[np.floating[Any]],
    pending: list[tuple[int, int]],
    workers: int,
    prefer: Literal["processes", "threads"],
) -> Iterator[int]:
    """Compute the pending shards and yield the size of each once it is on disk."""
    workers = min(workers, len(pending))
    if workers <= 1:
        for start, stop in pending:
            yield _compute_shard(compute, pixels[start:stop], shards, start, width, dtype)
        return
    from joblib import Parallel, delayed, parallel_config

    backend = {"processes": "loky", "threads": "threading"}[prefer]
    # only loky can limit its workers' libraries to one thread; threads share the setting of this process
    limits = {"inner_max_num_threads": 1} if prefer == "processes" else {}
    with parallel_config(backend, **limits):
        # max_nbytes=None: arrays are sent with their task, a few at once, instead of through a temporary folder
        pool = Parallel(n_jobs=workers, return_as="generator_unordered", max_nbytes=None)
        yield from pool(
            delayed(_compute_shard)(compute, pixels[start:stop], shards, start, width, dtype) for start, stop in pending
        )


def _compute_shard(
    compute: Compute, patches: np.ndarray, shards: Parts, start: int, width: int, dtype: type[np.floating[Any]]
) -> int:
    values = checked(compute(patches), start, (len(patches), width), dtype)
    shards.keep(_shard_name(start, start + len(patches)), {"values": values})
    return len(patches)


def checked(
    values: np.ndarray, start: int, shape: tuple[int, int], dtype: type[np.floating[Any]] = np.float32
) -> np.ndarray:
    """Validate the values computed for the patches from row `start` on, and return them.

    Raises
    ------
    NonFiniteError, ValueError, TypeError
        As for :func:`extract_shards`.
    """
    if values.shape != shape:
        raise ValueError(f"compute must return shape {shape}; got {values.shape}.")
    if values.dtype != dtype:
        raise TypeError(f"compute must return {np.dtype(dtype)}; got {values.dtype}.")
    not_finite = np.argwhere(~np.isfinite(values))
    if len(not_finite):
        row, column = map(int, not_finite[0])
        raise NonFiniteError(column, start + row, float(values[row, column]), len(not_finite))
    return values


def write_rows(
    path: Path,
    blocks: Iterable[np.ndarray],
    shape: tuple[int, int],
    dtype: type[np.floating[Any]],
    *,
    scratch: bool = False,
) -> None:
    """Write blocks of rows to one .npy file, which appears under its name only when complete.

    It is sealed, and survives a power failure, unless it is only ``scratch``.
    """

    def write(file: BinaryIO) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
        np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
        for block in blocks:
            file.write(np.ascontiguousarray(block).data)

    write_atomically(path, write, seal=not scratch, sync=not scratch)
