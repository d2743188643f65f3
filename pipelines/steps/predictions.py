"""Final predictions of a run: the patches that came without labels, and Kaggle's submission."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoblend.data.patches import PatchSet
from histoblend.data.splits import is_known
from histoblend.data.storage.atomic import copy_whole, write_whole
from histoblend.data.storage.parts import Parts
from histoblend.data.storage.spreadsheet import read_written, write_csv
from histoblend.models.bundle import Bundle, index_digest, open_bundle
from histoblend.models.predictor import choose_blends, open_predictor
from histoblend.pipelines.layout import BUNDLE, FINAL, SET_ASIDE, SUBMISSION, UNLABELLED
from histoblend.pipelines.predict.folder import chosen_members
from histoblend.pipelines.predict.shards import Found, Options, predict_source
from histoblend.pipelines.runtime.artefacts import Outcome, StepSpec, manifest_digest, run_step

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


class PixelSource:
    """Patches that are decoded already, as a source; see :class:`data.patches.Source`.

    Parameters
    ----------
    patches : PatchSet

    Attributes
    ----------
    table : DataFrame
    size : int
    """

    def __init__(self, patches: PatchSet) -> None:
        self.pixels, self.table, self.size = patches.pixels, patches.table, patches.pixels.shape[1]

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Rows ``start`` to ``stop``; every one can be read."""
        return np.asarray(self.pixels[start:stop]), {}


def predict_unlabelled(run: Run) -> None:
    """Write ``predictions.csv`` and ``submission.csv`` into the run folder, where there are patches without labels.

    Both come from the run's bundle by the code of ``predict``. Made again only when the bundle or the patches changed.
    """
    place = run.prepared[0] / UNLABELLED
    if not place.is_dir():
        return
    bundle = open_bundle(run.folder / BUNDLE)
    with_slides, without = choose_blends(bundle)
    if without is None and not is_known(PatchSet.open_unlabelled(place).table["slide"]).any():
        run.screen.warn(
            f"patches without labels are not predicted: {with_slides.name} compares a patch with the rest of its "
            "slide, and their slides are unknown. Add another set to heads.features."
        )
        for name in (FINAL, SUBMISSION):
            (run.folder / name).unlink(missing_ok=True)  # an earlier run's, which no longer holds
        return
    inputs = {"1-patches": manifest_digest(run.prepared[1]), BUNDLE: _lasting_digest(bundle)}
    # The network too: by Keras it is a file that the bundle's lasting digest leaves out.
    made_by = [*run.tables.values(), *run.last_steps()]
    inputs |= {folder.name: manifest_digest(manifest) for folder, manifest in made_by}
    sources = (
        "data",
        "features",
        "models",
        "pipelines/predict/folder.py",
        "pipelines/predict/shards.py",
        "pipelines/steps/predictions.py",
    )
    spec = StepSpec("predictions", "8-predictions", sources, {}, inputs, run.config.seed)

    def build(folder: Path) -> Outcome:
        return _predict(run, PatchSet.open_unlabelled(place), place / SET_ASIDE, folder)

    folder, manifest = run_step(spec, run.folder, build, rebuild=run.rebuild, say=run.screen.say)
    for name in (FINAL, SUBMISSION):
        copy_whole(folder / name, run.folder / name)
    run.screen.say(f"predictions without labels: {run.folder / FINAL}, and Kaggle's form in {SUBMISSION}")
    if lost := manifest["notes"]["set_aside"]:
        run.screen.warn(
            f"{lost} patches without label could not be read: {SUBMISSION} gives them the training patches' share of "
            f"positives, {manifest['notes']['prevalence']:.3f}; {FINAL} leaves them out"
        )


def _lasting_digest(bundle: Bundle) -> str:
    """SHA-256 (hex) over what predicts: Keras writes the time into its files, which changes no prediction."""
    files = {name: entry for name, entry in bundle.index["files"].items() if not name.endswith((".keras", ".md"))}
    return index_digest({**bundle.index, "files": files})


def _predict(run: Run, patches: PatchSet, set_aside: Path, folder: Path) -> Outcome:
    bundle = open_bundle(run.folder / BUNDLE)
    blends, options = choose_blends(bundle), Options(workers=run.workers)
    slides = patches.table["slide"]
    known = slides.where(is_known(slides)) if is_known(slides).any() else None
    parts = Parts(folder / "work")
    with open_predictor(bundle, chosen_members(blends, known)) as predictor:
        found = predict_source(
            predictor, blends, PixelSource(patches), known, parts, options=options, screen=run.screen
        )
    parts.forget()
    lost = read_written(set_aside, ("patch_id",))["patch_id"].tolist()
    prevalence = float(bundle.index["prevalence"])
    _write(patches.table["patch_id"].tolist(), lost, found, prevalence, folder)
    return Outcome(len(patches.table), {"set_aside": len(lost), "prevalence": prevalence})


def _write(ids: list[str], lost: list[str], found: Found, prevalence: float, folder: Path) -> None:
    """Write both tables; a patch that could not be read has no prediction but must stand in a submission."""
    table = pd.DataFrame(
        {
            "id": ids,
            "probability": found.probability,
            "label": found.label,
            "flags": found.flags,
        }
    )
    write_whole(folder / FINAL, lambda file: write_csv(table, file))
    submitted = pd.DataFrame(
        {"id": [*ids, *lost], "label": np.append(found.probability, np.full(len(lost), prevalence))}
    ).sort_values("id", kind="stable")
    # Kaggle compares ids as they are: nothing is escaped here.
    write_whole(folder / SUBMISSION, lambda file: write_csv(submitted, file, escaped=False))
