"""One process at a time in a run folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from histoblend.data.errors import InputError
from histoblend.data.storage.atomic import clear_leftovers

LOCK = ".lock"


@contextlib.contextmanager
def run_lock(
    folder: Path, say: Callable[[str], None], *, otherwise: str = "choose another run name (RUN=… or --run)"
) -> Iterator[None]:
    """Hold a run folder for this process.

    The kernel's lock on ``folder/.lock`` is what counts: it goes with its process, however that ends. The file's
    content (process, host, when either started) is there for words, and decides alone where the file
    system knows no locks.

    Parameters
    ----------
    folder : Path
        Made where it is missing.
    say : callable
        Takes a line for the user: that a lock was left by a process that is gone.
    otherwise : str
        What else to do than wait, for the message.

    Raises
    ------
    InputError
        Another process works in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open("a+", encoding="utf-8") as file:
        file.seek(0)
        holder = _read(file.read())
        locked = _lock(file.fileno())
        if locked is False or (locked is None and _lives(holder)):
            raise InputError(
                f"{folder}: process {holder.get('pid', 'unknown')} on {holder.get('host', 'this machine')} has been "
                f"working in this run folder since {holder.get('since', 'a moment ago')}. Wait for it, stop it, or "
                f"{otherwise}."
            )
        if holder:
            say(f"lock of process {holder.get('pid')}, which has ended, taken over: an earlier run was broken off")
        _write(file, {**_myself(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
        clear_leftovers(folder)
        try:
            yield
        finally:
            # Emptied, not removed: a process that has opened the file would lock one that has no name any more.
            _write(file, None)


def _lock(handle: int) -> bool | None:
    """True when locked, False when another holds it, None where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network shares
        return None
    return True


def _myself() -> dict[str, Any]:
    import psutil

    return {"pid": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()}


def _lives(holder: dict[str, Any]) -> bool:
    """Whether the process that wrote the lock is still there; another with its number started at another time."""
    import psutil

    if not holder:
        return False
    if holder.get("host") != socket.gethostname():
        return True  # cannot be known from here
    try:
        return abs(psutil.Process(int(holder["pid"])).create_time() - float(holder["started"])) < 1
    except (psutil.NoSuchProcess, KeyError, ValueError, TypeError):
        return False
    except psutil.AccessDenied:
        return True


def _read(text: str) -> dict[str, Any]:
    try:
        holder = json.loads(text or "{}")
    except ValueError:
        return {}  # killed while it was written
    return holder if isinstance(holder, dict) else {}


def _write(file: Any, content: dict[str, Any] | None) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(content) if content else "")
    file.flush()
