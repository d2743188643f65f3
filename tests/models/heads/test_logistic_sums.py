"""Logistic regression from sums over blocks: against a fit in memory, and the sums against NumPy and scikit-learn."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from histoblend.models.heads import logistic_sums
from histoblend.models.heads.inner_folds import inner_folds
from histoblend.models.heads.logistic import LogisticHead, first_fit
from histoblend.models.heads.logistic_sums import (
    Columns,
    column_moments,
    curvature,
    factor_of,
    loss_and_gradient,
    scale_of,
)
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


def exact(X, y, strength):
    """The weights by scikit-learn with float64 and a strict tolerance."""
    return LogisticRegression(C=strength, tol=1e-9, max_iter=5000).fit(X, y)


@pytest.mark.parametrize(("size", "choose_on"), [(1000, 1000), (64, 300)])
def test_a_fit_by_sums_equals_scikit_learn(table, size, choose_on):
    X, y, groups = table
    whole, head = LogisticHead(choose_on=choose_on).fit(X, y, groups), LogisticHead(choose_on=choose_on)
    rows = head.tuning_rows(len(y))
    start = first_fit(head.get_params(), y[rows], groups[rows], len(y), *np.array_split(X[rows], 3))
    for strength in (1e-4, 1e-2):
        expected = []
        for train, validation in inner_folds(y[rows], groups[rows], 3, 0):
            inside, outside = X[rows][train].astype(float), X[rows][validation].astype(float)
            mean, scale = inside.mean(axis=0), np.where(np.arange(12) == 5, 1, inside.std(axis=0))
            model = exact((inside - mean) / scale, y[rows][train], strength * len(y) / len(rows))
            expected.append(log_loss(y[rows][validation], model.predict_proba((outside - mean) / scale)))
        assert start.losses[strength] == pytest.approx(np.mean(expected), rel=3e-4)
    head.fit_by_sums(total_over(X, y.astype(np.int8), size), start, len(y))
    assert head.C_ == whole.C_
    assert head.n_iter_ < 20
    np.testing.assert_allclose(head.mean_, whole.mean_, rtol=1e-9)
    np.testing.assert_allclose(head.scale_, whole.scale_, rtol=1e-9)
    model = exact((X - whole.mean_) / whole.scale_, y, head.C_)
    np.testing.assert_allclose(head.coef_, model.coef_, atol=2e-4)
    np.testing.assert_allclose(head.intercept_, model.intercept_, atol=2e-4)


def test_correlated_columns_take_few_steps():
    """Plain L-BFGS takes over a hundred: 60 columns of 5 directions, one of them repeated exactly."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(900, 5))
    X = (hidden @ rng.normal(size=(5, 60)) + 0.01 * rng.normal(size=(900, 60))).astype(np.float32)
    X[:, 1] = X[:, 0]
    y, groups = (hidden[:, 0] + rng.normal(size=900) > 0).astype(int), np.repeat(np.arange(30), 30)
    head, plain = LogisticHead(strengths=(1.0,)), LogisticHead(strengths=(1.0,)).fit(X, y, groups)
    start = first_fit(head.get_params(), y, groups, 900, X)
    head.fit_by_sums(total_over(X, y.astype(np.int8), 300), start, 900)
    assert head.n_iter_ < plain.n_iter_ / 3
    np.testing.assert_allclose(head.predict_proba(X), plain.predict_proba(X), atol=5e-3)


def test_rows_outside_of_training_have_no_effect(table):
    X, y, _ = table
    left_out = np.arange(len(X)) % 3 == 0
    known = np.where(left_out, -1, y).astype(np.int8)
    altered = X.copy()
    altered[left_out] = 1e9
    heads = [LogisticHead(strengths=(0.1,)) for _ in range(2)]
    for head, values in zip(heads, (X, altered), strict=True):
        start = first_fit(head.get_params(), y[~left_out], np.arange(len(y))[~left_out], 700, values[~left_out])
        head.fit_by_sums(total_over(values, known, 50), start, int((~left_out).sum()))
    np.testing.assert_array_equal(heads[0].coef_, heads[1].coef_)
    np.testing.assert_array_equal(heads[0].mean_, heads[1].mean_)


def test_loss_and_gradient_against_scikit_learn_and_differences(table):
    X, y, _ = table
    X = ((X - X.mean(axis=0)) / (X.std(axis=0) + 1)).astype(np.float32)
    rng = np.random.default_rng(1)
    weights, intercept, centre = rng.normal(size=12).astype(np.float32), 0.3, X[0].copy()
    computed = loss_and_gradient(X + centre, y.astype(np.int8), centre, weights, intercept)
    X = X.astype(float)
    probability = 1 / (1 + np.exp(-(X @ weights + intercept)))
    assert computed[0] == pytest.approx(log_loss(y, probability, normalize=False), rel=1e-6)
    np.testing.assert_allclose(computed[1], (probability - y).sum(), atol=1e-3)
    np.testing.assert_allclose(computed[2:], (probability - y) @ X, atol=1e-3)


@pytest.mark.parametrize("steepness", [1, 1000])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 600])
def test_loss_and_gradient_of_any_number_of_training_rows(table, rows, steepness):
    X, y, _ = table
    known = np.full(len(X), -1, np.int8)
    chosen = np.random.default_rng(2).choice(len(X), rows, replace=False)
    known[chosen] = y[chosen]
    centre, weights = X[0], np.random.default_rng(3).normal(0, steepness, 12).astype(np.float32)
    weights /= X.std(axis=0) + 1
    computed = loss_and_gradient(X, known, centre, weights, -0.2)
    difference = X[chosen].astype(float) - centre
    margin = difference @ weights - 0.2
    error = expit(margin) - y[chosen]
    expected = [(np.logaddexp(0, margin) - y[chosen] * margin).sum(), error.sum(), *(error @ difference)]
    # Columns differ in size by a factor of a million, so each sum has its own tolerance.
    largest = np.array([1 + np.abs(margin).sum(), rows, *np.abs(difference).sum(axis=0)])
    assert (np.abs(computed - expected) <= 1e-5 * largest).all()


def test_derivatives_of_many_rows_keep_their_digits():
    rows = 200_000
    ones, zero = np.ones((rows, 1), np.float32), np.zeros(1, np.float32)
    computed = loss_and_gradient(ones, np.zeros(rows, np.int8), zero, zero, -2.2)
    # Added up one by one in float32, the sum would be off by a thousandth.
    np.testing.assert_allclose(computed[2], rows * expit(-2.2), rtol=1e-6)


def test_only_columns_without_spread_are_constant():
    mean, spread = np.array([0, 5, 1e-9, 3]), np.array([0, 1e-8, 1e-9, 2])
    np.testing.assert_array_equal(scale_of(mean, spread), [1, 1, 1e-9, 2])


def test_moments_against_numpy(table):
    X, y, _ = table
    known = np.where(np.arange(len(X)) < 100, -1, y).astype(np.int8)
    columns = Columns.of(total_over(X, known, 77), 600, X[0].astype(float))
    spread = X[100:].astype(float).std(axis=0)
    np.testing.assert_allclose(columns.mean, X[100:].mean(axis=0, dtype=np.float64))
    np.testing.assert_allclose(columns.scale, np.where(spread > 0, spread, 1), rtol=1e-9)
    empty = np.full(len(X), -1, np.int8)
    assert not column_moments(X, empty, columns.mean).any()
    assert not loss_and_gradient(X, empty, X[0], X[0], 0.0).any()


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_the_factor_is_that_of_the_second_derivatives(table, weight):
    """Against differences of the gradient."""
    X, y, _ = table
    total = total_over(X, y.astype(np.int8), 1000)
    columns, penalty, step = Columns.of(total, len(X), X.mean(axis=0, dtype=float)), 0.1, 0.05
    point = np.append(np.full(12, weight), np.log(y.mean() / (1 - y.mean())))
    slopes = [
        [columns.loss_and_gradient(total, len(X), point + sign * step * unit)[1] for sign in (1, -1)]
        for unit in np.eye(13)
    ]
    expected = np.array([(high - low) / (2 * step) for high, low in slopes])
    factor = factor_of(curvature(X, columns, point), penalty)
    np.testing.assert_allclose(factor @ factor.T, expected + np.diag([penalty] * 12 + [0]), atol=2e-3)
    np.testing.assert_array_equal(factor, np.tril(factor))
