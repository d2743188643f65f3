"""What the page shows, as the step before it left it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histoblend.pipelines.run_files import CONTENT
from histoblend.pipelines.runtime.dataclass_files import load_view
from histoblend.reports.page.section import Chart, PageContent, Section

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def read_content(run: Run) -> PageContent:
    """What the page of a run shows; the sections' tables are CSV files beside it."""
    return run.open(
        "page content", lambda: load_view(run.step("sections").folder / CONTENT, PageContent, Section, Chart)
    )
