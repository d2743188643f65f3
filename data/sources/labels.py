"""Tables of labels and slides, matched with the images that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.names import clean_name
from histoblend.data.sources.csv_table import MISSING, read_csv
from histoblend.data.sources.file_names import FileNames, same_file
from histoblend.data.splits import UNMAPPED

#: Why a file is set aside whose name no table can hold.
NOT_UTF8 = "its name is not UTF-8: rename it"

_TUMOUR = (
    "tumor", "tumour", "tumors", "tumours", "tumoral", "tumorous", "tumor_tissue", "tumour_tissue", "cancer",
    "cancerous", "malignant", "malignancy", "metastasis", "metastases", "metastatic", "carcinoma",
)  # fmt: skip

#: Class names that say by themselves which one is positive, as :func:`class_word` gives them.
POSITIVE = ("1", "positive", "positives", "pos", "true", "yes", *_TUMOUR)
NEGATIVE = (
    "0", "negative", "negatives", "neg", "false", "no", "normal", "normal_tissue", "benign", "healthy",
    *(f"{no}{mark}{word}" for no in ("no", "non", "not") for mark in ("", "_") for word in _TUMOUR),
)  # fmt: skip

#: Letters that say it where a label can be nothing else; a class folder of such a name may mean anything.
_LETTERS = {"t": True, "y": True, "f": False, "n": False}


def read_labels(path: Path, ids: str, optional: tuple[str, ...] = ()) -> pd.DataFrame:
    """Read a table of labels, each of a patch of its own.

    Parameters
    ----------
    path : Path
    ids : str
        The column of ids or files; see :func:`data.sources.csv_table.read_csv`.
    optional : tuple of str
        Further columns, where they are there.

    Returns
    -------
    DataFrame of str
        ``patch_id``, ``label`` as :func:`class_name` gives it, and ``optional``; the index is the row in a spreadsheet.

    Raises
    ------
    InputError
        It cannot be read, an id or a label is missing, or an id stands twice.
    """
    table = read_csv(path, (ids, "label"), optional).rename(columns={ids: "patch_id"})
    nameless = table.index[table["patch_id"] == ""]
    if len(nameless):
        raise InputError(f"{path}: every row needs a name in {ids!r}; got none in row {nameless[0]}. Fix the row.")
    _check_unique(table, path)
    without = table.index[table["label"].str.lower().isin(MISSING)]
    if len(without):
        row = without[0]
        raise InputError(
            f"{path}: every row needs a label; got {table.at[row, 'label']!r} in row {row} (id "
            f"{table.at[row, 'patch_id']!r}) and {len(without) - 1} more. Add it or remove the row."
        )
    classes = {name: class_name(name) for name in table["label"].unique()}
    return table.assign(label=table["label"].map(classes))


def class_name(name: str) -> str:
    """Name of a class, cleaned; the numbers 0 and 1 as whole numbers (``1.0`` is ``1``)."""
    cleaned = clean_name(name)
    number = re.fullmatch(r"\+?([01])(?:[.,]0*)?", cleaned)
    return number[1] if number else cleaned


def class_word(name: str) -> str:
    """Name of a class as ``POSITIVE`` and ``NEGATIVE`` have it: in lower case, parts joined by underscores."""
    return re.sub(r"[\s_\-]+", "_", name.casefold())


def binary_labels(table: pd.DataFrame, path: Path) -> pd.Series:
    """Labels of a table that must be 0 or 1, or say it: ``1.0``, ``01``, ``True``, ``T``, ``tumour``.

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
        A label is neither.
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
    """Whether a label is positive; None where it does not say."""
    word = class_word(name)
    if word in POSITIVE or word in NEGATIVE:
        return word in POSITIVE
    if word in _LETTERS:
        return _LETTERS[word]
    try:
        number = float(name.strip("='\""))  # a spreadsheet's ways to keep a number a text
    except ValueError:
        return None
    return bool(number) if number in (0, 1) else None


def slide_map(path: Path) -> pd.Series:
    """Read any CSV file with a column of ids and one of slides.

    Parameters
    ----------
    path : Path
        Columns are recognised by :data:`data.sources.csv_table.ID_COLUMNS` and ``SLIDE_COLUMNS``; ids may be file
        names.

    Returns
    -------
    Series of str
        Slide by id, both cleaned; ids without a slide are left out.

    Raises
    ------
    InputError
        The file is missing or no CSV, a column is missing, or an id has two slides.
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
    """Slide of each file by the map in ``path``; missing where the map leaves it out.

    Parameters
    ----------
    files : Series of str
        Patch ids or paths; see :class:`data.sources.file_names.FileNames` for what the map may call them.
    path : Path
        See :func:`slide_map`.

    Raises
    ------
    InputError
        It cannot be read, knows none of the patches, or may mean several.
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
    found = files.map(pairs.set_index("file")["slide"])
    if found.isna().all():
        first = f"the first of its ids is {slides.index[0]!r}" if len(slides) else "it holds no slide"
        raise InputError(
            f"{path}: expected slides of these patches; it knows none of {len(files)} "
            f"(the first is {files.iloc[0]!r}; {first}). Give another file or leave it out."
        )
    return found


def slides_of(files: pd.Series, path: Path) -> pd.Series:
    """:func:`given_slides`, where patches that the map leaves out share the group ``(unmapped)``."""
    return given_slides(files, path).fillna(UNMAPPED)


def match_files(
    labels: pd.DataFrame, files: set[str], missing: str, *, csv: str, folder: str, suffix: str = ""
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Keep labelled ids that have an image; ``missing`` says whether the others, on either side, are fatal.

    Parameters
    ----------
    labels : DataFrame
        With ``patch_id``, cleaned.
    files : set of str
        Ids of the images that are there: their real names.
    missing : {"error", "skip"}
    csv, folder, suffix : str
        What the labels, the images' folder and the end of their names are called, for messages.

    Returns
    -------
    labels : DataFrame
        ``patch_id`` is the real name of the file that was meant.
    skipped : dict from str to str
        Ids left out, and why.

    Raises
    ------
    InputError
        Ids and images differ and ``missing`` is "error", no id has an image, or which one it has is not clear.
    """
    names = FileNames(files, csv)
    labels = labels.assign(file=labels["patch_id"].map(names.find))
    if (twice := same_file(labels["patch_id"], labels["file"])) is not None:
        raise InputError(f"{csv}: a patch must have one row; got {twice[0]!r} and {twice[1]!r} for one. Remove a row.")
    here = labels["file"].notna()
    without_image = labels.loc[~here, "patch_id"].tolist()
    without_label = sorted(files - set(labels.loc[here, "file"]))
    complaints = []
    if without_image:
        complaints.append(f"{len(without_image)} ids have no image under {folder}/ (first: {without_image[0]!r})")
    if without_label:
        complaints.append(f"{len(without_label)} images have no label (first: {without_label[0] + suffix!r})")
    if complaints and missing != "skip":
        raise InputError(f"{csv}: {' and '.join(complaints)}. Remove them or pass --missing=skip.")
    skipped = {printable(name): f"no image under {folder}/" for name in without_image}
    skipped |= {printable(name): f"no label in {csv}" for name in without_label}
    # Not a column of all rows: a table without rows would take over its rows.
    kept = labels[here].assign(patch_id=labels.loc[here, "file"]).drop(columns="file").reset_index(drop=True)
    if kept.empty:
        raise InputError(f"{csv}: expected ids of images under {folder}/; none has one. Check the folder.")
    return kept, skipped


def _check_unique(table: pd.DataFrame, path: Path) -> None:
    """Check that no id stands twice in the table read from ``path``."""
    twice = table["patch_id"].duplicated()
    if not twice.any():
        return
    name = table.loc[twice, "patch_id"].iloc[0]
    first, second = table.index[table["patch_id"] == name][:2]
    labels = list(dict.fromkeys(table.loc[[first, second], "label"]))
    remedy = (
        "This is a number that a spreadsheet shortened: export the table again, with that column as text."
        if re.fullmatch(r"\d([.,]\d+)?E\+\d+", name)
        else "Remove a row."
    )
    raise InputError(
        f"{path}: ids must be unique; got {name!r} in rows {first} and {second}, with "
        f"label{'s' if len(labels) > 1 else ''} {' and '.join(map(repr, labels))}. {remedy}"
    )


def printable(name: str) -> str:
    r"""Return a file's name with bytes that are no UTF-8 as ``\x..``, so that it can be written into a table."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
