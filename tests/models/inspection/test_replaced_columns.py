"""Scores of altered tables against predicting the altered table."""

import numpy as np
import pytest

from histoblend.models.heads import LogisticHead, XGBoostHead
from histoblend.models.inspection.replaced_columns import altered_scores

HEADS = {"logistic": LogisticHead(), "xgboost": XGBoostHead(fewest=30, trees=60, subspace=20)}


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    X = rng.normal(3, 2, size=(300, 25)).astype(np.float32)
    X[:, 24] = 1  # no tree splits on it
    y = (X[:, 0] + X[:, 1] * X[:, 2] / 5 + rng.normal(size=300) > 4).astype(int)
    return X, y, np.arange(300) % 6


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("places", [[], [0], [24], [2, 1], list(range(25)), [5, 24, 7, 0]], ids=str)
def test_altered_scores_are_those_of_the_altered_table(table, name, places):
    X, y, groups = table
    head = HEADS[name].fit(X, y, groups)
    before = X.copy()
    score = altered_scores(head, X)
    for seed in (5, 6):  # the second change starts from X again, not from the first
        other = X.copy()
        other[:, places] = np.random.default_rng(seed).normal(3, 2, size=(300, len(places)))
        found = score(places, other[:, places])
        np.testing.assert_allclose(found, head.predict_proba(other)[:, 1], rtol=1e-5, atol=1e-7)
        assert places in ([], [24]) or (found != head.predict_proba(X)[:, 1]).any()
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize("name", HEADS)
def test_no_change_changes_no_rank(table, name):
    X, y, groups = table
    head = HEADS[name].fit(X, y, groups)
    score = altered_scores(head, X)
    np.testing.assert_array_equal(score([3, 0], X[:, [3, 0]]), score([24], X[:, [24]]))
