"""Shapley values of training patches by linear heads, from the fits that did not see the patches' slides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoblend.data.storage.arrays import Rows
from histoblend.models.calibration import EXPLANATION_LIMIT, log_odds
from histoblend.models.heads.logistic_sums import scale_of
from histoblend.models.inspection.shapley import ShapleyValues, sum_together

#: Largest difference in log-odds between a patch's stored out-of-fold prediction and the sum of its contributions.
TOLERANCE = 0.02


@dataclass(frozen=True)
class Moments:
    """Number of rows and, for each column, the mean and the sum of squared differences from it.

    Attributes
    ----------
    count : int
    mean, squares : ndarray of shape (columns,), dtype float64
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Moments:
        """Moments of rows (n, columns)."""
        mean = values.mean(axis=0, dtype=np.float64)
        return cls(len(values), mean, np.square(values - mean).sum(axis=0))

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets of rows.

        References
        ----------
        Chan, Golub & LeVeque (1983), Am Stat 37(3):242-247.
        """
        count, step = self.count + other.count, other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        return Moments(count, mean, self.squares + other.squares + np.square(step) * (self.count * other.count / count))


def fold_moments(blocks: Iterable[tuple[np.ndarray, np.ndarray]], fold: np.ndarray) -> dict[int, Moments]:
    """Moments of the rows of each fold, in one pass.

    Parameters
    ----------
    blocks : iterable of (ndarray of int, ndarray)
        Positions in `fold`, and the values of these rows. Each row comes once.
    fold : ndarray of shape (n,), int
    """
    moments: dict[int, Moments] = {}
    for rows, values in blocks:
        folds = fold[rows]
        for number in np.unique(folds).tolist():
            more = Moments.of(values[folds == number])
            moments[number] = moments[number] + more if number in moments else more
    return moments


def out_of_fold_shares(
    values: Rows,
    moments: Mapping[int, Moments],
    coefficients: pd.DataFrame,
    probability: np.ndarray,
    rows: Mapping[str, Sequence[int]],
) -> dict[str, ShapleyValues]:
    """Contributions of columns to the stored out-of-fold predictions of a linear head.

    The fits of the folds are not stored, but their coefficients per standard deviation are. Means and standard
    deviations follow from the moments of the other folds. The intercept follows from the stored predictions. A fold is
    left out if it is not the same for all its patches.

    Parameters
    ----------
    values : Rows of shape (n, columns), float32
    moments : mapping from fold to Moments
        Of training patches, from :func:`fold_moments`.
    coefficients : DataFrame
        Change of log-odds per standard deviation: columns in rows, as in `values`, and folds (int) in columns.
    probability : ndarray of shape (n,), float
    rows : mapping from fold to sequence of int
        Rows to explain, all of that fold.

    Returns
    -------
    dict from fold to ShapleyValues
    """
    explained = {}
    for name, chosen in rows.items():
        first, *others = (part for number, part in sorted(moments.items()) if number != int(name))
        other_folds = sum(others, first)
        scale = scale_of(other_folds.mean, np.sqrt(other_folds.squares / other_folds.count))
        X = values[np.array(chosen)]
        shares = coefficients[int(name)].to_numpy(dtype=np.float64) * (X - other_folds.mean) / scale
        odds = log_odds(probability[list(chosen)], EXPLANATION_LIMIT)
        left = odds - shares.sum(axis=1)
        base = float(np.median(left))
        if np.abs(left - base).max() <= TOLERANCE:
            explained[name] = sum_together(shares, X, list(coefficients.index), base)
    return explained
