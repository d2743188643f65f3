"""What more labels would bring: learning curves of cheap heads, and calibration of the best models on new slides."""

from __future__ import annotations

from dataclasses import dataclass
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
from histoblend.pipelines.tables import MAX_PATCHES, known_slides, slides_in_one_fold

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run

#: Sets of columns with a learning curve, if they are configured.
CURVE_SETS = ("colour", "handcrafted", "embeddings", "both", "in-slide", "both-normalised")
#: Fewest training slides.
FEWEST_SLIDES = 8
#: Heads whose calibration is shown, those with the best AUC out of fold, besides the network and the ensemble.
SHOWN_HEADS = 2
#: Resamplings of slides for the intervals. Each fits its own power laws.
MOST_DRAWS = 1000


@dataclass(frozen=True)
class CurvePatches:
    """Training patches that learning curves use.

    Attributes
    ----------
    rows : ndarray of int
        All training rows of known slides.
    sample : ndarray of int
        Those that are used, evenly spread over slides.
    labels, slides, folds : ndarray of int
        Of the sample; slides as codes without gaps.
    per_slide : float
        Mean number of labelled patches per slide, over all rows.
    """

    rows: np.ndarray
    sample: np.ndarray
    labels: np.ndarray
    slides: np.ndarray
    folds: np.ndarray
    per_slide: float


def build(run: Run, folder: Path) -> StepResult:
    """Write the tables of the report if enough training slides are known and every fold can be judged.

    Test slides are not read.
    """
    patches = curve_patches(run)
    if patches is None:
        return StepResult(0)
    curve, gains = learning_curves(run, patches)
    write_curves(folder, curve, gains)
    rows = patches.rows
    slides = known_slides(patches_of(run).table["slide"])[rows]
    predictions = predictions_of(run).iloc[rows]
    errors, recalibrations = [], []
    for model in calibrated_models(predictions):
        known = predictions[f"prob_{model}"].notna().to_numpy()
        labels, scores = (predictions[name].to_numpy()[known] for name in ("label", f"prob_{model}"))
        errors.append(slide_calibration(labels, scores, slides[known], seed=run.config.seed))
        recalibrations.append(recalibration_gains(labels, scores, slides[known], **draws_and_seed(run)))
        for part in (errors[-1], recalibrations[-1]):
            part.insert(0, "model", model)
    pd.concat(errors).to_csv(folder / SLIDE_CALIBRATION, index=False)
    pd.concat(recalibrations).to_csv(folder / RECALIBRATION, index=False)
    return StepResult(len(rows), timed=(CURVE_COSTS,))


def curve_patches(run: Run, most: int = MAX_PATCHES) -> CurvePatches | None:
    """Choose the patches of learning curves; None with too few known training slides, or with a fold not to be judged.

    Parameters
    ----------
    run : Run
    most : int
        Largest number of patches in the sample.
    """
    table = patches_of(run).table
    slides = known_slides(table["slide"])
    rows = np.flatnonzero((table["split"] == "train").to_numpy() & pd.notna(slides))
    count = len(set(slides[rows]))
    if count < FEWEST_SLIDES or not slides_in_one_fold(table.iloc[rows], slides[rows]):
        return None
    sample = rows[sample_rows_evenly(slide_groups(slides[rows]), most, seed=run.config.seed)]
    labels, folds = (table[name].to_numpy()[sample] for name in ("label", "fold"))
    if not both_labels_outside_folds(labels, folds):
        return None
    return CurvePatches(rows, sample, labels, pd.factorize(slides[sample])[0], folds, len(rows) / count)


def draws_and_seed(run: Run) -> dict[str, int]:
    """Number of draws and seed of the intervals, as arguments."""
    return {"draws": min(run.config.report.draws, MOST_DRAWS), "seed": run.config.seed}


def write_curves(folder: Path, curve: pd.DataFrame, gains: pd.DataFrame) -> None:
    """Write points and gains of learning curves, with times in a separate file."""
    curve.drop(columns="seconds").to_csv(folder / CURVE, index=False)
    curve[["set", "axis", "slides", "patches_per_slide", "seconds"]].to_csv(folder / CURVE_COSTS, index=False)
    gains.to_csv(folder / LABEL_GAINS, index=False)


def learning_curves(run: Run, patches: CurvePatches) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Points and gains of each set of columns."""
    sets, seed = feature_sets(run), run.config.seed
    labels, slides = patches.labels, patches.slides
    names = [name for name in CURVE_SETS if name in sets] or list(sets)[:1]
    points: list[pd.DataFrame] = []
    gains: list[pd.DataFrame] = []
    with run.screen.progress("learning curves", len(names), "sets") as progress:
        for name in names:
            values = sets.stored(name, patches.sample)
            curve = fit_curve(values, labels, slides, patches.folds, seed=seed, workers=run.workers)
            result = forecast(curve, labels, slides, per_slide=patches.per_slide, **draws_and_seed(run))
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
