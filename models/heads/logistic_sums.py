"""Logistic regression from sums over blocks of rows.

Functions on a block run where the block is. Sums are added in the order of the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

#: Values that are processed together: these fit into a processor's cache.
_VALUES = 2**18

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
    total = np.zeros((2, X.shape[1]))
    for rows in _parts(y, X.shape[1]):
        difference = X[rows] - shift
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
    from scipy.special import expit

    total = np.zeros(2 + X.shape[1])
    for rows in _parts(y, X.shape[1]):
        block, label = X[rows], y[rows].astype(np.float64)
        block -= centre
        margin = (block @ weights).astype(np.float64) + intercept
        error = expit(margin) - label
        total[0] += (np.logaddexp(0.0, margin) - label * margin).sum()
        total[1] += error.sum()
        total[2:] += error.astype(np.float32) @ block
    return total


def _parts(y: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """Yield the numbers of the training rows of a block, a few at a time."""
    rows, step = np.flatnonzero(y >= 0), max(1, _VALUES // width)
    yield from (rows[start : start + step] for start in range(0, len(rows), step))


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
