"""The sections of the report: words, charts and tables, before any template sees them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from histoblend.pipelines.run_files import CONTENT, FACTS, TABLES
from histoblend.pipelines.runtime.artefacts import Outcome
from histoblend.pipelines.runtime.dataclass_files import save_view
from histoblend.pipelines.steps.report_inputs import report_inputs
from histoblend.reports.page.page import write_tables
from histoblend.reports.page.section import PageContent
from histoblend.reports.report import build_sections, facts_text

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def build(run: Run, folder: Path) -> Outcome:
    """Write what the page shows, and the files that go beside it."""
    shown = report_inputs(run)
    sections = build_sections(shown)
    files = write_tables(folder / TABLES, sections)
    (folder / TABLES / FACTS).write_text(facts_text(shown.facts), encoding="utf-8")
    sections = [replace(section, tables={}) for section in sections]
    save_view(PageContent(shown.title, list(shown.warnings), sections, files), folder / CONTENT)
    return Outcome(len(shown.predictions))
