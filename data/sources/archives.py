"""Zip and tar files, unpacked whole or not at all, and never outside their target."""

from __future__ import annotations

import contextlib
import io
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
from typing import IO

from histoblend.data.errors import InputError
from histoblend.data.ignored import ignored_path

#: Limits above any data set that Histoblend reads: PatchCamelyon unpacked is 9 GB, Kaggle's copy 280,000 files.
MAX_BYTES = 50 * 10**9
MAX_MEMBERS = 2_000_000

#: Bytes out of one byte in. Images and HDF5 files come near 1; a bomb comes near deflate's 1,032.
MAX_RATIO = 100

#: Archives below this may have any ratio up to it: a small text file squeezes well.
SMALL_BYTES = 10**7

#: What a damaged archive raises: ``ValueError`` for names that do not decode, ``NotImplementedError`` for ways to pack
#: that Python does not know.
FAULTS = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, NotImplementedError
)  # fmt: skip

#: How archives begin that only other programs unpack.
OTHER_KINDS = {b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!\x1a\x07": "RAR", b"\x28\xb5\x2f\xfd": "zstd"}

Open = Callable[[], AbstractContextManager[IO[bytes]]]


class DamagedArchive(InputError):  # noqa: N818 - what was found, as its message says
    """An archive that is cut, empty, altered or no archive at all: downloading it again helps."""


def unpack_archive(archive: Path, folder: Path, *, max_bytes: int = MAX_BYTES) -> list[str]:
    """Unpack a zip or tar file into ``folder``.

    Every member is checked before the first byte is written, and all are written into a hidden folder before the first
    is moved to its own path. Folders and files at the top that are complete already, as after an interruption between
    two such moves, are left as they are. What systems and editors left in the archive (:func:`data.ignored.ignored`) is
    checked as well, but not unpacked.

    Parameters
    ----------
    archive : Path
        ``.zip``, or ``.tar`` plain or compressed with gzip, bzip2 or xz.
    folder : Path
        Made where it is missing.
    max_bytes : int
        Most that may be written.

    Returns
    -------
    list of str
        What now lies in ``folder``, top level only, sorted.

    Raises
    ------
    InputError
        It is damaged or no such archive; a member is a link, a device or encrypted, leads outside, stands twice or
        would replace another file; or all members together are too large for the archive's own size.
    """
    try:
        with _members(archive) as members:
            files = _checked(archive, members, max_bytes)
        top = sorted({name.partition("/")[0] for name in files})
        there = _already_unpacked(archive, files, top, folder)
        files = {name: size for name, size in files.items() if name.partition("/")[0] not in there}
        if not files:
            return top
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{archive.name}.unpacking"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with _members(archive) as members:
                _write(members, files, partial)
            for name in sorted(set(top) - there):
                (partial / name).rename(folder / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except InputError:
        raise
    except (*FAULTS, OSError) as error:
        # gzip and bzip2 say "damaged" with an OSError that has no number; one that has is the disk's or the system's.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        words = str(error).partition("\n")[0].rstrip(":")
        words = words or "an empty file"
        raise DamagedArchive(
            f"{archive}: expected a whole zip or tar file; got: {words}. Download it again."
        ) from error
    return top


def _already_unpacked(archive: Path, files: dict[str, int], top: list[str], folder: Path) -> set[str]:
    """Names at the top of ``folder`` under which every file of the archive is, with its size.

    Raises
    ------
    InputError
        A name is there without all of its files: what is there is another data set's, or was unpacked in part.
    """
    there = {name for name in top if os.path.lexists(folder / name)}
    for name, size in files.items():
        above, path = name.partition("/")[0], folder / name
        if above in there and not (path.is_file() and path.stat().st_size == size):
            fault = f"holds {path.stat().st_size} bytes instead of {size}" if path.is_file() else "is missing"
            raise InputError(
                f"{folder / above} exists already, but is not what {archive.name} holds: {path} {fault}. Move "
                f"{folder / above} away, or unpack elsewhere."
            )
    return there


class _Member:
    """One entry of an archive: its name, size, what is wrong with it, and how to read it."""

    def __init__(self, name: str, size: int, folder: bool, fault: str, read: Open) -> None:
        self.name, self.size, self.folder, self.fault, self.open = name, size, folder, fault, read


@contextlib.contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    """Open an archive of either kind; yields its members in order."""
    if not archive.is_file():
        raise InputError(f"{archive}: expected a zip or tar file; it does not exist.")
    with archive.open("rb") as file:
        beginning = file.read(8)
    for mark, kind in OTHER_KINDS.items():
        if beginning.startswith(mark):
            raise InputError(
                f"{archive}: expected a zip or tar file; got one packed with {kind}. Unpack it with the program that "
                "made it, and give the folder (DATA=…)."
            )
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            yield (_zip_member(packed, entry) for entry in packed.infolist())
    else:
        with tarfile.open(archive) as tar:
            yield _tar_members(tar)


def _zip_member(packed: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    fault = "" if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "is a link or a device"
    fault = "is encrypted" if entry.flag_bits & 1 else fault
    # Python takes a damaged directory's word for where the archive begins, and would seek to before the file.
    fault = "lies outside of the archive" if entry.header_offset < 0 else fault
    return _Member(entry.filename, entry.file_size, entry.is_dir(), fault, lambda: packed.open(entry))


def _tar_members(tar: tarfile.TarFile) -> Iterator[_Member]:
    """Entries of a tar file. Python takes a cut between two entries, and a damaged entry, for the end of the file."""
    for entry in tar:
        yield _tar_member(tar, entry)
    # A compressed one has a checksum of its own, and seeking back would decompress it a second time.
    if isinstance(tar.fileobj, io.BufferedReader):
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("no end of the archive: it is cut or damaged")


def _tar_member(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> _Member:
    fault = "" if (entry.isfile() or entry.isdir()) and not entry.issparse() else "is a link, a device or sparse"

    def read() -> AbstractContextManager[IO[bytes]]:
        file = tar.extractfile(entry)
        if file is None:
            raise tarfile.TarError(f"{entry.name} holds no data")
        return file

    return _Member(entry.name, entry.size, entry.isdir(), fault, read)


def _checked(archive: Path, members: Iterator[_Member], max_bytes: int) -> dict[str, int]:
    """Sizes of the files to unpack, by name, once nothing is wrong with any; a bomb ends the reading where it shows."""
    files: dict[str, int] = {}
    folders: set[str] = set()
    most = min(max_bytes, max(SMALL_BYTES, archive.stat().st_size * MAX_RATIO))
    total = 0
    for number, member in enumerate(members):
        fault = member.fault or _name_fault(member.name, folder=member.folder)
        total += member.size
        name = str(PurePosixPath(member.name))
        if not fault and (total > most or member.size < 0):
            fault = f"brings the size to {total} bytes, above {most} (at most {MAX_RATIO} times the archive)"
        elif not fault and number >= MAX_MEMBERS:
            fault = f"is one of more than {MAX_MEMBERS}"
        elif not fault and not member.folder and (name in files or name in folders):
            fault = "stands twice"
        if fault:
            raise InputError(f"{archive}: member {member.name!r} {fault}. Nothing was unpacked; get it from elsewhere.")
        if ignored_path(PurePosixPath(name)):
            continue
        above = [str(parent) for parent in PurePosixPath(name).parents][:-1]
        folders.update(above, [name] if member.folder else [])
        if not member.folder:
            files[name] = member.size
    clash = sorted(files.keys() & folders)
    if clash:
        raise InputError(f"{archive}: member {clash[0]!r} is a file and a folder. Nothing was unpacked.")
    return files


def _name_fault(name: str, *, folder: bool) -> str:
    windows = PureWindowsPath(name)
    if name.startswith("/") or windows.anchor or ".." in windows.parts or "\\" in name or "\0" in name:
        return "leads outside the target"
    # "./" is the folder that was packed itself, as in the archives of `tar cf x.tar .`.
    return "" if PurePosixPath(name).parts or folder else "has no name"


def _write(members: Iterator[_Member], files: dict[str, int], target: Path) -> None:
    """Write these files, with the sizes that were checked."""
    for member in members:
        name = str(PurePosixPath(member.name))
        if member.folder or name not in files:
            continue
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        left = files[name]
        with member.open() as source, path.open("xb") as sink:
            while piece := source.read(min(left + 1, 2**20)):
                left -= len(piece)
                if left < 0:
                    raise zipfile.BadZipFile(f"{name} is longer than it says")
                sink.write(piece)
        if left:
            raise zipfile.BadZipFile(f"{name} is shorter than it says")
