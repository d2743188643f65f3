"""Inner folds: grouped by slide, with both classes, or none."""

import numpy as np
import pytest

from histoblend.models.heads.inner_folds import inner_folds


def test_inner_folds_never_share_a_slide(slides):
    _, y, groups = slides
    folds = list(inner_folds(y, groups, 4, 0))
    assert len(folds) == 4
    for train, validation in folds:
        assert not set(groups[train]) & set(groups[validation])
    assert sorted(np.concatenate([validation for _, validation in folds])) == list(range(len(y)))


def test_one_group_gives_no_inner_folds():
    assert list(inner_folds(np.array([0, 1] * 10), np.zeros(20), 4, 0)) == []


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("positives", "negatives", "most"),
    [
        ([1, 1, 0], [0, 1, 1], 2),
        ([2, 2, 0, 0], [1, 1, 0, 0], 2),
        ([20, 10, 0], [10, 10, 0], 2),
        ([3] * 3 + [0] * 5, [0] * 3 + [9] * 5, 3),
    ],
    ids=["one of each kind", "two mixed", "large", "pure"],
)
def test_training_and_validation_rows_have_both_classes(positives, negatives, most, seed):
    sizes = np.array([positives, negatives]).T
    y = np.concatenate([[1] * one + [0] * none for one, none in sizes]).astype(int)
    groups = np.repeat(np.arange(len(sizes)), sizes.sum(axis=1))
    folds = list(inner_folds(y, groups, 3, seed))
    assert len(folds) == most
    for train, validation in folds:
        assert not set(groups[train]) & set(groups[validation])
        assert set(y[train]) == set(y[validation]) == {0, 1}
