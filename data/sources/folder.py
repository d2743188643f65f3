"""Image files of any kind: a folder for each class, or ``labels.csv`` with ``file,label[,slide]``."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.names import clean_names, look_alikes
from histoblend.data.sources.images import CONVERSION, RESIZING, SUFFIXES
from histoblend.data.sources.labels import (
    NEGATIVE,
    NOT_UTF8,
    POSITIVE,
    class_name,
    class_word,
    match_files,
    printable,
    read_labels,
    slides_of,
)
from histoblend.data.sources.tiff import PatchReader
from histoblend.data.splits import UNMAPPED
from histoblend.data.storage.arrays import stamp, walk

LABELS = "labels.csv"


class FolderSource:
    """Labelled patches of a folder of image files.

    Parameters
    ----------
    path : Path
        Folder that holds ``labels.csv`` (``file,label`` and, optionally, ``slide``; files by their path in the folder)
        or, without it, a folder for each class, with images at any depth.
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
        ``patch_id`` (the file's path in the folder, with slashes), ``label``, ``slide``, sorted by ``patch_id``.
    skipped : dict from str to str
        What lies in the folder and is no patch, and why.
    notes : dict
        Classes with their labels and numbers of patches, and the rules by which images became patches.

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
        files, self.skipped = image_files(path)
        if (path / LABELS).exists():
            table, more = match_files(_read_labels(path / LABELS), files, missing, csv=LABELS, folder=path.name or "/")
            self.skipped |= more
        else:
            table = _by_folder(path, files)
        classes = _label_of_class(table["class"], positive, path)
        table["label"] = table["class"].map(classes).astype(np.int8)
        if slide_map:
            table["slide"] = slides_of(table["patch_id"], path / slide_map)
        elif "slide" in table and (table["slide"] != "").any():
            table["slide"] = table["slide"].replace("", UNMAPPED)
        else:
            table["slide"] = pd.NA
        table["slide"] = table["slide"].astype("string")
        counts = table["class"].value_counts()
        self.table = table.sort_values("patch_id", ignore_index=True)[["patch_id", "label", "slide"]]
        self.notes: dict[str, Any] = {
            "classes": {name: {"label": label, "patches": int(counts[name])} for name, label in classes.items()},
            "size": f"{size} × {size}; {RESIZING[resize]}",
            "pixels": CONVERSION,
        }

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Decode rows ``start`` to ``stop``; see :class:`data.patches.Source`."""
        return self._reader.read(self.table["patch_id"].iloc[start:stop].tolist())


class UnlabelledImages:
    """Image files at any depth of a folder, of which no label is known.

    Parameters
    ----------
    path : Path
    size : int
        Height and width of a patch in pixels.
    resize : {"refuse", "resize", "crop"}
        What to do with images of another size; see :data:`data.sources.images.RESIZING`.

    Attributes
    ----------
    table : DataFrame
        ``patch_id, slide, file``, sorted by ``file``: the path in the folder, with slashes. ``patch_id`` is the
        file's name without its ending where no other file's looks the same, and ``file`` elsewhere. Every ``slide`` is
        missing.
    shared : int
        Files whose name without its ending is not theirs alone.
    skipped : dict from str to str
        What lies in the folder and is no patch, and why.

    Raises
    ------
    InputError
        There is no folder, or no image in it.
    """

    def __init__(self, path: Path, *, size: int, resize: str = "refuse") -> None:
        if not path.is_dir():
            raise InputError(f"{path}: expected a folder of image files; got no folder. Give IN=….")
        self.size, self._reader = size, PatchReader(path, size, resize=resize)
        found, self.skipped = image_files(path)
        if not found:
            raise InputError(f"{path}: expected image files ({', '.join(SUFFIXES)}); got none. Give another folder.")
        files = pd.Series(sorted(found), dtype="str")
        stems = pd.Series([posixpath.splitext(posixpath.basename(name))[0] for name in files], dtype="str")
        twice = clean_names(stems).duplicated(keep=False)
        self.shared = int(twice.sum())
        slides = pd.array([pd.NA] * len(files), dtype="string")
        self.table = pd.DataFrame({"patch_id": stems.where(~twice, files), "slide": slides, "file": files})

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Decode rows ``start`` to ``stop``; see :class:`data.patches.Source`."""
        return self._reader.read(self.table["file"].iloc[start:stop].tolist())


def content(path: Path, *, slide_map: str = "", **_options: object) -> Iterator[str]:
    """Lines that change when images or slide map do; see :class:`data.sources.registry.SourceKind`."""
    yield from (stamp(entry.path, name) for name, entry in walk(path) if not entry.is_dir(follow_symlinks=False))
    if slide_map:
        yield stamp(path / slide_map, slide_map)


def image_files(path: Path) -> tuple[set[str], dict[str, str]]:
    """Files that may be patches, and what else lies there with the reason why it is none."""
    files, skipped = set(), {}
    for name, entry in walk(path):
        image = name.lower().endswith(SUFFIXES)
        if entry.is_dir(follow_symlinks=False):
            reason = "a folder with the name of an image" if image else None
        elif entry.is_symlink() and os.path.isdir(entry.path):
            reason = "a link to a folder: not followed"
        elif not image:
            # Tables and notes beside the class folders are no patches, and no one expects them to be.
            reason = f"not an image by its name ({', '.join(SUFFIXES)})" if "/" in name else None
        elif not os.path.isfile(entry.path):
            reason = "not a file but a pipe, a device or a dead link"
        elif name != printable(name):
            reason = NOT_UTF8
        else:
            files.add(name)
            continue
        if reason:
            skipped[printable(name)] = reason
    return files, skipped


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


def _by_folder(path: Path, files: set[str]) -> pd.DataFrame:
    """``patch_id, class`` of images under class folders."""
    loose = sorted(name for name in files if "/" not in name)
    if loose:
        raise InputError(
            f"{path}: expected a folder for each class, or {LABELS} (file,label); got {len(loose)} images beside them "
            f"(first: {loose[0]!r}). Move them into their class's folder or add {LABELS}."
        )
    names = sorted(files)
    return pd.DataFrame(
        {"patch_id": names, "class": [class_name(name.partition("/")[0]) for name in names]}, dtype="str"
    )


def _label_of_class(classes: pd.Series, positive: Sequence[str], path: Path) -> dict[str, int]:
    """0 or 1 for each class name.

    Raises
    ------
    InputError
        There are not at least two classes, or it is not clear which are positive.
    """
    names = sorted(classes.unique())
    shown = ", ".join(repr(name) for name in names[:20]) or "none"
    if len(names) < 2:
        raise InputError(
            f"{path}: expected two classes (a folder with images for each, or {LABELS} with file,label); got {shown}."
        )
    chosen = {class_name(name) for name in positive} or _said_positive(names)
    if not chosen:
        raise InputError(
            f"{path}: which of the classes {shown} are positive? Say it: --set 'data.positive=[{_quoted(names[-1])}]'."
        )
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
