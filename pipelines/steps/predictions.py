"""Final predictions of a run: the patches that came without labels, and Kaggle's submission."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoblend.data.patches import PatchSet
from histoblend.data.splits import is_known
from histoblend.data.storage.atomic import write_whole
from histoblend.data.storage.parts import Parts
from histoblend.data.storage.spreadsheet import read_written, write_csv
from histoblend.models.bundle import Bundle, open_bundle
from histoblend.models.names import ALONE, WITH_SLIDES, WITHOUT_SLIDES, needs_slides, split_model_name
from histoblend.models.predictor import choose_blends, open_predictor
from histoblend.pipelines.predict.folder import chosen_members
from histoblend.pipelines.predict.in_memory import PixelSource
from histoblend.pipelines.predict.shards import Found, Options, predict_source
from histoblend.pipelines.run_files import BUNDLE, ENSEMBLE, FINAL, SET_ASIDE, SUBMISSION, UNLABELLED
from histoblend.pipelines.runtime.artefacts import Outcome

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def part_of(run: Run) -> bool:
    """Whether there are patches without labels, and a model for them: one that needs slides is none without slides."""
    place = run.step("prepare").folder / UNLABELLED
    if not place.is_dir():
        return False
    return _predicts_without_slides(run) or bool(is_known(PatchSet.open_unlabelled(place).table["slide"]).any())


def _predicts_without_slides(run: Run) -> bool:
    """Whether :func:`models.predictor.choose_blends` will find a model that needs no slides."""
    if run.has("ensemble"):
        stored = json.loads((run.step("ensemble").folder / ENSEMBLE).read_text(encoding="utf-8"))
        return stored[WITHOUT_SLIDES] is not None or not any(map(needs_slides, stored[WITH_SLIDES]["members"]))
    heads = run.step("heads").manifest["notes"]["models"]
    return any(not needs_slides(name) for name in heads if split_model_name(name)[0] not in ALONE)


def build(run: Run, folder: Path) -> Outcome:
    """Predict patches without labels with the run's bundle, by the code of ``predict``."""
    place, bundle = run.step("prepare").folder, bundle_of(run)
    patches = PatchSet.open_unlabelled(place / UNLABELLED)
    blends, options = choose_blends(bundle), Options(workers=run.workers)
    slides = patches.table["slide"]
    known = slides.where(is_known(slides)) if is_known(slides).any() else None
    parts, source = Parts(folder / "work"), PixelSource(patches.pixels, patches.table)
    with open_predictor(bundle, chosen_members(blends, known)) as predictor:
        found = predict_source(predictor, blends, source, known, parts, options=options, screen=run.screen)
    parts.forget()
    lost = read_written(place / UNLABELLED / SET_ASIDE, ("patch_id",))["patch_id"].tolist()
    prevalence = float(bundle.index["prevalence"])
    _write(patches.table["patch_id"].tolist(), lost, found, prevalence, folder)
    return Outcome(len(patches.table), {"set_aside": len(lost), "prevalence": prevalence})


def bundle_of(run: Run) -> Bundle:
    """The bundle of a run, checked."""
    return run.open("bundle", lambda: open_bundle(run.step("bundle").folder / BUNDLE))


def say_predictions(run: Run) -> None:
    """Say where predictions of patches without labels are, or why there are none."""
    if run.has("predictions"):
        run.screen.say(f"predictions without labels: {run.folder / FINAL}, and Kaggle's form in {SUBMISSION}")
        notes = run.step("predictions").manifest["notes"]
        if lost := notes["set_aside"]:
            run.screen.warn(
                f"{lost} patches without label could not be read: {SUBMISSION} gives them the training patches' share "
                f"of positives, {notes['prevalence']:.3f}; {FINAL} leaves them out"
            )
    elif (run.step("prepare").folder / UNLABELLED).is_dir():
        run.screen.warn(
            f"patches without labels are not predicted: {choose_blends(bundle_of(run))[0].name} compares a patch with "
            "the rest of its slide, and their slides are unknown. Add another set to heads.features."
        )


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
