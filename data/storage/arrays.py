"""What lies in a folder: names and stamps, never followed out of it, and arrays, never with code in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from histoblend.data.errors import InputError


def names_in(folder: Path, suffix: str) -> list[str]:
    """Names in ``folder`` that end with ``suffix``, sorted; hidden ones (such as macOS' ``._a.tif``) are left out."""
    return sorted(name for name in os.listdir(folder) if name.endswith(suffix) and not name.startswith("."))


def walk(folder: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything under ``folder``, hidden names left out, links to folders not followed; in sorted order.

    Yields
    ------
    path : str
        Relative to ``folder``, with slashes.
    entry : os.DirEntry
    """
    stack = [("", os.fspath(folder))]
    while stack:
        prefix, place = stack.pop()
        with os.scandir(place) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.name.startswith("."):
                continue
            yield f"{prefix}{entry.name}", entry
        stack += [
            (f"{prefix}{entry.name}/", entry.path)
            for entry in reversed(found)
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        ]


def open_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Open a ``.npy`` file of numbers that an earlier step wrote.

    Parameters
    ----------
    path : Path
    mapped : bool
        Map the file, read-only, instead of reading it.

    Raises
    ------
    InputError
        It holds something else, such as Python objects.
    """
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path}: expected an array of numbers; got: {error}. Rebuild with --rebuild.") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError(f"{path}: expected an array of numbers; got an archive. Rebuild with --rebuild.")
    return array


def stamp(path: str | Path, name: str) -> str:
    """Return a line that changes when the file does: its name, size and time of change."""
    try:
        status = os.stat(path)
    except OSError as error:
        return f"{name}\0{error.strerror}"
    return f"{name}\0{status.st_size}\0{status.st_mtime_ns}"
