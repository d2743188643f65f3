"""Scores on centres (hospitals or scanners) that a model was not fitted on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.splits import is_known
from histoblend.models.metrics import bootstrap, measure
from histoblend.models.resampling import percentile_interval, slide_groups
from histoblend.models.slide_pairs import SlidePairs

#: Name, in the table of scores, of the mean over the centres.
MEAN = "(mean)"
#: Scores of a model on a centre: AUC, AUC within slides, and their changes against folds that mix the centres.
SCORES = ("auc", "auc_within", "change", "change_within")
#: Fewest slides of a centre for an interval.
FEWEST_SLIDES = 3


def score_centres(
    patches: pd.DataFrame, left_out: pd.DataFrame, mixed: pd.DataFrame, *, draws: int, seed: int
) -> pd.DataFrame:
    """Score models on each left-out centre, and compare them with out-of-fold predictions of the same patches.

    Parameters
    ----------
    patches : DataFrame
        ``label, slide, centre``, one row per scored patch.
    left_out : DataFrame
        Probability of each patch by each model, fitted without the patch's centre. One column per model.
    mixed : DataFrame
        The same by models fitted without the patch's fold, whose slides may be of any centre.
    draws : int
        Resamplings of the slides of each centre, for 95 % intervals. Both models of a change share them.
    seed : int

    Returns
    -------
    DataFrame
        ``model, centre, patches, slides, prevalence`` and :data:`SCORES`, each with ``_low`` and ``_high``. One row per
        model and centre, and one for the model's mean over the centres with both labels (:data:`MEAN`), which also has
        ``pooled``: AUC of ``mixed`` over all patches together. Scores are missing for a centre with one label,
        intervals for a centre with fewer than three slides.
    """
    models, rows = [str(name) for name in left_out], []
    points, drawn = [], []
    for number, (centre, part) in enumerate(patches.groupby("centre", sort=True)):
        size = {"patches": len(part), "slides": part["slide"].nunique(), "prevalence": part["label"].mean()}
        point, values = np.full((len(models), len(SCORES)), np.nan), None
        if part["label"].nunique() == 2:
            scores = np.concatenate([table.loc[part.index, models].to_numpy() for table in (left_out, mixed)], axis=1)
            point, values = _scores(part, scores, draws, seed + number)
            points.append(point)
            drawn.append(values)
        rows += _rows(models, {"centre": centre} | size, point, values)
    if points:
        size = {"patches": len(patches), "slides": patches["slide"].nunique(), "prevalence": patches["label"].mean()}
        known = [values for values in drawn if values is not None]
        shortest = min(map(len, known), default=0)
        mean = np.mean([values[:shortest] for values in known], axis=0) if len(known) == len(points) else None
        rows += _rows(models, {"centre": MEAN} | size, np.mean(points, axis=0), mean)
    table = pd.DataFrame(rows)
    pooled = (
        measure(patches["label"].to_numpy(), mixed.loc[patches.index, models].to_numpy(), 0.5)[:, 0]
        if points
        else np.nan
    )
    table.loc[table["centre"] == MEAN, "pooled"] = pooled
    return table


def _scores(part: pd.DataFrame, scores: np.ndarray, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores of each model on one centre, (models, 4), and under draws of its slides, (draws, models, 4) or None."""
    labels, groups = part["label"].to_numpy(), slide_groups(part["slide"])
    pairs = SlidePairs(labels, scores, groups, is_known(part["slide"]).to_numpy())
    units = int(groups.max()) + 1
    auc = measure(labels, scores, 0.5)[None, :, 0]
    point = _with_changes(auc, pairs(np.ones((1, units), np.int32), auc)[:, :, 0])[0]
    if units < FEWEST_SLIDES:
        return point, None
    try:
        drawn = bootstrap(labels, scores, 0.5, groups, pairs=pairs, draws=draws, seed=seed)
    except InputError:  # too few slides with both labels
        return point, None
    within = np.full(drawn.values.shape[:2], np.nan) if drawn.pairs is None else drawn.pairs[:, :, 0]
    return point, _with_changes(drawn.values[:, :, 0], within)


def _with_changes(auc: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Turn AUCs (draws, 2 × models), of left-out and of mixed centres, into :data:`SCORES`: (draws, models, 4)."""
    models = auc.shape[1] // 2
    left_out, mixed = (np.stack([auc[:, part], within[:, part]], axis=2) for part in np.split(np.arange(2 * models), 2))
    return np.concatenate([left_out, left_out - mixed], axis=2)


def _rows(models: list[str], size: dict[str, Any], point: np.ndarray, drawn: np.ndarray | None) -> list[dict[str, Any]]:
    """One row per model of a centre or of the mean."""
    low, high = np.full((2, *point.shape), np.nan) if drawn is None else percentile_interval(drawn)
    return [
        {"model": model}
        | size
        | {
            name: value
            for column, score in enumerate(SCORES)
            for name, value in (
                (score, point[row, column]),
                (f"{score}_low", low[row, column]),
                (f"{score}_high", high[row, column]),
            )
        }
        for row, model in enumerate(models)
    ]
