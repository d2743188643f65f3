"""Mean log-odds over the patches of a slide: what the rest of a slide says of a patch's prior chance."""

from __future__ import annotations

import numpy as np
import pandas as pd

from histoblend.features.handcrafted.slide_context import trust
from histoblend.models.calibration import log_odds


def slide_means(probabilities: np.ndarray, slides: np.ndarray) -> np.ndarray:
    """Mean log-odds over each patch's slide, as a probability.

    With n patches of a slide, trust w grows from 0 at n = 4 to 1 at n = 16
    (:func:`features.handcrafted.slide_context.trust`); the result is w times the slide's mean log-odds plus 1 − w times
    the patch's own. No label is used, and no patch of another slide: where each slide is in one fold, the means of
    out-of-fold predictions are out-of-fold.

    Parameters
    ----------
    probabilities : ndarray of shape (n, members), float64, 0 to 1
    slides : ndarray of shape (n,), dtype object
        Slide of each patch; None where it is unknown, which leaves a patch its own probabilities.

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
