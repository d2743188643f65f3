"""Splits: whole slides only, covered, stratified, repeatable; a clear error where that cannot be."""

import hashlib
import re
from functools import partial
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoblend.data.errors import InputError
from histoblend.data.slide_kinds import SlideCounts, most_covered
from histoblend.data.splits import (
    MANY_GROUPS,
    assign_splits,
    base_groups,
    check_enough,
    check_splits,
    choose_test_groups,
    find_folds,
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
@settings(max_examples=40)
def test_no_slide_spans_two_folds_and_every_patch_is_assigned(sizes, folds, seed):
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
@settings(max_examples=40)
def test_linked_patches_are_never_separated(sizes, links, unmapped, official, folds, seed):
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
    # 100 choices of test slides are enough here.
    with patch("histoblend.data.splits.CANDIDATES", 100):
        split, error = outcome(table, folds, seed)
        again, _ = outcome(table.copy(), folds, seed)
    if split is None:
        assert any(words in error for words in ("need at least", "must hold", "both labels"))
        return
    side = split["split"] + "/" + split["fold"].astype(str)
    assert (side.groupby(split["group"]).nunique() == 1).all()
    assert (side.to_numpy()[first] == side.to_numpy()[second]).all()
    for _, rows in split.groupby("slide"):
        assert side[rows.index].nunique() == 1 or (official and rows["official"].nunique() > 1)
    assert side[table["slide"].isna().to_numpy() & ~sides].nunique() <= 1
    assert split["patch_id"].tolist() == table["patch_id"].tolist()
    if official and sides.any():
        assert ((split["split"] == "test") == sides).all()
    for number in range(folds):
        assert (split["fold"] == number).any()
        assert split.loc[(split["split"] == "train") & (split["fold"] != number), "label"].nunique() == 2
    check_splits(split)
    pd.testing.assert_frame_equal(split, again)


def outcome(table, folds, seed):
    """Return the split, or the message of the error."""
    try:
        return assign_splits(table, test_share=0.2, folds=folds, seed=seed), ""
    except InputError as error:
        return None, str(error)


def test_groups_linked_directly_or_through_others_take_the_first_name():
    groups = np.array([*"abcdeab"], dtype=object)
    # b–d by rows 1 and 3, d–e by 3 and 4: three slides, one group.
    assert unite(groups, np.array([1, 3]), np.array([3, 4])).tolist() == [*"abcbbab"]
    # The first name by alphabet, not by row; groups after a merged pair keep their own names.
    assert unite(groups[::-1], np.array([0]), np.array([1])).tolist() == [*"aaedcaa"]


def test_a_slide_on_both_sides_of_the_official_split_is_two_groups():
    slides = pd.array(["a", "a", "b", None], dtype="string")
    table = pd.DataFrame({"patch_id": [*"pqrs"], "slide": slides, "official": ["train", "test", "test", "valid"]})
    assert base_groups(table).tolist() == ["a", "a (test)", "b", "(unmapped)"]
    assert base_groups(table, by_patch=True).tolist() == ["patch:p", "patch:q", "patch:r", "patch:s"]


def test_known_slides_are_those_named_by_the_data_set():
    slides = pd.Series(["a", pd.NA, "(unmapped)", "(inferred 03)"], dtype="string")
    assert is_known(slides).tolist() == [True, False, False, False]


def test_many_small_groups_are_divided_evenly_and_kept_whole():
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
        (table_of([10] * 12, [0.0] * 12), r"labels must include both 0 and 1; got only \[0\]"),
        (table_of([10] * 8, [0.5] * 8), "need at least 9 slides; got 8"),
        (table_of([10] * 12, [1.0] + [0.0] * 11), "no choice of 4 test slides leaves both labels"),
    ],
    ids=["one class", "fewer slides than folds", "tumour on one slide"],
)
def test_impossible_splits_say_why(table, message):
    with pytest.raises(InputError, match=message):
        assign_splits(table, test_share=0.2, folds=5, seed=0)


def test_splits_equal_those_of_an_earlier_version():
    digest = hashlib.sha256()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(3, 30, rng.integers(12, 25))
        table = table_of(sizes, rng.beta(0.4, 0.6, len(sizes)), seed)
        split = assign_splits(table, test_share=0.25, folds=3, seed=seed)
        digest.update(split["fold"].to_numpy(np.int8).tobytes())
    # Of the code at commit 2750ed0.
    assert digest.hexdigest() == "f38982a5ab59281fa2728f623cef2a23afb8c6c451e3d403c8330bdb6207fc6d"


def small_table(rng):
    """5 to 15 slides, most of them with one label only, and their counts."""
    shares = rng.dirichlet([1, 1, 1]) if rng.random() < 0.3 else [0.05, 0.3, 0.65]
    kinds = rng.choice(["10", "1", "0"], rng.integers(5, 16), p=shares)
    rows = [
        (f"s{slide:02d}", int(label))
        for slide, kind in enumerate(kinds)
        for label in str(kind) * int(rng.integers(1, 5))
    ]
    return table_from(rows), SlideCounts(*(int((kinds == kind).sum()) for kind in ("10", "1", "0")))


def table_from(rows):
    slides, labels = zip(*rows, strict=True)
    ids = [f"p{row}" for row in range(len(rows))]
    return pd.DataFrame({"patch_id": ids, "label": labels, "slide": pd.array(slides, dtype="string")})


@pytest.fixture
def few_draws(monkeypatch):
    """Draw fewer test sets, so that random ones fail more often."""
    monkeypatch.setattr("histoblend.data.splits.CANDIDATES", 40)
    monkeypatch.setattr("histoblend.data.small_splits.TEST_DRAWS", 40)
    monkeypatch.setattr("histoblend.data.small_splits.FOLD_DRAWS", 10)


@pytest.mark.parametrize("part", range(6))
def test_small_data_sets_are_split_whenever_possible(part, few_draws):
    for seed in range(50 * part, 50 * part + 50):
        rng = np.random.default_rng(seed)
        (table, counts), folds = small_table(rng), int(rng.integers(2, 6))
        share = float(rng.choice([0.2, 0.4]))
        if table["label"].nunique() < 2:
            continue
        held_out = max(4, round(share * counts.slides))
        covered = most_covered(counts, held_out, folds)
        if covered:
            split = assign_splits(table, test_share=share, folds=folds, seed=seed)
            check_valid(split, held_out, folds)
            pd.testing.assert_frame_equal(split, assign_splits(table, test_share=share, folds=folds, seed=seed))
        else:
            with pytest.raises(InputError) as error:
                assign_splits(table, test_share=share, folds=folds, seed=seed)
            follow(str(error.value), table, share, folds, seed)


def check_valid(split, held_out, folds):
    """The test set holds both labels, and so does the training data of every fold."""
    check_splits(split)
    test, train = split[split["split"] == "test"], split[split["split"] == "train"]
    assert test["slide"].nunique() == held_out
    assert test["label"].nunique() == 2
    for number in range(folds):
        assert (train["fold"] == number).any()
        assert train.loc[train["fold"] != number, "label"].nunique() == 2


def follow(message, table, share, folds, seed):
    """Follow the advice of a message; the split must then be possible."""
    changed = dict(re.findall(r"--set split\.(\w+)=([a-z]+|[0-9.]*[0-9])", message))
    additions = re.findall(r"(\d+) more slides?(?: with label (\d))?", message)
    assert changed or additions, message
    if "groups" in changed:
        by_patch = table.assign(group=base_groups(table, by_patch=True))
        assign_splits(by_patch, test_share=share, folds=folds, seed=seed)
    elif changed:
        share, folds = float(changed.get("test_share", share)), int(changed.get("folds", folds))
        assign_splits(table, test_share=share, folds=folds, seed=seed)
    labels = [int(label or 0) for count, label in additions for _ in range(int(count))]
    more = table_from([(f"new{number}", label) for number, label in enumerate([*labels, 0])][:-1] or [("new", 0)])
    more["patch_id"] = "new-" + more["patch_id"]
    if additions:
        assign_splits(pd.concat([table, more], ignore_index=True), test_share=share, folds=folds, seed=seed)


def test_folds_hold_both_labels_whenever_possible():
    # One positive and one negative slide for each of four folds.
    table = table_from([(f"s{slide}", int(slide < 4)) for slide in range(9) for _ in range(3 + slide)])
    labels, slides = table["label"].to_numpy(), table["slide"].to_numpy(dtype=object)
    for seed in range(10):
        parts = find_folds(labels, slides, 4, seed, hold_both=True)
        assert [set(labels[rows]) for rows in parts] == [{0, 1}] * 4
        assert sorted(np.concatenate(parts)) == list(range(len(table)))
    assert find_folds(labels, slides, 5, 0, hold_both=True) == []


@pytest.mark.parametrize("check", [check_enough, partial(assign_splits, seed=0)], ids=["early", "late"])
@pytest.mark.parametrize(
    ("table", "folds", "message"),
    [
        (table_of([10] * 8, [0.5] * 8), 5, r"at least 9 slides; got 8. Use --set split.folds=4.$"),
        (
            table_of([10] * 12, [1.0] + [0.0] * 11),
            5,
            r"got 12 slides, 1 with tumour \(label 1\), 11 with label 0, 0 of them with both. "
            r"Add at least 2 more slides with label 1. Or use --set split.groups=patch, "
            r"which makes scores optimistic.$",
        ),
        (
            table_of([1] * 12, [1.0] + [0.0] * 11),
            5,
            r"Add at least 2 more slides with label 1.$",
        ),
        (
            table_of([1] * 12, [1.0] + [0.0] * 11).assign(slide=pd.array([pd.NA] * 12, dtype="string")),
            5,
            r"got 12 patches, 1 with tumour .* Add at least 2 more patches with label 1.$",
        ),
        (
            table_of([10] * 12, [1.0] * 2 + [0.0] * 10),
            3,
            r"^no choice of 4 test slides and 3 folds keeps both labels in the test set and in the training data of "
            r"every fold; .* Add at least 1 more slide with label 1. Or",
        ),
        (
            table_of([10] * 12, [1.0] + [0.0] * 11).assign(official=["train"] * 60 + ["test"] * 60),
            5,
            r"training part of the official split must hold each label on at least 2 slides; .*Add at least 1 more "
            r"slide with label 1. Or use --set split.groups=patch",
        ),
        # Two slides of one label each give no interval, so splitting by patch would not help.
        (table_of([20] * 2, [1.0, 0.0]), 2, r"Add at least [^.]*\.$"),
    ],
    ids=[
        "too few slides", "tumour on one slide", "one patch of tumour", "no slides", "on two slides", "official",
        "two pure slides",
    ],
)  # fmt: skip
def test_an_error_names_what_would_allow_a_split(check, table, folds, message):
    with pytest.raises(InputError, match=message):
        check(table, test_share=0.2, folds=folds)


def test_no_change_of_folds_is_suggested_for_inferred_slides():
    table = table_of([10] * 12, [1.0] + [0.0] * 11)
    table["group"] = "(inferred 0" + table["slide"].str[1:].str.zfill(2) + ")"
    with pytest.raises(
        InputError, match=r"0 of them with both. Use --set split.groups=patch, which makes scores optimistic.$"
    ):
        assign_splits(table, test_share=0.2, folds=5, seed=0)


def test_an_official_training_part_of_pure_slides_gets_folds():
    # Two positive slides that a stratified splitter may put into one fold: they must be in different folds.
    rows = [(f"s{slide}", int(slide < 2)) for slide in range(8) for _ in range(4 if slide < 2 else 40)]
    for seed in range(5):
        table = table_from([*rows, ("t0", 0), ("t1", 1)])
        table["official"] = ["train"] * len(rows) + ["test"] * 2
        split = assign_splits(table, test_share=0.2, folds=5, seed=seed)
        assert split.loc[split["label"] == 1, "fold"].nunique() == 3


def test_fewer_patches_of_either_label_than_folds_are_divided_without_a_warning(recwarn):
    # scikit-learn refuses this: each label has four patches, and there are five folds.
    labels, groups = np.array([0, 1] * 4), np.arange(8)
    parts = find_folds(labels, groups, 5, 0)
    assert sorted(np.concatenate(parts)) == list(range(8))
    assert len(find_folds(np.array([0] * 20 + [1] * 3), np.arange(23), 5, 0)) == 5
    assert not recwarn.list


def broken(change):
    split = assign_splits(table_of([10] * 12, [0.5] * 12), test_share=0.2, folds=3, seed=0)
    change(split)
    return split


def move_one_patch(split):
    row = split.index[split["split"] == "test"][0]
    split.loc[row, ["split", "fold"]] = ["train", 0]


def move_one_patch_of_two_slides(split):
    split.loc[split["slide"].isin(["s2", "s3"]), ["split", "fold"]] = ["train", 2]
    split.loc[split["patch_id"].isin(["p20", "p30"]), ["split", "fold"]] = ["train", 1]


def double_an_id(split):
    split.loc[1, "patch_id"] = split.loc[0, "patch_id"]


def fold_of_test(split):
    split.loc[split["split"] == "test", "fold"] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (move_one_patch, "a slide must be in a single fold of a single split; got slide 's"),
        (move_one_patch_of_two_slides, "got slide 's2' in train/1, train/2. Scores"),
        (double_an_id, "patch ids must be unique; got 'p0' twice"),
        (fold_of_test, "fold must be -1 for the test set"),
    ],
)
def test_a_broken_split_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        check_splits(broken(change))
