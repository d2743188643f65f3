"""PatchSet: a table of patches and their decoded pixels in one memory-mapped array."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.splits import check_splits
from histoblend.data.storage.arrays import StoredRows
from histoblend.data.storage.parts import Parts
from histoblend.data.workers import count_workers

PIXELS = "pixels.npy"
TABLE = "patches.parquet"
PARTS = "chunks"

#: Prefix of the names under which a chunk's part stores the results of ``measure``.
MEASURED = "measured-"

#: Height and width, in pixels, of the centre of a patch that the label describes.
CENTRE = 32

#: Results of measuring a chunk of patches: arrays by name.
Measured = Mapping[str, np.ndarray]
Measure = Callable[[np.ndarray], Measured]

#: Patches that a worker decodes at once. 256 patches of 96 × 96 take 7 MB, so memory does not grow with their number.
CHUNK = 256


class Source(Protocol):
    """A data set: a table that is known in advance, and pixels by row range.

    Attributes
    ----------
    table : DataFrame
        One row per patch with ``patch_id`` (str, unique), ``label`` (0 or 1) and ``slide`` (str, missing if unknown).
    size : int
        Height and width of a patch in pixels.

    Notes
    -----
    A source may also have:

    - ``skipped`` (dict): what it left out, and why;
    - ``notes`` (dict): how it read its files, for the manifest;
    - ``remedy`` (method): how to fix the given reasons of :meth:`read`, or "";
    - ``unlabelled``: another source, whose table has no ``label``, or None;
    - a table column ``official``: each patch's part of the official split, ``train``, ``valid`` or ``test``;
    - a table column ``centre``: the hospital or scanner of each patch (str, missing if unknown).
    """

    table: pd.DataFrame
    size: int

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Read the pixels of rows ``start`` to ``stop``, and say why some rows could not be read.

        Returns
        -------
        pixels : ndarray of shape (stop - start, size, size, 3), dtype uint8
            Rows that could not be read hold arbitrary values.
        reasons : mapping from int to str
            Why a row could not be read, by row counted from ``start``.
        """
        ...


@dataclass(frozen=True)
class PatchSet:
    """Patches of one data set, split by group.

    Attributes
    ----------
    pixels : StoredRows or ndarray of shape (n, height, width, 3), dtype uint8
        Read from the file when indexed.
    table : DataFrame
        ``patch_id, label, slide, group, split, fold, sha256``: one row per patch, in the order of ``pixels``. All
        patches of a group are on the same side of the split. ``slide`` is the one that the data set names. Also
        ``centre``, if any is known.
    digest : str
        SHA-256 of the table's content, including the hashes of all pixels.
    folder : Path
        Folder that holds the files.
    """

    pixels: StoredRows | np.ndarray
    table: pd.DataFrame
    digest: str
    folder: Path

    @classmethod
    def open(cls, folder: Path) -> PatchSet:
        """Open the patches that :func:`write_pixels` and :func:`write_table` wrote into ``folder``.

        Raises
        ------
        InputError
            A group spans two folds or splits, or pixels and table differ in length.
        """
        patches = cls.open_unlabelled(folder)
        check_splits(patches.table)
        return patches

    @classmethod
    def open_unlabelled(cls, folder: Path) -> PatchSet:
        """Open the patches that :func:`write_unlabelled` wrote; the table has ``patch_id, slide, sha256``.

        Raises
        ------
        InputError
            Pixels and table differ in length.
        """
        pixels = StoredRows(folder / PIXELS)
        table = pd.read_parquet(folder / TABLE)
        if len(table) != len(pixels):
            raise InputError(
                f"{folder}: patches and table must have the same length; got {len(pixels)} patches and "
                f"{len(table)} rows. Rebuild with --rebuild."
            )
        return cls(pixels, table, table_digest(table), folder)


def table_digest(table: pd.DataFrame) -> str:
    """SHA-256 (hex) of a patch table's content, including the order of its rows."""
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


def write_table(table: pd.DataFrame, folder: Path) -> None:
    """Check that no group spans two folds or splits, then write the patch table into ``folder``."""
    check_splits(table)
    table.to_parquet(folder / TABLE, index=False)


def write_pixels(
    source: Source,
    folder: Path,
    *,
    workers: int = 1,
    strict: bool = False,
    measure: Measure | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame, list[Measured]]:
    """Decode every patch of ``source`` once into ``folder/pixels.npy``, in bounded memory.

    A small part per chunk in ``folder/chunks`` records what was read, so an interrupted call resumes after the last
    complete chunk. :func:`remove_chunks` removes these parts when they are no longer needed.

    Parameters
    ----------
    source : Source
    folder : Path
        Existing folder. If it holds the files of an interrupted call, that call must have read the same source.
    workers : int
        Number of decoding threads. It does not change the result.
    strict : bool
        Raise an error for a patch that cannot be read, instead of setting it aside.
    measure : callable, optional
        Called in the decoding threads with patches (m, size, size, 3); returns arrays by name.
    progress : callable, optional
        Called with the number of patches just finished, or already finished by an interrupted call.

    Returns
    -------
    table : DataFrame
        The rows of ``source.table`` that were read, with ``sha256`` of each patch's decoded pixels.
    set_aside : DataFrame
        ``patch_id, reason`` of the patches that could not be read.
    measured : list of dict
        Results of ``measure`` in the order of the table; empty without ``measure``.

    Raises
    ------
    InputError
        No patch could be read, or ``strict`` is set and some patch could not.
    """
    total = len(source.table)
    hashes: list[str] = []
    measured: list[Measured] = []
    kept: list[int] = []
    reasons: dict[int, str] = {}
    shape = (source.size, source.size, 3)
    chunks = Parts(folder / PARTS)
    path = folder / PIXELS
    with path.open("r+b" if path.exists() else "w+b") as file:
        header = _write_header(file, (total, *shape))
        for start, chunk in _all_chunks(source, file, chunks, total, workers, measure):
            for row, reason in zip(chunk["lost"].tolist(), chunk["reasons"].tolist(), strict=True):
                if strict:
                    advice = remedy(source, [reason]) or "Fix the file or run without --strict."
                    raise InputError(f"{source.table.patch_id.iloc[start + row]}: {reason}. {advice}")
                reasons[start + row] = reason
            hashes += chunk["hashes"].tolist()
            names = [name for name in chunk if name.startswith(MEASURED)]
            if measure is not None and len(chunk["rows"]):
                measured.append({name.removeprefix(MEASURED): chunk[name] for name in names})
            kept += (start + chunk["rows"]).tolist()
            if progress is not None:
                progress(len(chunk["rows"]) + len(chunk["lost"]))
        if not kept:
            first = next(iter(reasons.values()), "the source is empty")
            advice = remedy(source, reasons.values()) or "Check the data folder."
            raise InputError(f"none of {total} patches could be read (first reason: {first}). {advice}")
        file.seek(0)
        if _write_header(file, (len(kept), *shape)) != header:
            raise RuntimeError("the array header changed its length, although numpy pads it to a fixed length")
        file.flush()
        os.fsync(file.fileno())
    table = source.table.iloc[kept].reset_index(drop=True).assign(sha256=hashes)
    lost = list(reasons)
    set_aside = pd.DataFrame(
        {"patch_id": source.table.patch_id.iloc[lost].to_numpy(), "reason": [reasons[row] for row in lost]}
    )
    return table, set_aside, measured


def remedy(source: Source, reasons: Iterable[str]) -> str:
    """Ask the source how to fix patches that could not be read for these reasons; empty if it has no advice."""
    propose: Callable[[Iterable[str]], str] = getattr(source, "remedy", lambda _reasons: "")
    return propose(reasons)


def write_unlabelled(
    source: Source,
    folder: Path,
    *,
    workers: int = 1,
    strict: bool = False,
    progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Decode patches without labels, and so without a split, into ``pixels.npy`` and ``patches.parquet``.

    Parameters
    ----------
    source : Source
        Its table needs no ``label``.
    folder : Path
        Created if it does not exist.
    workers, strict, progress
        See :func:`write_pixels`.

    Returns
    -------
    DataFrame
        ``patch_id, reason`` of the patches that were set aside.

    Raises
    ------
    InputError
        See :func:`write_pixels`.
    """
    folder.mkdir(exist_ok=True)
    table, set_aside, _ = write_pixels(source, folder, workers=workers, strict=strict, progress=progress)
    table.to_parquet(folder / TABLE, index=False)
    remove_chunks(folder)
    skipped = getattr(source, "skipped", {})
    more = pd.DataFrame({"patch_id": list(skipped), "reason": list(skipped.values())})
    return pd.concat([set_aside, more], ignore_index=True) if skipped else set_aside


def remove_chunks(folder: Path) -> None:
    """Remove the parts that :func:`write_pixels` keeps so that it can resume."""
    Parts(folder / PARTS).forget()


def drop_rows(folder: Path, keep: np.ndarray) -> None:
    """Rewrite ``folder/pixels.npy`` in place, chunk by chunk, keeping only some of its patches.

    Parameters
    ----------
    folder : Path
        Patches to keep.
    """
    with (folder / PIXELS).open("r+b") as file:
        shape, offset = _read_header(file)
        patch_bytes = int(np.prod(shape[1:]))
        end = offset
        for start in range(0, shape[0], CHUNK):
            file.seek(offset + start * patch_bytes)
            count = min(CHUNK, shape[0] - start)
            chunk = np.frombuffer(file.read(count * patch_bytes), np.uint8).reshape(count, patch_bytes)
            file.seek(end)
            # Writing never overtakes reading.
            end += file.write(np.ascontiguousarray(chunk[keep[start : start + count]]).data)
        file.truncate(end)
        file.seek(0)
        if _write_header(file, (int(keep.sum()), *shape[1:])) != offset:
            raise RuntimeError("the array header changed its length, although numpy pads it to a fixed length")
        file.flush()
        os.fsync(file.fileno())


def _all_chunks(
    source: Source, file: BinaryIO, chunks: Parts, total: int, workers: int, measure: Measure | None
) -> Iterator[tuple[int, Measured]]:
    """Yield (start, chunk) in order, and write the pixels into ``file`` from its current position on."""
    patch_bytes = source.size * source.size * 3
    begin = 0
    while begin < total and (chunk := _finished_chunk(file, chunks, begin, patch_bytes)) is not None:
        yield begin, chunk
        begin += CHUNK
    file.truncate()
    for start, (pixels, chunk) in _chunks(source, begin, total, workers, measure):
        file.write(pixels.data)
        # No sync to disk here: no other process reads the pixels yet, and the hashes reveal any that a crash lost.
        file.flush()
        chunks.keep(_part_name(start), chunk)
        yield start, chunk


def _finished_chunk(file: BinaryIO, chunks: Parts, start: int, patch_bytes: int) -> Measured | None:
    """Return the chunk of an earlier call if its pixels are intact; otherwise None, at the same file position."""
    chunk = chunks.find(_part_name(start))
    if chunk is None:
        return None
    before, count = file.tell(), len(chunk["rows"])
    pixels = file.read(patch_bytes * count)
    hashes = [hashlib.sha256(pixels[row * patch_bytes : (row + 1) * patch_bytes]).hexdigest() for row in range(count)]
    if hashes == chunk["hashes"].tolist():
        return chunk
    file.seek(before)
    return None


def _part_name(start: int) -> str:
    return f"rows-{start:08d}"


def _read_chunk(source: Source, start: int, stop: int, measure: Measure | None) -> tuple[np.ndarray, Measured]:
    """Read a chunk; return the pixels of its readable rows, and the part that records them and the other rows."""
    pixels, reasons = source.read(start, stop)
    rows = [row for row in range(len(pixels)) if row not in reasons]
    pixels = np.ascontiguousarray(pixels[rows] if reasons else pixels)
    chunk = {
        "rows": np.array(rows, np.int64),
        "hashes": np.array([hashlib.sha256(patch.data).hexdigest() for patch in pixels], "U64"),
        "lost": np.array(sorted(reasons), np.int64),
        "reasons": np.array([reasons[row] for row in sorted(reasons)], np.str_),
    }
    measured = measure(pixels) if measure is not None else {}
    return pixels, chunk | {f"{MEASURED}{name}": values for name, values in measured.items()}


def _chunks(
    source: Source, begin: int, total: int, workers: int, measure: Measure | None
) -> Iterator[tuple[int, tuple[np.ndarray, Measured]]]:
    """Yield (start, (pixels, chunk)) in order, with at most two chunks per worker in progress."""
    starts = list(range(begin, total, CHUNK))
    workers = count_workers(workers)
    with ThreadPoolExecutor(max_workers=workers) as pool:
        pending = []
        for start in [*starts, *([None] * (2 * workers))]:
            if start is not None:
                pending.append((start, pool.submit(_read_chunk, source, start, min(start + CHUNK, total), measure)))
            if pending and (start is None or len(pending) > 2 * workers):
                first, future = pending.pop(0)
                yield first, future.result()


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], int]:
    """Shape of an ``.npy`` file of uint8, and the position of its first value."""
    np.lib.format.read_magic(file)
    shape, _, _ = np.lib.format.read_array_header_1_0(file)
    return shape, file.tell()


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> int:
    """Write an ``.npy`` header for uint8 of ``shape``; return its length in bytes."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()


class Patches(Protocol):
    """Pixels and their table, with the same row order; a PatchSet is one."""

    @property
    def pixels(self) -> StoredRows | np.ndarray:
        """RGB, shape (n, height, width, 3), dtype uint8."""
        ...

    @property
    def table(self) -> pd.DataFrame:
        """One row per patch, with ``patch_id``."""
        ...


def rows_of_patches(patches: Patches, patch_ids: Iterable[str]) -> list[int]:
    """Row numbers of the named patches, in the order of the names.

    Raises
    ------
    ValueError
        A named patch is missing.
    """
    row_of = pd.Series(np.arange(len(patches.table)), index=patches.table.patch_id.to_numpy())
    ids = pd.Index(list(patch_ids))
    missing = ids[~ids.isin(row_of.index)]
    if len(missing):
        raise ValueError(f"every predicted patch must be among the patches; {missing[0]!r} is not.")
    return [int(row) for row in row_of[ids]]
