"""The layout of Kaggle's "Histopathologic Cancer Detection": ``train/*.tif`` and ``train_labels.csv``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from data.errors import InputError

LABELS = "train_labels.csv"
SLIDES = "patch_id_wsi.csv"
IMAGES = "train"

#: Slide of the patches that an incomplete slide map leaves out: one group, so that they never span a split.
UNMAPPED = "(unmapped)"


class KaggleSource:
    """Labelled patches of a folder in Kaggle's layout.

    Parameters
    ----------
    path : Path
        Folder that holds ``train/<id>.tif``, ``train_labels.csv`` (``id,label``) and, optionally,
        ``patch_id_wsi.csv`` (``id,wsi``).
    size : int
        Height and width that a patch must have, in pixels.
    missing : {"error", "skip"}
        What to do with ids without an image and images without a label.

    Attributes
    ----------
    table : DataFrame
        ``patch_id, label, slide``, sorted by ``patch_id``. ``slide`` is missing everywhere without a slide map.
    skipped : dict from str to str
        File or id left out by ``missing="skip"``, and why.

    Raises
    ------
    InputError
        A folder, file or column is missing, a label is not 0 or 1, an id stands twice, or ids and images differ.
    """

    def __init__(self, path: Path, *, size: int = 96, missing: str = "error") -> None:
        self.folder, self.size = path, size
        images = path / IMAGES
        if path.is_file():
            raise InputError(f"{path}: expected the folder that holds train/ and train_labels.csv; got a file.")
        if not images.is_dir():
            raise InputError(
                f"{images}: expected a folder of .tif patches; it does not exist. "
                "Give the folder that holds train/ and train_labels.csv (DATA=… or --data)."
            )
        labels = _read_labels(path / LABELS)
        files = {path.stem for path in images.glob("*.tif")}
        labels, self.skipped = _match(labels, files, missing)
        slides = path / SLIDES
        labels["slide"] = _slides(slides, labels["patch_id"]) if slides.exists() else pd.Series(pd.NA, labels.index)
        labels["slide"] = labels["slide"].astype("string")
        self.table = labels.sort_values("patch_id", ignore_index=True)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Decode rows ``start`` to ``stop``; see :class:`data.patches.Source`."""
        pixels = np.zeros((stop - start, self.size, self.size, 3), np.uint8)
        reasons = {}
        for row, patch_id in enumerate(self.table["patch_id"].iloc[start:stop]):
            reason = read_patch(self.folder / IMAGES / f"{patch_id}.tif", pixels[row])
            if reason:
                reasons[row] = reason
        return pixels, reasons


def read_patch(path: Path, out: np.ndarray) -> str:
    """Decode one RGB image file into ``out``.

    Parameters
    ----------
    path : Path
    out : ndarray of shape (height, width, 3), dtype uint8
        Overwritten.

    Returns
    -------
    str
        Why the file could not be used; empty when it could.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            expected = (out.shape[1], out.shape[0])
            if image.size != expected:
                return f"expected {expected[0]} × {expected[1]} pixels, got {image.size[0]} × {image.size[1]}"
            if image.mode != "RGB":
                return f"expected an RGB image, got mode {image.mode}"
            out[:] = np.asarray(image)
    except UnidentifiedImageError:
        return "not an image that can be read"
    # Pillow raises these, and no common class of its own, on truncated or altered files.
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, Image.DecompressionBombError) as error:
        return f"not readable as an image ({error})"
    return ""


def read_csv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV file as strings and check that it has ``columns``.

    Raises
    ------
    InputError
        The file is missing, not a CSV, or lacks a column.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a CSV file with columns {','.join(columns)}; it does not exist.")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: expected a CSV file with columns {','.join(columns)}; got: {error}.") from error
    lacking = [column for column in columns if column not in table.columns]
    if lacking:
        raise InputError(
            f"{path}: expected columns {','.join(columns)}; got {','.join(map(str, table.columns))}. "
            f"Rename or add {', '.join(lacking)}."
        )
    return table[list(columns)]


def _read_labels(path: Path) -> pd.DataFrame:
    table = read_csv(path, ("id", "label")).rename(columns={"id": "patch_id"})
    wrong = table[~table["label"].isin(["0", "1"])]
    if len(wrong):
        row = wrong.iloc[0]
        raise InputError(
            f"{path}: labels must be 0 or 1; got {row['label']!r} for id {row['patch_id']!r} "
            f"and {len(wrong) - 1} more. Mend the rows."
        )
    if table["patch_id"].duplicated().any():
        first = table.loc[table["patch_id"].duplicated(), "patch_id"].iloc[0]
        raise InputError(f"{path}: ids must be unique; got {first!r} twice. Remove one of the rows.")
    return table.assign(label=table["label"].astype(np.int8))


def _match(labels: pd.DataFrame, files: set[str], missing: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """Keep ids that have an image; ``missing`` says whether the others, on either side, are fatal."""
    without_image = labels.loc[~labels["patch_id"].isin(files), "patch_id"].tolist()
    without_label = sorted(files - set(labels["patch_id"]))
    complaints = []
    if without_image:
        complaints.append(f"{len(without_image)} ids have no image under {IMAGES}/ (first: {without_image[0]!r})")
    if without_label:
        complaints.append(f"{len(without_label)} images have no label (first: '{without_label[0]}.tif')")
    if complaints and missing != "skip":
        raise InputError(f"{LABELS}: {' and '.join(complaints)}. Remove them or pass --missing=skip.")
    skipped = dict.fromkeys(without_image, f"no image under {IMAGES}/")
    skipped |= dict.fromkeys(without_label, f"no label in {LABELS}")
    kept = labels[labels["patch_id"].isin(files)].reset_index(drop=True)
    if kept.empty:
        raise InputError(f"{LABELS}: expected ids of images under {IMAGES}/; none has one. Check the folder.")
    return kept, skipped


def _slides(path: Path, patch_ids: pd.Series) -> pd.Series:
    """Slide of each patch; patches that the map leaves out share the group ``(unmapped)``."""
    table = read_csv(path, ("id", "wsi"))
    twice = table.drop_duplicates()["id"].duplicated()
    if twice.any():
        first = table.drop_duplicates().loc[twice, "id"].iloc[0]
        raise InputError(f"{path}: a patch must have one slide; got two for id {first!r}. Mend the rows.")
    slide = table.drop_duplicates().set_index("id")["wsi"].replace("", pd.NA)
    return patch_ids.map(slide).fillna(UNMAPPED)
