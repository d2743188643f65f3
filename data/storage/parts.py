"""Finished parts of a long computation, stored in files so that an interrupted run can resume."""

from __future__ import annotations

import errno
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import ArrayLike

from histoblend.data.storage.atomic import is_sealed, remove_unfinished_files, sync_folder, write_atomically
from histoblend.data.storage.expansion import check_zip_members

#: Name of the part that stores the key.
KEY = "key"


class Parts:
    """Named sets of arrays, each in a sealed ``.npz`` file of one folder.

    A part is written completely or not at all. A part that was cut or altered counts as missing, so it is computed
    again. Opening the folder removes the temporary files of writers that were killed.

    Parameters
    ----------
    folder : Path
        Created if it does not exist. It must hold nothing but parts: :meth:`forget` removes everything in it.
    key : mapping, optional
        What the parts depend on, as JSON types. It is stored with the parts, and parts with another key are removed.
        Without a key, the caller must ensure that all parts in the folder belong to the same computation.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        text, stored = json.dumps(key, sort_keys=True), self.find(KEY)
        outdated = key is not None and (stored is None or str(stored["text"]) != text)
        if outdated and folder.exists():
            shutil.rmtree(folder)
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent)
        remove_unfinished_files(folder)
        if outdated:
            self.keep(KEY, {"text": text})

    def __contains__(self, name: str) -> bool:
        return is_sealed(self.path(name))

    def path(self, name: str) -> Path:
        """Path of a part. Raises ValueError if the name is not a plain file name."""
        if not name or name.startswith(".") or any(character in name for character in "/\\\0"):
            raise ValueError(f"the name of a part must be a plain file name; got {name!r}.")
        return self.folder / f"{name}.npz"

    def find(self, name: str, *only: str) -> dict[str, np.ndarray] | None:
        """Arrays of a part, all of them or only some; None if the part is missing or damaged."""
        try:
            return self.read(name, *only) if name in self else None
        except OSError:
            return None

    def read(self, name: str, *only: str) -> dict[str, np.ndarray]:
        """Read arrays of a part without checking its seal. Raises OSError if the part is missing or damaged."""
        path = self.path(name)
        try:
            with path.open("rb") as file, NpzFile(file, allow_pickle=False) as arrays:
                check_zip_members(str(path), arrays.zip, path.stat().st_size)
                return {key: arrays[key] for key in only or arrays.files}
        except (EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise OSError(errno.EIO, "a finished part is damaged; run the same command again", str(path)) from error

    def keep(self, name: str, arrays: Mapping[str, ArrayLike]) -> None:
        """Write a part, or replace it. Raises ValueError if an array holds Python objects."""
        write_atomically(self.path(name), lambda file: np.savez(file, allow_pickle=False, **arrays), seal=True)

    def drop(self, name: str) -> None:
        """Remove a part if it exists."""
        self.path(name).unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the folder; call it when the final result has been written."""
        shutil.rmtree(self.folder)
