"""The layout of Kaggle's "Histopathologic Cancer Detection": ``train/*.tif``, ``train_labels.csv``, ``test/*.tif``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.sources.labels import NOT_UTF8, binary_labels, match_files, printable, read_labels, slides_of
from histoblend.data.sources.tiff import PatchReader
from histoblend.data.storage.arrays import names_in, stamp

LABELS = "train_labels.csv"
SLIDES = "patch_id_wsi.csv"
IMAGES = "train"
UNLABELLED = "test"
SUFFIX = ".tif"


class KaggleSource:
    """Labelled patches of a folder in Kaggle's layout.

    Parameters
    ----------
    path : Path
        Folder that holds ``train/<id>.tif`` and ``train_labels.csv`` (``id,label``) and, optionally, a slide map
        and ``test/<id>.tif``.
    size : int
        Height and width that a patch must have, in pixels.
    missing : {"error", "skip"}
        What to do with ids without an image and images without a label.
    slide_map : str
        CSV file with a column of ids and one of slides (see :func:`data.sources.labels.slide_map`), by its name in
        ``path`` or its whole path. Empty for ``patch_id_wsi.csv``, which may be absent.

    Attributes
    ----------
    table : DataFrame
        ``patch_id, label, slide``, sorted by ``patch_id``. ``slide`` is missing everywhere without a slide map.
    skipped : dict from str to str
        File or id left out by ``missing="skip"``, and why.
    unlabelled : UnlabelledTiffs or None
        The patches under ``test/``, where there are any.

    Raises
    ------
    InputError
        A folder, file or column is missing, a label is not 0 or 1, an id stands twice, or ids and images differ.
    """

    def __init__(self, path: Path, *, size: int = 96, missing: str = "error", slide_map: str = "") -> None:
        images = path / IMAGES
        if path.is_file():
            raise InputError(f"{path}: expected the folder that holds train/ and train_labels.csv; got a file.")
        if not images.is_dir():
            raise InputError(
                f"{images}: expected a folder of .tif patches; it does not exist. "
                "Give the folder that holds train/ and train_labels.csv (DATA=… or --data)."
            )
        self.size, self._reader = size, PatchReader(images, size, convert=False)
        names = {"csv": LABELS, "folder": IMAGES, "suffix": SUFFIX}
        labels, self.skipped = match_files(_read_labels(path / LABELS), set(_ids(images)), missing, **names)
        slides = path / (slide_map or SLIDES)
        known = bool(slide_map) or slides.exists()
        labels["slide"] = slides_of(labels["patch_id"], slides) if known else pd.NA
        labels["slide"] = labels["slide"].astype("string")
        self.table = labels.sort_values("patch_id", ignore_index=True)
        rest = path / UNLABELLED
        self.unlabelled = UnlabelledTiffs(rest, size=size) if rest.is_dir() and _ids(rest) else None

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Decode rows ``start`` to ``stop``; see :class:`data.patches.Source`."""
        return self._reader.read([f"{patch_id}{SUFFIX}" for patch_id in self.table["patch_id"].iloc[start:stop]])


class UnlabelledTiffs:
    """Patches of which no label and no slide is known, such as those that a submission is made for.

    Parameters
    ----------
    folder : Path
        Holds ``<id>.tif``.
    size : int
        Height and width that a patch must have, in pixels.

    Attributes
    ----------
    table : DataFrame
        ``patch_id, slide``, sorted by ``patch_id``; there is no ``label``, and every ``slide`` is missing.
    skipped : dict from str to str
        Files whose name cannot be written into a table.
    """

    def __init__(self, folder: Path, *, size: int) -> None:
        self.size, self._reader = size, PatchReader(folder, size, convert=False)
        ids = _ids(folder)
        self.skipped = {printable(name): NOT_UTF8 for name in ids if name != printable(name)}
        ids = [name for name in ids if name == printable(name)]
        slides = pd.array([pd.NA] * len(ids), dtype="string")
        self.table = pd.DataFrame({"patch_id": pd.Series(ids, dtype="str"), "slide": slides})

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Decode rows ``start`` to ``stop``; see :class:`data.patches.Source`."""
        return self._reader.read([f"{patch_id}{SUFFIX}" for patch_id in self.table["patch_id"].iloc[start:stop]])


def content(path: Path, *, slide_map: str = "", **_options: object) -> Iterator[str]:
    """Lines that change when images or slide map do; see :class:`data.sources.registry.SourceKind`."""
    for part in (IMAGES, UNLABELLED):
        if (path / part).is_dir():
            yield from (stamp(path / part / name, f"{part}/{name}") for name in names_in(path / part, SUFFIX))
    if slide_map:
        yield stamp(path / slide_map, slide_map)


def _ids(folder: Path) -> list[str]:
    return [name.removesuffix(SUFFIX) for name in names_in(folder, SUFFIX)]


def _read_labels(path: Path) -> pd.DataFrame:
    table = read_labels(path, "id")
    return table.assign(label=binary_labels(table, path))
