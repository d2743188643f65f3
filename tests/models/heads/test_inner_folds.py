"""Inner folds: grouped by slide, and none where there is nothing to choose on."""

import numpy as np

from histoblend.models.heads.inner_folds import inner_folds


def test_inner_folds_never_share_a_slide(slides):
    _, y, groups = slides
    folds = list(inner_folds(y, groups, 4, 0))
    assert len(folds) == 4
    for train, validation in folds:
        assert not set(groups[train]) & set(groups[validation])
    assert sorted(np.concatenate([validation for _, validation in folds])) == list(range(len(y)))


def test_inner_folds_of_one_group_are_none():
    assert list(inner_folds(np.array([0, 1] * 10), np.zeros(20), 4, 0)) == []
