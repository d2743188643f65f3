"""The learning curve of the fine-tuned network, if ``learning.network`` is set.

It uses the same slides, folds and first draws as the curves of cheap heads, but fewer sizes and draws, because every
point takes as many trainings as there are folds.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoblend.data.storage.parts import Parts
from histoblend.models.inspection.label_forecast import forecast
from histoblend.models.inspection.learning_curve import Draws, join_fits, nested_draws
from histoblend.pipelines.analysis.learning import (
    CurvePatches,
    curve_patches,
    draws_and_seed,
    write_curves,
)
from histoblend.pipelines.results import patches_of
from histoblend.pipelines.run_files import CURVE_COSTS
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.steps.cnn import WORK
from histoblend.pipelines.steps.cnn_training import NetworkTraining, cnn_engine, expit
from histoblend.pipelines.tables import MAX_PATCHES

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run

#: Sizes of each curve besides all slides and patches, just enough for a power law, and random draws of each size.
SIZES, REPEATS = 3, 2
#: Name of the curve among those of the sets of columns.
NAME = "cnn"


def build(run: Run, folder: Path) -> StepResult:
    """Write the tables of the curve if enough training slides are known and every fold can be judged.

    Test slides are not read. All folds are judged, even if ``cnn.folds`` is smaller. Finished trainings are kept, so
    that an interrupted run resumes.
    """
    most = run.config.cnn.most_patches(MAX_PATCHES, gpu=cnn_engine(run.config).gpu)
    patches = curve_patches(run, min(most, MAX_PATCHES))
    if patches is None:
        return StepResult(0)
    parts = Parts(folder / WORK)
    fits = _fits(run, patches, parts)
    curve = join_fits(fits, patches.slides, patches.folds)
    result = forecast(curve, patches.labels, patches.slides, per_slide=patches.per_slide, **draws_and_seed(run))
    for table in (result.points, result.gains):
        table.insert(0, "set", NAME)
    write_curves(folder, result.points, result.gains)
    parts.forget()
    return StepResult(len(patches.sample), {"trainings": len(fits)}, timed=(CURVE_COSTS,))


def _fits(run: Run, patches: CurvePatches, parts: Parts) -> list[tuple[Draws, np.ndarray, float]]:
    """Train on every draw: probabilities of its fold, and core-seconds."""
    draws = nested_draws(patches.labels, patches.slides, patches.folds, run.config.seed, most=SIZES, repeats=REPEATS)
    training = NetworkTraining(
        run.config, patches_of(run), parts, run.workers, run.screen, rows=patches.sample, test_rows=patches.sample[:0]
    )
    images = training.planned(sum(len(draw.rows) for draw in draws))
    run.screen.say(f"  {training.describe()}")
    run.screen.say(f"  {len(draws)} trainings on parts of these patches, with {images:,} images at most")
    data = training.data()
    fits = []
    with run.screen.progress("learning curve of the network", images, "images") as advance:
        for draw in draws:
            name = f"{draw.axis}-{draw.size}-{draw.repeat}-{draw.fold}"
            words = f"{draw.size or 'all'} {'slides' if draw.axis == 'slides' else 'patches per slide'}"
            held_out = np.flatnonzero(patches.folds == draw.fold)
            words = f"{words}, fold {draw.fold + 1}"
            result = training.out_of_fold(data, name, words, draw.rows, held_out, advance, brief=True)
            fits.append((draw, expit(result["log_odds"]), float(result["seconds"])))
    return fits
