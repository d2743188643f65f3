"""How good scores are, and how sure of it one can be when whole slides, not patches, are the sample."""

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
    """Metrics of every model in every draw of slides; all models share the draws, so differences are paired.

    Attributes
    ----------
    values : ndarray of shape (draws kept, models, 4), dtype float64
        In the order of `METRICS`.
    skipped : int
        Draws left out because one class was missing from them.
    groups : int
        Slides (or patches without a slide) that were resampled.
    pairs : ndarray of shape (draws kept, models, 2), dtype float64, or None
        AUC within and between slides in the same draws (:class:`models.slide_pairs.SlidePairs`), where asked for.
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
    labels, table = check_scores(labels, scores)
    groups = np.zeros(len(labels), np.int32)
    one = np.ones((1, 1), np.int32)
    values = np.stack([Ranking(labels, column, cut, groups)(one) for column, cut in _columns(table, thresholds)], 1)
    if np.isnan(values).any():
        raise ValueError("labels must hold both classes, 0 and 1; got one. No ranking can be judged on these patches.")
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
    """Metrics of each model on resampled slides: as many slides as there are, drawn with replacement, patches and all.

    Thresholds stay what they are: the interval speaks of this threshold, not of choosing one. Memory is bounded by
    `CHUNK_BYTES` plus 30 bytes a patch and model, whatever `draws` is; so is it when no slide is known.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    scores : ndarray of shape (n,) or (n, models), float, 0 to 1
    thresholds : float or ndarray of shape (models,)
    groups : ndarray of shape (n,), int
        From :func:`models.resampling.slide_groups`.
    pairs : SlidePairs, optional
        Of the same labels, scores and groups: what AUC within and between slides are drawn from.
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
    labels, table = check_scores(labels, scores)
    if groups.shape != labels.shape:
        raise ValueError(f"groups must have shape {labels.shape}; got {groups.shape}.")
    units = int(groups.max()) + 1
    rankings = [Ranking(labels, column, cut, groups) for column, cut in _columns(table, thresholds)]
    chunks, divided = [], []
    for counts in draw_slides(units, draws, seed):
        chunks.append(np.stack([ranking(counts) for ranking in rankings], 1))
        if pairs is not None:
            divided.append(pairs(counts, chunks[-1][:, :, 0]))
    values = np.concatenate(chunks)
    whole = ~np.isnan(values).any((1, 2))
    if 2 * whole.sum() < draws:
        raise InputError(
            f"an interval needs both classes in most draws of {units} slides; {draws - whole.sum()} of {draws} draws "
            "held one class only. Give more slides, of both kinds."
        )
    inside = np.concatenate(divided)[whole] if divided else None
    return Bootstrap(values[whole], int(draws - whole.sum()), units, inside)


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
