"""How a model's answer, and the share of positives, change with one feature."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from histoblend.models.heads.head import Head
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

    A head computes only what a feature can change. On 2,248 columns that is a small part of predicting every point
    again.

    Parameters
    ----------
    head : Head
        Fitted.
    X : ndarray of shape (n, features), float

    References
    ----------
    Friedman (2001), Annals of Statistics 29:1189-1232, section 8.2.
    """

    def __init__(self, head: Head, X: np.ndarray) -> None:
        self._log_odds = logit(head.predict_proba(X)[:, 1])
        self._changes = head.log_odds_changes(X.astype(np.float32))

    def __call__(self, column: int, points: np.ndarray) -> np.ndarray:
        """Mean probability of a positive at each of the points of a column, ndarray of shape (points,), float64."""
        moved = self._changes(column, np.asarray(points, dtype=np.float32))
        return np.asarray(expit(self._log_odds + moved).mean(axis=1))


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
