"""CSV files as users have them: any usual separator, encoding and spelling of the headers."""

from __future__ import annotations

import codecs
import csv
import difflib
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.ignored import ignored
from histoblend.data.names import clean_name, clean_names

#: Headers that a column may have, whatever their case, spaces, hyphens and underscores.
ID_COLUMNS = (
    "id", "patch_id", "patch", "image_id", "image", "file", "filename", "file_name", "name", "path",
    "file_path", "image_name", "image_path", "patch_name",
)  # fmt: skip
SLIDE_COLUMNS = ("wsi", "slide", "slide_id", "wsi_id", "slide_name", "wsi_name", "group")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target")

#: Of several accepted headers these are taken before the others, as the documentation names them.
_SLIDE_FIRST = ("slide", "wsi")

#: What programs and people write for a value that is missing, in lower case; the last ones are a spreadsheet's errors.
MISSING = (
    "", "nan", "-nan", "na", "n/a", "<na>", "nat", "null",
    "#n/a", "#na", "#n/a n/a", "#name?", "#ref!", "#value!", "#div/0!", "#null!", "#num!",
)  # fmt: skip

#: Further words for a slide that is missing; a class may have such a name.
_NO_SLIDE = ("none", "unknown", "missing", "-", "--", "\u2013", "\u2014", "?")

#: Separators, the most usual first.
SEPARATORS = (",", ";", "\t", "|")

#: Endings of tables, most of which are not read.
_TABLES = (".csv", ".tsv", ".tab", ".txt", ".dat", ".gz", ".zip", ".xlsx", ".xls", ".ods", ".parquet", ".json")

#: Beginnings of files, and the encoding that they tell; UTF-32 first, which begins like UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

#: Empty values that a row may have beyond the header: a spreadsheet writes a comma for each column once in use.
_SPARE = 8

#: The row of a spreadsheet that holds the first values.
_FIRST_ROW = 2


def read_csv(path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> pd.DataFrame:
    """Read columns of a CSV file as cleaned names; see :func:`data.names.clean_name`.

    Parameters
    ----------
    path : Path
        Separated by commas, semicolons, tabs or ``|``; UTF-8, or UTF-16 with a byte order mark, as Excel writes it.
    columns : tuple of str
        Columns that must be there, by their names in the documentation. One of ``ID_COLUMNS``, ``SLIDE_COLUMNS`` or
        ``LABEL_COLUMNS`` may be there under another of these headers.
    optional : tuple of str
        Columns that are returned where they are there.

    Returns
    -------
    DataFrame of str
        ``columns`` and those of ``optional`` that are there; a slide that is missing is empty, also where the file says
        so in a word such as ``nan`` (``MISSING``). The index is the row in a spreadsheet, where the header
        is row 1; rows without any value are left out.

    Raises
    ------
    InputError
        The file is missing, no CSV, or lacks a column; a header stands twice, or two may be meant.
    """
    expected = f"a CSV file with columns {','.join(columns)}"
    with _opened(path, expected) as stream:
        headers, separator = _header(stream, columns)
        places = _places(path, headers, columns, optional)
        table = _values(path, stream, len(headers), separator, expected)
    read = {name: clean_names(table[place]) for name, place in places.items()}
    for name in read.keys() & set(SLIDE_COLUMNS):
        # A slide called "nan" would pass for one, and nobody would hear that patches of known slides may be in it.
        read[name] = read[name].mask(read[name].str.lower().isin([*MISSING, *_NO_SLIDE]), "")
    return pd.DataFrame(read, dtype="str")


def misnamed(path: Path) -> str:
    """Name the table that may be meant where there is none of this name, in a sentence; empty where there is none."""
    if not path.parent.is_dir():
        return ""
    tables = {name.lower(): name for name in sorted(os.listdir(path.parent)) if name.lower().endswith(_TABLES)}
    stems = {name.partition(".")[0]: name for name in tables if not ignored(name) and name != path.name.lower()}
    like = difflib.get_close_matches(path.name.lower().partition(".")[0], stems, n=1, cutoff=0.85)
    return f" Is {tables[stems[like[0]]]!r} meant? Save it as {path.name} (commas, semicolons or tabs)." if like else ""


@contextmanager
def _opened(path: Path, expected: str) -> Iterator[TextIO]:
    """The file as text; what goes wrong while it is read becomes one sentence."""
    if not path.is_file():
        raise InputError(f"{path}: expected {expected}; it does not exist.{misnamed(path)}")
    try:
        with path.open("rb") as file:
            beginning = file.read(4096)
        encoding = next((name for mark, name in _MARKS if beginning.startswith(mark)), "utf-8")
        if encoding.startswith("utf-8") and b"\0" in beginning:
            raise InputError(
                f"{path}: expected {expected}; got bytes that are no text, or UTF-16 without a byte order mark. "
                "Save it as CSV UTF-8."
            )
        with path.open(encoding=encoding, newline="") as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: expected {expected}; got text that is not {error.encoding.upper()} (byte "
            f"0x{error.object[error.start]:02x}). Save it as CSV UTF-8 (Excel: “CSV UTF-8 (Comma delimited)”)."
        ) from error
    except (ValueError, OSError, csv.Error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: expected {expected}; got: {error}.") from error


def _header(stream: TextIO, columns: tuple[str, ...]) -> tuple[list[str], str]:
    """Cleaned headers, and the separator with which they hold ``columns``; the stream is left at the first value."""
    lines = _lines_of_header(stream)
    told = re.fullmatch(r"\s*\"?sep=(.)\"?\s*", lines[0]) if lines else None
    if told:  # Excel's way to say it
        lines = _lines_of_header(stream)
    read = {sign: _split(lines, sign) for sign in ((told[1],) if told else SEPARATORS)}
    for sign, headers in read.items():
        if all(_candidates(headers, column) for column in columns):
            return headers, sign
    sign = max(read, key=lambda sign: len(read[sign]))
    return read[sign], sign


def _lines_of_header(stream: TextIO) -> list[str]:
    """Lines of the first record that is not blank: more than one where a quoted header holds a line break."""
    lines: list[str] = []
    quotes = 0
    for line in stream:
        if line.strip() or lines:
            lines.append(line)
            quotes += line.count('"')
            if quotes % 2 == 0:
                break
    return lines


def _split(lines: list[str], separator: str) -> list[str]:
    return [clean_name(name) for name in next(csv.reader(lines, delimiter=separator, skipinitialspace=True), [])]


def _places(path: Path, headers: list[str], columns: tuple[str, ...], optional: tuple[str, ...]) -> Mapping[str, int]:
    """Where each column is."""
    named = [name for name in headers if name]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise InputError(f"{path}: every column needs a header of its own; got {twice[0]!r} twice. Rename one.")
    found = {column: _candidates(headers, column) for column in (*columns, *optional)}
    lacking = [column for column in columns if not found[column]]
    got = ",".join(named)
    if lacking and len(named) < 2 <= len(columns):
        raise InputError(
            f"{path}: expected a CSV file with columns {','.join(columns)}, separated by commas, semicolons, tabs or "
            f"|; got {f'one column: {got}. Check the separator' if named else 'no header. Download it again'}."
        )
    if lacking:
        names = " and ".join(f"{column} (or {', '.join(_accepted(column))})" for column in lacking)
        raise InputError(
            f"{path}: expected columns {','.join(columns)}; got {got}. Rename or add {names.replace(' (or )', '')}."
        )
    for column, places in found.items():
        if len(places) > 1:
            several = " and ".join(repr(headers[place]) for place in places)
            raise InputError(f"{path}: which column is {column}: {several}? Name it {column!r}, or remove the others.")
    return {column: places[0] for column, places in found.items() if places}


def _candidates(headers: list[str], column: str) -> list[int]:
    """Places of the columns that may be meant: those named as documented or, without them, by another name."""
    folded = [_fold(header) for header in headers]
    first = _SLIDE_FIRST if column in _SLIDE_FIRST else (column,)
    for names in (first, _accepted(column)):
        places = [place for place, header in enumerate(folded) if header in map(_fold, names)]
        if places:
            return places
    return []


def _accepted(column: str) -> tuple[str, ...]:
    """Other headers that stand for a column."""
    known = next((names for names in (ID_COLUMNS, SLIDE_COLUMNS, LABEL_COLUMNS) if column in names), ())
    return tuple(name for name in known if name != column)


def _fold(header: str) -> str:
    return re.sub(r"[\s_.\-]+", "", header.casefold())


def _values(path: Path, stream: TextIO, width: int, separator: str, expected: str) -> pd.DataFrame:
    """Rows after the header, as text; empty where a row ends early."""
    try:
        with warnings.catch_warnings():
            # Rows longer than the header: pandas would take their first column for row names and shift all others.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                stream,
                sep=separator,
                header=None,
                names=list(range(width + _SPARE)),
                dtype=str,
                keep_default_na=False,
                index_col=False,
                skip_blank_lines=False,  # so that row numbers are those of a spreadsheet
                skipinitialspace=True,
            )
    except (pd.errors.ParserWarning, pd.errors.ParserError) as error:
        told = re.search(r"in line (\d+), saw (\d+)", str(error))
        if not told and isinstance(error, pd.errors.ParserError):
            raise
        which = f"row {int(told[1]) + 1} with {told[2]} values" if told else "rows with too many values"
        raise InputError(
            f"{path}: expected {expected}; got {which} for {width} headers. Fix the row or the header."
        ) from None
    table.index += _FIRST_ROW
    spare = table[table.columns[width:]]
    more = (spare.notna() & (spare != "")).to_numpy()
    if more.any():
        first = int(np.flatnonzero(more.any(axis=1))[0])
        row, count = table.index[first], width + 1 + int(np.flatnonzero(more[first])[-1])
        raise InputError(
            f"{path}: expected {expected}; got row {row} with {count} values for {width} headers. Fix the row or the "
            "header."
        )
    table = table[table.columns[:width]].fillna("")
    return table[(table != "").any(axis=1)]
