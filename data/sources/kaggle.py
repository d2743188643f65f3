"""The layout of Kaggle's "Histopathologic Cancer Detection": ``train/``, ``train_labels.csv``, ``test/``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.sources.csv_table import read_csv, unread
from histoblend.data.sources.file_names import FileNames
from histoblend.data.sources.image_files import ImageFiles, image_id, is_image, walk_images
from histoblend.data.sources.images import SUFFIXES, size_remedy
from histoblend.data.sources.labels import NOT_UTF8, binary_labels, match_files, printable, read_labels, slides_of
from histoblend.data.sources.tiff import PatchReader
from histoblend.data.storage.arrays import find_name, stamp

LABELS = "train_labels.csv"
SLIDES = "patch_id_wsi.csv"
IMAGES = "train"
UNLABELLED = "test"
SUBMISSION = "sample_submission.csv"
SUFFIX = ".tif"

#: File endings of images that cannot be read. Under ``test/`` the user may expect their ids in the submission.
OTHER_IMAGES = (
    ".gif", ".jp2", ".j2k", ".jxl", ".jpe", ".jfif", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".npy", ".dcm",
    ".tif.gz", ".psd", ".svs", ".ndpi",
)  # fmt: skip


class KaggleSource:
    """Labelled patches of a folder in Kaggle's layout.

    Parameters
    ----------
    path : Path
        Folder that holds ``train/<id>.tif`` and ``train_labels.csv`` (``id,label``) and, optionally, a slide map,
        ``test/<id>.tif`` and ``sample_submission.csv`` (``id``). Images may be in subfolders and have any ending of
        :data:`data.sources.images.SUFFIXES`. Upper and lower case of names and endings do not matter.
    size : int
        Height and width that a patch must have, in pixels.
    missing : {"error", "skip"}
        What to do with ids without an image, including those of ``sample_submission.csv``, and with images without a
        label.
    slide_map : str
        CSV file with a column of ids and a column of slides (see :func:`data.sources.labels.slide_map`): its name in
        ``path``, or its full path. Empty for ``patch_id_wsi.csv``, which may be missing.

    Attributes
    ----------
    table : DataFrame
        ``patch_id, label, slide``, sorted by ``patch_id``. Without a slide map, every ``slide`` is missing.
    skipped : dict from str to str
        Files and ids left out by ``missing="skip"``, and why.
    unlabelled : UnlabelledPatches or None
        The patches under ``test/``; None if there are none.
    notes : dict
        Under ``unused``, sentences about tables that were not read, if there are any.

    Raises
    ------
    InputError
        A folder, file or column is missing, a label is not 0 or 1, an id is repeated, or ids and images differ.
    """

    def __init__(self, path: Path, *, size: int = 96, missing: str = "error", slide_map: str = "") -> None:
        if path.is_file():
            raise InputError(f"{path}: expected the folder that holds train/ and train_labels.csv; got a file.")
        images = find_name(path, IMAGES)
        if not images.is_dir():
            inner = [folder for folder in sorted(path.glob("*/")) if find_name(folder, LABELS).is_file()]
            suggestion = f": {inner[0]}" if len(inner) == 1 else ""
            raise InputError(
                f"{images}: expected a folder of .tif patches; it does not exist. "
                f"Give the folder that holds train/ and train_labels.csv (DATA=… or --data){suggestion}."
            )
        self.size, self._reader = size, PatchReader(images, size, convert=False)
        self._files = _images(images)
        names = {"csv": LABELS, "folder": IMAGES, "suffix": SUFFIX}
        labels, self.skipped = match_files(_read_labels(find_name(path, LABELS)), set(self._files), missing, **names)
        slides = find_name(path, slide_map or SLIDES)
        has_map = bool(slide_map) or slides.exists()
        labels["slide"] = slides_of(labels["patch_id"], slides) if has_map else pd.NA
        labels["slide"] = labels["slide"].astype("string")
        self.table = labels.sort_values("patch_id", ignore_index=True)
        self.unlabelled = _unlabelled(path, size, missing)
        unused = unread(*([] if slide_map else [slides]), find_name(path, SUBMISSION))
        self.notes = {"unused": unused} if unused else {}

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Decode rows ``start`` to ``stop``; see :class:`data.patches.Source`."""
        return self._reader.read([self._files[patch_id] for patch_id in self.table["patch_id"].iloc[start:stop]])

    def remedy(self, reasons: Iterable[str]) -> str:
        """Advice about images of another size; see :func:`data.sources.images.size_remedy`."""
        return size_remedy(reasons, resizes=False)


class UnlabelledPatches:
    """Patches without known label and slide, such as those of a submission.

    Parameters
    ----------
    folder : Path
        Folder of ``<id>.tif`` or other images, at any depth.
    size : int
        Height and width that a patch must have, in pixels.
    files : mapping from str to str
        Path in the folder by id.
    missing : sequence of str
        Ids that the submission must include but that have no image.
    unlisted : sequence of str
        Ids that have an image but are not listed in ``sample_submission.csv``.

    Attributes
    ----------
    table : DataFrame
        ``patch_id, slide``, sorted by ``patch_id``. There is no ``label``, and every ``slide`` is missing.
    skipped : dict from str to str
        Ids without an image, or with a name that cannot be written into a table, and why.
    unlisted : list of str
    """

    def __init__(
        self,
        folder: Path,
        *,
        size: int,
        files: Mapping[str, str],
        missing: Sequence[str] = (),
        unlisted: Sequence[str] = (),
    ) -> None:
        self.size, self._reader, self._files = size, PatchReader(folder, size, convert=False), files
        self.skipped = {printable(name): NOT_UTF8 for name in sorted(files) if name != printable(name)}
        self.skipped |= dict.fromkeys(missing, f"no image under {folder.name}/")
        self.unlisted = list(map(printable, unlisted))
        ids = sorted(name for name in files if name == printable(name))
        slides = pd.array([pd.NA] * len(ids), dtype="string")
        self.table = pd.DataFrame({"patch_id": pd.Series(ids, dtype="str"), "slide": slides})

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Decode rows ``start`` to ``stop``; see :class:`data.patches.Source`."""
        return self._reader.read([self._files[patch_id] for patch_id in self.table["patch_id"].iloc[start:stop]])

    def remedy(self, reasons: Iterable[str]) -> str:
        """Advice about images of another size; see :func:`data.sources.images.size_remedy`."""
        return size_remedy(reasons, resizes=False)


def content(path: Path, *, slide_map: str = "", **_options: object) -> Iterator[str]:
    """Yield lines that change when images or slide map change; see :class:`data.sources.registry.SourceKind`."""
    for part in (IMAGES, UNLABELLED):
        folder = find_name(path, part)
        if folder.is_dir():
            entries = (item for item in walk_images(folder, ImageFiles()) if is_image(item[0]))
            yield from (stamp(entry.path, f"{part}/{name}") for name, entry in entries)
    if slide_map:
        yield stamp(find_name(path, slide_map), slide_map)


def _images(folder: Path) -> dict[str, str]:
    """Path of each image in a folder by id, which is the file's name without folders and ending.

    Unreadable entries, such as pipes, have an id too; reading them gives the reason.

    Raises
    ------
    InputError
        Two files have the same id.
    """
    files: dict[str, str] = {}
    for name, _ in walk_images(folder, ImageFiles()):
        if not is_image(name):
            continue
        other = files.setdefault(image_id(name), name)
        if other != name:
            raise InputError(
                f"{folder}: expected one image per id; got {printable(other)!r} and {printable(name)!r}, both with "
                f"id {printable(image_id(name))!r}. Remove or rename one."
            )
    return files


def _unlabelled(path: Path, size: int, missing: str) -> UnlabelledPatches | None:
    """Open the patches under ``test/`` and read the ids of ``sample_submission.csv``; None if there are no images.

    Raises
    ------
    InputError
        An id has no image, and ``missing`` is "error".
    """
    folder, listed = find_name(path, UNLABELLED), find_name(path, SUBMISSION)
    files = _images(folder) if folder.is_dir() else {}
    if not listed.is_file():
        without = _other_images(folder) if folder.is_dir() else []
        if without and missing != "skip":
            raise InputError(
                f"{folder}: expected images that end in {', '.join(SUFFIXES)}; got {len(without)} with other endings "
                f"(first: {without[0]!r}). Convert or remove them, or pass --missing=skip (MISSING=skip)."
            )
        return UnlabelledPatches(folder, size=size, files=files, missing=without) if files else None
    names = FileNames(files.keys(), str(listed))
    files_by_name = {name: names.find(name) for name in read_csv(listed, ("id",))["id"]}
    without = [name for name, file in files_by_name.items() if file is None]
    if without and missing != "skip":
        first = ", ".join(map(repr, without[:3]))
        effect = "gives these ids the share of positives among the training patches" if files else "makes no submission"
        raise InputError(
            f"{listed}: {len(without)} ids have no image under {UNLABELLED}/ (first: {first}; images end in "
            f"{', '.join(SUFFIXES)}). Add the images, or pass --missing=skip (MISSING=skip), which {effect}."
        )
    unlisted = sorted(files.keys() - set(files_by_name.values()))
    return UnlabelledPatches(folder, size=size, files=files, missing=without, unlisted=unlisted) if files else None


def _other_images(folder: Path) -> list[str]:
    """Image files in a folder, by their endings, that cannot be read."""
    names = (name for name, _ in walk_images(folder, ImageFiles()) if name.lower().endswith(OTHER_IMAGES))
    return sorted(map(printable, names))


def _read_labels(path: Path) -> pd.DataFrame:
    table = read_labels(path, "id")
    return table.assign(label=binary_labels(table, path))
