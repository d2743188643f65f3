"""Image files of any kind: a folder for each class, or ``labels.csv`` with ``file,label[,slide]``."""

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
from histoblend.data.sources.csv_table import misnamed
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
from histoblend.data.sources.official_split import class_folders, part_of
from histoblend.data.sources.tiff import PatchReader
from histoblend.data.splits import TEST, UNMAPPED
from histoblend.data.storage.arrays import find_name, stamp

LABELS = "labels.csv"

#: How names of negative classes begin.
_NEGATED = re.compile(r"(no|non|not|un|without|negative|normal|benign|healthy|control)", re.IGNORECASE)


class FolderSource:
    """Labelled patches of a folder of image files.

    Parameters
    ----------
    path : Path
        Folder that holds ``labels.csv`` (``file,label`` and, optionally, ``slide``; files by their path in the folder)
        or, without it, a folder for each class, with images at any depth. Class folders may be in ``train/``, ``val/``
        and ``test/`` (see :data:`data.sources.official_split.SPLITS`). Links to folders are followed.
    size : int
        Height and width of a patch in pixels.
    missing : {"error", "skip"}
        With ``labels.csv``: what to do with rows without an image and images without a row.
    slide_map : str
        CSV file with a column of files (their paths in the folder) and one of slides, by its name in ``path`` or its
        whole path. Empty for the column ``slide`` of ``labels.csv``, where there is one.
    resize : {"refuse", "resize", "crop"}
        What to do with images of another size; see :data:`data.sources.images.RESIZING`.
    positive : sequence of str
        The positive classes; all others are negative. Empty where there are two classes that say it themselves
        (:data:`data.sources.labels.POSITIVE`, ``NEGATIVE``).

    Attributes
    ----------
    table : DataFrame
        ``patch_id`` (the file's path in the folder, with slashes), ``label``, ``slide``, sorted by ``patch_id``; and
        ``official`` (train, valid or test) where the folders ``train/``, ``val/`` and ``test/`` hold a labelled test
        set, as in :class:`data.sources.pcam.PcamSource`.
    skipped : dict from str to str
        What is in the folder and is no patch, and why.
    unlabelled : UnlabelledImages or None
        The images under ``test/`` where these are in no class folder, or ``labels.csv`` lists none of them.
    notes : dict
        Classes with their labels and numbers of patches, the rules by which images became patches, and patches by
        part of the official split.

    Raises
    ------
    InputError
        No classes, one class, classes that do not say which is positive, a file twice or outside the folder, or
        files and ``labels.csv`` differ.
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
        found = image_files(path)
        self.skipped = found.skipped
        labels = find_name(path, LABELS)
        if labels.exists():
            table = _read_labels(labels)
            unlabelled = _unlisted_test(table["patch_id"], found.files)
            files = found.files - unlabelled
            table, more = match_files(table, files, missing, csv=labels.name, folder=path.name or "/")
            self.skipped |= more
            classes = _label_of_class(table, positive, path)
        else:
            table, classes, unlabelled = _from_folders(path, found, positive)
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
        if "official" in self.table:
            self.notes["official"] = {str(part): int(n) for part, n in self.table["official"].value_counts().items()}

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Decode rows ``start`` to ``stop``; see :class:`data.patches.Source`."""
        return self._reader.read(self.table["patch_id"].iloc[start:stop].tolist())

    def remedy(self, reasons: Iterable[str]) -> str:
        """What to do about images of another size; see :func:`data.sources.images.size_remedy`."""
        return size_remedy(reasons, resizes=True)

    def _take_unlabelled(self, path: Path, files: set[str], resize: str) -> UnlabelledImages | None:
        """Open the files under ``test/`` that have no label; what was skipped there goes with them."""
        if not files:
            return None
        lost = [name for name in self.skipped if part_of(name) == TEST and is_image(name)]
        shared = Counter(image_id(name) for name in (*files, *lost))
        skipped = {image_id(name) if shared[image_id(name)] == 1 else name: self.skipped.pop(name) for name in lost}
        return UnlabelledImages(path, size=self.size, resize=resize, found=ImageFiles(files, skipped))


class UnlabelledImages:
    """Image files at any depth of a folder, of which no label is known.

    Parameters
    ----------
    path : Path
    size : int
        Height and width of a patch in pixels.
    resize : {"refuse", "resize", "crop"}
        What to do with images of another size; see :data:`data.sources.images.RESIZING`.
    found : ImageFiles, optional
        Some of the files in the folder; else all are taken.

    Attributes
    ----------
    table : DataFrame
        ``patch_id, slide, file``, sorted by ``file``: the path in the folder, with slashes. ``patch_id`` is the
        file's name without its ending where no other file's looks the same, and ``file`` elsewhere. Every ``slide`` is
        missing.
    shared : int
        Files whose name without its ending is not theirs alone.
    skipped : dict from str to str
        What is in the folder and is no patch, and why.
    results : dict from str to str
        What this program wrote there earlier, which is left out.

    Raises
    ------
    InputError
        There is no folder, or no image in it.
    """

    def __init__(self, path: Path, *, size: int, resize: str = "refuse", found: ImageFiles | None = None) -> None:
        if not path.is_dir():
            raise InputError(f"{path}: expected a folder of image files; got no folder. Give IN=….")
        self.size, self._reader = size, PatchReader(path, size, resize=resize)
        found = image_files(path) if found is None else found
        self.skipped, self.results = found.skipped, found.results
        if not found.files:
            raise InputError(f"{path}: expected image files ({', '.join(SUFFIXES)}); got none. Give another folder.")
        files = pd.Series(sorted(found.files), dtype="str")
        stems = pd.Series([image_id(name) for name in files], dtype="str")
        twice = clean_names(stems).duplicated(keep=False)
        self.shared = int(twice.sum())
        slides = pd.array([pd.NA] * len(files), dtype="string")
        self.table = pd.DataFrame({"patch_id": stems.where(~twice, files), "slide": slides, "file": files})

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Decode rows ``start`` to ``stop``; see :class:`data.patches.Source`."""
        return self._reader.read(self.table["file"].iloc[start:stop].tolist())

    def remedy(self, reasons: Iterable[str]) -> str:
        """What to do about images of another size; see :func:`data.sources.images.size_remedy`."""
        return size_remedy(reasons, resizes=True)


def content(path: Path, *, slide_map: str = "", **_options: object) -> Iterator[str]:
    """Lines that change when images or slide map do; see :class:`data.sources.registry.SourceKind`."""
    yield from (stamp(entry.path, name) for name, entry in walk_images(path, ImageFiles()))
    if slide_map:
        yield stamp(find_name(path, slide_map), slide_map)


def _read_labels(path: Path) -> pd.DataFrame:
    """``patch_id, class`` and, where there is one, ``slide``; files outside the folder are refused."""
    table = read_labels(path, "file", ("slide",)).rename(columns={"label": "class"})
    for row, name in table["patch_id"].items():
        windows = PureWindowsPath(name)
        if name.startswith("/") or windows.anchor or ".." in windows.parts:
            raise InputError(
                f"{path}: files must be given by their path inside the folder, without '..'; got {name!r} in row "
                f"{row}. Fix the row."
            )
    return table


def _from_folders(
    path: Path, found: ImageFiles, positive: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, int], set[str]]:
    """``patch_id, class``, the label of each class, and files to predict, where folders tell the classes."""
    try:
        folders = class_folders(path, found.files, LABELS)
        _check_links(path, folders.table["class"], found.links)
        return folders.table, _label_of_class(folders.table, positive, path), folders.unlabelled
    except InputError as error:
        raise InputError(f"{error}{misnamed(path / LABELS)}") from None


def _unlisted_test(listed: pd.Series, files: set[str]) -> set[str]:
    """Files under ``test/`` where the table of labels lists none of them: these are to be predicted."""
    test = {name for name in files if part_of(name) == TEST}
    named = {posixpath.basename(name) for name in test}
    paths = map(clean_path, listed)
    return set() if any(name in named if "/" not in name else part_of(name) == TEST for name in paths) else test


def _check_links(path: Path, classes: pd.Series, links: list[str]) -> None:
    """Name a link that was not followed where a class is missing."""
    if links and classes.nunique() < 2:
        raise InputError(
            f"{path}: expected two classes (a folder with images for each); {links[0]!r} is a link to a folder that "
            "holds it, or that is read under another name, and was not followed. Link to folders outside of this one."
        )


def _inner_folders(table: pd.DataFrame, path: Path) -> str:
    """What to do where class folders seem to be one level further down, as inside slides; empty elsewhere."""
    inner: dict[str, set[str]] = {}
    for file, name in zip(table["patch_id"], table["class"], strict=True):
        folders = file.split("/")[:-1]
        level = 1 if part_of(file) else 0
        if class_name(folders[level] if level < len(folders) else "").lower() != name.lower():
            return ""  # the class came from a table
        inner.setdefault("/".join(folders[: level + 1]), set()).add(
            class_name(folders[level + 1]) if level + 1 < len(folders) else ""
        )
    names = sorted(set().union(*inner.values()))
    outer = next(iter(inner), "")
    if len(inner) == 1 and "" not in names and len(names) > 1 and class_word(outer) not in (*POSITIVE, *NEGATIVE):
        return f"If the class folders are inside of it, give DATA={path / outer}."
    if not _said_positive(names):
        return ""
    return (
        f"The folders inside these, {' and '.join(map(repr, names))}, look like classes. Put them outermost "
        f"({names[0]}/{table['class'].iloc[0]}/…), or give {LABELS} with file,label,slide."
    )


def _label_of_class(table: pd.DataFrame, positive: Sequence[str], path: Path) -> dict[str, int]:
    """0 or 1 for each class name.

    Raises
    ------
    InputError
        There are not at least two classes, or it is not clear which are positive.
    """
    names = sorted(table["class"].unique())
    shown = ", ".join(repr(name) for name in names[:20]) or "none"
    if len(names) < 2:
        raise InputError(
            f"{path}: expected two classes (a folder with images for each, or {LABELS} with file,label); got {shown}. "
            f"{_inner_folders(table, path)}".rstrip()
        )
    chosen = {class_name(name) for name in positive} or _said_positive(names)
    if not chosen:
        # The name that says that something is missing is the worst example of a positive class.
        likely = [name for name in names if not _NEGATED.match(name)] or names
        remedy = _inner_folders(table, path) or f"Say it: --set 'data.positive=[{_quoted(likely[-1])}]'."
        raise InputError(f"{path}: which of the classes {shown} are positive? {remedy}")
    unknown = sorted(chosen - set(names))
    if unknown:
        raise InputError(f"data.positive must name classes; got {unknown[0]!r}, and there are {shown}.")
    if chosen == set(names):
        raise InputError("data.positive must leave a negative class; got all of them. Name the positive ones only.")
    for first, other in look_alikes(names):
        if (first in chosen) != (other in chosen):
            raise InputError(
                f"{path}: of the classes {first!r} and {other!r}, which are nearly the same name, one is positive and "
                "one negative. Give them one name, or name both or neither in data.positive."
            )
    return {name: int(name in chosen) for name in names}


def _said_positive(names: Sequence[str]) -> set[str]:
    """The positive ones of two classes that say it themselves, in any spelling; empty where they do not."""
    words = {class_word(name) for name in names}
    ones = words & set(POSITIVE) or words - set(NEGATIVE)
    return {name for name in names if class_word(name) in ones} if len(words) == 2 and len(ones) == 1 else set()


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
