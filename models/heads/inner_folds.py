"""Folds inside a training set, on which heads choose their settings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from histoblend.data.splits import find_folds


def inner_folds(y: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Folds inside a training set, by group, that leave and hold both classes.

    Parameters
    ----------
    y : ndarray of shape (n,), 0 or 1
    groups : ndarray of shape (n,)
    folds : int
        As many are made as groups and patches of the rarer class allow, at most these; fewer than two give none.
    seed : int

    Yields
    ------
    train, validation : ndarray of int
        Row numbers.
    """
    groups_of = [np.unique(groups[y == label]).size for label in (0, 1)]
    possible = min(folds, *groups_of, *np.bincount(y, minlength=2).tolist())
    if possible < 2:
        return
    for validation in find_folds(y, groups, possible, seed, hold_both=True):
        yield np.setdiff1d(np.arange(len(y)), validation, assume_unique=True), validation
