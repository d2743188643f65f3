"""Splits: whole slides only, covered, stratified, repeatable; a clear error where that cannot be."""

from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoblend.data.errors import InputError
from histoblend.data.splits import (
    MANY_GROUPS,
    assign_splits,
    base_groups,
    check_splits,
    choose_test_groups,
    grouped_folds,
    is_known,
    patch_groups,
    unite,
)


def table_of(sizes, prevalences, seed=0):
    rng = np.random.default_rng(seed)
    slide = np.repeat([f"s{i}" for i in range(len(sizes))], sizes)
    label = (rng.random(sum(sizes)) < np.repeat(prevalences, sizes)).astype(np.int8)
    ids = [f"p{i}" for i in range(len(slide))]
    return pd.DataFrame({"patch_id": ids, "label": label, "slide": pd.array(slide, dtype="string")})


@given(
    sizes=st.lists(st.integers(5, 60), min_size=14, max_size=30),
    folds=st.integers(2, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_no_slide_spans_and_every_patch_is_placed(sizes, folds, seed):
    rng = np.random.default_rng(seed)
    table = table_of(sizes, rng.uniform(0.3, 0.7, len(sizes)), seed)
    split = assign_splits(table, test_share=0.2, folds=folds, seed=seed)
    for _, rows in split.groupby("slide"):
        assert rows["split"].nunique() == rows["fold"].nunique() == 1
    test = split[split["split"] == "test"]
    assert test["slide"].nunique() == max(4, round(0.2 * len(sizes)))
    assert set(test["fold"]) == {-1}
    assert set(split.loc[split["split"] == "train", "fold"]) == set(range(folds))
    assert split["patch_id"].tolist() == table["patch_id"].tolist()
    pd.testing.assert_frame_equal(split, assign_splits(table, test_share=0.2, folds=folds, seed=seed))


@given(
    sizes=st.lists(st.integers(3, 30), min_size=16, max_size=26),
    links=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=4),
    unmapped=st.floats(0, 0.3),
    official=st.booleans(),
    folds=st.integers(2, 4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_nothing_that_belongs_together_is_separated(sizes, links, unmapped, official, folds, seed):
    rng = np.random.default_rng(seed)
    table = table_of(sizes, rng.uniform(0.2, 0.8, len(sizes)), seed)
    if official:
        sides = rng.choice(["train", "valid", "test"], len(sizes), p=[0.7, 0.1, 0.2])
        table["official"] = np.repeat(sides, sizes)
    table.loc[rng.random(len(table)) < unmapped, "slide"] = pd.NA
    groups = base_groups(table)
    sides = (table["official"] == "test").to_numpy() if official else np.zeros(len(table), bool)
    first, second = (np.array([pair[side] % len(table) for pair in links], dtype=int) for side in (0, 1))
    same = sides[first] == sides[second]
    first, second = first[same], second[same]
    table["group"] = unite(groups, first, second)
    # A hundred choices of test slides will do here.
    with patch("histoblend.data.splits.CANDIDATES", 100):
        split, error = outcome(table, folds, seed)
        again, _ = outcome(table.copy(), folds, seed)
    if split is None:
        assert any(words in error for words in ("need at least", "must hold", "leaves both labels"))
        return
    place = split["split"] + "/" + split["fold"].astype(str)
    assert (place.groupby(split["group"]).nunique() == 1).all()
    assert (place.to_numpy()[first] == place.to_numpy()[second]).all()
    for _, rows in split.groupby("slide"):
        assert place[rows.index].nunique() == 1 or (official and rows["official"].nunique() > 1)
    assert place[table["slide"].isna().to_numpy() & ~sides].nunique() <= 1
    assert split["patch_id"].tolist() == table["patch_id"].tolist()
    if official and sides.any():
        assert ((split["split"] == "test") == sides).all()
    for number in range(folds):
        assert (split["fold"] == number).any()
        assert split.loc[(split["split"] == "train") & (split["fold"] != number), "label"].nunique() == 2
    check_splits(split)
    pd.testing.assert_frame_equal(split, again)


def outcome(table, folds, seed):
    """The split, or the error that says why there is none."""
    try:
        return assign_splits(table, test_share=0.2, folds=folds, seed=seed), ""
    except InputError as error:
        return None, str(error)


def test_united_groups_take_the_first_name_over_any_number_of_steps():
    groups = np.array([*"abcdeab"], dtype=object)
    # b–d by rows 1 and 3, d–e by 3 and 4: three slides, one group.
    assert unite(groups, np.array([1, 3]), np.array([3, 4])).tolist() == [*"abcbbab"]


def test_a_slide_that_the_official_split_cuts_is_two_groups():
    slides = pd.array(["a", "a", "b", None], dtype="string")
    table = pd.DataFrame({"patch_id": [*"pqrs"], "slide": slides, "official": ["train", "test", "test", "valid"]})
    assert base_groups(table).tolist() == ["a", "a (test)", "b", "(unmapped)"]
    assert base_groups(table, by_patch=True).tolist() == ["patch:p", "patch:q", "patch:r", "patch:s"]


def test_known_slides_are_those_that_were_given():
    slides = pd.Series(["a", pd.NA, "(unmapped)", "(inferred 03)"], dtype="string")
    assert is_known(slides).tolist() == [True, False, False, False]


def test_many_small_groups_are_divided_evenly_and_whole():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(2 * MANY_GROUPS), rng.integers(1, 3, 2 * MANY_GROUPS))
    labels = rng.integers(0, 2, len(groups))
    parts = grouped_folds(labels, groups, 5, 0)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(groups)))
    assert sum(len(np.unique(groups[rows])) for rows in parts) == 2 * MANY_GROUPS
    assert max(map(len, parts)) - min(map(len, parts)) < 0.05 * len(groups)


def test_the_test_set_is_balanced_in_patches_and_positives():
    rng = np.random.default_rng(0)
    table = table_of(rng.integers(20, 200, 36), rng.beta(0.5, 0.7, 36))
    split = assign_splits(table, test_share=0.2, folds=5, seed=0)
    test = split[split["split"] == "test"]
    assert abs(len(test) / len(split) - 0.2) < 0.02
    assert abs(test["label"].mean() - split["label"].mean()) < 0.03


def test_another_seed_gives_another_test_set():
    table = table_of([30] * 20, [0.5] * 20)
    first, second = (assign_splits(table, test_share=0.2, folds=4, seed=seed) for seed in (0, 1))
    assert (first["split"] != second["split"]).any()


def test_without_slides_every_patch_is_its_own_group():
    table = table_of([200], [0.4]).assign(slide=pd.array([pd.NA] * 200, dtype="string"))
    assert len(set(patch_groups(table))) == 200
    split = assign_splits(table, test_share=0.2, folds=5, seed=0)
    assert (split["split"] == "test").sum() == 40
    assert split.loc[split["split"] == "train", "fold"].value_counts().tolist() == [32] * 5


def test_a_slide_never_collides_with_a_patch_of_the_same_name():
    table = pd.DataFrame({"patch_id": ["a", "b"], "slide": pd.array(["b", pd.NA], dtype="string")})
    assert len(set(patch_groups(table))) == 2


def test_a_chosen_test_set_leaves_both_labels_on_both_sides():
    # Tumour on two slides only: exactly one of them must be chosen.
    labels = np.repeat([1, 1, 0, 0, 0, 0, 0, 0], 10)
    groups = np.repeat(list("abcdefgh"), 10)
    chosen = choose_test_groups(labels, groups, test_share=0.2, seed=0)
    assert len(chosen) == 4
    assert len({"a", "b"} & set(chosen)) == 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (table_of([10] * 12, [0.0] * 12), r"labels must hold both 0 and 1; got only \[0\]"),
        (table_of([10] * 8, [0.5] * 8), "need at least 9 slides; got 8"),
        (table_of([10] * 12, [1.0] + [0.0] * 11), "no choice of 4 test slides leaves both labels"),
    ],
    ids=["one class", "fewer slides than folds", "tumour on one slide"],
)
def test_impossible_splits_say_why(table, message):
    with pytest.raises(InputError, match=message):
        assign_splits(table, test_share=0.2, folds=5, seed=0)


def broken(change):
    split = assign_splits(table_of([10] * 12, [0.5] * 12), test_share=0.2, folds=3, seed=0)
    change(split)
    return split


def move_one_patch(split):
    row = split.index[split["split"] == "test"][0]
    split.loc[row, ["split", "fold"]] = ["train", 0]


def double_an_id(split):
    split.loc[1, "patch_id"] = split.loc[0, "patch_id"]


def fold_of_test(split):
    split.loc[split["split"] == "test", "fold"] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (move_one_patch, "a slide must stand in one fold of one split; got slide 's"),
        (double_an_id, "patch ids must be unique; got 'p0' twice"),
        (fold_of_test, "fold must be -1 in the test set"),
    ],
)
def test_a_broken_split_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        check_splits(broken(change))
