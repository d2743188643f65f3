"""Finished parts of a long computation, kept in files so that an interrupted run repeats none of them."""

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

from histoblend.data.storage.atomic import clear_leftovers, is_sealed, sync_folder, write_whole

#: Name of the part that holds the key of the others.
KEY = "key"


class Parts:
    """Named sets of arrays, each in one sealed ``.npz`` file of a folder.

    A part is written whole or not at all. One that was cut or altered counts as missing, so it is made again. Opening
    the folder removes the temporary files of writers that were killed.

    Parameters
    ----------
    folder : Path
        Made where it is missing. It belongs to the parts alone: :meth:`forget` removes everything in it.
    key : mapping, optional
        What the parts depend on, in JSON's types. It is stored among them, and parts of another key are removed.
        Without a key the caller guarantees that all parts in the folder are of the same computation.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        text, stored = json.dumps(key, sort_keys=True), self.find(KEY)
        foreign = key is not None and (stored is None or str(stored["text"]) != text)
        if foreign and folder.exists():
            shutil.rmtree(folder)
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent)
        clear_leftovers(folder)
        if foreign:
            self.keep(KEY, {"text": text})

    def __contains__(self, name: str) -> bool:
        return is_sealed(self.path(name))

    def path(self, name: str) -> Path:
        """File of a part. ValueError where the name is not a plain file name."""
        if not name or name.startswith(".") or any(sign in name for sign in "/\\\0"):
            raise ValueError(f"the name of a part must be a plain file name; got {name!r}.")
        return self.folder / f"{name}.npz"

    def find(self, name: str, *only: str) -> dict[str, np.ndarray] | None:
        """Arrays of a part, all or only some; None where it is missing or damaged."""
        try:
            return self.read(name, *only) if name in self else None
        except OSError:
            return None

    def read(self, name: str, *only: str) -> dict[str, np.ndarray]:
        """Arrays of a part that is known to be whole: its seal is not checked. OSError where it is gone or damaged."""
        path = self.path(name)
        try:
            with path.open("rb") as file, NpzFile(file, allow_pickle=False) as arrays:
                return {each: arrays[each] for each in only or arrays.files}
        except (EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise OSError(errno.EIO, "a finished part is damaged; run the same command again", str(path)) from error

    def keep(self, name: str, arrays: Mapping[str, ArrayLike]) -> None:
        """Write a part, over one of the same name. ValueError where an array holds Python objects."""
        write_whole(self.path(name), lambda file: np.savez(file, allow_pickle=False, **arrays), seal=True)

    def drop(self, name: str) -> None:
        """Remove a part, where there is one."""
        self.path(name).unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the folder, once the finished result holds what the parts hold."""
        shutil.rmtree(self.folder)
