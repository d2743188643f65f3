"""Tables of labels and slides, matched with the existing images."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.names import clean_name
from histoblend.data.sources.csv_table import MISSING, read_csv
from histoblend.data.sources.file_names import FileNames, same_file
from histoblend.data.splits import UNMAPPED

#: Reason for setting aside a file whose name cannot be written into a table.
NOT_UTF8 = "its name is not UTF-8: rename it"

_TUMOUR = (
    "tumor", "tumour", "tumors", "tumours", "tumoral", "tumorous", "tumor_tissue", "tumour_tissue", "cancer",
    "cancerous", "malignant", "malignancy", "metastasis", "metastases", "metastatic", "carcinoma",
)  # fmt: skip

#: Class names that show which class is positive, in the form of :func:`class_word`.
POSITIVE = ("1", "positive", "positives", "pos", "true", "yes", *_TUMOUR)
NEGATIVE = (
    "0", "negative", "negatives", "neg", "false", "no", "normal", "normal_tissue", "benign", "healthy",
    *(f"{no}{mark}{word}" for no in ("no", "non", "not") for mark in ("", "_") for word in _TUMOUR),
)  # fmt: skip

#: Letters that are accepted as labels in a table; as names of class folders they could mean anything.
_LETTERS = {"t": True, "y": True, "f": False, "n": False}


def read_labels(path: Path, ids: str, optional: tuple[str, ...] = ()) -> pd.DataFrame:
    """Read a table of labels with one row per patch.

    Parameters
    ----------
    path : Path
    ids : str
        Column of ids or files; see :func:`data.sources.csv_table.read_csv`.
    optional : tuple of str
        Columns that are returned if present.

    Returns
    -------
    DataFrame of str
        ``patch_id``, ``label`` in the form of :func:`class_name`, and ``optional``. The index is the spreadsheet row.

    Raises
    ------
    InputError
        The table cannot be read, an id or a label is missing, or an id is repeated.
    """
    table = read_csv(path, (ids, "label"), optional).rename(columns={ids: "patch_id"})
    unnamed = table.index[table["patch_id"] == ""]
    if len(unnamed):
        raise InputError(f"{path}: every row needs a name in {ids!r}; got none in row {unnamed[0]}. Fix the row.")
    _check_unique(table, path)
    unlabelled = table.index[table["label"].str.lower().isin(MISSING)]
    if len(unlabelled):
        row = unlabelled[0]
        raise InputError(
            f"{path}: every row needs a label; got {table.at[row, 'label']!r} in row {row} (id "
            f"{table.at[row, 'patch_id']!r}) and {len(unlabelled) - 1} more. Add it or remove the row."
        )
    classes = {name: class_name(name) for name in table["label"].unique()}
    return table.assign(label=table["label"].map(classes))


def class_name(name: str) -> str:
    """Clean the name of a class; the numbers 0 and 1 become integers (``1.0`` becomes ``1``)."""
    cleaned = clean_name(name)
    number = re.fullmatch(r"\+?([01])(?:[.,]0*)?", cleaned)
    return number[1] if number else cleaned


def class_word(name: str) -> str:
    """Name of a class in the form of ``POSITIVE`` and ``NEGATIVE``: lower case, words joined by underscores."""
    return re.sub(r"[\s_\-]+", "_", name.casefold())


def binary_labels(table: pd.DataFrame, path: Path) -> pd.Series:
    """Convert the labels of a table to 0 and 1; accepts texts such as ``1.0``, ``01``, ``True``, ``T``, ``tumour``.

    Parameters
    ----------
    table : DataFrame
        From :func:`read_labels`.
    path : Path
        For messages.

    Returns
    -------
    Series of int8

    Raises
    ------
    InputError
        A label has no known meaning.
    """
    labels = table["label"].map({name: _binary(name) for name in table["label"].unique()})
    wrong = table[labels.isna()]
    if len(wrong):
        row = wrong.iloc[0]
        raise InputError(
            f"{path}: labels must be 0 or 1; got {row['label']!r} for id {row['patch_id']!r} (row {wrong.index[0]}) "
            f"and {len(wrong) - 1} more. Fix the rows."
        )
    return labels.astype("int8")


def _binary(name: str) -> bool | None:
    """Whether a label is positive; None if its meaning is unknown."""
    word = class_word(name)
    if word in POSITIVE or word in NEGATIVE:
        return word in POSITIVE
    if word in _LETTERS:
        return _LETTERS[word]
    try:
        number = float(name.strip("='\""))  # marks with which spreadsheets keep a number as text
    except ValueError:
        return None
    return bool(number) if number in (0, 1) else None


def slide_map(path: Path) -> pd.Series:
    """Read any CSV file with a column of ids and a column of slides.

    Parameters
    ----------
    path : Path
        Columns are recognised by :data:`data.sources.csv_table.ID_COLUMNS` and ``SLIDE_COLUMNS``. Ids may be file
        names.

    Returns
    -------
    Series of str
        Slide by id, both cleaned; ids without a slide are left out.

    Raises
    ------
    InputError
        The file is missing or not CSV, a column is missing, or an id has two slides.
    """
    pairs = read_csv(path, ("id", "slide")).drop_duplicates()
    pairs = pairs[pairs["slide"] != ""]
    twice = pairs["id"].duplicated()
    if twice.any():
        row = pairs.index[twice][0]
        raise InputError(
            f"{path}: a patch must have one slide; got two for id {pairs.at[row, 'id']!r} (row {row}). Fix the rows."
        )
    return pairs.set_index("id")["slide"]


def given_slides(files: pd.Series, path: Path) -> pd.Series:
    """Look up the slide of each file in the map at ``path``; missing if the map does not list the file.

    Parameters
    ----------
    files : Series of str
        Patch ids or paths; see :class:`data.sources.file_names.FileNames` for the names that match them.
    path : Path
        See :func:`slide_map`.

    Raises
    ------
    InputError
        The map cannot be read, lists none of the patches, or has a name that fits several.
    """
    slides = slide_map(path)
    names = FileNames(files.tolist(), str(path))
    pairs = slides.rename_axis("name").reset_index()
    pairs = pairs.assign(file=pairs["name"].map(names.find)).dropna(subset="file")
    pairs = pairs.drop_duplicates(["file", "slide"])
    if (twice := same_file(pairs["name"], pairs["file"])) is not None:
        raise InputError(
            f"{path}: a patch must have one slide; got two rows for {names.find(twice[0])!r}: {twice[0]!r} and "
            f"{twice[1]!r}. Fix the rows."
        )
    slide_of_file = files.map(pairs.set_index("file")["slide"])
    if slide_of_file.isna().all():
        first = f"the first id in the file is {slides.index[0]!r}" if len(slides) else "the file names no slide"
        raise InputError(
            f"{path}: expected slides of these patches; it lists none of the {len(files)} patches "
            f"(the first patch is {files.iloc[0]!r}; {first}). Give another file or none."
        )
    return slide_of_file


def slides_of(files: pd.Series, path: Path) -> pd.Series:
    """Like :func:`given_slides`, but patches that the map does not list share the slide ``(unmapped)``."""
    return given_slides(files, path).fillna(UNMAPPED)


def match_files(
    labels: pd.DataFrame, files: set[str], missing: str, *, csv: str, folder: str, suffix: str = ""
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Keep labelled ids that have an image; ``missing`` says whether ids or images without a partner are an error.

    Parameters
    ----------
    labels : DataFrame
        Table with cleaned ``patch_id``.
    files : set of str
        Ids of the existing images: their actual names.
    missing : {"error", "skip"}
    csv, folder, suffix : str
        Names of the label table and of the image folder, and the ending of the images, for messages.

    Returns
    -------
    labels : DataFrame
        Rows that have an image; ``patch_id`` is the actual name of the file.
    skipped : dict from str to str
        Ids that were left out, and why.

    Raises
    ------
    InputError
        Ids and images differ and ``missing`` is "error", no id has an image, or an id fits several images.
    """
    names = FileNames(files, csv)
    labels = labels.assign(file=labels["patch_id"].map(names.find))
    if (twice := same_file(labels["patch_id"], labels["file"])) is not None:
        raise InputError(
            f"{csv}: a patch must have one row; got {twice[0]!r} and {twice[1]!r} for the same file. Remove a row."
        )
    has_image = labels["file"].notna()
    without_image = labels.loc[~has_image, "patch_id"].tolist()
    without_label = sorted(files - set(labels.loc[has_image, "file"]))
    faults = []
    if without_image:
        faults.append(f"{len(without_image)} ids have no image under {folder}/ (first: {without_image[0]!r})")
    if without_label:
        faults.append(f"{len(without_label)} images have no label (first: {without_label[0] + suffix!r})")
    if faults and missing != "skip":
        raise InputError(f"{csv}: {' and '.join(faults)}. Remove them or pass --missing=skip.")
    skipped = {printable(name): f"no image under {folder}/" for name in without_image}
    skipped |= {printable(name): f"no label in {csv}" for name in without_label}
    # Only the selected rows: assigning a longer column to an empty table would add its rows.
    kept = labels[has_image].assign(patch_id=labels.loc[has_image, "file"]).drop(columns="file").reset_index(drop=True)
    if kept.empty:
        raise InputError(f"{csv}: expected ids of images under {folder}/; no id has an image there. Check the folder.")
    return kept, skipped


def _check_unique(table: pd.DataFrame, path: Path) -> None:
    """Check that no id is repeated in the table read from ``path``."""
    twice = table["patch_id"].duplicated()
    if not twice.any():
        return
    name = table.loc[twice, "patch_id"].iloc[0]
    first, second = table.index[table["patch_id"] == name][:2]
    labels = list(dict.fromkeys(table.loc[[first, second], "label"]))
    remedy = (
        "A spreadsheet has rounded this number. Export the table again with the column formatted as text."
        if re.fullmatch(r"\d([.,]\d+)?E\+\d+", name)
        else "Remove a row."
    )
    raise InputError(
        f"{path}: ids must be unique; got {name!r} in rows {first} and {second}, with "
        f"label{'s' if len(labels) > 1 else ''} {' and '.join(map(repr, labels))}. {remedy}"
    )


def printable(name: str) -> str:
    r"""Return a file name with bytes that are not UTF-8 written as ``\x..``, so that a table can hold it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
