"""The report's files: the page, its numbers as CSV, and how they came about as JSON."""

from __future__ import annotations

from pathlib import Path

from histoblend.reports.page.page import write_page
from histoblend.reports.report import ReportInputs, build_sections, facts_text


def write_report(folder: Path, inputs: ReportInputs, *, prints: bool = False) -> Path:
    """Write ``report.html`` and the same numbers as CSV and JSON into `folder`.

    Parameters
    ----------
    folder : Path
        Made when missing.
    inputs : ReportInputs
    prints : bool
        Whether the page links to every chart as SVG and PNG, in ``figures/``.

    Returns
    -------
    Path
        Of ``report.html``.

    Raises
    ------
    ValueError
        A shown patch is not among `inputs.patches`.
    """
    page = write_page(folder, inputs.title, build_sections(inputs), warnings=inputs.warnings, prints=prints)
    (folder / "facts.json").write_text(facts_text(inputs.facts), encoding="utf-8")
    return page
