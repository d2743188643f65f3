"""Boosting in which the trees take turns on parts of the columns.

XGBoost adds up histograms of all columns of its matrix, even if a tree may use few of them. With a matrix for each part
of the columns, it needs a fraction of that time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

#: Most rows on which the edges of a column's bins are chosen.
EDGES_ON = 4096


class ColumnTurns:
    """Trees on a table whose columns are divided at random into parts. Tree k splits on columns of part k modulo parts.

    Parameters
    ----------
    X : ndarray of shape (n, n_features), float32
    y : ndarray of shape (n,), 0 or 1
    parameters : dict
        XGBoost's parameters. ``colsample_bytree`` is the share of the columns in a part.
    rng : Generator
        Divides the columns and chooses the rows for the edges of bins.
    """

    def __init__(self, X: np.ndarray, y: np.ndarray, parameters: dict[str, Any], rng: np.random.Generator) -> None:
        import xgboost

        self.width, self._y = X.shape[1], y.astype(np.float32)
        count = max(1, round(1 / parameters["colsample_bytree"]))
        self.parts = [np.sort(part) for part in np.array_split(rng.permutation(self.width), count)]
        rows = np.sort(rng.choice(len(X), min(len(X), EDGES_ON), replace=False))
        base, bins = float(y.mean()), parameters["max_bin"]
        options = {**parameters, "colsample_bytree": 1.0, "nthread": 1, "base_score": base}
        self._matrices, self._boosters = [], []
        for number, columns in enumerate(self.divided(X)):
            edges = xgboost.QuantileDMatrix(columns[rows], max_bin=bins, nthread=1)
            self._matrices.append(xgboost.QuantileDMatrix(columns, y, ref=edges, max_bin=bins, nthread=1))
            seeded = {**options, "seed": parameters["seed"] + number}
            self._boosters.append(xgboost.Booster(seeded, [self._matrices[-1]]))
        self._start = np.float32(np.log(base / (1 - base)))
        self._margin = np.full(len(y), self._start, np.float32)
        self.trees = 0

    def divided(self, X: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the columns of each part, ndarray of shape (n, columns)."""
        for part in self.parts:
            yield np.take(X, part, axis=1)

    def grow(self, trees: int) -> None:
        """Grow more trees, up to a number of ``trees``."""
        from scipy.special import expit

        for number in range(self.trees, trees):
            turn, part = divmod(number, len(self.parts))
            booster, matrix = self._boosters[part], self._matrices[part]
            probability = expit(self._margin)
            booster.boost(
                matrix, turn, grad=probability - self._y, hess=np.maximum(probability * (1 - probability), 1e-16)
            )
            grown = booster.predict(matrix, output_margin=True, iteration_range=(turn, turn + 1))
            self._margin += grown - self._start
        self.trees = max(self.trees, trees)

    def margins(self, divided: Sequence[np.ndarray], start: int, stop: int) -> np.ndarray:
        """Sum of the trees ``start`` to ``stop`` for rows that :meth:`divided` returned, ndarray of shape (n,)."""
        total = np.zeros(len(divided[0]), np.float32)
        for number in range(start, stop):
            turn, part = divmod(number, len(self.parts))
            grown = self._boosters[part].inplace_predict(
                divided[part], iteration_range=(turn, turn + 1), predict_type="margin"
            )
            total += grown - self._start
        return total

    def booster(self, trees: int) -> Any:
        """One ``xgboost.Booster`` on all columns, of the first ``trees`` trees."""
        import xgboost

        models = [json.loads(bytes(booster.save_raw("json"))) for booster in self._boosters]
        forest, grown = models[0]["learner"]["gradient_booster"]["model"], []
        for number in range(trees):
            turn, part = divmod(number, len(self.parts))
            tree = models[part]["learner"]["gradient_booster"]["model"]["trees"][turn]
            tree["id"], tree["tree_param"]["num_feature"] = number, str(self.width)
            leaf = np.array(tree["left_children"]) == -1
            tree["split_indices"] = np.where(leaf, 0, self.parts[part][tree["split_indices"]]).tolist()
            grown.append(tree)
        forest["trees"], forest["tree_info"] = grown, [0] * trees
        forest["iteration_indptr"] = [*range(trees + 1)]
        forest["gbtree_model_param"]["num_trees"] = str(trees)
        models[0]["learner"]["learner_model_param"]["num_feature"] = str(self.width)
        return xgboost.Booster({"nthread": 1}, model_file=bytearray(json.dumps(models[0]).encode()))
