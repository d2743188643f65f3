"""The report's charts as PDF, SVG and PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.steps.page_content import read_content
from histoblend.reports.page.static_figures import write_static_figures

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def build(run: Run, folder: Path) -> StepResult:
    """Draw every chart of the report."""
    return StepResult(len(write_static_figures(folder, read_content(run).sections, workers=run.workers)))
