"""Shapley values of training patches by linear heads, from the fits that did not see the patches' slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from histoblend.models.calibration import EXPLANATION_LIMIT, log_odds
from histoblend.models.heads.logistic_sums import scale_of
from histoblend.models.inspection.shapley import ShapleyValues, sum_together

#: Largest difference in log-odds between a patch's stored out-of-fold prediction and the sum of its contributions.
TOLERANCE = 0.02

#: Rows that are processed together.
_BLOCK = 4096


def out_of_fold_shares(
    values: np.ndarray,
    columns: Sequence[str],
    coefficients: pd.DataFrame,
    predictions: pd.DataFrame,
    column: str,
    rows: Mapping[str, Sequence[int]],
) -> dict[str, ShapleyValues]:
    """Contributions of columns to the stored out-of-fold predictions of a linear head.

    The fits of the folds are not stored, but their coefficients per standard deviation are. Means and standard
    deviations are computed again from the training patches of the other folds. The intercept follows from the stored
    predictions. A fold is left out if it is not the same for all its patches.

    Parameters
    ----------
    values : ndarray of shape (n, columns), float32
    columns : sequence of str
    coefficients : DataFrame
        Change of log-odds per standard deviation: columns in rows, folds (int) in columns.
    predictions : DataFrame
        ``split, fold`` and `column`, the probability; rows as in `values`.
    column : str
    rows : mapping from fold to sequence of int
        Rows to explain, all of that fold.

    Returns
    -------
    dict from fold to ShapleyValues
    """
    train = (predictions["split"] == "train").to_numpy()
    fold = predictions["fold"].to_numpy()
    explained = {}
    for name, chosen in rows.items():
        mean, scale = _centre_and_scale(values, train & (fold != int(name)))
        X = np.asarray(values[list(chosen)])
        weights = coefficients[int(name)].to_numpy(dtype=np.float64)
        shares = weights * (X - mean) / scale
        odds = log_odds(predictions[column].to_numpy()[list(chosen)], EXPLANATION_LIMIT)
        left = odds - shares.sum(axis=1)
        base = float(np.median(left))
        if np.abs(left - base).max() <= TOLERANCE:
            explained[name] = sum_together(shares, X, columns, base)
    return explained


def _centre_and_scale(values: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column over the rows in `member`, as the head computes them."""
    starts = range(0, len(values), _BLOCK)
    # In blocks, to avoid a copy of the whole table.
    blocks = [(start, member[start : start + _BLOCK]) for start in starts]
    count = member.sum()
    mean = sum(values[start : start + _BLOCK][inside].sum(axis=0, dtype=np.float64) for start, inside in blocks) / count
    squares = sum(np.square(values[start : start + _BLOCK][inside] - mean).sum(axis=0) for start, inside in blocks)
    return mean, scale_of(mean, np.sqrt(squares / count))
