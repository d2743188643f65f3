"""What is in a folder: names, stamps, and arrays, never with code in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.ignored import ignored


def names_in(folder: Path, suffix: str) -> list[str]:
    """Names in ``folder`` that end with ``suffix`` in any case, sorted, without :mod:`data.ignored` ones."""
    ending = suffix.lower()
    return sorted(name for name in os.listdir(folder) if name.lower().endswith(ending) and not ignored(name))


def find_name(folder: Path, name: str) -> Path:
    """Path of a file or folder by its name, or by the same name in another case where there is just one such.

    Returns
    -------
    Path
        ``folder / name`` where there is none.

    Raises
    ------
    InputError
        There are several, such as ``Labels.csv`` and ``labels.CSV``.
    """
    if (folder / name).exists() or not folder.is_dir():
        return folder / name
    found = sorted(other for other in os.listdir(folder) if other.lower() == name.lower())
    if len(found) > 1:
        raise InputError(f"{folder}: expected one {name}; got {' and '.join(found)}. Remove or rename one.")
    return folder / (found[0] if found else name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link that leads nowhere, or round in a circle, is none."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_real(_name: str, entry: os.DirEntry[str]) -> bool:
    return not entry.is_symlink()


def walk(
    folder: Path, enter: Callable[[str, os.DirEntry[str]], bool] = _is_real
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything under ``folder`` in sorted order, without :mod:`data.ignored` names.

    Parameters
    ----------
    folder : Path
    enter : callable
        Whether to look into a folder, by its path as below and its entry. By default not into links to folders.

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
            found = sorted((entry for entry in entries if not ignored(entry.name)), key=lambda entry: entry.name)
        inside = []
        for entry in found:
            if is_folder(entry) and enter(f"{prefix}{entry.name}", entry):
                inside.append((f"{prefix}{entry.name}/", entry.path))
            yield f"{prefix}{entry.name}", entry
        stack += reversed(inside)


def files_under(folder: Path) -> list[str]:
    """Paths of the plain files under a folder of ours, relative to it with slashes, in order; links count as files."""
    return sorted(name for name, entry in walk(folder) if os.path.isfile(entry.path))


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
