"""One HTML file of sections, and the files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from histoblend.data.storage.spreadsheet import write_csv
from histoblend.reports.page import figures
from histoblend.reports.page.html import environment, own_files, script_hash
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
    """Write sections as one page, ``report.html``, and their tables as CSV beside it.

    The page carries a content security policy that admits its own two scripts by their hashes and no connection at all,
    so that nothing out of the data can run or call home even if escaping failed.

    Parameters
    ----------
    folder : Path
        Made when missing.
    title : str
    sections : sequence of Section
    warnings : sequence of str
        Shown on top.
    prints : bool
        Whether the page links to every chart as SVG and PNG, in ``figures/``.

    Returns
    -------
    Path
        Of ``report.html``.

    Raises
    ------
    ValueError
        Two sections bring charts, or tables, of one name.
    """
    content = PageContent(title, list(warnings), list(sections), write_tables(folder, sections))
    return write_html(folder, content, prints=prints)


def write_tables(folder: Path, sections: Sequence[Section]) -> list[str]:
    """Write the tables of sections as CSV; return the files' names.

    Raises
    ------
    ValueError
        Two sections bring charts, or tables, of one name.
    """
    for kind in ("charts", "tables"):
        names = [name for section in sections for name in getattr(section, kind)]
        if len(names) > len(set(names)):
            raise ValueError(f"Each of a page's {kind} must have a name of its own; got {sorted(names)}.")
    folder.mkdir(parents=True, exist_ok=True)
    tables = {f"{name}.csv": table for section in sections for name, table in section.tables.items()}
    for name, table in tables.items():
        write_csv(table, folder / name)
    return list(tables)


def write_html(folder: Path, content: PageContent, *, prints: bool = False) -> Path:
    """Write ``report.html``; return where it is."""
    page = folder / "report.html"
    page.write_text(_render(content, prints), encoding="utf-8")
    return page


def _render(content: PageContent, prints: bool) -> str:
    """Fill the template."""
    import markupsafe
    from plotly.offline import get_plotlyjs

    pages = environment()
    pages.filters |= {"signed": signed, "short": figures.short_name, "model_words": model_words}
    pages.globals |= {"span": span, "isna": pd.isna}
    # Our own files and plotly.js: the only content that is not escaped.
    plotly = markupsafe.Markup(get_plotlyjs())  # noqa: S704
    script = markupsafe.Markup(_own("js", "script", content.sections))  # noqa: S704
    style = markupsafe.Markup(_own("css", "style", content.sections))  # noqa: S704
    return pages.get_template("report.html").render(
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


def _own(suffix: str, shared: str, sections: Sequence[Section]) -> str:
    """The page's own script or style: what all sections share, then what single sections bring."""
    return own_files(f"{name}.{suffix}" for name in (shared, *(section.name for section in sections)))
