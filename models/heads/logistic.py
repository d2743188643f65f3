"""Ridge-penalised logistic regression on standardised columns."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from histoblend.data.errors import InputError
from histoblend.models.file_checks import check_content
from histoblend.models.heads import logistic_sums
from histoblend.models.heads.head import Head, ReplacedScores, SpreadTable
from histoblend.models.heads.inner_folds import inner_folds
from histoblend.models.heads.logistic_sums import (
    EXACT,
    ROUGH,
    Columns,
    FirstFit,
    Total,
    curvature,
    factor_of,
    minimise,
    scale_of,
)

#: Candidates for ``C``, the inverse regularisation strength. Small values are best for embeddings.
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)

#: Maximum number of patches used to choose ``C``. More patches of the same slides add little information.
CHOOSE_ON = 20_000

#: Histoblend's types in a skops file of this head.
TRUSTED = ["histoblend.models.heads.logistic.LogisticHead"]

_BLOCK = 4096


class LogisticHead(Head):
    """Ridge-penalised logistic regression on standardised columns. ``C`` is chosen on folds of the training slides.

    ``fit`` learns the mean and scale of each column. It chooses the ``C`` with the smallest log loss over inner folds
    by group, with the stronger penalty on a tie, and fits again on all rows. If there are more than ``choose_on`` rows,
    ``C`` is chosen on a random subset of that size. There, ``C`` is rescaled so that the penalty has the same weight
    relative to the loss as on all rows.

    Parameters
    ----------
    strengths : sequence of float
        Candidates for ``C``, scikit-learn's inverse penalty.
    folds : int
        Number of inner folds.
    choose_on : int
        Maximum number of rows in the inner folds.
    seed : int

    Attributes
    ----------
    coef_ : ndarray of shape (1, n_features)
        Change of log-odds per standard deviation of a column.
    intercept_ : ndarray of shape (1,)
    mean_, scale_ : ndarray of shape (n_features,)
        Mean and scale that standardise each column. Constant columns have scale 1.
    C_ : float
        The chosen ``C``.
    inner_loss_ : dict from float to float
        Log loss over the inner folds of each candidate that was tried; empty if no inner fold was possible.
    classes_ : ndarray of shape (2,)
    """

    display_name = "logistic regression"
    marker = "head.skops"
    importance = "coefficient"
    trusted = tuple(TRUSTED)
    additive = True

    def __init__(
        self, strengths: Sequence[float] = STRENGTHS, folds: int = 3, choose_on: int = CHOOSE_ON, seed: int = 0
    ) -> None:
        self.strengths = strengths
        self.folds = folds
        self.choose_on = choose_on
        self.seed = seed

    def fit(self, X: Any, y: Any, groups: Any = None) -> LogisticHead:
        """Fit on ``X`` (n, n_features), ``y`` (n,) and ``groups`` (n,): slides, or None for independent rows."""
        X, codes, groups = self._start_fit(X, y, groups)
        rows = self.tuning_rows(len(X))
        subset = X if len(rows) == len(X) else X[rows]
        self.choose(self.inner_losses(subset, codes[rows], groups[rows], len(X)))
        self.mean_, self.scale_ = _centre_and_scale(X)
        model = _logistic(self.C_).fit(_standardise(X, self.mean_, self.scale_), codes)
        self.coef_, self.intercept_ = model.coef_, model.intercept_
        self.n_iter_ = int(model.n_iter_[0])
        return self

    def fit_spread(self, table: SpreadTable) -> LogisticHead:
        """Fit on a table of which only blocks of rows are in memory. ``C`` is chosen on a subset, as in :meth:`fit`.

        Candidates are tried from the strongest penalty to the weakest, until the loss has risen twice in a row.

        Notes
        -----
        The fit to the subset is the starting point for all rows, and the second derivatives there make all directions
        about equally steep. So L-BFGS reads the table about ten times. The result agrees with a fit in memory within
        the tolerance of that fit's optimiser.
        """
        count, rows = len(table.labels), self.tuning_rows(len(table.labels))
        settings, labels, groups = self.get_params(), table.labels[rows], table.groups[rows]
        start = table.call(__name__, "first_fit", rows, None, settings, labels, groups, count)
        return self.fit_by_sums(functools.partial(table.total, minimise.__module__), start, count)

    def fit_by_sums(self, total: Total, start: FirstFit, count: int) -> LogisticHead:
        """Fit on sums over blocks of rows.

        Parameters
        ----------
        total : callable
            See :data:`models.heads.logistic_sums.Total`.
        start : FirstFit
            Of :func:`first_fit`, on rows of :meth:`tuning_rows`.
        count : int
            Number of training rows.
        """
        self.choose(start.losses)
        columns = Columns.of(total, count, start.mean)
        point, self.n_iter_ = minimise(total, self.C_, count, columns, (start.point, start.factor), EXACT)
        self.mean_, self.scale_ = columns.mean, columns.scale
        self.coef_, self.intercept_ = point[None, :-1], point[-1:]
        self.n_features_in_, self.classes_ = len(point) - 1, np.array([0, 1])
        return self

    def tuning_rows(self, count: int) -> np.ndarray:
        """Choose the row numbers, below ``count``, on which ``C`` is chosen."""
        if count <= self.choose_on:
            return np.arange(count)
        return np.sort(np.random.default_rng(self.seed).choice(count, self.choose_on, replace=False))

    def inner_losses(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray, count: int) -> dict[float, float]:
        """Mean log loss of each candidate over the inner folds; empty with a single candidate or without folds.

        Parameters
        ----------
        X : ndarray of shape (m, n_features)
            Rows of :meth:`tuning_rows`.
        y : ndarray of shape (m,), 0 or 1
        groups : ndarray of shape (m,)
        count : int
            Number of rows of the final fit.
        """
        losses = [
            self._losses(X, y, train, validation, count / len(X)) for train, validation in self.inner_parts(y, groups)
        ]
        return dict(zip(sorted(self.strengths), np.mean(losses, axis=0).tolist(), strict=True)) if losses else {}

    def inner_parts(self, y: np.ndarray, groups: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Inner folds; none with a single candidate."""
        return list(inner_folds(y, groups, self.folds, self.seed)) if len(self.strengths) > 1 else []

    def choose(self, losses: dict[float, float]) -> None:
        """Choose the ``C`` with the smallest inner loss; the stronger penalty wins a tie."""
        strengths = sorted(self.strengths)
        self.inner_loss_ = losses
        # Without inner folds, the middle candidate is as good a guess as any.
        self.C_ = min(losses, key=losses.__getitem__) if losses else strengths[len(strengths) // 2]

    def _losses(
        self, X: np.ndarray, y: np.ndarray, train: np.ndarray, validation: np.ndarray, ratio: float
    ) -> list[float]:
        """Log loss of each candidate on one inner fold, standardised by its training rows.

        ``ratio`` is the number of all rows divided by the number of rows in the inner folds.
        """
        from sklearn.metrics import log_loss

        moments = _centre_and_scale(X[train])
        inside, outside = _standardise(X[train], *moments), _standardise(X[validation], *moments)
        # From the strongest penalty to the weakest: starting from the previous solution saves many steps.
        model = _logistic(1.0).set_params(warm_start=True)
        return [
            log_loss(
                y[validation], model.set_params(C=strength * ratio).fit(inside, y[train]).predict_proba(outside)[:, 1]
            )
            for strength in sorted(self.strengths)
        ]

    @property
    def importances(self) -> np.ndarray:
        """Coefficients, ndarray of shape (n_features,)."""
        check_is_fitted(self)
        return np.asarray(self.coef_[0])

    def column_measures(self) -> dict[str, np.ndarray]:
        """Importance measures of the columns, from the fitted head itself.

        Returns
        -------
        dict from str to ndarray of shape (n_features,), dtype float64
            ``coefficient``: change of log-odds per standard deviation.
        """
        check_is_fitted(self)
        return {"coefficient": self.coef_[0].astype(np.float64)}

    def _positive(self, X: np.ndarray) -> np.ndarray:
        from scipy.special import expit

        # The weights absorb the standardisation, which saves a standardised copy of X.
        weights = self.coef_[0] / self.scale_
        margin = np.empty(len(X))
        for start in range(0, len(X), _BLOCK):
            # Not X @ weights: the order in which BLAS adds up a row depends on the number of rows.
            margin[start : start + _BLOCK] = (X[start : start + _BLOCK] * weights).sum(axis=1)
        return expit(margin + (self.intercept_[0] - self.mean_ @ weights))

    def contributions(self, rows: np.ndarray) -> tuple[np.ndarray, float]:
        """See :meth:`Head.contributions`: coefficient times standardised column, and the intercept."""
        return self.coef_[0] * (rows - self.mean_) / self.scale_, float(self.intercept_[0])

    def with_replaced(self, X: np.ndarray) -> ReplacedScores:
        """See :meth:`Head.with_replaced`. Recomputes only the terms of the replaced columns."""
        from scipy.special import expit

        weights = self.coef_[0] / self.scale_
        margin = X @ weights + (self.intercept_[0] - self.mean_ @ weights)

        def score(columns: Sequence[int], values: np.ndarray) -> np.ndarray:
            change = (values - X[:, list(columns)]).astype(np.float64) @ weights[list(columns)]
            scores: np.ndarray = expit(margin + change)
            return scores

        return score

    def save(self, folder: Path) -> None:
        """Write ``head.skops`` into a folder."""
        import skops.io

        folder.mkdir(parents=True, exist_ok=True)
        skops.io.dump(self, folder / self.marker)

    @classmethod
    def load(cls, files: Mapping[str, bytes], where: str) -> LogisticHead:
        """Load a head from the content of ``head.skops``; see :meth:`Head.load`."""
        import skops.io

        name = f"{where}/{cls.marker}"
        check_content(name, files[cls.marker], TRUSTED)
        head = skops.io.loads(files[cls.marker], trusted=TRUSTED)
        if not isinstance(head, cls):
            raise InputError(f"{name}: expected a {cls.__name__}; got {type(head).__name__}. Get the bundle again.")
        return head


def _logistic(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=2000)


def _centre_and_scale(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = X.mean(axis=0, dtype=np.float64)
    # In blocks, to avoid a float64 copy of the whole table.
    blocks = (X[start : start + _BLOCK] for start in range(0, len(X), _BLOCK))
    squares = sum(np.square(block - mean).sum(axis=0) for block in blocks)
    return mean, scale_of(mean, np.sqrt(squares / len(X)))


def _standardise(X: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Standardise in float64 and round to the dtype of X, in blocks of rows to save memory."""
    out = np.empty_like(X)
    for start in range(0, len(X), _BLOCK):
        out[start : start + _BLOCK] = (X[start : start + _BLOCK] - mean) / scale
    return out


def tried(strengths: Sequence[float], losses_of: Callable[[float], list[float]]) -> dict[float, float]:
    """Mean loss of candidates, from the strongest penalty on, until it has risen twice in a row.

    Fits start from the solution for the previous candidate. Those with the weakest penalties take the most steps.
    """
    losses: dict[float, float] = {}
    for strength in strengths:
        losses[strength] = float(np.mean(losses_of(strength)))
        lowest, before, last = (math.inf, math.inf, *losses.values())[-3:]
        if last > before > lowest:
            break
    return losses


def first_fit(settings: dict[str, Any], y: np.ndarray, groups: np.ndarray, count: int, *pieces: np.ndarray) -> FirstFit:
    """Choose ``C`` and fit on a subset of the training rows: the start of a fit on all of them.

    Parameters
    ----------
    settings : dict
        Parameters of the head.
    y, groups : ndarray of shape (m,)
    count : int
        Number of all training rows.
    *pieces : ndarray of shape (…, n_features), float32
        Rows of :meth:`LogisticHead.tuning_rows`.
    """
    from scipy.special import logit
    from threadpoolctl import threadpool_limits

    X, head = pieces[0] if len(pieces) == 1 else np.concatenate(pieces), LogisticHead(**settings)
    with threadpool_limits(1):
        subset, ratio = _Subset(X, y, np.arange(len(y))), count / len(X)
        # Without weights, each patch gets the share of positives.
        point = np.append(np.zeros(X.shape[1]), logit((y.sum() + 0.5) / (len(y) + 1)))
        second = curvature(X, subset.columns, point)
        parts = [(_Subset(X, y, train), _Subset(X, y, validation)) for train, validation in head.inner_parts(y, groups)]
        points = [point] * len(parts)

        def losses_of(strength: float) -> list[float]:
            factor, losses = factor_of(second, 1.0 / (strength * count)), []
            for number, (train, validation) in enumerate(parts):
                points[number] = train.fitted(strength * ratio, points[number], factor)
                losses.append(
                    train.columns.loss_and_gradient(validation.total, len(validation.rows), points[number])[0]
                )
            return losses

        losses = tried(sorted(head.strengths) if parts else (), losses_of)
        head.choose(losses)
        penalty = 1.0 / (head.C_ * count)
        first = np.mean(points, axis=0) if parts else point
        point = subset.fitted(head.C_ * ratio, first, factor_of(second, penalty))
        # The loss is less steep here than without weights, and differently in each direction.
        second = curvature(X, subset.columns, point)
        return FirstFit(losses, subset.columns.mean, point, factor_of(second, penalty))


class _Subset:
    """Some rows of an array, for fits by sums.

    Parameters
    ----------
    X : ndarray of shape (m, n_features), float32
    y : ndarray of shape (m,), 0 or 1
    rows : ndarray of int
    """

    def __init__(self, X: np.ndarray, y: np.ndarray, rows: np.ndarray) -> None:
        self.X, self.rows = X, rows
        self.known = np.full(len(y), -1, np.int8)
        self.known[rows] = y[rows]

    @functools.cached_property
    def columns(self) -> Columns:
        return Columns.of(self.total, len(self.rows), self.X[self.rows[0]].astype(np.float64))

    def total(self, name: str, *arguments: Any) -> np.ndarray:
        total: np.ndarray = getattr(logistic_sums, name)(self.X, self.known, *arguments)
        return total

    def fitted(self, strength: float, point: np.ndarray, factor: np.ndarray) -> np.ndarray:
        return minimise(self.total, strength, len(self.rows), self.columns, (point, factor), ROUGH)[0]
