"""Match names of image files in tables with the files in a folder."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator

import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.names import clean_name
from histoblend.data.sources.images import SUFFIXES


class FileNames:
    """Files of one folder, which can be looked up by the names that tables use.

    Parameters
    ----------
    files : collection of str
        Paths in the folder with slashes, or file names without their ending.
    source : str
        Name of the table, for messages.

    Raises
    ------
    InputError
        Two files have the same name once it is cleaned.
    """

    def __init__(self, files: Collection[str], source: str) -> None:
        self.source = source
        self._file_of: dict[str, str] = {}
        # Most names are already clean, and clean names cannot clash.
        plain = _is_plain("".join(files))
        if plain:
            self._file_of = dict(zip(files, files, strict=True))
        for file in () if plain else sorted(files):
            other = self._file_of.setdefault(clean_path(file), file)
            if other != file:
                raise InputError(
                    f"{source}: cannot tell the files {other!r} and {file!r} apart: their names differ only in white "
                    "space, invisible characters or the encoding of accents. Rename one."
                )
        self._by_path: dict[str, list[str]] = {}
        self._by_tail: dict[str, list[str]] = {}

    def find(self, name: str) -> str | None:
        """Find the file that a table calls ``name``; None if there is no such file.

        Parameters
        ----------
        name : str
            The file's path in the folder. Leading folders may be missing or added. The ending may be another one of
            ``SUFFIXES`` or missing. Backslashes count as slashes.

        Raises
        ------
        InputError
            The name fits several files.
        """
        path = name if name in self._file_of else clean_path(name)
        if path in self._file_of:
            return self._file_of[path]
        if not self._by_path:
            self._index()
        for matches in self._matches(path):
            if len(matches) > 1:
                first, other = sorted(matches)[:2]
                raise InputError(
                    f"{self.source}: {name!r} fits both {first!r} and {other!r}. Give the path in the folder, with "
                    "the ending."
                )
            if matches:
                return matches[0]
        return None

    def _matches(self, path: str) -> Iterator[list[str]]:
        """Yield lists of matching files, the closest first; a file in a folder with another name never matches."""
        for key in (path, stem(path)):
            yield self._by_path.get(key, [])
        for key in (path, stem(path)):
            yield self._by_tail.get(key, [])
        for tail in _tails(path):
            for key in (tail, stem(tail)):
                yield self._by_path.get(key, [])

    def _index(self) -> None:
        for path, file in self._file_of.items():
            for key in {path, stem(path)}:
                self._by_path.setdefault(key, []).append(file)
            for tail in _tails(path):
                for key in {tail, stem(tail)}:
                    self._by_tail.setdefault(key, []).append(file)


def clean_path(name: str) -> str:
    """Path with slashes and cleaned parts; the name before the ending is cleaned too: ``a .tif`` becomes ``a.tif``."""
    if _is_plain(name):
        return name
    parts = [clean_name(part) for part in name.replace("\\", "/").split("/")]
    last = stem(parts[-1])
    parts[-1] = clean_name(last) + parts[-1][len(last) :]
    path = "/".join(parts)
    return posixpath.normpath(path) if path else path


def stem(name: str) -> str:
    """Name without its ending if that is one of ``SUFFIXES``, in any case."""
    front, dot, ending = name.rpartition(".")
    return front if front and f"{dot}{ending}".lower() in SUFFIXES else name


def same_file(names: pd.Series, files: pd.Series) -> tuple[str, str] | None:
    """Return the first two of ``names`` with the same file; ``files`` holds the file of each name, or is missing."""
    twice = files.notna() & files.duplicated(keep=False)
    if not twice.any():
        return None
    both = names[files == files[twice].iloc[0]]
    return both.iloc[0], both.iloc[1]


def _is_plain(path: str) -> bool:
    """Whether a path, or several joined ones, need no cleaning."""
    odd = (" ", "\\", "//", "./", "/.")
    return path.isascii() and path.isprintable() and not any(text in path for text in odd)


def _tails(path: str) -> Iterator[str]:
    """Yield the path without its first folder, without its first two, and so on."""
    parts = path.split("/")
    for start in range(1, len(parts)):
        yield "/".join(parts[start:])
