"""Mean log-odds over the patches of a slide, as a prior probability for each patch."""

from __future__ import annotations

import numpy as np
import pandas as pd

from histoblend.features.handcrafted.slide_context import trust
from histoblend.models.calibration import log_odds


def slide_means(probabilities: np.ndarray, slides: np.ndarray) -> np.ndarray:
    """Mean log-odds over each patch's slide, as a probability.

    The result is w times the mean log-odds of the slide plus 1 − w times the log-odds of the patch. The weight w grows
    from 0 for slides of 4 patches to 1 for slides of 16 (:func:`features.handcrafted.slide_context.trust`). No labels
    and no patches of other slides are used. If each slide is in one fold, means of out-of-fold predictions are
    therefore out-of-fold, too.

    Parameters
    ----------
    probabilities : ndarray of shape (n, members), float64, 0 to 1
    slides : ndarray of shape (n,), dtype object
        Slide of each patch; None if unknown, which keeps the patch's own probabilities.

    Returns
    -------
    ndarray of shape (n, members), float64, 0 to 1
    """
    from scipy.special import expit

    odds = log_odds(np.asarray(probabilities, dtype=np.float64))
    names = pd.Series(slides, dtype=object)
    for rows in names.groupby(names, sort=False).indices.values():
        weight = trust(len(rows))
        odds[rows] = weight * odds[rows].mean(axis=0) + (1 - weight) * odds[rows]
    return np.asarray(expit(odds))
