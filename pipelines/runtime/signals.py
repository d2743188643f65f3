"""Ctrl-C and SIGTERM: stop at once, even in native code, and say how to resume."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from multiprocessing import resource_tracker
from types import FrameType

_current = {"step": ""}
#: File descriptor of the last message: a copy of standard error, which is redirected at times to silence libraries.
_output = {"file": 2}


def set_step(step: str) -> None:
    """Remember the current step for the message of :func:`stop_message`."""
    _current["step"] = step


def stop_on_signals() -> None:
    """End this process and its children at once on SIGINT (status 130) or SIGTERM (status 143).

    Python runs signal handlers only between two instructions of the main thread, and a fit or a batch of a network may
    spend minutes in native code. Therefore the interpreter writes the signal's number into a socket, which happens at
    once, and a thread ends the process. There is no cleanup: all files are written so that a kill does no harm.

    A terminal also sends Ctrl-C to child processes, and Python prints a traceback if it comes while a child starts.
    Children therefore inherit a signal mask that blocks Ctrl-C, and this process ends them.
    """
    with contextlib.suppress(OSError):  # standard error may be closed
        _output["file"] = os.dup(2)
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ignore)

    def watch() -> None:
        with sender:  # stays open while the thread runs
            while number := receiver.recv(1):
                if number[0] in (signal.SIGINT, signal.SIGTERM):
                    _stop(number[0])

    # Only this thread receives Ctrl-C: it starts before the main thread blocks the signal.
    threading.Thread(target=watch, name="signals", daemon=True).start()
    if hasattr(signal, "pthread_sigmask"):
        # Python's resource tracker unblocks the signal when it starts, so it must start before.
        with contextlib.suppress(OSError):
            resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def stop_message(number: int) -> str:
    """Return the message that is printed before the process ends."""
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[signal.Signals(number)]
    step = _current["step"]
    resume = f"resume at step {step!r}" if step else "start again"
    return f"stopped ({name}): finished steps and shards are kept. Run the same command again to {resume}."


def _ignore(number: int, frame: FrameType | None) -> None:
    """Replace Python's handlers, which raise or kill. The thread handles the signal."""


def _stop(number: int) -> None:
    import psutil

    children = psutil.Process().children(recursive=True)
    with contextlib.suppress(OSError, ValueError):
        os.write(_output["file"], f"\n{stop_message(number)}\n".encode())
        sys.stdout.flush()
    # Children last and this process right after them: otherwise a thread that waits for a child reports its end.
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.kill()
    os._exit(128 + number)
