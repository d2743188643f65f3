"""Ridge-penalised logistic regression on standardised columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from histoblend.data.errors import InputError
from histoblend.models.file_checks import check_content
from histoblend.models.heads.head import Head, ReplacedScores, SpreadTable
from histoblend.models.heads.inner_folds import inner_folds
from histoblend.models.heads.logistic_sums import minimise, scale_of

#: Inverse regularisation strengths that logistic regression chooses from; embeddings do best at the small end.
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)

#: Patches on which a strength is chosen at most: slides are the sample, and more patches of the same slides say little
#: more.
CHOOSE_ON = 20_000

#: What a skops file of this head may hold.
TRUSTED = ["histoblend.models.heads.logistic.LogisticHead"]

_BLOCK = 4096


class LogisticHead(Head):
    """Ridge-penalised logistic regression on standardised columns; strength chosen inside the training slides.

    Centre and spread of every column are learned in ``fit``. The strength with the smallest log loss over inner folds
    by group is taken, the stronger penalty on a tie, and the model is fitted again on all rows. Of more than
    ``choose_on`` rows a random part of that size chooses, under a penalty that weighs as much against its loss as the
    same strength does on all rows.

    Parameters
    ----------
    strengths : sequence of float
        Candidates for ``C``, scikit-learn's inverse penalty.
    folds : int
        Inner folds.
    choose_on : int
        Most rows that the inner folds hold.
    seed : int

    Attributes
    ----------
    coef_ : ndarray of shape (1, n_features)
        Change of log odds for one standard deviation of a column.
    intercept_ : ndarray of shape (1,)
    mean_, scale_ : ndarray of shape (n_features,)
        What was taken from, and divided into, each column. Constant columns have scale 1.
    C_ : float
        The chosen strength.
    inner_loss_ : dict from float to float
        Log loss of each candidate over the inner folds; empty where no inner fold was possible.
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
        rows = self.choosers(len(X))
        chosen_from = X if len(rows) == len(X) else X[rows]
        self.choose(self.inner_losses(chosen_from, codes[rows], groups[rows], len(X)))
        self.mean_, self.scale_ = _centre_and_scale(X)
        model = _logistic(self.C_).fit(_standardise(X, self.mean_, self.scale_), codes)
        self.coef_, self.intercept_ = model.coef_, model.intercept_
        self.n_iter_ = int(model.n_iter_[0])
        return self

    def fit_spread(self, table: SpreadTable) -> LogisticHead:
        """Fit on a table that is spread over a cluster: the strength chosen on one worker, the weights by sums.

        Notes
        -----
        L-BFGS needs one pass over the table a step, and of it nothing but a sum as long as a row. The result agrees
        with a fit in memory as far as that minimiser's own tolerance goes: it computes in float32, this in float64.
        """
        count = len(table.labels)
        rows = self.choosers(count)
        settings = self.get_params()
        self.choose(
            table.call(__name__, "inner_losses", rows, None, settings, table.labels[rows], table.groups[rows], count)
        )
        return self.fit_by_sums(partial(table.total, minimise.__module__), count, table.width)

    def fit_by_sums(self, total: Callable[..., np.ndarray], count: int, width: int) -> LogisticHead:
        """Fit with the strength that has been chosen, by the minimiser, loss and tolerance of a table in memory.

        Parameters
        ----------
        total : callable
            ``total("column_sums")`` is the sum of that function of :mod:`models.heads.logistic_sums` over all blocks.
        count : int
            Rows that are learned from.
        width : int
            Columns.
        """
        self.mean_, self.scale_, point, self.n_iter_ = minimise(total, self.C_, count, width)
        self.coef_, self.intercept_ = point[None, :-1], point[-1:]
        self.n_features_in_, self.classes_ = width, np.array([0, 1])
        return self

    def choosers(self, count: int) -> np.ndarray:
        """Row numbers, of `count`, that the strength is chosen on."""
        if count <= self.choose_on:
            return np.arange(count)
        return np.sort(np.random.default_rng(self.seed).choice(count, self.choose_on, replace=False))

    def inner_losses(self, X: np.ndarray, y: np.ndarray, groups: np.ndarray, count: int) -> dict[float, float]:
        """Mean log loss of each candidate over the inner folds; empty where there is nothing to choose, or no fold.

        Parameters
        ----------
        X : ndarray of shape (m, n_features)
            Rows of :meth:`choosers`.
        y : ndarray of shape (m,), 0 or 1
        groups : ndarray of shape (m,)
        count : int
            Rows that the head is fitted on in the end.
        """
        strengths = sorted(self.strengths)
        losses: dict[float, list[float]] = {strength: [] for strength in strengths}
        if len(strengths) > 1:
            for train, validation in inner_folds(y, groups, self.folds, self.seed):
                self._score(X, y, train, validation, losses, count / len(X))
        return {strength: float(np.mean(loss)) for strength, loss in losses.items() if loss}

    def choose(self, losses: dict[float, float]) -> None:
        """Take the strength with the smallest of the inner losses, the stronger penalty on a tie."""
        strengths = sorted(self.strengths)
        self.inner_loss_ = losses
        # Without any inner fold the middle candidate is as good a guess as another.
        self.C_ = min(losses, key=losses.__getitem__) if losses else strengths[len(strengths) // 2]

    def _score(
        self,
        X: np.ndarray,
        y: np.ndarray,
        train: np.ndarray,
        validation: np.ndarray,
        losses: dict[float, list[float]],
        share: float,
    ) -> None:
        """Append every candidate's log loss on one inner fold, whose scaler sees its training rows only.

        ``share`` is the number of all rows for one that may choose.
        """
        from sklearn.metrics import log_loss

        mean, scale = _centre_and_scale(X[train])
        inside, outside = _standardise(X[train], mean, scale), _standardise(X[validation], mean, scale)
        # From the strongest penalty to the weakest, each fit starting where the last one ended: far fewer steps.
        model = _logistic(1.0).set_params(warm_start=True)
        for strength in losses:
            model.set_params(C=strength * share).fit(inside, y[train])
            losses[strength].append(log_loss(y[validation], model.predict_proba(outside)[:, 1]))

    @property
    def importances(self) -> np.ndarray:
        """Coefficients, ndarray of shape (n_features,)."""
        check_is_fitted(self)
        return np.asarray(self.coef_[0])

    def column_measures(self) -> dict[str, np.ndarray]:
        """What the fitted head says of its own columns.

        Returns
        -------
        dict from str to ndarray of shape (n_features,), dtype float64
            ``coefficient``: change of log odds for one standard deviation.
        """
        check_is_fitted(self)
        return {"coefficient": self.coef_[0].astype(np.float64)}

    def _positive(self, X: np.ndarray) -> np.ndarray:
        from scipy.special import expit

        # The scaler goes into the weights: the same sum, without a standardised copy of X.
        weights = self.coef_[0] / self.scale_
        margin = np.empty(len(X))
        for start in range(0, len(X), _BLOCK):
            # Not X @ weights: how BLAS adds up a row depends on how many rows stand beside it.
            margin[start : start + _BLOCK] = (X[start : start + _BLOCK] * weights).sum(axis=1)
        return expit(margin + (self.intercept_[0] - self.mean_ @ weights))

    def contributions(self, rows: np.ndarray) -> tuple[np.ndarray, float]:
        """Coefficient times the column's distance from the training mean in standard deviations, and the intercept.

        See :meth:`Head.contributions`.
        """
        return self.coef_[0] * (rows - self.mean_) / self.scale_, float(self.intercept_[0])

    def with_replaced(self, X: np.ndarray) -> ReplacedScores:
        """See :meth:`Head.with_replaced`. Only the terms of the replaced columns are computed again."""
        from scipy.special import expit

        weights = self.coef_[0] / self.scale_
        margin = X @ weights + (self.intercept_[0] - self.mean_ @ weights)

        def score(columns: Sequence[int], values: np.ndarray) -> np.ndarray:
            moved = (values - X[:, list(columns)]).astype(np.float64) @ weights[list(columns)]
            scores: np.ndarray = expit(margin + moved)
            return scores

        return score

    def save(self, folder: Path) -> None:
        """Write ``head.skops`` into a folder."""
        import skops.io

        folder.mkdir(parents=True, exist_ok=True)
        skops.io.dump(self, folder / self.marker)

    @classmethod
    def load(cls, files: Mapping[str, bytes], where: str) -> LogisticHead:
        """Make a head from the content of ``head.skops``; see :meth:`Head.load`."""
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
    # In blocks: numpy would make a float64 copy of the whole table.
    blocks = (X[start : start + _BLOCK] for start in range(0, len(X), _BLOCK))
    squares = sum(np.square(block - mean).sum(axis=0) for block in blocks)
    return mean, scale_of(mean, np.sqrt(squares / len(X)))


def _standardise(X: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Standardise in float64 and round to the type of X, a block of rows at a time: one copy of the table, no more."""
    out = np.empty_like(X)
    for start in range(0, len(X), _BLOCK):
        out[start : start + _BLOCK] = (X[start : start + _BLOCK] - mean) / scale
    return out


def inner_losses(
    settings: dict[str, Any], y: np.ndarray, groups: np.ndarray, count: int, *pieces: np.ndarray
) -> dict[float, float]:
    """Inner losses of a head with these settings, on the rows that choose, which come in pieces: a worker's part."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return LogisticHead(**settings).inner_losses(np.concatenate(pieces), y, groups, count)
