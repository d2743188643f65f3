"""Write recorded faults into docs/reliability.md: ``python -m tests.torture.table RECORDS PAGE``.

Records with a fault come from the tests. Records with a reader come from fuzzing (``HISTOBLEND_TORTURE=RECORDS`` with
``python -m tests.torture.fuzz.images 600``). A table without records is left unchanged.
"""

import json
import platform
import sys
from pathlib import Path

BEGIN, END = "<!-- table: written by make torture -->", "<!-- end of table -->"
FUZZED, END_FUZZED = "<!-- table: written after fuzzing -->", "<!-- end of table of fuzzing -->"


def rows(records: str, key: str, added: tuple[str, ...]) -> list[dict]:
    """One row per fault or reader, in alphabetical order. Numbers of repeated records are added up."""
    totals: dict[str, dict] = {}
    for row in map(json.loads, records.splitlines()):
        if key in row:
            total = totals.setdefault(row[key], row | {name: type(row[name])() for name in added})
            total["drawn"] = total.get("drawn", set()) | {row.get("seed")}
            for name in added:
                total[name] += row[name]
    return [totals[name] for name in sorted(totals, key=str.casefold)]


def fuzzing(records: str) -> str:
    """The fuzzing table in Markdown. Empty without records."""
    added = ("inputs", "paths", "minutes", "processor_minutes", "faults", "crashes", "seeds")
    listed = rows(records, "reader", added)
    lines = ["| Reader | Inputs | New paths | Minutes | Core minutes | Faults | Crashes | Guided by | Seeds |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|---|--:|")
    for row in listed:
        numbers = [f"{row[key]:,}" for key in added[:2]] + [f"{row[key]:.1f}" for key in added[2:4]]
        ends = [str(row["faults"]), str(row["crashes"]), row["how"], ", ".join(map(str, row["seeds"]))]
        lines.append(f"| {' | '.join([row['reader'], *numbers, *ends])} |")
    return "\n".join(lines) if listed else ""


def table(records: str) -> str:
    """The table of faults in Markdown, with totals in the last row. Empty without records."""
    listed = rows(records, "fault", ("tried", "survived"))
    if not listed:
        return ""
    sums = [sum(row[key] for row in listed) for key in ("tried", "survived")]
    lines = ["| Fault | Tried | Survived | What the user sees | Seed |", "|---|--:|--:|---|--:|"]
    for row in listed:
        seed = ", ".join(map(str, sorted(row["drawn"] - {None})))
        lines.append(f"| {cell(row['fault'])} | {row['tried']} | {row['survived']} | {cell(row['sees'])} | {seed} |")
    lines.append(f"| **{len(listed)} kinds of fault** | **{sums[0]:,}** | **{sums[1]:,}** | | |")
    return "\n".join([*lines, "", f"Python {platform.python_version()}, {platform.system()} {platform.machine()}."])


def cell(text: str) -> str:
    """Text without characters that would end a table cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def placed(text: str, lines: str, begin: str, end: str) -> str:
    """Replace the text between two marks. Without lines, nothing changes."""
    before, first, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise SystemExit(f"expected the marks {begin!r} and {end!r}; put them where the table belongs.")
    return f"{before}{begin}\n{lines}\n{end}{after}" if lines else text


def main(records: Path, page: Path) -> None:
    """Write both tables into the page."""
    recorded, text = records.read_text(encoding="utf-8"), page.read_text(encoding="utf-8")
    text = placed(text, table(recorded), BEGIN, END)
    page.write_text(placed(text, fuzzing(recorded), FUZZED, END_FUZZED), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
