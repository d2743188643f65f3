import numpy as np
import pandas as pd
import pytest
from sklearn.inspection import permutation_importance as oracle
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from reports.importance import COLUMNS, fitted_importance, permutation_importance, sum_by_family

NAMES = ["colour_mean_red_whole", "colour_mean_red_centre", "nuclei_count_grey_centre", "nuclei_area_grey_whole"]


@pytest.fixture
def planted():
    """Only nuclei-count counts; the two colours are copies of each other and matter together; area is noise."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 4)).astype(np.float32)
    X[:, 1] = X[:, 0]
    y = (2 * X[:, 2] + X[:, 0] + rng.normal(size=400) > 0).astype(int)
    return X, y, np.arange(400) % 10


def _predict(X):
    return 1 / (1 + np.exp(-(2.0 * X[:, 2] + 0.5 * X[:, 0] + 0.5 * X[:, 1])))


def test_permutation_by_column_points_at_the_planted_cause(planted):
    table = permutation_importance(_predict, *planted[:2], NAMES, planted[2], repeats=10, seed=1)
    assert list(table.columns) == COLUMNS
    values = table.set_index("feature").value
    assert values.idxmax() == "nuclei_count_grey_centre"
    assert values["nuclei_area_grey_whole"] == 0
    assert (table.low <= table.high).all()


def test_permutation_agrees_with_scikit_learn(planted):
    X, y, groups = planted
    head = LogisticRegression().fit(X, y)
    expected = oracle(head, X, y, scoring="roc_auc", n_repeats=200, random_state=0)
    table = permutation_importance(lambda x: head.predict_proba(x)[:, 1], X, y, NAMES, groups, repeats=200, draws=2)
    error = 4 * np.hypot(expected.importances_std, table.spread) / np.sqrt(200)
    assert (np.abs(table.value - expected.importances_mean) <= error + 1e-12).all()
    np.testing.assert_allclose(table.spread, expected.importances_std, rtol=0.3, atol=1e-4)


def test_permutation_by_family_shuffles_columns_together(planted):
    X, y, groups = planted
    family = permutation_importance(_predict, X, y, NAMES, groups, repeats=20, by="family").set_index("family")
    column = permutation_importance(_predict, X, y, NAMES, groups, repeats=20).set_index("feature")
    assert family.index.tolist() == ["colour", "nuclei"]
    assert family.feature.isna().all()
    assert family.spread.gt(0).all()
    # Copies moved by the same permutation stay copies: the drop equals that of one column with both weights.
    merged = permutation_importance(
        lambda x: _predict(np.column_stack([x[:, 0], x[:, 0], x[:, 2], x[:, 3]])), X, y, NAMES, groups, repeats=20
    )
    assert family.value["colour"] == pytest.approx(merged.value[0], abs=1e-12)
    assert family.value["colour"] > 1.5 * column.value["colour_mean_red_whole"]


def test_permutation_by_region_and_together(planted):
    X, y, groups = planted
    region = permutation_importance(_predict, X, y, NAMES, groups, repeats=2, by="region")
    assert region.region.tolist() == ["whole", "centre"]
    mixed = permutation_importance(_predict, X, y, NAMES, groups, repeats=2, together=["colour"])
    assert mixed.feature.fillna("-").tolist() == ["-", *NAMES[2:]]
    with pytest.raises(ValueError, match="by must be"):
        permutation_importance(_predict, X, y, NAMES, groups, by="slide")


def test_permutation_leaves_its_input_alone_and_repeats_itself(planted):
    X, y, groups = planted
    X.setflags(write=False)
    first = permutation_importance(_predict, X, y, NAMES, groups, repeats=3, seed=2, max_rows=150)
    second = permutation_importance(_predict, X, y, NAMES, groups, repeats=3, seed=2, max_rows=150)
    assert first.equals(second)
    other = permutation_importance(_predict, X, y, NAMES, groups, repeats=3, seed=3, max_rows=150)
    assert not first.value.equals(other.value)


def test_permutation_of_a_column_that_is_read_alone_equals_the_auc_lost(planted):
    X, y, groups = planted
    table = permutation_importance(lambda x: x[:, 2], X, y, NAMES, groups, repeats=50, draws=20)
    # A column shuffled ranks at random: AUC falls to one half.
    assert table.value[2] == pytest.approx(roc_auc_score(y, X[:, 2]) - 0.5, abs=0.02)


def test_permutation_reports_progress_and_refuses_shapes(planted):
    X, y, groups = planted
    seen = []
    permutation_importance(_predict, X, y, NAMES, groups, repeats=1, draws=5, progress=seen.append)
    assert seen == [1, 1, 1, 1]
    with pytest.raises(ValueError, match=r"X must have shape \(400, 3\)"):
        permutation_importance(_predict, X, y, NAMES[:3], groups)


def test_fitted_importance_and_family_sums_by_hand(planted):
    gain = fitted_importance(np.array([0.1, 0.2, 0.7, 0.0]), NAMES, measure="gain", model="xgboost_handcrafted")
    folds = np.array([[1.0, -1.0, 2.0, 0.0], [3.0, -1.0, 2.0, -1.0]])
    coefficient = fitted_importance(folds, NAMES, measure="coefficient", model="logistic_handcrafted")
    assert coefficient.value.tolist() == [2, -1, 2, -0.5]
    assert coefficient.spread[0] == pytest.approx(np.sqrt(2))
    assert gain.spread.isna().all()
    X, y, groups = planted
    joint = permutation_importance(_predict, X, y, NAMES, groups, by="family", model="xgboost_handcrafted")
    single = permutation_importance(_predict, X, y, NAMES, groups, model="xgboost_handcrafted")
    region = permutation_importance(_predict, X, y, NAMES, groups, by="region", model="xgboost_handcrafted")
    sums = sum_by_family(pd.concat([gain, coefficient, joint, single, region])).set_index(["measure", "family"])
    assert len(sums) == 6
    assert sums.value["gain", "colour"] == pytest.approx(0.3)
    assert sums.value["coefficient", "colour"] == pytest.approx(3)
    assert sums.value["permutation", "nuclei"] == joint.value[1]
    assert sums.features.tolist() == [2] * 6


def test_fitted_importance_refuses_another_number_of_values():
    with pytest.raises(ValueError, match=r"values must hold 4 columns; got shape \(3,\)"):
        fitted_importance(np.zeros(3), NAMES, measure="gain")


def test_columns_of_another_form_are_refused():
    with pytest.raises(ValueError, match="family_statistic_channel_region"):
        fitted_importance(np.zeros(1), ["colour_mean_red"], measure="gain")
