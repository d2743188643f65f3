"""Shortcut meter: whether columns group patches by tumour, or by slide, scanner or centre.

All measures compare patches of different slides, or state what a slide gives away. None of them fits a model of the
label, so no label of a patch's own slide is used to judge it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoblend.models.resampling import auc_draws, draw_slides, percentile_interval

#: Neighbours of each patch, and neighbours of each of the two kinds whose distance is compared.
NEIGHBOURS = 20
NEAREST = 5
#: Wider tables are reduced to this many principal components of the standardised columns.
COMPONENTS = 64
#: Fewest patches of the other label on a patch's own slide (or in its group) for its comparison to count.
FEWEST = 5
#: Folds of the classifier that recognises groups, and weight of the diagonal in its covariance.
FOLDS = 3
SHRINKAGE = 0.1
#: Rows whose distances to all patches are in memory together.
_BLOCK = 256

SLIDE = "slide"
MEASURES = ("auc", "robustness", "margin", "recognised", "shortcut")


def measure_shortcuts(
    values: np.ndarray, labels: np.ndarray, groups: Mapping[str, np.ndarray], *, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Measure what the neighbours of patches have in common, for each kind of group.

    Columns are standardised, and reduced to principal components if there are many. Neighbours are exact, by Euclidean
    distance. The margin compares squared distances.

    Parameters
    ----------
    values : ndarray of shape (n, columns), float
        Columns of training patches only.
    labels : ndarray of shape (n,), 0 or 1
    groups : mapping from str to ndarray of shape (n,), dtype object
        "slide", the slide of each patch, and further groups of slides such as "scanner" or "centre"; None if unknown.
        Patches without a slide are left out; patches without a further group are left out for that kind of group.
    draws : int
        Number of resamplings of slides for the intervals.
    seed : int

    Returns
    -------
    DataFrame
        One row per kind of group with two or more groups; none with fewer than two slides or with one label.

        - ``kind, groups, patches, slides, columns``
        - ``auc``: AUC of a vote of the nearest patches of other slides
        - ``robustness``: robustness index, 0 to 1. Neighbours with the same label and another group, compared with
          neighbours with the other label and the same group. Each is divided by the number of such patches, so 0.5
          means neither label nor group matters, and below 0.5 the group matters more.
        - ``margin``: the same for distances, −1 to 1, 0 if neither matters
        - ``recognised, chance``: balanced accuracy of a linear classifier of the group, and its value by chance.
          Slides are recognised on other patches of the same slides, other groups on other slides. Slides with one
          patch and other groups with one slide cannot be recognised, and do not count.
        - ``shortcut``: whether positive patches resemble slides with more positives than negative patches do. The share
          of positives on the slides of a patch's nearest patches of other slides is compared with that of all patches,
          in standard deviations, separately for nearest positives and nearest negatives, so that tumour itself does not
          count. The measure is the mean over positive patches minus that over negative ones. 0 if resemblance to other
          slides tells nothing about the label, or if all slides have the same share. It is the same for all kinds.

        Each measure has ``_low`` and ``_high``, its 95 % interval. Measures that are not defined are NaN.

    References
    ----------
    Kömen et al. (2025), arXiv:2507.17845 (robustness index; there with groups and labels balanced by sampling).
    Grisi et al. (2026), arXiv:2607.25497 (cross-confounder robustness margin; there without a correction for unequal
    numbers of patches).
    """
    known = np.array([slide is not None for slide in groups[SLIDE]])
    labels, slides = np.asarray(labels)[known].astype(np.int64), pd.factorize(groups[SLIDE][known])[0]
    width = values.shape[1]
    if len(labels) == 0 or slides.max() < 1 or len(set(labels.tolist())) < 2:
        return pd.DataFrame()
    points = project(np.asarray(values)[known])
    rows = []
    for kind, names in groups.items():
        inside = np.array([name is not None for name in names[known]])
        codes = pd.factorize(names[known][inside])[0]
        if not len(codes) or codes.max() < 1:
            continue
        part = _Patches(points[inside], labels[inside], pd.factorize(slides[inside])[0], codes, kind == SLIDE)
        counts = {"groups": codes.max() + 1, "patches": len(codes), "slides": part.slides.max() + 1, "columns": width}
        rows.append({"kind": kind, **counts, **_measures(part, draws, seed)})
    return pd.DataFrame(rows)


def project(values: np.ndarray) -> np.ndarray:
    """Standardise columns, and keep `COMPONENTS` principal components if there are more; float32.

    The mean square over all values is 1, so that the distances of different tables have similar sizes.
    """
    from sklearn.utils.extmath import randomized_svd

    spread = values.std(axis=0, dtype=np.float64)
    varying = spread > 1e-12 * np.maximum(np.abs(values).max(axis=0), 1e-30)
    if not varying.any():
        return np.zeros((len(values), 1), np.float32)
    centred = (values[:, varying] - values[:, varying].mean(axis=0, dtype=np.float64)) / spread[varying]
    points = centred.astype(np.float32)
    if min(points.shape) > COMPONENTS:
        left, sizes, _ = randomized_svd(points, COMPONENTS, n_iter=2, random_state=0)
        points = left * sizes
    return np.asarray(points / np.sqrt(np.mean(np.square(points, dtype=np.float64))), np.float32)


@dataclass(frozen=True)
class _Patches:
    """Patches in the space of their columns, with codes of their slides and groups.

    ``by_slide`` says that groups are the slides themselves.
    """

    points: np.ndarray
    labels: np.ndarray
    slides: np.ndarray
    groups: np.ndarray
    by_slide: bool

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield rows of one slide and their squared distances to all patches, infinite to themselves."""
        squares = np.square(self.points).sum(axis=1)
        for slide in range(self.slides.max() + 1):
            of_slide = np.flatnonzero(self.slides == slide)
            for start in range(0, len(of_slide), _BLOCK):
                rows = of_slide[start : start + _BLOCK]
                distances = squares[rows, None] + squares - 2 * (self.points[rows] @ self.points.T)
                np.maximum(distances, 0, out=distances)
                distances[np.arange(len(rows)), rows] = np.inf
                yield rows, distances


def _measures(patches: _Patches, draws: int, seed: int) -> dict[str, float]:
    """All measures of one kind of group, with intervals from resampling slides."""
    count, units = len(patches.labels), int(patches.slides.max()) + 1
    scores, evidence, margins = np.full((count, 2), np.nan), np.zeros((count, 2)), np.full(count, np.nan)
    shares = (np.bincount(patches.slides, patches.labels) / np.bincount(patches.slides))[patches.slides]
    for rows, distances in patches.blocks():
        others = patches.slides != patches.slides[rows[0]]
        foreign = np.where(others, distances, np.inf)
        near = _nearest(foreign, min(NEIGHBOURS, int(others.sum())))
        scores[rows, 0] = patches.labels[near].mean(axis=1)
        scores[rows, 1] = _resemblance(patches, foreign, shares)
        # A slide is compared with patches of the slide itself. Otherwise all patches are of other slides.
        candidates = _nearest(distances, min(NEIGHBOURS, count - 1)) if patches.by_slide else near
        for label in (0, 1):
            mine = patches.labels[rows] == label
            pool = np.ones(count, dtype=bool) if patches.by_slide else others
            same_group, same_label = patches.groups == patches.groups[rows[0]], patches.labels == label
            matches, impostors = pool & same_label & ~same_group, pool & ~same_label & same_group
            if not mine.any() or min(matches.sum(), impostors.sum()) < FEWEST:
                continue
            for column, kind in enumerate((matches, impostors)):
                evidence[rows[mine], column] = kind[candidates[mine]].sum(axis=1) / kind.sum()
            margins[rows[mine]] = _margin(distances[mine], matches, impostors)
    return _with_intervals(patches, scores, evidence, margins, units, draws, seed)


def _nearest(distances: np.ndarray, count: int) -> np.ndarray:
    """Columns of the smallest distances of each row."""
    return np.argpartition(distances, count - 1, axis=1)[:, :count]


def _resemblance(patches: _Patches, foreign: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Mean share of positives on the slides of the nearest patches of other slides, in standard scores.

    Nearest negatives and nearest positives count equally, so it hardly matters whether the patch itself shows tumour.
    """
    parts = []
    for label in (0, 1):
        columns = np.flatnonzero(np.isfinite(foreign[0]) & (patches.labels == label))
        of_slides = shares[columns]
        if len(columns) and of_slides.std() > 1e-9:
            near = _nearest(foreign[:, columns], min(NEIGHBOURS, len(columns)))
            parts.append((of_slides[near].mean(axis=1) - of_slides.mean()) / of_slides.std())
    return np.mean(parts, axis=0) if parts else np.zeros(len(foreign))


def _margin(distances: np.ndarray, matches: np.ndarray, impostors: np.ndarray) -> np.ndarray:
    """Difference of the mean distances to the nearest impostors and matches, divided by their sum.

    The rarer kind contributes `NEAREST` patches and the other kind the same share of its patches. Otherwise the more
    frequent kind would be closer by chance.
    """
    share = NEAREST / min(matches.sum(), impostors.sum())
    means = []
    for kind in (matches, impostors):
        count = max(1, round(share * kind.sum()))
        nearest = np.partition(distances[:, kind], count - 1, axis=1)[:, :count]
        means.append(nearest.mean(axis=1, dtype=np.float64))
    match, impostor = means
    return np.divide(impostor - match, impostor + match, out=np.zeros(len(match)), where=impostor + match > 0)


def _with_intervals(
    patches: _Patches,
    scores: np.ndarray,
    evidence: np.ndarray,
    margins: np.ndarray,
    units: int,
    draws: int,
    seed: int,
) -> dict[str, float]:
    """Measures on all slides and their intervals on resampled slides, by name."""
    recalls, chance = recognise(patches.points, patches.groups, patches.slides, by_slide=patches.by_slide, seed=seed)
    group_of = np.zeros(units, np.int64)
    group_of[patches.slides] = patches.groups
    scored = ~np.isnan(margins)
    positive = patches.labels == 1
    columns = [*evidence.T, np.where(scored, margins, 0.0), scored]
    columns += [scores[:, 1] * positive, positive, scores[:, 1] * ~positive, ~positive]
    sums = np.stack([np.bincount(patches.slides, column, minlength=units) for column in columns], axis=1)

    def of(counts: np.ndarray) -> np.ndarray:
        matches, impostors, margin, number, above, positives, below, negatives = (counts @ sums).T
        with np.errstate(invalid="ignore", divide="ignore"):
            recognised = _balanced(counts, recalls, group_of, patches.by_slide)
            shortcut = above / positives - below / negatives
            return np.stack([matches / (matches + impostors), margin / number, recognised, shortcut], axis=1)

    drawn = np.concatenate([of(counts) for counts in draw_slides(units, draws, seed)])
    values = dict(zip(MEASURES[1:], of(np.ones((1, units), np.int32))[0], strict=True))
    intervals = {name: column[~np.isnan(column)] for name, column in zip(values, drawn.T, strict=True)}
    values["auc"] = _auc(patches.labels, scores[:, 0])
    units_of = patches.slides.astype(np.int32)
    intervals["auc"] = auc_draws(patches.labels, scores[:, :1], units_of, draws=draws, seed=seed)[:, 0]
    measured = {"chance": chance}
    for name in MEASURES:
        low, high = percentile_interval(intervals[name]) if len(intervals[name]) else (np.nan, np.nan)
        measured |= {name: float(values[name]), f"{name}_low": float(low), f"{name}_high": float(high)}
    return measured


def _auc(labels: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores)) if 0 < labels.sum() < len(labels) else np.nan


def _balanced(counts: np.ndarray, recalls: np.ndarray, group_of: np.ndarray, by_slide: bool) -> np.ndarray:
    """Mean recall over groups under draws of slides; groups that were not drawn or have no recall do not count."""
    known = ~np.isnan(recalls)
    counts, recalls, group_of = counts[:, known], recalls[known], group_of[known]
    if by_slide:
        return np.asarray(counts @ recalls / counts.sum(axis=1))
    codes = range(group_of.max(initial=-1) + 1)
    parts = [(counts[:, group_of == group], recalls[group_of == group]) for group in codes]
    of_groups = np.array([part @ values / part.sum(axis=1) for part, values in parts]).reshape(-1, len(counts))
    drawn = ~np.isnan(of_groups)
    return np.asarray(np.where(drawn, of_groups, 0).sum(axis=0) / drawn.sum(axis=0))


def recognise(
    points: np.ndarray, groups: np.ndarray, slides: np.ndarray, *, by_slide: bool, seed: int
) -> tuple[np.ndarray, float]:
    """Recognise the group of each patch with a linear discriminant, cross-fitted.

    Parameters
    ----------
    points : ndarray of shape (n, k), float32
    groups, slides : ndarray of shape (n,), int
        Codes without gaps.
    by_slide : bool
        Whether groups are slides. Folds then divide the patches of each slide. Otherwise folds divide slides.
    seed : int

    Returns
    -------
    recalls : ndarray of shape (slides,), float64
        Share of each slide's patches whose group is recognised. NaN for groups of one patch (``by_slide``) or one
        slide: without it, a fit does not know the group. NaN for all if fewer than two groups remain.
    chance : float
        Value by guessing: one divided by the number of groups that remain; NaN without recalls.

    References
    ----------
    Fisher (1936), Annals of Eugenics 7(2):179-188.
    """
    rng = np.random.default_rng(seed)
    units = slides.max() + 1
    if by_slide:
        order = rng.permutation(len(groups))
        fold = np.empty(len(groups), np.int64)
        fold[order] = pd.Series(groups[order]).groupby(groups[order]).cumcount().to_numpy() % FOLDS
    else:
        fold = _folds_of_slides(groups, slides, rng)[slides]
    # Members of every group with two or more are spread over folds, so each fit knows all of these groups.
    known = (pd.Series(fold).groupby(groups).transform("nunique") > 1).to_numpy()
    remaining = len(np.unique(groups[known]))
    if remaining < 2:
        return np.full(units, np.nan), np.nan
    right = np.zeros(len(groups))
    for number in range(FOLDS):
        train, out = known & (fold != number), known & (fold == number)
        if out.any():
            right[out] = _discriminate(points[train], groups[train], points[out]) == groups[out]
    sizes = np.bincount(slides, known, minlength=units)
    with np.errstate(invalid="ignore"):
        return np.bincount(slides, right, minlength=units) / sizes, 1.0 / remaining


def _folds_of_slides(groups: np.ndarray, slides: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fold of each slide, so that the slides of every group are spread over the folds."""
    table = pd.DataFrame({"slide": slides, "group": groups}).drop_duplicates("slide").sort_values("slide")
    order = rng.permutation(len(table))
    fold = np.empty(len(table), np.int64)
    shuffled = table.group.to_numpy()[order]
    fold[order] = pd.Series(shuffled).groupby(shuffled).cumcount().to_numpy() % FOLDS
    return fold


def _discriminate(points: np.ndarray, groups: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Group whose mean is nearest to each of ``others`` in units of the spread within groups; all groups equally."""
    present, codes = np.unique(groups, return_inverse=True)
    sizes = np.bincount(codes)
    means = np.stack([np.bincount(codes, column) / sizes for column in points.T.astype(np.float64)], axis=1)
    residuals = points - means[codes]
    covariance = residuals.T @ residuals / max(len(points) - len(present), 1)
    width = points.shape[1]
    covariance += SHRINKAGE * (np.trace(covariance) / width + 1e-12) * np.eye(width)
    weights = np.linalg.solve(covariance, means.T)
    scores = others @ weights - 0.5 * np.einsum("gk,kg->g", means, weights)
    return np.asarray(present[scores.argmax(axis=1)])
