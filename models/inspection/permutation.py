"""Importance on held-out slides: the drop in AUC when columns are shuffled, or left out of a refit.

Single columns and groups of them (families, themes, regions, clusters of correlated columns) are measured alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from histoblend.features.handcrafted.families import parse_column
from histoblend.models.inspection.importance import COLUMNS, PARTS, Units, group_rows
from histoblend.models.metrics import bootstrap, measure
from histoblend.models.resampling import auc_draws, check_scores, count_ranks, draw_slides, percentile_interval

Predict = Callable[[np.ndarray], np.ndarray]
Altered = Callable[[Sequence[int], np.ndarray], np.ndarray]


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
    return group_rows(units, drops.frame(), kind=kind, measure="permutation", model=model), drops


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
    return group_rows(chosen, drops.frame(), kind=kind, measure="dropped", model=model)
