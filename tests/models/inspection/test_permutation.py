import numpy as np
import pandas as pd
import pytest
from sklearn.inspection import permutation_importance as oracle
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from histoblend.models.heads.boosted import XGBoostHead
from histoblend.models.heads.logistic import LogisticHead
from histoblend.models.inspection.importance import COLUMNS, GROUPS, fitted_groups, fitted_importance, sum_by_family
from histoblend.models.inspection.permutation import (
    dropped_importance,
    group_permutation,
    permutation_drops,
    permutation_importance,
)

NAMES = ["colour_mean_red_whole", "colour_mean_red_centre", "nuclei_count_grey_centre", "nuclei_area_grey_whole"]


@pytest.fixture
def planted():
    """The label depends on the nuclei count and on colour. Both colour columns are identical; area is noise."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 4)).astype(np.float32)
    X[:, 1] = X[:, 0]
    y = (2 * X[:, 2] + X[:, 0] + rng.normal(size=400) > 0).astype(int)
    return X, y, np.arange(400) % 10


def _predict(X):
    return 1 / (1 + np.exp(-(2.0 * X[:, 2] + 0.5 * X[:, 0] + 0.5 * X[:, 1])))


def test_permutation_ranks_the_planted_cause_first(planted):
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


def test_groups_are_shuffled_together(planted):
    X, y, groups = planted
    units = {"colour": [0, 1], "nuclei": [2, 3]}
    family, drops = group_permutation(_predict, X, y, units, groups, kind="family", repeats=20, model="m")
    column = permutation_importance(_predict, X, y, NAMES, groups, repeats=20).set_index("feature")
    assert list(family.columns) == GROUPS
    assert family.group.tolist() == ["colour", "nuclei"]
    assert family["columns"].tolist() == [2, 2]
    assert set(family.kind) == {"family"}
    assert family.spread.gt(0).all()
    np.testing.assert_allclose(family.low, np.quantile(drops.drawn, 0.025, axis=0))
    # The same permutation keeps the copies identical, so the drop equals that of one column with both weights.
    merged = permutation_importance(
        lambda x: _predict(np.column_stack([x[:, 0], x[:, 0], x[:, 2], x[:, 3]])), X, y, NAMES, groups, repeats=20
    )
    assert family.value[0] == pytest.approx(merged.value[0], abs=1e-12)
    assert family.value[0] > 1.5 * column.value["colour_mean_red_whole"]


def test_permutation_does_not_modify_its_input_and_is_reproducible(planted):
    X, y, groups = planted
    X.setflags(write=False)
    first = permutation_importance(_predict, X, y, NAMES, groups, repeats=3, seed=2, max_rows=150)
    second = permutation_importance(_predict, X, y, NAMES, groups, repeats=3, seed=2, max_rows=150)
    assert first.equals(second)
    other = permutation_importance(_predict, X, y, NAMES, groups, repeats=3, seed=3, max_rows=150)
    assert not first.value.equals(other.value)


def test_only_the_sampled_rows_of_a_table_are_read(planted):
    X, y, groups = planted
    read = []

    class Table:
        shape, ndim = X.shape, 2

        def __len__(self):
            return len(X)

        def __getitem__(self, rows):
            read.extend(rows.tolist())
            return X[rows]

    drops = permutation_importance(_predict, Table(), y, NAMES, groups, repeats=1, max_rows=150)
    assert len(read) == len(set(read)) == 150
    pd.testing.assert_frame_equal(drops, permutation_importance(_predict, X, y, NAMES, groups, repeats=1, max_rows=150))


def test_permuting_the_only_used_column_lowers_auc_to_one_half(planted):
    X, y, groups = planted
    table = permutation_importance(lambda x: x[:, 2], X, y, NAMES, groups, repeats=50, draws=20)
    # After shuffling, the ranking is random and the AUC is one half.
    assert table.value[2] == pytest.approx(roc_auc_score(y, X[:, 2]) - 0.5, abs=0.02)


def test_permutation_reports_progress_and_refuses_wrong_shapes(planted):
    X, y, groups = planted
    calls = []
    permutation_importance(_predict, X, y, NAMES, groups, repeats=1, draws=5, progress=calls.append)
    assert calls == [1, 1, 1, 1]
    with pytest.raises(ValueError, match=r"X must have shape \(400, 3\)"):
        permutation_importance(_predict, X, y, NAMES[:3], groups)


def test_fitted_importance_and_family_sums_by_hand(planted):
    gain = fitted_importance(np.array([0.1, 0.2, 0.7, 0.0]), NAMES, measure="gain", model="xgboost_handcrafted")
    folds = np.array([[1.0, -1.0, 2.0, 0.0], [3.0, -1.0, 2.0, -1.0]])
    refit = np.array([2.5, -1.0, 2.0, 0.5])
    coefficient = fitted_importance(refit, NAMES, measure="coefficient", model="logistic_handcrafted", folds=folds)
    assert coefficient.value.tolist() == refit.tolist()  # values come from the refit, spread from the folds
    assert coefficient.spread.tolist() == pytest.approx([np.sqrt(2), 0, 0, np.sqrt(0.5)])
    assert gain.spread.isna().all()
    X, y, groups = planted
    units = {"colour": [0, 1], "nuclei": [2, 3]}
    joint, _ = group_permutation(_predict, X, y, units, groups, kind="family", model="xgboost_handcrafted")
    single = permutation_importance(_predict, X, y, NAMES, groups, model="xgboost_handcrafted")
    rows = joint.rename(columns={"group": "family"}).reindex(columns=COLUMNS).astype(single.dtypes)
    sums = sum_by_family(pd.concat([gain, coefficient, rows, single])).set_index(["measure", "family"])
    assert len(sums) == 6
    assert sums.value["gain", "colour"] == pytest.approx(0.3)
    assert sums.value["coefficient", "colour"] == pytest.approx(3.5)
    assert sums.value["permutation", "nuclei"] == joint.value[1]
    assert sums.features.tolist() == [2] * 6


def test_fitted_importance_refuses_a_wrong_number_of_values():
    with pytest.raises(ValueError, match=r"values must have 4 columns; got shape \(3,\)"):
        fitted_importance(np.zeros(3), NAMES, measure="gain")
    with pytest.raises(ValueError, match=r"got shape \(4,\) and \(2, 3\)"):
        fitted_importance(np.zeros(4), NAMES, measure="gain", folds=np.zeros((2, 3)))


def test_shares_of_groups_by_hand():
    refit = np.array([1.0, -1.0, 2.0, 0.0])
    folds = np.array([[1.0, 0.0, 0.0, 1.0], [2.0, -2.0, 0.0, 0.0]])
    units = {"colour": [0, 1], "nuclei": [2, 3]}
    table = fitted_groups(refit, folds, units, kind="theme", measure="coefficient", model="m").set_index("group")
    assert table.value.to_dict() == {"colour": 0.5, "nuclei": 0.5}
    # Shares of colour in the folds: 1/2 and 1; their standard deviation is 0.5 / sqrt(2).
    assert table.spread.to_dict() == pytest.approx({"colour": np.sqrt(0.125), "nuclei": np.sqrt(0.125)})
    zeros = fitted_groups(np.zeros(4), np.zeros((2, 4)), units, kind="theme", measure="gain")
    assert zeros.value.tolist() == [0, 0]


def test_the_drop_of_a_refit_is_the_paired_difference(planted):
    """Compared with scikit-learn's AUC on slides that are drawn one by one."""
    X, y, groups = planted
    full, without = _predict(X), {"nuclei": X[:, 0], "colour": X[:, 2]}
    units = {"colour": [0, 1], "nuclei": [2, 3]}
    table = dropped_importance(y, full, without, units, groups, kind="theme", model="m", draws=2000, seed=0)
    table = table.set_index("group")
    assert table.index.tolist() == ["nuclei", "colour"]
    full_auc = roc_auc_score(y, full)
    assert table.value["nuclei"] == pytest.approx(full_auc - roc_auc_score(y, X[:, 0]))
    rng = np.random.default_rng(7)
    drawn = []
    for _ in range(1000):
        rows = np.concatenate([np.flatnonzero(groups == slide) for slide in rng.integers(0, 10, 10)])
        drawn.append(roc_auc_score(y[rows], full[rows]) - roc_auc_score(y[rows], X[rows, 2]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert table.low["colour"] == pytest.approx(low, abs=0.006)
    assert table.high["colour"] == pytest.approx(high, abs=0.006)
    assert table.low["nuclei"] > 0


def test_column_names_of_another_form_are_refused():
    with pytest.raises(ValueError, match="family_statistic_channel_region"):
        fitted_importance(np.zeros(1), ["colour_mean_red"], measure="gain")


@pytest.mark.parametrize("head", [LogisticHead(), XGBoostHead(trees=40, fewest=20)], ids=["logistic", "xgboost"])
def test_the_fast_scorer_gives_the_same_drops(planted, head):
    X, y, groups = planted
    head.fit(X, y, groups)

    def predict(table):
        return head.predict_proba(table)[:, 1]

    units = [[0], [1, 2], [3], [0, 1, 2, 3]]
    slow = permutation_drops(predict, X, y, units, groups, repeats=3, draws=50)
    quick = permutation_drops(predict, X, y, units, groups, repeats=3, draws=50, make_scorer=head.with_replaced)
    np.testing.assert_allclose(quick.values, slow.values, atol=1e-9)
    np.testing.assert_allclose(quick.drawn, slow.drawn, atol=1e-9)


def test_labels_of_one_class_are_refused(planted):
    X, _, groups = planted
    with pytest.raises(ValueError, match="both classes"):
        permutation_drops(_predict, X, np.zeros(400, int), [[0]], groups)
