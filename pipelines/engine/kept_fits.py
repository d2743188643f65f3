"""Fits of a step that is under way, kept in files so that an interrupted run repeats none of them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histoblend.data.storage.arrays import files_under
from histoblend.data.storage.atomic import sync_tree
from histoblend.data.storage.parts import Parts
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
    """Fits by name, each a part in ``folder/fits``.

    Parameters
    ----------
    folder : Path
        Of the step that is under way; the caller guarantees that it belongs to these very fits.
    """

    def __init__(self, folder: Path) -> None:
        self.step, self.parts = folder, Parts(folder / "fits")

    def find(self, name: str) -> Fit | None:
        """Return a fit that was kept; None where there is none, or it or its stored head was damaged."""
        arrays = self.parts.find(name)
        if arrays is None:
            return None
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
            "seconds": fit.seconds,
            "head": folder,
            "digest": _folder_digest(self.step / folder) if folder else "",
        }
        self.parts.keep(name, arrays | {f"measure-{key}": values for key, values in fit.measures.items()})

    def forget(self) -> None:
        """Remove the files, when the step's own tables hold what they hold."""
        self.parts.forget()


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in files_under(folder):
        digest.update(f"{name} {file_digest(folder / name)}\n".encode())
    return digest.hexdigest()
