"""Learning curves: scores of a model against the number of slides and of patches per slide that it is fitted on.

Every patch is scored by models that were fitted on other folds, so on other slides. Test slides are not used at all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoblend.data.storage.arrays import Rows
from histoblend.models.heads.logistic import LogisticHead

#: Numbers of slides and of patches per slide. Each curve ends with all of them.
SLIDES = (4, 6, 9, 13, 18, 26, 40, 60, 100, 200, 400)
PATCHES = (5, 10, 20, 40, 80, 160, 320)
#: Shares of the patches of a slide, used instead if fewer than `FEWEST_BELOW` of these numbers are below it.
SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
#: With all patches as one more size, enough for a power law.
FEWEST_BELOW = 3
#: Most sizes on a curve: the largest ones count.
MOST_SIZES = 5
#: Random orders of slides, and of the patches of each slide. Smaller draws are the beginnings of larger ones.
REPEATS = 6
#: Candidates for the strength of the head, chosen once per fold on all its training slides.
STRENGTHS = (3e-4, 3e-3, 3e-2)


def both_labels_outside_folds(labels: np.ndarray, folds: np.ndarray) -> bool:
    """Whether the patches outside every fold have both labels, so that a fit can be judged on each fold.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    folds : ndarray of shape (n,), int
    """
    return all(len(set(labels[folds != fold].tolist())) == 2 for fold in np.unique(folds))


def patch_sizes(median: float) -> list[int]:
    """Numbers of patches per slide to draw, below the median number of patches of a slide, smallest first."""
    sizes = [size for size in PATCHES if size < 0.9 * median][-MOST_SIZES:]
    if len(sizes) >= FEWEST_BELOW:
        return sizes
    shares = {max(2, math.ceil(share * int(median))) for share in SHARES}
    return sorted(size for size in shares if size < 0.9 * median)


@dataclass(frozen=True)
class Draws:
    """Rows to fit on.

    Attributes
    ----------
    axis : {"slides", "patches"}
    size : int
        Number of slides, or of patches per slide; 0 for all.
    repeat, fold : int
    rows : ndarray of int
    """

    axis: str
    size: int
    repeat: int
    fold: int
    rows: np.ndarray


def nested_draws(
    labels: np.ndarray,
    slides: np.ndarray,
    folds: np.ndarray,
    seed: int,
    *,
    most: int,
    repeats: int,
) -> list[Draws]:
    """Choose the rows of every fit. None of the rows is of a slide in the fold that the fit is judged on.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
        Both outside every fold (:func:`both_labels_outside_folds`).
    slides : ndarray of shape (n,), int
        Codes without gaps.
    folds : ndarray of shape (n,), int
        Fold of each patch; all patches of a slide are in one fold.
    seed : int
    most : int
        Most sizes on a curve, besides all: the smallest, the largest, and some between them.
    repeats : int
        Number of random orders. Each gives the same draws for any ``most`` and ``repeats``.

    Returns
    -------
    list of Draws
        In each fold first the fit on all other slides, then the draws. Smaller draws are parts of larger ones.

    Raises
    ------
    ValueError
        Outside a fold there is one label only.
    """
    if not both_labels_outside_folds(labels, folds):
        raise ValueError("labels: expected both labels outside every fold; got one only outside a fold. Add slides.")
    parts: list[Draws] = []
    least = min(len(set(slides[folds != fold].tolist())) for fold in np.unique(folds))
    sizes = {
        "slides": [size for size in SLIDES if size < 0.9 * least][-MOST_SIZES:],
        "patches": patch_sizes(float(np.median(np.bincount(slides)))),
    }
    sizes = {axis: _spread(each, most) for axis, each in sizes.items()}
    for fold in np.unique(folds).tolist():
        train = np.flatnonzero(folds != fold)
        parts.append(Draws("slides", 0, 0, fold, train))
        for repeat in range(repeats):
            rng = np.random.default_rng([seed, fold, repeat])
            order = train[rng.permutation(len(train))]
            turn = pd.Series(slides[order]).groupby(slides[order]).cumcount().to_numpy()
            rank = _slide_ranks(labels[train], slides[train], rng)
            ranks = {"slides": rank[slides[order]], "patches": turn}
            parts += [
                Draws(axis, size, repeat, fold, np.sort(order[ranks[axis] < size]))
                for axis, each in sizes.items()
                for size in each
            ]
    return [part for part in parts if len(set(labels[part.rows].tolist())) == 2]


def _spread(sizes: list[int], most: int) -> list[int]:
    """At most so many sizes, with the smallest and the largest."""
    if len(sizes) <= most:
        return sizes
    return [sizes[round(place)] for place in np.linspace(0, len(sizes) - 1, most)]


def _slide_ranks(labels: np.ndarray, slides: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random rank of each slide. The first two together have both labels, so that every draw can be fitted."""
    units = slides.max() + 1
    sizes, positives = np.bincount(slides, minlength=units), np.bincount(slides, labels, minlength=units)
    order = rng.permutation(np.flatnonzero(sizes))
    with_positives = order[positives[order] > 0][:1]
    with_negatives = order[(positives < sizes)[order] & (order != with_positives[0])][:1]
    first = np.concatenate([with_positives, with_negatives])
    ranked = np.concatenate([first, order[~np.isin(order, first)]])
    ranks = np.full(units, units)
    ranks[ranked] = np.arange(len(ranked))
    return ranks


@dataclass(frozen=True)
class Curve:
    """Out-of-fold scores of one model, or of one head on one set of columns.

    Attributes
    ----------
    points : DataFrame
        ``axis, size, repeat, slides, patches_per_slide, seconds``: mean numbers over the folds, and the core-seconds
        of all fits of a point.
    scores : ndarray of shape (n, points), float32
        Probability of each patch.
    """

    points: pd.DataFrame
    scores: np.ndarray


def fit_curve(
    values: Rows, labels: np.ndarray, slides: np.ndarray, folds: np.ndarray, *, seed: int, workers: int = 1
) -> Curve:
    """Fit a logistic regression on every draw, and score the patches of its fold.

    Parameters
    ----------
    values : Rows of shape (n, columns), float32
        Columns of training patches only, like the other arguments.
    labels, slides, folds, seed
        As in :func:`nested_draws`.
    workers : int
        Number of parallel fits. The scores do not depend on it.
    """
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    draws = nested_draws(labels, slides, folds, seed, most=MOST_SIZES, repeats=REPEATS)
    table = np.asarray(values[np.arange(len(labels))])
    # The fits of a fold share the strength that is chosen on all its training slides.
    whole = {part.fold: part for part in draws if part.size == 0}
    with threadpool_limits(1):
        pool = Parallel(n_jobs=workers, prefer="threads")
        first = pool(delayed(_fit)(table, labels, slides, folds, part, STRENGTHS, seed) for part in whole.values())
        chosen = {fold: result[2] for fold, result in zip(whole, first, strict=True)}
        parts = [part for part in draws if part.size and part.fold in whole]
        others = pool(delayed(_fit)(table, labels, slides, folds, part, (chosen[part.fold],), seed) for part in parts)
    fits = zip([*whole.values(), *parts], [*first, *others], strict=True)
    return join_fits([(part, score, seconds) for part, (score, seconds, _) in fits], slides, folds)


def join_fits(fits: Iterable[tuple[Draws, np.ndarray, float]], slides: np.ndarray, folds: np.ndarray) -> Curve:
    """Join the fits of all folds to the points of a curve.

    Parameters
    ----------
    fits : iterable of (Draws, ndarray, float)
        Of each draw: probabilities of the patches of its fold, in their order, and core-seconds.
    slides, folds
        As in :func:`nested_draws`.
    """
    points, scores = [], []
    members: dict[tuple[str, int, int], list[tuple[Draws, np.ndarray, float]]] = {}
    for fit in fits:
        members.setdefault((fit[0].axis, fit[0].size, fit[0].repeat), []).append(fit)
    for key, mine in members.items():
        if len(mine) < len(np.unique(folds)):  # a draw of a fold had one label only
            continue
        score = np.full(len(folds), np.nan, np.float32)
        for part, probability, _ in mine:
            score[folds == part.fold] = probability
        numbers = [(len(set(slides[part.rows].tolist())), len(part.rows)) for part, _, _ in mine]
        count, rows = np.mean(numbers, axis=0)
        points.append((*key, count, rows / count, sum(seconds for _, _, seconds in mine)))
        scores.append(score)
    columns = ["axis", "size", "repeat", "slides", "patches_per_slide", "seconds"]
    return Curve(pd.DataFrame(points, columns=columns), np.stack(scores, axis=1))


def _fit(
    table: np.ndarray,
    labels: np.ndarray,
    slides: np.ndarray,
    folds: np.ndarray,
    part: Draws,
    strengths: Sequence[float],
    seed: int,
) -> tuple[np.ndarray, float, float]:
    """Probabilities of the fold, seconds, and the chosen strength."""
    rows = part.rows
    if len(strengths) > 1:
        strengths = (LogisticHead(strengths=strengths, seed=seed).fit(table[rows], labels[rows], slides[rows]).C_,)
    start = time.perf_counter()
    head = LogisticHead(strengths=strengths, seed=seed).fit(table[rows], labels[rows], slides[rows])
    seconds = time.perf_counter() - start  # without the choice of a strength, which smaller draws do not make
    return head.predict_proba(table[folds == part.fold])[:, 1], seconds, head.C_
