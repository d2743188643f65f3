"""AUC under draws of slides: from pairs of slides and from all patches."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from histoblend.models import resampling
from histoblend.models.resampling import PairCounts, Ranking, auc_draws, auc_of_draws, draw_slides


def cohort(seed=0, n=300, slides=7, levels=12):
    """Scores with many ties; some slides have one class only."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, slides, n).astype(np.int32)
    labels = np.where(groups < 2, groups, rng.integers(0, 2, n))
    return labels, rng.integers(0, levels, n) / levels + 0.1 * labels, groups


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
