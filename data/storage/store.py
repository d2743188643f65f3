"""Folders on a shared file system or in an object store: atomic writes, reads of byte ranges."""

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
from histoblend.data.storage.atomic import write_atomically

#: Number of bytes to read for the header of an ``.npy`` file; NumPy pads the headers that we write to 128.
_HEADER = 4096

_DIGITS = 16


@dataclass(frozen=True)
class Store:
    """A folder that several machines can read and write.

    Attributes
    ----------
    url : str
        An absolute path, or an address that fsspec supports, such as ``s3://bucket/folder``.
    """

    url: str

    def inside(self, name: str) -> Store:
        """A folder inside this one."""
        return Store(f"{self.url.rstrip('/')}/{name}")

    @property
    def local(self) -> Path | None:
        """Path of the folder if it is in a local file system; otherwise None."""
        from fsspec.implementations.local import LocalFileSystem

        system, root = _open(self.url)
        return Path(root) if isinstance(system, LocalFileSystem) else None

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Read bytes ``start`` to ``stop`` of a file. Raises FileNotFoundError if it does not exist."""
        system, root = _open(self.url)
        content: bytes = system.cat_file(f"{root}/{name}", start=start, end=stop)
        return content

    def make(self) -> Store:
        """Create the folder, if this kind of store has folders, and return it."""
        if (folder := self.local) is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, name: str, content: bytes) -> None:
        """Write a file that appears under its name only when complete.

        The folder must exist, so that a late worker cannot recreate a folder that was removed.
        """
        folder = self.local
        if folder is not None:
            write_atomically(folder / name, lambda file: file.write(content))
            return
        system, root = _open(self.url)
        system.pipe_file(f"{root}/{name}", content)

    def write_sealed(self, stem: str, suffix: str, content: bytes) -> str:
        """Write a file whose name ends with the first digits of its SHA-256; return the name.

        Readers can check that it is complete (:meth:`read_sealed`). Two workers may safely write the same file.
        """
        name = f"{stem}-{hashlib.sha256(content).hexdigest()[:_DIGITS]}{suffix}"
        self.write(name, content)
        return name

    def read_sealed(self, name: str) -> bytes | None:
        """Content of a file that :meth:`write_sealed` wrote; None if it is missing, cut or altered."""
        try:
            content = self.read(name)
        except FileNotFoundError:
            return None
        digest = hashlib.sha256(content).hexdigest()[:_DIGITS]
        return content if name.rpartition(".")[0].endswith(f"-{digest}") else None

    def upload(self, path: Path, name: str) -> None:
        """Upload a local file, unless the folder already has one of the same name and size."""
        system, root = _open(self.url)
        target = f"{root}/{name}"
        if not system.exists(target) or system.size(target) != path.stat().st_size:
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            system.put_file(str(path), target)

    def names(self) -> list[str]:
        """Sorted names of the files in the folder; empty if the folder does not exist."""
        system, root = _open(self.url)
        try:
            paths = system.ls(root, detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in paths)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        system, root = _open(self.url)
        if system.exists(f"{root}/{name}"):
            system.rm_file(f"{root}/{name}")

    def remove_all(self) -> None:
        """Remove the folder and its content, even while another process still writes into it."""
        if (folder := self.local) is not None:
            if folder.exists():
                renamed = folder.rename(folder.with_name(f".{folder.name}-{secrets.token_hex(4)}"))
                shutil.rmtree(renamed, ignore_errors=True)
            return
        system, root = _open(self.url)
        if system.exists(root):
            system.rm(root, recursive=True)

    def check(self) -> str:
        """Check that the folder can be written and read; return the name of the small test file left in it.

        Raises
        ------
        InputError
            The folder cannot be written or read.
        """
        name = f"probe-{secrets.token_hex(8)}"
        try:
            self.make().write(name, name.encode())
            if self.read(name) != name.encode():
                raise OSError("a file changed between writing and reading")
        except Exception as error:  # every kind of store raises other exceptions
            raise InputError(
                f"engine.store must be a folder that can be written and read; got {self.url!r} "
                f"({type(error).__name__}: {error}). See docs/scale.md for what stores need."
            ) from error
        return name

    def sees(self, name: str) -> bool:
        """Whether this machine can read the test file that :meth:`check` wrote."""
        try:
            return self.read(name) == name.encode()
        except Exception:  # as above; the caller reports that the file is not visible
            return False


@functools.lru_cache(maxsize=64)
def _open(url: str) -> tuple[Any, str]:
    """Return the file system and the path of an address.

    Raises
    ------
    InputError
        The kind of address is unknown, or the package that opens it is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        # No cache of listings, because other machines write at the same time.
        system, root = url_to_fs(url, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"engine.store must be a path or an address that fsspec opens, such as s3://bucket/folder; got {url!r} "
            f"({error}). Install the packages it needs: pip install -r requirements-dask.txt."
        ) from error
    return system, str(root).rstrip("/")


@dataclass(frozen=True)
class StoredArray:
    """An ``.npy`` file in a store, of which single rows can be read.

    Attributes
    ----------
    store : Store
    name : str
    shape : tuple of int
    dtype : str
    offset : int
        Position of the first value, in bytes.
    """

    store: Store
    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @classmethod
    def find(cls, store: Store, name: str) -> StoredArray:
        """Read the header of a file in a store.

        Raises
        ------
        InputError
            The file does not hold plain numbers in row order.
        """
        head = io.BytesIO(store.read(name, 0, _HEADER))
        try:
            np.lib.format.read_magic(head)
            shape, by_column, dtype = np.lib.format.read_array_header_1_0(head)
        except ValueError as error:
            raise InputError(f"{store.url}/{name}: expected an array of numbers; got: {error}. Remove it.") from error
        if by_column or dtype.hasobject:
            raise InputError(f"{store.url}/{name}: expected an array of numbers in row order. Remove it.")
        return cls(store, name, tuple(shape), dtype.str, head.tell())

    @property
    def text(self) -> str:
        """Description of the array as JSON, to send to a worker; see :meth:`parse`."""
        return json.dumps([self.store.url, self.name, self.shape, self.dtype, self.offset])

    @classmethod
    def parse(cls, text: str) -> StoredArray:
        """Restore the description from :attr:`text`."""
        url, name, shape, dtype, offset = json.loads(text)
        return cls(Store(url), name, tuple(shape), dtype, offset)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Read rows ``start`` to ``stop`` into a read-only array.

        Raises
        ------
        OSError
            The file is shorter than its header states.
        """
        row_bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * np.dtype(self.dtype).itemsize
        content = self.store.read(self.name, self.offset + start * row_bytes, self.offset + stop * row_bytes)
        if len(content) != (stop - start) * row_bytes:
            raise OSError(5, "the file is too short", f"{self.store.url}/{self.name}")
        return np.frombuffer(content, self.dtype).reshape(stop - start, *self.shape[1:])
