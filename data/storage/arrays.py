"""Files in folders: names, stamps, and arrays that are loaded without pickle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.ignored import ignored


def names_in(folder: Path, suffix: str) -> list[str]:
    """Sorted names in ``folder`` that end with ``suffix`` in any case, without those of :mod:`data.ignored`."""
    ending = suffix.lower()
    return sorted(name for name in os.listdir(folder) if name.lower().endswith(ending) and not ignored(name))


def find_name(folder: Path, name: str) -> Path:
    """Path of a file or folder with this name; if there is none, with the same name in another case.

    Returns
    -------
    Path
        ``folder / name`` if nothing matches.

    Raises
    ------
    InputError
        Several names match in another case, such as ``Labels.csv`` and ``labels.CSV``.
    """
    if (folder / name).exists() or not folder.is_dir():
        return folder / name
    matches = sorted(other for other in os.listdir(folder) if other.lower() == name.lower())
    if len(matches) > 1:
        raise InputError(f"{folder}: expected one {name}; got {' and '.join(matches)}. Remove or rename one.")
    return folder / (matches[0] if matches else name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; False for a broken or circular link."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_real(_name: str, entry: os.DirEntry[str]) -> bool:
    return not entry.is_symlink()


def walk(
    folder: Path, enter: Callable[[str, os.DirEntry[str]], bool] = _is_real
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """List everything under ``folder`` in sorted order, without names of :mod:`data.ignored`.

    Parameters
    ----------
    folder : Path
    enter : callable
        Decides whether to enter a folder; takes its path and entry, as yielded below. By default, links to folders
        are not entered.

    Yields
    ------
    path : str
        Relative to ``folder``, with slashes.
    entry : os.DirEntry
    """
    stack = [("", os.fspath(folder))]
    while stack:
        prefix, path = stack.pop()
        with os.scandir(path) as entries:
            kept = sorted((entry for entry in entries if not ignored(entry.name)), key=lambda entry: entry.name)
        subfolders = []
        for entry in kept:
            if is_folder(entry) and enter(f"{prefix}{entry.name}", entry):
                subfolders.append((f"{prefix}{entry.name}/", entry.path))
            yield f"{prefix}{entry.name}", entry
        stack += reversed(subfolders)


def files_under(folder: Path) -> list[str]:
    """Sorted paths of the files under a folder, links to files included; relative to the folder, with slashes."""
    return sorted(name for name, entry in walk(folder) if os.path.isfile(entry.path))


def open_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Open an ``.npy`` file of numbers that an earlier step wrote.

    Parameters
    ----------
    path : Path
    mapped : bool
        Memory-map the file, read-only, instead of reading it.

    Raises
    ------
    InputError
        The file holds something else, such as Python objects.
    """
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # NumPy parses the header as Python code, which fails in many ways
        raise InputError(f"{path}: expected an array of numbers; got: {error}. Rebuild with --rebuild.") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise InputError(f"{path}: expected an array of numbers; got an archive. Rebuild with --rebuild.")
    return array


class Rows(Protocol):
    """A table of numbers: an array, or one that reads rows when it is indexed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of rows and columns."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


class StoredRows:
    """An ``.npy`` file of rows, which are read when they are asked for, as from an array.

    Memory holds only what was asked for. Pages of a mapped file would count as memory of the process.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    shape : tuple of int
    dtype : dtype
    ndim : int

    Raises
    ------
    InputError
        The file holds something else, such as Python objects, or is shorter than it states.
    """

    #: Single rows that are read from one mapping: for each, the system maps 64 kB.
    AT_ONCE = 512

    def __init__(self, path: Path) -> None:
        array = open_array(path, mapped=True)
        self.path, self.shape, self.dtype, self.ndim = path, array.shape, array.dtype, array.ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read a row, a slice of rows, or rows by number or mask; and of these, ``[rows, columns]``."""
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        if isinstance(rows, int | np.integer | slice):
            return np.array(open_array(self.path, mapped=True)[index])
        chosen = np.arange(len(self))[rows]
        values = np.empty((len(chosen), *np.empty((0, *self.shape[1:]))[:, columns].shape[1:]), self.dtype)
        for start in range(0, len(chosen), self.AT_ONCE):
            part = slice(start, start + self.AT_ONCE)
            values[part] = open_array(self.path, mapped=True)[chosen[part]][:, columns]
        return values

    def mapped(self, start: int, stop: int) -> np.ndarray:
        """Map consecutive rows, read-only. Their pages count as memory until the array is deleted.

        This takes a third of the time of reading a copy.
        """
        return np.asarray(open_array(self.path, mapped=True)[start:stop])

    def announce(self, start: int, stop: int) -> None:
        """Have the system read consecutive rows in the background, because they will be mapped soon."""
        array = open_array(self.path, mapped=True)
        if isinstance(array, np.memmap) and hasattr(os, "posix_fadvise"):
            size, begin = array[start:stop].nbytes, array.offset + array[:start].nbytes
            with self.path.open("rb") as file:
                os.posix_fadvise(file.fileno(), begin, size, os.POSIX_FADV_WILLNEED)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def stamp(path: str | Path, name: str) -> str:
    """Return a line that changes when the file does: its name, size and modification time."""
    try:
        status = os.stat(path)
    except OSError as error:
        return f"{name}\0{error.strerror}"
    return f"{name}\0{status.st_size}\0{status.st_mtime_ns}"
