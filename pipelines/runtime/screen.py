"""Output of a run: progress bars and tables in a terminal, plain lines elsewhere."""

from __future__ import annotations

import bisect
import contextlib
import time
from collections.abc import Callable, Iterator

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from histoblend.data.errors import escape_controls

#: Seconds between two progress lines if the output is not a terminal.
LINE_EVERY_S = 10.0

#: The time left is shown once the speed is stable: measured for this long, over this many reports, and in the first and
#: second half of that time different by at most this share.
STABLE_S, STABLE_REPORTS, STABLE_SHARE = 5.0, 4, 0.25


class Screen:
    """Writes to standard output.

    Parameters
    ----------
    console : rich.console.Console, optional
    """

    def __init__(self, console: Console | None = None) -> None:
        #: Words for the time left of the whole command, given the seconds left of the stage in progress, if known.
        self.command_left: Callable[[float | None], str] = lambda stage_s: ""
        #: Seconds that only a first run takes: they say nothing about the speed of the machine.
        self.once_s = 0.0
        self.console = console or Console(highlight=False)
        if not self.console.is_terminal:
            # A file has no window width: give tables enough width that no number is cut off.
            self.console.width = 200

    def say(self, line: str) -> None:
        """Print one line, with control characters escaped."""
        self.console.print(escape_controls(line), markup=False, soft_wrap=True)

    def warn(self, line: str) -> None:
        """Print one line as a warning."""
        self.console.print(escape_controls(f"warning: {line}"), style="yellow", markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def once(self) -> Iterator[None]:
        """Measure work that only a first run does, such as compiling."""
        started = time.perf_counter()
        yield
        self.once_s += time.perf_counter() - started

    @contextlib.contextmanager
    def progress(self, label: str, total: int, unit: str = "patches") -> Iterator[Callable[[int], None]]:
        """Show the progress of a long step. Yields a function to call with the number just finished."""
        if not self.console.is_terminal:
            yield _ProgressLines(self, label, total, unit)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        speed = Speed(total)
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(label, total=total, left="")

            def advance(count: int) -> None:
                speed.add(count, time.perf_counter())
                bar.advance(task, count)
                bar.update(task, left=self.progress_words(speed, unit))

            yield advance

    def progress_words(self, speed: Speed, unit: str) -> str:
        """Speed, time left of the stage and time left of the command, as far as they are known."""
        left = speed.left()
        stage = f"{duration(left)} left" if left else ""
        return ", ".join(filter(None, (f"{speed.per_second:,.1f} {unit}/s", stage, self.command_left(left))))

    def table(self, frame: pd.DataFrame, title: str) -> None:
        """Show a table of strings."""
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(frame.columns):
            table.add_column(str(column), justify="left" if number < 2 else "right", no_wrap=number >= 2)
        for row in frame.itertuples(index=False):
            table.add_row(*(Text(escape_controls(str(cell))) for cell in row))
        self.console.print(table)


class Speed:
    """Speed of a stage, and its time left once the speed is stable.

    What came before the first report is not measured, because it includes loading and compiling. The time left is known
    after ``STABLE_REPORTS`` further reports in at least ``STABLE_S`` seconds, if the speeds in the first and second
    half of this time differ by at most ``STABLE_SHARE`` of the higher one.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.started = time.perf_counter()
        self._times: list[float] = []
        self._counts: list[int] = []

    def add(self, count: int, now: float) -> None:
        """Report units that were finished at a time, in seconds of :func:`time.perf_counter`."""
        self.done += count
        self._times.append(now)
        self._counts.append(self.done)

    @property
    def per_second(self) -> float:
        """Units per second, without the first report if there are others."""
        if len(self._times) > 1 and self._times[-1] > self._times[0]:
            return self._between(0, len(self._times) - 1)
        return self.done / max(self._times[-1] - self.started, 1e-9) if self._times else 0.0

    def left(self) -> float | None:
        """Seconds left, or None while the speed is not stable."""
        last = len(self._times) - 1
        if self.done >= self.total:
            return 0.0
        if last < STABLE_REPORTS or self._times[last] - self._times[0] < STABLE_S:
            return None
        middle = bisect.bisect_left(self._times, (self._times[0] + self._times[last]) / 2, 1, last - 1)
        slower, faster = sorted((self._between(0, middle), self._between(middle, last)))
        if slower <= 0 or slower < (1 - STABLE_SHARE) * faster:
            return None
        return (self.total - self.done) / self.per_second

    def _between(self, first: int, last: int) -> float:
        seconds = max(self._times[last] - self._times[first], 1e-9)
        return (self._counts[last] - self._counts[first]) / seconds


def duration(seconds: float) -> str:
    """A time in words, as exactly as a forecast can be."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _ProgressLines:
    """Progress as a line every few seconds."""

    def __init__(self, screen: Screen, label: str, total: int, unit: str) -> None:
        self.screen, self.label, self.unit = screen, label, unit
        self.speed = Speed(total)
        self.last = self.speed.started

    def __call__(self, count: int) -> None:
        now, speed = time.perf_counter(), self.speed
        speed.add(count, now)
        finished = speed.done >= speed.total and now - speed.started >= LINE_EVERY_S
        if now - self.last >= LINE_EVERY_S or finished:
            self.last = now
            words = self.screen.progress_words(speed, self.unit)
            self.screen.say(f"  {self.label}: {speed.done} of {speed.total}, {words}")
