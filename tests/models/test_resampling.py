"""Draws of slides against repeated rows; AUC from pairs of slides and from all patches."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from histoblend.models import resampling
from histoblend.models.resampling import (
    PairCounts,
    Ranking,
    auc_draws,
    auc_of_draws,
    draw_slides,
    mean_draws,
    percentile_interval,
    sample_rows_evenly,
    slide_groups,
)
from tests.oracles.metrics import resampled_slides


def cohort(seed=0, n=300, slides=7, levels=12):
    """Scores with many ties, also between classes; some slides have one class only."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, slides, n).astype(np.int32)
    labels = np.where(groups < 2, groups, rng.integers(0, 2, n))
    return labels, np.floor(levels * rng.beta(1 + labels, 2 - labels)) / levels, groups


@pytest.mark.parametrize("levels", [1, 3, 12, 10**6])
def test_pairs_of_slides_give_the_same_auc_as_all_patches(levels):
    labels, scores, groups = cohort(levels=levels)
    counts = np.concatenate(list(draw_slides(7, 500, 1)))
    expected = Ranking(labels, scores, 0.5, groups)(counts)[:, 0]
    np.testing.assert_array_equal(PairCounts(labels, scores, groups)(counts), expected)


def test_a_draw_equals_scikit_learns_auc_over_repeated_slides():
    labels, scores, groups = cohort(3)
    counts = np.concatenate(list(draw_slides(7, 20, 2)))
    for drawn, auc in zip(counts, PairCounts(labels, scores, groups)(counts), strict=True):
        rows = np.repeat(np.arange(len(labels)), drawn[groups])
        assert auc == pytest.approx(roc_auc_score(labels[rows], scores[rows]), abs=1e-12)


def test_a_draw_of_one_class_has_no_auc():
    labels, scores, groups = cohort()
    counts = np.zeros((2, 7), np.int32)
    counts[0, 0], counts[1, 1] = 3, 3  # slides of one class
    assert np.isnan(PairCounts(labels, scores, groups)(counts)).all()


def test_many_slides_use_all_patches_and_give_the_same_auc(monkeypatch):
    labels, scores, groups = cohort(4, slides=30)
    table = np.stack([scores, -scores], axis=1)
    paired = auc_draws(labels, table, groups, draws=50, seed=0)
    monkeypatch.setattr(resampling, "MAX_PAIRED_SLIDES", 10)
    assert not isinstance(auc_of_draws(labels, scores, groups), PairCounts)
    np.testing.assert_array_equal(auc_draws(labels, table, groups, draws=50, seed=0), paired)


@pytest.mark.parametrize(
    ("size", "lengths"),
    [(7 * 16 * 9 + 143, [7, 7, 6]), (7 * 16 * 9, [7, 7, 6]), (1, [1] * 20), (64 * 2**20, [20])],
)
def test_a_chunk_has_as_many_draws_as_fit_and_at_least_one(monkeypatch, size, lengths):
    monkeypatch.setattr(resampling, "CHUNK_BYTES", size)
    chunks = list(draw_slides(9, 20, 3))
    assert [len(chunk) for chunk in chunks] == lengths
    assert {chunk.dtype for chunk in chunks} == {np.dtype(np.int32)}
    expected = [np.bincount(drawn, minlength=9) for drawn in resampled_slides(np.arange(9), 20, 3)]
    np.testing.assert_array_equal(np.concatenate(chunks), expected)


def test_means_of_draws_are_those_of_repeated_rows():
    rng = np.random.default_rng(0)
    groups, values = rng.permutation(np.arange(40) % 5), rng.normal(size=(40, 2))
    drawn = [
        np.concatenate([np.flatnonzero(groups == unit) for unit in draw]) for draw in resampled_slides(groups, 15, 2)
    ]
    np.testing.assert_allclose(
        mean_draws(values, groups, draws=15, seed=2), [values[rows].mean(axis=0) for rows in drawn]
    )


def test_draws_of_one_class_are_left_out():
    groups = np.repeat(np.arange(2, dtype=np.int32), 3)
    kept = sum(len(set(draw)) == 2 for draw in resampled_slides(groups, 30, 0))
    assert auc_draws(groups, np.arange(6.0), groups, draws=30, seed=0).tolist() == [[1.0]] * kept


def test_patches_without_a_slide_are_units_of_their_own():
    groups = slide_groups(np.array(["b", None, "a", np.nan, "b"], dtype=object))
    assert groups.tolist() == [0, 2, 1, 3, 0]
    assert groups.dtype == np.int32


def test_the_interval_is_central():
    assert percentile_interval(np.arange(1001.0)) == pytest.approx((25, 975))
    assert percentile_interval(np.arange(101.0), level=0.9) == pytest.approx((5, 95))


def test_rows_are_taken_evenly_over_slides():
    groups = np.repeat([0, 1, 2], [100, 3, 50])
    rows = sample_rows_evenly(groups, 23, seed=0)
    assert np.bincount(groups[rows]).tolist() == [10, 3, 10]
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(sample_rows_evenly(groups, 23, seed=0), rows)
    assert not np.array_equal(sample_rows_evenly(groups, 23, seed=1), rows)
    np.testing.assert_array_equal(sample_rows_evenly(groups, 153, seed=0), np.arange(153))
