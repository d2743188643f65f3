"""What more labels would bring: learning curves of cheap heads, and calibration of the best models on new slides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoblend.models.inspection.label_forecast import forecast
from histoblend.models.inspection.learning_curve import both_labels_outside_folds, fit_curve
from histoblend.models.inspection.new_slides import recalibration_gains, slide_calibration
from histoblend.models.resampling import sample_rows_evenly, slide_groups
from histoblend.pipelines.results import feature_sets, patches_of, predictions_of
from histoblend.pipelines.run_files import CURVE, CURVE_COSTS, LABEL_GAINS, RECALIBRATION, SLIDE_CALIBRATION
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.tables import known_slides, slides_in_one_fold

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run

#: Sets of columns with a learning curve, if they are configured.
CURVE_SETS = ("colour", "handcrafted", "embeddings", "both", "in-slide", "both-normalised")
#: Most training patches, spread evenly over slides.
MAX_PATCHES = 6000
#: Fewest training slides.
FEWEST_SLIDES = 8
#: Heads whose calibration is shown, those with the best AUC out of fold, besides the network and the ensemble.
SHOWN_HEADS = 2
#: Resamplings of slides for the intervals. Each fits its own power laws.
MOST_DRAWS = 1000


def build(run: Run, folder: Path) -> StepResult:
    """Write the tables of the report if enough training slides are known and every fold can be judged.

    Test slides are not read.
    """
    table = patches_of(run).table
    slides = known_slides(table["slide"])
    rows = np.flatnonzero((table["split"] == "train").to_numpy() & pd.notna(slides))
    if len(set(slides[rows])) < FEWEST_SLIDES or not slides_in_one_fold(table.iloc[rows], slides[rows]):
        return StepResult(0)
    sample = rows[sample_rows_evenly(slide_groups(slides[rows]), MAX_PATCHES, seed=run.config.seed)]
    if not both_labels_outside_folds(*(table[name].to_numpy()[sample] for name in ("label", "fold"))):
        return StepResult(0)
    options = {"draws": min(run.config.report.draws, MOST_DRAWS), "seed": run.config.seed}
    curve, gains = learning_curves(run, sample, per_slide=len(rows) / len(set(slides[rows])), options=options)
    curve.drop(columns="seconds").to_csv(folder / CURVE, index=False)
    curve[["set", "axis", "slides", "patches_per_slide", "seconds"]].to_csv(folder / CURVE_COSTS, index=False)
    gains.to_csv(folder / LABEL_GAINS, index=False)
    predictions = predictions_of(run).iloc[rows]
    errors, recalibrations = [], []
    for model in calibrated_models(predictions):
        known = predictions[f"prob_{model}"].notna().to_numpy()
        labels, scores = (predictions[name].to_numpy()[known] for name in ("label", f"prob_{model}"))
        errors.append(slide_calibration(labels, scores, slides[rows][known], seed=run.config.seed))
        recalibrations.append(recalibration_gains(labels, scores, slides[rows][known], **options))
        for part in (errors[-1], recalibrations[-1]):
            part.insert(0, "model", model)
    pd.concat(errors).to_csv(folder / SLIDE_CALIBRATION, index=False)
    pd.concat(recalibrations).to_csv(folder / RECALIBRATION, index=False)
    return StepResult(len(rows), timed=(CURVE_COSTS,))


def learning_curves(
    run: Run, rows: np.ndarray, *, per_slide: float, options: dict[str, int]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Points and gains of each set of columns, on training rows of slides with so many labelled patches on average.

    ``options`` are the number of draws and the seed of the intervals.
    """
    table, sets = patches_of(run).table.iloc[rows], feature_sets(run)
    labels, folds = table["label"].to_numpy(), table["fold"].to_numpy()
    slides = pd.factorize(known_slides(table["slide"]))[0]
    names = [name for name in CURVE_SETS if name in sets] or list(sets)[:1]
    points: list[pd.DataFrame] = []
    gains: list[pd.DataFrame] = []
    with run.screen.progress("learning curves", len(names), "sets") as progress:
        for name in names:
            curve = fit_curve(sets.stored(name, rows), labels, slides, folds, seed=run.config.seed, workers=run.workers)
            result = forecast(curve, labels, slides, per_slide=per_slide, **options)
            for part, parts in ((result.points, points), (result.gains, gains)):
                part.insert(0, "set", name)
                parts.append(part)
            progress(1)
    return pd.concat(points, ignore_index=True), pd.concat(gains, ignore_index=True)


def calibrated_models(predictions: pd.DataFrame) -> list[str]:
    """Models whose calibration is shown: ensemble, network, and the heads with the best AUC on these patches."""
    from sklearn.metrics import roc_auc_score

    names = [name.removeprefix("prob_") for name in map(str, predictions) if name.startswith("prob_")]
    fixed = [name for name in ("ensemble", "cnn") if name in names]
    heads = [name for name in names if name not in (*fixed, "prevalence") and predictions[f"prob_{name}"].notna().all()]
    ranked = sorted(heads, key=lambda name: -roc_auc_score(predictions["label"], predictions[f"prob_{name}"]))
    return [*fixed, *ranked[:SHOWN_HEADS]]
