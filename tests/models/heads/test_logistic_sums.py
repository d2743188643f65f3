"""Logistic regression from sums over blocks: against a fit in memory, and the sums against NumPy and scikit-learn."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from sklearn.metrics import log_loss

from histoblend.models.heads import logistic_sums
from histoblend.models.heads.logistic import LogisticHead
from histoblend.models.heads.logistic_sums import column_squares, column_sums, loss_and_gradient
from histoblend.models.table_blocks import add_up


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(700, 12)) * 10.0 ** rng.integers(-3, 4, 12) + rng.normal(size=12) * 50).astype(np.float32)
    X[:, 5] = 3.25  # constant
    y = (X[:, 0] / X[:, 0].std() + rng.normal(size=700) > X[:, 0].mean() / X[:, 0].std()).astype(np.int64)
    return X, y, np.repeat(np.arange(35), 20)


def total_over(X, y, size):
    edges = [*range(0, len(X), size), len(X)]

    def total(name, *arguments):
        function = getattr(logistic_sums, name)
        return add_up(*(function(X[a:b], y[a:b], *arguments) for a, b in pairwise(edges)))

    return total


@pytest.mark.parametrize("size", [1000, 64, 7])
def test_a_fit_by_sums_equals_the_fit_in_memory(table, size):
    X, y, groups = table
    whole = LogisticHead(seed=0).fit(X, y, groups)
    head = LogisticHead(seed=0)
    head.choose(head.inner_losses(X, y, groups, len(X)))
    assert head.C_ == whole.C_
    head.fit_by_sums(total_over(X, y.astype(np.int8), size), len(y), X.shape[1])
    np.testing.assert_allclose(head.mean_, whole.mean_, rtol=1e-12)
    np.testing.assert_allclose(head.scale_, whole.scale_, rtol=1e-9)
    np.testing.assert_allclose(head.predict_proba(X), whole.predict_proba(X), atol=2e-3)


def test_rows_outside_of_training_have_no_effect(table):
    X, y, _ = table
    left_out = np.arange(len(X)) % 3 == 0
    known = np.where(left_out, -1, y).astype(np.int8)
    altered = X.copy()
    altered[left_out] = 1e9
    heads = [LogisticHead(strengths=(0.1,)) for _ in range(2)]
    for head, values in zip(heads, (X, altered), strict=True):
        head.choose({})
        head.fit_by_sums(total_over(values, known, 50), int((~left_out).sum()), X.shape[1])
    np.testing.assert_array_equal(heads[0].coef_, heads[1].coef_)
    np.testing.assert_array_equal(heads[0].mean_, heads[1].mean_)


def test_loss_and_gradient_against_scikit_learn_and_differences(table):
    X, y, _ = table
    X = ((X - X.mean(axis=0)) / (X.std(axis=0) + 1)).astype(np.float32)
    rng = np.random.default_rng(1)
    weights, intercept = rng.normal(size=12), 0.3
    computed = loss_and_gradient(X, y.astype(np.int8), weights, intercept)
    probability = 1 / (1 + np.exp(-(X.astype(float) @ weights + intercept)))
    assert computed[0] == pytest.approx(log_loss(y, probability, normalize=False), rel=1e-6)
    slope = approx_fprime(
        np.append(intercept, weights), lambda p: loss_and_gradient(X, y.astype(np.int8), p[1:], p[0])[0], 1e-6
    )
    np.testing.assert_allclose(computed[1:], slope, rtol=1e-3, atol=1e-2)


def test_sums_against_numpy(table):
    X, y, _ = table
    known = np.where(np.arange(len(X)) < 100, -1, y).astype(np.int8)
    mean = X[100:].mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(column_sums(X, known) / 600, mean)
    np.testing.assert_allclose(column_squares(X, known, mean) / 600, X[100:].astype(float).var(axis=0), rtol=1e-6)
    empty = np.full(len(X), -1, np.int8)
    assert not column_sums(X, empty).any()
    assert not loss_and_gradient(X, empty, np.ones(12), 0.0).any()
