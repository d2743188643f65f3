"""Logistic regression from sums over blocks of rows.

Functions on a block run on the worker that has the block. Sums are added in the order of the blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_BLOCK = 4096

#: Stopping criteria of scikit-learn's logistic regression; see :func:`models.heads.logistic._logistic`.
_OPTIONS = {"gtol": 1e-4, "ftol": 64 * np.finfo(float).eps, "maxls": 50, "maxiter": 2000}


def scale_of(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Divisor of each column: its spread, or 1 if the column is constant."""
    # The spread of a constant column is rounding noise; dividing by it would turn noise into a feature.
    constant = spread <= 1e-7 * np.maximum(np.abs(mean), 1e-30)
    return np.where(constant, 1.0, spread)


def column_sums(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sum of each column over the training rows of a block.

    Parameters
    ----------
    X : ndarray of shape (m, n_features), float32
    y : ndarray of shape (m,), dtype int8
        0 or 1; -1 for rows that are not training rows.

    Returns
    -------
    ndarray of shape (n_features,), dtype float64
    """
    return X[y >= 0].sum(axis=0, dtype=np.float64)


def column_squares(X: np.ndarray, y: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Sum of squared differences from ``mean`` in each column; arguments as for :func:`column_sums`."""
    total = np.zeros(X.shape[1])
    rows = np.flatnonzero(y >= 0)
    for start in range(0, len(rows), _BLOCK):
        total += np.square(X[rows[start : start + _BLOCK]] - mean).sum(axis=0)
    return total


def loss_and_gradient(X: np.ndarray, y: np.ndarray, weights: np.ndarray, intercept: float) -> np.ndarray:
    """Logistic loss of a block and its derivatives.

    Parameters
    ----------
    X, y
        As for :func:`column_sums`.
    weights : ndarray of shape (n_features,), dtype float64
        For columns that are not standardised.
    intercept : float

    Returns
    -------
    ndarray of shape (2 + n_features,), dtype float64
        Loss, its derivative with respect to the intercept, and its derivatives with respect to the weights.
    """
    from scipy.special import expit

    total = np.zeros(2 + X.shape[1])
    rows = np.flatnonzero(y >= 0)
    for start in range(0, len(rows), _BLOCK):
        inside = rows[start : start + _BLOCK]
        block, label = X[inside].astype(np.float64), y[inside].astype(np.float64)
        margin = block @ weights + intercept
        error = expit(margin) - label
        total[0] += (np.logaddexp(0.0, margin) - label * margin).sum()
        total[1] += error.sum()
        total[2:] += error @ block
    return total


def minimise(
    total: Callable[..., np.ndarray], strength: float, count: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Fit ridge-penalised logistic regression on standardised columns.

    Parameters
    ----------
    total : callable
        ``total(name, *arguments)`` is the sum, over all blocks, of ``name(X, y, *arguments)``, a function of this
        module.
    strength : float
        ``C``, scikit-learn's inverse penalty.
    count : int
        Number of training rows.
    width : int
        Number of columns.

    Returns
    -------
    mean, scale : ndarray of shape (width,)
    point : ndarray of shape (width + 1,)
        Weights of the standardised columns, then the intercept.
    steps : int
        Number of iterations.
    """
    from scipy.optimize import minimize

    mean = total("column_sums") / count
    scale = scale_of(mean, np.sqrt(total("column_squares", mean) / count))
    penalty = 1.0 / (strength * count)

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        weights = point[:-1] / scale
        sums = total("loss_and_gradient", weights, float(point[-1] - mean @ weights))
        loss, by_intercept, by_weight = sums[0] / count, sums[1] / count, sums[2:] / count
        gradient = (by_weight - mean * by_intercept) / scale + penalty * point[:-1]
        return loss + 0.5 * penalty * float(point[:-1] @ point[:-1]), np.append(gradient, by_intercept)

    result = minimize(objective, np.zeros(width + 1), jac=True, method="L-BFGS-B", options=_OPTIONS)
    return mean, scale, result.x, int(result.nit)
