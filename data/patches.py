"""PatchSet: every patch decoded once into one memory-mapped array, beside one table."""

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
from histoblend.data.storage.arrays import open_array
from histoblend.data.storage.parts import Parts
from histoblend.data.workers import count_workers

PIXELS = "pixels.npy"
TABLE = "patches.parquet"
PARTS = "chunks"

#: Names of what was measured begin with this in a chunk's part.
MEASURED = "measured-"

#: The label speaks of this many pixels in the centre of a patch, height and width.
CENTRE = 32

#: What is measured on a chunk of patches: arrays by name.
Measured = Mapping[str, np.ndarray]
Measure = Callable[[np.ndarray], Measured]

#: Patches decoded by one worker at a time: 256 patches of 96 × 96 are 7 MB, so memory stays flat whatever n is.
CHUNK = 256


class Source(Protocol):
    """What a kind of data set offers: a table known up front, and pixels by row range.

    Attributes
    ----------
    table : DataFrame
        A row a patch with ``patch_id`` (str, unique), ``label`` (0 or 1) and ``slide`` (str, missing when unknown).
    size : int
        Height and width of a patch in pixels.

    Notes
    -----
    A source may also have ``skipped`` (dict: what it left out, and why), ``notes`` (dict: how it read its files, for
    the manifest), ``remedy`` (a method: what to do about reasons of :meth:`read`, or "") and ``unlabelled`` (another
    source, whose table has no ``label``, or None). A column ``official`` of
    the table, where it has one, says in which split its makers put a patch: ``train``, ``valid`` or ``test``.
    """

    table: pd.DataFrame
    size: int

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Pixels of rows ``start`` to ``stop`` and, by row, the reason why a row could not be read.

        Returns
        -------
        pixels : ndarray of shape (stop - start, size, size, 3), dtype uint8
            Rows that could not be read hold arbitrary values.
        reasons : mapping from row (counted from ``start``) to str
        """
        ...


@dataclass(frozen=True)
class PatchSet:
    """Patches of one data set, split by group.

    Attributes
    ----------
    pixels : ndarray of shape (n, height, width, 3), dtype uint8
        Memory-mapped and read-only.
    table : DataFrame
        ``patch_id, label, slide, group, split, fold, sha256``, a row a patch, in the order of ``pixels``. Patches of
        one group never stand on two sides; ``slide`` is what the data set says.
    digest : str
        SHA-256 over the table's content, hashes of all pixels included.
    folder : Path
        Where they lie.
    """

    pixels: np.ndarray
    table: pd.DataFrame
    digest: str
    folder: Path

    @classmethod
    def open(cls, folder: Path) -> PatchSet:
        """Open the patches that :func:`write_pixels` and :func:`write_table` left in ``folder``.

        Raises
        ------
        InputError
            A group stands in two folds or splits, or pixels and table differ in length.
        """
        patches = cls.open_unlabelled(folder)
        check_splits(patches.table)
        return patches

    @classmethod
    def open_unlabelled(cls, folder: Path) -> PatchSet:
        """Open the patches that :func:`write_unlabelled` left in ``folder``: a table of ``patch_id, slide, sha256``.

        Raises
        ------
        InputError
            Pixels and table differ in length.
        """
        pixels = open_array(folder / PIXELS, mapped=True)
        table = pd.read_parquet(folder / TABLE)
        if len(table) != len(pixels):
            raise InputError(
                f"{folder}: patches and table must have the same length; got {len(pixels)} patches and "
                f"{len(table)} rows. Rebuild with --rebuild."
            )
        return cls(pixels, table, table_digest(table), folder)


def table_digest(table: pd.DataFrame) -> str:
    """SHA-256 (hex) of a patch table's content, row order included."""
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


def write_table(table: pd.DataFrame, folder: Path) -> None:
    """Write the patch table into ``folder``; checks first that no group spans two folds or splits."""
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

    Beside it, a small part per chunk in ``folder/chunks`` says what was read, so that an interrupted call resumes after
    the last whole chunk; :func:`forget_chunks` removes these parts once they are no longer needed.

    Parameters
    ----------
    source : Source
    folder : Path
        Existing folder. What an interrupted call left there must be of this very source.
    workers : int
        Decoding threads. The result does not depend on it.
    strict : bool
        A patch that cannot be read is fatal, instead of being set aside.
    measure : callable, optional
        What else to find out while pixels are at hand: takes patches (m, size, size, 3), runs in the decoding threads,
        returns arrays by name.
    progress : callable, optional
        Called with the number of patches just finished, or found finished.

    Returns
    -------
    table : DataFrame
        The rows of ``source.table`` that were read, with ``sha256`` of each patch's decoded pixels.
    set_aside : DataFrame
        ``patch_id, reason`` of the others.
    measured : list of dict
        What ``measure`` returned, in the order of the table; empty without it.

    Raises
    ------
    InputError
        No patch could be read; or one could not, and ``strict`` is set.
    """
    total = len(source.table)
    hashes: list[str] = []
    measured: list[Measured] = []
    kept: list[int] = []
    reasons: dict[int, str] = {}
    shape = (source.size, source.size, 3)
    chunks = Parts(folder / PARTS)
    place = folder / PIXELS
    with place.open("r+b" if place.exists() else "w+b") as file:
        header = _write_header(file, (total, *shape))
        for start, chunk in _all_chunks(source, file, chunks, total, workers, measure):
            for row, reason in zip(chunk["lost"].tolist(), chunk["reasons"].tolist(), strict=True):
                if strict:
                    what = remedy(source, [reason]) or "Mend it or drop --strict."
                    raise InputError(f"{source.table.patch_id.iloc[start + row]}: {reason}. {what}")
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
            what = remedy(source, reasons.values()) or "Check the data folder."
            raise InputError(f"none of {total} patches could be read (first reason: {first}). {what}")
        file.seek(0)
        if _write_header(file, (len(kept), *shape)) != header:
            raise RuntimeError("the array header changed its length; numpy pads it so that this cannot happen")
        file.flush()
        os.fsync(file.fileno())
    table = source.table.iloc[kept].reset_index(drop=True).assign(sha256=hashes)
    lost = list(reasons)
    set_aside = pd.DataFrame(
        {"patch_id": source.table.patch_id.iloc[lost].to_numpy(), "reason": [reasons[row] for row in lost]}
    )
    return table, set_aside, measured


def remedy(source: Source, reasons: Iterable[str]) -> str:
    """What a source proposes where patches could not be read for these reasons; empty where it proposes nothing."""
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
    """Decode patches that have no label, and so no split, into ``pixels.npy`` and ``patches.parquet`` of ``folder``.

    Parameters
    ----------
    source : Source
        Its table needs no ``label``.
    folder : Path
        Made where it is missing.
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
    forget_chunks(folder)
    skipped = getattr(source, "skipped", {})
    more = pd.DataFrame({"patch_id": list(skipped), "reason": list(skipped.values())})
    return pd.concat([set_aside, more], ignore_index=True) if skipped else set_aside


def forget_chunks(folder: Path) -> None:
    """Remove what :func:`write_pixels` keeps to resume from."""
    Parts(folder / PARTS).forget()


def drop_rows(folder: Path, keep: np.ndarray) -> None:
    """Rewrite ``folder/pixels.npy`` in place with some of its patches, a chunk at a time.

    Parameters
    ----------
    folder : Path
    keep : ndarray of shape (n,), dtype bool
    """
    with (folder / PIXELS).open("r+b") as file:
        shape, offset = _read_header(file)
        each = int(np.prod(shape[1:]))
        end = offset
        for start in range(0, shape[0], CHUNK):
            file.seek(offset + start * each)
            count = min(CHUNK, shape[0] - start)
            chunk = np.frombuffer(file.read(count * each), np.uint8).reshape(count, each)
            file.seek(end)
            # What is written never reaches beyond what was read.
            end += file.write(np.ascontiguousarray(chunk[keep[start : start + count]]).data)
        file.truncate(end)
        file.seek(0)
        if _write_header(file, (int(keep.sum()), *shape[1:])) != offset:
            raise RuntimeError("the array header changed its length; numpy pads it so that this cannot happen")
        file.flush()
        os.fsync(file.fileno())


def read_rows(folder: Path, rows: np.ndarray) -> np.ndarray:
    """Some patches of ``folder/pixels.npy``, read one by one: mapping the file would count it all as memory.

    Returns
    -------
    ndarray of shape (len(rows), height, width, 3), dtype uint8
    """
    with (folder / PIXELS).open("rb") as file:
        shape, offset = _read_header(file)
        each = int(np.prod(shape[1:]))
        patches = np.empty((len(rows), *shape[1:]), np.uint8)
        for place, row in enumerate(rows):
            file.seek(offset + int(row) * each)
            patches[place] = np.frombuffer(file.read(each), np.uint8).reshape(shape[1:])
    return patches


def _all_chunks(
    source: Source, file: BinaryIO, chunks: Parts, total: int, workers: int, measure: Measure | None
) -> Iterator[tuple[int, Measured]]:
    """Yield (start, chunk) in order, and write their pixels one after another into ``file`` from its position on."""
    each = source.size * source.size * 3
    begin = 0
    while begin < total and (chunk := _kept_chunk(file, chunks, begin, each)) is not None:
        yield begin, chunk
        begin += CHUNK
    file.truncate()
    for start, (pixels, chunk) in _chunks(source, begin, total, workers, measure):
        file.write(pixels.data)
        # No other process looks at the pixels before the end: what of them is lost, their hashes tell.
        file.flush()
        chunks.keep(_name(start), chunk)
        yield start, chunk


def _kept_chunk(file: BinaryIO, chunks: Parts, start: int, each: int) -> Measured | None:
    """The chunk that an earlier call read, if its pixels are whole; else None, with the file's position as before."""
    chunk = chunks.find(_name(start))
    if chunk is None:
        return None
    before, count = file.tell(), len(chunk["rows"])
    pixels = file.read(each * count)
    hashes = [hashlib.sha256(pixels[at * each : (at + 1) * each]).hexdigest() for at in range(count)]
    if hashes == chunk["hashes"].tolist():
        return chunk
    file.seek(before)
    return None


def _name(start: int) -> str:
    return f"rows-{start:08d}"


def _read_chunk(source: Source, start: int, stop: int, measure: Measure | None) -> tuple[np.ndarray, Measured]:
    """Pixels of a chunk's readable rows, and the part that says which these are, and why the others are not."""
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
    """Yield (start, (pixels, chunk)) in order, with at most two chunks a worker in flight."""
    starts = list(range(begin, total, CHUNK))
    workers = count_workers(workers)
    with ThreadPoolExecutor(max_workers=workers) as pool:
        in_flight = []
        for start in [*starts, *([None] * (2 * workers))]:
            if start is not None:
                in_flight.append((start, pool.submit(_read_chunk, source, start, min(start + CHUNK, total), measure)))
            if in_flight and (start is None or len(in_flight) > 2 * workers):
                first, future = in_flight.pop(0)
                yield first, future.result()


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], int]:
    """Shape of an ``.npy`` file of uint8, and where its values begin."""
    np.lib.format.read_magic(file)
    shape, _, _ = np.lib.format.read_array_header_1_0(file)
    return shape, file.tell()


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> int:
    """Write an ``.npy`` header for uint8 of ``shape``; return its length in bytes."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()


class Patches(Protocol):
    """Pixels and their table, row by row; a PatchSet is one."""

    @property
    def pixels(self) -> np.ndarray:
        """RGB, shape (n, height, width, 3), dtype uint8."""
        ...

    @property
    def table(self) -> pd.DataFrame:
        """A row a patch, with ``patch_id``."""
        ...


def find_patches(patches: Patches, patch_ids: Iterable[str]) -> list[int]:
    """Rows of `patches` that hold the named ones, in the order of the names.

    Raises
    ------
    ValueError
        One is not among them.
    """
    places = pd.Series(np.arange(len(patches.table)), index=patches.table.patch_id.to_numpy())
    wanted = pd.Index(list(patch_ids))
    missing = wanted[~wanted.isin(places.index)]
    if len(missing):
        raise ValueError(f"every predicted patch must be among the patches; {missing[0]!r} is not.")
    return [int(place) for place in places[wanted]]
