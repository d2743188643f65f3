"""AUC within slides and between slides, the two parts of a pooled AUC."""

from __future__ import annotations

import numba
import numpy as np

from histoblend.models.resampling import check_scores


class SlidePairs:
    """AUC of several models, separately over pairs within slides and over all other pairs.

    AUC is the share of pairs of a positive and a negative patch that a model orders correctly; a tie counts one half.
    A pair is within a slide if both patches are of the same known slide. All other pairs are between slides. With
    `share`, the share of pairs within slides, AUC = share × AUC within + (1 − share) × AUC between.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    scores : ndarray of shape (n,) or (n, models), float
    groups : ndarray of shape (n,), int
        From :func:`models.resampling.slide_groups`.
    known : ndarray of shape (n,), bool
        Whether the patch's slide is known; see :func:`data.splits.is_known`.

    Attributes
    ----------
    mixed : ndarray of int
        Groups that are known slides with both classes. Only these have pairs within slides.
    share : float
        Share of all pairs that are within slides; NaN if no slide is known.
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, known: np.ndarray) -> None:
        labels, table = check_scores(labels, scores)
        units = int(groups.max()) + 1
        self._positives = np.bincount(groups, weights=labels, minlength=units)
        self._negatives = np.bincount(groups, weights=1 - labels, minlength=units)
        pairs = self._positives * self._negatives
        pairs[groups[~known]] = 0
        self._known = bool(known.any())
        self.mixed = np.flatnonzero(pairs)
        rows = pairs[groups] > 0
        inside, positive = groups[rows].astype(np.int32), labels[rows].astype(np.int8)
        correct = [_correct_pairs(column, positive, inside, units) for column in table[rows].T]
        #: For each mixed slide, its number of pairs and how many of them each model orders correctly.
        self._sums = np.stack([pairs, *correct], axis=1)[self.mixed]
        total = self._positives.sum() * self._negatives.sum()
        self.share = float(self._sums[:, 0].sum() / total) if self._known and total else np.nan

    def __call__(self, counts: np.ndarray, aucs: np.ndarray) -> np.ndarray:
        """AUC within and between slides in each draw of slides.

        A slide that is drawn twice counts twice within slides. Pairs of its two copies do not count as between slides.

        Parameters
        ----------
        counts : ndarray of shape (draws, units), int
            How often each unit was drawn.
        aucs : ndarray of shape (draws, models), float64
            AUC over all pairs in the same draws.

        Returns
        -------
        ndarray of shape (draws, models, 2), dtype float64
            Within and between; NaN if a draw has no such pair or no slide is known.
        """
        if not self._known:
            return np.full((*aucs.shape, 2), np.nan)
        total = ((counts @ self._positives) * (counts @ self._negatives))[:, None]
        drawn = np.empty((len(counts), len(self.mixed)))
        for row, drawing in enumerate(counts):  # row by row, to avoid a large copy of all counts
            drawn[row] = drawing[self.mixed]
        pair_sums = drawn @ self._sums
        same_slide_sums = np.square(drawn, out=drawn) @ self._sums
        # Twice the number of correctly ordered pairs is an integer; rounding restores it.
        correct = np.rint(2 * aucs * total) / 2
        within = _divide(pair_sums[:, 1:], pair_sums[:, :1])
        return np.stack([within, _divide(correct - same_slide_sums[:, 1:], total - same_slide_sums[:, :1])], axis=2)


def _correct_pairs(scores: np.ndarray, positive: np.ndarray, groups: np.ndarray, units: int) -> np.ndarray:
    """Number of correctly ordered pairs in each group (a tie counts one half): float64 (units,)."""
    order = np.argsort(scores)
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)]
    return np.asarray(_count_upwards(groups[order], positive[order], last, units) / 2)


@numba.njit(cache=True, nogil=True)
def _count_upwards(groups: np.ndarray, positive: np.ndarray, last: np.ndarray, units: int) -> np.ndarray:
    """Twice the number of correctly ordered pairs in each group (a tie counts 1); `last` marks the end of ties."""
    pairs, below, tied = np.zeros(units), np.zeros(units), np.zeros(units)
    start = 0
    for end in range(len(groups)):
        if last[end]:
            for i in range(start, end + 1):
                tied[groups[i]] += 1 - positive[i]
            for i in range(start, end + 1):
                pairs[groups[i]] += positive[i] * (2 * below[groups[i]] + tied[groups[i]])
            for i in range(start, end + 1):
                below[groups[i]] += 1 - positive[i]
                tied[groups[i]] = 0
            start = end + 1
    return pairs


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Divide; NaN if ``whole`` is 0."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
