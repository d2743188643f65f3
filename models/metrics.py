"""Metrics of scores, and their bootstrap over slides rather than patches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.models.resampling import Ranking, check_scores, draw_slides
from histoblend.models.slide_pairs import SlidePairs

METRICS = ("auc", "average_precision", "brier", "accuracy")


@dataclass(frozen=True)
class Bootstrap:
    """Metrics of each model in each draw of slides. All models share the draws, so differences are paired.

    Attributes
    ----------
    values : ndarray of shape (draws kept, models, 4), dtype float64
        In the order of `METRICS`.
    skipped : int
        Number of draws left out because they lack a class.
    groups : int
        Number of resampled slides (or patches without a slide).
    pairs : ndarray of shape (draws kept, models, 2), dtype float64, or None
        AUC within and between slides in the same draws (:class:`models.slide_pairs.SlidePairs`), if requested.
    """

    values: np.ndarray
    skipped: int
    groups: int
    pairs: np.ndarray | None = None


def measure(labels: np.ndarray, scores: np.ndarray, thresholds: np.ndarray | float) -> np.ndarray:
    """Metrics of each model on all patches.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    scores : ndarray of shape (n,) or (n, models), float, 0 to 1
    thresholds : float or ndarray of shape (models,)
        A score at or above it counts as positive, for the accuracy.

    Returns
    -------
    ndarray of shape (models, 4), dtype float64
        In the order of `METRICS`: area under the ROC curve, average precision, Brier score (mean squared error; lower
        is better), accuracy.

    Raises
    ------
    ValueError
        Shapes differ, a label is not 0 or 1, a score is not finite, or a class is missing.
    """
    labels, table = check_scores(labels, scores)
    groups = np.zeros(len(labels), np.int32)
    once = np.ones((1, 1), np.int32)
    values = np.stack([Ranking(labels, column, cut, groups)(once) for column, cut in _columns(table, thresholds)], 1)
    if np.isnan(values).any():
        raise ValueError("labels must contain both classes, 0 and 1; got one. The metrics need both.")
    return np.asarray(values[0])


def bootstrap(
    labels: np.ndarray,
    scores: np.ndarray,
    thresholds: np.ndarray | float,
    groups: np.ndarray,
    *,
    pairs: SlidePairs | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Bootstrap:
    """Metrics of each model on resampled slides. Each draw takes whole slides, as many as there are, with replacement.

    Thresholds are fixed, so the interval does not include the uncertainty of choosing them. Memory is at most
    `CHUNK_BYTES` plus 30 bytes per patch and model for any number of draws, even if no slide is known.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    scores : ndarray of shape (n,) or (n, models), float, 0 to 1
    thresholds : float or ndarray of shape (models,)
    groups : ndarray of shape (n,), int
        From :func:`models.resampling.slide_groups`.
    pairs : SlidePairs, optional
        Made of the same labels, scores and groups, to resample AUC within and between slides.
    draws, seed : int

    Returns
    -------
    Bootstrap

    Raises
    ------
    InputError
        More than half of the draws lack a class, so an interval would be meaningless.

    References
    ----------
    Davison & Hinkley (1997), Bootstrap Methods and their Application, section 3.8 (resampling whole clusters).
    """
    labels, table = check_scores(labels, scores)
    if groups.shape != labels.shape:
        raise ValueError(f"groups must have shape {labels.shape}; got {groups.shape}.")
    units = int(groups.max()) + 1
    rankings = [Ranking(labels, column, cut, groups) for column, cut in _columns(table, thresholds)]
    chunks, pair_chunks = [], []
    for counts in draw_slides(units, draws, seed):
        by_unit = np.ascontiguousarray(counts.T)
        chunks.append(np.stack([ranking(counts, by_unit) for ranking in rankings], 1))
        if pairs is not None:
            pair_chunks.append(pairs(counts, chunks[-1][:, :, 0]))
    values = np.concatenate(chunks)
    kept = ~np.isnan(values).any((1, 2))
    if 2 * kept.sum() < draws:
        raise InputError(
            f"an interval needs both classes in most draws of {units} slides; {draws - kept.sum()} of {draws} draws "
            "had one class only. Add more slides of both classes."
        )
    pair_values = np.concatenate(pair_chunks)[kept] if pair_chunks else None
    return Bootstrap(values[kept], int(draws - kept.sum()), units, pair_values)


def slide_table(labels: np.ndarray, scores: np.ndarray, slides: pd.Series) -> pd.DataFrame:
    """Metrics of one model on each slide.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    scores : ndarray of shape (n,), float, 0 to 1
    slides : Series of shape (n,)
        Slide names; patches without one are left out.

    Returns
    -------
    DataFrame
        ``slide, patches, rarer, prevalence, mean_score, brier, auc``, one row per slide. ``rarer`` counts the patches
        of the rarer class; if it is 0, ``auc`` is NaN.
    """
    labels, table = check_scores(labels, scores)
    frame = pd.DataFrame({"slide": np.asarray(slides, dtype=object), "label": labels, "score": table[:, 0]})
    rows = []
    for slide, part in frame.groupby("slide", sort=True):
        truth, score = part.label.to_numpy(), part.score.to_numpy()
        rarer = min(truth.sum(), (1 - truth).sum())
        auc = measure(truth, score, 0.5)[0, 0] if rarer else np.nan
        rows.append((slide, len(part), rarer, truth.mean(), score.mean(), np.mean((truth - score) ** 2), auc))
    return pd.DataFrame(rows, columns=["slide", "patches", "rarer", "prevalence", "mean_score", "brier", "auc"])


def _columns(table: np.ndarray, thresholds: np.ndarray | float) -> list[tuple[np.ndarray, float]]:
    """Pair each model's scores with its threshold."""
    cuts = np.broadcast_to(np.asarray(thresholds, dtype=np.float64), table.shape[1:])
    return list(zip(table.T, cuts.tolist(), strict=True))
