"""The audit detects planted faults, flags few real patches, and applies the policies."""

import numpy as np
import pandas as pd
import pytest

from histoblend.data.audit.duplicates import near_duplicates
from histoblend.data.audit.flags import (
    FLAGS,
    POLICIES,
    choose_examples,
    comparable,
    decide,
    examine,
    own_flags,
    reason,
    summarise,
)
from histoblend.data.audit.measures import Measures, measure
from histoblend.data.patches import write_pixels
from histoblend.data.phantom.patches import phantom
from histoblend.data.sources.kaggle import KaggleSource
from histoblend.data.sources.registry import PhantomSource
from histoblend.data.splits import base_groups, unite
from histoblend.pipelines.config import AuditConfig

DEFAULTS = {name: policies[0] for name, policies in POLICIES.items()}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Table with the truth, and the audit of 4,000 patches."""
    source = PhantomSource(phantom(4000, slides=40, seed=5, faults=True))
    folder = tmp_path_factory.mktemp("planted")
    table, _, measured = write_pixels(source, folder, workers=2, measure=lambda patches: vars(measure(patches)))
    (folder / "pixels.npy").unlink()
    return table, examine(table, Measures.join([Measures(**each) for each in measured]))


def precision_recall(flagged, truth):
    flagged, truth = np.asarray(flagged, bool), np.asarray(truth, bool)
    return (flagged & truth).sum() / max(flagged.sum(), 1), (flagged & truth).sum() / truth.sum()


def involved(table, *faults):
    """Return whether a row is a copy or its original."""
    copies = table["fault"].isin(faults)
    return copies | table["patch_id"].isin(table.loc[copies, "duplicate_of"])


@pytest.mark.parametrize(
    ("flag", "least"), [("exact_duplicate", 0.99), ("blank", 0.99), ("black", 0.99), ("blurred", 0.9), ("pen", 0.9)]
)
def test_planted_faults_are_flagged(planted, flag, least):
    table, audit = planted
    truth = involved(table, "duplicate") if flag == "exact_duplicate" else table["fault"] == flag
    precision, recall = precision_recall(audit[flag], truth)
    assert precision >= least
    assert recall >= least


@pytest.mark.parametrize("faults", [("mirrored",), ("near-duplicate",), ("mirrored", "near-duplicate")])
def test_near_duplicates_are_flagged_with_high_precision_and_recall(planted, faults):
    table, audit = planted
    _, recall = precision_recall(audit["near_duplicate"], involved(table, *faults))
    precision, _ = precision_recall(audit["near_duplicate"], involved(table, "mirrored", "near-duplicate"))
    assert recall >= 0.95
    assert precision >= 0.95


def test_each_copy_joins_the_set_of_its_original_with_the_right_symmetry(planted):
    table, audit = planted
    row_of = pd.Series(np.arange(len(table)), table["patch_id"])
    copies = np.flatnonzero(table["duplicate_of"] != "")
    originals = row_of[table["duplicate_of"].iloc[copies]].to_numpy()
    sets = audit["set"].to_numpy()
    assert (sets[copies] == sets[originals]).mean() >= 0.95
    near = copies[
        (table["fault"].iloc[copies] != "duplicate").to_numpy()
        & (copies > row_of[table["duplicate_of"].iloc[copies]].to_numpy())
    ]
    assert (audit["symmetry"].iloc[near] == table["symmetry"].iloc[near]).mean() >= 0.95


def test_contradictions_are_exactly_the_copies_with_the_other_label(planted):
    table, audit = planted
    labels = table.set_index("patch_id")["label"]
    copies = table[table["fault"] == "duplicate"]
    wrong = copies[copies["label"] != labels[copies["duplicate_of"]].to_numpy()]
    assert set(table["patch_id"][audit["contradictory"]]) == {*wrong["patch_id"], *wrong["duplicate_of"]}
    assert len(wrong) == 4  # a tenth of forty


def test_patches_without_slide_are_flagged_if_others_have_one(planted):
    table, audit = planted
    assert (audit["no_slide"] == table["slide"].isna()).all()
    none = table.assign(slide=pd.array([pd.NA] * len(table), dtype="string"))
    nothing = Measures(
        np.zeros((len(none), 15), np.float32), np.zeros(len(none), np.uint64), np.zeros((len(none), 16, 16), np.int8)
    )
    assert not examine(none, nothing)["no_slide"].any()


def test_few_real_patches_are_flagged_and_none_is_a_duplicate(sample):
    source = KaggleSource(sample)
    pixels, _ = source.read(0, len(source.table))
    measured = measure(pixels)
    flags = own_flags(measured.table())
    assert flags.sum().to_dict() == {"blank": 16, "black": 1, "blurred": 5, "saturated": 12, "pen": 7}
    usable = np.flatnonzero(comparable(measured.table()))
    assert len(usable) > 2800
    assert not len(near_duplicates(measured.bits, measured.vectors, usable, least=0.5).first)


def synthetic(sets, slides, labels=None, exact=True, official=None):
    """Return table and audit of patches with tissue; rows with the same number in ``sets`` are duplicates."""
    n = len(sets)
    rng = np.random.default_rng(0)
    different = Measures(
        np.tile(measure(rng.integers(60, 180, (1, 48, 48, 3), dtype=np.uint8)).values, (n, 1)),
        rng.integers(0, 2**62, n, dtype=np.uint64),
        rng.integers(-99, 99, (n, 16, 16), dtype=np.int8),
    )
    first = [sets.index(number) for number in sets]
    if not exact:
        different = Measures(different.values, different.bits[first], different.vectors[first])
    table = pd.DataFrame(
        {
            "patch_id": [f"p{row}" for row in range(n)],
            "label": np.zeros(n, int) if labels is None else labels,
            "slide": pd.array(slides, dtype="string"),
            "sha256": [str(sets[row]) if exact else str(row) for row in range(n)],
        }
    )
    if official is not None:
        table["official"] = official
    return table, examine(table, different)


def decided(table, audit, **policies):
    decision = decide(audit, base_groups(table), DEFAULTS | policies)
    groups = unite(base_groups(table), decision.first, decision.second)
    return decision.dropped_by.tolist(), groups.tolist()


SMALL = [1, 2, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11]
IN_SLIDES = [*"ababccddeeff"]


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "near"])
def test_duplicates_are_kept_together_or_dropped(exact):
    table, audit = synthetic(SMALL, [pd.NA] * 12, exact=exact)
    flag = "exact_duplicate" if exact else "near_duplicate"
    assert np.flatnonzero(audit[flag]).tolist() == [0, 2]
    dropped, groups = decided(table, audit)
    assert dropped == [""] * 12
    assert groups[0] == groups[2]
    assert len(set(groups)) == 11
    dropped, _ = decided(table, audit, **{flag: "drop"})
    assert [row for row in range(12) if dropped[row]] == [2]
    assert dropped[2] == flag
    _, groups = decided(table, audit, exact_duplicate="keep", near_duplicate="keep")
    assert len(set(groups)) == 12


def test_slides_that_share_a_duplicate_form_one_group_if_it_is_small():
    sets = [0, 0, *range(2, 40)]
    slides = ["a", "b", *(f"s{row % 16}" for row in range(38))]
    table, audit = synthetic(sets, slides)
    assert np.flatnonzero(audit["across_slides"]).tolist() == [0, 1]
    dropped, groups = decided(table, audit)
    assert not any(dropped)
    assert groups[:2] == ["a", "a"]
    assert decided(table, audit, across_slides="drop")[0][:3] == ["", "across_slides", ""]
    assert decided(table, audit, across_slides="keep")[1][:2] == ["a", "b"]


def test_copies_are_dropped_if_merging_would_chain_all_slides():
    # Slide k shares a patch with slide k + 1, so merging would give one group of all ten slides.
    slides = [name for pair in zip("abcdefghi", "bcdefghij", strict=True) for name in pair]
    sets = [number for k in range(9) for number in (k, k)]
    table, audit = synthetic(sets, slides)
    dropped, groups = decided(table, audit)
    assert dropped == ["", "across_slides"] * 9
    assert groups == slides


def test_a_copy_without_a_slide_is_dropped_if_another_has_one():
    table, audit = synthetic(SMALL, [pd.NA, "b", "a", *IN_SLIDES[3:]])
    dropped, groups = decided(table, audit)
    assert dropped == ["across_slides", *[""] * 11]
    assert groups[1:3] == ["b", "a"]


def test_training_copies_of_official_test_patches_are_dropped():
    table, audit = synthetic(SMALL, IN_SLIDES, official=["train", "valid", "test", *["train"] * 9])
    assert np.flatnonzero(audit["across_splits"]).tolist() == [0, 2]
    assert decided(table, audit)[0] == ["across_splits", *[""] * 11]
    dropped, groups = decided(table, audit, across_splits="keep")
    assert not any(dropped)
    assert groups[0] != groups[2]


def test_exact_duplicates_under_both_labels_are_dropped_and_near_ones_kept():
    labels = [0, 1, 1, *[0] * 9]
    table, audit = synthetic(SMALL, ["a"] * 12, labels)
    assert decided(table, audit)[0] == ["contradictory", "", "contradictory", *[""] * 9]
    assert not any(decided(table, audit, contradictory="keep")[0])
    table, audit = synthetic(SMALL, ["a"] * 12, labels, exact=False)
    assert np.flatnonzero(audit["near_contradictory"]).tolist() == [0, 2]
    assert not any(decided(table, audit)[0])


def test_equal_blank_patches_merge_no_slides_and_contradict_no_labels():
    glass = measure(np.full((1, 48, 48, 3), 245, np.uint8))
    table = pd.DataFrame(
        {"patch_id": [*"pqr"], "label": [0, 1, 0], "slide": pd.array([*"abc"], dtype="string"), "sha256": "x"}
    )
    audit = examine(table, Measures.join([glass] * 3))
    assert audit[["blank", "exact_duplicate"]].all(axis=None)
    assert not audit[["across_slides", "contradictory", "near_duplicate"]].any(axis=None)
    dropped, groups = decided(table, audit)
    assert not any(dropped)
    assert groups == [*"abc"]
    assert decided(table, audit, blank="drop")[0] == ["blank"] * 3


def test_the_summary_counts_and_examples_come_in_pairs(planted):
    _, audit = planted
    audit = audit.assign(dropped_by=np.where(audit["contradictory"], "contradictory", ""))
    summary = summarise(audit, DEFAULTS).set_index("flag")
    assert list(summary.index) == [flag.name for flag in FLAGS]
    assert summary.loc["contradictory", ["patches", "dropped", "positive"]].tolist() == [8, 8, 0.5]
    examples = choose_examples(audit, 6)
    assert examples.groupby("flag").size().max() == 6
    for name in ("exact_duplicate", "near_duplicate"):
        rows = examples.loc[examples["flag"] == name, "row"].to_numpy()
        assert audit[name].iloc[rows].all()
        assert (audit["set"].to_numpy()[rows[::2]] == audit["set"].to_numpy()[rows[1::2]]).all()


def test_configuration_and_flags_offer_the_same_policies():
    assert AuditConfig().model_dump() == DEFAULTS
    for name, policies in POLICIES.items():
        assert set(AuditConfig.model_fields[name].annotation.__args__) == set(policies)
    assert all(reason(flag.name) for flag in FLAGS)
