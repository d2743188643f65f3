"""The model bundle: all files needed to predict, each with its SHA-256, and none that can run code."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.storage.arrays import files_under, walk
from histoblend.data.storage.expansion import MAX_JSON, read_array, read_json
from histoblend.models.file_checks import check_content
from histoblend.models.heads.registry import head_from, trusted_types

if TYPE_CHECKING:
    from histoblend.models.heads.head import Head

#: Increased whenever an earlier version could misread a bundle.
FORMAT = 7
INDEX = "bundle.json"
HEADS_FOLDER = "heads"

_REMEDY = "Get the bundle again."


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. Everything is loaded from the same bytes that were checked.

    Attributes
    ----------
    folder : Path
        For messages.
    index : dict
        ``bundle.json``.
    contents : dict from str to bytes
        Every listed file, by its path in the bundle.
    """

    folder: Path
    index: dict[str, Any]
    contents: dict[str, bytes]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the whole bundle."""
        return str(self.index["digest"])

    def inside(self, folder: str) -> dict[str, bytes]:
        """Content of the files in one folder of the bundle, by path in that folder; empty without such a folder."""
        prefix = f"{folder}/"
        return {name[len(prefix) :]: content for name, content in self.contents.items() if name.startswith(prefix)}

    def head(self, model: str) -> Head:
        """Load a fitted head."""
        return head_from(self.inside(f"{HEADS_FOLDER}/{model}"), f"{self.folder}: {HEADS_FOLDER}/{model}")

    def json(self, name: str) -> dict[str, Any] | None:
        """Content of a JSON file; None if the bundle has no such file."""
        return read_json(f"{self.folder}: {name}", self.contents[name]) if name in self.contents else None

    def array(self, name: str) -> np.ndarray:
        """Content of a ``.npy`` file."""
        if name not in self.contents:
            raise InputError(f"{self.folder}: expected {name}; it is not listed. {_REMEDY}")
        return read_array(f"{self.folder}: {name}", self.contents[name])

    def unpack(self, name: str, folder: Path) -> Path:
        """Write one folder of the bundle into ``folder``, where nobody else can write; return the new folder's path."""
        for path, content in self.inside(name).items():
            target = folder / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return folder / name


def seal_bundle(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``bundle.json``: format, ``content``, and size and SHA-256 of each file but :mod:`data.ignored` ones."""
    files = {}
    for name in files_under(folder):
        if name != INDEX:
            content_bytes = (folder / name).read_bytes()
            files[name] = {"bytes": len(content_bytes), "sha256": hashlib.sha256(content_bytes).hexdigest()}
    index = {"format": FORMAT, **content, "files": files}
    index = json.loads(json.dumps(index))
    index["digest"] = index_digest(index)
    (folder / INDEX).write_text(json.dumps(index, indent=1, ensure_ascii=False), encoding="utf-8")


def index_digest(index: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of an index without its ``digest``. It covers all files, because the index lists their SHA-256."""
    rest = {name: value for name, value in index.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def open_bundle(folder: Path) -> Bundle:
    """Read a whole bundle and check it before anything in it is loaded.

    :mod:`data.ignored` files are skipped and never opened.

    Raises
    ------
    InputError
        There is no bundle or it has another format. A file is missing, altered, not listed, a link, outside the folder
        or able to run code.
    """
    index = _read_index(folder)
    present = _files_present(folder)
    listed = index["files"]
    for name in sorted(present ^ set(listed)):
        if name in present:
            raise InputError(f"{folder}: {name} is not listed. Move it away if you added it. Otherwise: {_REMEDY}")
        raise InputError(f"{folder}: {name} is missing. {_REMEDY}")
    contents = {name: _read_listed(folder, name, entry) for name, entry in listed.items()}
    trusted = trusted_types()
    for name, content in contents.items():
        check_content(f"{folder}: {name}", content, trusted)
    return Bundle(folder, index, contents)


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file() or path.is_symlink():
        raise InputError(f"{folder}: expected a bundle with {INDEX}; there is none. Give BUNDLE=runs/<name>/bundle.")
    index = read_json(str(path), _read_file(path, MAX_JSON + 1))
    _check_format(folder, index.get("format"))
    if not isinstance(index.get("files"), dict):
        raise InputError(f"{path}: expected a list of files; got none. {_REMEDY}")
    for name in index["files"]:
        _check_name(folder, name)
    if index.get("digest") != index_digest(index):
        raise InputError(f"{folder}: {INDEX} was altered (its SHA-256 differs). {_REMEDY}")
    return index


def _check_format(folder: Path, version: Any) -> None:
    if version == FORMAT:
        return
    if isinstance(version, int) and version < FORMAT:
        advice = "An earlier version made it: make the bundle again with this version."
    else:
        advice = "Use the version that made it, or make the bundle again with this version."
    raise InputError(f"{folder}: expected bundle format {FORMAT}; got {version!r}. {advice}")


def _check_name(folder: Path, name: str) -> None:
    """Refuse a path that leads out of the bundle on any operating system."""
    parts = name.split("/")
    windows = PureWindowsPath(name)
    outside = PurePosixPath(name).is_absolute() or windows.anchor or ".." in windows.parts
    if outside or not name or any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name:
        raise InputError(f"{folder}: expected paths inside the bundle; got {name!r}. Do not use this bundle.")


def _files_present(folder: Path) -> set[str]:
    """Paths of all files but the index and files that operating systems leave behind. Refuses links and pipes."""
    names = set()
    for name, entry in walk(folder):
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise InputError(f"{folder}: expected plain files; {name} is a link or a device. {_REMEDY}")
        if entry.is_file():
            names.add(name)
    return names - {INDEX}


def _read_listed(folder: Path, name: str, entry: Any) -> bytes:
    """Read a listed file once; return its bytes if its size and digest match the index."""
    if not isinstance(entry, dict) or not isinstance(entry.get("bytes"), int):
        raise InputError(f"{folder}: expected the size and SHA-256 of {name}; got {entry!r}. {_REMEDY}")
    content = _read_file(folder / name, entry["bytes"] + 1)
    if len(content) != entry["bytes"] or hashlib.sha256(content).hexdigest() != entry.get("sha256"):
        raise InputError(f"{folder}: {name} was altered (its SHA-256 differs). {_REMEDY}")
    return content


def _read_file(path: Path, limit: int) -> bytes:
    """Read at most ``limit`` bytes of a plain file. Links are not followed, even those created after the check."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError(f"{path}: expected a plain file. {_REMEDY}")
        return file.read(limit)
