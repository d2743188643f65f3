"""CSV files that a spreadsheet opens as they are meant: names out of the data are text there, never formulas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pandas as pd

#: What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def escape(name: str) -> str:
    """Keep a spreadsheet from taking a name for a formula: an apostrophe in front makes it text."""
    return f"'{name}" if _marked(name) else name


def unescape(name: str) -> str:
    """Give back the name that :func:`escape` was given."""
    return name[1:] if name.startswith("'") and _marked(name) else name


def write_csv(table: pd.DataFrame, target: Path | BinaryIO, *, escaped: bool = True) -> None:
    """Write a table with every text in it escaped, names of columns too, so that it comes back row by row.

    Parameters
    ----------
    table : DataFrame
        Its index is not written.
    target : Path or file opened for bytes
    escaped : bool
        False for a table that a program compares by its names.
    """
    texts = [column for column in table if not pd.api.types.is_numeric_dtype(table[column])]
    # As objects, whole numbers beside missing values stay whole.
    made = table.astype(dict.fromkeys(texts, object))
    if escaped:
        for column in texts:
            values = [escape(value) if isinstance(value, str) else value for value in made[column]]
            made[column] = pd.Series(values, index=made.index, dtype=object)
        made.columns = pd.Index([escape(str(name)) for name in table])
    # Python before 3.13 leaves a bare carriage return unquoted, where every reader would begin another row; with
    # \r\n as the end of a line it quotes both.
    returns = any("\r" in value for column in table[texts] for value in table[column] if isinstance(value, str))
    made.to_csv(target, index=False, lineterminator="\r\n" if returns else "\n")


def read_written(path: Path, texts: Sequence[str]) -> pd.DataFrame:
    """Read what :func:`write_csv` wrote.

    Parameters
    ----------
    path : Path
    texts : sequence of str
        Columns of names: they come back as they were, though they look like numbers, formulas or missing values.
    """
    table = pd.read_csv(path, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=[""])
    for column in texts:
        table[column] = table[column].map(unescape, na_action="ignore")
    return table


def _marked(name: str) -> bool:
    # A name that looks escaped already gets one apostrophe more, so that every name comes back.
    return name.lstrip("'").startswith(_FORMULA)
