"""A folder by its address, on a shared file system or in an object store: written whole, read by ranges."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.storage.atomic import write_whole

#: First bytes of an ``.npy`` file that hold its header: numpy pads what we write to 128.
_HEADER = 4096

_DIGITS = 16


@dataclass(frozen=True)
class Store:
    """A folder that several machines read and write.

    Attributes
    ----------
    url : str
        An absolute path, or an address that fsspec knows, such as ``s3://bucket/folder``.
    """

    url: str

    def inside(self, name: str) -> Store:
        """A folder in this one."""
        return Store(f"{self.url.rstrip('/')}/{name}")

    @property
    def local(self) -> Path | None:
        """The folder's path, where it lies in this machine's file system."""
        from fsspec.implementations.local import LocalFileSystem

        system, root = _open(self.url)
        return Path(root) if isinstance(system, LocalFileSystem) else None

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Bytes ``start`` to ``stop`` of a file; FileNotFoundError where there is none."""
        system, root = _open(self.url)
        content: bytes = system.cat_file(f"{root}/{name}", start=start, end=stop)
        return content

    def make(self) -> Store:
        """Make the folder, where there are folders, and return it."""
        if (folder := self.local) is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, name: str, content: bytes) -> None:
        """Write a file that appears under its name only when whole.

        The folder must be there: a worker that was given up and comes late must not bring back what was removed.
        """
        folder = self.local
        if folder is not None:
            write_whole(folder / name, lambda file: file.write(content))
            return
        system, root = _open(self.url)
        system.pipe_file(f"{root}/{name}", content)

    def write_sealed(self, stem: str, suffix: str, content: bytes) -> str:
        """Write a file whose name ends with the beginning of its SHA-256; return the name.

        Whoever reads it can tell that it is whole (:meth:`read_sealed`), and two that make the same file do no harm.
        """
        name = f"{stem}-{hashlib.sha256(content).hexdigest()[:_DIGITS]}{suffix}"
        self.write(name, content)
        return name

    def read_sealed(self, name: str) -> bytes | None:
        """Content of a file that :meth:`write_sealed` wrote; None where it is missing, cut or altered."""
        try:
            content = self.read(name)
        except FileNotFoundError:
            return None
        sum_of_it = hashlib.sha256(content).hexdigest()[:_DIGITS]
        return content if name.rpartition(".")[0].endswith(f"-{sum_of_it}") else None

    def upload(self, path: Path, name: str) -> None:
        """Bring a file of this machine into the folder, unless one of that name and size is there."""
        system, root = _open(self.url)
        target = f"{root}/{name}"
        if not system.exists(target) or system.size(target) != path.stat().st_size:
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            system.put_file(str(path), target)

    def names(self) -> list[str]:
        """Names of the files in the folder, sorted; empty where there is no such folder."""
        system, root = _open(self.url)
        try:
            found = system.ls(root, detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def remove(self, name: str) -> None:
        """Remove a file, where it is there."""
        system, root = _open(self.url)
        if system.exists(f"{root}/{name}"):
            system.rm_file(f"{root}/{name}")

    def remove_all(self) -> None:
        """Remove the folder with all that is in it, also while somebody still writes into it."""
        if (folder := self.local) is not None:
            if folder.exists():
                gone = folder.rename(folder.with_name(f".{folder.name}-{secrets.token_hex(4)}"))
                shutil.rmtree(gone, ignore_errors=True)
            return
        system, root = _open(self.url)
        if system.exists(root):
            system.rm(root, recursive=True)

    def check(self) -> str:
        """See that the folder can be written and read; return the name of the small file that was left to show it.

        Raises
        ------
        InputError
            It cannot.
        """
        name = f"probe-{secrets.token_hex(8)}"
        try:
            self.make().write(name, name.encode())
            if self.read(name) != name.encode():
                raise OSError("a file came back altered")
        except Exception as error:  # each kind of store fails in its own way
            raise InputError(
                f"engine.store must be a folder that can be written and read; got {self.url!r} "
                f"({type(error).__name__}: {error}). See docs/scale.md for what stores need."
            ) from error
        return name

    def sees(self, name: str) -> bool:
        """Whether a small file that :meth:`check` left is seen from here."""
        try:
            return self.read(name) == name.encode()
        except Exception:  # as above: what the caller says is that it is not seen
            return False


@functools.lru_cache(maxsize=64)
def _open(url: str) -> tuple[Any, str]:
    """File system and path of an address.

    Raises
    ------
    InputError
        Its kind is unknown, or what opens it is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        # Without its memory of listings: others write meanwhile.
        system, root = url_to_fs(url, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"engine.store must be a path or an address that fsspec opens, such as s3://bucket/folder; got {url!r} "
            f"({error}). Install what it needs with: pip install -r requirements-dask.txt."
        ) from error
    return system, str(root).rstrip("/")


@dataclass(frozen=True)
class StoredArray:
    """An ``.npy`` file in a store, whose rows can be read without the rest.

    Attributes
    ----------
    store : Store
    name : str
    shape : tuple of int
    dtype : str
    offset : int
        Where its values begin, bytes.
    """

    store: Store
    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @classmethod
    def find(cls, store: Store, name: str) -> StoredArray:
        """Read the header of a file that lies in a store.

        Raises
        ------
        InputError
            It holds something else than plain numbers, row by row.
        """
        head = io.BytesIO(store.read(name, 0, _HEADER))
        try:
            np.lib.format.read_magic(head)
            shape, by_column, dtype = np.lib.format.read_array_header_1_0(head)
        except ValueError as error:
            raise InputError(f"{store.url}/{name}: expected an array of numbers; got: {error}. Remove it.") from error
        if by_column or dtype.hasobject:
            raise InputError(f"{store.url}/{name}: expected an array of numbers row by row. Remove it.")
        return cls(store, name, tuple(shape), dtype.str, head.tell())

    @property
    def text(self) -> str:
        """All of it as JSON, for whoever has to be told: see :meth:`parse`."""
        return json.dumps([self.store.url, self.name, self.shape, self.dtype, self.offset])

    @classmethod
    def parse(cls, text: str) -> StoredArray:
        """Make what :attr:`text` said."""
        url, name, shape, dtype, offset = json.loads(text)
        return cls(Store(url), name, tuple(shape), dtype, offset)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop``, read-only.

        Raises
        ------
        OSError
            The file is shorter than its header says.
        """
        each = int(np.prod(self.shape[1:], dtype=np.int64)) * np.dtype(self.dtype).itemsize
        content = self.store.read(self.name, self.offset + start * each, self.offset + stop * each)
        if len(content) != (stop - start) * each:
            raise OSError(5, "the file is cut short", f"{self.store.url}/{self.name}")
        return np.frombuffer(content, self.dtype).reshape(stop - start, *self.shape[1:])
