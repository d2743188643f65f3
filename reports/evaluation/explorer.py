"""Which features the explorer opens, on which patches, and what was computed for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoblend.models.inspection.shapley import TOGETHER, Attribution

#: Percentiles of a feature at which a patch is shown, and how columns call them.
LEVELS = {0.01: "q01", 0.5: "q50", 0.99: "q99"}
#: A patch stands for a percentile when this share of all patches, or less, lies between.
NEAR = 0.005
#: Features that open with pictures and a curve, at most.
OPENED = 60


@dataclass(frozen=True)
class ExplorerView:
    """What was computed for the explorer.

    Attributes
    ----------
    attributions : mapping from model to Attribution
        Rows as in `explained`.
    explained : DataFrame
        ``patch_id, slide, label`` of held-out patches.
    cases : DataFrame
        ``case, model, patch_id, place, score, threshold``; `place` is the row of `explained`.
    quantiles : DataFrame
        ``q01, q50, q99`` by feature.
    examples : DataFrame
        ``feature, level, patch_id, value`` of the features that open.
    curves : DataFrame
        ``feature, model, value, probability``: partial dependence.
    bins : DataFrame
        ``feature, value, patches, slides, share, low, high``: positives in tenths of the patches.
    embeddings : DataFrame or None
        From :func:`models.inspection.embedding_columns.explain_columns`, with a column of importances for each head.
    patches : DataFrame
        ``patch_id, slide, label, split`` of the patches that are shown.
    pixels : ndarray of shape (patches, height, width, 3), dtype uint8
    sampled, averaged : int
        Patches behind percentiles and shares, and behind curves.
    """

    attributions: Mapping[str, Attribution]
    explained: pd.DataFrame
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
    """Features that stand highest in any measure of any of these models.

    Parameters
    ----------
    importances : DataFrame
        Tidy.
    models : sequence of str
        All models where empty.
    most : int

    Returns
    -------
    list of str
        At most `most`, by their best place, then by the mean of 1 / place over all rankings.
    """
    single = _single(importances)
    order = _order(single[single.model.isin(models)] if models else single)
    return list(order.sort_values(["best", "near"], ascending=[True, False], kind="stable").index[:most])


def share_examples(values: np.ndarray) -> list[list[int]]:
    """Choose a patch at each of `LEVELS` for every feature, the same patch for as many as it fits.

    Parameters
    ----------
    values : ndarray of shape (n, features), float

    Returns
    -------
    list of list of int
        For each feature, a row for each level; no more than `NEAR` of the patches lie between it and the level.
    """
    reach = int(NEAR * len(values))
    wanted: list[set[int]] = []
    for column in values.T:
        order = np.argsort(column, kind="stable")
        for level in LEVELS:
            middle = round(level * (len(order) - 1))
            wanted.append({int(row) for row in order[max(0, middle - reach) : middle + reach + 1]})
    chosen: dict[int, int] = {}
    counts = Counter(row for rows in wanted for row in rows)
    while len(chosen) < len(wanted):
        # The smallest row on a tie: the same choice on every machine.
        row = max(counts, key=lambda each: (counts[each], -each))
        for number, rows in enumerate(wanted):
            if number not in chosen and row in rows:
                chosen[number] = row
                counts.subtract(rows)
    return [[chosen[start + i] for i in range(len(LEVELS))] for start in range(0, len(wanted), len(LEVELS))]


def _single(importances: pd.DataFrame) -> pd.DataFrame:
    """Rows of features that mean something one by one."""
    single = importances[importances.feature.notna() & ~importances.family.isin(TOGETHER)]
    return single[single.measure.isin(list(MEASURES))]


def _sizes(part: pd.DataFrame) -> pd.Series:
    """What features are ranked by: a drop below zero is no importance, a coefficient below zero is."""
    return part.value.where(part.measure == "permutation", part.value.abs())


def _order(single: pd.DataFrame) -> pd.DataFrame:
    """By feature: its best place in any measure of any model, and the mean of 1 / place over them."""
    place = _sizes(single).groupby([single.model, single.measure]).rank(ascending=False, method="min")
    near = (1 / place).groupby(single.feature, sort=False).mean()
    return pd.DataFrame({"best": place.groupby(single.feature, sort=False).min(), "near": near})


#: Heads of the table's columns, whether numbers carry a sign, and their decimals.
MEASURES: dict[str, tuple[str, bool, int]] = {
    "permutation": ("Drop in AUC", True, 3),
    "shap": ("Mean |SHAP|", False, 3),
    "gain": ("Gain", False, 4),
    "cover": ("Cover", False, 4),
    "coefficient": ("Coefficient", True, 3),
}
