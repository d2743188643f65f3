"""Class folders, directly in the data folder or inside ``train/``, ``val/`` and ``test/`` of an official split."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.names import clean_name
from histoblend.data.sources.kaggle import LABELS
from histoblend.data.sources.labels import class_name
from histoblend.data.splits import TEST, TRAIN
from histoblend.data.storage.arrays import find_name

#: Lower-case folder names of the parts of an official split, and the name of each part in tables.
SPLITS = {
    "train": TRAIN,
    "training": TRAIN,
    "trn": TRAIN,
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "validate": "valid",
    "dev": "valid",
    "eval": "valid",
    "evaluation": "valid",
    "test": TEST,
    "testing": TEST,
    "tst": TEST,
    "holdout": TEST,
    "hold_out": TEST,
    "held_out": TEST,
}

#: Words that may follow such a name, as in ``train_set`` or ``Testing Data``.
_OF_PART = re.compile(r"_?(set|dataset|data|split|part|images?|imgs?|patches|tiles|samples)$")


@dataclass(frozen=True)
class ClassFolders:
    """Classes and parts of image files, as their folders name them.

    Attributes
    ----------
    table : DataFrame
        ``patch_id`` (the file), ``class`` and, if the data set has an official test set, ``official``.
    unlabelled : set of str
        Files under ``test/`` that are not in class folders.
    """

    table: pd.DataFrame
    unlabelled: set[str] = field(default_factory=set)


def part_of(file: str) -> str:
    """Part of an official split that a file's first folder names; empty if it names none."""
    first, slash, _ = file.partition("/")
    return part_named(first) if slash else ""


@functools.cache
def part_named(words: str) -> str:
    """Part of an official split that a folder's name or a cell means, such as ``Testing Data``; empty if none."""
    name = re.sub(r"[\s\-]", "_", clean_name(words).lower())
    return SPLITS.get(_OF_PART.sub("", name) or name, "")


def class_folders(path: Path, files: set[str], table_name: str) -> ClassFolders:
    """Derive each file's class, and its part of an official split, from its folders.

    Parameters
    ----------
    path : Path
        Data folder, for messages.
    files : set of str
        Image files in it.
    table_name : str
        Name of the label table that can be used instead, for messages.

    Raises
    ------
    InputError
        Images are beside class folders, or class folders are beside parts of an official split.
    """
    names = sorted(files)
    _check_no_loose(path, [name for name in names if "/" not in name], table_name)
    parts = {name: part_of(name) for name in names}
    if not any(parts.values()):
        return ClassFolders(_table(names, [class_name(name.partition("/")[0]) for name in names]))
    if others := sorted({name.partition("/")[0] for name in names if not parts[name]}):
        splits = sorted({f"{name.partition('/')[0]}/" for name in names if parts[name]})
        raise InputError(
            f"{path}: {', '.join(splits)} are parts of an official split and must hold a folder for each class; got "
            f"{others[0]!r} beside them. Move it away, or list the label of each file in {table_name} (file,label)."
        )
    return _in_parts(path, parts, table_name)


def _in_parts(path: Path, parts: dict[str, str], table_name: str) -> ClassFolders:
    """Read the class folders inside the parts of an official split."""
    classes = {name: _class_in_part(name) for name in parts}
    training_classes = {classes[name] for name, part in parts.items() if part != TEST} - {""}
    if not training_classes:
        kaggle = find_name(path, LABELS).is_file()
        remedy = " This is Kaggle's layout: use CONFIG=kaggle (--config kaggle)." if kaggle else ""
        raise InputError(
            f"{path}: expected train/ with a folder for each class; got only images without class folders.{remedy}"
        )
    test = {name for name, part in parts.items() if part == TEST}
    unlabelled = set() if _lower_case(training_classes) & _lower_case({classes[name] for name in test}) else test
    labelled = [name for name in parts if name not in unlabelled]
    for first in sorted({name.partition("/")[0] for name in labelled}):
        loose = [name for name in labelled if name.startswith(f"{first}/") and not classes[name]]
        _check_no_loose(path / first, loose, table_name)
    # The same class may be capitalised differently in two parts.
    spelling = {name.lower(): name for name in sorted({classes[name] for name in labelled}, reverse=True)}
    table = _table(labelled, [spelling[classes[name].lower()] for name in labelled])
    official = [parts[name] for name in labelled]
    return ClassFolders(table.assign(official=pd.array(official, "string")) if TEST in official else table, unlabelled)


def _class_in_part(file: str) -> str:
    """Class folder of a file inside its part of the split; empty if it is in none."""
    inside = file.partition("/")[2]
    return class_name(inside.partition("/")[0]) if "/" in inside else ""


def _lower_case(names: set[str]) -> set[str]:
    return {name.lower() for name in names if name}


def _table(files: list[str], classes: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"patch_id": files, "class": classes}, dtype="str")


def _check_no_loose(path: Path, loose: list[str], table_name: str) -> None:
    if loose:
        raise InputError(
            f"{path}: expected a folder for each class, or {table_name} (file,label); got {len(loose)} images beside "
            f"them (first: {loose[0]!r}). Move them into their class's folder or add {table_name}."
        )
