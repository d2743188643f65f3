"""Ctrl-C and SIGTERM: stop at once, whatever native code is running, and say where the same command goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from multiprocessing import resource_tracker
from types import FrameType

_place = {"step": ""}
#: Where the last words go: standard error as it was, since libraries are silenced by pointing it elsewhere for a while.
_words_to = {"file": 2}


def now_at(step: str) -> None:
    """Remember the step that is being made, for the words of a stop."""
    _place["step"] = step


def stop_on_signals() -> None:
    """End this process, and those that it started, within moments of SIGINT (status 130) or SIGTERM (143).

    Python runs its handlers between two instructions of the main thread only, and a fit or a batch of a network may
    take minutes in native code. So the interpreter writes the signal's number into a socket, which it does at once,
    and a thread ends the process. Nothing is tidied up: all files are made so that a kill at any moment does no harm.

    A terminal sends Ctrl-C to the processes that this one has started as well, and Python answers it with a traceback
    while it begins. They inherit from the thread that starts them that it is held back, and are ended from here.
    """
    with contextlib.suppress(OSError):  # closed from the start
        _words_to["file"] = os.dup(2)
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _noted)

    def watch() -> None:
        with writing:  # kept open for as long as the thread lives
            while number := reading.recv(1):
                if number[0] in (signal.SIGINT, signal.SIGTERM):
                    _stop(number[0])

    # The one thread that takes Ctrl-C: it begins before that is held back in this one.
    threading.Thread(target=watch, name="signals", daemon=True).start()
    if hasattr(signal, "pthread_sigmask"):
        # Python's own tracker of shared resources lets the signal through again when it begins, so it begins now.
        with contextlib.suppress(OSError):
            resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def words(number: int) -> str:
    """Return the line that a stop is told with."""
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[signal.Signals(number)]
    step = _place["step"]
    where = f"goes on at step {step!r}" if step else "begins again"
    return f"stopped ({name}): finished steps and shards are kept; the same command {where}."


def _noted(number: int, frame: FrameType | None) -> None:
    """Take the place of Python's handlers, which raise or kill; the thread does the work."""


def _stop(number: int) -> None:
    import psutil

    children = psutil.Process().children(recursive=True)
    with contextlib.suppress(OSError, ValueError):
        os.write(_words_to["file"], f"\n{words(number)}\n".encode())
        sys.stdout.flush()
    # Last, and at once after them the process itself: else a thread that waits for them complains of their end.
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()
    os._exit(128 + number)
