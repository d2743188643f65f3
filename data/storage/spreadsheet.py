"""CSV files in which a spreadsheet shows names from the data as text, never as formulas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pandas as pd

#: Characters with which a formula may begin in a spreadsheet.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def escape(name: str) -> str:
    """Put an apostrophe before a name that a spreadsheet would read as a formula."""
    return f"'{name}" if _needs_escape(name) else name


def unescape(name: str) -> str:
    """Undo :func:`escape`."""
    return name[1:] if name.startswith("'") and _needs_escape(name) else name


def write_csv(table: pd.DataFrame, target: Path | BinaryIO, *, escaped: bool = True) -> None:
    """Write a table with all texts and column names escaped, so that it can be read back row by row.

    Parameters
    ----------
    table : DataFrame
        The index is not written.
    target : Path or binary file
    escaped : bool
        Whether to escape; False for a table that a program compares by its names.
    """
    texts = [column for column in table if not pd.api.types.is_numeric_dtype(table[column])]
    # As objects, integers beside missing values stay integers.
    output = table.astype(dict.fromkeys(texts, object))
    if escaped:
        for column in texts:
            values = [escape(value) if isinstance(value, str) else value for value in output[column]]
            output[column] = pd.Series(values, index=output.index, dtype=object)
        output.columns = pd.Index([escape(str(name)) for name in table])
    # Python before 3.13 does not quote a lone carriage return, which readers take for the end of a row. With \r\n as
    # the line ending it quotes both characters.
    has_return = any("\r" in value for column in table[texts] for value in table[column] if isinstance(value, str))
    output.to_csv(target, index=False, lineterminator="\r\n" if has_return else "\n")


def read_written(path: Path, texts: Sequence[str]) -> pd.DataFrame:
    """Read a table that :func:`write_csv` wrote.

    Parameters
    ----------
    path : Path
    texts : sequence of str
        Columns of names. They keep their text even if it looks like a number, a formula or a missing value.
    """
    table = pd.read_csv(path, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=[""])
    for column in texts:
        table[column] = table[column].map(unescape, na_action="ignore")
    return table


def _needs_escape(name: str) -> bool:
    # A name that already looks escaped gets another apostrophe, so that unescape restores it.
    return name.lstrip("'").startswith(_FORMULA)
