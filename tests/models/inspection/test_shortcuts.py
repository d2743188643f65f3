import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from histoblend.data.phantom.patches import phantom
from histoblend.features.handcrafted import families
from histoblend.models.inspection.shortcuts import NEAREST, NEIGHBOURS, measure_shortcuts, project, recognise

FAMILIES = ("colour", "nuclei")
#: Ten seeds; eight of them only by hand, with ``pytest -m length``.
SEEDS = [1, 2, *(pytest.param(seed, marks=pytest.mark.length) for seed in range(3, 11))]


def cohort(confound, seed):
    """Meters of two families on a small phantom: DataFrame by family and kind of group."""
    drawn = phantom(400, slides=20, seed=seed, confound=confound)
    table = drawn.table
    values = families.compute(drawn.render(0, len(drawn)), FAMILIES)
    names = [column.name for column in families.columns(FAMILIES)]
    groups = {"slide": table["slide"].to_numpy(object), "scanner": table["domain"].to_numpy(object)}
    meters = {}
    for family in FAMILIES:
        columns = [index for index, name in enumerate(names) if name.startswith(f"{family}_")]
        measured = measure_shortcuts(values[:, columns], table["label"].to_numpy(), groups, draws=100)
        meters[family] = measured.set_index("kind")
    return meters


@pytest.mark.parametrize("seed", SEEDS)
def test_the_meter_rises_with_planted_confounding_colour_first(seed):
    without, strong = cohort(0.0, seed), cohort(0.9, seed)
    for family in FAMILIES:
        assert abs(without[family].shortcut["slide"]) < 0.25, family
        assert strong[family].shortcut["scanner"] == strong[family].shortcut["slide"]
    assert strong["colour"].shortcut_low["slide"] > 0.3
    assert strong["colour"].shortcut["slide"] > 2 * strong["nuclei"].shortcut["slide"]
    # Colour holds more of scanners than of tumour, with or without confounding.
    for meters in (without, strong):
        assert meters["colour"].robustness["scanner"] < 0.3 < meters["nuclei"].robustness["scanner"]
        assert meters["colour"].recognised["scanner"] > 0.9
    assert without["colour"].recognised["slide"] > 5 * without["colour"].chance["slide"]


def balanced(seed=0, per_cell=30, size=1.0):
    """Two labels and two scanners with equal numbers of patches, one patch per slide."""
    rng = np.random.default_rng(seed)
    labels, scanner = np.repeat([0, 1], 2 * per_cell), np.tile(np.repeat([0, 1], per_cell), 2)
    values = rng.normal(size=(4 * per_cell, 6))
    values[:, 0] += 1.5 * size * labels
    values[:, 1] += size * scanner
    return values, labels, scanner


def test_with_equal_numbers_the_measures_are_those_of_the_literature():
    values, labels, scanner = balanced()
    names = {"slide": np.array([f"s{i}" for i in range(120)], object), "scanner": scanner.astype(str).astype(object)}
    row = measure_shortcuts(values, labels, names, draws=50).set_index("kind").loc["scanner"]
    points = project(values)
    distances, near = NearestNeighbors(n_neighbors=120).fit(points).kneighbors(points)
    same_label, same_scanner = labels[near] == labels[:, None], scanner[near] == scanner[:, None]
    first = slice(1, NEIGHBOURS + 1)
    matches = (same_label & ~same_scanner)[:, first].sum()
    impostors = (~same_label & same_scanner)[:, first].sum()
    assert row.robustness == pytest.approx(matches / (matches + impostors))
    squared = distances**2
    margins = []
    for i in range(120):
        so, os = (
            squared[i][kind[i]][:NEAREST].mean() for kind in (same_label & ~same_scanner, ~same_label & same_scanner)
        )
        margins.append((os - so) / (os + so))
    assert row.margin == pytest.approx(np.mean(margins), abs=1e-4)
    assert row.robustness_low < row.robustness < row.robustness_high


def test_noise_is_at_chance_although_slides_differ_in_size_and_prevalence():
    rng = np.random.default_rng(0)
    slides = np.repeat([f"s{i}" for i in range(12)], rng.integers(20, 90, 12)).astype(object)
    prevalence = dict(zip(sorted(set(slides)), np.linspace(0.1, 0.9, 12), strict=True))
    labels = (rng.random(len(slides)) < [prevalence[slide] for slide in slides]).astype(int)
    row = measure_shortcuts(rng.normal(size=(len(slides), 5)), labels, {"slide": slides}, draws=200).iloc[0]
    assert row.robustness == pytest.approx(0.5, abs=0.06)
    assert row.margin == pytest.approx(0, abs=0.03)
    assert row.recognised == pytest.approx(row.chance, abs=0.04)
    assert row.shortcut == pytest.approx(0, abs=0.1)
    assert row.auc == pytest.approx(0.5, abs=0.1)


def test_wide_tables_and_constant_columns_are_measured():
    values, labels, scanner = balanced(size=3.0)
    wide = np.concatenate([values, np.ones((120, 1)), np.repeat(values[:, :2], 50, axis=1)], axis=1)
    slides = np.array([f"s{scanner[i]}{i % 5}" for i in range(120)], object)
    row = measure_shortcuts(wide, labels, {"slide": slides}, draws=50).iloc[0]
    assert row["columns"] == 107
    assert row.auc > 0.95
    flat = measure_shortcuts(np.ones((120, 2)), labels, {"slide": slides}, draws=50).iloc[0]
    assert flat.margin == 0


def test_groups_that_no_fit_can_know_do_not_count_as_not_recognised():
    values, _, scanner = balanced(size=30.0)
    # Scanners 0 and 1 have two slides each, scanner 2 has one.
    slides = np.where(np.arange(120) < 10, 4, 2 * scanner + np.arange(120) % 2)
    groups, labels = slides // 2, np.arange(120) % 3 % 2
    recalls, chance = recognise(values, groups, slides, by_slide=False, seed=0)
    np.testing.assert_array_equal(recalls, [1, 1, 1, 1, np.nan])
    assert chance == 0.5
    names = {"slide": slides.astype(str).astype(object), "scanner": groups.astype(str).astype(object)}
    row = measure_shortcuts(values, labels, names, draws=50).set_index("kind").loc["scanner"]
    assert (row.recognised, row.recognised_low, row.chance) == (1, 1, 0.5)
    # One slide per scanner, and one patch per slide: nothing is recognised by construction, so nothing is stated.
    singles = {"slide": np.arange(120).astype(str).astype(object), "scanner": names["slide"]}
    alone = measure_shortcuts(values, labels, names | {"scanner": names["slide"]}, draws=50).set_index("kind")
    assert alone.recognised.isna().to_dict() == {"slide": False, "scanner": True}
    assert measure_shortcuts(values, labels, singles, draws=50)[["recognised", "chance"]].iloc[0].isna().all()


@pytest.mark.parametrize("slides", [[None] * 120, ["only"] * 120], ids=["unknown", "one slide"])
def test_without_several_known_slides_nothing_is_measured(slides):
    values, labels, _ = balanced()
    assert measure_shortcuts(values, labels, {"slide": np.array(slides, object)}).empty
