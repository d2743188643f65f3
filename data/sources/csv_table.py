"""CSV files with any common separator, encoding and spelling of the headers."""

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

#: Accepted headers of a column; case, spaces, hyphens and underscores do not matter.
ID_COLUMNS = (
    "id", "patch_id", "patch", "image_id", "image", "file", "filename", "file_name", "name", "path",
    "file_path", "image_name", "image_path", "patch_name",
)  # fmt: skip
SLIDE_COLUMNS = ("wsi", "slide", "slide_id", "wsi_id", "slide_name", "wsi_name", "group")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "target")
SPLIT_COLUMNS = ("split", "set", "subset", "partition")
CENTRE_COLUMNS = ("centre", "center", "scanner", "hospital", "site")

_COLUMNS = (ID_COLUMNS, SLIDE_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS, CENTRE_COLUMNS)

#: Headers named in the documentation; they take precedence over other accepted ones.
_SLIDE_FIRST = ("slide", "wsi")

#: Lower-case texts that programs and people write for a missing value; those with # are spreadsheet errors.
MISSING = (
    "", "nan", "-nan", "na", "n/a", "<na>", "nat", "null",
    "#n/a", "#na", "#n/a n/a", "#name?", "#ref!", "#value!", "#div/0!", "#null!", "#num!",
)  # fmt: skip

#: More texts for a missing slide or centre; they may be valid names of classes.
_NO_SLIDE = ("none", "unknown", "missing", "-", "--", "\u2013", "\u2014", "?")

#: Separators, the most common first.
SEPARATORS = (",", ";", "\t", "|")

#: File endings of tables; most of them cannot be read.
_TABLES = (".csv", ".tsv", ".tab", ".txt", ".dat", ".gz", ".zip", ".xlsx", ".xls", ".ods", ".parquet", ".json")

#: Byte order marks and their encodings. UTF-32 comes before UTF-16, whose mark is a prefix of it.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

#: Number of empty values that a row may have beyond the header; spreadsheets write commas for columns once used.
_SPARE = 8

#: Spreadsheet row of the first values.
_FIRST_ROW = 2


def read_csv(path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> pd.DataFrame:
    """Read columns of a CSV file as names cleaned by :func:`data.names.clean_name`.

    Parameters
    ----------
    path : Path
        Separated by commas, semicolons, tabs or ``|``; UTF-8, or UTF-16 with a byte order mark, as Excel writes it.
    columns : tuple of str
        Required columns, by their documented names. A column of ``ID_COLUMNS``, ``SLIDE_COLUMNS``, ``LABEL_COLUMNS``,
        ``SPLIT_COLUMNS`` or ``CENTRE_COLUMNS`` may have another header of the same list.
    optional : tuple of str
        Columns that are returned if present.

    Returns
    -------
    DataFrame of str
        ``columns``, and those of ``optional`` that are present. A missing slide or centre is empty, even if the file
        has a text such as ``nan`` (``MISSING``). The index is the row in a spreadsheet, in which the header is row 1.
        Rows without any value are left out.

    Raises
    ------
    InputError
        The file is missing or not CSV, lacks a column, repeats a header, or has two headers for one column.
    """
    expected = f"a CSV file with columns {','.join(columns)}"
    with _opened(path, expected) as stream:
        headers, separator = _header(stream, columns)
        positions = _positions(path, headers, columns, optional)
        table = _values(path, stream, len(headers), separator, expected)
    read = {name: clean_names(table[position]) for name, position in positions.items()}
    for name in read.keys() & {*SLIDE_COLUMNS, *CENTRE_COLUMNS}:
        # Otherwise "nan" would become a slide, and patches of different slides would be mixed without a warning.
        read[name] = read[name].mask(read[name].str.lower().isin([*MISSING, *_NO_SLIDE]), "")
    return pd.DataFrame(read, dtype="str")


def misnamed(path: Path) -> str:
    """Suggest in a sentence an existing table with a similar name; empty if there is none."""
    name = _similar_table(path)
    return f" Did you mean {name!r}? Save it as {path.name} (commas, semicolons or tabs)." if name else ""


def unread(*paths: Path) -> list[str]:
    """Sentences about tables that are not read because their names are only similar to those of optional tables."""
    names = {path.name: _similar_table(path) for path in paths if not path.exists()}
    return [
        f"{name} was not read. If it is meant as {expected}, save it under that name (commas, semicolons or tabs)"
        for expected, name in names.items()
        if name
    ]


def _similar_table(path: Path) -> str:
    """Name of an existing table with a similar name; empty if there is none."""
    if not path.parent.is_dir():
        return ""
    tables = {name.lower(): name for name in sorted(os.listdir(path.parent)) if name.lower().endswith(_TABLES)}
    stems = {name.partition(".")[0]: name for name in tables if not ignored(name) and name != path.name.lower()}
    matches = difflib.get_close_matches(path.name.lower().partition(".")[0], stems, n=1, cutoff=0.85)
    return tables[stems[matches[0]]] if matches else ""


@contextmanager
def _opened(path: Path, expected: str) -> Iterator[TextIO]:
    """Open the file as text; errors while reading become an InputError."""
    if not path.is_file():
        raise InputError(f"{path}: expected {expected}; it does not exist.{misnamed(path)}")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
        encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
        if encoding.startswith("utf-8") and b"\0" in head:
            raise InputError(
                f"{path}: expected {expected}; got binary data, or UTF-16 without a byte order mark. "
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
    """Return the cleaned headers and the separator that fits ``columns``; leave the stream at the first value."""
    lines = _header_lines(stream)
    directive = re.fullmatch(r"\s*\"?sep=(.)\"?\s*", lines[0]) if lines else None
    if directive:  # Excel names the separator this way
        lines = _header_lines(stream)
    candidates = {mark: _split(lines, mark) for mark in ((directive[1],) if directive else SEPARATORS)}
    for separator, headers in candidates.items():
        if all(_matching_columns(headers, column) for column in columns):
            return headers, separator
    most = max(candidates, key=lambda mark: len(candidates[mark]))
    return candidates[most], most


def _header_lines(stream: TextIO) -> list[str]:
    """Lines of the first record that is not blank; several if a quoted header contains a line break."""
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


def _positions(
    path: Path, headers: list[str], columns: tuple[str, ...], optional: tuple[str, ...]
) -> Mapping[str, int]:
    """Position of each column in a row."""
    named = [name for name in headers if name]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise InputError(f"{path}: every column needs a unique header; got {twice[0]!r} twice. Rename one.")
    matches = {column: _matching_columns(headers, column) for column in (*columns, *optional)}
    missing = [column for column in columns if not matches[column]]
    got = ",".join(named)
    if missing and len(named) < 2 <= len(columns):
        raise InputError(
            f"{path}: expected a CSV file with columns {','.join(columns)}, separated by commas, semicolons, tabs or "
            f"|; got {f'a single column: {got}. Check the separator' if named else 'no header. Download it again'}."
        )
    if missing:
        names = " and ".join(f"{column} (or {', '.join(_accepted(column))})" for column in missing)
        raise InputError(
            f"{path}: expected columns {','.join(columns)}; got {got}. Rename or add {names.replace(' (or )', '')}."
        )
    for column, positions in matches.items():
        if len(positions) > 1:
            several = " and ".join(repr(headers[position]) for position in positions)
            raise InputError(
                f"{path}: cannot tell which column is {column}: {several}. Rename it {column!r}, or remove the others."
            )
    return {column: positions[0] for column, positions in matches.items() if positions}


def _matching_columns(headers: list[str], column: str) -> list[int]:
    """Positions of the columns with the documented header or, if there are none, with another accepted one."""
    folded = [_fold(header) for header in headers]
    documented = _SLIDE_FIRST if column in _SLIDE_FIRST else (column,)
    for names in (documented, _accepted(column)):
        positions = [position for position, header in enumerate(folded) if header in map(_fold, names)]
        if positions:
            return positions
    return []


def _accepted(column: str) -> tuple[str, ...]:
    """Other accepted headers of a column."""
    known = next((names for names in _COLUMNS if column in names), ())
    return tuple(name for name in known if name != column)


def _fold(header: str) -> str:
    return re.sub(r"[\s_.\-]+", "", header.casefold())


def _values(path: Path, stream: TextIO, width: int, separator: str, expected: str) -> pd.DataFrame:
    """Read the rows after the header as text; values that a short row lacks are empty."""
    try:
        with warnings.catch_warnings():
            # With rows longer than the header, pandas would use the first column as row names and shift all others.
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
        details = re.search(r"in line (\d+), saw (\d+)", str(error))
        if not details and isinstance(error, pd.errors.ParserError):
            raise
        which = f"row {int(details[1]) + 1} with {details[2]} values" if details else "rows with too many values"
        raise InputError(
            f"{path}: expected {expected}; got {which} for {width} headers. Fix the row or the header."
        ) from None
    table.index += _FIRST_ROW
    beyond = table[table.columns[width:]]
    filled = (beyond.notna() & (beyond != "")).to_numpy()
    if filled.any():
        first = int(np.flatnonzero(filled.any(axis=1))[0])
        row, count = table.index[first], width + 1 + int(np.flatnonzero(filled[first])[-1])
        raise InputError(
            f"{path}: expected {expected}; got row {row} with {count} values for {width} headers. Fix the row or the "
            "header."
        )
    table = table[table.columns[:width]].fillna("")
    return table[(table != "").any(axis=1)]
