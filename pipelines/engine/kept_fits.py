"""Finished fits of an unfinished step, kept in files so that a resumed run does not repeat them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from histoblend.data.storage.arrays import files_under
from histoblend.data.storage.atomic import sync_tree
from histoblend.data.storage.parts import Parts
from histoblend.pipelines.engine.fits import FitTask, Fitter
from histoblend.pipelines.runtime.artefacts import file_digest


@dataclass(frozen=True)
class Fit:
    """The results of a fit that a step needs.

    Attributes
    ----------
    predicted : ndarray of shape (rows held out,), float64
        Probabilities.
    measures : mapping from str to ndarray of shape (columns,)
        Measures of the columns by the head, such as coefficients.
    seconds : float
        Core-seconds.
    """

    predicted: np.ndarray
    measures: Mapping[str, np.ndarray]
    seconds: float


class FitCache:
    """Fits by name, each stored as a part in ``folder/fits``.

    Parameters
    ----------
    folder : Path
        Folder of the unfinished step. The caller makes sure that it belongs to the same fits.
    """

    def __init__(self, folder: Path) -> None:
        self.step, self.parts = folder, Parts(folder / "fits")

    def find(self, name: str) -> Fit | None:
        """Return a kept fit, or None if it is missing or if it or its stored head is damaged."""
        arrays = self.parts.find(name)
        if arrays is None:
            return None
        head, digest = str(arrays["head"]), str(arrays["digest"])
        if head and _folder_digest(self.step / head) != digest:
            return None
        measures = {key.removeprefix("measure-"): arrays[key] for key in arrays if key.startswith("measure-")}
        return Fit(arrays["predicted"], measures, float(arrays["seconds"]))

    def keep(self, name: str, fit: Fit, head: Any = None, folder: str = "") -> None:
        """Keep a fit. If ``folder`` is given, first store its fitted head in that folder of the step."""
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
        """Remove the files once their results are in the step's own tables."""
        self.parts.forget()


def fit_all(
    fitter: Fitter,
    tasks: Sequence[FitTask],
    kept: FitCache | None = None,
    progress: Callable[[int], None] | None = None,
    folders: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Fit]:
    """Results of fits, of which only those that are not kept are computed.

    Parameters
    ----------
    fitter : Fitter
    tasks : sequence of FitTask
    kept : FitCache, optional
        Where finished fits are looked up and kept.
    progress : callable, optional
        Called with the number of fits that were kept, if any, and with 1 after each new one.
    folders : mapping from str to str
        From names of tasks to the folder of the step in which ``kept`` stores the fitted head; others are not stored.

    Returns
    -------
    dict from str to Fit
        By name, in the order of the tasks.
    """
    previous = {} if kept is None else {task.name: kept.find(task.name) for task in tasks}
    fits = {name: fit for name, fit in previous.items() if fit is not None}
    if progress is not None and fits:
        progress(len(fits))
    missing = [task for task in tasks if task.name not in fits]
    for task, (predicted, head, seconds) in zip(missing, fitter(missing), strict=True):
        fits[task.name] = Fit(predicted, head.column_measures(), seconds)
        if kept is not None:
            kept.keep(task.name, fits[task.name], head, folders.get(task.name, ""))
        if progress is not None:
            progress(1)
    return {task.name: fits[task.name] for task in tasks}


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in files_under(folder):
        digest.update(f"{name} {file_digest(folder / name)}\n".encode())
    return digest.hexdigest()
