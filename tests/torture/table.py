"""Put what was recorded into docs/reliability.md: ``python -m tests.torture.table RECORDS PAGE``.

A row that names a fault is of the tests, one that names a reader of fuzzing (``HISTOBLEND_TORTURE=RECORDS`` with
``python -m tests.torture.fuzz.images 600``). A table of which there is no row stays as it stands.
"""

import json
import platform
import sys
from pathlib import Path

BEGIN, END = "<!-- table: written by make torture -->", "<!-- end of table -->"
FUZZED, END_FUZZED = "<!-- table: written after fuzzing -->", "<!-- end of table of fuzzing -->"


def rows(records: str, key: str, added: tuple[str, ...]) -> list[dict]:
    """One row a fault or reader, in the order of the alphabet; what was recorded more than once is added up."""
    found: dict[str, dict] = {}
    for row in map(json.loads, records.splitlines()):
        if key in row:
            known = found.setdefault(row[key], row | {name: type(row[name])() for name in added})
            known["drawn"] = known.get("drawn", set()) | {row.get("seed")}
            for name in added:
                known[name] += row[name]
    return [found[name] for name in sorted(found, key=str.casefold)]


def fuzzing(records: str) -> str:
    """The table of fuzzing in Markdown, empty where none was recorded."""
    added = ("inputs", "paths", "minutes", "processor_minutes", "faults", "crashes", "seeds")
    listed = rows(records, "reader", added)
    lines = ["| Reader | Inputs | New paths | Minutes | of a core | Faults | Crashes | Guided by | Seeds |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|---|--:|")
    for row in listed:
        numbers = [f"{row[key]:,}" for key in added[:2]] + [f"{row[key]:.1f}" for key in added[2:4]]
        ends = [str(row["faults"]), str(row["crashes"]), row["how"], ", ".join(map(str, row["seeds"]))]
        lines.append(f"| {' | '.join([row['reader'], *numbers, *ends])} |")
    return "\n".join(lines) if listed else ""


def table(records: str) -> str:
    """The table of faults in Markdown, with its sums in the last row; empty where none was recorded."""
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
    """Text that stays in its cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def placed(text: str, lines: str, begin: str, end: str) -> str:
    """Replace what stands between two marks; without lines it stays."""
    before, first, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise SystemExit(f"expected the marks {begin!r} and {end!r}; put them where the table belongs.")
    return f"{before}{begin}\n{lines}\n{end}{after}" if lines else text


def main(records: Path, page: Path) -> None:
    """Put both tables where they belong."""
    recorded, text = records.read_text(encoding="utf-8"), page.read_text(encoding="utf-8")
    text = placed(text, table(recorded), BEGIN, END)
    page.write_text(placed(text, fuzzing(recorded), FUZZED, END_FUZZED), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
