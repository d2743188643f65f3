"""Slow reference metrics on resampled slides: rows are repeated and passed to scikit-learn for each draw."""

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
    """The slide numbers of each draw, from the same random stream as `models.metrics.bootstrap`."""
    rng = np.random.default_rng(seed)
    units = groups.max() + 1
    return [rng.integers(units, size=units) for _ in range(draws)]


def pair_aucs(labels, scores, slides, drawn):
    """AUC within and between slides after drawing the slides named in `drawn`, from every pair of patches.

    Parameters
    ----------
    labels, scores : sequence
    slides : sequence
        None if unknown. Such a patch is drawn as often as ``("patch", row)`` occurs in `drawn`.
    drawn : sequence of slide names, with repetitions

    Returns
    -------
    tuple of 2 floats
        NaN if there is no such pair.
    """
    names = [("patch", row) if slide is None else slide for row, slide in enumerate(slides)]
    drawn = list(drawn)
    ordered, pairs = [0.0, 0.0], [0, 0]
    for i in range(len(labels)):
        for j in range(len(labels)):
            if labels[i] == 1 and labels[j] == 0:
                same = names[i] == names[j]
                # Copies of a slide are compared only within the slide; different slides are pairs between slides.
                weight = drawn.count(names[i]) * (1 if same else drawn.count(names[j]))
                is_ordered = 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
                ordered[not same] += weight * is_ordered
                pairs[not same] += weight
    return tuple(value / count if count else np.nan for value, count in zip(ordered, pairs, strict=True))
