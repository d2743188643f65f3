"""What heads need of a table that no memory holds whole: sums over blocks of rows, and what follows from them.

The functions on a block run where the block lies; sums are taken in the order of the blocks, whoever computed them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from histoblend.models.heads import HEADS, LogisticHead, scale_of

_BLOCK = 4096

#: What scikit-learn's logistic regression stops by: see :func:`models.heads._logistic`.
_OPTIONS = {"gtol": 1e-4, "ftol": 64 * np.finfo(float).eps, "maxls": 50, "maxiter": 2000}


def column_sums(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sum of each column over the rows of a block that are learned from.

    Parameters
    ----------
    X : ndarray of shape (m, n_features), float32
    y : ndarray of shape (m,), dtype int8
        0 or 1; -1 for rows that are not learned from.

    Returns
    -------
    ndarray of shape (n_features,), dtype float64
    """
    return X[y >= 0].sum(axis=0, dtype=np.float64)


def column_squares(X: np.ndarray, y: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Sum of squared distances from ``mean``, by column; arguments as for :func:`column_sums`."""
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
        On the columns as they are.
    intercept : float

    Returns
    -------
    ndarray of shape (2 + n_features,), dtype float64
        Loss, its derivative by the intercept, and by each weight.
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


#: Sums a function of this module over all blocks: its name and what it takes beside X and y, to the total.
Total = Callable[..., np.ndarray]


def fit_logistic(head: LogisticHead, total: Total, labels: np.ndarray, width: int) -> LogisticHead:
    """Fit a head whose strength has been chosen, by the same minimiser, loss and tolerance as on a table in memory.

    Parameters
    ----------
    head : LogisticHead
        With ``C_`` (:meth:`models.heads.LogisticHead.choose`).
    total : callable
        ``total("column_sums")`` is the sum of that function over all blocks.
    labels : ndarray of shape (n,), 0 or 1
        Of the rows that are learned from.
    width : int
        Columns.

    Notes
    -----
    L-BFGS needs one pass over the table a step, and of it nothing but a sum as long as a row. The result agrees with
    a fit in memory as far as that minimiser's own tolerance goes: it computes in float32, this in float64.
    """
    from scipy.optimize import minimize

    count = len(labels)
    mean = total("column_sums") / count
    scale = scale_of(mean, np.sqrt(total("column_squares", mean) / count))
    penalty = 1.0 / (head.C_ * count)

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        weights = point[:-1] / scale
        found = total("loss_and_gradient", weights, float(point[-1] - mean @ weights))
        loss, by_intercept, by_weight = found[0] / count, found[1] / count, found[2:] / count
        gradient = (by_weight - mean * by_intercept) / scale + penalty * point[:-1]
        return loss + 0.5 * penalty * float(point[:-1] @ point[:-1]), np.append(gradient, by_intercept)

    found = minimize(objective, np.zeros(width + 1), jac=True, method="L-BFGS-B", options=_OPTIONS)
    head.mean_, head.scale_ = mean, scale
    head.coef_, head.intercept_ = found.x[None, :-1], found.x[-1:]
    head.n_iter_, head.n_features_in_, head.classes_ = int(found.nit), width, np.array([0, 1])
    return head


def take(X: np.ndarray, rows: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
    """Some rows of a block, and of them some columns (all for None)."""
    return np.ascontiguousarray(X[rows] if columns is None else X[np.ix_(rows, columns)])


def choose_strength(
    name: str, seed: int, y: np.ndarray, groups: np.ndarray, count: int, *pieces: np.ndarray
) -> dict[float, float]:
    """Inner losses of a logistic head, by its name in the table of heads, on the rows that choose, in pieces."""
    head: Any = HEADS[name](seed)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return head.inner_losses(np.concatenate(pieces), y, groups, count)


def best_trees(name: str, seed: int, content: bytes, y: np.ndarray, *pieces: np.ndarray) -> int:
    """How many trees of a grown booster rank its unseen part best; the part came in pieces."""
    import xgboost
    from sklearn.metrics import roc_auc_score

    head: Any = HEADS[name](seed)
    booster = xgboost.Booster({"nthread": 1}, model_file=bytearray(content))
    watched = xgboost.DMatrix(np.concatenate(pieces), nthread=1)
    return head.kept_trees(lambda trees: float(roc_auc_score(y, booster.predict(watched, iteration_range=(0, trees)))))


def keep(value: np.ndarray) -> np.ndarray:
    """Return a value as it is: a task that holds it where others need it."""
    return value


def add_up(*parts: np.ndarray) -> np.ndarray:
    """Sum of arrays, from the first to the last."""
    total: np.ndarray = np.sum(np.stack(parts), axis=0)
    return total


def blocks_of(rows: np.ndarray, edges: Sequence[int]) -> list[np.ndarray]:
    """Ascending row numbers cut at the edges of blocks, each counted from its block's first row."""
    cuts = np.searchsorted(rows, edges)
    return [rows[low:high] - start for low, high, start in zip(cuts[:-1], cuts[1:], edges[:-1], strict=True)]
