"""Write the page, one HTML file of sections with the small ones of its tables, and its tables as CSV files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from histoblend.data.storage.spreadsheet import write_csv
from histoblend.reports.page import figures
from histoblend.reports.page.embedded import embed
from histoblend.reports.page.html import environment, own_files, parts, plotly_script, script_hash
from histoblend.reports.page.section import PageContent, Section
from histoblend.reports.words import direction, model_words, signed, span

#: Scripts and styles of every page, in ``templates/``: its frame, charts, contents and tables.
SHARED = ("style", "charts", "contents", "tables")


def write_page(
    folder: Path,
    title: str,
    sections: Sequence[Section],
    *,
    prints: bool = False,
) -> Path:
    """Write sections as one page, ``report.html``, and their tables as CSV files next to it.

    The content security policy of the page allows only its own two scripts, by their hashes, and no connections. Text
    from the data can therefore not run or load anything, even if escaping failed. Small CSV files are also in the page,
    which saves them at the press of a button.

    Parameters
    ----------
    folder : Path
        Created if missing.
    title : str
    sections : sequence of Section
    prints : bool
        Whether the page links to every chart as PDF, SVG and PNG, in ``figures/``.

    Returns
    -------
    Path
        Path of ``report.html``.

    Raises
    ------
    ValueError
        Two sections have charts, or tables, of the same name.
    """
    content = PageContent(title, list(sections), write_tables(folder, sections))
    return write_html(folder, content, prints=prints)


def write_tables(folder: Path, sections: Sequence[Section]) -> dict[str, list[str]]:
    """Write the tables of sections as CSV files and return the file names of each section.

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
    for section in sections:
        for name, table in section.tables.items():
            write_csv(table, folder / f"{name}.csv")
    return {section.name: [f"{name}.csv" for name in section.tables] for section in sections}


def write_html(folder: Path, content: PageContent, *, prints: bool = False) -> Path:
    """Write ``report.html`` into the folder of the page's CSV files, which it embeds if small, and return its path."""
    page = folder / "report.html"
    embedded = embed(folder, (name for names in content.files.values() for name in names))
    page.write_text(_render(content, embedded, prints), encoding="utf-8")
    return page


def _render(content: PageContent, embedded: Mapping[str, str], prints: bool) -> str:
    """Fill the template."""
    import markupsafe

    templates = environment()
    templates.filters |= {"signed": signed, "short": figures.short_name, "model_words": model_words}
    templates.globals |= {"span": span, "direction": direction, "isna": pd.isna}
    # Only our own files and plotly.js are not escaped.
    plotly = markupsafe.Markup(plotly_script())  # noqa: S704
    script = markupsafe.Markup(_combined_files("js", content.sections))  # noqa: S704
    style = markupsafe.Markup(_combined_files("css", content.sections))  # noqa: S704
    return templates.get_template("report.html").render(
        title=content.title,
        prints=prints,
        sections=content.sections,
        files=content.files,
        embedded=embedded,
        style=style,
        plotly=plotly,
        script=script,
        hashes=[script_hash(str(plotly)), script_hash(str(script))],
    )


def _combined_files(suffix: str, sections: Sequence[Section]) -> str:
    """Return the page's script or style: the shared files, then the files of single sections."""
    names = [*SHARED, *(section.name for section in sections)]
    return own_files(name for stem in names for name in parts(stem, suffix))
