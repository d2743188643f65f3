"""The section "How it was made": citation, configuration, versions, files, model card and reporting checklist."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from histoblend.reports.page.section import Section
from histoblend.reports.sections.citation import citation
from histoblend.reports.sections.tripod import COVERED, IN_PART, MISSING, checklist

#: Signs of a status, so that it can be read without colours.
MARKS = {COVERED: "✓", IN_PART: "◐", MISSING: "✗"}

# Tags of the card as the page needs them: its headings are below the section's, and wide content scrolls.
_CARD_TAGS = {
    "<h2>": "<h4>",
    "</h2>": "</h4>",
    "<pre>": '<pre class="scroll" tabindex="0">',
    "<th>": '<th scope="col">',
    "<table>": '<div class="scroll" tabindex="0" role="region" aria-label="Table of the model card">'
    '<table class="narrow">',
    "</table>": "</table></div>",
}


def made_section(
    facts: Mapping[str, object],
    sections: Sequence[Section] = (),
    *,
    artefacts: Mapping[str, Mapping[str, str]] | None = None,
    card: str = "",
) -> Section:
    """Show how to cite the report, configuration, versions, times, digests, the model card and the TRIPOD+AI checklist.

    Parameters
    ----------
    facts : mapping
        Nested mappings of anything that has a ``str``.
    sections : sequence of Section
        All other sections of the report, for the checklist.
    artefacts : mapping from folder to mapping from file to str, optional
        SHA-256 of every file that the run wrote.
    card : str
        The model card, in Markdown.

    Returns
    -------
    Section
    """
    if not facts:
        return Section("made", "How it was made", None, absent="Nothing was recorded.")
    files = pd.DataFrame(
        [(folder, name, digest) for folder, part in (artefacts or {}).items() for name, digest in part.items()],
        columns=["folder", "file", "sha256"],
    )
    items = checklist(sections, held={"made": True, "made/model-card": bool(card)})
    titles = {section.name: section.nav or section.title for section in sections} | {"made": "How it was made"}
    rows = [
        {**row, "mark": MARKS[row["status"]], "links": [(name, titles[name]) for name in row["sections"].split()]}
        for row in items.to_dict("records")
    ]
    counts = {status: int((items.status == status).sum()) for status in MARKS}
    content = {
        "citation": citation(facts),
        "facts": _fact_tables(facts),
        "files": files.to_dict("records"),
        "folders": len(artefacts or {}),
        "items": rows,
        "counts": counts,
        "missing": [topic[:1].lower() + topic[1:] for topic in items.topic[items.status == MISSING]],
        "card": card_html(card),
    }
    finding = f"Of the 27 items of TRIPOD+AI, this report covers {counts[COVERED]} and {counts[IN_PART]} in part"
    if len(files):
        finding += f"; digests of all {len(files)} files of the run let others check that nothing was changed"
    tables = {"artefacts": files, "tripod": items}
    return Section("made", "How it was made", content, tables=tables, finding=f"{finding}.")


def card_html(text: str) -> Markup:
    """Convert a model card from Markdown to HTML for the inside of a section, without its title.

    HTML, links and images in the text are shown as text: names of slides and models come from the user's data.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "image", "autolink"])
    html = parser.render(re.sub(r"\A# .*\n", "", text))
    for tag, replacement in _CARD_TAGS.items():
        html = html.replace(tag, replacement)
    return Markup(html)  # noqa: S704 - the parser escaped all text


def _fact_tables(facts: Mapping[str, object]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return facts as (heading, rows of name and value); facts without a heading come first."""
    loose = [(str(key), _words(value)) for key, value in facts.items() if not isinstance(value, Mapping)]
    tables = [("run", loose)] if loose else []
    for title, group in facts.items():
        if isinstance(group, Mapping):
            tables += _step_tables(group) if title == "steps" else [(str(title), list(_flat(group)))]
    return tables


def _step_tables(steps: Mapping[str, Mapping[str, object]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return a table of what all steps share, such as versions, and then one table per step."""
    flat = {name: dict(_flat(step)) for name, step in steps.items()}
    if not flat:
        return []
    shared = set.intersection(*(set(rows.items()) for rows in flat.values()))
    first = next(iter(flat.values()))
    tables = [("all steps", [row for row in first.items() if row in shared])]
    return tables + [(name, [row for row in rows.items() if row not in shared]) for name, rows in flat.items()]


def _flat(facts: Mapping[Any, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested facts with dotted names."""
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _words(value)


def _words(value: object) -> str:
    """Return a value as text, with one line per item of a list."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "\n".join(map(_words, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
