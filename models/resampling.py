"""Resampling of whole slides, for confidence intervals of scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numba
import numpy as np
import pandas as pd

#: Maximum size of one chunk of draws in bytes, at 16 bytes per unit: 19 draws of 220,025 patches without a slide map.
CHUNK_BYTES = 64 * 2**20

#: Draws that take each step down a ranking together; their sums fit into the processor's first cache.
_DRAWS_TOGETHER = 256

#: AUC is computed from counts per pair of slides for fewer slides than this. The number of pairs grows quadratically.
MAX_PAIRED_SLIDES = 500


def slide_groups(slides: pd.Series | np.ndarray) -> np.ndarray:
    """Number the resampling unit of each patch: its slide, or the patch itself if its slide is unknown.

    Parameters
    ----------
    slides : Series or ndarray of shape (n,)
        Slide names; missing (None, NaN, NA) if unknown.

    Returns
    -------
    ndarray of shape (n,), dtype int32
        0 to groups − 1, without gaps.
    """
    codes, names = pd.factorize(np.asarray(slides, dtype=object), use_na_sentinel=True)
    unknown = codes < 0
    codes[unknown] = len(names) + np.arange(unknown.sum())
    return codes.astype(np.int32)


def percentile_interval(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the central `level` (a share) of bootstrap values, along the first axis."""
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return low, high


def draw_slides(units: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each unit is drawn, int32 (draws in chunk, units). The draws do not depend on the chunk size."""
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK_BYTES // (16 * units))
    for start in range(0, draws, step):
        size = min(step, draws - start)
        counts = np.empty((size, units), np.int32)
        for row in range(size):
            counts[row] = np.bincount(rng.integers(units, size=units), minlength=units)
        yield counts


class Ranking:
    """Metrics of one model under draws of slides. Its patches are sorted once, by decreasing score."""

    def __init__(self, labels: np.ndarray, scores: np.ndarray, threshold: float, groups: np.ndarray) -> None:
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        self.groups = groups[order].astype(np.int32)
        self.positive = labels[order].astype(np.int8)
        self.last = np.append(ranked[1:] != ranked[:-1], True)
        losses = [(labels - scores) ** 2, (scores >= threshold) == (labels == 1), np.ones(len(labels))]
        self.sums = np.stack([np.bincount(groups, weights=loss) for loss in losses], 1)

    def __call__(self, counts: np.ndarray, by_unit: np.ndarray | None = None) -> np.ndarray:
        """Metrics under each draw, float64 (draws, 4); NaN if a class is missing.

        ``by_unit`` is a copy of the counts with one row per unit, which several models can share.
        """
        by_unit = np.ascontiguousarray(counts.T) if by_unit is None else by_unit
        auc, precision = _rank_metrics(by_unit, self.groups, self.positive, self.last)
        squared, correct, patches = (counts @ self.sums).T
        return np.stack([auc, precision, squared / patches, correct / patches], 1)


@numba.njit(cache=True, nogil=True)
def _rank_metrics(
    counts: np.ndarray, groups: np.ndarray, positive: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUC and average precision per draw, in one pass down the ranking; `last` marks the end of each run of ties.

    All draws of a block take a patch's step together, in one vector operation. Counts (units, draws) and numbers of
    pairs are whole or half numbers far below 2 ** 53, so they are exact as float64.
    """
    draws = counts.shape[1]
    aucs, precisions = np.full(draws, np.nan), np.full(draws, np.nan)
    for first in range(0, draws, _DRAWS_TOGETHER):
        size = min(_DRAWS_TOGETHER, draws - first)
        pairs, precision = np.zeros(size), np.zeros(size)
        above, above_positive = np.zeros(size), np.zeros(size)
        tied, tied_positive = np.zeros(size), np.zeros(size)
        start = 0
        for i in range(len(groups)):
            count = counts[groups[i], first : first + size]
            if last[i] and start == i:  # no ties
                if positive[i]:
                    for d in range(size):
                        above[d] += count[d]
                        above_positive[d] += count[d]
                        precision[d] += count[d] * above_positive[d] / max(above[d], 1.0)
                else:
                    for d in range(size):
                        pairs[d] += count[d] * above_positive[d]
                        above[d] += count[d]
            else:
                for d in range(size):
                    tied[d] += count[d]
                if positive[i]:
                    for d in range(size):
                        tied_positive[d] += count[d]
                if last[i]:
                    for d in range(size):
                        pairs[d] += (tied[d] - tied_positive[d]) * (above_positive[d] + 0.5 * tied_positive[d])
                        above[d] += tied[d]
                        above_positive[d] += tied_positive[d]
                        precision[d] += tied_positive[d] * above_positive[d] / max(above[d], 1.0)
                        tied[d] = tied_positive[d] = 0.0
            if last[i]:
                start = i + 1
        for d in range(size):
            if 0 < above_positive[d] < above[d]:
                aucs[first + d] = pairs[d] / (above_positive[d] * (above[d] - above_positive[d]))
                precisions[first + d] = precision[d] / above_positive[d]
    return aucs, precisions


class PairCounts:
    """AUC of one model under draws of slides, from its correctly ordered pairs, counted once per pair of slides."""

    def __init__(self, labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> None:
        units = int(groups.max()) + 1
        order = np.argsort(scores, kind="stable")
        ranked = scores[order]
        last = np.append(ranked[1:] != ranked[:-1], True)
        # Integers below 2 ** 53, which BLAS adds exactly.
        self.pairs = _pair_counts(groups[order].astype(np.int32), labels[order].astype(np.int8), last, units)
        self.positives = np.bincount(groups, weights=labels == 1, minlength=units)
        self.negatives = np.bincount(groups, weights=labels != 1, minlength=units)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """AUC under each draw, float64 (draws,), bit-identical to :class:`Ranking`; NaN if a class is missing."""
        drawn = counts.astype(np.float64)
        correct = ((drawn @ self.pairs) * drawn).sum(axis=1)
        total = 2.0 * (drawn @ self.positives) * (drawn @ self.negatives)
        return np.where(total > 0, correct / np.where(total > 0, total, 1.0), np.nan)


@numba.njit(cache=True, nogil=True)
def _pair_counts(groups: np.ndarray, positive: np.ndarray, last: np.ndarray, units: int) -> np.ndarray:
    """Twice the number of correctly ordered pairs (a tie counts 1): float64 (positive's slide, negative's slide)."""
    pairs = np.zeros((units, units))
    below, tied = np.zeros(units), np.zeros(units)
    start = 0
    for end in range(len(groups)):
        if last[end]:
            for i in range(start, end + 1):
                tied[groups[i]] += 1 - positive[i]
            for i in range(start, end + 1):
                if positive[i]:
                    pairs[groups[i]] += 2 * below + tied
            for i in range(start, end + 1):
                below[groups[i]] += 1 - positive[i]
                tied[groups[i]] = 0
            start = end + 1
    return pairs


def auc_of_draws(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Prepare the AUC under draws of slides: from pairs of slides or, if there are many slides, from all patches.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    scores : ndarray of shape (n,), float
    groups : ndarray of shape (n,), int

    Returns
    -------
    callable
        Counts (draws, slides) to AUC (draws,), float64; NaN if a class is missing.
    """
    if int(groups.max()) < MAX_PAIRED_SLIDES:
        return PairCounts(labels, scores, groups)
    ranking = Ranking(labels, scores, 0.5, groups)
    return lambda counts: ranking(counts)[:, 0]


def check_scores(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check labels and scores; return them as (n,) int64 and (n, models) float64."""
    labels = np.asarray(labels)
    table = np.asarray(scores, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or labels.shape != table.shape[:1] or not len(labels):
        raise ValueError(
            f"labels (n,) and scores (n, models) must have the same length; got {labels.shape} and {table.shape}."
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1; got {np.unique(labels)[:5].tolist()}.")
    if not np.isfinite(table).all():
        raise ValueError(f"scores must be finite; got {np.sum(~np.isfinite(table))} that are not.")
    return labels.astype(np.int64), table


def auc_draws(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, *, draws: int, seed: int) -> np.ndarray:
    """AUC of several scores on the same resampled slides.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    scores : ndarray of shape (n, k), float
    groups : ndarray of shape (n,), int
        From :func:`slide_groups`.
    draws, seed : int

    Returns
    -------
    ndarray of shape (draws kept, k), dtype float64
        Draws with one class only are left out, so the result may be empty.
    """
    labels, table = check_scores(labels, scores)
    rankings = [auc_of_draws(labels, column, groups) for column in table.T]
    parts = [
        np.stack([ranking(counts) for ranking in rankings], axis=1)
        for counts in draw_slides(int(groups.max()) + 1, draws, seed)
    ]
    values = np.concatenate(parts)
    return values[~np.isnan(values).any(axis=1)]


def mean_draws(values: np.ndarray, groups: np.ndarray, *, draws: int, seed: int) -> np.ndarray:
    """Mean of each column over the patches of resampled slides.

    Parameters
    ----------
    values : ndarray of shape (n, k), float
    groups : ndarray of shape (n,), int
    draws, seed : int

    Returns
    -------
    ndarray of shape (draws, k), dtype float64
    """
    units = int(groups.max()) + 1
    sums = np.stack([np.bincount(groups, weights=column, minlength=units) for column in values.T], axis=1)
    sizes = np.bincount(groups, minlength=units)
    return np.concatenate([counts @ sums / (counts @ sizes)[:, None] for counts in draw_slides(units, draws, seed)])


def sample_rows_evenly(groups: np.ndarray, most: int, *, seed: int) -> np.ndarray:
    """Choose at most `most` patches at random, as evenly over the slides as their sizes allow.

    Parameters
    ----------
    groups : ndarray of shape (n,), int
        From :func:`slide_groups`.
    most : int
    seed : int

    Returns
    -------
    ndarray of int
        Row numbers in increasing order; all rows if there are at most `most`.
    """
    if len(groups) <= most:
        return np.arange(len(groups))
    order = np.random.default_rng(seed).permutation(len(groups))
    # Take one patch of each slide, then a second of each, and so on.
    turn = pd.Series(groups[order]).groupby(groups[order]).cumcount().to_numpy()
    return np.sort(order[np.argsort(turn, kind="stable")[:most]])
