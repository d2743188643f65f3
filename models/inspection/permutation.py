"""What models rely on: permutation on held-out slides, refits without a part, and what fitted heads say themselves.

Single columns and groups of them (families, themes, regions, clusters of correlated columns) are measured alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from histoblend.features.handcrafted.families import parse_column
from histoblend.models.metrics import bootstrap, measure
from histoblend.models.resampling import auc_draws, check_scores, count_ranks, draw_slides, percentile_interval

#: Measures that are taken of a whole family at once: those of its columns do not add up to it.
JOINT = ("permutation", "shap")

PARTS = ("family", "statistic", "channel", "region")
COLUMNS = ["model", "measure", "feature", *PARTS, "value", "spread", "low", "high"]
GROUPS = ["model", "measure", "kind", "group", "columns", "value", "spread", "low", "high"]
STABILITY = ["model", "measure", "level", "over", "raters", "items", "w"]
AGREEMENT = ["model", "level", "first", "second", "items", "correlation"]

#: Kinds of groups, from coarse to fine. Halves are what two sets of columns were put together from.
KINDS = ("half", "theme", "region", "family", "cluster")

Predict = Callable[[np.ndarray], np.ndarray]
Altered = Callable[[Sequence[int], np.ndarray], np.ndarray]
Units = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class GroupView:
    """Importance of groups of columns, and how far it can be believed.

    Attributes
    ----------
    groups : DataFrame
        `GROUPS`, a row a model, measure and group. ``permutation`` and ``dropped`` (left out and refitted) are drops in
        AUC on held-out slides; ``gain``, ``cover`` and ``coefficient`` are shares of the model's whole.
    clusters : DataFrame
        ``group`` (the leading member), ``columns`` (how many), ``members`` (joined by spaces), ``closeness`` (smallest
        rank correlation of a member with the leader), a row a cluster of two columns or more.
    stability : DataFrame
        `STABILITY`: Kendall's W over folds or over draws of slides.
    rho : float
        Mean |rank correlation| at which clusters were cut.
    clustered_on : int
        Training patches that correlations were taken over.
    """

    groups: pd.DataFrame
    clusters: pd.DataFrame
    stability: pd.DataFrame
    rho: float
    clustered_on: int


@dataclass(frozen=True)
class Drops:
    """AUC lost on held-out slides, a column a unit that was shuffled or left out.

    Attributes
    ----------
    values : ndarray of shape (repeats, units), float64
    drawn : ndarray of shape (draws, units), float64
        Mean over the repeats, in resampled slides; units share the draws.
    """

    values: np.ndarray
    drawn: np.ndarray

    def frame(self) -> pd.DataFrame:
        """``value, spread, low, high`` of each unit: mean and spread over repeats, 95 % interval over slides."""
        low, high = percentile_interval(self.drawn)
        spread = self.values.std(axis=0, ddof=1) if len(self.values) > 1 else np.nan
        return pd.DataFrame({"value": self.values.mean(axis=0), "spread": spread, "low": low, "high": high})


def fitted_importance(
    values: np.ndarray, columns: Sequence[str], *, measure: str, model: str = "", folds: np.ndarray | None = None
) -> pd.DataFrame:
    """Put what a fitted model says of its own columns into the tidy form.

    Parameters
    ----------
    values : ndarray of shape (features,)
        Of the model that is used: shares of gain or cover, or coefficients in units of one standard deviation.
    columns : sequence of str
        Names, ``family_statistic_channel_region``.
    measure : {"gain", "cover", "coefficient"}
    model : str
    folds : ndarray of shape (folds, features), optional
        The same of fits that each left a fold out; their standard deviation is the spread.

    Returns
    -------
    DataFrame
        `COLUMNS`, a row a feature, in the order of `columns`; ``low`` and ``high`` are missing.

    Raises
    ------
    ValueError
        As many values as columns are expected.
    """
    value = np.asarray(values, dtype=np.float64)
    several = value[None] if folds is None else np.asarray(folds, dtype=np.float64)
    if value.shape != (len(columns),) or several.ndim != 2 or several.shape[1] != len(columns):
        shapes = f"{np.shape(values)}" + ("" if folds is None else f" and {np.shape(folds)}")
        raise ValueError(f"values must hold {len(columns)} columns; got shape {shapes}.")
    rows = pd.DataFrame([parse_column(name) for name in columns], columns=list(PARTS))
    rows = rows.assign(model=model, measure=measure, feature=list(columns), value=value, low=np.nan, high=np.nan)
    rows["spread"] = several.std(axis=0, ddof=1) if len(several) > 1 else np.nan
    return rows[COLUMNS]


def permutation_drops(
    predict: Predict,
    X: np.ndarray,
    y: np.ndarray,
    units: Sequence[Sequence[int]],
    groups: np.ndarray,
    *,
    repeats: int = 5,
    seed: int = 0,
    draws: int = 1000,
    max_rows: int | None = 5000,
    altered: Callable[[np.ndarray], Altered] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Drops:
    """Drop in AUC on held-out slides when the columns of a unit are shuffled between patches, together.

    Every unit is shuffled by the same permutations, and all intervals share the draws of slides, so that units compare
    without extra noise.

    Parameters
    ----------
    predict : callable
        Takes (n, features) and returns the probability of a positive, (n,).
    X : ndarray of shape (n, features), float
        Patches of slides that the model has never seen. It is copied once and left as it was.
    y : ndarray of shape (n,), 0 or 1
    units : sequence of sequences of int
        Places of the columns that are shuffled together.
    groups : ndarray of shape (n,), int
        Slides, from :func:`models.resampling.slide_groups`.
    repeats : int
        Shuffles per unit.
    seed : int
    draws : int
        Draws of slides for the interval of the mean drop.
    max_rows : int or None
        More patches than this are thinned at random, to bound the time; None keeps all.
    altered : callable, optional
        Quicker than `predict` where few columns change: takes the table and gives what scores it with some columns
        replaced, such as :meth:`models.heads.head.Head.with_replaced` does.
    progress : callable, optional
        Called with 1 after each unit.

    Returns
    -------
    Drops

    Raises
    ------
    ValueError
        Shapes do not agree, or `y` holds one class.
    InputError
        Too few slides for an interval.

    References
    ----------
    Breiman (2001), Machine Learning 45:5-32, section 10. Fisher, Rudin & Dominici (2019), JMLR 20(177).
    """
    if X.ndim != 2 or len(X) != len(y) or len(groups) != len(y):
        raise ValueError(f"X (n, features), y (n,) and groups (n,) must agree; got {X.shape}, {len(y)}, {len(groups)}.")
    rng = np.random.default_rng(seed)
    rows = np.arange(len(y))
    if max_rows is not None and len(y) > max_rows:
        rows = np.sort(rng.choice(len(y), max_rows, replace=False))
    table, labels = np.array(X[rows]), np.asarray(y)[rows]
    slides = np.unique(groups[rows], return_inverse=True)[1].astype(np.int32)
    orders = [rng.permutation(len(rows)) for _ in range(repeats)]
    score = _by_predicting(predict, table) if altered is None else altered(table)
    judge = _judge(labels, slides, draws, seed)
    whole, whole_drawn = judge(score([], table[:, :0]))
    values, drawn = [], []
    for members in units:
        kept = table[:, list(members)]
        found = [judge(score(list(members), kept[order])) for order in orders]
        values.append([whole - point for point, _ in found])
        drawn.append(np.mean([whole_drawn - point_drawn for _, point_drawn in found], axis=0))
        if progress is not None:
            progress(1)
    return Drops(np.array(values).T, np.stack(drawn, axis=1))


def _judge(
    labels: np.ndarray, slides: np.ndarray, draws: int, seed: int
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """What gives the AUC of scores, on all patches and in draws of slides; these are drawn once for all scores."""
    # Refuses labels of one class, and slides that are too few for an interval.
    measure(labels, labels, 0.5)
    bootstrap(labels, labels, 0.5, slides, draws=draws, seed=seed)
    counts = np.concatenate(list(draw_slides(int(slides.max()) + 1, draws, seed)))
    everything = np.ones((1, counts.shape[1]), np.int32)

    def judge(scores: np.ndarray) -> tuple[float, np.ndarray]:
        checked, column = check_scores(labels, scores)
        ranking = count_ranks(checked, column[:, 0], slides)
        drawn = ranking(counts)
        return float(ranking(everything)[0]), drawn[~np.isnan(drawn)]

    return judge


def _by_predicting(predict: Predict, table: np.ndarray) -> Altered:
    """Score the table with columns replaced by predicting it; it is changed in place and put back."""

    def score(places: Sequence[int], values: np.ndarray) -> np.ndarray:
        kept = table[:, list(places)]
        table[:, list(places)] = values
        try:
            return np.array(predict(table))  # a copy: it may be a view of what is about to be put back
        finally:
            table[:, list(places)] = kept

    return score


def permutation_importance(
    predict: Predict,
    X: np.ndarray,
    y: np.ndarray,
    columns: Sequence[str],
    groups: np.ndarray,
    *,
    model: str = "",
    **options: Any,
) -> pd.DataFrame:
    """Drop in AUC on held-out slides when single columns are shuffled between patches.

    Shuffling one of several correlated columns shows little, since the others stand in for it: see
    :func:`group_permutation` for what the model would lose with all of them.

    Parameters
    ----------
    predict, X, y, groups, **options
        As for :func:`permutation_drops`.
    columns : sequence of str
        Names of X's columns, ``family_statistic_channel_region``.
    model : str
        Goes into the table.

    Returns
    -------
    DataFrame
        `COLUMNS`, a row a column: ``value`` the mean drop over shuffles, ``spread`` their standard deviation, ``low``
        and ``high`` the 95 % interval of the mean drop from resampling slides.

    Raises
    ------
    ValueError
        Shapes do not agree, or `y` holds one class.
    InputError
        Too few slides for an interval.
    """
    if X.shape != (len(y), len(columns)):
        raise ValueError(f"X must have shape {(len(y), len(columns))}; got {X.shape}.")
    units = [[place] for place in range(len(columns))]
    drops = permutation_drops(predict, X, y, units, groups, **options).frame()
    rows = pd.DataFrame([parse_column(name) for name in columns], columns=list(PARTS))
    rows = rows.assign(model=model, measure="permutation", feature=list(columns))
    return pd.concat([rows, drops], axis=1)[COLUMNS]


def group_permutation(
    predict: Predict,
    X: np.ndarray,
    y: np.ndarray,
    units: Units,
    groups: np.ndarray,
    *,
    kind: str,
    model: str = "",
    **options: Any,
) -> tuple[pd.DataFrame, Drops]:
    """Drop in AUC on held-out slides when the columns of a group are shuffled between patches, together.

    Parameters
    ----------
    predict, X, y, groups, **options
        As for :func:`permutation_drops`.
    units : mapping from str to sequence of int
        Groups: name to places of its columns.
    kind : str
        One of `KINDS`; goes into the table, as does `model`.

    Returns
    -------
    table : DataFrame
        `GROUPS`, a row a group.
    drops : Drops
        The same in every draw of slides.
    """
    drops = permutation_drops(predict, X, y, list(units.values()), groups, **options)
    return _group_rows(units, drops.frame(), kind=kind, measure="permutation", model=model), drops


def dropped_importance(
    y: np.ndarray,
    full: np.ndarray,
    without: Mapping[str, np.ndarray],
    units: Units,
    groups: np.ndarray,
    *,
    kind: str,
    model: str = "",
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Drop in AUC on held-out slides when a group of columns is left out and the model is fitted again.

    What other columns can stand in for costs nothing here, however much the model leaned on it.

    Parameters
    ----------
    y : ndarray of shape (n,), 0 or 1
    full : ndarray of shape (n,), float
        Scores of the model with all columns.
    without : mapping from str to ndarray of shape (n,)
        Group to the scores of the model that was fitted without it.
    units : mapping from str to sequence of int
        Group to places of its columns.
    groups : ndarray of shape (n,), int
        Slides, from :func:`models.resampling.slide_groups`.
    kind, model : str
        Go into the table.
    draws, seed : int
        Of slides, for the interval of the paired difference.

    Returns
    -------
    DataFrame
        `GROUPS`, a row a group of `without`.

    References
    ----------
    Lei, G'Sell, Rinaldo, Tibshirani & Wasserman (2018), JASA 113(523):1094-1111, section 6 (leaving columns out).
    """
    names = list(without)
    scores = np.column_stack([full, *without.values()])
    auc = measure(y, scores, 0.5)[:, 0]
    drawn = auc_draws(y, scores, groups, draws=draws, seed=seed)
    drops = Drops((auc[:1] - auc[1:])[None], drawn[:, :1] - drawn[:, 1:])
    chosen = {name: units[name] for name in names}
    return _group_rows(chosen, drops.frame(), kind=kind, measure="dropped", model=model)


def fitted_groups(
    values: np.ndarray, folds: np.ndarray, units: Units, *, kind: str, measure: str, model: str = ""
) -> pd.DataFrame:
    """Share of each group in what a fitted model says of its columns.

    Parameters
    ----------
    values : ndarray of shape (features,)
        Of the model that is used; coefficients count by size.
    folds : ndarray of shape (folds, features)
        The same of fits that each left a fold out.
    units : mapping from str to sequence of int
        Group to places of its columns.
    kind, measure, model : str
        Go into the table.

    Returns
    -------
    DataFrame
        `GROUPS`; ``value`` is the group's share of the sum over all columns, ``spread`` the standard deviation of that
        share over the folds.
    """
    shares = _shares(np.vstack([values, folds]), units)
    spread = shares[1:].std(axis=0, ddof=1) if len(shares) > 2 else np.nan
    rows = pd.DataFrame({"value": shares[0], "spread": spread, "low": np.nan, "high": np.nan})
    return _group_rows(units, rows, kind=kind, measure=measure, model=model)


def sum_by_family(importances: pd.DataFrame) -> pd.DataFrame:
    """Collect the importances of whole families.

    Parameters
    ----------
    importances : DataFrame
        Tidy, any models and measures.

    Returns
    -------
    DataFrame
        ``model, measure, family, value, spread, low, high, features``: gain summed; coefficients summed by size; for
        `JOINT` the families that were shuffled, or whose shares were added up, together (single columns' values do not
        add up to that, and are left out).
    """
    single = importances.feature.notna()
    fitted = importances[single & ~importances.measure.isin(JOINT)]
    sums = fitted.assign(value=fitted.value.abs()).groupby(["model", "measure", "family"], sort=False, as_index=False)
    summed = sums.agg(value=("value", "sum"), features=("feature", "size"))
    joint = importances[~single & importances.family.notna() & importances.region.isna()]
    joint = joint.drop_duplicates(["model", "measure", "family"])
    sizes = importances[single].drop_duplicates(["model", "feature"]).groupby(["model", "family"]).size()
    joint = joint.assign(features=[sizes.get(key, np.nan) for key in zip(joint.model, joint.family, strict=True)])
    names = ["model", "measure", "family", "value", "spread", "low", "high", "features"]
    return pd.concat([summed.reindex(columns=names), joint[names]], ignore_index=True)


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
        stability_row(_shares(folds, units), level="family", **row),
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


def _shares(values: np.ndarray, units: Units) -> np.ndarray:
    """Share of each unit in the sizes of a row, (rows, features) to (rows, units); 0 where a row is 0 throughout."""
    sizes = np.abs(values)
    sums = np.column_stack([sizes[:, list(places)].sum(axis=1) for places in units.values()])
    total = sizes.sum(axis=1, keepdims=True)
    return sums / np.where(total > 0, total, 1)


def _group_rows(units: Units, rows: pd.DataFrame, *, kind: str, measure: str, model: str) -> pd.DataFrame:
    sizes = [len(places) for places in units.values()]
    return rows.assign(model=model, measure=measure, kind=kind, group=list(units), columns=sizes)[GROUPS]
