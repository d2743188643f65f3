"""Logistic regression from sums over blocks of rows.

Functions on a block run where the block is. Sums are added in the order of the blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np

#: Values that are processed together: these fit into a processor's cache.
_VALUES = 2**18

#: Rows whose derivatives are added up in float32, before they are added to the total in float64; a multiple of 4.
_ROWS = 256

#: Largest derivative at which L-BFGS stops, in equally steep directions. A penalty is chosen, and a first fit made,
#: less exactly.
EXACT, ROUGH = 1e-4, 3e-4

#: Other stopping criteria of L-BFGS.
_OPTIONS = {"ftol": 64 * np.finfo(float).eps, "maxls": 20, "maxiter": 1000}

#: Added to the second derivatives, as a share of their mean: more than the rounding errors of float32.
_RIDGE = 1e-4

#: ``total(name, *arguments)`` is the sum, over all blocks, of ``name(X, y, *arguments)``, a function of this module.
Total = Callable[..., np.ndarray]


@dataclass(frozen=True)
class FirstFit:
    """A fit to a subset of the training rows.

    Attributes
    ----------
    losses : dict from float to float
        Log loss of each candidate for ``C``.
    mean : ndarray of shape (n_features,)
        Means of the columns of the subset.
    point : ndarray of shape (n_features + 1,)
        Weights of the standardised columns, then the intercept.
    factor : ndarray of shape (n_features + 1, n_features + 1)
        Of :func:`factor_of`.
    """

    losses: dict[float, float]
    mean: np.ndarray
    point: np.ndarray
    factor: np.ndarray


@dataclass(frozen=True)
class Columns:
    """How columns are standardised.

    Attributes
    ----------
    mean, scale : ndarray of shape (n_features,), dtype float64
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, total: Total, count: int, shift: np.ndarray) -> Columns:
        """Mean and standard deviation over ``count`` training rows. ``shift`` is about the mean."""
        first, second = total("column_moments", shift) / count
        mean = shift + first
        return cls(mean, scale_of(mean, np.sqrt(np.maximum(second - first**2, 0))))

    def loss_and_gradient(self, total: Total, count: int, point: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean loss without penalty, and its derivatives, at the weights of the standardised columns and intercept."""
        centre, weights = self.mean.astype(np.float32), point[:-1] / self.scale
        rest = self.mean - centre  # rounding errors of the centre
        sums = total("loss_and_gradient", centre, weights.astype(np.float32), float(point[-1] - rest @ weights))
        loss, by_intercept, by_weight = sums[0] / count, sums[1] / count, sums[2:] / count
        return float(loss), np.append((by_weight - rest * by_intercept) / self.scale, by_intercept)


def scale_of(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Divisor of each column: its spread, or 1 if the column is constant."""
    # The spread of a constant column is rounding noise; dividing by it would turn noise into a feature.
    constant = spread <= 1e-7 * np.maximum(np.abs(mean), 1e-30)
    return np.where(constant, 1.0, spread)


def column_moments(X: np.ndarray, y: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Sums over the training rows of a block.

    Parameters
    ----------
    X : ndarray of shape (m, n_features), float32
    y : ndarray of shape (m,), dtype int8
        0 or 1; -1 for rows that are not training rows.
    shift : ndarray of shape (n_features,), dtype float64
        About the mean of each column.

    Returns
    -------
    ndarray of shape (2, n_features), dtype float64
        Sum of each column's differences from ``shift``, and sum of their squares.
    """
    total, rows, step = np.zeros((2, X.shape[1])), np.flatnonzero(y >= 0), max(1, _VALUES // X.shape[1])
    for start in range(0, len(rows), step):
        difference = X[rows[start : start + step]] - shift
        total[0] += difference.sum(axis=0)
        total[1] += np.square(difference).sum(axis=0)
    return total


def loss_and_gradient(
    X: np.ndarray, y: np.ndarray, centre: np.ndarray, weights: np.ndarray, intercept: float
) -> np.ndarray:
    """Logistic loss of a block and its derivatives.

    Parameters
    ----------
    X, y
        As for :func:`column_moments`.
    centre : ndarray of shape (n_features,), dtype float32
        Subtracted from the columns, so that float32 suffices.
    weights : ndarray of shape (n_features,), dtype float32
        For columns that are centred, not scaled.
    intercept : float

    Returns
    -------
    ndarray of shape (2 + n_features,), dtype float64
        Loss, its derivative with respect to the intercept, and its derivatives with respect to the weights.
    """
    total, rows = np.zeros(2 + X.shape[1]), np.flatnonzero(y >= 0)
    _add_loss_and_gradient(X, rows, y[rows], centre, weights, intercept, total)
    return total


# Sums may be reordered, for vector instructions. Without the GIL, fits in parallel do not wait for each other.
@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _add_loss_and_gradient(
    X: np.ndarray,
    rows: np.ndarray,
    labels: np.ndarray,
    centre: np.ndarray,
    weights: np.ndarray,
    intercept: float,
    total: np.ndarray,
) -> None:
    """Four rows at a time: each is read from memory once, and centre, weights and derivatives once for four rows."""
    width, last = X.shape[1], len(rows) - 1
    derivatives, margins, errors = np.zeros(width, np.float32), np.zeros(4), np.zeros(4, np.float32)
    for first in range(0, len(rows), 4):
        a, b = X[rows[first]], X[rows[min(first + 1, last)]]
        c, d = X[rows[min(first + 2, last)]], X[rows[min(first + 3, last)]]
        by_a = by_b = by_c = by_d = np.float32(0)
        for j in range(width):
            by_a += (a[j] - centre[j]) * weights[j]
            by_b += (b[j] - centre[j]) * weights[j]
            by_c += (c[j] - centre[j]) * weights[j]
            by_d += (d[j] - centre[j]) * weights[j]
        margins[0], margins[1], margins[2], margins[3] = by_a, by_b, by_c, by_d
        for k in range(4):
            errors[k] = 0
            if first + k <= last:
                margin, label = margins[k] + intercept, labels[first + k]
                small = math.exp(-abs(margin))
                error = (1 if margin >= 0 else small) / (1 + small) - label
                total[0] += max(margin, 0.0) + math.log1p(small) - label * margin
                total[1] += error
                errors[k] = error
        of_a, of_b, of_c, of_d = errors[0], errors[1], errors[2], errors[3]
        for j in range(width):
            derivatives[j] += (of_a * (a[j] - centre[j]) + of_b * (b[j] - centre[j])) + (
                of_c * (c[j] - centre[j]) + of_d * (d[j] - centre[j])
            )
        if (first + 4) % _ROWS == 0 or first + 4 > last:
            for j in range(width):
                total[2 + j] += derivatives[j]
                derivatives[j] = 0


def curvature(X: np.ndarray, columns: Columns, point: np.ndarray) -> np.ndarray:
    """Second derivatives of the mean loss, without penalty.

    Parameters
    ----------
    X : ndarray of shape (m, n_features), float32
    columns : Columns
    point : ndarray of shape (n_features + 1,)
        Weights of the standardised columns, then the intercept.

    Returns
    -------
    ndarray of shape (n_features + 1, n_features + 1), dtype float32
        For the standardised columns, then the intercept.
    """
    from scipy.special import expit

    width, step = X.shape[1], 2048
    products, weights = np.zeros((width + 1, width + 1), np.float32), point.astype(np.float32)
    for start in range(0, len(X), step):
        block = np.ones((len(X[start : start + step]), width + 1), np.float32)
        block[:, :-1] = (X[start : start + step] - columns.mean) / columns.scale
        probability = expit(block @ weights)
        block *= np.sqrt(probability * (1 - probability))[:, None]
        products += block.T @ block
    products /= len(X)
    return products


def factor_of(second: np.ndarray, penalty: float) -> np.ndarray:
    """Lower triangle of the Cholesky factor of second derivatives with a penalty on the weights.

    It gives all directions about the same steepness, so that L-BFGS takes a few steps instead of a hundred.
    """
    from scipy.linalg import cholesky

    second = second.astype(np.float64)
    diagonal = second.ravel()[:: len(second) + 1]
    diagonal += _RIDGE * diagonal.mean()
    diagonal[:-1] += penalty
    # Transposed, which changes nothing, so that LAPACK works in place.
    factor: np.ndarray = cholesky(second.T, lower=True, overwrite_a=True, check_finite=False)
    return factor


def minimise(
    total: Total, strength: float, count: int, columns: Columns, start: tuple[np.ndarray, np.ndarray], tolerance: float
) -> tuple[np.ndarray, int]:
    """Fit ridge-penalised logistic regression on standardised columns.

    Parameters
    ----------
    total : callable
    strength : float
        ``C``, scikit-learn's inverse penalty.
    count : int
        Number of training rows.
    columns : Columns
    start : pair of ndarray
        ``point`` and ``factor`` of a similar fit; see :class:`FirstFit`.
    tolerance : float
        :data:`EXACT` or :data:`ROUGH`.

    Returns
    -------
    point : ndarray of shape (n_features + 1,)
        Weights of the standardised columns, then the intercept.
    steps : int
        Number of iterations.
    """
    from scipy.linalg import solve_triangular
    from scipy.optimize import minimize

    first, factor = start
    penalty = 1.0 / (strength * count)

    def from_even(even: np.ndarray) -> np.ndarray:
        """Point of which ``even`` are the coordinates in equally steep directions."""
        point: np.ndarray = solve_triangular(factor, even, lower=True, trans="T", check_finite=False)
        return point

    def objective(even: np.ndarray) -> tuple[float, np.ndarray]:
        point = from_even(even)
        loss, gradient = columns.loss_and_gradient(total, count, point)
        gradient[:-1] += penalty * point[:-1]
        slope = solve_triangular(factor, gradient, lower=True, check_finite=False)
        return loss + 0.5 * penalty * float(point[:-1] @ point[:-1]), slope

    options = {**_OPTIONS, "gtol": tolerance}
    result = minimize(objective, factor.T @ first, jac=True, method="L-BFGS-B", options=options)
    return from_even(result.x), int(result.nit)
