"""Safe unpacking of zip and tar files: completely or not at all, and never outside the target folder."""

from __future__ import annotations

import contextlib
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from histoblend.data.errors import InputError
from histoblend.data.ignored import ignored_path
from histoblend.data.storage.expansion import (
    MAX_DIRECTORY,
    MAX_HEADER,
    MAX_RATIO,
    MAX_READ,
    ZIP_METHODS,
    UnpackedFile,
    expansion_limit,
)

#: Limits that no supported data set reaches: PatchCamelyon takes 9 GB unpacked, Kaggle's copy has 280,000 files.
MAX_BYTES = 50 * 10**9
MAX_MEMBERS = 2_000_000

#: Most characters in all names, levels of folders, and records in a header of a tar file.
MAX_NAMES, MAX_LEVELS, MAX_RECORDS = 64 * 2**20, 64, 100

#: Exceptions that a damaged archive raises: ``ValueError`` for undecodable names, ``NotImplementedError`` for unknown
#: compression methods.
DAMAGE_ERRORS = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, NotImplementedError
)  # fmt: skip

#: First bytes of archives that only other programs can unpack.
OTHER_KINDS = {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "RAR", b"\x28\xb5\x2f\xfd": "zstd"}

Open = Callable[[], AbstractContextManager[IO[bytes]]]


class DamagedArchive(InputError):  # noqa: N818 - named after the state of the file
    """The archive is truncated, empty, altered or not an archive; downloading it again may help."""


def unpack_archive(archive: Path, folder: Path, *, max_bytes: int = MAX_BYTES) -> list[str]:
    """Unpack a zip or tar file into ``folder``.

    All members are checked before the first byte is written. They are written into a hidden folder and then moved to
    their final paths. Top-level files and folders that are already complete, for example after an interruption, are not
    changed. Files of systems and editors (:func:`data.ignored.ignored`) are checked but not unpacked.

    Parameters
    ----------
    archive : Path
        ``.zip``, or ``.tar`` plain or compressed with gzip, bzip2 or xz.
    folder : Path
        Created if it does not exist.
    max_bytes : int
        Largest total size of the unpacked files.

    Returns
    -------
    list of str
        Sorted names of the unpacked top-level files and folders.

    Raises
    ------
    InputError
        The file is damaged or of another kind. Or a member is a link, a device or encrypted, has a path outside the
        target, appears twice, or would replace another file. Or the members are too large for the size of the archive.
    """
    try:
        with _members(archive) as members:
            files = _checked(archive, members, max_bytes)
        top = sorted({name.partition("/")[0] for name in files})
        complete = _already_unpacked(archive, files, top, folder)
        files = {name: size for name, size in files.items() if name.partition("/")[0] not in complete}
        if not files:
            return top
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{archive.name}.unpacking"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with _members(archive) as members:
                _write(members, files, partial)
            for name in sorted(set(top) - complete):
                (partial / name).rename(folder / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except InputError:
        raise
    except (*DAMAGE_ERRORS, OSError) as error:
        # gzip and bzip2 report damage as an OSError without a number. With a number, it is an error of the system.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).partition("\n")[0].rstrip(":")
        reason = reason or "an empty file"
        raise DamagedArchive(
            f"{archive}: expected a complete zip or tar file; got: {reason}. Download it again."
        ) from error
    return top


def _already_unpacked(archive: Path, files: dict[str, int], top: list[str], folder: Path) -> set[str]:
    """Top-level names in ``folder`` that already hold all their files of the archive, with the right sizes.

    Raises
    ------
    InputError
        A name exists, but its files are missing or have other sizes: it is another data set or partly unpacked.
    """
    existing = {name for name in top if os.path.lexists(folder / name)}
    for name, size in files.items():
        above, path = name.partition("/")[0], folder / name
        if above in existing and not (path.is_file() and path.stat().st_size == size):
            fault = f"holds {path.stat().st_size} bytes instead of {size}" if path.is_file() else "is missing"
            raise InputError(
                f"{folder / above} already exists but differs from {archive.name}: {path} {fault}. Move "
                f"{folder / above} away, or unpack into another folder."
            )
    return existing


class _Member:
    """An entry of an archive: name, size, whether it is a folder, its fault if any, and a function that opens it."""

    def __init__(self, name: str, size: int, folder: bool, fault: str, read: Open) -> None:
        # Some programs for Windows separate folders by backslashes, against the rules of both formats.
        self.name = name.replace("\\", "/")
        self.size, self.folder, self.fault, self.open = size, folder or self.name.endswith("/"), fault, read


@contextlib.contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    """Open a zip or tar file and yield its members in order."""
    if not archive.is_file():
        raise InputError(f"{archive}: expected a zip or tar file; it does not exist.")
    with archive.open("rb") as file:
        first_bytes = file.read(8)
    for mark, program in OTHER_KINDS.items():
        if first_bytes.startswith(mark):
            raise InputError(
                f"{archive}: expected a zip or tar file; got a {program} archive. Unpack it with that program and "
                "give the folder (DATA=…)."
            )
    is_zip = zipfile.is_zipfile(archive)
    with archive.open("rb") as file:
        unpacked: Any = UnpackedFile(str(archive), file, MAX_DIRECTORY if is_zip else MAX_HEADER)
        if is_zip:
            with zipfile.ZipFile(unpacked) as packed:
                yield (_zip_member(packed, entry) for entry in packed.infolist())
        else:
            with tarfile.open(fileobj=unpacked, mode="r:") as tar:
                yield _tar_members(tar, unpacked)


def _zip_member(packed: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    fault = "" if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "is a link or a device"
    fault = "is packed in another way than deflate" if entry.compress_type not in ZIP_METHODS else fault
    fault = "is encrypted" if entry.flag_bits & 1 else fault
    # With a damaged directory, Python would seek to a position before the start of the file.
    fault = "has a position outside the archive" if entry.header_offset < 0 else fault
    # Before Python 3.12, is_dir() fails if the name is empty.
    folder = entry.filename.endswith("/")
    return _Member(entry.filename, entry.file_size, folder, fault, lambda: packed.open(entry))


def _tar_members(tar: tarfile.TarFile, file: UnpackedFile) -> Iterator[_Member]:
    """Yield the entries of a tar file; Python itself would treat a cut or a damaged entry as the end of the file."""
    while entry := tar.next():
        tar.members.clear()  # type: ignore[attr-defined] # it would keep all entries, each with a copy of the records of all
        file.at_once = MAX_READ
        yield _tar_member(tar, entry)
        file.at_once = MAX_HEADER
    # Not for compressed files: they have a checksum, and seeking back would decompress them again.
    if not file.compressed:
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("the end of the archive is missing: it is truncated or damaged")


def _tar_member(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> _Member:
    fault = "" if (entry.isfile() or entry.isdir()) and not entry.issparse() else "is a link, a device or sparse"
    fault = f"has more than {MAX_RECORDS} records" if len(entry.pax_headers) > MAX_RECORDS else fault

    def read() -> AbstractContextManager[IO[bytes]]:
        file = tar.extractfile(entry)
        if file is None:
            raise tarfile.TarError(f"{entry.name} holds no data")
        return file

    return _Member(entry.name, entry.size, entry.isdir(), fault, read)


def _checked(archive: Path, members: Iterator[_Member], max_bytes: int) -> dict[str, int]:
    """Check all members and return the sizes of the files to unpack, by name; stop at the first fault."""
    files: dict[str, int] = {}
    folders: set[str] = set()
    limit = min(max_bytes, expansion_limit(archive.stat().st_size))
    total = names = 0
    for number, member in enumerate(members):
        fault = member.fault or _name_fault(member.name, folder=member.folder)
        total += member.size
        name = str(PurePosixPath(member.name))
        if not fault and (total > limit or member.size < 0):
            fault = (
                f"brings the total size to {total} bytes; the limit is {limit} (at most {MAX_RATIO} times the archive)"
            )
        elif not fault and number >= MAX_MEMBERS:
            fault = f"exceeds the limit of {MAX_MEMBERS} members"
        elif not fault and not member.folder and (name in files or name in folders):
            fault = "appears twice"
        if fault:
            raise InputError(
                f"{archive}: member {member.name!r} {fault}. Nothing was unpacked; download it from another source."
            )
        if ignored_path(PurePosixPath(name)):
            continue
        parents = [str(parent) for parent in PurePosixPath(name).parents][:-1]
        new = {*parents, *([name] if member.folder else [])} - folders
        names += len(name) + sum(map(len, new))
        if names > MAX_NAMES:
            raise InputError(f"{archive}: expected at most {MAX_NAMES} characters in all names. Nothing was unpacked.")
        folders |= new
        if not member.folder:
            files[name] = member.size
    clashes = sorted(files.keys() & folders)
    if clashes:
        raise InputError(f"{archive}: member {clashes[0]!r} is both a file and a folder. Nothing was unpacked.")
    return files


def _name_fault(name: str, *, folder: bool) -> str:
    windows = PureWindowsPath(name)
    if name.startswith("/") or windows.anchor or ".." in windows.parts or "\0" in name:
        return "has a path outside the target"
    if name.count("/") > MAX_LEVELS:
        return f"is more than {MAX_LEVELS} folders deep"
    # "./" is the packed folder itself, as in archives of `tar cf x.tar .`.
    return "" if PurePosixPath(name).parts or folder else "has no name"


def _write(members: Iterator[_Member], files: dict[str, int], target: Path) -> None:
    """Write these files, which must have the sizes that were checked."""
    for member in members:
        name = str(PurePosixPath(member.name))
        if member.folder or name not in files:
            continue
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        remaining = files[name]
        with member.open() as source, path.open("xb") as sink:
            while piece := source.read(min(remaining + 1, 2**20)):
                remaining -= len(piece)
                if remaining < 0:
                    raise zipfile.BadZipFile(f"{name} is longer than the archive states")
                sink.write(piece)
        if remaining:
            raise zipfile.BadZipFile(f"{name} is shorter than the archive states")
