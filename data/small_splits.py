"""Splits of few or lopsided slides: built so that test set and folds hold both labels, where random ones do not."""

from __future__ import annotations

import numpy as np

from histoblend.data.slide_kinds import Kinds, Layout, layouts, most_covered

#: Test sets and divisions into folds that are drawn; the best balanced one is taken.
TEST_DRAWS, FOLD_DRAWS = 2000, 100

#: With more slides than this, any draw is about as balanced as another, and one takes long.
MANY = 1000


def draw_test(positives: np.ndarray, negatives: np.ndarray, held_out: int, folds: int, seed: int) -> np.ndarray | None:
    """Choose test slides that hold both labels and leave both for as many folds as can have them.

    Parameters
    ----------
    positives, negatives : ndarray of shape (slides,)
        Patches of each label in each slide.
    held_out : int
        Slides to choose.
    folds : int
    seed : int

    Returns
    -------
    ndarray of int or None
        Numbers of the slides whose share of both labels comes closest to their share of slides; None where no choice
        leaves folds to learn from.
    """
    kinds = Kinds.of(positives, negatives)
    covered = most_covered(kinds, held_out, folds)
    if not covered:
        return None
    ways = layouts(kinds, held_out, covered)
    rng = np.random.default_rng(seed)
    shares = np.stack([positives / positives.sum(), negatives / negatives.sum()])
    best, best_miss = None, np.inf
    for _ in range(TEST_DRAWS if len(positives) <= MANY else 20):
        chosen = _draw(ways[rng.integers(len(ways))], positives, negatives, held_out, rng)
        miss = np.abs(shares[:, chosen].sum(axis=1) - held_out / len(positives)).max()
        if miss < best_miss:
            best, best_miss = chosen, miss
    return best


def _draw(
    way: Layout, positives: np.ndarray, negatives: np.ndarray, held_out: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw test slides at random, but for those that the layout gives to the test set and to folds."""
    mixed, positive, negative = _shuffled_kinds(positives, negatives, rng)
    if way.test_mixed:
        own, mixed = mixed[:1], mixed[1:]
    else:
        own, positive, negative = np.append(positive[:1], negative[:1]), positive[1:], negative[1:]
    free = np.concatenate([mixed[way.mixed :], positive[way.pairs :], negative[way.pairs :]])
    return np.append(own, rng.permutation(free)[: held_out - len(own)])


def _shuffled_kinds(
    positives: np.ndarray, negatives: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the slides with both labels, with 1 only and with 0 only, each in random order."""
    has, lacks = positives > 0, negatives > 0
    mixed, positive, negative = (rng.permutation(np.flatnonzero(kind)) for kind in (has & lacks, ~lacks, ~has))
    return mixed, positive, negative


def draw_folds(positives: np.ndarray, negatives: np.ndarray, folds: int, seed: int) -> np.ndarray | None:
    """Divide slides into folds so that as many as can hold both labels, and each leaves both to the others.

    Parameters
    ----------
    positives, negatives : ndarray of shape (slides,)
        Patches of each label in each slide.
    folds : int
    seed : int

    Returns
    -------
    ndarray of int or None
        Fold of each slide: of many draws the one whose folds differ least in patches of either label. None where there
        is no such division.
    """
    kinds = Kinds.of(positives, negatives)
    if kinds.slides < folds or kinds.parts < 2:
        return None
    rng = np.random.default_rng(seed)
    shares = np.stack([positives / positives.sum(), negatives / negatives.sum()], axis=1)
    best, best_miss = None, np.inf
    for _ in range(FOLD_DRAWS if len(positives) <= MANY else 1):
        fold = _seeded_folds(positives, negatives, folds, rng)
        loads = np.zeros((folds, 2))
        np.add.at(loads, fold[fold >= 0], shares[fold >= 0])
        _fill(fold, loads, shares)
        miss = np.abs(loads - 1 / folds).max()
        if miss < best_miss:
            best, best_miss = fold, miss
    return best


def _seeded_folds(positives: np.ndarray, negatives: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """Give each fold a mixed slide, or a positive and a negative one, as far as they last; no fold stays empty.

    Returns
    -------
    ndarray of int
        Fold of each slide; -1 where it may be any.
    """
    fold = np.full(len(positives), -1)
    mixed, positive, negative = _shuffled_kinds(positives, negatives, rng)
    pure = min(len(positive), len(negative))
    covered = min(folds, len(mixed) + pure)
    singles = int(rng.integers(max(0, covered - pure), min(covered, len(mixed)) + 1))
    pairs = np.arange(singles, covered)
    fold[mixed[:singles]] = np.arange(singles)
    fold[positive[: len(pairs)]] = fold[negative[: len(pairs)]] = pairs
    # Slides that are not needed elsewhere come to empty folds first; then one of a pair, whose other keeps its fold.
    movable = np.concatenate([rng.permutation(np.flatnonzero(fold < 0)), negative[: len(pairs)]])
    empty = np.arange(covered, folds)
    fold[movable[: len(empty)]] = empty
    return fold


def _fill(fold: np.ndarray, loads: np.ndarray, shares: np.ndarray) -> None:
    """Put the other slides, the largest first, where they make folds the least uneven; in place."""
    left = np.flatnonzero(fold < 0)
    for slide in left[np.argsort(-shares[left].sum(axis=1), kind="stable")]:
        # The sum of squares of the loads grows least there.
        fold[slide] = np.argmin(loads @ shares[slide])
        loads[fold[slide]] += shares[slide]
