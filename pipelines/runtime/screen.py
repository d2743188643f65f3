"""Output of a run: progress bars and tables in a terminal, plain lines elsewhere."""

from __future__ import annotations

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


class Screen:
    """Writes to standard output.

    Parameters
    ----------
    console : rich.console.Console, optional
    """

    def __init__(self, console: Console | None = None) -> None:
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
    def progress(self, label: str, total: int, unit: str = "patches") -> Iterator[Callable[[int], None]]:
        """Show the progress of a long step. Yields a function to call with the number just finished."""
        if not self.console.is_terminal:
            yield _ProgressLines(self.say, label, total, unit)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        speed = TextColumn("{task.fields[speed]}")
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(label, total=total, speed="")
            started = time.perf_counter()

            def advance(count: int) -> None:
                bar.advance(task, count)
                rate = bar.tasks[0].completed / max(time.perf_counter() - started, 1e-9)
                bar.update(task, speed=f"{rate:,.0f} {unit}/s")

            yield advance

    def table(self, frame: pd.DataFrame, title: str) -> None:
        """Show a table of strings."""
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(frame.columns):
            table.add_column(str(column), justify="left" if number < 2 else "right", no_wrap=number >= 2)
        for row in frame.itertuples(index=False):
            table.add_row(*(Text(escape_controls(str(cell))) for cell in row))
        self.console.print(table)


class _ProgressLines:
    """Progress as a line every few seconds."""

    def __init__(self, say: Callable[[str], None], label: str, total: int, unit: str) -> None:
        self.say, self.label, self.total, self.unit = say, label, total, unit
        self.done = 0
        self.started = self.last = time.perf_counter()

    def __call__(self, count: int) -> None:
        self.done += count
        now = time.perf_counter()
        if now - self.last >= LINE_EVERY_S or (self.done >= self.total and now - self.started >= LINE_EVERY_S):
            self.last = now
            rate = self.done / (now - self.started)
            left = (self.total - self.done) / rate
            self.say(f"  {self.label}: {self.done} of {self.total}, {rate:,.1f} {self.unit}/s, {left:,.0f} s left")
