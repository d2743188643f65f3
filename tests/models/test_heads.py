"""Heads: scikit-learn's own contract, grouping, and agreement with plain scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from histoblend.models import heads
from histoblend.models.heads import HEADS, LogisticHead, XGBoostHead, inner_folds


@parametrize_with_checks([LogisticHead(strengths=(0.1,)), XGBoostHead(trees=20)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.fixture
def slides():
    """600 rows of 12 slides: one informative column, one constant, noise; the slide shifts everything a little."""
    rng = np.random.default_rng(3)
    groups = np.repeat([f"s{i}" for i in range(12)], 50)
    y = rng.integers(0, 2, 600)
    X = rng.normal(size=(600, 8)) + np.repeat(rng.normal(size=(12, 1)), 50, axis=0)
    X[:, 0] += 2 * y
    X[:, 7] = 3.25
    return X.astype(np.float32), y, groups


def test_logistic_with_one_strength_is_scikit_learns_pipeline(slides):
    X, y, groups = slides
    head = LogisticHead(strengths=(0.01,)).fit(X, y, groups)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(X.astype(float), y)
    np.testing.assert_allclose(head.predict_proba(X), plain.predict_proba(X.astype(float)), atol=2e-4)


def test_logistic_chooses_its_strength_on_other_slides():
    """Columns that only tell slides apart look useful on seen slides; by slide, the strongest penalty must win."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 30)
    y = (rng.random(600) < np.repeat(rng.uniform(0.02, 0.98, 20), 30)).astype(int)
    X = np.repeat(rng.normal(size=(20, 40)), 30, axis=0) + 0.01 * rng.normal(size=(600, 40))
    by_slide = LogisticHead(strengths=(1e-4, 0.1)).fit(X, y, groups)
    leaky = LogisticHead(strengths=(1e-4, 0.1)).fit(X, y)
    assert by_slide.C_ == 1e-4
    assert leaky.C_ == 0.1


def test_inner_folds_never_share_a_slide(slides):
    _, y, groups = slides
    folds = list(inner_folds(y, groups, 4, 0))
    assert len(folds) == 4
    for train, validation in folds:
        assert not set(groups[train]) & set(groups[validation])
    assert sorted(np.concatenate([validation for _, validation in folds])) == list(range(len(y)))


def test_inner_folds_of_one_group_are_none():
    assert list(inner_folds(np.array([0, 1] * 10), np.zeros(20), 4, 0)) == []


def test_early_stopping_watches_other_slides(slides, monkeypatch):
    """Every booster is stopped on slides that it is not grown on, and together they learn from all slides."""
    X, y, groups = slides
    X = X.copy()
    X[:, 6] = np.unique(groups, return_inverse=True)[1]  # the slide's number rides along as a column
    seen = []
    original = XGBoostHead._grow

    def spy(self, X, y, part, part_y):
        seen.append((set(X[:, 6]), set(part[:, 6])))
        return original(self, X, y, part, part_y)

    monkeypatch.setattr(XGBoostHead, "_grow", spy)
    head = XGBoostHead(trees=300, fewest=20, patience=30).fit(X, y, groups)
    assert len(seen) == len(head.boosters_) == 3
    for grown, watched in seen:
        assert watched
        assert not grown & watched
    assert set.union(*(watched for _, watched in seen)) == set(range(12))
    assert all(20 <= trees <= 300 for trees in head.n_trees_)


def test_a_booster_keeps_the_trees_that_ranked_the_unseen_part_best(slides):
    """Against XGBoost trained at one go and judged at every tenth tree."""
    import xgboost

    X, y, groups = slides
    head = XGBoostHead(trees=120, fewest=20, patience=120)
    (grown, part), *_ = inner_folds(y, np.unique(groups, return_inverse=True)[1], 3, 0)
    kept = head._grow(X[grown], y[grown], X[part], y[part])
    whole = XGBoostHead(fewest=120)._grow(X[grown], y[grown], X[:0], y[:0])
    matrix = xgboost.DMatrix(X[part])
    counts = range(20, 121, 10)
    scores = [roc_auc_score(y[part], whole.predict(matrix, iteration_range=(0, count))) for count in counts]
    assert kept.num_boosted_rounds() == counts[int(np.argmax(scores))]
    np.testing.assert_array_equal(
        kept.predict(matrix), whole.predict(matrix, iteration_range=(0, kept.num_boosted_rounds()))
    )


def test_more_columns_than_the_subspace_are_shared_out(slides):
    X, y, groups = slides
    head = XGBoostHead(subspace=3).fit(X, y, groups)
    assert [len(chosen) for chosen in head.columns_] == [3, 3, 3]
    assert len(set.union(*(set(chosen) for chosen in head.columns_))) > 3
    unused = [column for column in range(8) if all(column not in chosen for chosen in head.columns_)]
    assert (head.feature_importances_[unused] == 0).all()
    other = X.copy()
    other[:, unused] = 99
    np.testing.assert_array_equal(head.predict_proba(other), head.predict_proba(X))


def test_of_many_rows_a_part_chooses_and_all_are_fitted(slides, monkeypatch):
    X, y, groups = slides
    seen = []
    monkeypatch.setattr(heads, "inner_folds", lambda *args: seen.append(len(args[0])) or inner_folds(*args))
    head = LogisticHead(choose_on=200).fit(X, y, groups)
    assert seen == [200]
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=head.C_, max_iter=2000)).fit(X.astype(float), y)
    np.testing.assert_allclose(head.predict_proba(X), plain.predict_proba(X.astype(float)), atol=2e-4)


def test_a_strength_weighs_the_same_on_a_part(slides):
    """Every row four times: a quarter of them chooses under the penalty that the single rows would have."""
    X, y, groups = (np.repeat(values, 4, axis=0) for values in slides)
    once = LogisticHead(strengths=(0.004, 0.04)).fit(*slides)
    fourfold = LogisticHead(strengths=(0.001, 0.01), choose_on=600).fit(X, y, groups)
    np.testing.assert_allclose(fourfold.coef_, LogisticHead(strengths=(once.C_,)).fit(*slides).coef_, rtol=1e-3)
    assert list(fourfold.inner_loss_.values()) == pytest.approx(list(once.inner_loss_.values()), rel=0.1)


def test_boosters_grow_on_no_more_rows_than_they_may(slides, monkeypatch):
    X, y, groups = slides
    sizes, grow = [], XGBoostHead._grow

    def watch(self, inside, inside_y, outside, outside_y):
        sizes.append((len(inside), len(outside)))
        return grow(self, inside, inside_y, outside, outside_y)

    monkeypatch.setattr(XGBoostHead, "_grow", watch)
    few = XGBoostHead(grow_on=150).fit(X, y, groups)
    assert sizes == [(150, 150)] * 3
    XGBoostHead(grow_on=10**6).fit(X, y, groups)
    assert sizes[3:] == [(400, 200)] * 3
    assert roc_auc_score(y, few.predict_proba(X)[:, 1]) > 0.85


def test_one_slide_gives_one_booster_of_the_fewest_trees(slides):
    X, y, _ = slides
    assert XGBoostHead(fewest=30).fit(X, y, np.zeros(len(y))).n_trees_ == [30]


@pytest.mark.parametrize("name", HEADS)
def test_heads_learn_and_rank_the_informative_column_first(slides, name):
    X, y, groups = slides
    train = np.isin(groups, [f"s{i}" for i in range(8)])
    head = HEADS[name](0).fit(X[train], y[train], groups[train])
    assert roc_auc_score(y[~train], head.predict_proba(X[~train])[:, 1]) > 0.75
    weight = np.abs(head.coef_[0]) if name == "logistic" else head.feature_importances_
    assert weight.argmax() == 0
    assert weight[7] == 0
    if name == "xgboost":
        assert weight.sum() == pytest.approx(1)


def test_what_heads_say_of_their_columns(slides):
    """Gain and cover against XGBoost's own dump of its trees, summed by hand."""
    X, y, groups = slides
    head = XGBoostHead(subspace=6, fewest=20, trees=40).fit(X, y, groups)
    totals = {"Gain": np.zeros(8), "Cover": np.zeros(8)}
    for chosen, booster in zip(head.columns_, head.boosters_, strict=True):
        splits = booster.trees_to_dataframe().query("Feature != 'Leaf'")
        for kind, total in totals.items():
            np.add.at(total, chosen[splits["Feature"].str[1:].astype(int)], splits[kind])
    said = head.column_measures()
    assert list(said) == ["gain", "cover"]
    np.testing.assert_allclose(said["gain"], totals["Gain"] / totals["Gain"].sum(), rtol=1e-4)
    np.testing.assert_allclose(said["cover"], totals["Cover"] / totals["Cover"].sum(), rtol=1e-4)
    np.testing.assert_array_equal(said["gain"], head.feature_importances_)
    linear = LogisticHead().fit(X, y, groups)
    np.testing.assert_array_equal(linear.column_measures()["coefficient"], linear.coef_[0])
    # No column tells anything: no tree splits, and there is nothing to share out.
    nothing = XGBoostHead(fewest=2, trees=2).fit(np.zeros_like(X), y, groups).column_measures()
    assert not nothing["gain"].any()
    assert not nothing["cover"].any()


@pytest.mark.parametrize("name", HEADS)
def test_same_seed_same_bits(slides, name):
    X, y, groups = slides
    first, second = (HEADS[name](5).fit(X, y, groups).predict_proba(X) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", HEADS)
def test_bad_input_is_named(slides, name):
    X, y, groups = slides
    with pytest.raises(ValueError, match="one class"):
        HEADS[name](0).fit(X, np.zeros(len(y)), groups)
    with pytest.raises(ValueError, match=r"groups must have shape \(600,\); got \(3,\)"):
        HEADS[name](0).fit(X, y, groups[:3])
    X = X.copy()
    X[4, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        HEADS[name](0).fit(X, y, groups)
