"""How much memory a step takes, its worker processes included."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


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
