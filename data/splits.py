"""Splits: whole groups are held out, the others get grouped, stratified folds.

A group is a slide, together with every slide that shares a duplicate with it; see :func:`data.audit.flags.decide`.
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
from histoblend.data.slide_kinds import FEWEST_FOLDS, Kinds, Wanted, held_out_slides
from histoblend.data.small_splits import draw_folds, draw_test

TRAIN, TEST = "train", "test"

#: Slide of the patches that an incomplete slide map leaves out: one group, so that they never span a split.
UNMAPPED = "(unmapped)"

#: Slides that were clustered from the patches, not given, are called "(inferred 07)".
INFERRED = "(inferred"

#: Groups of one patch are called "patch:<id>".
BY_PATCH = "patch:"

#: With more groups than this, they are so small that which one goes where changes no balance.
MANY_GROUPS = 1000

#: Random choices of test slides that are compared; the best balanced one is taken.
CANDIDATES = 4000


def is_known(slides: pd.Series) -> pd.Series:
    """Whether a slide was given by the data set: neither missing, nor left out by a slide map, nor inferred."""
    text = slides.astype(object)
    known = text.notna() & (text != UNMAPPED)
    return known & ~text.where(known, "").str.startswith(INFERRED)


def official_sides(table: pd.DataFrame) -> np.ndarray | None:
    """Side of each patch in the split that the data set came with; None where it came with none.

    Returns
    -------
    ndarray of shape (n,), dtype object
        "test" where ``official`` says so, "train" elsewhere: official training and validation parts are divided into
        folds together.
    """
    if "official" not in table or not (table["official"] == TEST).any():
        return None
    return np.where(table["official"] == TEST, TEST, TRAIN).astype(object)


def base_groups(table: pd.DataFrame, *, by_patch: bool = False) -> np.ndarray:
    """What is kept together before duplicates are looked at.

    Parameters
    ----------
    table : DataFrame
        ``patch_id, slide`` and, where there is one, ``official``.
    by_patch : bool
        Leave slides aside.

    Returns
    -------
    ndarray of shape (n,), dtype object
        The patch's slide; "(unmapped)" for all patches without one where others have one; "patch:<id>" where no slide
        is known at all. A slide that an official split has cut in two is two groups, ``<slide>`` and
        ``<slide> (test)``.
    """
    slides = table["slide"].astype(object)
    alone = BY_PATCH + table["patch_id"].astype(str)
    if by_patch or slides.isna().all():
        return alone.to_numpy(dtype=object)
    groups = slides.where(slides.notna(), UNMAPPED)
    sides = official_sides(table)
    if sides is not None:
        cut = groups.isin(groups[sides == TEST]) & groups.isin(groups[sides == TRAIN]) & (sides == TEST)
        groups = groups.where(~cut, groups + " (test)")
    return groups.to_numpy(dtype=object)


def unite(groups: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Unite groups that are linked by a pair of rows; the name that sorts first stands for all.

    Parameters
    ----------
    groups : ndarray of shape (n,), dtype object
    first, second : ndarray of shape (links,), int
        Rows that must not be separated.
    """
    codes, names = pd.factorize(groups, sort=True)
    root = components(len(names), codes[first], codes[second])
    return np.asarray(names, dtype=object)[root[codes]]


def components(n: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Lowest row that each row is linked with, over any number of steps.

    Parameters
    ----------
    n : int
    first, second : ndarray of shape (links,), int

    Returns
    -------
    ndarray of shape (n,), dtype int64
    """
    links = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(n, n))
    component = connected_components(links, directed=False)[1]
    lowest = np.unique(component, return_index=True)[1]
    return lowest[component]


def patch_groups(table: pd.DataFrame) -> np.ndarray:
    """What must never span two folds: ``group`` where the table has it, else :func:`base_groups`.

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
        ``patch_id, label, slide``; ``group`` where more than slides must stay together; ``official`` where the data set
        came with a split. Its test part then is the test set.
    test_share : float
        Share of the groups that are held out; at least 4 are, whatever it says.
    folds : int
        Folds of the remaining groups.
    seed : int

    Returns
    -------
    DataFrame
        ``table`` with ``group``, ``split`` ("train" or "test") and ``fold`` (0 to folds - 1; -1 in the test set).

    Raises
    ------
    InputError
        One class only, or no split holds both labels in the test set and leaves both to learn from, whichever fold is
        held out. The message names a setting that allows one, or the slides that are missing.

    Notes
    -----
    The best balanced of many random test sets gets stratified folds. Where that leaves a label out, test set and folds
    are built from slides that hold the labels, see :mod:`data.small_splits`: every fold then holds both where any
    division does that.
    """
    labels, groups, sides = table["label"].to_numpy(), patch_groups(table), official_sides(table)
    check_enough(table, test_share=test_share, folds=folds)
    if not _wanted(table, groups, test_share, folds).possible:
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
    """Whether each patch is held out, and the rows of each fold among the others, where a split is possible."""
    chosen = choose_test_groups(labels, groups, test_share=test_share, seed=seed, folds=folds)
    held_out = pd.Series(groups).isin(chosen).to_numpy()
    parts = _usual_folds(labels[~held_out], groups[~held_out], folds, seed)
    if not leave_both(labels[~held_out], parts):
        # The test set may hold what folds need.
        held_out = pd.Series(groups).isin(_built_test(_Counts(labels, groups), test_share, seed, folds)).to_numpy()
        parts = _built_folds(labels[~held_out], groups[~held_out], folds, seed)
    return held_out, parts


class _Counts:
    """Patches of each label in each group: ``codes`` of the patches, sorted ``names``, ``positives``, ``negatives``."""

    def __init__(self, labels: np.ndarray, groups: np.ndarray) -> None:
        self.codes, names = pd.factorize(np.asarray(groups, dtype=object), sort=True)
        self.names = np.asarray(names, dtype=object)
        self.positives = np.bincount(self.codes, labels, len(names))
        self.negatives = np.bincount(self.codes, 1 - labels, len(names))


def choose_test_groups(
    labels: np.ndarray, groups: np.ndarray, *, test_share: float, seed: int, folds: int = FEWEST_FOLDS
) -> np.ndarray:
    """Whole groups whose patches come closest to ``test_share`` of both positives and negatives.

    Many random choices of the wanted number of groups are drawn; the one with the smallest largest miss, over positives
    and negatives, is taken. Both classes are present in it and in what remains. Where none of them does that, one is
    built that leaves both classes for folds as well.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    groups : ndarray of shape (n,)
    test_share : float
    seed : int
    folds : int
        Folds of the remaining groups.

    Returns
    -------
    ndarray of shape (k,)
        Names of the chosen groups, sorted.

    Raises
    ------
    InputError
        No choice leaves both classes on both sides, and for two folds.
    """
    counts = _Counts(labels, groups)
    positives, negatives, names = counts.positives, counts.negatives, counts.names
    wanted = held_out_slides(test_share, len(names))
    rng = np.random.default_rng(seed)
    best, best_miss = None, np.inf
    # With thousands of groups (no slide map) every choice is balanced: a few draws do.
    for _ in range(CANDIDATES if len(names) < MANY_GROUPS else 20):
        chosen = rng.choice(len(names), min(wanted, len(names)), replace=False)
        share = np.array([positives[chosen].sum() / positives.sum(), negatives[chosen].sum() / negatives.sum()])
        both = (share > 0).all() and (share < 1).all()
        miss = np.abs(share - wanted / len(names)).max() if both else np.inf
        if miss < best_miss:
            best, best_miss = chosen, miss
    return _built_test(counts, test_share, seed, folds) if best is None else np.sort(names[best])


def _built_test(counts: _Counts, test_share: float, seed: int, folds: int) -> np.ndarray:
    """Names of the groups that :func:`data.small_splits.draw_test` chooses, sorted."""
    wanted = Wanted(Kinds.of(counts.positives, counts.negatives), test_share, folds)
    chosen = draw_test(counts.positives, counts.negatives, wanted.held_out, folds, seed)
    if chosen is None:
        raise InputError(f"{wanted.problem('slides')} {wanted.more_slides('slides')}")
    return np.sort(counts.names[chosen])


def check_splits(table: pd.DataFrame) -> None:
    """Check that no group and no patch stands in two folds or on both sides of the split.

    Raises
    ------
    InputError
        Naming the first slide that does, or a fold number that does not fit its split.
    """
    where = table["split"].astype(str) + "/" + table["fold"].astype(str)
    groups = patch_groups(table)
    spans = where.groupby(groups).nunique()
    if (spans > 1).any():
        slide = spans.index[(spans > 1).to_numpy()][0]
        places = sorted(where[groups == slide].unique())
        raise InputError(
            f"a slide must stand in one fold of one split; got slide {slide!r} in {', '.join(places)}. "
            "Scores would be inflated: rebuild the split with --rebuild."
        )
    if table["patch_id"].duplicated().any():
        first = table.loc[table["patch_id"].duplicated(), "patch_id"].iloc[0]
        raise InputError(f"patch ids must be unique; got {first!r} twice. Remove one.")
    if ((table["split"] == TEST) != (table["fold"] == -1)).any():
        raise InputError("fold must be -1 in the test set and only there. Rebuild the split with --rebuild.")


def grouped_folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> list[np.ndarray]:
    """Rows of each fold, stratified by label, no group in two.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    groups : ndarray of shape (n,)
    folds : int
    seed : int

    Returns
    -------
    list of ndarray of int
        Row numbers, sorted, one array a fold; together they are all rows.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    codes, names = pd.factorize(np.asarray(groups, dtype=object), sort=True)
    if len(names) > MANY_GROUPS:
        # The grouped splitter loops over groups in Python; as many as these are told apart by whether they hold tumour.
        positive = np.bincount(codes, labels, len(names)) > 0
        with _without_rarity_warning(positive, folds):
            parts = StratifiedKFold(folds, shuffle=True, random_state=seed).split(positive, positive)
            return [np.flatnonzero(np.isin(codes, part)) for _, part in parts]
    with _without_rarity_warning(labels, folds):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        return [rows for _, rows in splitter.split(labels, labels, codes)]


@contextmanager
def _without_rarity_warning(labels: np.ndarray, folds: int) -> Iterator[None]:
    """Hide that a label has fewer rows than there are folds: whoever asks for folds checks what each holds."""
    # Threads share the filters of warnings, and ask for folds at the same time: leave them alone where none is due.
    if np.unique(labels, return_counts=True)[1].min() >= folds:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        yield


def find_folds(
    labels: np.ndarray, groups: np.ndarray, folds: int, seed: int, *, hold_both: bool = False
) -> list[np.ndarray]:
    """Rows of each fold, so that every fold leaves both labels to the others; there is a result wherever that can be.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    groups : ndarray of shape (n,)
    folds : int
    seed : int
    hold_both : bool
        Each fold must hold both labels itself, too.

    Returns
    -------
    list of ndarray of int
        Those of :func:`grouped_folds` where they do; empty where no division does.
    """
    for make in (_usual_folds, _built_folds):
        parts = make(labels, groups, folds, seed)
        if leave_both(labels, parts) and (not hold_both or all(np.unique(labels[rows]).size == 2 for rows in parts)):
            return parts
    return []


def leave_both(labels: np.ndarray, parts: list[np.ndarray]) -> bool:
    """Whether there are parts, none is empty, and without any one of them both labels are left."""
    rest = (np.delete(labels, rows) for rows in parts)
    return bool(parts) and all(map(len, parts)) and all(np.unique(left).size == 2 for left in rest)


def _usual_folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> list[np.ndarray]:
    """Folds of :func:`grouped_folds`; none where its splitter refuses: both labels have fewer patches than folds."""
    return grouped_folds(labels, groups, folds, seed) if np.bincount(labels).max(initial=0) >= folds else []


def _built_folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> list[np.ndarray]:
    """Folds of :func:`data.small_splits.draw_folds`; none where there are none."""
    counts = _Counts(labels, groups)
    fold = draw_folds(counts.positives, counts.negatives, folds, seed)
    return [] if fold is None else [np.flatnonzero(fold[counts.codes] == number) for number in range(folds)]


def check_enough(table: pd.DataFrame, *, test_share: float, folds: int) -> None:
    """Check that a split is possible at all, before anything costly is done.

    What passes here may still be refused by :func:`assign_splits`, once duplicates have united slides.

    Raises
    ------
    InputError
        One class only, fewer groups than test set and folds need, or a label in too few of them.
    """
    classes = np.unique(table["label"].to_numpy())
    if len(classes) < 2:
        raise InputError(f"labels must hold both 0 and 1; got only {classes.tolist()}. Nothing can be learned from it.")
    wanted = _wanted(table, patch_groups(table), test_share, folds)
    least = FEWEST_FOLDS + (not wanted.official)
    # No more than that: uniting slides may change which of them fit, but never makes these two better.
    if wanted.kinds.slides < wanted.held_out + folds or wanted.kinds.parts < least:
        raise InputError(_refusal(table, test_share, folds))


def _wanted(table: pd.DataFrame, groups: np.ndarray, test_share: float, folds: int) -> Wanted:
    """The split that is asked for, by these groups; of the training part where the data set came with a split."""
    sides = official_sides(table)
    train = np.ones(len(table), dtype=bool) if sides is None else sides == TRAIN
    counts = _Counts(table["label"].to_numpy()[train], groups[train])
    return Wanted(Kinds.of(counts.positives, counts.negatives), test_share, folds, official=sides is not None)


def _refusal(table: pd.DataFrame, test_share: float, folds: int) -> str:
    """Why there is no split, and what allows one: a setting where one does, else more slides."""
    groups = patch_groups(table)
    by_patch, inferred = (any(str(name).startswith(start) for name in groups) for start in (BY_PATCH, INFERRED))
    noun = "patches" if by_patch else "slides"
    wanted = _wanted(table, groups, test_share, folds)
    alone = _wanted(table, base_groups(table, by_patch=True), test_share, folds)
    # Scores are judged by slides all the same.
    helps = alone.possible and not by_patch and wanted.kinds.drawn_with_both
    patch_remedy = "" if not helps else "--set split.groups=patch, which makes scores optimistic."
    if inferred:
        # Clusters that stand in for slides are others for another number of folds, and nobody can add one.
        remedy = f"Use {patch_remedy}" if patch_remedy else alone.more_slides("patches")
    elif settings := wanted.settings():
        remedy = f"Use {' '.join(f'--set {setting}' for setting in settings)}."
    else:
        remedy = wanted.more_slides(noun) + (f" Or use {patch_remedy}" if patch_remedy else "")
    return f"{wanted.problem(noun)} {remedy}"
