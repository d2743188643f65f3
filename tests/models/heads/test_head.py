"""The common behaviour of heads: scikit-learn's contract, ranking, and fast methods against plain predictions."""

import numpy as np
import pytest
from scipy.special import logit
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from histoblend.models.heads.boosted import XGBoostHead
from histoblend.models.heads.head import Head
from histoblend.models.heads.logistic import LogisticHead
from histoblend.models.heads.registry import HEADS, new_head

MADE = {"logistic": LogisticHead(), "xgboost": XGBoostHead(fewest=30, trees=60, subspace=20)}


@parametrize_with_checks([LogisticHead(strengths=(0.1,)), XGBoostHead(trees=20)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", HEADS)
def test_heads_learn_and_rank_the_informative_column_first(slides, name):
    X, y, groups = slides
    train = np.isin(groups, [f"s{i}" for i in range(8)])
    head = new_head(name, 0).fit(X[train], y[train], groups[train])
    assert roc_auc_score(y[~train], head.predict_proba(X[~train])[:, 1]) > 0.75
    weight = np.abs(head.importances)
    assert weight.argmax() == 0
    assert weight[7] == 0
    if name == "xgboost":
        assert weight.sum() == pytest.approx(1)


@pytest.mark.parametrize("name", HEADS)
def test_same_seed_same_bits(slides, name):
    X, y, groups = slides
    first, second = (new_head(name, 5).fit(X, y, groups).predict_proba(X) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", HEADS)
def test_invalid_input_is_refused(slides, name):
    X, y, groups = slides
    with pytest.raises(ValueError, match="one class"):
        new_head(name, 0).fit(X, np.zeros(len(y)), groups)
    with pytest.raises(ValueError, match=r"groups must have shape \(600,\); got \(3,\)"):
        new_head(name, 0).fit(X, y, groups[:3])
    X = X.copy()
    X[4, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        new_head(name, 0).fit(X, y, groups)


@pytest.fixture(scope="module")
def cohort():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 6)).astype(np.float32)
    X[:, 4] = 3
    return X, (X[:, 1] + 0.5 * rng.normal(size=300) > 0).astype(int), np.arange(300) // 10


@pytest.mark.parametrize("make", [LogisticHead, XGBoostHead, lambda seed: XGBoostHead(subspace=5, seed=seed)])
def test_contributions_and_base_add_up_to_the_log_odds(cohort, make):
    X, y, groups = cohort
    head = make(seed=0).fit(X, y, groups)
    contributions, base = head.contributions(X[:50])
    np.testing.assert_allclose(contributions.sum(axis=1) + base, logit(head.predict_proba(X[:50])[:, 1]), atol=1e-4)
    assert not contributions[:, 4].any()
    assert np.abs(contributions).mean(axis=0).argmax() == 1
    one, same = head.contributions(X[7:8])
    np.testing.assert_allclose(one[0], contributions[7], atol=1e-6)
    assert same == pytest.approx(base, abs=1e-6)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    X = rng.normal(3, 2, size=(300, 25)).astype(np.float32)
    X[:, 24] = 1  # no tree splits on it
    y = (X[:, 0] + X[:, 1] * X[:, 2] / 5 + rng.normal(size=300) > 4).astype(int)
    return X, y, np.arange(300) % 6


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("columns", [[], [0], [24], [2, 1], list(range(25)), [5, 24, 7, 0]], ids=str)
def test_replaced_scores_are_those_of_the_altered_table(table, name, columns):
    X, y, groups = table
    head = MADE[name].fit(X, y, groups)
    before = X.copy()
    score = head.with_replaced(X)
    for seed in (5, 6):  # the second change starts from X again
        other = X.copy()
        other[:, columns] = np.random.default_rng(seed).normal(3, 2, size=(300, len(columns)))
        replaced = score(columns, other[:, columns])
        np.testing.assert_allclose(replaced, head.predict_proba(other)[:, 1], rtol=1e-5, atol=1e-7)
        assert columns in ([], [24]) or (replaced != head.predict_proba(X)[:, 1]).any()
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize("name", MADE)
def test_replacing_columns_by_themselves_changes_nothing(table, name):
    X, y, groups = table
    head = MADE[name].fit(X, y, groups)
    score = head.with_replaced(X)
    np.testing.assert_array_equal(score([3, 0], X[:, [3, 0]]), score([24], X[:, [24]]))


@pytest.mark.parametrize("name", MADE)
def test_fast_scores_with_replaced_columns_equal_predictions(table, name):
    X, y, groups = table
    head = MADE[name].fit(X, y, groups)
    quick, plain = head.with_replaced(X), Head.with_replaced(head, X)
    np.testing.assert_allclose(quick([0, 3], X[::-1, [0, 3]]), plain([0, 3], X[::-1, [0, 3]]), atol=1e-6)
