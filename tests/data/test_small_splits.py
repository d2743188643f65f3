"""Built splits: both labels in as many folds as possible, no empty fold, balanced, reproducible."""

import numpy as np
import pytest

from histoblend.data.small_splits import draw_folds, draw_test

SEEDS = range(10)


def pure(positive, negative):
    """Patches of each label in single-label slides of 5 to 24 patches, the positive slides first."""
    sizes = 5 + np.arange(positive + negative) % 20
    first = np.arange(len(sizes)) < positive
    return np.where(first, sizes, 0), np.where(first, 0, sizes)


def slides_per_fold(positives, negatives, fold, folds):
    """Number of slides of each label in each fold, ndarray of shape (2, folds)."""
    return np.array([np.bincount(fold[patches > 0], minlength=folds) for patches in (positives, negatives)])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_built_test_set_leaves_both_labels_for_every_fold(seed):
    # Of 4 positive and 6 negative slides, 1 and 3 are held out: only then can each of three folds get one of either.
    positives, negatives = pure(4, 6)
    chosen = draw_test(positives, negatives, 4, 3, seed)
    assert len(set(chosen)) == 4
    assert (positives[chosen] > 0).sum() == 1
    np.testing.assert_array_equal(chosen, draw_test(positives, negatives, 4, 3, seed))
    rest = np.setdiff1d(np.arange(10), chosen)
    fold = draw_folds(positives[rest], negatives[rest], 3, seed)
    np.testing.assert_array_equal(slides_per_fold(positives[rest], negatives[rest], fold, 3), [[1, 1, 1], [1, 1, 1]])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("positive", "negative", "folds"), [(2, 2, 3), (2, 2, 4), (2, 9, 5), (2, 3, 5)])
def test_with_two_slides_of_a_label_two_folds_hold_it_and_none_is_empty(positive, negative, folds, seed):
    positives, negatives = pure(positive, negative)
    counts = slides_per_fold(positives, negatives, draw_folds(positives, negatives, folds, seed), folds)
    assert (counts.sum(axis=0) > 0).all()
    assert ((counts > 0).sum(axis=1) >= 2).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mixed_slide_counts_for_both_labels(seed):
    # One positive, one negative and two mixed slides: three folds with both labels.
    positives, negatives = np.array([9, 0, 2, 3]), np.array([0, 9, 4, 1])
    assert (slides_per_fold(positives, negatives, draw_folds(positives, negatives, 3, seed), 3) > 0).all()


def test_built_folds_are_balanced():
    # 3 positive slides of different size; 10 negative ones of 30 patches, so folds get 3, 3 and 4 of these.
    positives, negatives = np.array([150, 100, 50, *[0] * 10]), np.array([0, 0, 0, *[30] * 10])
    fold = draw_folds(positives, negatives, 3, 0)
    assert sorted(fold[:3]) == [0, 1, 2]
    assert sorted(np.bincount(fold[3:])) == [3, 3, 4]


def test_the_test_set_is_the_best_balanced_of_many():
    positives, negatives = pure(8, 32)
    chosen = draw_test(positives, negatives, 8, 5, 0)
    assert positives[chosen].sum() / positives.sum() == pytest.approx(0.2, abs=0.03)
    assert negatives[chosen].sum() / negatives.sum() == pytest.approx(0.2, abs=0.03)


def test_many_slides_need_few_draws(monkeypatch):
    monkeypatch.setattr("histoblend.data.small_splits.MANY", 20)
    positives, negatives = pure(4, 40)
    chosen = draw_test(positives, negatives, 9, 3, 0)
    rest = np.setdiff1d(np.arange(44), chosen)
    assert (
        slides_per_fold(positives[rest], negatives[rest], draw_folds(positives[rest], negatives[rest], 3, 0), 3) > 0
    ).all()


def test_an_impossible_split_is_none():
    assert draw_test(*pure(2, 9), 4, 3, 0) is None
    assert draw_test(*pure(3, 4), 4, 2, 0) is None
    assert draw_folds(*pure(1, 9), 3, 0) is None
    assert draw_folds(*pure(2, 2), 5, 0) is None
