"""Splits: whole slides only, covered, stratified, repeatable; a clear error where that cannot be."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import InputError
from data.splits import assign_splits, check_splits, choose_test_groups, patch_groups


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
