"""Centres: the hospital or scanner of each patch, from a table or from the data set itself."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.sources.csv_table import read_csv
from histoblend.data.sources.file_names import FileNames
from histoblend.data.splits import TEST, TRAIN, is_known


def mapped_centres(table: pd.DataFrame, path: Path, missing: str) -> pd.Series:
    """Look up the centre of each patch in a CSV file with a column of ids or slides and a column of centres.

    Parameters
    ----------
    table : DataFrame
        ``patch_id, slide``.
    path : Path
        Columns ``id`` or ``slide``, and ``centre``, or other accepted headers; see
        :func:`data.sources.csv_table.read_csv`. With both, ids count. Ids may be file names.
    missing : {"error", "skip"}
        What to do with patches without a centre, and with rows without a patch. "skip" leaves the centre of these
        patches unknown, and ignores these rows.

    Returns
    -------
    Series of str
        Missing if unknown. Rows as in ``table``.

    Raises
    ------
    InputError
        The file cannot be read, names a patch or slide twice, names only one centre, or does not fit the patches.
    """
    rows = read_csv(path, ("centre",), ("id", "slide"))
    key = "id" if "id" in rows else "slide"
    if key not in rows:
        raise InputError(f"{path}: expected columns slide,centre or id,centre; got only centre. Add the slides.")
    rows = rows[(rows[key] != "") & (rows["centre"] != "")]
    given = table["patch_id"] if key == "id" else table["slide"].where(is_known(table["slide"]))
    names = FileNames(given.tolist(), str(path)) if key == "id" else None
    rows = rows.assign(found=rows[key].map(names.find) if names else rows[key].where(rows[key].isin(given)))
    rows = rows[~rows.duplicated(["found", "centre"]) | rows["found"].isna()]
    listed = rows.dropna(subset="found")
    twice = listed[listed["found"].duplicated()]
    if len(twice):
        raise InputError(
            f"{path}: {'an id' if names else 'a slide'} must have one centre; got two for "
            f"{twice[key].iloc[0]!r} (row {twice.index[0]}). Fix the rows."
        )
    remedy = "Fix the file or pass --missing=skip."
    if len(rows) > len(listed) and (missing != "skip" or listed.empty):
        first = rows.loc[rows["found"].isna(), key].iloc[0]
        raise InputError(
            f"{path}: expected {key}s of these patches; got {len(rows) - len(listed)} that no patch has (first: "
            f"{first!r}). {'Fix the file.' if listed.empty else remedy}"
        )
    centres = given.map(listed.set_index("found")["centre"])
    without = table[centres.isna()]
    if len(without) and missing != "skip":
        first = without.iloc[0]
        raise InputError(
            f"{path}: expected a centre for every patch; got none for {len(without)} of {len(table)} (first: "
            f"{first['patch_id']!r}, slide {first['slide']}). {remedy}"
        )
    if centres.nunique() < 2:
        only = ", ".join(map(repr, listed["centre"].unique())) or "none"
        raise InputError(f"{path}: expected two or more centres; got {only}. Fix the file or leave it out.")
    return centres.astype("string")


def check_centres(table: pd.DataFrame) -> None:
    """Check that no slide has two centres: a left-out centre would then share a slide with the others.

    Raises
    ------
    InputError
        A slide has two centres.
    """
    known = table[is_known(table["slide"]) & table["centre"].notna()]
    several = known.groupby("slide")["centre"].nunique() > 1
    if several.any():
        slide = several.idxmax()
        first, second = known.loc[known["slide"] == slide, "centre"].unique()[:2]
        raise InputError(
            f"a slide must have one centre; got {first!r} and {second!r} for slide {slide!r}. Fix the table of centres."
        )


def hold_out_centre(table: pd.DataFrame, centre: str) -> pd.DataFrame:
    """Make one centre the test set, in place of an official split.

    Parameters
    ----------
    table : DataFrame
        ``centre``, if any is known.
    centre : str

    Returns
    -------
    DataFrame
        ``table`` with ``official``: "test" for patches of the centre, otherwise "train".

    Raises
    ------
    InputError
        No patch is of this centre, all are, or a patch has no centre and could be of this one.
    """
    names = sorted(table["centre"].dropna().unique()) if "centre" in table else []
    if centre not in names or len(names) < 2:
        listed = ", ".join(names) or "none; name them in a table (data.centre_map)"
        raise InputError(
            f"split.test_centre must be one of two or more centres; got {centre!r}, but known are {listed}."
        )
    if unknown := int(table["centre"].isna().sum()):
        raise InputError(
            f"split.test_centre needs the centre of every patch; {unknown} have none. Name or remove them."
        )
    return table.assign(official=table["centre"].map(lambda name: TEST if name == centre else TRAIN).astype("string"))
