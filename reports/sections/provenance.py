"""How the numbers came about, what was written, what the report covers, and the model card, as a section."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from histoblend.reports.page.section import Section
from histoblend.reports.sections.tripod import COVERED, IN_PART, MISSING, checklist

#: What stands in front of a status, so that colour is not needed.
MARKS = {COVERED: "✓", IN_PART: "◐", MISSING: "✗"}


def made_section(
    facts: Mapping[str, object],
    sections: Sequence[Section] = (),
    *,
    artefacts: Mapping[str, Mapping[str, str]] | None = None,
    card: str = "",
) -> Section:
    """Show configuration, versions, times, digests, the TRIPOD+AI checklist and the model card.

    Parameters
    ----------
    facts : mapping
        Nested mappings of anything that has a ``str``.
    sections : sequence of Section
        All others of the report, which the checklist looks into.
    artefacts : mapping from folder to mapping from file to str, optional
        SHA-256 of everything that was written.
    card : str
        The model card, Markdown.

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
    content = {
        "facts": _fact_tables(facts),
        "files": files.to_dict("records"),
        "folders": len(artefacts or {}),
        "items": rows,
        "counts": {status: int((items.status == status).sum()) for status in MARKS},
        "card": read_markdown(card),
    }
    return Section("made", "How it was made", content, tables={"artefacts": files, "tripod": items})


def read_markdown(text: str) -> list[dict[str, Any]]:
    """Read the Markdown that model cards are written in, a dictionary a block.

    Parameters
    ----------
    text : str
        Headings, paragraphs, lists with ``-``, tables with ``|``, lines indented by four spaces.

    Returns
    -------
    list of dict
        ``kind`` (heading, text, list, table, code) and ``level``, ``words``, ``items``, ``head`` and ``rows``, or
        ``lines``; words are lists of (``plain``, ``code`` or ``strong``, text).
    """
    blocks: list[dict[str, Any]] = []
    for chunk in re.split(r"\n\s*\n", text.strip("\n")):
        lines = [line for line in chunk.split("\n") if line.strip()]
        if not lines:
            continue
        if lines[0].startswith("#"):
            level = len(lines[0]) - len(lines[0].lstrip("#"))
            blocks.append({"kind": "heading", "level": level, "words": _inline(lines[0][level:].strip())})
        elif all(line.startswith("    ") for line in lines):
            blocks.append({"kind": "code", "lines": [line[4:] for line in lines]})
        elif all(line.startswith("- ") for line in lines):
            blocks.append({"kind": "list", "items": [_inline(line[2:]) for line in lines]})
        elif len(lines) > 1 and all(line.startswith("|") for line in lines):
            cells = [[_inline(cell.strip()) for cell in line.strip("|").split("|")] for line in lines]
            blocks.append({"kind": "table", "head": cells[0], "rows": cells[2:]})
        else:
            blocks.append({"kind": "text", "words": _inline(" ".join(lines))})
    return blocks


def _inline(text: str) -> list[tuple[str, str]]:
    """Runs of plain text, ``code`` and **strong** words."""
    runs = []
    for part in re.split(r"(`[^`]+`|\*\*[^*]+\*\*)", text):
        if part.startswith("`") and len(part) > 1:
            runs.append(("code", part[1:-1]))
        elif part.startswith("**") and len(part) > 3:
            runs.append(("strong", part[2:-2]))
        elif part:
            runs.append(("plain", part))
    return runs


def _fact_tables(facts: Mapping[str, object]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Facts as (heading, rows of name and value); what has no heading of its own comes first."""
    loose = [(str(key), _words(value)) for key, value in facts.items() if not isinstance(value, Mapping)]
    tables = [("run", loose)] if loose else []
    for title, group in facts.items():
        if isinstance(group, Mapping):
            tables += _step_tables(group) if title == "steps" else [(str(title), list(_flat(group)))]
    return tables


def _step_tables(steps: Mapping[str, Mapping[str, object]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """A table a step, after one of what all steps share, such as versions."""
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
    """Write a value, lists and what they hold in a line each."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "\n".join(map(_words, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
