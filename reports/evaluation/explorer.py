"""Choose the features and example patches of the report's explorer, and define its input data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoblend.models.calibration import log_odds
from histoblend.models.inspection.ensemble_shapley import Blending
from histoblend.models.inspection.shapley import TOGETHER, ShapleyValues

#: Percentiles of a feature at which a patch is shown, and their column names.
LEVELS = {0.01: "q01", 0.5: "q50", 0.99: "q99"}
#: A patch may represent a percentile if at most this share of all patches is between them.
NEAR = 0.005
#: Number of features that are shown with pictures and a curve because they lead a measure. Those on a board follow.
OPENED = 40
#: Number of single columns on the board of a model.
BOARD = 10
#: Training patches that other sections may show: the worst errors of each slide and class, the patches of each slide
#: nearest to the threshold, the worst errors of each class, and the most patches in total.
WORST_PER_SLIDE, NEAREST_PER_SLIDE, WORST, MOST_SHOWN = 3, 2, 16, 240


@dataclass(frozen=True)
class ExplorerView:
    """Data shown in the explorer.

    Attributes
    ----------
    attributions : mapping from model to ShapleyValues
        Rows as in `explained`.
    best : str
        Explained model with the best out-of-fold AUC; empty if none is explained.
    blend : Blending or None
        How the ensemble weights its members, if it is explained.
    evidence : DataFrame
        From :func:`models.inspection.importance_evidence.evidence`, of all models.
    clusters : DataFrame
        ``model, unit, members``: clusters of correlated columns of a model, each with its leader, and the names of all
        its columns joined by spaces.
    explained : DataFrame
        ``patch_id, slide, label`` of held-out patches.
    folds : mapping from fold to ShapleyValues
        Training patches by the best model's fits without their slides.
    traced : DataFrame
        ``patch_id, fold, place``: the patches of `folds`, where `place` is the row.
    cases : DataFrame
        ``case, model, patch_id, place, score, threshold``, where `place` is the row of `explained` and the model is the
        best.
    quantiles : DataFrame
        ``q01, q50, q99`` per feature.
    examples : DataFrame
        ``feature, level, patch_id, value`` of the features shown with pictures.
    curves : DataFrame
        ``feature, model, value, probability``: partial dependence.
    bins : DataFrame
        ``feature, value, patches, slides, share, low, high``: share of positives in each tenth of the patches.
    embeddings : DataFrame or None
        From :func:`models.inspection.embedding_columns.explain_columns`, with a column of importances per head.
    patches : DataFrame
        ``patch_id, slide, label, split`` of the patches shown.
    pixels : ndarray of shape (patches, height, width, 3), dtype uint8
    sampled, averaged : int
        Number of patches used for percentiles and shares, and for curves.
    """

    attributions: Mapping[str, ShapleyValues]
    best: str
    blend: Blending | None
    evidence: pd.DataFrame
    clusters: pd.DataFrame
    explained: pd.DataFrame
    folds: Mapping[str, ShapleyValues]
    traced: pd.DataFrame
    cases: pd.DataFrame
    quantiles: pd.DataFrame
    examples: pd.DataFrame
    curves: pd.DataFrame
    bins: pd.DataFrame
    embeddings: pd.DataFrame | None
    patches: pd.DataFrame
    pixels: np.ndarray
    sampled: int
    averaged: int


def leading_features(importances: pd.DataFrame, models: Sequence[str], most: int = OPENED) -> list[str]:
    """Features that rank highest in any importance measure of any of these models.

    Parameters
    ----------
    importances : DataFrame
        Tidy importances.
    models : sequence of str
        Empty for all models.
    most : int
        Maximum number of features.

    Returns
    -------
    list of str
        Ordered by best rank, then by the mean of 1 / rank over all rankings.
    """
    single = single_features(importances)
    order = feature_ranks(single[single.model.isin(models)] if models else single)
    return list(order.sort_values(["best", "mean_reciprocal"], ascending=[True, False], kind="stable").index[:most])


def board_columns(evidence: pd.DataFrame, model: str, most: int = BOARD) -> pd.DataFrame:
    """Evidence of the single columns of a model that separate the classes most."""
    rows = evidence[(evidence.model == model) & (evidence.kind == "column")]
    return rows.sort_values("separation", ascending=False, kind="stable").head(most)


def opened_features(importances: pd.DataFrame, evidence: pd.DataFrame, models: Sequence[str]) -> list[str]:
    """Features that are shown with pictures and a curve: those on the board of any model, and those that lead."""
    boards = [name for model in models for name in board_columns(evidence, model).unit]
    return list(dict.fromkeys([*boards, *leading_features(importances, models)]))


def likely_shown(train: pd.DataFrame, model: str, threshold: float) -> pd.DataFrame:
    """Choose training patches that a page on this model is likely to show.

    Parameters
    ----------
    train : DataFrame
        ``slide, label, prob_<model>`` of training patches.
    model : str
    threshold : float
        A score at or above it counts as positive.

    Returns
    -------
    DataFrame
        Rows of `train`: worst errors, and patches near the threshold; at most `MOST_SHOWN`.
    """
    scores = train[f"prob_{model}"].to_numpy()
    distance = pd.Series(np.abs(log_odds(scores) - log_odds(np.array(threshold))), index=train.index)
    wrong = (scores >= threshold) != (train.label.to_numpy() == 1)
    slides = train.slide.astype(object).where(train.slide.notna(), "").astype(str)
    worst = distance[wrong].sort_values(ascending=False, kind="stable").index
    nearest = distance.sort_values(kind="stable").index
    by_class = train.label[worst].astype(str)
    chosen = [
        worst[(by_class.groupby(by_class).cumcount() < WORST).to_numpy()],
        worst[(by_class.groupby([slides[worst], by_class]).cumcount() < WORST_PER_SLIDE).to_numpy()],
        nearest[(slides[nearest].groupby(slides[nearest]).cumcount() < NEAREST_PER_SLIDE).to_numpy()][:WORST],
    ]
    order = dict.fromkeys([*chosen[2], *chosen[0], *chosen[1]])
    return train.loc[list(order)[:MOST_SHOWN]]


def share_examples(values: np.ndarray) -> list[list[int]]:
    """Choose a patch for each feature at each of `LEVELS`, reusing the same patch for several features where possible.

    Parameters
    ----------
    values : ndarray of shape (n, features), float

    Returns
    -------
    list of list of int
        For each feature, the row of one patch per level. At most a share `NEAR` of the patches is between it and the
        level.
    """
    reach = int(NEAR * len(values))
    candidates: list[set[int]] = []
    for column in values.T:
        order = np.argsort(column, kind="stable")
        for level in LEVELS:
            level_position = round(level * (len(order) - 1))
            candidates.append({int(row) for row in order[max(0, level_position - reach) : level_position + reach + 1]})
    chosen: dict[int, int] = {}
    counts = Counter(row for rows in candidates for row in rows)
    while len(chosen) < len(candidates):
        # On a tie, the smallest row, so that the choice is the same on every machine.
        row = max(counts, key=lambda candidate: (counts[candidate], -candidate))
        for index, rows in enumerate(candidates):
            if index not in chosen and row in rows:
                chosen[index] = row
                counts.subtract(rows)
    return [[chosen[start + i] for i in range(len(LEVELS))] for start in range(0, len(candidates), len(LEVELS))]


def single_features(importances: pd.DataFrame) -> pd.DataFrame:
    """Importances of features that have a meaning of their own."""
    single = importances[importances.feature.notna() & ~importances.family.isin(TOGETHER)]
    return single[single.measure.isin(list(MEASURES))]


def _sizes(part: pd.DataFrame) -> pd.Series:
    """Values to rank features by. Negative drops stay negative; other measures are ranked by absolute value."""
    return part.value.where(part.measure == "permutation", part.value.abs())


def feature_ranks(single: pd.DataFrame) -> pd.DataFrame:
    """Per feature: its best rank in any measure of any model, and the mean of 1 / rank over all of them."""
    rank = _sizes(single).groupby([single.model, single.measure]).rank(ascending=False, method="min")
    mean_reciprocal = (1 / rank).groupby(single.feature, sort=False).mean()
    return pd.DataFrame({"best": rank.groupby(single.feature, sort=False).min(), "mean_reciprocal": mean_reciprocal})


#: Column headings of the table, whether numbers have a sign, and their decimals.
MEASURES: dict[str, tuple[str, bool, int]] = {
    "permutation": ("Drop in AUC", True, 3),
    "shap": ("Mean |SHAP|", False, 3),
    "gain": ("Gain", False, 4),
    "cover": ("Cover", False, 4),
    "coefficient": ("Coefficient", True, 3),
}
