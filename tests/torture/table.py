"""Put what the torture tests recorded into docs/reliability.md: ``python -m tests.torture.table RECORDS PAGE``."""

import json
import platform
import sys
from pathlib import Path

BEGIN, END = "<!-- table: written by make torture -->", "<!-- end of table -->"


def rows(records: str) -> list[dict]:
    """One row a fault, in the order of the alphabet; what was recorded more than once is added up."""
    found: dict[str, dict] = {}
    for line in records.splitlines():
        row = json.loads(line)
        known = found.setdefault(row["fault"], row | {"tried": 0, "survived": 0})
        known["tried"] += row["tried"]
        known["survived"] += row["survived"]
    return [found[fault] for fault in sorted(found, key=str.casefold)]


def table(records: str) -> str:
    """The table in Markdown, with its sums in the last row."""
    listed = rows(records)
    sums = [sum(row[key] for row in listed) for key in ("tried", "survived")]
    lines = ["| Fault | Tried | Survived | What the user sees | Seed |", "|---|--:|--:|---|--:|"]
    for row in listed:
        seed = "" if row["seed"] is None else row["seed"]
        lines.append(f"| {cell(row['fault'])} | {row['tried']} | {row['survived']} | {cell(row['sees'])} | {seed} |")
    lines.append(f"| **{len(listed)} kinds of fault** | **{sums[0]:,}** | **{sums[1]:,}** | | |")
    return "\n".join([*lines, "", f"Python {platform.python_version()}, {platform.system()} {platform.machine()}."])


def cell(text: str) -> str:
    """Text that stays in its cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def main(records: Path, page: Path) -> None:
    """Replace what stands between the marks."""
    before, mark, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise SystemExit(f"{page}: expected the marks {BEGIN!r} and {END!r}; put them where the table belongs.")
    text = f"{before}{BEGIN}\n{table(records.read_text(encoding='utf-8'))}\n{END}{after}"
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
