"""CAMELYON17-WILDS as published: ``metadata.csv`` and ``patches/patient_<patient>_node_<node>/….png``.

References
----------
Koh et al. (2021), WILDS: A Benchmark of in-the-Wild Distribution Shifts, ICML (layout and official split).
Bándi et al. (2019), IEEE Transactions on Medical Imaging 38(2), 550-560 (CAMELYON17).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.sources.csv_table import read_csv
from histoblend.data.sources.image_files import ImageFiles, image_files, walk_images
from histoblend.data.sources.images import size_remedy
from histoblend.data.sources.labels import binary_labels, match_files
from histoblend.data.sources.tiff import PatchReader
from histoblend.data.splits import TEST, TRAIN
from histoblend.data.storage.arrays import find_name, stamp

METADATA = "metadata.csv"
IMAGES = "patches"

#: Centres of the official validation and test parts. The column ``split`` of the file knows only the other three.
VALIDATION_CENTRE, TEST_CENTRE = "1", "2"


class WildsSource:
    """Labelled patches of the published folder, with their centres and the official split.

    Parameters
    ----------
    path : Path
        Folder that holds ``metadata.csv`` (``patient, node, x_coord, y_coord, tumor, center``; other columns are
        ignored) and ``patches/patient_<patient>_node_<node>/patch_patient_<patient>_node_<node>_x_<x>_y_<y>.png``.
    size : int
        Height and width that a patch must have, in pixels.
    missing : {"error", "skip"}
        What to do with rows without an image, and with images without a row.

    Attributes
    ----------
    table : DataFrame
        ``patch_id`` (the file's path in ``patches/``), ``label``, ``slide`` (``patient_<patient>_node_<node>``),
        ``patient`` (``patient_<patient>``) and ``centre``, sorted by ``patch_id``. If the test centre is there, also
        ``official`` (train, valid or test).
    skipped : dict from str to str
        Rows and files left out by ``missing="skip"``, and why.
    notes : dict
        Number of patches per centre.

    Raises
    ------
    InputError
        The folder, the table or a column is missing, a patch is listed twice, a label is not 0 or 1, a centre is
        empty, or rows and images differ.
    """

    def __init__(self, path: Path, *, size: int = 96, missing: str = "error") -> None:
        images, metadata = find_name(path, IMAGES), find_name(path, METADATA)
        if not images.is_dir() or not metadata.is_file():
            raise InputError(
                f"{path}: expected CAMELYON17-WILDS with {METADATA} and {IMAGES}/; got a folder without them. Give the "
                "folder that holds both, such as camelyon17_v1.0 (DATA=… or --data)."
            )
        self.size, self._reader = size, PatchReader(images, size, convert=True)
        table, self.skipped = match_files(
            _read_metadata(metadata), image_files(images).files, missing, csv=METADATA, folder=IMAGES
        )
        self.table = table.sort_values("patch_id", ignore_index=True)
        counts = self.table["centre"].value_counts().sort_index()
        self.notes: dict[str, Any] = {"centres": {str(name): int(count) for name, count in counts.items()}}
        if TEST_CENTRE in counts and len(counts) > 1:
            parts = {TEST_CENTRE: TEST, VALIDATION_CENTRE: "valid"}
            self.table["official"] = self.table["centre"].map(lambda name: parts.get(name, TRAIN)).astype("string")

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Decode rows ``start`` to ``stop``; see :class:`data.patches.Source`."""
        return self._reader.read(self.table["patch_id"].iloc[start:stop].tolist())

    def remedy(self, reasons: Iterable[str]) -> str:
        """Advice about images of another size; see :func:`data.sources.images.size_remedy`."""
        return size_remedy(reasons, resizes=False)


def content(path: Path, **_options: object) -> Iterator[str]:
    """Yield lines that change when images change; see :class:`data.sources.registry.SourceKind`."""
    yield from (stamp(entry.path, name) for name, entry in walk_images(find_name(path, IMAGES), ImageFiles()))


def _read_metadata(path: Path) -> pd.DataFrame:
    """Read ``patch_id, label, slide, patient, centre``; patient, node and position give the name of a patch's file."""
    rows = read_csv(path, ("patient", "node", "x_coord", "y_coord", "tumor", "centre"))
    for name in rows:
        if (empty := rows[name] == "").any():
            raise InputError(f"{path}: every row needs a {name}; got none in row {empty.idxmax()}. Download it again.")
    # The published file has patients as 004; a spreadsheet program writes 4.
    patients = "patient_" + rows["patient"].str.zfill(3)
    slides = patients + "_node_" + rows["node"]
    files = slides + "/patch_" + slides + "_x_" + rows["x_coord"] + "_y_" + rows["y_coord"] + ".png"
    named = {"slide": slides, "patient": patients, "centre": rows["centre"]}
    table = pd.DataFrame({"patch_id": files, "label": rows["tumor"], **named})
    twice = table[table["patch_id"].duplicated()]
    if len(twice):
        raise InputError(
            f"{path}: a patch must have one row; got {twice['patch_id'].iloc[0]!r} again in row "
            f"{twice.index[0]}. Remove one."
        )
    return table.assign(label=binary_labels(table, path)).astype(dict.fromkeys(named, "string"))
