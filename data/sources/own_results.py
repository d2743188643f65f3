"""Recognise results of Histoblend in a folder of images, so that they are not read as patches."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

#: Files of a heat map; a folder of patches never holds all of them.
HEAT_MAP = ("summary.json", "tiles.csv", "viewer.html")

#: File that marks a folder of results, the keys that it must hold, and the kind of results.
_MARKS = (
    ("bundle.json", {"format", "files", "digest"}, "a bundle"),
    ("manifest.json", {"step", "config", "seed", "inputs", "rows", "files", "notes"}, "results of a step"),
    ("key.json", {"step", "config", "seed", "inputs", "code", "libraries"}, "an unfinished step"),
    ("1-patches/manifest.json", {"step", "config", "seed", "inputs", "rows", "files", "notes"}, "a run"),
    ("1-patches.partial/key.json", {"step", "config", "seed", "inputs", "code", "libraries"}, "a run"),
)

#: First lines of the tables that `predict` writes, and endings of their names; the user chooses the rest of the name.
_TABLES = ((b"id,probability,label,flags", ""), (b"file,reason", ".skipped.csv"))

#: Keys of the JSON file of an explanation; its picture is beside it.
_EXPLANATION = {"id", "file", "probability", "label", "predicted_by", "members"}

#: Largest size in bytes of a JSON file that is read.
_MAX_BYTES = 32 * 2**20


def results_in(folder: str) -> str:
    """Kind of results in a folder, such as "a bundle"; empty if this program did not write it."""
    for name, keys, kind in _MARKS:
        if _holds(os.path.join(folder, name), keys):
            return kind
    return "a heat map" if all(os.path.isfile(os.path.join(folder, name)) for name in HEAT_MAP) else ""


def is_result(path: str) -> bool:
    """Whether a file is a table written by `predict`, or the picture or JSON file of an explanation."""
    stem, ending = os.path.splitext(path)
    if os.path.basename(path).startswith("explain-") and ending in (".png", ".json"):
        return _holds(f"{stem}.json", _EXPLANATION)
    return any(path.endswith(end) and _first_line(path) == line for line, end in _TABLES)


def _holds(path: str, keys: Iterable[str]) -> bool:
    """Whether a file is a JSON object with these keys."""
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > _MAX_BYTES:
            return False
        with open(path, "rb") as file:
            content = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and set(keys) <= content.keys()


def _first_line(path: str) -> bytes:
    try:
        if not os.path.isfile(path):
            return b""
        with open(path, "rb") as file:
            return file.readline(100).rstrip(b"\r\n")
    except OSError:
        return b""
