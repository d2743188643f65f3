"""Files that are written atomically, survive a power failure, and can be checked for changes."""

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

#: Ending of files that are being written; an interrupted run may leave some behind.
PARTIAL = ".partial"

#: Length in bytes of the SHA-256 at the end of a sealed file.
_SEAL = 32


def write_atomically(path: Path, write: Callable[[Any], object], *, seal: bool = False, sync: bool = True) -> None:
    """Write a file that appears under its name only when complete.

    Parameters
    ----------
    path : Path
        Replaced if it exists.
    write : callable
        Called with a temporary binary file, open in the same folder.
    seal : bool
        Append the SHA-256 of the content, for :func:`is_sealed`. Readers of ``.npy`` and zip files ignore it.
    sync : bool
        Wait until the disk has the file, so that it survives a power failure.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{PARTIAL}")
    try:
        with partial.open("w+b") as file:
            write(file)
            if seal:
                _append_seal(file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """Write UTF-8 text with :func:`write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file's content with :func:`write_atomically`."""
    with source.open("rb") as content:
        write_atomically(target, lambda file: shutil.copyfileobj(content, file, 2**20))


def is_sealed(path: Path) -> bool:
    """Whether a file written with ``seal`` exists and is unchanged since."""
    try:
        with path.open("rb") as file:
            remaining = file.seek(0, os.SEEK_END) - _SEAL
            if remaining < 0:
                return False
            file.seek(0)
            digest = hashlib.sha256()
            while remaining:
                block = file.read(min(remaining, 2**20))
                if not block:
                    return False
                digest.update(block)
                remaining -= len(block)
            return file.read() == digest.digest()
    except OSError:
        return False


def read_sealed(path: Path) -> bytes | None:
    """Content of a sealed file without its seal; None if it is missing, cut or altered."""
    if not is_sealed(path):
        return None
    return path.read_bytes()[:-_SEAL]


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power failure."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows and some network shares cannot open folders; nothing more can be done for the rename
    try:
        os.fsync(handle)
    except OSError:
        return  # such shares, FUSE and some overlays raise EINVAL or ENOTSUP; the files themselves are complete
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush all files and folders under a folder to disk, except those of :mod:`data.ignored`."""
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not ignored(name)]
        for name in names:
            if ignored(name):
                continue
            # Open for writing, because Windows cannot flush a file that is open for reading only.
            with Path(path, name).open("r+b") as file:
                os.fsync(file.fileno())
        sync_folder(Path(path))


def remove_unfinished_files(folder: Path) -> None:
    """Remove unfinished files of processes that have ended; keep those of running processes."""
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
    # Read the file again for the digest, because zip files are not written in order.
    file.flush()
    file.seek(0)
    seal = hashlib.file_digest(file, "sha256").digest()
    file.seek(0, os.SEEK_END)
    file.write(seal)
