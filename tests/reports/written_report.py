"""The report written at once, from memory. A run writes it in steps."""

from __future__ import annotations

from pathlib import Path

from histoblend.reports.page.page import write_page
from histoblend.reports.page.section import Section
from histoblend.reports.report import ReportInputs, build_sections, facts_text


def write_report(folder: Path, inputs: ReportInputs, *, prints: bool = False) -> Path:
    """Write ``report.html`` and the same numbers as CSV and JSON files into `folder`.

    Parameters
    ----------
    folder : Path
        Created if missing.
    inputs : ReportInputs
    prints : bool
        Whether the page links to every chart as PDF, SVG and PNG, in ``figures/``.

    Returns
    -------
    Path
        Path of ``report.html``.

    Raises
    ------
    ValueError
        The report shows a patch that is not among `inputs.patches`.
    """
    page = write_page(folder, inputs.title, build_sections(inputs), prints=prints)
    (folder / "facts.json").write_text(facts_text(inputs.facts), encoding="utf-8")
    return page


def write_section(folder: Path, section: Section) -> str:
    """Write a page with one section only, and return its text."""
    return write_page(folder, "One section", [section]).read_text(encoding="utf-8")
