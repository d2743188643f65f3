"""Slide context: values computed by hand, shrinkage, and independence from other slides and labels."""

import inspect
from functools import cache

import numpy as np
import pandas as pd
import pytest

import histoblend.features.handcrafted.slide_context
from histoblend.features.handcrafted.column import REGION_WORDS
from histoblend.features.handcrafted.families import columns, compute, parse_column
from histoblend.features.handcrafted.slide_context import (
    context_columns,
    in_slide_name,
    slide_context,
    slide_reference,
    slide_stain_sentences,
    slide_stains,
    trust,
)
from tests.oracles import pictures

NAMES = ["colour_mean_red_whole", "lbp_r1-p0_grey_centre"]


def test_a_value_becomes_its_distance_from_the_median_in_spreads():
    values = np.arange(17, dtype=np.float32)[:, None]
    # median 8; absolute deviations 0, 1, 1, 2, 2, ... 8, 8, whose median is 4
    relative, names = slide_context(values, np.array(["S"] * 17), ["a_mean_b_whole"])
    np.testing.assert_allclose(relative[:, 0], (np.arange(17) - 8) / (1.4826 * 4), rtol=1e-6)
    assert relative.dtype == np.float32
    assert names == ["a_mean-in-slide_b_whole"]


@pytest.mark.parametrize(("patches", "weight"), [(10, 0.5), (18, 1.0)])
def test_outliers_are_clipped_at_six_spreads_and_later_in_a_small_slide(patches, weight):
    values = np.array([-1e6, *range(patches - 2), 1e6], np.float32)[:, None]
    # With 10 patches: median 3.5; absolute deviations 0.5, 0.5, 1.5, 1.5, ... 3.5, 3.5 and two outliers; median 2.5.
    # With 18 patches: median 7.5; absolute deviations 0.5, 0.5, ... 7.5, 7.5 and two outliers; median 4.5.
    centre, spread = {10: (3.5, 1.4826 * 2.5), 18: (7.5, 1.4826 * 4.5)}[patches]
    relative = slide_context(values, np.array(["S"] * patches), ["a_b_c_whole"])[0][:, 0]
    assert (relative[0], relative[-1]) == pytest.approx(
        [(centre + side * 6 / weight * spread - weight * centre) / spread**weight for side in (-1, 1)]
    )
    np.testing.assert_allclose(relative[1:-1], (values[1:-1, 0] - weight * centre) / spread**weight, atol=1e-6)


def test_half_equal_values_use_the_standard_deviation():
    values = np.array([0] * 12 + [1] * 4, np.float32)[:, None]
    relative, _ = slide_context(values, np.array(["S"] * 16), ["a_b_c_whole"])
    # values of which a quarter are ones have the standard deviation √(1/4 · 3/4)
    np.testing.assert_allclose(relative[-1], 1 / np.sqrt(3 / 16), rtol=1e-6)


def test_a_constant_column_is_zero():
    relative, _ = slide_context(np.full((20, 1), 0.1, np.float32), np.array(["S"] * 20), ["a_b_c_whole"])
    np.testing.assert_allclose(relative, 0, atol=1e-6)


@pytest.mark.parametrize("patches", [1, 2, 4])
def test_few_patches_keep_the_raw_value(patches):
    values = np.random.default_rng(0).normal(size=(patches, 2)).astype(np.float32)
    np.testing.assert_array_equal(slide_context(values, np.array(["S"] * patches), NAMES)[0], values)


@pytest.mark.parametrize("unknown", [None, np.nan, pd.NA])
def test_patches_without_a_slide_keep_the_raw_value(unknown):
    values = np.random.default_rng(0).normal(5, 1, size=(40, 2)).astype(np.float32)
    slides = np.array([unknown] * 20 + ["S"] * 20, dtype=object)
    relative, _ = slide_context(values, slides, NAMES)
    np.testing.assert_array_equal(relative[:20], values[:20])
    assert np.abs(np.median(relative[20:], axis=0)).max() < 1e-6


def test_trust_increases_with_the_number_of_patches():
    assert [trust(n) for n in (1, 4, 10, 16, 500)] == [0, 0, 0.5, 1, 1]


def test_other_slides_change_nothing():
    rng = np.random.default_rng(0)
    values, slides = rng.normal(size=(90, 2)).astype(np.float32), np.repeat(["A", "B", "C"], 30)
    before, _ = slide_context(values, slides, NAMES)
    changed = values.copy()
    changed[slides != "B"] = rng.normal(100, 50, size=(60, 2))
    np.testing.assert_array_equal(slide_context(changed, slides, NAMES)[0][slides == "B"], before[slides == "B"])
    alone = slides == "B"
    np.testing.assert_array_equal(slide_context(values[alone], slides[alone], NAMES)[0], before[alone])


def test_the_order_of_patches_changes_nothing():
    rng = np.random.default_rng(1)
    values, slides, order = rng.normal(size=(60, 2)).astype(np.float32), rng.choice(["A", "B"], 60), rng.permutation(60)
    before, _ = slide_context(values, slides, NAMES)
    np.testing.assert_array_equal(slide_context(values[order], slides[order], NAMES)[0], before[order])


def test_labels_are_not_a_parameter():
    assert list(inspect.signature(slide_context).parameters) == ["values", "slides", "columns"]


def test_shifting_and_scaling_a_whole_slide_changes_nothing():
    values = np.random.default_rng(2).normal(size=(40, 2)).astype(np.float32)
    slides = np.array(["A"] * 40)
    moved, _ = slide_context(3 * values + 7, slides, NAMES)
    np.testing.assert_allclose(moved, slide_context(values, slides, NAMES)[0], atol=1e-4)


def test_every_in_slide_name_parses_back():
    names = [in_slide_name(column.name) for column in columns()]
    assert len(set(names) | {column.name for column in columns()}) == 2 * len(names)
    for name in names:
        assert parse_column(name).statistic.endswith("-in-slide")
        assert parse_column(name).region in REGION_WORDS


@pytest.mark.parametrize(
    ("values", "slides", "names", "message"),
    [
        (np.zeros((3, 2)), np.array(["A"] * 2), NAMES, r"must agree; got \(3, 2\), \(2,\) and 2"),
        (np.zeros((3, 2)), np.array(["A"] * 3), NAMES[:1], "must agree"),
        (np.full((3, 2), np.nan), np.array(["A"] * 3), NAMES, "values must be finite"),
        (np.zeros((3, 2)), np.array(["A"] * 3), ["mean", "spread"], "family_statistic_channel_region"),
    ],
)
def test_wrong_arguments_are_rejected(values, slides, names, message):
    with pytest.raises(ValueError, match=message):
        slide_context(values, slides, names)


STAIN = [column.name for column in columns(["stain"])]


def stained(vectors, amounts, *, fallback=0.0):
    """A row of the stain family from vectors (2, 3) and amounts of both stains in whole, centre, contrast (3, 2)."""
    row = dict.fromkeys(STAIN, 0.0)
    for stain, vector in zip(("haematoxylin", "eosin"), vectors, strict=True):
        for part, value in zip(("red", "green", "blue"), vector, strict=True):
            row[f"stain_{part}_{stain}_whole"] = value
    for region, pair in zip(("whole", "centre", "contrast"), amounts, strict=True):
        row[f"stain_mean_haematoxylin_{region}"], row[f"stain_mean_eosin_{region}"] = pair
    row["stain_fallback_both_whole"] = fallback
    return [row[name] for name in STAIN]


def test_amounts_are_decomposed_on_the_slides_vectors():
    common = [[1, 0, 0], [0, 1, 0]]
    unusual = [[0.6, 0.8, 0], [0, 1, 0]]
    rows = [stained(common, [(1, 1), (1, 1), (0, 0)])] * 19 + [stained(unusual, [(1, 1), (2, 1), (0.5, 0)])]
    values, names = slide_stains(np.array(rows, np.float32), np.array(["S"] * 20), STAIN)
    assert names == list(slide_stain_sentences())
    # the unusual patch's densities (0.6, 1.8), (1.2, 2.6) and (0.3, 0.4) are its amounts on the common vectors
    expected = [0.6, 1.8, 0.6 / 2.4, 1.2, 2.6, 1.2 / 3.8, 0.3, 0.4, 1.2 / 3.8 - 0.9 / 3.1]
    np.testing.assert_allclose(values[-1], expected, rtol=1e-6)
    np.testing.assert_allclose(values[0], [1, 1, 0.5, 1, 1, 0.5, 0, 0, 0], atol=1e-6)


def test_patches_without_an_estimate_are_left_out():
    common, ruifrok = [[1, 0, 0], [0, 1, 0]], [[0, 1, 0], [0, 0, 1]]
    rows = [stained(common, [(1, 1)] * 3)] * 16 + [stained(ruifrok, [(1, 0)] * 3, fallback=1.0)] * 30
    values, _ = slide_stains(np.array(rows, np.float32), np.array(["S"] * 46), STAIN)
    # density (0, 1, 0) is pure eosin on the slide's vectors
    np.testing.assert_allclose(values[-1, :2], [0, 1], atol=1e-6)


@pytest.mark.parametrize("slides", [["S"] * 4, [None] * 4])
def test_few_patches_or_no_slide_keep_their_own_vectors(slides):
    patches = np.stack([pictures.tissue(seed) for seed in range(4)])
    table = compute(patches, ["stain"])
    values, names = slide_stains(table, np.array(slides, dtype=object), STAIN)
    for name, column in zip(names, values.T, strict=True):
        np.testing.assert_allclose(column, table[:, STAIN.index(name.replace("-on-slide", ""))], rtol=1e-4, atol=1e-6)


def test_slide_stains_do_not_depend_on_other_slides():
    patches = np.stack([pictures.tissue(seed) for seed in range(40)])
    table, slides = compute(patches, ["stain"]), np.repeat(["A", "B"], 20)
    before, _ = slide_stains(table, slides, STAIN)
    alone, _ = slide_stains(table[:20], slides[:20], STAIN)
    np.testing.assert_array_equal(before[:20], alone)
    own = table[:, [STAIN.index(name.replace("-on-slide", "")) for name in slide_stain_sentences()]]
    assert np.abs(before - own).max() > 1e-3


def test_a_slide_without_any_estimate_keeps_its_own_vectors():
    rows = np.array([stained([[1, 0, 0], [0, 1, 0]], [(1, 2)] * 3, fallback=1.0)] * 20, np.float32)
    np.testing.assert_allclose(slide_stains(rows, np.array(["S"] * 20), STAIN)[0][:, :2], [[1, 2]] * 20)


@pytest.mark.parametrize("names", [NAMES, NAMES[:1]], ids=["two columns", "one column"])
def test_without_the_stain_family_there_are_no_slide_stains(names):
    raw, slides = np.random.default_rng(0).normal(size=(20, len(names))).astype(np.float32), np.array(["A"] * 20)
    values, stains = slide_stains(raw, slides, names)
    assert values.shape == (20, 0)
    assert stains == []
    reference = slide_reference(lambda at: raw[:, at], 20, names)
    np.testing.assert_array_equal(reference.relate(raw), np.hstack([raw, slide_context(raw, slides, names)[0]]))
    assert (reference.stain_weight, reference.stain_vectors.shape) == (0.0, (2, 3))
    assert context_columns(names) == [*names, *map(in_slide_name, names)]


def test_names_of_slide_stains_parse_back():
    for name in slide_stain_sentences():
        assert parse_column(name).statistic.endswith("-on-slide")
        assert parse_column(name).region in REGION_WORDS


@cache
def features(patches):
    return compute(np.stack([pictures.tissue(seed, 32, 32) for seed in range(patches)]), ("colour", "stain"))


@pytest.mark.parametrize("patches", [4, 5, 9, 16, 150])
@pytest.mark.parametrize("columns_at_once", [1, 7, 10**6])
def test_a_slide_in_pieces_is_bit_identical_to_the_whole_slide(monkeypatch, patches, columns_at_once):
    names = [column.name for column in columns(("colour", "stain"))]
    raw = features(patches).copy()
    raw[:, 3] = 0.5  # more than half of the values are equal
    raw[: patches // 3, 3] = np.linspace(0, 1, patches // 3)
    slides = np.array(["S"] * patches)
    whole = np.concatenate([raw, slide_context(raw, slides, names)[0], slide_stains(raw, slides, names)[0]], axis=1)
    monkeypatch.setattr(histoblend.features.handcrafted.slide_context, "_MAX_VALUES", columns_at_once * patches)
    widths = []
    reference = slide_reference(lambda at: widths.append(len(at)) or raw[:, at], patches, names)
    *blocks, _ = widths  # the last are the stain vectors
    assert sum(blocks) == len(names)
    assert min(blocks) > 1
    assert max(blocks) < 2 * max(2, columns_at_once)
    assert reference.stain_vectors.shape == (2, 3)
    assert context_columns(names) == [*names, *map(in_slide_name, names), *slide_stain_sentences()]
    for step in (1, 7, patches):
        pieces = [reference.relate(raw[start : start + step]) for start in range(0, patches, step)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)
