"""Folds inside a training set, on which heads tune their settings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from histoblend.data.splits import find_folds


def inner_folds(y: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Divide a training set into folds by group; training and validation rows contain both classes in each fold.

    Parameters
    ----------
    y : ndarray of shape (n,), 0 or 1
    groups : ndarray of shape (n,)
    folds : int
        Maximum number of folds; groups and patches of the rarer class may allow fewer. If they allow fewer than two,
        there are none.
    seed : int

    Yields
    ------
    train, validation : ndarray of int
        Row numbers.
    """
    groups_per_class = [np.unique(groups[y == label]).size for label in (0, 1)]
    possible = min(folds, *groups_per_class, *np.bincount(y, minlength=2).tolist())
    if possible < 2:
        return
    for validation in find_folds(y, groups, possible, seed, hold_both=True):
        yield np.setdiff1d(np.arange(len(y)), validation, assume_unique=True), validation
