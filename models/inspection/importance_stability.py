"""Stability of importances: agreement of folds or draws of slides, and of one measure with another."""

from __future__ import annotations

import numpy as np
import pandas as pd

from histoblend.models.inspection.importance import AGREEMENT, KINDS, STABILITY, Units, unit_shares


def kendall_w(ratings: np.ndarray) -> float:
    """Kendall's coefficient of concordance, ties handled: how far raters put the same items in the same order.

    Parameters
    ----------
    ratings : ndarray of shape (raters, items), float
        Two raters or more; only the order within a row counts, and equal ratings share their mean rank.

    Returns
    -------
    float
        0 where rank sums are equal, 1 where all raters agree; NaN where no rater tells any two items apart.

    Raises
    ------
    ValueError
        Fewer than two raters or items.

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
    apart = float(np.square(sums - sums.mean()).sum())
    ties = 0
    for row in ratings:
        alike = np.unique(row, return_counts=True)[1]
        ties += int((alike**3 - alike).sum())
    most = (raters**2 * (items**3 - items) - raters * ties) / 12
    return apart / most if most > 0 else float("nan")


def stability_row(
    ratings: np.ndarray, *, model: str, measure: str, level: str, over: str
) -> dict[str, str | int | float]:
    """A row of `STABILITY`: Kendall's W of `ratings` (raters, items), NaN where there are fewer than two of either."""
    raters, items = ratings.shape
    w = kendall_w(ratings) if min(raters, items) > 1 else float("nan")
    return dict(zip(STABILITY, (model, measure, level, over, raters, items, w), strict=True))


def fold_stability(folds: np.ndarray, units: Units, *, model: str, measure: str) -> list[dict[str, str | int | float]]:
    """Kendall's W over folds (folds, features): of single features by size, and of families (`units`) by share."""
    row = {"model": model, "measure": measure, "over": "folds"}
    return [
        stability_row(np.abs(folds), level="feature", **row),
        stability_row(unit_shares(folds, units), level="family", **row),
    ]


def agreement(features: pd.DataFrame, groups: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of each two measures of importance, by feature and by kind of group, for each model.

    Parameters
    ----------
    features : DataFrame
        `COLUMNS`, a row a model, measure and feature; rows that name no feature are left out.
    groups : DataFrame
        `GROUPS`.

    Returns
    -------
    DataFrame
        `AGREEMENT`, a row a model, level and pair of measures; ``level`` is "feature" or a kind of group, ``items`` how
        many both measures rank. Items that both call 0 are left out: they agree on nothing but that. Fewer than three
        items, or no order in either measure, give no row.
    """
    levels = [("feature", features[features.feature.notna()].rename(columns={"feature": "item"}))]
    levels += [(kind, groups[groups.kind == kind].rename(columns={"group": "item"})) for kind in KINDS]
    found = []
    for level, table in levels:
        for model, part in table.groupby("model", sort=False):
            wide = {name: _sizes(rows) for name, rows in part.groupby("measure", sort=False)}
            names = list(wide)
            pairs = [(first, second) for i, first in enumerate(names) for second in names[i + 1 :]]
            for first, second in pairs:
                items, correlation = _rank_correlation(wide[first], wide[second])
                if not np.isnan(correlation):
                    found.append((model, level, first, second, items, correlation))
    return pd.DataFrame(found, columns=AGREEMENT)


def _sizes(rows: pd.DataFrame) -> pd.Series:
    """Importance by item; a drop below zero is no importance, a coefficient below zero is."""
    value = rows.value.where(rows.measure.isin(["permutation", "dropped"]), rows.value.abs())
    return pd.Series(value.to_numpy(), index=rows.item.to_numpy())


def _rank_correlation(first: pd.Series, second: pd.Series) -> tuple[int, float]:
    """Items that both hold and at least one calls important, and Spearman's correlation over them."""
    pair = pd.concat([first.rename("first"), second.rename("second")], axis=1, join="inner")
    pair = pair[(pair != 0).any(axis=1)]
    if len(pair) < 3 or (pair.nunique() < 2).any():
        return len(pair), float("nan")
    ranks = pair.rank()
    return len(pair), float(ranks["first"].corr(ranks["second"]))
