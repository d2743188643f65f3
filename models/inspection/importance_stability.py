"""Stability of importances: agreement between folds, between draws of slides, and between measures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from histoblend.models.inspection.importance import AGREEMENT, KINDS, STABILITY, Units, unit_shares


def kendall_w(ratings: np.ndarray) -> float:
    """Kendall's coefficient of concordance, corrected for ties: how far raters rank items in the same order.

    Parameters
    ----------
    ratings : ndarray of shape (raters, items), float
        Two or more raters. Only the order within a row counts, and equal ratings share their mean rank.

    Returns
    -------
    float
        0 if rank sums are equal, 1 if all raters agree; NaN if every rater rates all items the same.

    Raises
    ------
    ValueError
        There are fewer than two raters or items.

    References
    ----------
    Kendall & Babington Smith (1939), Ann Math Stat 10(3):275-287. Siegel (1956), Nonparametric Statistics, chapter 9.
    """
    from scipy.stats import rankdata

    ratings = np.asarray(ratings, dtype=np.float64)
    if ratings.ndim != 2 or min(ratings.shape) < 2:
        raise ValueError(f"ratings must have shape (2 or more raters, 2 or more items); got {ratings.shape}.")
    raters, items = ratings.shape
    sums = rankdata(ratings, axis=1).sum(axis=0)
    deviation = float(np.square(sums - sums.mean()).sum())
    ties = 0
    for row in ratings:
        tied = np.unique(row, return_counts=True)[1]
        ties += int((tied**3 - tied).sum())
    largest = (raters**2 * (items**3 - items) - raters * ties) / 12
    return deviation / largest if largest > 0 else float("nan")


def stability_row(
    ratings: np.ndarray, *, model: str, measure: str, level: str, over: str
) -> dict[str, str | int | float]:
    """A row of `STABILITY`: Kendall's W of `ratings` (raters, items), NaN if there are fewer than two of either."""
    raters, items = ratings.shape
    w = kendall_w(ratings) if min(raters, items) > 1 else float("nan")
    return dict(zip(STABILITY, (model, measure, level, over, raters, items, w), strict=True))


def fold_stability(folds: np.ndarray, units: Units, *, model: str, measure: str) -> list[dict[str, str | int | float]]:
    """Kendall's W over `folds` (folds, features): of features by absolute value, and of families (`units`) by share."""
    row = {"model": model, "measure": measure, "over": "folds"}
    return [
        stability_row(np.abs(folds), level="feature", **row),
        stability_row(unit_shares(folds, units), level="family", **row),
    ]


def agreement(features: pd.DataFrame, groups: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation between every pair of importance measures, for each model, by feature and by kind of group.

    Parameters
    ----------
    features : DataFrame
        `COLUMNS`, one row per model, measure and feature. Rows without a feature are ignored.
    groups : DataFrame
        `GROUPS`.

    Returns
    -------
    DataFrame
        `AGREEMENT`, one row per model, level and pair of measures. ``level`` is "feature" or a kind of group. ``items``
        is the number that both measures rank. Items that are 0 in both measures are left out, as they would inflate
        the correlation. There is no row for fewer than three items, or if a measure is constant.
    """
    levels = [("feature", features[features.feature.notna()].rename(columns={"feature": "item"}))]
    levels += [(kind, groups[groups.kind == kind].rename(columns={"group": "item"})) for kind in KINDS]
    rows = []
    for level, table in levels:
        for model, part in table.groupby("model", sort=False):
            wide = {name: _sizes(values) for name, values in part.groupby("measure", sort=False)}
            names = list(wide)
            pairs = [(first, second) for i, first in enumerate(names) for second in names[i + 1 :]]
            for first, second in pairs:
                items, correlation = _rank_correlation(wide[first], wide[second])
                if not np.isnan(correlation):
                    rows.append((model, level, first, second, items, correlation))
    return pd.DataFrame(rows, columns=AGREEMENT)


def _sizes(rows: pd.DataFrame) -> pd.Series:
    """Importance by item. Coefficients count by absolute value; a negative drop in AUC stays negative."""
    value = rows.value.where(rows.measure.isin(["permutation", "dropped"]), rows.value.abs())
    return pd.Series(value.to_numpy(), index=rows.item.to_numpy())


def _rank_correlation(first: pd.Series, second: pd.Series) -> tuple[int, float]:
    """Number of items in both series that are not 0 in both, and Spearman's correlation over them."""
    pair = pd.concat([first.rename("first"), second.rename("second")], axis=1, join="inner")
    pair = pair[(pair != 0).any(axis=1)]
    if len(pair) < 3 or (pair.nunique() < 2).any():
        return len(pair), float("nan")
    ranks = pair.rank()
    return len(pair), float(ranks["first"].corr(ranks["second"]))
