"""Metrics of a model within each slide, with intervals over the slide's patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm

from histoblend.models.metrics import slide_table
from histoblend.reports.evaluation.ladder import SPLITS, rows_with_predictions

_BISECTIONS = 60


def score_slides(predictions: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """Metrics within each slide: ``model, split, slide, patches, rarer, prevalence, mean_score, brier, auc``."""
    parts = []
    for split, name in SPLITS.items():
        part = predictions[predictions.split == split]
        for model in models if len(part) else ():
            present = part[rows_with_predictions(part, model)]
            table = slide_table(present.label.to_numpy(), present[f"prob_{model}"].to_numpy(), present.slide)
            table.insert(0, "split", name)
            table.insert(0, "model", model)
            parts.append(table)
    return pd.concat(parts, ignore_index=True)


def auc_interval(
    auc: np.ndarray, positives: np.ndarray, negatives: np.ndarray, *, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Confidence interval of an area under the ROC curve from independent patches.

    This is Newcombe's method 5: a score interval on Hanley and McNeil's variance, with both sample sizes replaced by
    their mean. Unlike DeLong's interval, it exists if a class has a single patch or if all pairs are in the right
    order. Both are common within a slide.

    Parameters
    ----------
    auc : ndarray of shape (n,), float, 0 to 1
    positives, negatives : ndarray of shape (n,), int, at least 1
    level : float

    Returns
    -------
    low, high : ndarray of shape (n,), dtype float64, 0 to 1

    References
    ----------
    Newcombe (2006), Stat Med 25(4):559-573.
    Hanley & McNeil (1982), Radiology 143(1):29-36.
    """
    auc, positives, negatives = (np.asarray(values, np.float64) for values in (auc, positives, negatives))
    z = norm.ppf((1 + level) / 2)
    # The interval of 1 − AUC is the mirrored interval of AUC.
    return _lower_end(auc, positives, negatives, z), 1 - _lower_end(1 - auc, positives, negatives, z)


def _lower_end(auc: np.ndarray, positives: np.ndarray, negatives: np.ndarray, z: float) -> np.ndarray:
    """Smallest area that is at most z standard errors below the observed one."""
    mean_size_minus_1 = (positives + negatives) / 2 - 1
    low, high = np.zeros_like(auc), auc.copy()
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        spread = 1 + mean_size_minus_1 * ((1 - middle) / (2 - middle) + middle / (1 + middle))
        error = np.sqrt(middle * (1 - middle) * spread / (positives * negatives))
        outside = auc - middle > z * error
        low, high = np.where(outside, middle, low), np.where(outside, high, middle)
    return high


def share_interval(right: np.ndarray, total: np.ndarray, *, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's confidence interval of a share of independent patches.

    Parameters
    ----------
    right, total : ndarray of shape (n,), int
    level : float

    Returns
    -------
    low, high : ndarray of shape (n,), dtype float64, 0 to 1

    References
    ----------
    Wilson (1927), J Am Stat Assoc 22(158):209-212.
    """
    right, total = np.asarray(right, np.float64), np.asarray(total, np.float64)
    z = norm.ppf((1 + level) / 2)
    share, spread = right / total, z**2 / total
    half = z * np.sqrt(share * (1 - share) / total + spread / (4 * total))
    low, high = (share + spread / 2 - half) / (1 + spread), (share + spread / 2 + half) / (1 + spread)
    return low.clip(0, 1), high.clip(0, 1)


def slide_intervals(
    predictions: pd.DataFrame, slides: pd.DataFrame, thresholds: Mapping[str, float | np.ndarray]
) -> pd.DataFrame:
    """Metrics of several models within each slide, with intervals.

    Parameters
    ----------
    predictions : DataFrame
        ``slide, split, label, prob_<model>``.
    slides : DataFrame
        From :func:`score_slides`.
    thresholds : mapping from model to float or ndarray of shape (n,)
        Threshold of each model to evaluate, or one per row. A score at or above it counts as positive.

    Returns
    -------
    DataFrame
        ``model, split, slide, metric, patches, positives, value, low, high``. The metrics are "sensitivity" if a slide
        has positives, "specificity" if it has negatives, and "auc" if it has both.
    """
    parts = []
    for model, threshold in thresholds.items():
        evaluated = rows_with_predictions(predictions, model) & predictions.slide.notna().to_numpy()
        present = predictions[evaluated]
        called = present[f"prob_{model}"] >= np.broadcast_to(threshold, len(predictions))[evaluated]
        frame = pd.DataFrame(
            {
                "split": present.split.map(SPLITS).to_numpy(),
                "slide": present.slide.to_numpy(),
                "positives": (present.label == 1).to_numpy(),
                "true_positives": ((present.label == 1) & called).to_numpy(),
                "true_negatives": ((present.label == 0) & ~called).to_numpy(),
                "patches": 1,
            }
        )
        counts = frame.groupby(["split", "slide"], as_index=False).sum()
        counts = counts.merge(slides.loc[slides.model == model, ["split", "slide", "auc"]], on=["split", "slide"])
        parts += _with_intervals(counts.assign(model=model))
    columns = ["model", "split", "slide", "metric", "patches", "positives", "value", "low", "high"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _with_intervals(counts: pd.DataFrame) -> list[pd.DataFrame]:
    """One table per metric, with the slides that have it."""
    negatives = counts.patches - counts.positives
    mixed, with_positives, with_negatives = (
        counts[counts.auc.notna()],
        counts[counts.positives > 0],
        counts[negatives > 0],
    )
    interval = auc_interval(mixed.auc.to_numpy(), mixed.positives.to_numpy(), negatives[mixed.index].to_numpy())
    parts = [mixed.assign(metric="auc", value=mixed.auc, low=interval[0], high=interval[1])]
    for metric, part, correct, total in (
        ("sensitivity", with_positives, with_positives.true_positives, with_positives.positives),
        ("specificity", with_negatives, with_negatives.true_negatives, negatives[with_negatives.index]),
    ):
        low, high = share_interval(correct.to_numpy(), total.to_numpy())
        parts.append(part.assign(metric=metric, value=correct / total, low=low, high=high))
    return parts
