"""Importance on held-out slides: the drop in AUC when columns are shuffled, or left out of a refit.

Both single columns and groups (families, themes, regions, clusters of correlated columns) can be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from histoblend.data.storage.arrays import Rows
from histoblend.features.handcrafted.families import parse_column
from histoblend.models.inspection.importance import COLUMNS, PARTS, Units, group_rows
from histoblend.models.metrics import bootstrap, measure
from histoblend.models.resampling import auc_draws, auc_of_draws, check_scores, draw_slides, percentile_interval

Predict = Callable[[np.ndarray], np.ndarray]
ReplacementScorer = Callable[[Sequence[int], np.ndarray], np.ndarray]


@dataclass(frozen=True)
class AucDrops:
    """AUC lost on held-out slides, one column per unit. A unit is a set of columns that was shuffled or left out.

    Attributes
    ----------
    values : ndarray of shape (repeats, units), float64
    drawn : ndarray of shape (draws, units), float64
        Mean over the repeats for each draw of slides. All units share the draws.
    """

    values: np.ndarray
    drawn: np.ndarray

    def frame(self) -> pd.DataFrame:
        """``value, spread, low, high`` of each unit: mean and standard deviation over repeats, 95 % interval."""
        low, high = percentile_interval(self.drawn)
        spread = self.values.std(axis=0, ddof=1) if len(self.values) > 1 else np.nan
        return pd.DataFrame({"value": self.values.mean(axis=0), "spread": spread, "low": low, "high": high})


def permutation_drops(
    predict: Predict,
    X: Rows,
    y: np.ndarray,
    units: Sequence[Sequence[int]],
    groups: np.ndarray,
    *,
    repeats: int = 5,
    seed: int = 0,
    draws: int = 1000,
    max_rows: int | None = 5000,
    make_scorer: Callable[[np.ndarray], ReplacementScorer] | None = None,
    progress: Callable[[int], None] | None = None,
) -> AucDrops:
    """Drop in AUC on held-out slides when all columns of a unit are shuffled between patches.

    Every unit is shuffled by the same permutations, and all intervals share the draws of slides. This makes units
    comparable without extra noise.

    Parameters
    ----------
    predict : callable
        Takes (n, features) and returns the probability of the positive class, (n,).
    X : Rows of shape (n, features), float
        Patches of held-out slides. Only the rows used are read; they are copied and not modified.
    y : ndarray of shape (n,), 0 or 1
    units : sequence of sequences of int
        Indices of the columns that are shuffled together.
    groups : ndarray of shape (n,), int
        Slides, from :func:`models.resampling.slide_groups`.
    repeats : int
        Shuffles per unit.
    seed : int
    draws : int
        Draws of slides for the interval of the mean drop.
    max_rows : int or None
        Most patches to use, to limit the run time; they are drawn at random. None uses all.
    make_scorer : callable, optional
        Faster alternative to `predict` for changes in few columns, such as
        :meth:`models.heads.head.Head.with_replaced`. It takes the table and returns a function that scores the table
        with some columns replaced.
    progress : callable, optional
        Called with 1 after each unit.

    Returns
    -------
    AucDrops

    Raises
    ------
    ValueError
        The shapes do not agree, or `y` has one class only.
    InputError
        There are too few slides for an interval.

    References
    ----------
    Breiman (2001), Machine Learning 45:5-32, section 10. Fisher, Rudin & Dominici (2019), JMLR 20(177).
    """
    if len(X.shape) != 2 or len(X) != len(y) or len(groups) != len(y):
        raise ValueError(f"X (n, features), y (n,) and groups (n,) must agree; got {X.shape}, {len(y)}, {len(groups)}.")
    rng = np.random.default_rng(seed)
    rows = np.arange(len(y))
    if max_rows is not None and len(y) > max_rows:
        rows = np.sort(rng.choice(len(y), max_rows, replace=False))
    table, labels = np.array(X[rows]), np.asarray(y)[rows]
    slides = np.unique(groups[rows], return_inverse=True)[1].astype(np.int32)
    orders = [rng.permutation(len(rows)) for _ in range(repeats)]
    scorer = _slow_scorer(predict, table) if make_scorer is None else make_scorer(table)
    auc = _auc_function(labels, slides, draws, seed)
    full, full_drawn = auc(scorer([], table[:, :0]))
    values, drop_draws = [], []
    for members in units:
        original = table[:, list(members)]
        results = [auc(scorer(list(members), original[order])) for order in orders]
        values.append([full - point for point, _ in results])
        drop_draws.append(np.mean([full_drawn - point_drawn for _, point_drawn in results], axis=0))
        if progress is not None:
            progress(1)
    return AucDrops(np.array(values).T, np.stack(drop_draws, axis=1))


def _auc_function(
    labels: np.ndarray, slides: np.ndarray, draws: int, seed: int
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """Make a function that returns the AUC of scores, on all patches and in draws of slides.

    The slides are drawn once, so that all scores share the draws.
    """
    # Both calls only check: labels of one class, or too few slides for an interval, are refused.
    measure(labels, labels, 0.5)
    bootstrap(labels, labels, 0.5, slides, draws=draws, seed=seed)
    counts = np.concatenate(list(draw_slides(int(slides.max()) + 1, draws, seed)))
    everything = np.ones((1, counts.shape[1]), np.int32)

    def auc(scores: np.ndarray) -> tuple[float, np.ndarray]:
        checked, column = check_scores(labels, scores)
        ranking = auc_of_draws(checked, column[:, 0], slides)
        drawn = ranking(counts)
        return float(ranking(everything)[0]), drawn[~np.isnan(drawn)]

    return auc


def _slow_scorer(predict: Predict, table: np.ndarray) -> ReplacementScorer:
    """Score the table with replaced columns by a full prediction. The table is changed in place and restored."""

    def score(columns: Sequence[int], values: np.ndarray) -> np.ndarray:
        original = table[:, list(columns)]
        table[:, list(columns)] = values
        try:
            return np.array(predict(table))  # a copy: the prediction may be a view of the table
        finally:
            table[:, list(columns)] = original

    return score


def permutation_importance(
    predict: Predict,
    X: Rows,
    y: np.ndarray,
    columns: Sequence[str],
    groups: np.ndarray,
    *,
    model: str = "",
    **options: Any,
) -> pd.DataFrame:
    """Drop in AUC on held-out slides when single columns are shuffled between patches.

    Shuffling one of several correlated columns has little effect, because the others carry the same information. Use
    :func:`group_permutation` to measure all of them together.

    Parameters
    ----------
    predict, X, y, groups, **options
        As for :func:`permutation_drops`.
    columns : sequence of str
        Names of X's columns, ``family_statistic_channel_region``.
    model : str
        Written into the table.

    Returns
    -------
    DataFrame
        `COLUMNS`, one row per column: ``value`` the mean drop over shuffles, ``spread`` the standard deviation over
        shuffles, ``low`` and ``high`` the 95 % interval of the mean drop from resampling slides.

    Raises
    ------
    ValueError
        The shapes do not agree, or `y` has one class only.
    InputError
        There are too few slides for an interval.
    """
    if X.shape != (len(y), len(columns)):
        raise ValueError(f"X must have shape {(len(y), len(columns))}; got {X.shape}.")
    units = [[column] for column in range(len(columns))]
    drops = permutation_drops(predict, X, y, units, groups, **options).frame()
    rows = pd.DataFrame([parse_column(name) for name in columns], columns=list(PARTS))
    rows = rows.assign(model=model, measure="permutation", feature=list(columns))
    return pd.concat([rows, drops], axis=1)[COLUMNS]


def group_permutation(
    predict: Predict,
    X: Rows,
    y: np.ndarray,
    units: Units,
    groups: np.ndarray,
    *,
    kind: str,
    model: str = "",
    **options: Any,
) -> tuple[pd.DataFrame, AucDrops]:
    """Drop in AUC on held-out slides when all columns of a group are shuffled between patches.

    Parameters
    ----------
    predict, X, y, groups, **options
        As for :func:`permutation_drops`.
    units : mapping from str to sequence of int
        Group to the indices of its columns.
    kind : str
        One of `KINDS`. It is written into the table, as is `model`.

    Returns
    -------
    table : DataFrame
        `GROUPS`, one row per group.
    drops : AucDrops
        The drops in every draw of slides.
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
    """Drop in AUC on held-out slides when the model is refitted without a group of columns.

    The drop is small if other columns carry the same information, even if the full model relied on the group.

    Parameters
    ----------
    y : ndarray of shape (n,), 0 or 1
    full : ndarray of shape (n,), float
        Scores of the model with all columns.
    without : mapping from str to ndarray of shape (n,)
        Group to the scores of the model that was fitted without it.
    units : mapping from str to sequence of int
        Group to the indices of its columns.
    groups : ndarray of shape (n,), int
        Slides, from :func:`models.resampling.slide_groups`.
    kind, model : str
        Written into the table.
    draws, seed : int
        Draws of slides for the interval of the paired difference.

    Returns
    -------
    DataFrame
        `GROUPS`, one row per group in `without`.

    References
    ----------
    Lei, G'Sell, Rinaldo, Tibshirani & Wasserman (2018), JASA 113(523):1094-1111, section 6 (leaving columns out).
    """
    names = list(without)
    scores = np.column_stack([full, *without.values()])
    auc = measure(y, scores, 0.5)[:, 0]
    resampled = auc_draws(y, scores, groups, draws=draws, seed=seed)
    drops = AucDrops((auc[:1] - auc[1:])[None], resampled[:, :1] - resampled[:, 1:])
    chosen = {name: units[name] for name in names}
    return group_rows(chosen, drops.frame(), kind=kind, measure="dropped", model=model)
