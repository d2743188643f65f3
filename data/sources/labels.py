"""CSV files of labels and slides, matched with the images that are there."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.splits import UNMAPPED

#: Why a file is set aside whose name no table can hold.
NOT_UTF8 = "its name is not UTF-8: rename it"

#: Names that a slide map's two columns may have, whatever their case; the first that is there is taken.
ID_COLUMNS = ("id", "patch_id", "patch", "image_id", "image", "file", "filename", "file_name", "name", "path")
SLIDE_COLUMNS = ("wsi", "slide", "slide_id", "wsi_id", "slide_name", "slideid", "group")


def read_csv(path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> pd.DataFrame:
    """Read a CSV file as strings and check that it has ``columns``.

    Parameters
    ----------
    path : Path
    columns : tuple of str
        Columns that must be there; no others are returned, but for
    optional : tuple of str
        columns that are returned where they are there.

    Raises
    ------
    InputError
        The file is missing, not a CSV, or lacks a column.
    """
    table = _read(path, f"a CSV file with columns {','.join(columns)}")
    lacking = [column for column in columns if column not in table.columns]
    if lacking:
        raise InputError(
            f"{path}: expected columns {','.join(columns)}; got {','.join(map(str, table.columns))}. "
            f"Rename or add {', '.join(lacking)}."
        )
    return table[[*columns, *(column for column in optional if column in table.columns)]]


def _read(path: Path, expected: str) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: expected {expected}; it does not exist.")
    try:
        with warnings.catch_warnings():
            # Rows longer than the header: pandas would take their first column for row names and shift all others.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except pd.errors.ParserWarning:
        raise InputError(
            f"{path}: expected {expected}; got rows with more values than the header has names. Mend the header."
        ) from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: expected {expected}; got: {error}.") from error


def slide_map(path: Path) -> pd.Series:
    """Read any CSV file with a column of ids and one of slides.

    Parameters
    ----------
    path : Path
        Columns are recognised by ``ID_COLUMNS`` and ``SLIDE_COLUMNS``; ids may be file names.

    Returns
    -------
    Series of str
        Slide by id; ids without a slide are left out.

    Raises
    ------
    InputError
        The file is missing or no CSV, a column is missing, or an id has two slides.
    """
    table = _read(path, "a CSV file with the slide of each patch")
    names = {str(column).strip().lower(): column for column in table.columns}
    ids = next((names[name] for name in ID_COLUMNS if name in names), None)
    slides = next((names[name] for name in SLIDE_COLUMNS if name in names), None)
    if ids is None or slides is None:
        lacking = [("id", ID_COLUMNS)] * (ids is None) + [("slide", SLIDE_COLUMNS)] * (slides is None)
        wanted = " and ".join(f"one of {what}s ({', '.join(known)})" for what, known in lacking)
        raise InputError(
            f"{path}: expected a column {wanted}; got {','.join(map(str, table.columns))}. Rename the column."
        )
    pairs = pd.DataFrame({"id": table[ids].str.strip(), "slide": table[slides].str.strip()}).drop_duplicates()
    twice = pairs["id"].duplicated()
    if twice.any():
        first = pairs.loc[twice, "id"].iloc[0]
        raise InputError(f"{path}: a patch must have one slide; got two for id {first!r}. Mend the rows.")
    return pairs[pairs["slide"] != ""].set_index("id")["slide"]


def slides_of(patch_ids: pd.Series, path: Path, suffixes: tuple[str, ...] = ()) -> pd.Series:
    """Slide of each patch by the map in ``path``; patches that it leaves out share the group ``(unmapped)``.

    Parameters
    ----------
    patch_ids : Series of str
    path : Path
        See :func:`slide_map`.
    suffixes : tuple of str
        What the map's ids may end with and patch ids do not, such as ".tif"; folders before the name then go too.

    Raises
    ------
    InputError
        Also when the map knows none of the patches.
    """
    slides = slide_map(path)
    if suffixes:
        stems = [_stem(name, suffixes) for name in slides.index]
        slides = slides.set_axis(pd.Index(stems, dtype="object"))
        if slides.index.has_duplicates:
            first = slides.index[slides.index.duplicated()][0]
            raise InputError(f"{path}: a patch must have one slide; got two rows for {first!r}. Mend the rows.")
    found = patch_ids.map(slides)
    if found.isna().all():
        first = f"the first of its ids is {slides.index[0]!r}" if len(slides) else "it holds no slide"
        raise InputError(
            f"{path}: expected slides of these patches; it knows none of {len(patch_ids)} "
            f"(the first is {patch_ids.iloc[0]!r}; {first}). Give another file or remove it."
        )
    return found.fillna(UNMAPPED)


def _stem(name: str, suffixes: tuple[str, ...]) -> str:
    for suffix in suffixes:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)].rpartition("/")[2]
    return name


def match_files(
    labels: pd.DataFrame, files: set[str], missing: str, *, csv: str, folder: str, suffix: str = ""
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Keep labelled ids that have an image; ``missing`` says whether the others, on either side, are fatal.

    Parameters
    ----------
    labels : DataFrame
        With ``patch_id``.
    files : set of str
        Ids of the images that are there.
    missing : {"error", "skip"}
    csv, folder, suffix : str
        What the labels, the images' folder and the end of their names are called, for messages.

    Returns
    -------
    labels : DataFrame
    skipped : dict from str to str
        Ids left out, and why.

    Raises
    ------
    InputError
        Ids and images differ and ``missing`` is "error", or no id has an image.
    """
    here = np.array([name in files for name in labels["patch_id"]], dtype=bool)  # isin() fails on names not in UTF-8
    without_image = labels.loc[~here, "patch_id"].tolist()
    without_label = sorted(files - set(labels["patch_id"]))
    complaints = []
    if without_image:
        complaints.append(f"{len(without_image)} ids have no image under {folder}/ (first: {without_image[0]!r})")
    if without_label:
        complaints.append(f"{len(without_label)} images have no label (first: {without_label[0] + suffix!r})")
    if complaints and missing != "skip":
        raise InputError(f"{csv}: {' and '.join(complaints)}. Remove them or pass --missing=skip.")
    skipped = {printable(name): f"no image under {folder}/" for name in without_image}
    skipped |= {printable(name): f"no label in {csv}" for name in without_label}
    kept = labels[here].reset_index(drop=True)
    if kept.empty:
        raise InputError(f"{csv}: expected ids of images under {folder}/; none has one. Check the folder.")
    return kept, skipped


def check_unique(ids: pd.Series, path: Path) -> None:
    """Check that no id stands twice in the table read from ``path``."""
    if ids.duplicated().any():
        raise InputError(f"{path}: ids must be unique; got {ids[ids.duplicated()].iloc[0]!r} twice. Remove a row.")


def printable(name: str) -> str:
    r"""Return a file's name with bytes that are no UTF-8 as ``\x..``, so that it can be written into a table."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
