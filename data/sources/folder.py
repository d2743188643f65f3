"""Folders of images: one folder per class, or ``labels.csv`` with ``file,label[,slide]``."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.names import clean_names, look_alikes
from histoblend.data.sources.csv_table import misnamed, unread
from histoblend.data.sources.file_names import clean_path
from histoblend.data.sources.image_files import ImageFiles, image_files, image_id, is_image, walk_images
from histoblend.data.sources.images import CONVERSION, RESIZING, SUFFIXES, size_remedy
from histoblend.data.sources.labels import (
    NEGATIVE,
    POSITIVE,
    class_name,
    class_word,
    match_files,
    read_labels,
    slides_of,
)
from histoblend.data.sources.official_split import class_folders, part_named, part_of
from histoblend.data.sources.tiff import PatchReader
from histoblend.data.splits import TEST, UNMAPPED
from histoblend.data.storage.arrays import find_name, stamp

LABELS = "labels.csv"

#: First words of the names of negative classes.
_NEGATED = re.compile(r"(no|non|not|un|without|negative|normal|benign|healthy|control)", re.IGNORECASE)


class FolderSource:
    """Labelled patches in a folder of image files.

    Parameters
    ----------
    path : Path
        Folder that holds ``labels.csv`` (``file,label`` and, optionally, ``slide`` and ``split``; files by their path
        in the folder). Without it, a folder for each class, with images at any depth. Class folders may be in
        ``train/``, ``val/`` and ``test/`` (see :data:`data.sources.official_split.SPLITS`). Links to folders are
        followed.
    size : int
        Height and width of a patch in pixels.
    missing : {"error", "skip"}
        With ``labels.csv``: what to do with rows without an image, and with images without a row.
    slide_map : str
        CSV file with a column of files (paths in the folder) and a column of slides: its name in ``path``, or its full
        path. Empty to use the column ``slide`` of ``labels.csv``, if present.
    resize : {"refuse", "resize", "crop"}
        What to do with images of another size; see :data:`data.sources.images.RESIZING`.
    positive : sequence of str
        The positive classes; all others are negative. May be empty if there are two classes whose names show which one
        is positive (:data:`data.sources.labels.POSITIVE`, ``NEGATIVE``).

    Attributes
    ----------
    table : DataFrame
        ``patch_id`` (the file's path in the folder, with slashes), ``label``, ``slide``, sorted by ``patch_id``. Also
        ``official`` (train, valid or test), as in :class:`data.sources.pcam.PcamSource`, if the folders ``train/``,
        ``val/`` and ``test/``, or the column ``split``, include a labelled test set.
    skipped : dict from str to str
        Files in the folder that are not patches, and why.
    unlabelled : UnlabelledImages or None
        The images under ``test/`` if they are not in class folders, or not listed in ``labels.csv``.
    notes : dict
        Classes with their labels and numbers of patches, the rules for converting images to patches, and the number of
        patches per part of the official split; under ``unused``, sentences about tables that were not used.

    Raises
    ------
    InputError
        There are fewer than two classes, it is unclear which is positive, a file is listed twice or is outside the
        folder, or files and ``labels.csv`` differ.
    """

    def __init__(
        self,
        path: Path,
        *,
        size: int = 96,
        missing: str = "error",
        slide_map: str = "",
        resize: str = "refuse",
        positive: Sequence[str] = (),
    ) -> None:
        if not path.is_dir():
            raise InputError(f"{path}: expected a folder with a folder for each class; got no folder. Give DATA=….")
        self.size, self._reader = size, PatchReader(path, size, resize=resize)
        images = image_files(path)
        self.skipped = images.skipped
        labels = find_name(path, LABELS)
        if labels.exists():
            table = _read_labels(labels)
            unlabelled = _unlisted_test(table["patch_id"], images.files)
            files = images.files - unlabelled
            unused = _use_split(table, labels)
            table, unmatched = match_files(table, files, missing, csv=labels.name, folder=path.name or "/")
            self.skipped |= unmatched
            classes = _label_of_class(table, positive, path)
        else:
            table, classes, unlabelled = _from_folders(path, images, positive)
            unused = unread(labels)
        table["label"] = table["class"].map(classes).astype(np.int8)
        if slide_map:
            table["slide"] = slides_of(table["patch_id"], find_name(path, slide_map))
        elif "slide" in table and (table["slide"] != "").any():
            table["slide"] = table["slide"].replace("", UNMAPPED)
        else:
            table["slide"] = pd.NA
        table["slide"] = table["slide"].astype("string")
        counts = table["class"].value_counts()
        columns = ["patch_id", "label", "slide", *(["official"] if "official" in table else [])]
        self.table = table.sort_values("patch_id", ignore_index=True)[columns]
        self.unlabelled = self._take_unlabelled(path, unlabelled, resize)
        self.notes: dict[str, Any] = {
            "classes": {name: {"label": label, "patches": int(counts[name])} for name, label in classes.items()},
            "size": f"{size} × {size}; {RESIZING[resize]}",
            "pixels": CONVERSION,
        }
        if unused:
            self.notes["unused"] = unused
        if "official" in self.table:
            self.notes["official"] = {str(part): int(n) for part, n in self.table["official"].value_counts().items()}

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Decode rows ``start`` to ``stop``; see :class:`data.patches.Source`."""
        return self._reader.read(self.table["patch_id"].iloc[start:stop].tolist())

    def remedy(self, reasons: Iterable[str]) -> str:
        """Advice about images of another size; see :func:`data.sources.images.size_remedy`."""
        return size_remedy(reasons, resizes=True)

    def _take_unlabelled(self, path: Path, files: set[str], resize: str) -> UnlabelledImages | None:
        """Open the files under ``test/`` that have no label, and move the skipped files there to the new source."""
        if not files:
            return None
        unreadable = [name for name in self.skipped if part_of(name) == TEST and is_image(name)]
        shared = Counter(image_id(name) for name in (*files, *unreadable))
        skipped = {
            image_id(name) if shared[image_id(name)] == 1 else name: self.skipped.pop(name) for name in unreadable
        }
        return UnlabelledImages(path, size=self.size, resize=resize, images=ImageFiles(files, skipped))


class UnlabelledImages:
    """Image files without labels, at any depth of a folder.

    Parameters
    ----------
    path : Path
    size : int
        Height and width of a patch in pixels.
    resize : {"refuse", "resize", "crop"}
        What to do with images of another size; see :data:`data.sources.images.RESIZING`.
    images : ImageFiles, optional
        Only these files of the folder; by default all.

    Attributes
    ----------
    table : DataFrame
        ``patch_id, slide, file``, sorted by ``file``, which is the path in the folder with slashes. ``patch_id`` is the
        file's name without its ending or, if another file's looks the same, its path. Every ``slide`` is missing.
    shared : int
        Number of files whose name without its ending is shared with another file.
    skipped : dict from str to str
        Files in the folder that are not patches, and why.
    results : dict from str to str
        Earlier results of this program in the folder, which are left out.

    Raises
    ------
    InputError
        The folder does not exist, or holds no image.
    """

    def __init__(self, path: Path, *, size: int, resize: str = "refuse", images: ImageFiles | None = None) -> None:
        if not path.is_dir():
            raise InputError(f"{path}: expected a folder of image files; got no folder. Give IN=….")
        self.size, self._reader = size, PatchReader(path, size, resize=resize)
        images = image_files(path) if images is None else images
        self.skipped, self.results = images.skipped, images.results
        if not images.files:
            raise InputError(f"{path}: expected image files ({', '.join(SUFFIXES)}); got none. Give another folder.")
        files = pd.Series(sorted(images.files), dtype="str")
        stems = pd.Series([image_id(name) for name in files], dtype="str")
        twice = clean_names(stems).duplicated(keep=False)
        self.shared = int(twice.sum())
        slides = pd.array([pd.NA] * len(files), dtype="string")
        self.table = pd.DataFrame({"patch_id": stems.where(~twice, files), "slide": slides, "file": files})

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Decode rows ``start`` to ``stop``; see :class:`data.patches.Source`."""
        return self._reader.read(self.table["file"].iloc[start:stop].tolist())

    def remedy(self, reasons: Iterable[str]) -> str:
        """Advice about images of another size; see :func:`data.sources.images.size_remedy`."""
        return size_remedy(reasons, resizes=True)


def content(path: Path, *, slide_map: str = "", **_options: object) -> Iterator[str]:
    """Yield lines that change when images or slide map change; see :class:`data.sources.registry.SourceKind`."""
    yield from (stamp(entry.path, name) for name, entry in walk_images(path, ImageFiles()))
    if slide_map:
        yield stamp(find_name(path, slide_map), slide_map)


def _read_labels(path: Path) -> pd.DataFrame:
    """Read ``patch_id, class`` and, if present, ``slide`` and ``split``; refuse files outside the folder."""
    table = read_labels(path, "file", ("slide", "split")).rename(columns={"label": "class"})
    for row, name in table["patch_id"].items():
        windows = PureWindowsPath(name)
        if name.startswith("/") or windows.anchor or ".." in windows.parts:
            raise InputError(
                f"{path}: files must be given by their path inside the folder, without '..'; got {name!r} in row "
                f"{row}. Fix the row."
            )
    return table


def _use_split(table: pd.DataFrame, path: Path) -> list[str]:
    """Add ``official`` if the column ``split`` is an official split. Return why a filled column is not, if so."""
    if "split" not in table or (table["split"] == "").all():
        return []
    parts = table["split"].map(part_named)
    if TEST in parts.array and (parts != "").all():
        table["official"] = parts.astype("string")
        return []
    got = ", ".join(repr(name) for name in table["split"].unique()[:5])
    return [f"{path.name}: its split was not used, because it must be train, val or test in every row; got {got}"]


def _from_folders(
    path: Path, images: ImageFiles, positive: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, int], set[str]]:
    """Return ``patch_id, class``, the label of each class, and the unlabelled files, if folders name the classes."""
    try:
        folders = class_folders(path, images.files, LABELS)
        _check_links(path, folders.table["class"], images.links)
        return folders.table, _label_of_class(folders.table, positive, path), folders.unlabelled
    except InputError as error:
        raise InputError(f"{error}{misnamed(path / LABELS)}") from None


def _unlisted_test(listed: pd.Series, files: set[str]) -> set[str]:
    """Return the files under ``test/``, which are to be predicted, if the label table lists none of them."""
    test = {name for name in files if part_of(name) == TEST}
    test_names = {posixpath.basename(name) for name in test}
    paths = map(clean_path, listed)
    return set() if any(name in test_names if "/" not in name else part_of(name) == TEST for name in paths) else test


def _check_links(path: Path, classes: pd.Series, links: list[str]) -> None:
    """If a class is missing, name a link that was not followed."""
    if links and classes.nunique() < 2:
        raise InputError(
            f"{path}: expected two classes (a folder with images for each); {links[0]!r} is a link to a parent "
            "folder, or to a folder that is already read, and was not followed. Link to folders outside this one."
        )


def _inner_folders(table: pd.DataFrame, path: Path) -> str:
    """Advice if class folders seem to be one level deeper, such as inside slides; otherwise empty."""
    inner: dict[str, set[str]] = {}
    for file, name in zip(table["patch_id"], table["class"], strict=True):
        folders = file.split("/")[:-1]
        level = 1 if part_of(file) else 0
        if class_name(folders[level] if level < len(folders) else "").lower() != name.lower():
            return ""  # the classes come from a table
        inner.setdefault("/".join(folders[: level + 1]), set()).add(
            class_name(folders[level + 1]) if level + 1 < len(folders) else ""
        )
    names = sorted(set().union(*inner.values()))
    outer = next(iter(inner), "")
    if len(inner) == 1 and "" not in names and len(names) > 1 and class_word(outer) not in (*POSITIVE, *NEGATIVE):
        return f"If the class folders are inside it, give DATA={path / outer}."
    if not _obvious_positive(names):
        return ""
    return (
        f"The folders inside these, {' and '.join(map(repr, names))}, look like classes. Make them the outer folders "
        f"({names[0]}/{table['class'].iloc[0]}/…), or add {LABELS} with file,label,slide."
    )


def _label_of_class(table: pd.DataFrame, positive: Sequence[str], path: Path) -> dict[str, int]:
    """Return the label, 0 or 1, of each class.

    Raises
    ------
    InputError
        There are fewer than two classes, or it is unclear which are positive.
    """
    names = sorted(table["class"].unique())
    shown = ", ".join(repr(name) for name in names[:20]) or "none"
    if len(names) < 2:
        raise InputError(
            f"{path}: expected two classes (a folder with images for each, or {LABELS} with file,label); got {shown}. "
            f"{_inner_folders(table, path)}".rstrip()
        )
    chosen = {class_name(name) for name in positive} or _obvious_positive(names)
    if not chosen:
        # Do not suggest a class whose name sounds negative.
        likely = [name for name in names if not _NEGATED.match(name)] or names
        remedy = _inner_folders(table, path) or f"Choose with --set 'data.positive=[{_quoted(likely[-1])}]'."
        raise InputError(f"{path}: cannot tell which of the classes {shown} are positive. {remedy}")
    unknown = sorted(chosen - set(names))
    if unknown:
        raise InputError(f"data.positive must name existing classes; got {unknown[0]!r}, but the classes are {shown}.")
    if chosen == set(names):
        raise InputError("data.positive must leave a negative class; got all classes. Name only the positive ones.")
    for first, other in look_alikes(names):
        if (first in chosen) != (other in chosen):
            raise InputError(
                f"{path}: the classes {first!r} and {other!r} have similar names, but one is positive and one "
                "negative. Give them the same name, or name both or neither in data.positive."
            )
    return {name: int(name in chosen) for name in names}


def _obvious_positive(names: Sequence[str]) -> set[str]:
    """The positive of two classes, in all its spellings, if the names show it; otherwise empty."""
    words = {class_word(name) for name in names}
    positive = words & set(POSITIVE) or words - set(NEGATIVE)
    return {name for name in names if class_word(name) in positive} if len(words) == 2 and len(positive) == 1 else set()


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
