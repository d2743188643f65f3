"""Shapley values add up to the log odds, agree with their definition, and rank the planted cause first."""

import numpy as np
import pytest
from scipy.special import logit

from histoblend.models.heads.boosted import XGBoostHead
from histoblend.models.heads.logistic import LogisticHead
from histoblend.models.inspection.importance import COLUMNS
from histoblend.models.inspection.shapley import attribute, choose_cases, shapley_importance
from tests.oracles.shapley import tree_shapley

NAMES = [
    "colour_mean_red_whole",
    "nuclei_count_grey_centre",
    "embedding_net-0_rgb_whole",
    "embedding_net-1_rgb_whole",
]


@pytest.fixture(scope="module")
def cohort():
    """The label depends only on the nuclei count and the sum of both embedding columns."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(240, 4)).astype(np.float32)
    y = (2 * X[:, 1] + X[:, 2] + X[:, 3] + 0.3 * rng.normal(size=240) > 0).astype(int)
    return X, y, np.arange(240) // 20


@pytest.fixture(scope="module", params=["logistic", "xgboost"])
def head(request, cohort):
    X, y, groups = cohort
    estimator = LogisticHead() if request.param == "logistic" else XGBoostHead(trees=12, fewest=8)
    return estimator.fit(X, y, groups)


def test_shares_add_up_to_the_log_odds_and_embedding_columns_are_summed(head, cohort):
    X = cohort[0]
    attribution = attribute(head, X, NAMES)
    assert attribution.features == ["colour_mean_red_whole", "nuclei_count_grey_centre", "embedding"]
    np.testing.assert_allclose(attribution.log_odds, logit(head.predict_proba(X)[:, 1]), atol=1e-4)
    np.testing.assert_array_equal(attribution.values[:, :2], X[:, :2])
    assert np.isnan(attribution.values[:, 2]).all()
    assert np.isnan(attribution.percentiles()[:, 2]).all()


def test_values_agree_with_the_definition(cohort):
    X, y, groups = cohort
    head = XGBoostHead(trees=5, fewest=5).fit(X, y, groups)
    attribution = attribute(head, X[:3], [name.replace("embedding", "colour") for name in NAMES])
    for row, shares in zip(X[:3], attribution.shares, strict=True):
        slow = np.zeros(4)
        for chosen, booster in zip(head.columns_, head.boosters_, strict=True):
            nodes = booster.trees_to_dataframe()
            for _, tree in nodes.groupby("Tree"):
                slow[chosen] += tree_shapley(tree, row[chosen], len(chosen)) / len(head.boosters_)
        np.testing.assert_allclose(shares, slow, atol=1e-5)


def test_linear_shares_by_hand():
    head = LogisticHead(strengths=(1.0,)).fit([[0.0], [2.0], [4.0], [6.0]], [0, 0, 1, 1])
    attribution = attribute(head, np.array([[5.0]]), NAMES[:1])
    # Mean 3, standard deviation √5: the patch is 2 / √5 standard deviations above the mean.
    assert attribution.shares[0, 0] == pytest.approx(head.coef_[0, 0] * 2 / np.sqrt(5))


def test_importance_is_the_mean_absolute_share_by_feature_and_by_family(head, cohort):
    X, _, groups = cohort
    attribution = attribute(head, X, NAMES)
    table = shapley_importance(attribution, groups, model="m")
    assert list(table.columns) == COLUMNS
    assert set(table.measure) == {"shap"}
    single = table[table.feature.notna()].set_index("feature")
    assert list(single.index) == NAMES[:2]
    assert single.value["nuclei_count_grey_centre"] == pytest.approx(np.abs(attribution.shares[:, 1]).mean())
    joint = table[table.feature.isna()].set_index("family")
    assert list(joint.index) == ["colour", "nuclei", "embedding"]
    assert joint.value["embedding"] == pytest.approx(np.abs(attribution.shares[:, 2]).mean())
    means = [np.abs(attribution.shares[groups == group, 1]).mean() for group in range(12)]
    assert single.spread["nuclei_count_grey_centre"] == pytest.approx(np.std(means, ddof=1))
    assert (table.low <= table.value).all()
    assert (table.value <= table.high).all()
    assert single.value.idxmax() == "nuclei_count_grey_centre"


def test_columns_that_cancel_out_give_their_family_little_importance():
    head = LogisticHead(strengths=(1.0,)).fit([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]], [0, 0, 1, 1])
    head.coef_ = np.array([[1.0, -1.0]])
    names = ["colour_mean_red_whole", "colour_mean_blue_whole"]
    table = shapley_importance(attribute(head, np.array([[0.0, 0.0], [3.0, 3.0]]), names), np.array([0, 1]))
    assert (table.value[:2] > 1).all()
    assert table.value[2] == pytest.approx(0)


def test_wrong_shapes_are_refused(head, cohort):
    with pytest.raises(ValueError, match=r"must have shape \(n, 2\)"):
        attribute(head, cohort[0], NAMES[:2])


def test_cases_are_the_expected_patches():
    labels = np.array([1, 1, 1, 0, 0, 0, 1, 0])
    scores = np.array([0.99, 0.7, 0.02, 0.01, 0.95, 0.3, 0.55, 0.4])
    assert choose_cases(labels, scores, 0.5) == {
        "confident and right: positive": 0,
        "confident and right: negative": 3,
        "worst false positive": 4,
        "worst false negative": 2,
        "borderline positive": 6,
        "borderline negative": 7,
    }


def test_cases_without_a_patch_are_left_out():
    cases = choose_cases(np.array([1, 0]), np.array([1.0, 0.0]), 0.5)
    assert cases == {"confident and right: positive": 0, "confident and right: negative": 1}
