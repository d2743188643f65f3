"""A Dask cluster of processes on this machine, started like a user's cluster, outside the checkout."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading

from histoblend.pipelines.runtime.screen import Screen


def _start(words, folder, log):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with (folder / log).open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *words],
            cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip


@contextlib.contextmanager
def cluster(folder, workers=3, *more):
    """Start a scheduler and workers with one thread each, and yield the scheduler's address."""
    # An empty package hides the installed one, so that the workers do not have our code.
    (folder / "histoblend").mkdir()
    (folder / "histoblend" / "__init__.py").touch()
    contact = folder / "scheduler.json"
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    started = [_start([*scheduler, "--scheduler-file", str(contact)], folder, "scheduler.log")]
    try:
        address = _address(contact)
        for number in range(workers):
            words = ["worker", address, "--nthreads", "1", "--no-dashboard", "--local-directory", str(folder), *more]
            started.append(_start(words, folder, f"worker-{number}.log"))
        yield address
    finally:
        for process in reversed(started):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _address(contact):
    for _ in range(600):
        with contextlib.suppress(OSError, ValueError):
            return json.loads(contact.read_text())["address"]
        threading.Event().wait(0.05)
    raise TimeoutError("the scheduler did not start")


class Striking(Screen):
    """A screen that calls a function once, when a share of a step's work is done.

    Parameters
    ----------
    label : str
        Label of the step's progress.
    strike : callable
    share : float
    """

    def __init__(self, label, strike, share=0.2):
        super().__init__()
        self.label, self.strike, self.share, self.struck = label, strike, share, False

    @contextlib.contextmanager
    def progress(self, label, total, unit="patches"):
        done = 0

        def advance(count):
            nonlocal done
            done += count
            if label == self.label and not self.struck and done >= self.share * total:
                self.struck = True
                self.strike()

        yield advance


@contextlib.contextmanager
def slow(pid):
    """Let a process run for only a tenth of the time."""
    over = threading.Event()

    def halt():
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            over.wait(0.18)
            os.kill(pid, signal.SIGCONT)
            over.wait(0.02)

    thread = threading.Thread(target=halt)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
