"""XGBoost: stopping on unseen slides, limits on rows and columns, and what its trees say."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from histoblend.models.heads.boosted import XGBoostHead, grown_booster
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
    """Against XGBoost that grows all trees and is then judged at every tenth."""
    import xgboost

    X, y, groups = slides
    head = XGBoostHead(trees=120, fewest=20, patience=120, learning_rate=0.01)
    (grown, part), *_ = inner_folds(y, np.unique(groups, return_inverse=True)[1], 3, 0)
    kept = head._grow(X[grown], y[grown], X[part], y[part])
    train = xgboost.QuantileDMatrix(X[grown], y[grown], max_bin=64)
    whole = xgboost.train(head.parameters(8) | {"nthread": 1}, train, 20)
    for number in range(20, 120):
        whole.update(train, number)
    matrix = xgboost.DMatrix(X[part])
    counts = range(20, 121, 10)
    scores = [roc_auc_score(y[part], whole.predict(matrix, iteration_range=(0, count))) for count in counts]
    assert 20 < kept.num_boosted_rounds() == counts[int(np.argmax(scores))] < 120
    np.testing.assert_array_equal(
        kept.predict(matrix), whole.predict(matrix, iteration_range=(0, kept.num_boosted_rounds()))
    )


def test_boosting_stops_when_the_last_trees_ranked_no_better():
    scores = {100: 0.5, 110: 0.6, 120: 0.6, 130: 0.55, 140: 0.6, 150: 0.9}
    tried = []

    def score(trees):
        tried.append(trees)
        return scores[trees]

    assert XGBoostHead(patience=25).kept_trees(score) == 110
    assert tried == [100, 110, 120, 130, 140]
    assert XGBoostHead(patience=25, trees=105).kept_trees({100: 0.5, 105: 0.6}.get) == 105


@pytest.mark.parametrize(("columns", "in_turns"), [(8, False), (6, False), (5, True), (4, True), (3, True)])
def test_from_one_and_a_half_times_the_columns_of_a_tree_trees_take_turns(slides, columns, in_turns):
    X, y, _ = slides
    head, inside = XGBoostHead(trees=12, fewest=12, columns=columns), np.arange(600) % 3 > 0
    parts = X[inside], y[inside], X[~inside], y[~inside]
    expected = head._grow_in_turns(*parts, 1) if in_turns else head._grow(*parts)
    content = grown_booster(head.get_params(), 1, y, inside, X[:250], X[250:])
    assert content == bytes(expected.save_raw("json"))


def test_a_booster_grows_with_one_thread_whatever_the_machine_has(slides):
    X, y, _ = slides
    config = json.loads(XGBoostHead(fewest=2)._grow(X, y, X[:0], y[:0]).save_config())
    assert config["learner"]["generic_param"]["nthread"] == "1"


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
        # All rows differ, so this counts rows that were drawn twice once.
        sizes.append((len(np.unique(inside, axis=0)), len(np.unique(outside, axis=0))))
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
