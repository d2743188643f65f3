"""Final predictions of a run: probabilities of the unlabelled patches, and Kaggle's submission."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoblend.data.patches import PatchSet
from histoblend.data.splits import is_known
from histoblend.data.storage.atomic import write_atomically
from histoblend.data.storage.parts import Parts
from histoblend.data.storage.spreadsheet import read_written, write_csv
from histoblend.models.blends import choose_blends
from histoblend.models.names import SINGLE_FAMILIES, WITH_SLIDES, WITHOUT_SLIDES, needs_slides, split_model_name
from histoblend.models.predictor import open_predictor
from histoblend.pipelines.analysis.model_set import bundle_of
from histoblend.pipelines.predict.folder import chosen_members
from histoblend.pipelines.predict.in_memory import PixelSource
from histoblend.pipelines.predict.shards import Options, PredictedPatches, predict_source
from histoblend.pipelines.run_files import ENSEMBLE, FINAL, SET_ASIDE, SUBMISSION, UNLABELLED
from histoblend.pipelines.runtime.artefacts import StepResult

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def is_needed(run: Run) -> bool:
    """Whether there are unlabelled patches, and a model that can predict them without slides if these are unknown."""
    unlabelled = run.step("prepare").folder / UNLABELLED
    if not unlabelled.is_dir():
        return False
    return _predicts_without_slides(run) or bool(is_known(PatchSet.open_unlabelled(unlabelled).table["slide"]).any())


def _predicts_without_slides(run: Run) -> bool:
    """Whether :func:`models.blends.choose_blends` can choose a model that needs no slides."""
    if run.has("ensemble"):
        stored = json.loads((run.step("ensemble").folder / ENSEMBLE).read_text(encoding="utf-8"))
        return stored[WITHOUT_SLIDES] is not None or not any(map(needs_slides, stored[WITH_SLIDES]["members"]))
    heads = run.step("heads").manifest["notes"]["models"]
    return any(not needs_slides(name) for name in heads if split_model_name(name)[0] not in SINGLE_FAMILIES)


def build(run: Run, folder: Path) -> StepResult:
    """Predict the unlabelled patches with the run's bundle, using the code of ``predict``."""
    prepared, bundle = run.step("prepare").folder, bundle_of(run)
    patches = PatchSet.open_unlabelled(prepared / UNLABELLED)
    blends, options = choose_blends(bundle), Options(workers=run.workers)
    slides = patches.table["slide"]
    known = slides.where(is_known(slides)) if is_known(slides).any() else None
    parts, source = Parts(folder / "work"), PixelSource(patches.pixels, patches.table)
    with open_predictor(bundle, chosen_members(blends, known)) as predictor:
        predicted = predict_source(predictor, blends, source, known, parts, options=options, screen=run.screen)
    parts.forget()
    unreadable = read_written(prepared / UNLABELLED / SET_ASIDE, ("patch_id",))["patch_id"].tolist()
    prevalence = float(bundle.index["prevalence"])
    _write(patches.table["patch_id"].tolist(), unreadable, predicted, prevalence, folder)
    return StepResult(len(patches.table), {"set_aside": len(unreadable), "prevalence": prevalence})


def say_predictions(run: Run) -> None:
    """Print where the predictions of unlabelled patches are, or why there are none."""
    if run.has("predictions"):
        run.screen.say(f"predictions of unlabelled patches: {run.folder / FINAL}, and in Kaggle's format {SUBMISSION}")
        notes = run.step("predictions").manifest["notes"]
        if unreadable := notes["set_aside"]:
            run.screen.warn(
                f"{unreadable} unlabelled patches could not be read. In {SUBMISSION} they get the training patches' "
                f"share of positives, {notes['prevalence']:.3f}; {FINAL} omits them"
            )
    elif (run.step("prepare").folder / UNLABELLED).is_dir():
        run.screen.warn(
            f"unlabelled patches are not predicted: {choose_blends(bundle_of(run))[0].name} compares a patch with the "
            "rest of its slide, but their slides are unknown. Add another set to heads.features."
        )


def _write(ids: list[str], unreadable: list[str], predicted: PredictedPatches, prevalence: float, folder: Path) -> None:
    """Write both tables. Unreadable patches have no prediction, but a submission must contain them."""
    table = pd.DataFrame(
        {
            "id": ids,
            "probability": predicted.probability,
            "label": predicted.label,
            "flags": predicted.flags,
        }
    )
    write_atomically(folder / FINAL, lambda file: write_csv(table, file))
    submitted = pd.DataFrame(
        {"id": [*ids, *unreadable], "label": np.append(predicted.probability, np.full(len(unreadable), prevalence))}
    ).sort_values("id", kind="stable")
    # Not escaped, because Kaggle compares ids exactly.
    write_atomically(folder / SUBMISSION, lambda file: write_csv(submitted, file, escaped=False))
