"""How good scores are, and how sure of it one can be when whole slides, not patches, are the sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numba
import numpy as np
import pandas as pd

from data.errors import InputError

METRICS = ("auc", "average_precision", "brier", "accuracy")

#: Bytes that one chunk of draws may take, at 12 a unit: 25 draws of 220,025 patches without a slide map.
CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Bootstrap:
    """Metrics of every model in every draw of slides; all models share the draws, so differences are paired.

    Attributes
    ----------
    values : ndarray of shape (draws kept, models, 4), dtype float64
        In the order of `METRICS`.
    skipped : int
        Draws left out because one class was missing from them.
    groups : int
        Slides (or patches without a slide) that were resampled.
    """

    values: np.ndarray
    skipped: int
    groups: int


def slide_groups(slides: pd.Series | np.ndarray) -> np.ndarray:
    """Return the number of each patch's resampling unit: its slide, or itself where the slide is unknown.

    Parameters
    ----------
    slides : Series or ndarray of shape (n,)
        Slide names; missing (None, NaN, NA) where unknown.

    Returns
    -------
    ndarray of shape (n,), dtype int32
        0 to groups − 1, without gaps.
    """
    codes, names = pd.factorize(np.asarray(slides, dtype=object), use_na_sentinel=True)
    unknown = codes < 0
    codes[unknown] = len(names) + np.arange(unknown.sum())
    return codes.astype(np.int32)


def youden_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """Score from which on a patch counts as positive, chosen where sensitivity + specificity is largest.

    Give it out-of-fold predictions: each stems from a model that saw neither the patch nor its slide.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    scores : ndarray of shape (n,), float

    Returns
    -------
    float
        One of `scores`, the highest when several are as good; 0.5 when none does better than chance.

    References
    ----------
    Youden (1950), Cancer 3(1):32-35.
    """
    labels, table = _checked(labels, scores)
    order = np.argsort(-table[:, 0], kind="stable")
    ranked, positive = table[order, 0], labels[order] == 1
    last = np.append(ranked[1:] != ranked[:-1], True)
    true_positives, false_positives = np.cumsum(positive)[last], np.cumsum(~positive)[last]
    # Compared as integers, so that a tie is a tie: J times positives times negatives.
    gain = true_positives * np.sum(~positive) - false_positives * np.sum(positive)
    best = int(np.argmax(gain))
    return float(ranked[last][best]) if gain[best] > 0 else 0.5


def measure(labels: np.ndarray, scores: np.ndarray, thresholds: np.ndarray | float) -> np.ndarray:
    """Metrics of each model on all patches.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    scores : ndarray of shape (n,) or (n, models), float, 0 to 1
    thresholds : float or ndarray of shape (models,)
        A score at or above it counts as positive (for the accuracy).

    Returns
    -------
    ndarray of shape (models, 4), dtype float64
        In the order of `METRICS`: area under the ROC curve, average precision, Brier score (mean squared error; lower
        is better), accuracy.

    Raises
    ------
    ValueError
        Shapes differ, a label is not 0 or 1, a score is no finite number, or a class is missing.
    """
    labels, table = _checked(labels, scores)
    groups = np.zeros(len(labels), np.int32)
    one = np.ones((1, 1), np.int32)
    values = np.stack([_Ranking(labels, column, cut, groups)(one) for column, cut in _columns(table, thresholds)], 1)
    if np.isnan(values).any():
        raise ValueError("labels must hold both classes, 0 and 1; got one. No ranking can be judged on these patches.")
    return np.asarray(values[0])


def bootstrap(
    labels: np.ndarray,
    scores: np.ndarray,
    thresholds: np.ndarray | float,
    groups: np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Bootstrap:
    """Metrics of each model on resampled slides: as many slides as there are, drawn with replacement, patches and all.

    Thresholds stay what they are: the interval speaks of this threshold, not of choosing one. Memory is bounded by
    `CHUNK_BYTES` plus 30 bytes a patch and model, whatever `draws` is; so is it when no slide is known.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    scores : ndarray of shape (n,) or (n, models), float, 0 to 1
    thresholds : float or ndarray of shape (models,)
    groups : ndarray of shape (n,), int
        From :func:`slide_groups`.
    draws, seed : int

    Returns
    -------
    Bootstrap

    Raises
    ------
    InputError
        More than half of the draws lack a class: an interval would describe luck.

    References
    ----------
    Davison & Hinkley (1997), Bootstrap Methods and their Application, section 3.8 (resampling whole clusters).
    """
    labels, table = _checked(labels, scores)
    if groups.shape != labels.shape:
        raise ValueError(f"groups must have shape {labels.shape}; got {groups.shape}.")
    units = int(groups.max()) + 1
    rankings = [_Ranking(labels, column, cut, groups) for column, cut in _columns(table, thresholds)]
    chunks = [np.stack([ranking(counts) for ranking in rankings], 1) for counts in _draw(units, draws, seed)]
    values = np.concatenate(chunks)
    whole = ~np.isnan(values).any((1, 2))
    if 2 * whole.sum() < draws:
        raise InputError(
            f"an interval needs both classes in most draws of {units} slides; {draws - whole.sum()} of {draws} draws "
            "held one class only. Give more slides, of both kinds."
        )
    return Bootstrap(values[whole], int(draws - whole.sum()), units)


def slide_table(labels: np.ndarray, scores: np.ndarray, slides: pd.Series) -> pd.DataFrame:
    """Judge one model slide by slide: where it ranks well, and where it only knows the slide.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    scores : ndarray of shape (n,), float, 0 to 1
    slides : Series of shape (n,)
        Slide names; patches without one are left out.

    Returns
    -------
    DataFrame
        ``slide, patches, rarer, prevalence, mean_score, brier, auc``, a row a slide; ``rarer`` counts the patches of
        the rarer class, and ``auc`` is missing where that is 0.
    """
    labels, table = _checked(labels, scores)
    frame = pd.DataFrame({"slide": np.asarray(slides, dtype=object), "label": labels, "score": table[:, 0]})
    rows = []
    for slide, part in frame.groupby("slide", sort=True):
        truth, score = part.label.to_numpy(), part.score.to_numpy()
        rarer = min(truth.sum(), (1 - truth).sum())
        auc = measure(truth, score, 0.5)[0, 0] if rarer else np.nan
        rows.append((slide, len(part), rarer, truth.mean(), score.mean(), np.mean((truth - score) ** 2), auc))
    return pd.DataFrame(rows, columns=["slide", "patches", "rarer", "prevalence", "mean_score", "brier", "auc"])


def percentile_interval(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the central share `level` of bootstrap values, along the first axis."""
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail], axis=0)
    return low, high


def _draw(units: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each unit was drawn, int32 (draws in chunk, units); the same for any size of chunk."""
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK_BYTES // (12 * units))
    for start in range(0, draws, step):
        size = min(step, draws - start)
        counts = np.empty((size, units), np.int32)
        for row in range(size):
            counts[row] = np.bincount(rng.integers(units, size=units), minlength=units)
        yield counts


class _Ranking:
    """One model's patches, sorted once by falling score, ready to be counted under any number of draws."""

    def __init__(self, labels: np.ndarray, scores: np.ndarray, threshold: float, groups: np.ndarray) -> None:
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order]
        self.groups = groups[order].astype(np.int32)
        self.positive = labels[order].astype(np.int8)
        self.last = np.append(ranked[1:] != ranked[:-1], True)
        losses = [(labels - scores) ** 2, (scores >= threshold) == (labels == 1), np.ones(len(labels))]
        self.sums = np.stack([np.bincount(groups, weights=loss) for loss in losses], 1)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Metrics under each draw, float64 (draws, 4); NaN where a class is missing."""
        auc, precision = _rank_metrics(counts, self.groups, self.positive, self.last)
        squared, right, patches = (counts @ self.sums).T
        return np.stack([auc, precision, squared / patches, right / patches], 1)


@numba.njit(cache=True, nogil=True)
def _rank_metrics(
    counts: np.ndarray, groups: np.ndarray, positive: np.ndarray, last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUC and average precision per draw, in one walk down the ranking; `last` ends a run of equal scores.

    Labels multiply instead of branching: they come in no order that a processor could guess.
    """
    aucs = np.full(len(counts), np.nan)
    precisions = np.full(len(counts), np.nan)
    for draw in range(len(counts)):
        above = above_positive = tied = tied_positive = np.int64(0)
        pairs = np.int64(0)  # twice the pairs in the right order, a tie counting one: integers, hence exact
        precision = 0.0
        for i in range(len(groups)):
            count = np.int64(counts[draw, groups[i]])
            tied += count
            tied_positive += count * positive[i]
            if last[i]:
                pairs += (tied - tied_positive) * (2 * above_positive + tied_positive)
                above += tied
                above_positive += tied_positive
                precision += tied_positive * above_positive / max(above, 1)
                tied = tied_positive = np.int64(0)
        if 0 < above_positive < above:
            aucs[draw] = pairs / (2.0 * above_positive * (above - above_positive))
            precisions[draw] = precision / above_positive
    return aucs, precisions


def _columns(table: np.ndarray, thresholds: np.ndarray | float) -> list[tuple[np.ndarray, float]]:
    """Pair each model's scores with its threshold."""
    cuts = np.broadcast_to(np.asarray(thresholds, dtype=np.float64), table.shape[1:])
    return list(zip(table.T, cuts.tolist(), strict=True))


def _checked(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check; return labels (n,) int64 and scores (n, models) float64."""
    labels = np.asarray(labels)
    table = np.asarray(scores, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or labels.shape != table.shape[:1] or not len(labels):
        raise ValueError(f"labels (n,) and scores (n, models) must agree; got {labels.shape} and {table.shape}.")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1; got {np.unique(labels)[:5].tolist()}.")
    if not np.isfinite(table).all():
        raise ValueError(f"scores must be finite; got {np.sum(~np.isfinite(table))} that are not.")
    return labels.astype(np.int64), table
