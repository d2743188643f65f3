"""Step 7: the report page, from the sections and figures of earlier steps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from histoblend.pipelines.run_files import TABLES
from histoblend.pipelines.runtime.artefacts import MANIFEST, StepResult
from histoblend.pipelines.steps.page_content import read_content
from histoblend.reports.page.page import write_html

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def build(run: Run, folder: Path) -> StepResult:
    """Write ``report.html``, with its numbers as CSV and JSON files and its figures in the same folder."""
    shutil.copytree(run.step("sections").folder / TABLES, folder, dirs_exist_ok=True)
    write_html(folder, read_content(run), prints=True)
    leave_out = shutil.ignore_patterns(MANIFEST)
    shutil.copytree(run.step("figures").folder, folder / "figures", ignore=leave_out, dirs_exist_ok=True)
    return StepResult(run.step("sections").manifest["rows"])
