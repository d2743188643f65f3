"""AUC within and between slides, against a count over all pairs of patches."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoblend.models import resampling
from histoblend.models.metrics import bootstrap, measure
from histoblend.models.resampling import draw_slides, slide_groups
from histoblend.models.slide_pairs import SlidePairs
from tests.oracles.metrics import pair_aucs, resampled_slides

# Slides a and b have both classes, c has positives only. The last two patches have no slide.
SLIDES = ["a", "a", "a", "b", "b", "b", "c", "c", None, None]
LABELS = np.array([1, 0, 0, 1, 1, 0, 1, 1, 0, 1])
SCORES = np.array([0.6, 0.6, 0.2, 0.9, 0.1, 0.5, 0.7, 0.3, 0.4, 0.8])


def pairs_of(labels, scores, slides):
    """Pairs of these patches; None marks an unknown slide."""
    series = pd.Series(slides, dtype=object)
    return SlidePairs(np.asarray(labels), scores, slide_groups(series), series.notna().to_numpy())


def once(pairs, labels, scores, slides):
    """AUC within and between slides, without resampling."""
    units = int(slide_groups(pd.Series(slides, dtype=object)).max()) + 1
    return pairs(np.ones((1, units), np.int32), measure(labels, scores, 0.5)[None, :, 0])[0]


def test_within_slides_by_hand():
    # In a: .6 = .6 is one half, .6 > .2. In b: .9 > .5, .1 < .5. So (1.5 + 1) of 4 pairs; all pairs are 6 × 4.
    pairs = pairs_of(LABELS, SCORES, SLIDES)
    within, between = once(pairs, LABELS, SCORES, SLIDES)[0]
    assert (len(pairs.mixed), pairs.share) == (2, 4 / 24)
    assert within == 2.5 / 4
    # .6 against b's .5 and .4: 2. .9 and .1 against a's two and .4: 3 and 0. .7 against a's, b's and .4: 4; .3 above
    # .2: 1. .8 against all but itself: 4.
    assert between == pytest.approx((2 + 3 + 0 + 4 + 1 + 4) / 20)
    assert (within, between) == pytest.approx(pair_aucs(LABELS, SCORES, SLIDES, ["a", "b", "c", *unknown(SLIDES)]))


def unknown(slides):
    """Names of patches without a slide, as units of resampling."""
    return [("patch", row) for row, slide in enumerate(slides) if slide is None]


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), levels=st.sampled_from([1, 3, 10**6]), without=st.booleans())
def test_parts_add_up_to_the_pooled_auc_and_agree_with_all_pairs(seed, levels, without):
    rng = np.random.default_rng(seed)
    slides = rng.choice(np.array(["a", "b", "c", "d", None][: 5 if without else 4], dtype=object), 24)
    labels = np.where(slides == "a", 1, rng.integers(0, 2, 24))  # a slide of one class
    labels[:2], slides[:2] = [0, 1], ["b", "b"]
    scores = rng.integers(0, levels, (24, 2)) / levels
    pairs = pairs_of(labels, scores, slides)
    aucs = once(pairs, labels, scores, slides)
    names = [*{slide for slide in slides if slide is not None}, *unknown(slides)]
    for (within, between), column in zip(aucs, scores.T, strict=True):
        assert (within, between) == pytest.approx(pair_aucs(labels, column, slides, names), nan_ok=True)
        others = 0 if np.isnan(between) else between  # NaN if all patches are of one slide
        pooled = pairs.share * within + (1 - pairs.share) * others
        assert pooled == pytest.approx(measure(labels, column, 0.5)[0, 0], abs=1e-14)


def test_draws_count_a_slide_as_often_as_it_was_drawn():
    scores = np.column_stack([SCORES, np.round(SCORES * 3)])
    groups = slide_groups(pd.Series(SLIDES))
    names = {unit: name for unit, name in zip(groups, SLIDES, strict=True) if name is not None}
    names |= {groups[row]: ("patch", row) for row in (8, 9)}
    pairs = pairs_of(LABELS, scores, SLIDES)
    drawn = resampled_slides(groups, 60, 5)
    result = bootstrap(LABELS, scores, 0.5, groups, pairs=pairs, draws=60, seed=5)
    kept = [draw for draw in drawn if len(set(LABELS[np.isin(groups, draw)])) == 2]
    assert result.pairs.shape == (len(kept), 2, 2)
    assert np.isnan(result.pairs[:, :, 0]).any()  # neither a nor b was drawn
    for values, draw in zip(result.pairs, kept, strict=True):
        for value, column in zip(values, scores.T, strict=True):
            expected = pair_aucs(LABELS, column, SLIDES, [names[unit] for unit in draw])
            assert tuple(value) == pytest.approx(expected, nan_ok=True)


def test_slides_of_one_class_have_pairs_between_them_only():
    labels, scores, slides = np.array([1, 1, 0, 0]), np.array([0.9, 0.2, 0.3, 0.1]), ["a", "a", "b", "b"]
    pairs = pairs_of(labels, scores, slides)
    within, between = once(pairs, labels, scores, slides)[0]
    assert (len(pairs.mixed), pairs.share, between) == (0, 0, 0.75)
    assert np.isnan(within)


def test_one_slide_has_pairs_within_it_only():
    labels, scores, slides = np.array([1, 0, 0]), np.array([0.5, 0.2, 0.7]), ["a"] * 3
    pairs = pairs_of(labels, scores, slides)
    within, between = once(pairs, labels, scores, slides)[0]
    assert (pairs.share, within) == (1, 0.5)
    assert np.isnan(between)


def test_without_known_slides_all_values_are_nan():
    labels, scores, slides = np.array([1, 0, 1]), np.array([0.5, 0.2, 0.7]), [None] * 3
    pairs = pairs_of(labels, scores, slides)
    assert np.isnan(once(pairs, labels, scores, slides)).all()
    assert np.isnan(pairs.share)
    assert not len(pairs.mixed)


@pytest.mark.parametrize("patches_per_slide", [2, 1000], ids=["many slides", "few slides"])
def test_memory_stays_bounded(patches_per_slide):
    rng = np.random.default_rng(0)
    n = 60_000
    labels, scores, groups = np.arange(n) % 2, rng.random((n, 2)), np.arange(n, dtype=np.int32) // patches_per_slide
    pairs = SlidePairs(labels, scores, groups, np.full(n, True))
    counts = next(draw_slides(n // patches_per_slide, 10**6, 0))
    tracemalloc.start()
    pairs(counts[:, : n // patches_per_slide], np.full((len(counts), 2), 0.5))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts.nbytes + peak < 1.3 * resampling.CHUNK_BYTES
