"""The report's charts as SVG and PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from histoblend.pipelines.runtime.artefacts import Outcome
from histoblend.pipelines.steps.page_content import read_content
from histoblend.reports.page.static_figures import write_prints

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def build(run: Run, folder: Path) -> Outcome:
    """Draw every chart of the report."""
    return Outcome(len(write_prints(folder, read_content(run).sections, workers=run.workers)))
