"""Splits of few or unbalanced slides, built so that test set and folds hold both labels if random ones do not."""

from __future__ import annotations

import numpy as np

from histoblend.data.slide_kinds import Layout, SlideCounts, layouts, most_covered

#: Numbers of random test sets and of random divisions into folds; the best balanced one is used.
TEST_DRAWS, FOLD_DRAWS = 2000, 100

#: With more slides than this, all draws are about equally balanced and each takes long.
MANY = 1000


def draw_test(positives: np.ndarray, negatives: np.ndarray, held_out: int, folds: int, seed: int) -> np.ndarray | None:
    """Choose test slides that hold both labels and leave both labels to as many folds as possible.

    Parameters
    ----------
    positives, negatives : ndarray of shape (slides,)
        Number of patches of each label in each slide.
    held_out : int
        Number of slides to choose.
    folds : int
    seed : int

    Returns
    -------
    ndarray of int or None
        Indices of the slides whose share of both labels is closest to their share of slides. None if no choice leaves
        both labels to train on.
    """
    counts = SlideCounts.of(positives, negatives)
    covered = most_covered(counts, held_out, folds)
    if not covered:
        return None
    options = layouts(counts, held_out, covered)
    rng = np.random.default_rng(seed)
    shares = np.stack([positives / positives.sum(), negatives / negatives.sum()])
    best, best_deviation = None, np.inf
    for _ in range(TEST_DRAWS if len(positives) <= MANY else 20):
        chosen = _draw(options[rng.integers(len(options))], positives, negatives, held_out, rng)
        deviation = np.abs(shares[:, chosen].sum(axis=1) - held_out / len(positives)).max()
        if deviation < best_deviation:
            best, best_deviation = chosen, deviation
    return best


def _draw(
    layout: Layout, positives: np.ndarray, negatives: np.ndarray, held_out: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw test slides at random, except those that the layout assigns to the test set or to folds."""
    mixed, positive, negative = _shuffled_slides(positives, negatives, rng)
    if layout.test_mixed:
        required, mixed = mixed[:1], mixed[1:]
    else:
        required, positive, negative = np.append(positive[:1], negative[:1]), positive[1:], negative[1:]
    free = np.concatenate([mixed[layout.mixed :], positive[layout.pairs :], negative[layout.pairs :]])
    return np.append(required, rng.permutation(free)[: held_out - len(required)])


def _shuffled_slides(
    positives: np.ndarray, negatives: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the slides with both labels, with label 1 only and with label 0 only, each in random order."""
    has_positive, has_negative = positives > 0, negatives > 0
    mixed, positive, negative = (
        rng.permutation(np.flatnonzero(selected))
        for selected in (has_positive & has_negative, ~has_negative, ~has_positive)
    )
    return mixed, positive, negative


def draw_folds(positives: np.ndarray, negatives: np.ndarray, folds: int, seed: int) -> np.ndarray | None:
    """Divide slides into folds so that as many folds as possible hold both labels, and each leaves both to the others.

    Parameters
    ----------
    positives, negatives : ndarray of shape (slides,)
        Number of patches of each label in each slide.
    folds : int
    seed : int

    Returns
    -------
    ndarray of int or None
        Fold of each slide, from the draw whose folds differ least in patches of either label. None if no such division
        exists.
    """
    counts = SlideCounts.of(positives, negatives)
    if counts.slides < folds or counts.parts < 2:
        return None
    rng = np.random.default_rng(seed)
    shares = np.stack([positives / positives.sum(), negatives / negatives.sum()], axis=1)
    best, best_deviation = None, np.inf
    for _ in range(FOLD_DRAWS if len(positives) <= MANY else 1):
        fold = _required_folds(positives, negatives, folds, rng)
        loads = np.zeros((folds, 2))
        np.add.at(loads, fold[fold >= 0], shares[fold >= 0])
        _fill(fold, loads, shares)
        deviation = np.abs(loads - 1 / folds).max()
        if deviation < best_deviation:
            best, best_deviation = fold, deviation
    return best


def _required_folds(positives: np.ndarray, negatives: np.ndarray, folds: int, rng: np.random.Generator) -> np.ndarray:
    """Give each fold a mixed slide, or a positive and a negative one, until they run out; no fold stays empty.

    Returns
    -------
    ndarray of int
        Fold of each slide; -1 if it may be in any fold.
    """
    fold = np.full(len(positives), -1)
    mixed, positive, negative = _shuffled_slides(positives, negatives, rng)
    pure = min(len(positive), len(negative))
    covered = min(folds, len(mixed) + pure)
    singles = int(rng.integers(max(0, covered - pure), min(covered, len(mixed)) + 1))
    pairs = np.arange(singles, covered)
    fold[mixed[:singles]] = np.arange(singles)
    fold[positive[: len(pairs)]] = fold[negative[: len(pairs)]] = pairs
    # Empty folds first get slides that are not needed elsewhere, then one of a pair; the other stays in its fold.
    movable = np.concatenate([rng.permutation(np.flatnonzero(fold < 0)), negative[: len(pairs)]])
    empty = np.arange(covered, folds)
    fold[movable[: len(empty)]] = empty
    return fold


def _fill(fold: np.ndarray, loads: np.ndarray, shares: np.ndarray) -> None:
    """Assign the other slides in place, the largest first, each to the fold that keeps the folds most even."""
    unassigned = np.flatnonzero(fold < 0)
    for slide in unassigned[np.argsort(-shares[unassigned].sum(axis=1), kind="stable")]:
        # This fold increases the sum of squared loads least.
        fold[slide] = np.argmin(loads @ shares[slide])
        loads[fold[slide]] += shares[slide]
