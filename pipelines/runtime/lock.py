"""Lock that lets only one process work in a run folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from histoblend.data.errors import InputError
from histoblend.data.storage.atomic import remove_unfinished_files

LOCK = ".lock"
#: Windows locks bytes, and nobody else can read them. So the locked one is far behind the content of the file.
LOCKED_BYTE = 2**30


@contextlib.contextmanager
def run_lock(
    folder: Path, say: Callable[[str], None], *, otherwise: str = "choose another run name (RUN=… or --run)"
) -> Iterator[None]:
    """Lock a run folder for this process.

    The system's lock on ``folder/.lock`` decides; it is released when its process ends for any reason. The content of
    the file (process, host, start times) is for messages. It decides only if the file system does not support locks.

    Parameters
    ----------
    folder : Path
        Created if it is missing. It is removed at the end if it is empty, as after a start that was refused.
    say : callable
        Prints a line for the user when a lock of an ended process is taken over.
    otherwise : str
        Alternative to waiting, for the message.

    Raises
    ------
    InputError
        Another process works in the folder.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    file, locked = _open(folder / LOCK)
    with file:
        with _alone(folder) if locked is None else contextlib.nullcontext():
            file.seek(0)
            holder = _parse_holder(file.read())
            if locked is False or (locked is None and _is_alive(holder)):
                raise InputError(
                    f"{folder}: process {holder.get('pid', 'unknown')} on {holder.get('host', 'this machine')} has "
                    f"been working in this run folder since {holder.get('since', 'a moment ago')}. Wait for it, stop "
                    f"it, or {otherwise}."
                )
            if holder:
                say(
                    f"taking over the lock of process {holder.get('pid')}, which has ended: a previous run was "
                    "interrupted"
                )
            _write_holder(file, {**_this_process(), "since": time.strftime("%Y-%m-%d %H:%M:%S")})
        remove_unfinished_files(folder)
        try:
            yield
        finally:
            _write_holder(file, None)
            # Without a lock, another process may be starting here. Windows cannot remove an open file.
            with contextlib.suppress(OSError):
                if locked and os.listdir(folder) == [LOCK]:
                    (folder / LOCK).unlink()
                    for path in missing or [folder]:
                        path.rmdir()


def _open(path: Path) -> tuple[IO[str], bool | None]:
    """Open and lock a file, created with its folder if missing; see :func:`_lock`."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        locked = _lock(file.fileno())
        # The process that held the lock may have removed the file meanwhile. A lock on a file without a name is void.
        with contextlib.suppress(FileNotFoundError):
            if not locked or os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file, locked
        file.close()


def _lock(handle: int) -> bool | None:
    """Return True if locked, False if another process has the lock, None if locks are not supported."""
    try:
        import fcntl
    except ImportError:
        return _lock_on_windows(handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network shares
        return None
    return True


def _lock_on_windows(handle: int) -> bool | None:
    import msvcrt

    position = os.lseek(handle, 0, os.SEEK_CUR)
    os.lseek(handle, LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except PermissionError:
        return False
    except OSError:  # some network shares
        return None
    finally:
        os.lseek(handle, position, os.SEEK_SET)
    return True


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Without locks, let one process at a time read who works in the folder and write its own name."""
    path = folder / f"{LOCK}.starting"
    try:
        path.open("x").close()
    except FileExistsError:
        raise InputError(
            f"{folder}: another process is starting in this run folder. If none is, one was killed while it started: "
            f"delete {path}, then run again."
        ) from None
    try:
        yield
    finally:
        path.unlink()


def _this_process() -> dict[str, Any]:
    import psutil

    return {"pid": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()}


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether the process that wrote the lock still runs. A new process with its number has another start time."""
    import psutil

    if not holder:
        return False
    if holder.get("host") != socket.gethostname():
        return True  # another host, cannot be checked
    try:
        return abs(psutil.Process(int(holder["pid"])).create_time() - float(holder["started"])) < 1
    except (psutil.NoSuchProcess, KeyError, ValueError, TypeError):
        return False
    except psutil.AccessDenied:
        return True


def _parse_holder(text: str) -> dict[str, Any]:
    try:
        holder = json.loads(text or "{}")
    except ValueError:
        return {}  # the process was killed while writing
    return holder if isinstance(holder, dict) else {}


def _write_holder(file: Any, content: dict[str, Any] | None) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(content) if content else "")
    file.flush()
