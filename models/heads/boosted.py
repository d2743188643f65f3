"""Gradient boosting by XGBoost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from histoblend.data.errors import InputError
from histoblend.models.file_checks import read_json
from histoblend.models.heads.booster_files import checked_booster
from histoblend.models.heads.head import Head, ReplacedScores, SpreadTable
from histoblend.models.heads.inner_folds import inner_folds

#: Patches on which a booster is grown at most: slides are the sample, and more patches of the same slides say little
#: more.
GROW_ON = 30_000

#: Trees between two looks at the unseen part while boosting.
LOOK_EVERY = 10


class XGBoostHead(Head):
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
        """Fit on a table that is spread over a cluster: all trees are grown, and cut where growing would have stopped.

        XGBoost draws rows and cuts quantiles worker by worker, so the trees differ from those of a fit in memory.
        """
        self.columns_, self.boosters_ = [], []
        for inside, outside, chosen in self.plan(table.labels, table.groups, table.width):
            trees = self.trees if len(outside) else min(self.fewest, self.trees)
            booster = table.grow_trees(self.parameters(len(chosen)), inside, chosen, trees, self.bins)
            if len(outside):
                content, settings = bytes(booster.save_raw("json")), self.get_params()
                labels = table.labels[outside]
                booster = booster[: table.call(__name__, "best_trees", outside, chosen, settings, content, labels)]
            booster.set_param({"nthread": 1})
            self.columns_.append(chosen)
            self.boosters_.append(booster)
        self.classes_, self.n_features_in_ = np.array([0, 1]), table.width
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

    def contributions(self, rows: np.ndarray) -> tuple[np.ndarray, float]:
        """Shapley values of the trees, averaged over the boosters; see :meth:`Head.contributions`.

        References
        ----------
        Lundberg et al. (2020), Nat Mach Intell 2:56-67.
        """
        import xgboost

        shares, base = np.zeros((len(rows), self.n_features_in_)), 0.0
        for chosen, booster in zip(self.columns_, self.boosters_, strict=True):
            # One thread: several heads are explained at the same time.
            matrix = xgboost.DMatrix(np.ascontiguousarray(rows[:, chosen], dtype=np.float32), nthread=1)
            found = booster.predict(matrix, pred_contribs=True).astype(np.float64)
            shares[:, chosen] += found[:, :-1] / len(self.boosters_)
            # What trees expect of the patches that they were grown on: it does not depend on the row.
            base += float(found[0, -1]) / len(self.boosters_)
        return shares, base

    def with_replaced(self, X: np.ndarray) -> ReplacedScores:
        """See :meth:`Head.with_replaced`. Only trees that split on the replaced columns are walked again.

        Most trees split on few columns: shuffling one of 848 touches 5 of 580 trees.
        """
        from histoblend.models.heads.booster_trees import replaced_scores

        return replaced_scores(self.columns_, self.boosters_, np.ascontiguousarray(X, dtype=np.float32))

    def save(self, folder: Path) -> None:
        """Write ``head.json`` and a file for each booster into a folder."""
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
        """Make a head from the content of ``head.json`` and the files of its boosters; see :meth:`Head.load`."""
        import xgboost

        state = read_json(f"{where}/{cls.marker}", files[cls.marker])
        try:
            head = cls(**state["parameters"])
            head.columns_ = [np.array(chosen) for chosen in state["boosters"]]
            contents = [files[f"booster-{number}.json"] for number in range(len(head.columns_))]
            head.classes_, head.n_features_in_ = np.array(state["classes"]), state["columns"]
            width = head.n_features_in_
            if len(head.classes_) != 2 or any(not 0 <= column < width for chosen in head.columns_ for column in chosen):
                raise TypeError(f"{len(head.classes_)} classes, or a column beyond the {width} that there are")
            checked = [
                checked_booster(f"{where}/booster-{number}.json", content, len(chosen))
                for number, (content, chosen) in enumerate(zip(contents, head.columns_, strict=True))
            ]
            # One thread: several heads predict at the same time.
            head.boosters_ = [xgboost.Booster({"nthread": 1}, model_file=content) for content in checked]
        except (KeyError, TypeError, AttributeError, xgboost.core.XGBoostError) as error:
            raise InputError(f"{where}: expected an XGBoost head; got: {error}. Get the bundle again.") from error
        head.n_trees_ = [booster.num_boosted_rounds() for booster in head.boosters_]
        return head


def best_trees(settings: dict[str, Any], content: bytes, y: np.ndarray, *pieces: np.ndarray) -> int:
    """How many trees of a grown booster rank its unseen part best; the part comes in pieces: a worker's part."""
    import xgboost
    from sklearn.metrics import roc_auc_score

    booster = xgboost.Booster({"nthread": 1}, model_file=bytearray(content))
    watched = xgboost.DMatrix(np.concatenate(pieces), nthread=1)
    return XGBoostHead(**settings).kept_trees(
        lambda trees: float(roc_auc_score(y, booster.predict(watched, iteration_range=(0, trees))))
    )
