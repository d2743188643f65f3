"""Write the page, one HTML file of sections, and its CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from histoblend.data.storage.spreadsheet import write_csv
from histoblend.reports.page import figures
from histoblend.reports.page.html import environment, own_files, parts, script_hash
from histoblend.reports.page.section import PageContent, Section
from histoblend.reports.words import model_words, signed, span


def write_page(
    folder: Path,
    title: str,
    sections: Sequence[Section],
    *,
    warnings: Sequence[str] = (),
    prints: bool = False,
) -> Path:
    """Write sections as one page, ``report.html``, and their tables as CSV files next to it.

    The content security policy of the page allows only its own two scripts, by their hashes, and no connections. Text
    from the data can therefore not run or load anything, even if escaping failed.

    Parameters
    ----------
    folder : Path
        Created if missing.
    title : str
    sections : sequence of Section
    warnings : sequence of str
        Shown at the top.
    prints : bool
        Whether the page links to every chart as SVG and PNG, in ``figures/``.

    Returns
    -------
    Path
        Path of ``report.html``.

    Raises
    ------
    ValueError
        Two sections have charts, or tables, of the same name.
    """
    content = PageContent(title, list(warnings), list(sections), write_tables(folder, sections))
    return write_html(folder, content, prints=prints)


def write_tables(folder: Path, sections: Sequence[Section]) -> list[str]:
    """Write the tables of sections as CSV files and return the file names.

    Raises
    ------
    ValueError
        Two sections have charts, or tables, of the same name.
    """
    for kind in ("charts", "tables"):
        names = [name for section in sections for name in getattr(section, kind)]
        if len(names) > len(set(names)):
            raise ValueError(f"the names of a page's {kind} must be unique; got {sorted(names)}.")
    folder.mkdir(parents=True, exist_ok=True)
    tables = {f"{name}.csv": table for section in sections for name, table in section.tables.items()}
    for name, table in tables.items():
        write_csv(table, folder / name)
    return list(tables)


def write_html(folder: Path, content: PageContent, *, prints: bool = False) -> Path:
    """Write ``report.html`` and return its path."""
    page = folder / "report.html"
    page.write_text(_render(content, prints), encoding="utf-8")
    return page


def _render(content: PageContent, prints: bool) -> str:
    """Fill the template."""
    import markupsafe
    from plotly.offline import get_plotlyjs

    templates = environment()
    templates.filters |= {"signed": signed, "short": figures.short_name, "model_words": model_words}
    templates.globals |= {"span": span, "isna": pd.isna}
    # Only our own files and plotly.js are not escaped.
    plotly = markupsafe.Markup(get_plotlyjs())  # noqa: S704
    script = markupsafe.Markup(_combined_files("js", "script", content.sections))  # noqa: S704
    style = markupsafe.Markup(_combined_files("css", "style", content.sections))  # noqa: S704
    return templates.get_template("report.html").render(
        title=content.title,
        warnings=content.warnings,
        prints=prints,
        sections=content.sections,
        files=content.files,
        style=style,
        plotly=plotly,
        script=script,
        hashes=[script_hash(str(plotly)), script_hash(str(script))],
    )


def _combined_files(suffix: str, shared: str, sections: Sequence[Section]) -> str:
    """Return the page's script or style: the shared file, then the files of single sections."""
    return own_files(name for stem in (shared, *(section.name for section in sections)) for name in parts(stem, suffix))
