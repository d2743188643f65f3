import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histoblend.data.errors import InputError
from histoblend.models import resampling
from histoblend.models.metrics import bootstrap, measure, slide_table
from histoblend.models.resampling import slide_groups
from histoblend.models.slide_pairs import SlidePairs
from tests.oracles.metrics import resampled_metrics, resampled_slides


def test_measure_by_hand():
    # Pairs (positive, negative): .9>.8, .9>.3, .4<.8, .4>.3 -> 3 of 4. Precision at the positives: 1/1 and 2/3.
    # Squared errors: .01 + .64 + .36 + .09 = 1.1. At .5, .9 and .3 are classified correctly.
    labels, scores = np.array([1, 0, 1, 0]), np.array([0.9, 0.8, 0.4, 0.3])
    assert measure(labels, scores, 0.5)[0] == pytest.approx([0.75, (1 + 2 / 3) / 2, 1.1 / 4, 0.5])


def test_measure_counts_a_tie_as_half():
    # All tied: every pair is worth a half, precision is the prevalence.
    assert measure(np.array([1, 0, 0, 0]), np.full(4, 0.25), 0.5)[0] == pytest.approx([0.5, 0.25, 0.1875, 0.75])


def test_measure_takes_several_models_and_thresholds():
    labels = np.array([1, 0, 1, 0])
    right, wrong = np.array([0.9, 0.1, 0.8, 0.2]), np.array([0.1, 0.9, 0.2, 0.8])
    values = measure(labels, np.column_stack([right, wrong]), np.array([0.85, 0.0]))
    assert values[:, 0].tolist() == [1.0, 0.0]
    assert values[:, 3].tolist() == [0.75, 0.5]


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 0], [0.1, 0.2], "both classes"),
        ([0, 2], [0.1, 0.2], "must be 0 or 1"),
        ([0, 1], [0.1, np.nan], "must be finite; got 1"),
        ([0, 1], [0.1, 0.2, 0.3], "must have the same length"),
    ],
    ids=["one class", "label 2", "nan", "length"],
)
def test_measure_refuses(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        measure(np.array(labels), np.array(scores), 0.5)


def _cohort(rng, slides=12, patches=40, levels=20):
    groups = np.repeat(np.arange(slides, dtype=np.int32), patches)
    labels = (rng.random(len(groups)) < rng.beta(0.5, 0.5, slides)[groups]).astype(int)
    raw = labels + rng.normal(0, 1, len(groups)) + rng.normal(0, 1, slides)[groups]
    scores = 1 / (1 + np.exp(-raw))
    return labels, np.round(scores * levels) / levels, groups  # rounding makes ties, within and across slides


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), levels=st.sampled_from([1, 3, 20, 10**6]), slides=st.integers(3, 9))
def test_bootstrap_equals_repeated_rows(seed, levels, slides):
    labels, scores, groups = _cohort(np.random.default_rng(seed), slides, 7, levels)
    labels[:2] = 0, 1
    expected = [resampled_metrics(labels, scores, 0.4, groups, drawn) for drawn in resampled_slides(groups, 12, seed)]
    kept = [row for row in expected if row is not None]
    if 2 * len(kept) < 12:
        with pytest.raises(InputError, match="both classes"):
            bootstrap(labels, scores, 0.4, groups, draws=12, seed=seed)
        return
    result = bootstrap(labels, scores, 0.4, groups, draws=12, seed=seed)
    assert result.skipped == 12 - len(kept)
    assert result.groups == slides
    np.testing.assert_allclose(result.values[:, 0], kept, rtol=0, atol=1e-12)


def test_bootstrap_resamples_patches_if_no_slide_is_known():
    rng = np.random.default_rng(3)
    labels, scores, groups = _cohort(rng)
    by_slide = bootstrap(labels, scores, 0.5, groups, draws=300)
    by_patch = bootstrap(labels, scores, 0.5, slide_groups(np.full(len(labels), None)), draws=300)
    assert by_patch.groups == len(labels)
    # Slides differ here by construction, so intervals that ignore them are too narrow.
    assert by_slide.values[:, 0, 0].std() > 2 * by_patch.values[:, 0, 0].std()


def test_bootstrap_pairs_models():
    labels, scores, groups = _cohort(np.random.default_rng(5))
    table = np.column_stack([scores, scores, 1 - scores])
    values = bootstrap(labels, table, 0.5, groups).values
    assert (values[:, 0] == values[:, 1]).all()
    np.testing.assert_allclose(values[:, 0, 0] + values[:, 2, 0], 1, atol=1e-12)
    assert values.shape == (1000, 3, 4)
    np.testing.assert_array_equal(values, bootstrap(labels, table, 0.5, groups, draws=1000, seed=0).values)


def test_bootstrap_does_not_depend_on_the_size_of_chunks(monkeypatch):
    labels, scores, groups = _cohort(np.random.default_rng(6))
    table = np.column_stack([scores, 1 - scores])
    pairs = SlidePairs(labels, table, groups, np.ones(len(labels), bool))
    whole = bootstrap(labels, table, 0.5, groups, pairs=pairs, draws=50, seed=4)
    monkeypatch.setattr(resampling, "CHUNK_BYTES", 7 * 16 * 12)  # seven draws of twelve slides
    parts = bootstrap(labels, table, 0.5, groups, pairs=pairs, draws=50, seed=4)
    np.testing.assert_array_equal(parts.values, whole.values)
    np.testing.assert_array_equal(parts.pairs, whole.pairs)


def _one_class_draws(seed):
    return sum(len(set(drawn.tolist())) == 1 for drawn in resampled_slides(np.array([0, 1]), 101, seed))


@pytest.mark.parametrize("most", [False, True], ids=["fewer than half", "more than half"])
def test_bootstrap_counts_or_refuses_draws_that_lack_a_class(most):
    # Two slides, each of one class: draws of one slide twice are useless, which is about half of all draws.
    labels, scores, groups = np.repeat([1, 0], 5), np.linspace(0, 1, 10), np.repeat(np.arange(2, dtype=np.int32), 5)
    seed = next(seed for seed in range(100) if (_one_class_draws(seed) > 50) is most)
    if most:
        with pytest.raises(InputError, match=rf"{_one_class_draws(seed)} of 101 draws had one class only\. Add more"):
            bootstrap(labels, scores, 0.5, groups, draws=101, seed=seed)
    else:
        result = bootstrap(labels, scores, 0.5, groups, draws=101, seed=seed)
        assert result.skipped == _one_class_draws(seed)
        assert len(result.values) == 101 - result.skipped


def test_bootstrap_memory_stays_bounded_without_a_slide_map():
    rng = np.random.default_rng(0)
    n = 50_000
    labels, scores = rng.integers(0, 2, n), rng.random(n)
    groups = slide_groups(np.full(n, None))
    bootstrap(labels[:100], scores[:100], 0.5, groups[:100], draws=2)  # compile outside the measurement
    tracemalloc.start()
    bootstrap(labels, scores, 0.5, groups, draws=300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * 64 * 2**20  # the counts of all draws take 60 MB, their float64 copy 120 MB more


def test_slide_table_by_hand():
    slides = pd.Series([*"bbaacccc", None], dtype="str")
    labels, scores = np.array([1, 0, 1, 1, 1, 0, 0, 0, 0]), np.array([0.9, 0.1, 0.8, 0.6, 0.4, 0.6, 0.3, 0.2, 0.7])
    table = slide_table(labels, scores, slides).set_index("slide")
    assert table.index.tolist() == ["a", "b", "c"]
    assert table.patches.tolist() == [2, 2, 4]
    assert table.auc.tolist() == pytest.approx([np.nan, 1, 2 / 3], nan_ok=True)
    assert table.rarer.tolist() == [0, 1, 1]
    assert table.prevalence.tolist() == [1, 0.5, 0.25]
    assert table.mean_score.tolist() == pytest.approx([0.7, 0.5, 0.375])
    assert table.brier.tolist() == pytest.approx([(0.04 + 0.16) / 2, 0.01, (0.36 + 0.36 + 0.09 + 0.04) / 4])
