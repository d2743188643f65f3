"""Read archives, arrays and JSON from other people. One bound on what a file may expand to, counted while reading."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import math
import shutil
import zipfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from histoblend.data.errors import AWAY, InputError

#: Largest allowed ratio of unpacked to packed bytes. Images, weights and HDF5 files have about 1, files that are made
#: to fill memory or disk up to deflate's maximum of 1,032, and far more if they name the same bytes twice.
MAX_RATIO = 100

#: The ratio is not limited if everything unpacks to at most this many bytes, because small text files compress well.
SMALL_BYTES = 10**7

#: Most bytes that may be read at once: a piece of data, the headers of one member of a tar file (Python searches them
#: in a time that grows with the square of their length), and the directory of a zip file.
MAX_READ, MAX_HEADER, MAX_DIRECTORY = 2**20, 2**14, 64 * 2**20

#: Largest JSON file that is parsed, in bytes, and its deepest nesting.
MAX_JSON, MAX_DEPTH = 32 * 2**20, 100

#: How zip members may be packed. Python unpacks other methods without a limit on memory.
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

#: First bytes of compressed files, and functions that open them.
_COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}


def expansion_limit(packed: int) -> int:
    """Return how many bytes a file of ``packed`` bytes may expand to, in memory or on disk."""
    return max(SMALL_BYTES, packed * MAX_RATIO)


def check_expansion(name: str, unpacked: int, packed: int) -> None:
    """Raise InputError if a file of ``packed`` bytes expands to too many."""
    if unpacked > expansion_limit(packed):
        raise InputError(
            f"{name}: expected to expand to at most {expansion_limit(packed)} bytes ({MAX_RATIO} times its size); got "
            f"at least {unpacked}. {AWAY}"
        )


class UnpackedFile(io.RawIOBase):
    """A file as it is after gzip, bzip2 or xz; plain files as they are. Reading stops at the bound.

    Parameters
    ----------
    name : str
        For messages.
    file : binary file
    at_once : int
        Most bytes of one read.

    Attributes
    ----------
    at_once : int
    compressed : bool
    """

    def __init__(self, name: str, file: IO[bytes], at_once: int = MAX_READ) -> None:
        self._name, self.at_once, self._size = name, at_once, file.seek(0, io.SEEK_END)
        file.seek(0)
        first = file.read(6)
        file.seek(0)
        opener = next((opener for mark, opener in _COMPRESSED.items() if first.startswith(mark)), None)
        self.compressed = opener is not None
        self._file = opener(file) if opener else file

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def seekable(self) -> bool:
        """Whether it can seek: always."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes. Raises InputError beyond the bound, or for more than ``at_once`` bytes."""
        content: bytes = self._file.read(size if 0 <= size <= self.at_once else self.at_once + 1)
        if len(content) > self.at_once:
            raise InputError(f"{self._name}: expected headers of at most {self.at_once} bytes; got more. {AWAY}")
        check_expansion(self._name, self._file.tell(), self._size)
        return content

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Change the position. Raises InputError if it is beyond the bound."""
        if self.compressed:
            check_expansion(self._name, position, self._size)
        reached: int = self._file.seek(position, whence)
        return reached

    def tell(self) -> int:
        """Return the position."""
        position: int = self._file.tell()
        return position


def read_zip(name: str, content: bytes) -> dict[str, bytes]:
    """Read all members of a zip file into memory.

    Raises
    ------
    InputError
        The file is damaged, has a member twice, packs one in another way than deflate, or expands too far.
    """
    try:
        with zipfile.ZipFile(UnpackedFile(name, io.BytesIO(content), MAX_DIRECTORY)) as archive:
            check_zip_members(name, archive, len(content))
            return {entry.filename: _read_member(archive, entry) for entry in archive.infolist()}
    except InputError:
        raise
    except Exception as error:  # zipfile and zlib fail in many ways on a damaged archive
        raise InputError(f"{name}: expected a zip archive; got: {error}. {AWAY}") from error


def _read_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    unpacked = io.BytesIO()
    with archive.open(entry) as file:
        shutil.copyfileobj(file, unpacked, 2**20)
    return unpacked.getvalue()


def check_zip_members(name: str, archive: zipfile.ZipFile | None, packed: int) -> None:
    """Raise InputError if a zip file of ``packed`` bytes has a member twice, another method, or expands too far.

    Python reads no more of a member than its entry states.
    """
    entries = archive.infolist() if archive else []
    check_expansion(name, sum(entry.file_size for entry in entries), packed)
    for entry in entries:
        if entry.compress_type not in ZIP_METHODS or entry.flag_bits & 1:
            raise InputError(f"{name}: expected members packed by deflate; got another way: {entry.filename}. {AWAY}")
    if len({entry.filename for entry in entries}) < len(entries):
        raise InputError(f"{name}: expected every member once; got one twice. {AWAY}")


def read_json(name: str, content: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises
    ------
    InputError
        The content is larger than ``MAX_JSON``, nested more deeply than ``MAX_DEPTH``, not JSON, or not an object.
    """
    if len(content) > MAX_JSON:
        raise InputError(f"{name}: expected at most {MAX_JSON} bytes of JSON; got {len(content)}. {AWAY}")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: expected JSON; got: {error}. Get the bundle again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{name}: expected a JSON object; got {type(value).__name__}. Get the bundle again.")
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for part in level for item in (part.values() if isinstance(part, dict) else part)]
        level = [item for item in level if isinstance(item, dict | list)]
    if level:
        raise InputError(f"{name}: expected JSON nested at most {MAX_DEPTH} levels deep; got more. {AWAY}")
    return value


def read_array(name: str, content: bytes) -> np.ndarray:
    """Read a ``.npy`` file of numbers or text.

    Raises
    ------
    InputError
        The file is damaged, contains Python objects, or states another size than it has.
    """
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        stated, held = math.prod(shape) * dtype.itemsize, len(content) - stream.tell()
        # An element of no bytes could be repeated without end.
        if stated != held or not dtype.itemsize or min(shape, default=0) < 0:
            raise ValueError(f"shape {shape} of {dtype} in {held} bytes")
        array: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python code, which fails in many ways
        words = str(error) or type(error).__name__
        raise InputError(f"{name}: expected an array of numbers; got: {words}. {AWAY}") from error
    return array
