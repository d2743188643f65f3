"""Scores of XGBoost's trees after a few columns change: only trees that use these columns are evaluated again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np

from histoblend.models.heads.head import ReplacedScores

#: Unit of leaf values as integers. Their sums are exact, so rows that reach the same leaves get the same score.
_UNIT = 2.0**-40


def replaced_scores(columns: Sequence[np.ndarray], boosters: Sequence[Any], X: np.ndarray) -> ReplacedScores:
    """Prepare a table for many changes of a few columns; see :meth:`models.heads.head.Head.with_replaced`.

    Parameters
    ----------
    columns : sequence of ndarray of int
        Columns of each booster.
    boosters : sequence of xgboost.Booster
        Their log-odds are averaged.
    X : ndarray of shape (n, n_features), dtype float32
    """
    from scipy.special import expit

    forest, touching = _flat_trees(columns, boosters)
    everything = np.arange(len(forest[0]))
    before = np.empty((len(everything), len(X)), np.int64)
    _leaf_values(X, everything, *forest, before)
    total = before.sum(axis=0)
    share = _UNIT / len(boosters)
    # What XGBoost adds to the leaves of every row, computed from the first row.
    margins = [
        float(booster.inplace_predict(np.ascontiguousarray(X[:1, chosen]), predict_type="margin")[0])
        for chosen, booster in zip(columns, boosters, strict=True)
    ]
    base = np.mean(margins) - share * total[0]
    table = X.copy()

    def score(replaced: Sequence[int], values: np.ndarray) -> np.ndarray:
        touched = [touching[column] for column in replaced if column in touching]
        trees = np.unique(np.concatenate([everything[:0], *touched]))
        after = np.empty((len(trees), len(X)), np.int64)
        table[:, list(replaced)] = values
        try:
            _leaf_values(table, trees, *forest, after)
        finally:
            table[:, list(replaced)] = X[:, list(replaced)]
        scores: np.ndarray = expit(base + share * (total + (after - before[trees]).sum(axis=0)))
        return scores

    return score


def _flat_trees(
    columns: Sequence[np.ndarray], boosters: Sequence[Any]
) -> tuple[tuple[np.ndarray, ...], dict[int, np.ndarray]]:
    """Return all boosters' trees as flat arrays, and the trees that split on each column.

    Returns
    -------
    forest : (starts, left, right, column, value, leaf)
        ``starts`` is the first node of each tree. The others have one entry per node: children in the tree (−1 for a
        leaf), the column of the split, the value below which rows take the left child, and a leaf's value in `_UNIT`.
    touching : dict from column to ndarray of tree numbers
    """
    starts: list[int] = []
    parts: list[tuple[np.ndarray, ...]] = []
    touching: dict[int, list[int]] = {}
    size = 0
    for chosen, booster in zip(columns, boosters, strict=True):
        model = json.loads(bytes(booster.save_raw("json")))
        for tree in model["learner"]["gradient_booster"]["model"]["trees"]:
            left = np.array(tree["left_children"])
            column = chosen[np.array(tree["split_indices"])]
            for split_on in np.unique(column[left >= 0]):
                touching.setdefault(int(split_on), []).append(len(starts))
            starts.append(size)
            size += len(left)
            # For a leaf, XGBoost stores its value as the threshold.
            value = np.array(tree["split_conditions"], np.float32)
            leaf = np.where(left < 0, np.rint(value.astype(np.float64) / _UNIT), 0).astype(np.int64)
            parts.append((left, np.array(tree["right_children"]), column, value, leaf))
    flat = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    return (np.array(starts), *flat), {column: np.array(trees) for column, trees in touching.items()}


@numba.njit(cache=True, nogil=True)
def _leaf_values(
    table: np.ndarray,
    trees: np.ndarray,
    starts: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    column: np.ndarray,
    value: np.ndarray,
    leaf: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write the value of the leaf that each row (second axis of `out`) reaches in each tree (first axis)."""
    for number in range(len(trees)):
        first = starts[trees[number]]
        for row in range(len(table)):
            node = first
            while left[node] >= 0:
                node = first + (left[node] if table[row, column[node]] < value[node] else right[node])
            out[number, row] = leaf[node]
