"""Metrics on resampled slides the slow way: rows literally repeated, scikit-learn asked each time."""

import numpy as np
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, roc_auc_score


def resampled_metrics(labels, scores, threshold, slides, drawn):
    """AUC, average precision, Brier score and accuracy after drawing the slides named in `drawn`, or None.

    Parameters
    ----------
    labels, scores, slides : ndarray of shape (n,)
    threshold : float
    drawn : sequence of slide names, with repetitions

    Returns
    -------
    tuple of 4 floats, or None when a class is missing
    """
    rows = np.concatenate([np.flatnonzero(slides == slide) for slide in drawn])
    y, p = labels[rows], scores[rows]
    if y.min() == y.max():
        return None
    return (
        roc_auc_score(y, p),
        average_precision_score(y, p),
        brier_score_loss(y, p),
        accuracy_score(y, p >= threshold),
    )


def resampled_slides(groups, draws, seed):
    """The slide numbers of every draw, from the same random stream as `models.metrics.bootstrap`."""
    rng = np.random.default_rng(seed)
    units = groups.max() + 1
    return [rng.integers(units, size=units) for _ in range(draws)]
