"""Boosting in turns: against XGBoost itself, and which columns a tree may use."""

import json

import numpy as np
import xgboost
from sklearn.metrics import roc_auc_score

from histoblend.models.heads.boosted import XGBoostHead
from histoblend.models.heads.booster_files import checked_booster
from histoblend.models.heads.column_turns import ColumnTurns


def turns_on(X, y, **settings):
    head = XGBoostHead(rows=1.0, **settings)
    return ColumnTurns(X, y, head.parameters(X.shape[1]), np.random.default_rng(0))


def test_one_part_grows_the_trees_of_xgboost(slides):
    X, y, _ = slides
    turns = turns_on(X, y, columns=8)
    turns.grow(12)
    parameters = XGBoostHead(rows=1.0, columns=8).parameters(8) | {"nthread": 1}
    plain = xgboost.train(parameters | {"base_score": y.mean()}, xgboost.QuantileDMatrix(X, y, max_bin=64), 12)
    np.testing.assert_allclose(turns.booster(12).inplace_predict(X), plain.inplace_predict(X), atol=1e-4)


def test_trees_take_turns_and_make_one_booster(slides):
    X, y, _ = slides
    turns = turns_on(X, y, columns=2)
    turns.grow(5)
    turns.grow(11)
    divided = list(turns.divided(X))
    assert [part.shape for part in divided] == [(600, 2)] * 4
    assert sorted(np.concatenate(turns.parts)) == list(range(8))
    booster = turns.booster(11)
    assert booster.num_boosted_rounds() == 11
    content = bytes(booster.save_raw("json"))
    checked_booster("booster", content, 8)
    trees = json.loads(content)["learner"]["gradient_booster"]["model"]["trees"]
    for number, tree in enumerate(trees):
        inner = np.array(tree["left_children"]) != -1
        assert set(np.array(tree["split_indices"])[inner]) <= set(turns.parts[number % 4])
    base = np.log(y.mean() / (1 - y.mean()))
    margins = turns.margins(divided, 0, 4) + turns.margins(divided, 4, 11)
    np.testing.assert_allclose(booster.inplace_predict(X, predict_type="margin"), base + margins, atol=1e-5)
    # Each tree corrects the trees of all parts before it, so fewer trees fit the labels worse.
    scores = [roc_auc_score(y, turns.booster(count).inplace_predict(X)) for count in (1, 4, 11)]
    assert scores == sorted(scores)


def test_edges_of_bins_come_from_the_training_rows_only(slides):
    """The validation part decides how many trees are kept, and nothing else."""
    X, y, _ = slides
    head, outside = XGBoostHead(columns=2, trees=10, fewest=10), np.arange(600) % 3 == 0
    first = head._grow_in_turns(X[~outside], y[~outside], X[outside], y[outside], 0)
    second = head._grow_in_turns(X[~outside], y[~outside], X[outside] * 100, y[outside], 0)
    assert bytes(first.save_raw("json")) == bytes(second.save_raw("json"))
    other = head._grow_in_turns(X[~outside], y[~outside], X[:0], y[:0], 1)
    assert bytes(other.save_raw("json")) != bytes(first.save_raw("json"))
    again = head._grow_in_turns(X[~outside], y[~outside], X[:0], y[:0], 0)
    assert bytes(again.save_raw("json")) == bytes(first.save_raw("json"))
