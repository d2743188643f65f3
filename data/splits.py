"""Splits: whole groups are held out as the test set, the others get grouped, stratified folds.

A group is a slide, or a patient if patients are known, together with every one that shares a duplicate with it; see
:func:`data.audit.flags.decide`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from histoblend.data.errors import InputError
from histoblend.data.slide_kinds import FEWEST_FOLDS, SlideCounts, SplitRequest, held_out_slides
from histoblend.data.small_splits import draw_folds, draw_test

TRAIN, TEST = "train", "test"

#: Slide of all patches that a slide map does not list. They form one group, so they never span a split.
UNMAPPED = "(unmapped)"

#: Names of slides that were inferred by clustering patches start with this, such as "(inferred 07)".
INFERRED = "(inferred"

#: Names of single-patch groups start with this: "patch:<id>".
BY_PATCH = "patch:"

#: With more groups than this, each is so small that any assignment is balanced.
MANY_GROUPS = 1000

#: Number of random choices of test slides that are compared; the best balanced one is used.
CANDIDATES = 4000


def is_known(slides: pd.Series) -> pd.Series:
    """Whether the data set itself names a slide: it is not missing, not left out by a slide map and not inferred."""
    text = slides.astype(object)
    known = text.notna() & (text != UNMAPPED)
    return known & ~text.where(known, "").str.startswith(INFERRED)


def official_sides(table: pd.DataFrame) -> np.ndarray | None:
    """Side of each patch in the data set's official split; None without an official split.

    Returns
    -------
    ndarray of shape (n,), dtype object
        "test" if ``official`` says so, otherwise "train". Official training and validation parts are divided into
        folds together.
    """
    if "official" not in table or not (table["official"] == TEST).any():
        return None
    return np.where(table["official"] == TEST, TEST, TRAIN).astype(object)


def base_groups(table: pd.DataFrame, *, by_patch: bool = False) -> np.ndarray:
    """Patches to keep together, before duplicates are considered.

    Parameters
    ----------
    table : DataFrame
        ``patch_id, slide``; ``patient`` of every patch, if patients may have several slides; ``official``, if there is
        an official split.
    by_patch : bool
        Ignore slides.

    Returns
    -------
    ndarray of shape (n,), dtype object
        The patch's patient if known, otherwise its slide. "(unmapped)" for all patches without a slide if others have
        one. "patch:<id>" if no slide is known at all. A slide that an official split cuts in two forms two groups,
        ``<slide>`` and ``<slide> (test)``.
    """
    slides = table["slide"].astype(object)
    alone = BY_PATCH + table["patch_id"].astype(str)
    if by_patch or slides.isna().all():
        return alone.to_numpy(dtype=object)
    groups = table["patient"].astype(object) if "patient" in table else slides.where(slides.notna(), UNMAPPED)
    sides = official_sides(table)
    if sides is not None:
        cut = groups.isin(groups[sides == TEST]) & groups.isin(groups[sides == TRAIN]) & (sides == TEST)
        groups = groups.where(~cut, groups + " (test)")
    return groups.to_numpy(dtype=object)


def unite(groups: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Merge groups that are linked by a pair of rows; the alphabetically first name becomes the name of all.

    Parameters
    ----------
    groups : ndarray of shape (n,), dtype object
    first, second : ndarray of shape (links,), int
        Linked rows, which must stay together.
    """
    codes, names = pd.factorize(groups, sort=True)
    root = components(len(names), codes[first], codes[second])
    return np.asarray(names, dtype=object)[root[codes]]


def components(n: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """For each row, the lowest row that it is linked with, directly or through others.

    Parameters
    ----------
    n : int
    first, second : ndarray of shape (links,), int
        Linked rows.

    Returns
    -------
    ndarray of shape (n,), dtype int64
    """
    links = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(n, n))
    component = connected_components(links, directed=False)[1]
    lowest = np.unique(component, return_index=True)[1]
    return lowest[component]


def patch_groups(table: pd.DataFrame) -> np.ndarray:
    """Groups that must never span two folds: ``group`` if the table has it, otherwise :func:`base_groups`.

    Returns
    -------
    ndarray of shape (n,), dtype object
    """
    return table["group"].to_numpy(dtype=object) if "group" in table else base_groups(table)


def assign_splits(table: pd.DataFrame, *, test_share: float, folds: int, seed: int) -> pd.DataFrame:
    """Hold out whole groups as the test set and give the others grouped, stratified folds.

    Parameters
    ----------
    table : DataFrame
        ``patch_id, label, slide``; ``group`` if more than slides must stay together; ``official`` if the data set has
        an official split. Its test part is then the test set.
    test_share : float
        Share of the groups to hold out; at least 4 groups are held out.
    folds : int
        Number of folds for the remaining groups.
    seed : int

    Returns
    -------
    DataFrame
        ``table`` with ``group``, ``split`` ("train" or "test") and ``fold`` (0 to folds - 1; -1 in the test set).

    Raises
    ------
    InputError
        There is only one class. Or no split keeps both labels in the test set and in the training data of every fold.
        The message names a setting that allows a split, or the slides to add.

    Notes
    -----
    The best balanced of many random test sets is used, and the rest gets stratified folds. If a fold then lacks a label
    to train on, :mod:`data.small_splits` builds test set and folds from slides that hold the labels. Every fold then
    holds both labels if any division allows it.
    """
    labels, groups, sides = table["label"].to_numpy(), patch_groups(table), official_sides(table)
    check_enough(table, test_share=test_share, folds=folds)
    if not _request(table, groups, test_share, folds).possible:
        raise InputError(_refusal(table, test_share, folds))
    if sides is None:
        held_out, parts = _split(labels, groups, test_share, folds, seed)
    else:
        held_out = sides == TEST
        parts = find_folds(labels[~held_out], groups[~held_out], folds, seed)
    fold = np.full(len(table), -1, dtype=np.int8)
    train_rows = np.flatnonzero(~held_out)
    for number, rows in enumerate(parts):
        fold[train_rows[rows]] = number
    return table.assign(group=groups, split=np.where(held_out, TEST, TRAIN), fold=fold)


def _split(
    labels: np.ndarray, groups: np.ndarray, test_share: float, folds: int, seed: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return which patches are held out, and the rows of each fold among the others; a split must be possible."""
    chosen = choose_test_groups(labels, groups, test_share=test_share, seed=seed, folds=folds)
    held_out = pd.Series(groups).isin(chosen).to_numpy()
    parts = _usual_folds(labels[~held_out], groups[~held_out], folds, seed)
    if not leave_both(labels[~held_out], parts):
        # The random test set may contain slides that the folds need.
        built = _built_test(_LabelCounts(labels, groups), test_share, seed, folds)
        held_out = pd.Series(groups).isin(built).to_numpy()
        parts = _built_folds(labels[~held_out], groups[~held_out], folds, seed)
    return held_out, parts


class _LabelCounts:
    """Number of patches of each label in each group.

    Attributes
    ----------
    codes : ndarray of shape (n,)
        Group of each patch, as an index into ``names``.
    names : ndarray of shape (groups,)
        Sorted names of the groups.
    positives, negatives : ndarray of shape (groups,)
    """

    def __init__(self, labels: np.ndarray, groups: np.ndarray) -> None:
        self.codes, names = pd.factorize(np.asarray(groups, dtype=object), sort=True)
        self.names = np.asarray(names, dtype=object)
        self.positives = np.bincount(self.codes, labels, len(names))
        self.negatives = np.bincount(self.codes, 1 - labels, len(names))


def choose_test_groups(
    labels: np.ndarray, groups: np.ndarray, *, test_share: float, seed: int, folds: int = FEWEST_FOLDS
) -> np.ndarray:
    """Choose whole groups whose patches come closest to ``test_share`` of both positives and negatives.

    Many random choices of the required number of groups are drawn. The one with the smallest maximum deviation, over
    positives and negatives, is used. Both the chosen and the remaining groups hold both classes. If no random choice
    does that, :mod:`data.small_splits` builds one that also leaves both classes to the folds.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    groups : ndarray of shape (n,)
    test_share : float
    seed : int
    folds : int
        Number of folds for the remaining groups.

    Returns
    -------
    ndarray of shape (k,)
        Names of the chosen groups, sorted.

    Raises
    ------
    InputError
        No choice leaves both classes in the test set and in the training data of at least two folds.
    """
    counts = _LabelCounts(labels, groups)
    positives, negatives, names = counts.positives, counts.negatives, counts.names
    number = held_out_slides(test_share, len(names))
    rng = np.random.default_rng(seed)
    best, best_deviation = None, np.inf
    # With thousands of groups (no slide map) every choice is balanced, so a few draws are enough.
    for _ in range(CANDIDATES if len(names) < MANY_GROUPS else 20):
        chosen = rng.choice(len(names), min(number, len(names)), replace=False)
        share = np.array([positives[chosen].sum() / positives.sum(), negatives[chosen].sum() / negatives.sum()])
        both = (share > 0).all() and (share < 1).all()
        deviation = np.abs(share - number / len(names)).max() if both else np.inf
        if deviation < best_deviation:
            best, best_deviation = chosen, deviation
    return _built_test(counts, test_share, seed, folds) if best is None else np.sort(names[best])


def _built_test(counts: _LabelCounts, test_share: float, seed: int, folds: int) -> np.ndarray:
    """Names of the groups that :func:`data.small_splits.draw_test` chooses, sorted."""
    request = SplitRequest(SlideCounts.of(counts.positives, counts.negatives), test_share, folds)
    chosen = draw_test(counts.positives, counts.negatives, request.held_out, folds, seed)
    if chosen is None:
        raise InputError(f"{request.problem('slides')} {request.more_slides('slides')}")
    return np.sort(counts.names[chosen])


def check_splits(table: pd.DataFrame) -> None:
    """Check that no group spans two folds or both sides of the split, and that no patch appears twice.

    Raises
    ------
    InputError
        A group spans folds or splits, a patch id is repeated, or a fold number does not fit its split.
    """
    sides = table["split"].astype(str) + "/" + table["fold"].astype(str)
    groups = patch_groups(table)
    spans = sides.groupby(groups).nunique()
    if (spans > 1).any():
        slide = spans.index[(spans > 1).to_numpy()][0]
        spanned = sorted(sides[groups == slide].unique())
        raise InputError(
            f"a slide must be in a single fold of a single split; got slide {slide!r} in {', '.join(spanned)}. "
            "Scores would be inflated: rebuild the split with --rebuild."
        )
    if table["patch_id"].duplicated().any():
        first = table.loc[table["patch_id"].duplicated(), "patch_id"].iloc[0]
        raise InputError(f"patch ids must be unique; got {first!r} twice. Remove one.")
    if ((table["split"] == TEST) != (table["fold"] == -1)).any():
        raise InputError("fold must be -1 for the test set only, and for all of it. Rebuild the split with --rebuild.")


def grouped_folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> list[np.ndarray]:
    """Rows of each fold, stratified by label, with every group in a single fold.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    groups : ndarray of shape (n,)
    folds : int
    seed : int

    Returns
    -------
    list of ndarray of int
        Sorted row numbers, one array per fold. Together they cover all rows.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    codes, names = pd.factorize(np.asarray(groups, dtype=object), sort=True)
    if len(names) > MANY_GROUPS:
        # The grouped splitter is slow with many groups. Stratifying groups by whether they hold tumour is enough then.
        positive = np.bincount(codes, labels, len(names)) > 0
        with _without_rarity_warning(positive, folds):
            parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(positive, positive)
            return [np.flatnonzero(np.isin(codes, part)) for _, part in parts]
    with _without_rarity_warning(labels, folds):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        return [rows for _, rows in splitter.split(labels, labels, codes)]


@contextmanager
def _without_rarity_warning(labels: np.ndarray, folds: int) -> Iterator[None]:
    """Hide scikit-learn's warning that a label has fewer rows than folds; callers check what each fold holds."""
    # Threads share the warning filters and may call this at the same time, so change them only if needed.
    if np.unique(labels, return_counts=True)[1].min() >= folds:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        yield


def find_folds(
    labels: np.ndarray, groups: np.ndarray, folds: int, seed: int, *, hold_both: bool = False
) -> list[np.ndarray]:
    """Find folds that each leave both labels to the others; finds them whenever they exist.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    groups : ndarray of shape (n,)
    folds : int
    seed : int
    hold_both : bool
        Each fold must also hold both labels itself.

    Returns
    -------
    list of ndarray of int
        Rows of each fold: those of :func:`grouped_folds` if suitable. Empty if no division works.
    """
    for make in (_usual_folds, _built_folds):
        parts = make(labels, groups, folds, seed)
        if leave_both(labels, parts) and (not hold_both or all(np.unique(labels[rows]).size == 2 for rows in parts)):
            return parts
    return []


def leave_both(labels: np.ndarray, parts: list[np.ndarray]) -> bool:
    """Whether there are folds, none of them is empty, and both labels remain without any one of them."""
    remainders = (np.delete(labels, rows) for rows in parts)
    return bool(parts) and all(map(len, parts)) and all(np.unique(rest).size == 2 for rest in remainders)


def _usual_folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> list[np.ndarray]:
    """Folds of :func:`grouped_folds`; empty if both labels have fewer patches than folds, which it refuses."""
    return grouped_folds(labels, groups, folds, seed) if np.bincount(labels).max(initial=0) >= folds else []


def _built_folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> list[np.ndarray]:
    """Folds of :func:`data.small_splits.draw_folds`; empty if it finds none."""
    counts = _LabelCounts(labels, groups)
    fold = draw_folds(counts.positives, counts.negatives, folds, seed)
    return [] if fold is None else [np.flatnonzero(fold[counts.codes] == number) for number in range(folds)]


def check_enough(table: pd.DataFrame, *, test_share: float, folds: int) -> None:
    """Check that a split is possible at all, before any slow step.

    :func:`assign_splits` may still refuse a table that passes, because duplicates can merge slides into larger groups.

    Raises
    ------
    InputError
        There is one class only, there are too few groups for test set and folds, or a label is in too few groups.
    """
    classes = np.unique(table["label"].to_numpy())
    if len(classes) < 2:
        raise InputError(f"labels must include both 0 and 1; got only {classes.tolist()}. No model can be trained.")
    request = _request(table, patch_groups(table), test_share, folds)
    least = FEWEST_FOLDS + (not request.official)
    # Only these two are checked: merging slides never improves them, but may change which slides fit together.
    if request.counts.slides < request.held_out + folds or request.counts.parts < least:
        raise InputError(_refusal(table, test_share, folds))


def _request(table: pd.DataFrame, groups: np.ndarray, test_share: float, folds: int) -> SplitRequest:
    """Request a split of these groups; of the training part only if the data set has an official split."""
    sides = official_sides(table)
    train = np.ones(len(table), dtype=bool) if sides is None else sides == TRAIN
    counts = _LabelCounts(table["label"].to_numpy()[train], groups[train])
    return SplitRequest(
        SlideCounts.of(counts.positives, counts.negatives), test_share, folds, official=sides is not None
    )


def _refusal(table: pd.DataFrame, test_share: float, folds: int) -> str:
    """Say why no split is possible and what would allow one: a setting if any, otherwise more slides."""
    groups = patch_groups(table)
    by_patch, inferred = (any(str(name).startswith(start) for name in groups) for start in (BY_PATCH, INFERRED))
    noun = "patches" if by_patch else "slides"
    request = _request(table, groups, test_share, folds)
    patch_request = _request(table, base_groups(table, by_patch=True), test_share, folds)
    # Confidence intervals are still computed over slides.
    patches_help = patch_request.possible and not by_patch and request.counts.most_draws_hold_both
    patch_remedy = "" if not patches_help else "--set split.groups=patch, which makes scores optimistic."
    if inferred:
        # Inferred slides change with the number of folds, and the user cannot add one.
        remedy = f"Use {patch_remedy}" if patch_remedy else patch_request.more_slides("patches")
    elif settings := request.settings():
        remedy = f"Use {' '.join(f'--set {setting}' for setting in settings)}."
    else:
        remedy = request.more_slides(noun) + (f" Or use {patch_remedy}" if patch_remedy else "")
    return f"{request.problem(noun)} {remedy}"
