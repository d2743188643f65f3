"""Room on the disk and in memory: asked for before a long step, and told in one line where it runs out all the same."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from histoblend.data.errors import InputError

#: Least memory that any step takes, and least address space (``ulimit -v``), which counts what libraries map and never
#: use; without and with networks. Measured on Linux with two workers: 0.35 and 1.7 GB, 2.6 and 4.7 GB.
LEAST_MEMORY = {False: 500_000_000, True: 2_000_000_000}
LEAST_SPACE = {False: 3_000_000_000, True: 5_000_000_000}

_GO_ON = "Finished steps and parts are kept: the same command goes on where it stopped."

#: Where Linux says what a control group may use, and uses, in its second version and its first.
_GROUP = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)

#: Native libraries' own exceptions, known by name so that none of them is loaded for it.
_NATIVE = {"XGBoostError", "ResourceExhaustedError", "RuntimeError", "RuntimeException", "Fail"}

#: What an exception says that libraries raise for a full disk without its number: numpy's own writer counts instead.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written|No space left|Disk quota exceeded|File too large", re.I)

#: What native libraries call it when memory runs out, where they raise no MemoryError.
_SHORT_MEMORY = re.compile(r"bad_?\s?alloc|cannot allocate memory|out of memory|failed to allocate|OOM when", re.I)


@contextmanager
def foreseen(folder: Path) -> Iterator[None]:
    """Turn a full, read-only or limited disk, and memory that ran out, into one line about ``folder``.

    Parameters
    ----------
    folder : Path
        Where the command writes.

    Raises
    ------
    InputError
        Instead of the error of the operating system or library; other errors pass as they are.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        words = _words(error, folder)
        if words is None:
            raise
        raise InputError(words) from error


def check_start(what: str, *, networks: bool) -> None:
    """See that a command can begin at all: below this, native libraries crash or hang while they load.

    Parameters
    ----------
    what : str
        The command, for the message.
    networks : bool
        Whether it runs convolutional networks.

    Raises
    ------
    InputError
        Less memory or address space is left.
    """
    space = _address_space()
    if space is not None and space < LEAST_SPACE[networks]:
        raise InputError(
            f"{what} needs at least {_size(LEAST_SPACE[networks])} of address space; the limit is {_size(space)}. "
            "Raise it (ulimit -v)."
        )
    available = available_memory()
    if available < LEAST_MEMORY[networks]:
        raise InputError(
            f"{what} needs at least {_size(LEAST_MEMORY[networks])} of memory; {_size(available)} are available. "
            "End other programs, or raise the limit."
        )


def check_disk(folder: Path, needed: int, what: str) -> None:
    """See that a file system has the room that a step is going to take.

    Parameters
    ----------
    folder : Path
        Need not exist yet.
    needed : int
        Bytes still to be written.
    what : str
        What they are, for the message.

    Raises
    ------
    InputError
        Less is free.
    """
    free = _free(folder)
    if free is not None and needed > free:
        raise InputError(
            f"{folder}: {what} need {_size(needed)} of disk; {_size(free)} are free. "
            "Make room, or put the runs elsewhere (--runs)."
        )


def check_memory(needed: int, what: str) -> None:
    """See that memory, under whatever limit this process has, holds what a step is going to allocate.

    Parameters
    ----------
    needed : int
        Bytes that are certainly allocated at once.
    what : str
        What they are, for the message.

    Raises
    ------
    InputError
        Less is available.
    """
    available = available_memory()
    if needed > available:
        raise InputError(
            f"{what} need at least {_size(needed)} of memory; {_size(available)} are available. "
            "Raise the limit, use fewer workers (--set engine.workers=1), or fewer sets of columns (heads.features)."
        )


def available_memory() -> int:
    """Bytes that this process may still allocate: of the machine, its control group and its own limit, the least."""
    import psutil

    rooms = [int(psutil.virtual_memory().available)]
    space = _address_space()
    if space is not None:
        rooms.append(space - int(psutil.Process().memory_info().vms))
    if (group := _group_room()) is not None:
        rooms.append(group)
    return max(0, min(rooms))


def _address_space() -> int | None:
    """Limit of this process' address space in bytes; None without one."""
    try:
        import resource
    except ImportError:  # Windows knows no such limits
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _group_room(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What is left below the control group's limit, as a container shows it; None without one."""
    for limit, used in _GROUP:
        try:
            most, now = (root / limit).read_text().strip(), int((root / used).read_text())
            stat = (root / limit).with_name("memory.stat").read_text()
        except (OSError, ValueError):
            continue
        if not most.isdigit():
            return None
        # Cached files count as used, and are given up when memory is asked for.
        cached = re.search(r"^(?:total_)?inactive_file (\d+)$", stat, re.M)
        return int(most) - now + (int(cached[1]) if cached else 0)
    return None


def _words(error: BaseException, folder: Path) -> str | None:
    """The line to show, where the error or what it came from is a foreseeable lack of room; else None."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for each in chain:
        if isinstance(each, MemoryError) or type(each).__name__ == "TerminatedWorkerError" or _out_of_memory(each):
            return _memory_words(each)
        number = getattr(each, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG) or (
            isinstance(each, OSError | RuntimeError) and _SHORT_WRITE.search(str(each))
        ):
            return _disk_words(each, number, folder)
    return None


def _out_of_memory(error: BaseException) -> bool:
    if getattr(error, "errno", None) == errno.ENOMEM:
        return True
    native = type(error).__name__ in _NATIVE
    return native and bool(_SHORT_MEMORY.search(str(error)))


def _memory_words(error: BaseException) -> str:
    if type(error).__name__ == "TerminatedWorkerError":
        asked = "a worker was ended from outside, most likely for want of memory"
    else:
        asked = f"memory ran out ({' '.join(str(error).split())[:200] or 'no size was named'})"
    return (
        f"{asked}; {_size(available_memory())} are available now. Raise the limit, or use fewer workers "
        f"(--set engine.workers=1), smaller shards (features.shard, embeddings.shard) or fewer columns. {_GO_ON}"
    )


def _disk_words(error: BaseException, number: int | None, folder: Path) -> str:
    place = Path(os.fsdecode(getattr(error, "filename", None) or folder))
    if number == errno.EROFS:
        return f"{place}: the file system is read-only. Put the output elsewhere, or mount it for writing. {_GO_ON}"
    if number is None and "quota" in str(error).lower():  # shutil gathers errors without their numbers
        number = errno.EDQUOT
    free = _free(place)
    room = "" if free is None else f" ({_size(free)} are free)"
    if number == errno.EDQUOT:
        return f"{place}: the disk quota is used up{room}. Remove something of yours, or ask for more. {_GO_ON}"
    if number == errno.EFBIG:
        return f"{place}: a file grew beyond the largest that is allowed here{room}. Raise it (ulimit -f). {_GO_ON}"
    return f"{place}: no space is left on the disk{room}. Make room. {_GO_ON}"


def _free(place: Path) -> int | None:
    """Free bytes of the file system that holds a path, or of its nearest parent that is there."""
    import shutil

    for folder in (place, *place.absolute().parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def dismiss_workers() -> None:
    """End joblib's idle worker processes: they keep hundreds of megabytes that the next step may need."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown(wait=True)


@contextlib.contextmanager
def peak_memory(interval_s: float = 0.05) -> Iterator[Callable[[], float]]:
    """Sample the resident memory of this process and its children; yields a function that gives the peak in MB."""
    import psutil

    me, peak, stop = psutil.Process(), [0.0], threading.Event()

    def sample() -> None:
        total = 0
        for process in [me, *me.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        peak[0] = max(peak[0], total / 1e6)

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
