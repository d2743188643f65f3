"""CSV files in which a spreadsheet shows names from the data as text, never as formulas."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pandas as pd

#: Characters with which a formula may begin in a spreadsheet: signs, also as wide and small forms, and those that some
#: programs drop before they look for a sign.
_SIGNS = "=+\\-@＝＋－＠﹦﹢﹣﹫−\t\r\n"
#: A cell begins at the start of a text, and after these if a program separates cells by them and not by commas.
_STARTS = r"(?:\A|(?<=[;|\t\r\n]))"
#: Blanks, quotes and invisible characters, which may precede the sign. Apostrophes too: a text that looks escaped gets
#: another one, so that it can be restored.
_BEFORE = "[\\s'\"\x00-\x1f\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]*"
_UNSAFE = re.compile(f"{_STARTS}(?={_BEFORE}[{_SIGNS}])")
_ESCAPED = re.compile(f"{_STARTS}'(?={_BEFORE}[{_SIGNS}])")


def escape(name: str) -> str:
    """Put an apostrophe before each part of a name that a spreadsheet could read as a formula."""
    return _UNSAFE.sub("'", name)


def unescape(name: str) -> str:
    """Undo :func:`escape`."""
    return _ESCAPED.sub("", name)


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
    cells = [*table, *(value for column in texts for value in table[column])]
    has_return = any("\r" in cell for cell in cells if isinstance(cell, str))
    output.to_csv(target, index=False, lineterminator="\r\n" if has_return else "\n")


def read_written(path: Path, texts: Sequence[str]) -> pd.DataFrame:
    """Read a table that :func:`write_csv` wrote.

    Parameters
    ----------
    path : Path
    texts : sequence of str
        Columns of names. They keep their text even if it looks like a number, a formula or a missing value.
    """
    table = pd.read_csv(path, dtype={escape(name): str for name in texts}, keep_default_na=False, na_values=[""])
    table.columns = table.columns.map(unescape)
    for column in texts:
        table[column] = table[column].map(unescape, na_action="ignore")
    return table
