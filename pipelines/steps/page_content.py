"""Reads the content of the report page from the sections step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histoblend.pipelines.run_files import CONTENT
from histoblend.pipelines.runtime.dataclass_files import load_dataclass
from histoblend.reports.page.section import Chart, PageContent, Section

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def read_content(run: Run) -> PageContent:
    """Content of a run's report page. The tables of its sections are CSV files next to it."""
    return run.open(
        "page content", lambda: load_dataclass(run.step("sections").folder / CONTENT, PageContent, Section, Chart)
    )
