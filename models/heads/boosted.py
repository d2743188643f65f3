"""Gradient boosting with XGBoost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from histoblend.data.errors import InputError
from histoblend.data.storage.expansion import read_json
from histoblend.models.heads.booster_files import checked_booster
from histoblend.models.heads.head import Head, ReplacedScores, SpreadTable
from histoblend.models.heads.inner_folds import inner_folds

#: Most patches that a booster learns from. The slides are the sample: more patches of the same slides add little.
GROW_ON = 30_000

#: Trees between two scores on the validation part.
LOOK_EVERY = 10


class XGBoostHead(Head):
    """Histogram gradient boosting with early stopping on slides that the trees have not seen.

    The training slides are divided into ``folds`` parts. One booster per part grows trees on the other parts, until the
    part's AUC has not improved for ``patience`` trees. The boosters' log-odds are averaged: every training slide is
    learned from, and no single part decides when to stop. The criterion is AUC, because a part with another prevalence
    stops log loss after a few trees, long before the ranking is learned.

    Parameters
    ----------
    trees, fewest : int
        Most and fewest trees of a booster. With few slides, a high AUC of the first trees is chance.
    depth : int
    learning_rate : float
    columns : int
        Number of columns drawn for each tree.
    rows : float
        Share of the rows drawn for each tree.
    grow_on : int
        Most rows drawn for a booster to learn from, and most to stop on. XGBoost's time and memory grow with all rows
        of its matrix, even if each tree uses a share of them.
    bins : int
        Histogram bins per column.
    patience : int
        Trees without a better AUC after which boosting stops.
    folds : int
    subspace : int
        Most columns drawn for a booster. If there are more, boosters use different ones.
    seed : int

    Attributes
    ----------
    columns_ : list of ndarray of int
        Columns of each booster.
    boosters_ : list of xgboost.Booster
        One per part. A single one of ``fewest`` trees if there are too few groups for early stopping.
    n_trees_ : list of int
        Number of trees of each booster.
    feature_importances_ : ndarray of shape (n_features,)
        Share of the total gain; sums to 1 (all 0 if no tree splits).
    classes_ : ndarray of shape (2,)
    """

    display_name = "XGBoost"
    marker = "head.json"
    importance = "gain"

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

    def fit_spread(self, table: SpreadTable) -> XGBoostHead:
        """Fit on a table of which only the rows and columns of one booster are in memory.

        Trees take turns on parts of the columns (:mod:`models.heads.column_turns`), so they differ from those of a fit
        in memory; up to 1.5 times ``columns`` columns there is only one part, and they are the same.
        """
        self.columns_, self.boosters_ = [], []
        for number, (inside, outside, chosen) in enumerate(self.plan(table.labels, table.groups, table.width)):
            rows = np.union1d(inside, outside)
            settings, labels, is_inside = self.get_params(), table.labels[rows], np.isin(rows, inside)
            content = table.call(__name__, "grown_booster", rows, chosen, settings, number, labels, is_inside)
            self.columns_.append(chosen)
            self.boosters_.append(_loaded(content))
        self.classes_, self.n_features_in_ = np.array([0, 1]), table.width
        self.n_trees_ = [booster.num_boosted_rounds() for booster in self.boosters_]
        return self

    def plan(
        self, y: np.ndarray, groups: np.ndarray, width: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Choose the rows and columns of each booster.

        Parameters
        ----------
        y : ndarray of shape (n,), 0 or 1
        groups : ndarray of shape (n,)
        width : int
            Number of columns.

        Yields
        ------
        inside, outside, chosen : ndarray of int
            Rows to learn from, rows to stop on (none if there are too few groups), and columns.
        """
        parts = list(inner_folds(y, groups, self.folds, self.seed))
        rng = np.random.default_rng(self.seed)
        for grown, part in parts or [(np.arange(len(y)), np.arange(0))]:
            # XGBoost's histograms cost as much as all columns of its matrix, whatever share of them a tree may use.
            chosen = np.sort(rng.choice(width, min(self.subspace, width), replace=False))
            yield self._some(grown, rng), self._some(part, rng), chosen

    def _some(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return at most ``grow_on`` of the rows, in their order."""
        return rows if len(rows) <= self.grow_on else np.sort(rng.choice(rows, self.grow_on, replace=False))

    def _grow(self, X: np.ndarray, y: np.ndarray, part: np.ndarray, part_y: np.ndarray) -> Any:
        """Grow as many trees on (X, y) as rank the validation part best; ``fewest`` if the part is empty."""
        import xgboost

        # One thread: the order of sums, and so the result, does not depend on the number of cores.
        parameters = {**self.parameters(X.shape[1]), "nthread": 1}
        matrix = xgboost.QuantileDMatrix(X, y, max_bin=self.bins, nthread=1)
        booster = xgboost.train(parameters, matrix, min(self.fewest, self.trees))
        if not len(part):
            return booster
        validation = xgboost.DMatrix(part, nthread=1)

        def score(trees: int) -> float:
            while (grown := booster.num_boosted_rounds()) < trees:
                booster.update(matrix, grown)
            return _auc(part_y, booster.predict(validation))

        return booster[: self.kept_trees(score)]

    def _grow_in_turns(self, X: np.ndarray, y: np.ndarray, part: np.ndarray, part_y: np.ndarray, number: int) -> Any:
        """Like :meth:`_grow`, with trees that take turns on parts of the columns; those of each booster differ."""
        from histoblend.models.heads.column_turns import ColumnTurns

        turns = ColumnTurns(X, y, self.parameters(X.shape[1]), np.random.default_rng([self.seed, number]))
        if not len(part):
            turns.grow(min(self.fewest, self.trees))
            return turns.booster(turns.trees)
        divided, margins = list(turns.divided(part)), np.zeros(len(part), np.float32)

        def score(trees: int) -> float:
            before = turns.trees
            turns.grow(trees)
            margins[:] += turns.margins(divided, before, trees)
            return _auc(part_y, margins)

        return turns.booster(self.kept_trees(score))

    def parameters(self, width: int) -> dict[str, Any]:
        """Return XGBoost's parameters for a table of ``width`` columns."""
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
        """Return how many trees to keep, from the validation scores of the first 100, 110, 120 … trees."""
        best = trees = min(self.fewest, self.trees)
        best_score = score(trees)
        # Scoring after every tree would cost as much as growing it.
        while trees < self.trees and trees - best < self.patience:
            trees += min(LOOK_EVERY, self.trees - trees)
            if (new_score := score(trees)) > best_score:
                best, best_score = trees, new_score
        return best

    def _positive(self, X: np.ndarray) -> np.ndarray:
        from scipy.special import expit

        X = X.astype(np.float32, copy=False)
        margins = []
        for chosen, booster in zip(self.columns_, self.boosters_, strict=True):
            inside = X if len(chosen) == X.shape[1] else np.ascontiguousarray(X[:, chosen])
            # In place: building XGBoost's own matrix would take several times as long as predicting.
            margins.append(booster.inplace_predict(inside, predict_type="margin").astype(np.float64))
        return expit(np.mean(margins, axis=0))

    @property
    def feature_importances_(self) -> np.ndarray:
        """Return each column's share of the total gain, ndarray of shape (n_features,)."""
        return self._shares("total_gain")

    def column_measures(self) -> dict[str, np.ndarray]:
        """Return XGBoost's own importance measures.

        Returns
        -------
        dict from str to ndarray of shape (n_features,), dtype float64
            ``gain``: share of the reduction of the training loss by all splits. ``cover``: share of the patches that
            reach the column's splits, weighted by the second derivative of the loss. Both are averaged over the
            boosters and sum to 1 (all 0 if no tree splits).
        """
        return {"gain": self.feature_importances_, "cover": self._shares("total_cover")}

    def _shares(self, kind: str) -> np.ndarray:
        """Return each column's share of one of XGBoost's totals over all boosters, ndarray of shape (n_features,)."""
        check_is_fitted(self)
        total = np.zeros(self.n_features_in_)
        for chosen, booster in zip(self.columns_, self.boosters_, strict=True):
            for name, value in booster.get_score(importance_type=kind).items():
                total[chosen[int(name[1:])]] += value
        return total / total.sum() if total.sum() else total

    def contributions(self, rows: np.ndarray) -> tuple[np.ndarray, float]:
        """Return Shapley values of the trees, averaged over the boosters; see :meth:`Head.contributions`.

        References
        ----------
        Lundberg et al. (2020), Nat Mach Intell 2:56-67.
        """
        import xgboost

        shares, base = np.zeros((len(rows), self.n_features_in_)), 0.0
        for chosen, booster in zip(self.columns_, self.boosters_, strict=True):
            # One thread: heads are explained in parallel.
            matrix = xgboost.DMatrix(np.ascontiguousarray(rows[:, chosen], dtype=np.float32), nthread=1)
            values = booster.predict(matrix, pred_contribs=True).astype(np.float64)
            shares[:, chosen] += values[:, :-1] / len(self.boosters_)
            # The last column is the trees' expected value, the same in every row.
            base += float(values[0, -1]) / len(self.boosters_)
        return shares, base

    def with_replaced(self, X: np.ndarray) -> ReplacedScores:
        """See :meth:`Head.with_replaced`. Only trees that split on the replaced columns are evaluated again.

        Most trees split on few columns: shuffling one of 848 affects 5 of 580 trees.
        """
        from histoblend.models.heads.booster_trees import replaced_scores

        return replaced_scores(self.columns_, self.boosters_, np.ascontiguousarray(X, dtype=np.float32))

    def save(self, folder: Path) -> None:
        """Write ``head.json`` and one file per booster into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, booster in enumerate(self.boosters_):
            booster.save_model(folder / f"booster-{number}.json")
        state = {
            "parameters": self.get_params(),
            "classes": self.classes_.tolist(),
            "columns": self.n_features_in_,
            "boosters": [chosen.tolist() for chosen in self.columns_],
        }
        (folder / self.marker).write_text(json.dumps(state, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, files: Mapping[str, bytes], where: str) -> XGBoostHead:
        """Load a head from ``head.json`` and its boosters' files; see :meth:`Head.load`."""
        import xgboost

        state = read_json(f"{where}/{cls.marker}", files[cls.marker])
        try:
            head = cls(**state["parameters"])
            head.columns_ = [np.array(chosen) for chosen in state["boosters"]]
            contents = [files[f"booster-{number}.json"] for number in range(len(head.columns_))]
            head.classes_, head.n_features_in_ = np.array(state["classes"]), state["columns"]
            width = head.n_features_in_
            if len(head.classes_) != 2 or any(not 0 <= column < width for chosen in head.columns_ for column in chosen):
                raise TypeError(f"{len(head.classes_)} classes, or a column outside 0 to {width - 1}")
            checked = [
                checked_booster(f"{where}/booster-{number}.json", content, len(chosen))
                for number, (content, chosen) in enumerate(zip(contents, head.columns_, strict=True))
            ]
            head.boosters_ = [_loaded(content) for content in checked]
        except (KeyError, TypeError, AttributeError, xgboost.core.XGBoostError) as error:
            raise InputError(f"{where}: expected an XGBoost head; got: {error}. Get the bundle again.") from error
        head.n_trees_ = [booster.num_boosted_rounds() for booster in head.boosters_]
        return head


def _auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """AUC from ranks: exact, so equal rankings have equal scores, and without the checks of scikit-learn's function."""
    from scipy.stats import rankdata

    positive = labels == 1
    count = np.count_nonzero(positive)
    return float(rankdata(scores)[positive].sum() - count * (count + 1) / 2) / (count * (len(labels) - count))


def grown_booster(
    settings: dict[str, Any], number: int, y: np.ndarray, is_inside: np.ndarray, *pieces: np.ndarray
) -> bytes:
    """Grow one booster of a head on rows in memory.

    Parameters
    ----------
    settings : dict
        Parameters of the head.
    number : int
        Number of the booster.
    y : ndarray of shape (n,), 0 or 1
    is_inside : ndarray of shape (n,), bool
        Whether the booster learns from a row; it stops on the others.
    *pieces : ndarray of shape (…, columns), float32
        The rows, in order.
    """
    head, X = XGBoostHead(**settings), pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    inside, labels, part, part_labels = X[is_inside], y[is_inside], X[~is_inside], y[~is_inside]
    if round(X.shape[1] / head.columns) < 2:
        booster = head._grow(inside, labels, part, part_labels)
    else:
        booster = head._grow_in_turns(inside, labels, part, part_labels, number)
    return bytes(booster.save_raw("json"))


def _loaded(content: bytes | bytearray) -> Any:
    """Booster from the content of its file. It predicts with one thread, because heads predict in parallel."""
    import xgboost

    return xgboost.Booster({"nthread": 1}, model_file=bytearray(content))
