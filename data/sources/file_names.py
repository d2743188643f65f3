"""Names of image files in tables, matched with the files that they mean."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator

import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.names import clean_name
from histoblend.data.sources.images import SUFFIXES


class FileNames:
    """Files of one folder, to be found by the names that tables give them.

    Parameters
    ----------
    files : collection of str
        Paths in the folder with slashes, or file names without their ending.
    source : str
        The table that names them, for messages.

    Raises
    ------
    InputError
        Two files have the same name once it is cleaned.
    """

    def __init__(self, files: Collection[str], source: str) -> None:
        self.source = source
        self._paths: dict[str, str] = {}
        # Names in which nothing is to be cleaned, which nearly all are, cannot look the same.
        plain = _is_plain("".join(files))
        if plain:
            self._paths = dict(zip(files, files, strict=True))
        for file in () if plain else sorted(files):
            other = self._paths.setdefault(clean_path(file), file)
            if other != file:
                raise InputError(
                    f"{source}: cannot tell the files {other!r} and {file!r} apart: their names differ only by white "
                    "space, invisible characters or the way accents are stored. Rename one."
                )
        self._whole: dict[str, list[str]] = {}
        self._tails: dict[str, list[str]] = {}

    def find(self, name: str) -> str | None:
        """File that is meant by ``name``; None where there is none.

        Parameters
        ----------
        name : str
            The file's path in the folder; or fewer folders of it, or more in front; with its ending, another one of
            ``SUFFIXES`` or none. Slashes may be backslashes.

        Raises
        ------
        InputError
            Several files may be meant.
        """
        path = name if name in self._paths else clean_path(name)
        if path in self._paths:
            return self._paths[path]
        if not self._whole:
            self._index()
        for found in self._meant(path):
            if len(found) > 1:
                first, other = sorted(found)[:2]
                raise InputError(
                    f"{self.source}: {name!r} may mean {first!r} or {other!r}. Give the path in the folder, with "
                    "the ending."
                )
            if found:
                return found[0]
        return None

    def _meant(self, path: str) -> Iterator[list[str]]:
        """Files that may be meant, the closest first. A folder that contradicts is never overlooked."""
        for key in (path, stem(path)):
            yield self._whole.get(key, [])
        for key in (path, stem(path)):
            yield self._tails.get(key, [])
        for tail in _tails(path):
            for key in (tail, stem(tail)):
                yield self._whole.get(key, [])

    def _index(self) -> None:
        for path, file in self._paths.items():
            for key in {path, stem(path)}:
                self._whole.setdefault(key, []).append(file)
            for tail in _tails(path):
                for key in {tail, stem(tail)}:
                    self._tails.setdefault(key, []).append(file)


def clean_path(name: str) -> str:
    """Path with slashes whose parts are cleaned names, the ending apart: ``a .tif`` is ``a.tif``."""
    if _is_plain(name):
        return name
    parts = [clean_name(part) for part in name.replace("\\", "/").split("/")]
    last = stem(parts[-1])
    parts[-1] = clean_name(last) + parts[-1][len(last) :]
    path = "/".join(parts)
    return posixpath.normpath(path) if path else path


def stem(name: str) -> str:
    """Name without an ending of ``SUFFIXES``, in whatever case."""
    front, dot, ending = name.rpartition(".")
    return front if front and f"{dot}{ending}".lower() in SUFFIXES else name


def same_file(names: pd.Series, found: pd.Series) -> tuple[str, str] | None:
    """The first two of ``names`` that mean the same file, where ``found`` is the file of each or missing."""
    twice = found.notna() & found.duplicated(keep=False)
    if not twice.any():
        return None
    both = names[found == found[twice].iloc[0]]
    return both.iloc[0], both.iloc[1]


def _is_plain(path: str) -> bool:
    """Whether nothing of a path, or of several in a row, is to be cleaned."""
    odd = (" ", "\\", "//", "./", "/.")
    return path.isascii() and path.isprintable() and not any(sign in path for sign in odd)


def _tails(path: str) -> Iterator[str]:
    """The path without its first folder, without its first two, and so on."""
    parts = path.split("/")
    for start in range(1, len(parts)):
        yield "/".join(parts[start:])
