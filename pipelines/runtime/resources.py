"""Disk space and memory: checked before a long step, and reported in one line if they run out."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from histoblend.data.errors import InputError

#: Smallest memory and address space (``ulimit -v``) that any step needs, without and with networks. Address space also
#: counts what libraries map and never use. Measured on Linux with two workers: 0.35 and 1.7 GB, 2.6 and 4.7 GB.
MIN_MEMORY = {False: 500_000_000, True: 2_000_000_000}
MIN_SPACE = {False: 3_000_000_000, True: 5_000_000_000}

_RESUME = "Finished steps and parts are kept: run the same command again to resume."

#: Files with the limit and the usage of a Linux control group, in version 2 and in the memory groups of version 1.
_CGROUP_FILES = {
    "": ("memory.max", "memory.current"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}

#: Exceptions of native libraries, by name, so that the libraries need not be imported.
_NATIVE_ERRORS = {"XGBoostError", "ResourceExhaustedError", "RuntimeError", "RuntimeException", "Fail"}

#: Messages of libraries for a full disk, where they give no error number. NumPy reports counts instead.
_DISK_MESSAGES = re.compile(r"\d+ requested and \d+ written|No space left|Disk quota exceeded|File too large", re.I)

#: Messages of native libraries that run out of memory without a MemoryError.
_MEMORY_MESSAGES = re.compile(r"bad_?\s?alloc|cannot allocate memory|out of memory|failed to allocate|OOM when", re.I)


@contextmanager
def report_shortages(folder: Path) -> Iterator[None]:
    """Turn errors of a full, read-only or limited disk, or of memory that ran out, into one line.

    Parameters
    ----------
    folder : Path
        Folder that the command writes to.

    Raises
    ------
    InputError
        Replaces the error of the operating system or library. Other errors pass unchanged.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        message = _message(error, folder)
        if message is None:
            raise
        raise InputError(message) from error


def check_start(what: str, *, networks: bool) -> None:
    """Check that a command can start. With less memory, native libraries crash or hang while they load.

    Parameters
    ----------
    what : str
        The command, for the message.
    networks : bool
        Whether it runs convolutional networks.

    Raises
    ------
    InputError
        Memory or address space is too small.
    """
    space = _address_space()
    if space is not None and space < MIN_SPACE[networks]:
        raise InputError(
            f"{what} needs at least {_size(MIN_SPACE[networks])} of address space; the limit is {_size(space)}. "
            "Raise it (ulimit -v)."
        )
    available = available_memory()
    if available < MIN_MEMORY[networks]:
        raise InputError(
            f"{what} needs at least {_size(MIN_MEMORY[networks])} of memory; {_size(available)} are available. "
            "Close other programs, or raise the limit."
        )


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Check that a file system has the space that a step will need.

    Parameters
    ----------
    folder : Path
        It need not exist yet.
    needed : int
        Bytes that will be written.
    what : str
        What the bytes are for, for the message.

    Raises
    ------
    InputError
        Less space is free.
    """
    free = _free(folder)
    if free is not None and needed > free:
        raise InputError(
            f"{folder}: {what} need {_size(needed)} of disk; {_size(free)} are free. "
            "Free some space, or put the runs elsewhere (--runs)."
        )


def check_memory(needed: int, what: str) -> None:
    """Check that the memory available to this process holds what a step will allocate.

    Parameters
    ----------
    needed : int
        Bytes that the step allocates at the same time, at least.
    what : str
        What the bytes are for, for the message.

    Raises
    ------
    InputError
        Less memory is available.
    """
    available = available_memory()
    if needed > available:
        raise InputError(
            f"{what} need at least {_size(needed)} of memory; {_size(available)} are available. "
            "Raise the limit, or use fewer workers (--set engine.workers=1) or fewer sets of columns (heads.features)."
        )


def available_memory() -> int:
    """Bytes that this process can still allocate, within the limits of machine, control group and process."""
    import psutil

    available = [int(psutil.virtual_memory().available)]
    space = _address_space()
    if space is not None:
        available.append(space - int(psutil.Process().memory_info().vms))
    if (cgroup := _cgroup_available()) is not None:
        available.append(cgroup)
    return max(0, min(available))


def _address_space() -> int | None:
    """Limit of this process's address space in bytes, or None."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _cgroup_available(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes left below the memory limits of this process's control group and those around it; None without a limit.

    In a container, the group that ``own`` names may be invisible; the container's is then the top one.
    """
    try:
        groups = [line.split(":", 2)[1:] for line in own.read_text().splitlines()]
    except OSError:  # not Linux
        return None
    left: list[int] = []
    for kind, path in groups:
        if kind in _CGROUP_FILES:
            top = root / kind
            folder = top / path.strip("/")
            around = [parent for parent in folder.parents if parent.is_relative_to(top)]
            left += [free for group in (folder, *around) if (free := _left_in(group, *_CGROUP_FILES[kind])) is not None]
    return min(left, default=None)


def _left_in(group: Path, limit: str, used: str) -> int | None:
    try:
        limit_text, usage = (group / limit).read_text().strip(), int((group / used).read_text())
        stat = (group / "memory.stat").read_text()
    except (OSError, ValueError):
        return None
    if not limit_text.isdigit():
        return None
    # Cached files count as used but are freed on demand, whether read lately or not. In version 1, the totals include
    # groups below.
    numbers = {name: int(number) for name, number in re.findall(r"^(\w+) (\d+)$", stat, re.M)}
    cached = [numbers.get(f"total_{name}", numbers.get(name, 0)) for name in ("active_file", "inactive_file")]
    return int(limit_text) - usage + sum(cached)


def _message(error: BaseException, folder: Path) -> str | None:
    """Line to show if the error or one of its causes is a lack of disk space or memory, otherwise None."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for link in chain:
        if isinstance(link, MemoryError) or type(link).__name__ == "TerminatedWorkerError" or _out_of_memory(link):
            return _memory_message(link)
        number = _error_number(link)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG) or (
            isinstance(link, OSError | RuntimeError) and _DISK_MESSAGES.search(str(link))
        ):
            return _disk_message(link, number, folder)
    return None


def _error_number(error: BaseException) -> int | None:
    """Number of the system's error. :mod:`shutil` collects errors as texts."""
    number: int | None = getattr(error, "errno", None)
    found = re.search(r"\[Errno (\d+)\]", str(error)) if number is None and isinstance(error, OSError) else None
    return int(found[1]) if found else number


def _out_of_memory(error: BaseException) -> bool:
    if _error_number(error) == errno.ENOMEM:
        return True
    native = type(error).__name__ in _NATIVE_ERRORS
    return native and bool(_MEMORY_MESSAGES.search(str(error)))


def _memory_message(error: BaseException) -> str:
    if type(error).__name__ == "TerminatedWorkerError":
        cause = "a worker was killed, probably out of memory"
    else:
        cause = f"memory ran out ({' '.join(str(error).split())[:200] or 'size unknown'})"
    return (
        f"{cause}; {_size(available_memory())} are available now. Raise the limit, or use fewer workers "
        f"(--set engine.workers=1), smaller shards (features.shard, embeddings.shard) or fewer columns. {_RESUME}"
    )


def _disk_message(error: BaseException, number: int | None, folder: Path) -> str:
    path = Path(os.fsdecode(getattr(error, "filename", None) or folder))
    if number == errno.EROFS:
        return f"{path}: the file system is read-only. Put the output elsewhere, or mount it for writing. {_RESUME}"
    if number is None and "quota" in str(error).lower():  # as raised by libraries without a number
        number = errno.EDQUOT
    free = _free(path)
    space = "" if free is None else f" ({_size(free)} are free)"
    if number == errno.EDQUOT:
        return f"{path}: the disk quota is used up{space}. Delete some of your files, or ask for more. {_RESUME}"
    if number == errno.EFBIG:
        return f"{path}: a file exceeds the largest allowed size{space}. Raise the limit (ulimit -f). {_RESUME}"
    return f"{path}: no space is left on the disk{space}. Free some space. {_RESUME}"


def _free(path: Path) -> int | None:
    """Free bytes of the file system of a path or of its nearest existing parent."""
    import shutil

    for folder in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def stop_workers() -> None:
    """Stop joblib's idle worker processes, which keep hundreds of megabytes that the next step may need."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)


def trim_memory() -> None:
    """Return freed memory to the system. The C library keeps it for later: after fits in threads, hundreds of MB."""
    if (trim := _trim()) is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """``malloc_trim`` of the C library; None if it has no such function, which only glibc has."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


#: Seconds after which child processes are looked for again.
_CHILDREN_S = 1.0


@contextlib.contextmanager
def peak_memory(interval_s: float = 0.05) -> Iterator[Callable[[], float]]:
    """Sample the memory of this process and its children. Yields a function that returns the peak in MB.

    New child processes are noticed within a second.

    On Linux it is the proportional set size (PSS), in which a page that processes share counts once. Elsewhere it is
    resident memory, in which it counts once for each process.
    """
    import psutil

    me, peak, stop = psutil.Process(), [0.0], threading.Event()
    next_pss, highest, next_children = 0.0, 0.0, 0.0
    children: list[psutil.Process] = []

    def total(memory: Callable[[Any], int]) -> float:
        nonlocal children, next_children
        # Looking for children reads a file of each process of the machine. Every time, other threads must pause.
        if time.monotonic() >= next_children:
            children, next_children = me.children(recursive=True), time.monotonic() + _CHILDREN_S
        megabytes = 0.0
        for process in [me, *children]:
            with contextlib.suppress(psutil.Error):
                megabytes += memory(process) / 1e6
        return megabytes

    def resident_size(process: Any) -> int:
        return int(process.memory_info().rss)

    def proportional_size(process: Any) -> int:
        return int(process.memory_full_info().pss)

    def sample() -> None:
        # The system takes long to add up PSS, so it is read if resident memory, which is never less, has a new peak,
        # and otherwise in 2 % of the time.
        nonlocal next_pss, highest
        resident = total(resident_size)
        if resident <= peak[0] or (resident <= 1.02 * highest and time.monotonic() < next_pss):
            return
        begun = time.monotonic()
        peak[0] = max(peak[0], total(proportional_size) if psutil.LINUX else resident)
        next_pss, highest = 50 * time.monotonic() - 49 * begun, max(highest, resident)

    def watch() -> None:
        while not stop.wait(interval_s):
            sample()

    sample()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: peak[0]
    finally:
        stop.set()
        watcher.join()
