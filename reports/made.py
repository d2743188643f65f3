"""How the numbers came about, as a section."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from reports.section import Section


def made_section(facts: Mapping[str, object]) -> Section:
    """Show configuration, versions, times and digests.

    Parameters
    ----------
    facts : mapping
        Nested mappings of anything that has a ``str``.

    Returns
    -------
    Section
    """
    content = {"facts": _fact_tables(facts)} if facts else None
    return Section("made", "How it was made", content, absent="Nothing was recorded.")


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
