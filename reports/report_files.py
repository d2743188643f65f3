"""The report's files: the page, its numbers as CSV, and how they came about as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from histoblend.reports.page.page import write_page
from histoblend.reports.report import ReportInputs, build_sections


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
    facts = json.dumps(_as_json(inputs.facts), indent=2, ensure_ascii=False)
    (folder / "facts.json").write_text(facts + "\n", encoding="utf-8")
    return page


def _as_json(value: object) -> object:
    """Leave what JSON knows, and turn the rest into text."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    return value if isinstance(value, (str, int)) or value is None else str(value)
