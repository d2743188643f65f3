"""Fits of a step that is under way, kept in files, so that a run which was broken off repeats none that had ended."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histoblend.data.storage.atomic import clear_leftovers, read_sealed, sync_tree, write_whole
from histoblend.pipelines.runtime.artefacts import file_digest


@dataclass(frozen=True)
class Fit:
    """What a step needs of a fitted head.

    Attributes
    ----------
    predicted : ndarray of shape (rows held out,), float64
        Probabilities.
    measures : mapping from str to ndarray of shape (columns,)
        What the head says of its columns.
    seconds : float
        Of one core.
    """

    predicted: np.ndarray
    measures: Mapping[str, np.ndarray]
    seconds: float


class KeptFits:
    """Fits by name, each in a sealed file of ``folder/fits``.

    Parameters
    ----------
    folder : Path
        Of the step that is under way; the caller sees to it that it belongs to these very fits.
    """

    def __init__(self, folder: Path) -> None:
        self.step, self.folder = folder, folder / "fits"
        self.folder.mkdir(exist_ok=True)
        clear_leftovers(self.folder)

    def find(self, name: str) -> Fit | None:
        """Return a fit that was kept; None where there is none, or it or its stored head was damaged."""
        content = read_sealed(self._path(name))
        if content is None:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            head, digest = str(arrays["head"]), str(arrays["digest"])
            if head and _folder_digest(self.step / head) != digest:
                return None
            measures = {key.removeprefix("measure-"): arrays[key] for key in arrays if key.startswith("measure-")}
            return Fit(arrays["predicted"], measures, float(arrays["seconds"]))

    def keep(self, name: str, fit: Fit, head: Any = None, folder: str = "") -> None:
        """Keep a fit; first store its fitted head in a folder of the step, where one is named."""
        if folder:
            shutil.rmtree(self.step / folder, ignore_errors=True)
            head.save(self.step / folder)
            sync_tree(self.step / folder)
        arrays: dict[str, Any] = {
            "predicted": fit.predicted,
            "seconds": np.float64(fit.seconds),
            "head": np.array(folder),
            "digest": np.array(_folder_digest(self.step / folder) if folder else ""),
        }
        arrays |= {f"measure-{key}": np.asarray(values) for key, values in fit.measures.items()}
        write_whole(self._path(name), lambda file: np.savez(file, allow_pickle=False, **arrays), seal=True)

    def forget(self) -> None:
        """Remove the files, when the step's own tables hold what they hold."""
        shutil.rmtree(self.folder)

    def _path(self, name: str) -> Path:
        return self.folder / f"fit-{name}.npz"


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        digest.update(f"{path.name} {file_digest(path)}\n".encode())
    return digest.hexdigest()
