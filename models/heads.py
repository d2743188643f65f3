"""Heads: classifiers on a feature table, with everything that learns inside ``fit`` and grouped by slide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from histoblend.data.splits import grouped_folds

#: Inverse regularisation strengths that logistic regression chooses from: embeddings want the small end.
STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)

#: Patches on which a strength is chosen, and on which a booster is grown, at most: slides are the sample, and more
#: patches of the same slides say little more.
CHOOSE_ON = 20_000
GROW_ON = 30_000

#: Trees between two looks at the unseen part while boosting.
LOOK_EVERY = 10

_BLOCK = 4096


class _Head(ClassifierMixin, BaseEstimator, ABC):
    """What both heads share: input checks, class encoding and the two ways to predict."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def _start_fit(self, X: Any, y: Any, groups: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Check the input; return X (float32 or float64), y as 0 and 1, and groups as integer codes."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) > 2:
            raise ValueError(f"Only binary classification is supported; got {len(self.classes_)} classes.")
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold two classes; got one class, {self.classes_[0]!r}.")
        if groups is None:
            return X, codes, np.arange(len(codes))
        groups = np.asarray(groups)
        if groups.shape != codes.shape:
            raise ValueError(f"groups must have shape {codes.shape}; got {groups.shape}.")
        return X, codes, np.unique(groups.astype(str), return_inverse=True)[1]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each class.

        Parameters
        ----------
        X : array-like of shape (n, n_features)

        Returns
        -------
        ndarray of shape (n, 2), dtype float64
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        positive = self._positive(X)
        return np.column_stack([1 - positive, positive])

    def predict(self, X: Any) -> np.ndarray:
        """Class with the larger probability, ndarray of shape (n,)."""
        positive = self.predict_proba(X)[:, 1] > 0.5
        return self.classes_[positive.astype(int)]

    @abstractmethod
    def _positive(self, X: np.ndarray) -> np.ndarray:
        """Probability of the second class, ndarray of shape (n,)."""

    @abstractmethod
    def column_measures(self) -> dict[str, np.ndarray]:
        """What the fitted head says of its own columns: measure to ndarray of shape (n_features,), float64."""


def inner_folds(y: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Folds inside a training set, by group, that leave and hold both classes.

    Parameters
    ----------
    y : ndarray of shape (n,), 0 or 1
    groups : ndarray of shape (n,)
    folds : int
        At most as many are made as groups and the rarer class allow; fewer than two groups give none.
    seed : int

    Yields
    ------
    train, validation : ndarray of int
        Row numbers.
    """
    groups_of = [np.unique(groups[y == label]).size for label in (0, 1)]
    possible = min(folds, *groups_of, *np.bincount(y, minlength=2).tolist())
    if possible < 2:
        return
    for validation in grouped_folds(y, groups, possible, seed):
        train = np.setdiff1d(np.arange(len(y)), validation, assume_unique=True)
        if len(np.unique(y[train])) == 2 and len(np.unique(y[validation])) == 2:
            yield train, validation


class LogisticHead(_Head):
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


def _logistic(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=2000)


def _centre_and_scale(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = X.mean(axis=0, dtype=np.float64)
    # In blocks: numpy would make a float64 copy of the whole table.
    blocks = (X[start : start + _BLOCK] for start in range(0, len(X), _BLOCK))
    squares = sum(np.square(block - mean).sum(axis=0) for block in blocks)
    return mean, scale_of(mean, np.sqrt(squares / len(X)))


def scale_of(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """What each column is divided by: its spread, and 1 where it is constant."""
    # A constant column's spread is rounding noise: dividing by it would make noise into a feature.
    constant = spread <= 1e-7 * np.maximum(np.abs(mean), 1e-30)
    return np.where(constant, 1.0, spread)


def _standardise(X: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Standardise in float64 and round to the type of X, a block of rows at a time: one copy of the table, no more."""
    out = np.empty_like(X)
    for start in range(0, len(X), _BLOCK):
        out[start : start + _BLOCK] = (X[start : start + _BLOCK] - mean) / scale
    return out


class XGBoostHead(_Head):
    """Histogram gradient boosting, stopped early on slides that its trees have not seen.

    The training slides are cut into ``folds`` parts. For each part, trees are grown on the others until the part's AUC
    has not improved for ``patience`` trees; the boosters' log odds are averaged, so that every training slide is
    learned from and no single part decides when to stop. AUC decides and not log loss: a part whose prevalence differs
    stops log loss after a few trees, long before the ranking is learned.

    Parameters
    ----------
    trees, fewest : int
        Most and fewest trees of a booster: with few slides, the best AUC of the first trees is luck.
    depth : int
    learning_rate : float
    columns : int
        Columns that a tree may use, drawn anew for each.
    rows : float
        Share of the rows that a tree is grown on, drawn anew for each.
    grow_on : int
        Most rows that a booster is grown on, and stopped on, drawn for each: XGBoost's time and memory grow with all
        rows of its matrix, whatever share of them a tree may use.
    bins : int
        Histogram bins a column.
    patience : int
        Trees without a better AUC after which growing stops.
    folds : int
    subspace : int
        Columns that a booster may use, drawn for each: where there are more, boosters see different ones.
    seed : int

    Attributes
    ----------
    columns_ : list of ndarray of int
        Columns of each booster.
    boosters_ : list of xgboost.Booster
        One a part; a single one, of ``fewest`` trees, where there are too few groups to stop on.
    n_trees_ : list of int
        Trees kept of each.
    feature_importances_ : ndarray of shape (n_features,)
        Share of the total gain; sums to 1 (all 0 when no tree splits).
    classes_ : ndarray of shape (2,)
    """

    def __init__(
        self,
        trees: int = 400,
        fewest: int = 100,
        depth: int = 3,
        learning_rate: float = 0.05,
        columns: int = 64,
        rows: float = 0.8,
        grow_on: int = GROW_ON,
        bins: int = 64,
        patience: int = 60,
        folds: int = 3,
        subspace: int = 1024,
        seed: int = 0,
    ) -> None:
        self.trees = trees
        self.fewest = fewest
        self.depth = depth
        self.learning_rate = learning_rate
        self.columns = columns
        self.rows = rows
        self.grow_on = grow_on
        self.bins = bins
        self.patience = patience
        self.folds = folds
        self.subspace = subspace
        self.seed = seed

    def fit(self, X: Any, y: Any, groups: Any = None) -> XGBoostHead:
        """Fit on ``X`` (n, n_features), ``y`` (n,) and ``groups`` (n,): slides, or None for independent rows."""
        X, codes, groups = self._start_fit(X, y, groups)
        self.columns_, self.boosters_ = [], []
        for inside, outside, chosen in self.plan(codes, groups, X.shape[1]):
            table = np.ascontiguousarray(X[np.ix_(inside, chosen)])
            self.columns_.append(chosen)
            self.boosters_.append(self._grow(table, codes[inside], X[np.ix_(outside, chosen)], codes[outside]))
        self.n_trees_ = [booster.num_boosted_rounds() for booster in self.boosters_]
        return self

    def plan(
        self, y: np.ndarray, groups: np.ndarray, width: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """What each booster is made of.

        Parameters
        ----------
        y : ndarray of shape (n,), 0 or 1
        groups : ndarray of shape (n,)
        width : int
            Columns.

        Yields
        ------
        inside, outside, chosen : ndarray of int
            Rows that it grows on, rows that say when to stop (none with too few groups), and its columns.
        """
        parts = list(inner_folds(y, groups, self.folds, self.seed))
        rng = np.random.default_rng(self.seed)
        for grown, part in parts or [(np.arange(len(y)), np.arange(0))]:
            # XGBoost's histograms cost as much as all columns of its matrix, whatever share of them a tree may use.
            chosen = np.sort(rng.choice(width, min(self.subspace, width), replace=False))
            yield self._some(grown, rng), self._some(part, rng), chosen

    def _some(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """At most ``grow_on`` of the rows, in their order."""
        return rows if len(rows) <= self.grow_on else np.sort(rng.choice(rows, self.grow_on, replace=False))

    def _grow(self, X: np.ndarray, y: np.ndarray, part: np.ndarray, part_y: np.ndarray) -> Any:
        """Grow trees on (X, y), as many as rank the unseen part best; ``fewest`` where the part is empty."""
        import xgboost
        from sklearn.metrics import roc_auc_score

        # One thread: sums in histograms then have one order, so that results never depend on the machine's cores.
        parameters = {**self.parameters(X.shape[1]), "nthread": 1}
        matrix = xgboost.QuantileDMatrix(X, y, max_bin=self.bins, nthread=1)
        booster = xgboost.train(parameters, matrix, min(self.fewest, self.trees))
        if not len(part):
            return booster
        watched = xgboost.DMatrix(part, nthread=1)

        def score(trees: int) -> float:
            while (grown := booster.num_boosted_rounds()) < trees:
                booster.update(matrix, grown)
            return float(roc_auc_score(part_y, booster.predict(watched)))

        return booster[: self.kept_trees(score)]

    def parameters(self, width: int) -> dict[str, Any]:
        """XGBoost's parameters for a table of so many columns."""
        return {
            "objective": "binary:logistic",
            "tree_method": "hist",
            "max_depth": self.depth,
            "learning_rate": self.learning_rate,
            "colsample_bytree": min(1.0, self.columns / width),
            "subsample": self.rows,
            "max_bin": self.bins,
            "min_child_weight": 3,
            "seed": self.seed,
            "verbosity": 0,
        }

    def kept_trees(self, score: Callable[[int], float]) -> int:
        """How many trees a booster keeps, by the scores on its unseen part of its first 100, 110, 120 … trees."""
        best = trees = min(self.fewest, self.trees)
        best_score = score(trees)
        # A look after every tree would cost as much as growing it.
        while trees < self.trees and trees - best < self.patience:
            trees += min(LOOK_EVERY, self.trees - trees)
            found = score(trees)
            if found > best_score:
                best, best_score = trees, found
        return best

    def _positive(self, X: np.ndarray) -> np.ndarray:
        from scipy.special import expit

        X = X.astype(np.float32, copy=False)
        margins = []
        for chosen, booster in zip(self.columns_, self.boosters_, strict=True):
            inside = X if len(chosen) == X.shape[1] else np.ascontiguousarray(X[:, chosen])
            # In place: building XGBoost's own matrix would take several times as long as the trees.
            margins.append(booster.inplace_predict(inside, predict_type="margin").astype(np.float64))
        return expit(np.mean(margins, axis=0))

    @property
    def feature_importances_(self) -> np.ndarray:
        """Share of the total gain, ndarray of shape (n_features,)."""
        return self._shares("total_gain")

    def column_measures(self) -> dict[str, np.ndarray]:
        """What the fitted head says of its own columns.

        Returns
        -------
        dict from str to ndarray of shape (n_features,), dtype float64
            ``gain``: share of what all splits take off the training loss. ``cover``: share of the patches that pass
            all splits, each counted by how unsure of it the trees before were (the loss' second derivative). Both are
            averaged over the boosters and sum to 1 (all 0 when no tree splits).
        """
        return {"gain": self.feature_importances_, "cover": self._shares("total_cover")}

    def _shares(self, kind: str) -> np.ndarray:
        """Share of each column in one of XGBoost's totals over all boosters, ndarray of shape (n_features,)."""
        check_is_fitted(self)
        total = np.zeros(self.n_features_in_)
        for chosen, booster in zip(self.columns_, self.boosters_, strict=True):
            for name, value in booster.get_score(importance_type=kind).items():
                total[chosen[int(name[1:])]] += value
        return total / total.sum() if total.sum() else total


def logistic(seed: int) -> LogisticHead:
    """Logistic regression head, unfitted."""
    return LogisticHead(seed=seed)


def xgboost(seed: int) -> XGBoostHead:
    """XGBoost head, unfitted."""
    return XGBoostHead(seed=seed)


#: Every head: its name, and what makes an unfitted one from a seed.
HEADS: dict[str, Callable[[int], LogisticHead | XGBoostHead]] = {"logistic": logistic, "xgboost": xgboost}
