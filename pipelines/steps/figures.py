"""The report's charts as SVG and PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from histoblend.pipelines.runtime.artefacts import Outcome
from histoblend.pipelines.steps.report_inputs import report_inputs
from histoblend.reports.page.static_figures import write_prints
from histoblend.reports.report import build_sections

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def build(run: Run, folder: Path) -> Outcome:
    """Draw every chart of the report."""
    write_prints(folder, build_sections(report_inputs(run)), workers=run.workers)
    return Outcome(len(list(folder.glob("*.png"))))
