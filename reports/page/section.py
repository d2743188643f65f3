"""A section of the report: what its template shows, its charts, and the tables that lie beside the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Chart:
    """A figure, in one or several variants that the reader chooses from.

    Attributes
    ----------
    alt : str
        What stands in for it where it cannot be seen.
    variants : sequence of (str, dict)
        The words of the choice, and a Plotly figure, ``{"data": [...], "layout": {...}}``.
    """

    alt: str
    variants: Sequence[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes
    ----------
    name : str
        Its anchor, and the name of its template, ``templates/<name>.html``; ``templates/<name>.js`` and
        ``templates/<name>.css`` are its own script and styles, where there are any.
    title : str
        Heading.
    content : mapping or None
        What the template shows; None where the step that fills the section did not run.
    absent : str
        What would fill the section, shown where `content` is None.
    charts : mapping from str to Chart
    tables : mapping from str to DataFrame
        Written as CSV beside the page.
    data : JSON, optional
        What the section's own script reads, from ``<script id="data-<name>">``.
    nav : str
        Words in the list of sections; the title where empty.
    """

    name: str
    title: str
    content: Mapping[str, Any] | None
    absent: str = ""
    charts: Mapping[str, Chart] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    data: Any = None
    nav: str = ""


@dataclass(frozen=True)
class PageContent:
    """All that a page shows.

    Attributes
    ----------
    title : str
    warnings : list of str
        Shown on top.
    sections : list of Section
    files : list of str
        Names of the CSV files beside the page.
    """

    title: str
    warnings: list[str]
    sections: list[Section]
    files: list[str]


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table as dictionaries from column name to value, as templates take them."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
