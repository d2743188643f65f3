"""Waterfalls by family, cluster and column, by hand."""

import numpy as np
import pytest

from histoblend.reports.page.section import Section
from histoblend.reports.sections.waterfalls import Waterfalls, names_in, numbered, shown_patches, waterfall_data
from tests.reports.cohorts import make_importances, make_patches, make_predictions, make_view

A, B, C, D, E = (f"nuclei_{name}_grey_whole" for name in ("area-mean", "count", "fraction", "contrast", "threshold"))
RED = "colour_mean_red_whole"
FEATURES = [A, B, C, D, E, RED, "network"]
SHARES = np.array([1.0, -0.25, 0.5, 0.125, -0.0625, -2.0, 0.75])


def test_groups_and_columns_are_sorted_and_the_rest_is_added_up():
    base, families = Waterfalls(FEATURES, {}).tree(SHARES, -0.5)
    assert base == -0.5
    # Three decimals, so 0.0625 is rounded.
    nuclei = [[A, 1, 1.0], [C, 1, 0.5], [B, 1, -0.25], [D, 1, 0.125], ["", 1, -0.062]]
    assert families == [["colour", 1, -2.0, []], ["nuclei", 5, 1.312, nuclei], ["network", 1, 0.75, []]]


def test_a_cluster_is_one_group_that_can_be_opened():
    _, families = Waterfalls(FEATURES, {B: [B, A, C, D]}).tree(SHARES, 0.0)
    cluster, single = families[1][3]
    assert cluster == [B, 4, 1.375, [[A, 1.0], [C, 0.5], [B, -0.25], [1, 0.125]]]
    assert single == [E, 1, -0.062]


def test_a_cluster_over_two_families_counts_in_both():
    _, families = Waterfalls(FEATURES, {RED: [RED, A, B]}).tree(SHARES, 0.0)
    assert families[0] == ["colour", 1, -2.0, []]
    assert families[1][3][0] == [RED, 2, 0.75, [[A, 1.0], [B, -0.25]]]


def test_names_are_replaced_by_numbers():
    tree = [*Waterfalls(FEATURES, {B: [B, A, C, D]}).tree(SHARES, 0.0), "test"]
    names = list(dict.fromkeys(names_in(tree)))
    assert set(names) == {A, B, C, E}
    small = numbered(tree, {name: i for i, name in enumerate(names)})
    assert small[2] == "test"
    cluster, single = small[1][1][3]
    assert [names[cluster[0]], *cluster[1:3]] == [B, 4, 1.375]
    assert [(names[i] if i >= 0 else i, value) for i, value in cluster[3]][-1] == (-1, 0.125)
    assert names[single[0]] == E


@pytest.fixture(scope="module")
def view():
    predictions = make_predictions(0, slides=10, test_slides=3, per_slide=20)
    importances = make_importances(predictions)
    return make_view(predictions, importances, make_patches(predictions))


def test_patches_are_explained_where_the_data_allow_it(view):
    fold, test, unknown = view.traced.patch_id[1], view.explained.patch_id[5], "f" * 40
    trees = waterfall_data(view, [fold, test, unknown])
    best = trees["xgboost_handcrafted"]
    assert unknown not in best
    assert (best[fold][2], best[test][2]) == ("fold", "test")
    for patch, values, place in ((fold, view.folds["0"], 1), (test, view.attributions[view.best], 5)):
        base, families, _ = best[patch]
        assert base + sum(family[2] for family in families) == pytest.approx(values.log_odds[place], abs=0.01)
    # Other models explain the example patches only.
    assert set(trees["logistic_both"]) == set(view.cases.patch_id)


def test_shown_patches_are_found_in_any_content():
    content = {"galleries": [{"cards": [{"patch_id": "a"}, {"patch_id": "b", "more": ({"patch_id": "c"},)}]}]}
    sections = [Section("x", "X", content), Section("y", "Y", None), Section("z", "Z", {"patch_id": "a"})]
    assert shown_patches(sections) == ["a", "b", "c"]
