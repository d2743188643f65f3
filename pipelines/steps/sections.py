"""The sections of the report: text, charts and tables, before they are put into templates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from histoblend.pipelines.run_files import CONTENT, FACTS, TABLES
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.runtime.dataclass_files import save_dataclass
from histoblend.pipelines.steps.report_inputs import report_inputs
from histoblend.reports.page.page import write_tables
from histoblend.reports.page.section import PageContent
from histoblend.reports.report import build_sections, facts_text

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def build(run: Run, folder: Path) -> StepResult:
    """Write the content of the page, and the files stored next to it."""
    inputs = report_inputs(run)
    sections = build_sections(inputs)
    files = write_tables(folder / TABLES, sections)
    (folder / TABLES / FACTS).write_text(facts_text(inputs.facts), encoding="utf-8")
    sections = [replace(section, tables={}) for section in sections]
    save_dataclass(PageContent(inputs.title, sections, files), folder / CONTENT)
    return StepResult(len(inputs.predictions))
