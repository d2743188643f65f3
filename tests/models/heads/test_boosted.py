"""XGBoost: stopping on unseen slides, limits on rows and columns, and what its trees say."""

import numpy as np
from sklearn.metrics import roc_auc_score

from histoblend.models.heads.boosted import XGBoostHead
from histoblend.models.heads.inner_folds import inner_folds


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


def test_gain_and_cover_are_those_of_the_trees(slides):
    """Gain and cover against XGBoost's own dump of its trees, summed by hand."""
    X, y, groups = slides
    head = XGBoostHead(subspace=6, fewest=20, trees=40).fit(X, y, groups)
    totals = {"Gain": np.zeros(8), "Cover": np.zeros(8)}
    for chosen, booster in zip(head.columns_, head.boosters_, strict=True):
        splits = booster.trees_to_dataframe().query("Feature != 'Leaf'")
        for kind, total in totals.items():
            np.add.at(total, chosen[splits["Feature"].str[1:].to_numpy(int)], splits[kind].to_numpy(float))
    said = head.column_measures()
    assert list(said) == ["gain", "cover"]
    np.testing.assert_allclose(said["gain"], totals["Gain"] / totals["Gain"].sum(), rtol=1e-4)
    np.testing.assert_allclose(said["cover"], totals["Cover"] / totals["Cover"].sum(), rtol=1e-4)
    np.testing.assert_array_equal(said["gain"], head.feature_importances_)
    # No column tells anything: no tree splits, and there is nothing to share out.
    nothing = XGBoostHead(fewest=2, trees=2).fit(np.zeros_like(X), y, groups).column_measures()
    assert not nothing["gain"].any()
    assert not nothing["cover"].any()
