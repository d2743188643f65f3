"""How a model's prediction and the share of positives change with one feature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from histoblend.models.heads.head import Head
from histoblend.models.resampling import draw_slides, percentile_interval

#: Quantiles at which a curve is computed.
LEVELS = (0.01, 0.05, *np.linspace(0.1, 0.9, 9).round(1), 0.95, 0.99)

#: Number of bins, of equally many patches, for the shares of positives.
BINS = 10


def grid(values: np.ndarray) -> np.ndarray:
    """Return the points at which a feature's curve is computed: distinct quantiles, rising, each an actual value."""
    return np.unique(np.quantile(values, LEVELS, method="inverted_cdf"))


def partial_dependence(head: Head, X: np.ndarray) -> Callable[[int, np.ndarray], np.ndarray]:
    """Prepare the mean prediction over patches when one feature has the same value in all of them.

    Only what a feature can change is computed again, which is little of a table with thousands of columns.

    Parameters
    ----------
    head : Head
        Fitted.
    X : ndarray of shape (n, features), float

    Returns
    -------
    callable
        (column, values of shape (k,)) to the mean probability of a positive, ndarray of shape (k,), float64.

    References
    ----------
    Friedman (2001), Annals of Statistics 29:1189-1232, section 8.2.
    """
    X = X.astype(np.float32)
    score = head.with_replaced(X)

    def curve(column: int, values: np.ndarray) -> np.ndarray:
        return np.array([score([column], np.full((len(X), 1), value, np.float32)).mean() for value in values])

    return curve


def positive_shares(
    values: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, draws: int = 1000, seed: int = 0
) -> list[pd.DataFrame]:
    """Share of positives in ten bins of equally many patches, for each feature.

    Parameters
    ----------
    values : ndarray of shape (n, k), float
        Features. Equal values share a bin, so a feature with few distinct values has fewer bins.
    labels : ndarray of shape (n,), 0 or 1
    groups : ndarray of shape (n,), int
        Slides, from :func:`models.resampling.slide_groups`.
    draws, seed : int
        Bootstrap draws of slides, the same for all bins and features.

    Returns
    -------
    list of DataFrame
        For each feature: ``value`` (mean over the bin), ``patches``, ``slides``, ``share``, and ``low`` and ``high``,
        the 95 % interval from resampling slides. The interval uses draws with at least one patch in the bin. It is
        missing if all patches of the bin come from one slide.
    """
    labels = np.asarray(labels)
    units = int(groups.max()) + 1
    bins = [_bins(column) for column in np.asarray(values, dtype=np.float64).T]
    # Patches and positives by slide and bin, all features side by side, so that one product serves a draw.
    counts, positives = [], []
    for bin_of_patch in bins:
        size = int(bin_of_patch.max()) + 1
        flat = groups * size + bin_of_patch
        counts.append(np.bincount(flat, minlength=units * size).reshape(units, size))
        positives.append(np.bincount(flat, weights=labels, minlength=units * size).reshape(units, size))
    both = np.concatenate([*counts, *positives], axis=1).astype(np.float64)
    drawn = np.concatenate([chunk @ both for chunk in draw_slides(units, draws, seed)])
    total, hits = np.split(drawn, 2, axis=1)
    tables, start = [], 0
    for column, bin_of_patch, count, positive in zip(values.T, bins, counts, positives, strict=True):
        stop = start + count.shape[1]
        sizes = count.sum(axis=0)
        slides = (count > 0).sum(axis=0)
        low, high = _interval(hits[:, start:stop], total[:, start:stop], slides)
        mean = np.bincount(bin_of_patch, weights=column) / sizes
        share = positive.sum(axis=0) / sizes
        tables.append(
            pd.DataFrame({"value": mean, "patches": sizes, "slides": slides, "share": share, "low": low, "high": high})
        )
        start = stop
    return tables


def _bins(values: np.ndarray) -> np.ndarray:
    """Return the bin of each value, numbered without gaps."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
    return np.unique(np.searchsorted(edges, values, side="left"), return_inverse=True)[1].astype(np.int64)


def _interval(hits: np.ndarray, total: np.ndarray, slides: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval of hits / total in each bin with patches of two or more slides."""
    low, high = np.full(total.shape[1], np.nan), np.full(total.shape[1], np.nan)
    for number in np.flatnonzero(slides > 1):
        present = total[:, number] > 0
        low[number], high[number] = percentile_interval(hits[present, number] / total[present, number])
    return low, high
