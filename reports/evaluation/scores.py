"""Precision–recall curve and histogram of the scores of one model, each on one split at a time."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve

from histoblend.reports.evaluation.ladder import CURVE_POINTS, SPLITS

#: Number of bins of a histogram, of equal width.
SCORE_BINS = 20


def precision_recall_table(predictions: pd.DataFrame, model: str) -> pd.DataFrame:
    """Precision–recall curves, thinned to about `CURVE_POINTS` points.

    Parameters
    ----------
    predictions : DataFrame
        ``split, label, prob_<model>``. Patches without a probability are left out, and splits without positives.
    model : str

    Returns
    -------
    DataFrame
        ``split (oof|test), threshold, recall, precision``, by rising threshold. The last row is recall 0 and precision
        1, at a threshold above all scores.
    """
    parts = []
    for split, part in _splits(predictions, model):
        if not part.label.any():
            continue
        precision, recall, thresholds = precision_recall_curve(part.label, part[f"prob_{model}"])
        kept = np.arange(len(recall))
        if len(kept) > CURVE_POINTS:
            # Evenly spaced along recall, which falls with the threshold.
            even = np.searchsorted(-recall, -np.linspace(1, 0, CURVE_POINTS))
            kept = np.unique(np.append(even.clip(max=len(kept) - 1), [0, len(kept) - 1]))
        above = np.append(thresholds, np.nextafter(thresholds[-1], np.inf))
        curve = {"threshold": above[kept], "recall": recall[kept], "precision": precision[kept]}
        parts.append(pd.DataFrame({"split": split, **curve}))
    return _joined(parts, ["split", "threshold", "recall", "precision"])


def score_histogram(predictions: pd.DataFrame, model: str) -> pd.DataFrame:
    """Count the patches of each class by score.

    Returns
    -------
    DataFrame
        ``split (oof|test), low, high, negatives, positives``, one row per split and bin. A bin includes its lower end,
        and the last bin also its upper end.
    """
    edges = np.arange(SCORE_BINS + 1) / SCORE_BINS  # exactly 0.6, not 0.6000000000000001
    parts = []
    for split, part in _splits(predictions, model):
        scores, positive = part[f"prob_{model}"].to_numpy(), part.label.to_numpy() == 1
        counts = {
            name: np.histogram(scores[chosen], edges)[0]
            for name, chosen in (("negatives", ~positive), ("positives", positive))
        }
        parts.append(pd.DataFrame({"split": split, "low": edges[:-1], "high": edges[1:], **counts}))
    return _joined(parts, ["split", "low", "high", "negatives", "positives"])


def _splits(predictions: pd.DataFrame, model: str) -> list[tuple[str, pd.DataFrame]]:
    """Name of each split and its patches with a probability, if there are any."""
    present = predictions[predictions[f"prob_{model}"].notna()]
    parts = [(name, present[present.split == split]) for split, name in SPLITS.items()]
    return [(name, part) for name, part in parts if len(part)]


def _joined(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
