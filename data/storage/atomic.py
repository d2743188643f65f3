"""Files that appear under their names only when whole, outlast a power failure, and tell when they were altered."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from io import BufferedRandom
from pathlib import Path
from typing import Any

from histoblend.data.ignored import ignored

#: Ending of files that are being written; a broken run leaves some behind.
PARTIAL = ".partial"

#: Bytes of the SHA-256 that ends a sealed file.
_SEAL = 32


def write_whole(path: Path, write: Callable[[Any], object], *, seal: bool = False) -> None:
    """Write a file that appears under its name only when whole, and that a power failure does not take back.

    Parameters
    ----------
    path : Path
        Replaced where it exists.
    write : callable
        Takes the temporary file, opened for bytes in the same folder.
    seal : bool
        End the file with the SHA-256 of what comes before, for :func:`is_sealed`. Readers of ``.npy`` and zip files
        pass over it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{PARTIAL}")
    try:
        with partial.open("w+b") as file:
            write(file)
            if seal:
                _append_seal(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text_whole(path: Path, text: str) -> None:
    """Write UTF-8 text with :func:`write_whole`."""
    write_whole(path, lambda file: file.write(text.encode()))


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file's content with :func:`write_whole`."""
    with source.open("rb") as content:
        write_whole(target, lambda file: shutil.copyfileobj(content, file, 2**20))


def is_sealed(path: Path) -> bool:
    """Whether a file written with ``seal`` is there, and is what was written: not cut, no byte altered."""
    try:
        with path.open("rb") as file:
            left = file.seek(0, os.SEEK_END) - _SEAL
            if left < 0:
                return False
            file.seek(0)
            digest = hashlib.sha256()
            while left:
                block = file.read(min(left, 2**20))
                if not block:
                    return False
                digest.update(block)
                left -= len(block)
            return file.read() == digest.digest()
    except OSError:
        return False


def read_sealed(path: Path) -> bytes | None:
    """Content of a sealed file without its seal; None where it is missing, cut or altered."""
    if not is_sealed(path):
        return None
    return path.read_bytes()[:-_SEAL]


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a power failure."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows opens no folders, and some network shares refuse: a rename lasts as well as they make it
    try:
        os.fsync(handle)
    except OSError:
        return  # the same shares, FUSE and some overlays answer EINVAL or ENOTSUP: whole files matter more than this
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Bring every file under a folder, and every folder's list of names, to the disk; not what systems left there."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not ignored(name)]
        for name in names:
            if ignored(name):
                continue
            # Opened for writing: Windows syncs no file that was opened for reading.
            with Path(place, name).open("r+b") as file:
                os.fsync(file.fileno())
        sync_folder(Path(place))


def clear_leftovers(folder: Path) -> None:
    """Remove what processes that are gone left half-written in a folder; what a living one writes stays."""
    import psutil

    for path in folder.glob(f".*{PARTIAL}"):
        writer = path.name.removesuffix(PARTIAL).rpartition(".")[2].partition("-")[0]
        if not writer.isdigit() or (int(writer) != os.getpid() and psutil.pid_exists(int(writer))):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _append_seal(file: BufferedRandom) -> None:
    # What was written is read again, since zip files are written with jumps backwards.
    file.flush()
    file.seek(0)
    seal = hashlib.file_digest(file, "sha256").digest()
    file.seek(0, os.SEEK_END)
    file.write(seal)
