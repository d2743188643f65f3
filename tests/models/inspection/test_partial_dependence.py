"""Curves agree with scikit-learn's, shares with counting, intervals with their meaning."""

import numpy as np
import pytest
from sklearn.inspection import partial_dependence as oracle

from histoblend.models.heads.boosted import XGBoostHead
from histoblend.models.heads.logistic import LogisticHead
from histoblend.models.inspection.partial_dependence import grid, partial_dependence, positive_shares


@pytest.fixture(scope="module")
def cohort():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 6)).astype(np.float32)
    X[:, 3] = np.round(X[:, 3])
    y = (X[:, 1] * X[:, 2] + X[:, 3] > 0).astype(int)
    return X, y, np.arange(200) // 20


@pytest.mark.parametrize(
    "make",
    [LogisticHead, lambda: XGBoostHead(trees=40, fewest=30), lambda: XGBoostHead(trees=20, fewest=20, subspace=4)],
    ids=["logistic", "boosters", "boosters that see different columns"],
)
def test_partial_dependence_is_scikit_learns(cohort, make):
    X, y, groups = cohort
    head = make().fit(X, y, groups)
    depend = partial_dependence(head, X[:50])
    for column in range(6):
        points = grid(X[:, column])
        slow = oracle(head, X[:50], [column], custom_values={column: points}, kind="average", method="brute")
        np.testing.assert_allclose(depend(column, points), slow["average"][0], atol=1e-5)


def test_a_feature_that_no_tree_uses_has_a_flat_curve(cohort):
    X, y, groups = cohort
    table = np.column_stack([X, np.zeros(200, np.float32)])
    head = XGBoostHead(trees=10, fewest=10).fit(table, y, groups)
    curve = partial_dependence(head, table)(6, np.array([-1.0, 0.0, 1.0]))
    np.testing.assert_allclose(curve, head.predict_proba(table)[:, 1].mean())


def test_grid_holds_each_quantile_once():
    np.testing.assert_array_equal(grid(np.array([0.0, 0.0, 0.0, 1.0])), [0.0, 1.0])
    assert grid(np.arange(101.0)).tolist() == [1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99]


def test_shares_of_positives_are_counted():
    values = np.arange(40.0)[:, None]
    labels = (np.arange(40) >= 30).astype(int)
    labels[0] = 1
    (table,) = positive_shares(values, labels, np.arange(40) % 4, draws=200)
    assert table.patches.tolist() == [4] * 10
    assert table.slides.tolist() == [4] * 10
    np.testing.assert_allclose(table.value, [1.5 + 4 * i for i in range(10)])
    # 28, 29 are negative, 30, 31 positive.
    np.testing.assert_allclose(table.share, [0.25, 0, 0, 0, 0, 0, 0, 0.5, 1, 1])
    # The first bin's positive stands in one slide of four: drawn more than twice it makes up most of the bin.
    assert table.low[0] == 0
    assert table.high[0] > 0.5
    assert table.low[9] == table.high[9] == 1


def test_equal_values_are_never_parted_and_features_have_their_own_bins():
    values = np.column_stack([np.repeat([0.0, 1.0], [70, 30]), np.arange(100.0)])
    labels = np.repeat([0, 1], [70, 30])
    two, ten = positive_shares(values, labels, np.arange(100) % 5, draws=100)
    assert two.patches.tolist() == [70, 30]
    assert two.share.tolist() == [0, 1]
    assert len(ten) == 10
    assert ten.patches.sum() == 100


def test_intervals_come_from_slides_not_patches():
    rng = np.random.default_rng(0)
    slide = np.repeat(np.arange(20), 50)
    labels = (slide % 2).astype(int)  # each slide of one class
    values = rng.normal(size=(1000, 1))
    (by_slide,), (by_patch,) = (
        positive_shares(values, labels, groups, draws=400) for groups in (slide, np.arange(1000))
    )
    wide, narrow = (table.high - table.low for table in (by_slide, by_patch))
    assert (wide > 1.5 * narrow).all()


def test_a_bin_of_one_slide_has_no_interval():
    values = np.repeat([0.0, 1.0], [80, 20])[:, None]
    (table,) = positive_shares(values, np.arange(100) % 2, np.arange(100) // 20, draws=100)
    assert table.slides.tolist() == [4, 1]
    assert table.low.isna().tolist() == table.high.isna().tolist() == [False, True]
