"""A section of the report: the content of its template, its charts and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Chart:
    """A figure with one or more variants that the reader can select.

    Attributes
    ----------
    alt : str
        Text alternative for readers who cannot see it.
    variants : sequence of (str, dict)
        Text of the choice and a Plotly figure, ``{"data": [...], "layout": {...}}``.
    """

    alt: str
    variants: Sequence[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes
    ----------
    name : str
        Anchor of the section and name of its template, ``templates/<name>.html``. Its script and styles, if any, are
        ``templates/<name>.js`` and ``templates/<name>.css``.
    title : str
        Heading.
    content : mapping or None
        Values for the template; None if the step that provides them did not run.
    absent : str
        How to fill the section; shown if `content` is None.
    charts : mapping from str to Chart
    tables : mapping from str to DataFrame
        Written as CSV files next to the page.
    data : JSON, optional
        Data that the section's script reads from ``<script id="data-<name>">``.
    nav : str
        Text in the list of sections; the title if empty.
    finding : str
        One sentence with the section's main result, shown first.
    """

    name: str
    title: str
    content: Mapping[str, Any] | None
    absent: str = ""
    charts: Mapping[str, Chart] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    data: Any = None
    nav: str = ""
    finding: str = ""


@dataclass(frozen=True)
class PageContent:
    """Everything that a page shows.

    Attributes
    ----------
    title : str
    sections : list of Section
    files : dict from str to list of str
        Names of the CSV files of each section, which are next to the page.
    """

    title: str
    sections: list[Section]
    files: dict[str, list[str]]


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as dictionaries from column name to value, for templates."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
