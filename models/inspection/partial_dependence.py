"""How a model's answer, and the share of positives, change with one feature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from histoblend.models.heads import LogisticHead, XGBoostHead
from histoblend.models.resampling import draw_slides, percentile_interval

#: Shares of the patches below a point of the curve.
LEVELS = (0.01, 0.05, *np.linspace(0.1, 0.9, 9).round(1), 0.95, 0.99)

#: Bins of equal numbers of patches that shares of positives are taken in.
BINS = 10


def grid(values: np.ndarray) -> np.ndarray:
    """Points that a feature's curve is drawn through: its quantiles, rising, each once; values that do occur."""
    return np.unique(np.quantile(values, LEVELS, method="inverted_cdf"))


class PartialDependence:
    """Mean prediction over patches when one feature is set to a value in all of them.

    What a feature cannot change is computed once: of trees, only those that split on it are walked anew, and a linear
    model moves by its coefficient. On 2,248 columns that is a small part of predicting every point anew.

    Parameters
    ----------
    head : LogisticHead or XGBoostHead
        Fitted.
    X : ndarray of shape (n, features), float

    References
    ----------
    Friedman (2001), Annals of Statistics 29:1189-1232, section 8.2.
    """

    def __init__(self, head: LogisticHead | XGBoostHead, X: np.ndarray) -> None:
        self._head, self._X = head, X.astype(np.float32)
        self._log_odds = logit(head.predict_proba(X)[:, 1])
        boosters = () if isinstance(head, LogisticHead) else zip(head.columns_, head.boosters_, strict=True)
        self._trees = [(chosen, _Trees(booster, self._X[:, chosen])) for chosen, booster in boosters]

    def __call__(self, column: int, points: np.ndarray) -> np.ndarray:
        """Mean probability of a positive at each of the points of a column, ndarray of shape (points,), float64."""
        points = np.asarray(points, dtype=np.float32)
        moved = np.zeros((len(points), len(self._X)))
        if isinstance(self._head, LogisticHead):
            moved += (self._head.coef_[0] / self._head.scale_)[column] * (points[:, None] - self._X[:, column])
        for chosen, trees in self._trees:
            place = int(np.searchsorted(chosen, column))
            if place < len(chosen) and chosen[place] == column:
                moved += trees.moved(place, points) / len(self._trees)
        return np.asarray(expit(self._log_odds + moved).mean(axis=1))


class _Trees:
    """The nodes of a booster side by side, and the patches, of shape (n, features), float32, that walk them."""

    def __init__(self, booster: Any, X: np.ndarray) -> None:
        self._X = X
        nodes = booster.trees_to_dataframe()
        place = pd.Series(np.arange(len(nodes)), index=nodes["ID"].to_numpy())
        self._leaf = (nodes["Feature"] == "Leaf").to_numpy()
        self._feature = np.where(self._leaf, 0, nodes["Feature"].str[1:].where(~self._leaf, "0")).astype(int)
        self._split = nodes["Split"].fillna(0).to_numpy(dtype=np.float32)
        # A leaf leads to itself, so that all paths have one length.
        here = np.arange(len(nodes))
        self._yes, self._no = (
            np.where(self._leaf, here, place.reindex(nodes[side]).fillna(0)).astype(int) for side in ("Yes", "No")
        )
        self._value = np.where(self._leaf, nodes["Gain"], 0.0)
        self._tree = nodes["Tree"].to_numpy()
        self._roots = np.flatnonzero(nodes["Node"] == 0)

    def moved(self, column: int, points: np.ndarray) -> np.ndarray:
        """Change of log odds when a column takes each of the points, ndarray of shape (points, n)."""
        trees = np.unique(self._tree[(self._feature == column) & ~self._leaf])
        # Columns that these trees look at, and no others: the rest would only be copied.
        used = np.unique(self._feature[np.isin(self._tree, trees) & ~self._leaf])
        if not len(used):
            return np.zeros((len(points), len(self._X)))
        now = self._X[:, used]
        changed = np.tile(now, (len(points), 1))
        changed[:, np.searchsorted(used, column)] = np.repeat(points, len(now))
        before, after = (self._walk(table, used, self._roots[trees]) for table in (now, changed))
        return after.reshape(len(points), len(now)) - before

    def _walk(self, table: np.ndarray, used: np.ndarray, roots: np.ndarray) -> np.ndarray:
        """Sum of the leaves that each row ends in, ndarray of shape (n,); `table` holds the used columns."""
        look = np.searchsorted(used, self._feature).clip(max=len(used) - 1)
        rows = np.arange(len(table))[:, None]
        node = np.broadcast_to(roots, (len(table), len(roots)))
        while not self._leaf[node].all():
            left = table[rows, look[node]] < self._split[node]
            node = np.where(left, self._yes[node], self._no[node])
        return np.asarray(self._value[node].sum(axis=1))


def positive_shares(
    values: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, draws: int = 1000, seed: int = 0
) -> list[pd.DataFrame]:
    """Share of positives in tenths of the patches, by each of several features.

    Parameters
    ----------
    values : ndarray of shape (n, k), float
        Features. Equal values are never parted, so a feature of few values has fewer bins.
    labels : ndarray of shape (n,), 0 or 1
    groups : ndarray of shape (n,), int
        Slides, from :func:`models.resampling.slide_groups`.
    draws, seed : int
        Draws of slides, the same for all bins and features.

    Returns
    -------
    list of DataFrame
        For each feature ``value`` (mean over the bin), ``patches, slides, share``, and ``low`` and ``high``, the 95 %
        interval from resampling slides, over the draws that hold a patch of the bin; missing where one slide has all.
    """
    labels = np.asarray(labels)
    units = int(groups.max()) + 1
    bins = [_bins(column) for column in np.asarray(values, dtype=np.float64).T]
    # Patches and positives of each slide in each bin, all features side by side: one product a draw.
    counts, positives = [], []
    for place in bins:
        size = int(place.max()) + 1
        flat = groups * size + place
        counts.append(np.bincount(flat, minlength=units * size).reshape(units, size))
        positives.append(np.bincount(flat, weights=labels, minlength=units * size).reshape(units, size))
    both = np.concatenate([*counts, *positives], axis=1).astype(np.float64)
    drawn = np.concatenate([chunk @ both for chunk in draw_slides(units, draws, seed)])
    total, hits = np.split(drawn, 2, axis=1)
    tables, start = [], 0
    for column, place, count, positive in zip(values.T, bins, counts, positives, strict=True):
        stop = start + count.shape[1]
        sizes = count.sum(axis=0)
        slides = (count > 0).sum(axis=0)
        low, high = _interval(hits[:, start:stop], total[:, start:stop], slides)
        mean = np.bincount(place, weights=column) / sizes
        share = positive.sum(axis=0) / sizes
        found = {"value": mean, "patches": sizes, "slides": slides, "share": share}
        tables.append(pd.DataFrame({**found, "low": low, "high": high}))
        start = stop
    return tables


def _bins(values: np.ndarray) -> np.ndarray:
    """Number of each value's bin, without gaps."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
    return np.unique(np.searchsorted(edges, values, side="left"), return_inverse=True)[1].astype(np.int64)


def _interval(hits: np.ndarray, total: np.ndarray, slides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of hits / total in each bin of two slides or more."""
    low, high = np.full(total.shape[1], np.nan), np.full(total.shape[1], np.nan)
    for place in np.flatnonzero(slides > 1):
        present = total[:, place] > 0
        low[place], high[place] = percentile_interval(hits[present, place] / total[present, place])
    return low, high
