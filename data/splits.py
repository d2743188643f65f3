"""Splits: whole groups are held out, the others get grouped, stratified folds.

A group is a slide, together with every slide that shares a duplicate with it; see :func:`data.audit.flags.decide`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from histoblend.data.errors import InputError

TRAIN, TEST = "train", "test"

#: Slide of the patches that an incomplete slide map leaves out: one group, so that they never span a split.
UNMAPPED = "(unmapped)"

#: Slides that were clustered from the patches, not given, are called "(inferred 07)".
INFERRED = "(inferred"

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
    alone = "patch:" + table["patch_id"].astype(str)
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
        One class only, too few groups, or a fold without both classes in its complement.
    """
    labels, groups, sides = table["label"].to_numpy(), patch_groups(table), official_sides(table)
    check_enough(table, test_share=test_share, folds=folds)
    if sides is None:
        held_out = (
            pd.Series(groups).isin(choose_test_groups(labels, groups, test_share=test_share, seed=seed)).to_numpy()
        )
    else:
        held_out = sides == TEST
    fold = np.full(len(table), -1, dtype=np.int8)
    train_rows = np.flatnonzero(~held_out)
    for number, rows in enumerate(grouped_folds(labels[train_rows], groups[train_rows], folds, seed)):
        fold[train_rows[rows]] = number
    result = table.assign(group=groups, split=np.where(held_out, TEST, TRAIN), fold=fold)
    _check_folds(result, folds)
    return result


def choose_test_groups(labels: np.ndarray, groups: np.ndarray, *, test_share: float, seed: int) -> np.ndarray:
    """Whole groups whose patches come closest to ``test_share`` of both positives and negatives.

    Many random choices of the wanted number of groups are drawn; the one with the smallest largest miss, over positives
    and negatives, is taken. Both classes are present in it and in what remains.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    groups : ndarray of shape (n,)
    test_share : float
    seed : int

    Returns
    -------
    ndarray of shape (k,)
        Names of the chosen groups, sorted.
    """
    codes, names = pd.factorize(groups, sort=True)
    positives = np.bincount(codes, labels, len(names))
    negatives = np.bincount(codes, 1 - labels, len(names))
    wanted = max(4, round(test_share * len(names)))
    rng = np.random.default_rng(seed)
    best, best_miss = None, np.inf
    # With thousands of groups (no slide map) every choice is balanced: a few draws do.
    for _ in range(CANDIDATES if len(names) < MANY_GROUPS else 20):
        chosen = rng.choice(len(names), wanted, replace=False)
        share = np.array([positives[chosen].sum() / positives.sum(), negatives[chosen].sum() / negatives.sum()])
        both = (share > 0).all() and (share < 1).all()
        miss = np.abs(share - wanted / len(names)).max() if both else np.inf
        if miss < best_miss:
            best, best_miss = chosen, miss
    if best is None:
        raise InputError(
            f"no choice of {wanted} test slides leaves both labels on both sides; got {len(names)} slides, "
            f"{(positives > 0).sum()} with tumour. Give more slides or a smaller split.test_share."
        )
    return np.sort(np.asarray(names, dtype=object)[best])


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
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        return [np.flatnonzero(np.isin(codes, part)) for _, part in splitter.split(positive, positive)]
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return [rows for _, rows in splitter.split(labels, labels, codes)]


def check_enough(table: pd.DataFrame, *, test_share: float, folds: int) -> None:
    """Check that a split is possible at all, before anything costly is done.

    Raises
    ------
    InputError
        One class only, or fewer groups than test set and folds need.
    """
    labels, groups, sides = table["label"].to_numpy(), patch_groups(table), official_sides(table)
    classes = np.unique(labels)
    if len(classes) < 2:
        raise InputError(f"labels must hold both 0 and 1; got only {classes.tolist()}. Nothing can be learned from it.")
    slides = len(pd.unique(groups if sides is None else groups[sides == TRAIN]))
    held_out = max(4, round(test_share * slides)) if sides is None else 0
    if slides < held_out + folds:
        raise InputError(
            f"{folds} folds and {held_out} test slides need at least {held_out + folds} slides; got {slides}. "
            "Give more slides or fewer folds (--set split.folds=2)."
        )


def _check_folds(table: pd.DataFrame, folds: int) -> None:
    train = table.loc[table["split"] == TRAIN, ["fold", "label"]]
    for number in range(folds):
        inside, outside = train[train["fold"] == number], train[train["fold"] != number]
        if inside.empty or outside["label"].nunique() < 2:
            raise InputError(
                f"fold {number} must hold patches and leave both labels to learn from; got {len(inside)} patches and "
                f"labels {sorted(map(int, outside['label'].unique()))} outside. "
                "Give more slides with both labels, or use fewer folds (--set split.folds=2)."
            )
