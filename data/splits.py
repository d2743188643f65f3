"""Splits: whole slides are held out, the others get grouped, stratified folds."""

from __future__ import annotations

import numpy as np
import pandas as pd

from data.errors import InputError

#: Random choices of test slides that are compared; the best balanced one is taken.
CANDIDATES = 4000


def patch_groups(table: pd.DataFrame) -> np.ndarray:
    """What must never span two folds: a patch's slide or, where no slide is known, the patch itself.

    Parameters
    ----------
    table : DataFrame
        With ``patch_id`` and ``slide`` (missing when unknown).

    Returns
    -------
    ndarray of shape (n,), dtype object
    """
    slides = table["slide"].astype(object)
    return slides.where(slides.notna(), "patch:" + table["patch_id"].astype(str)).to_numpy()


def assign_splits(table: pd.DataFrame, *, test_share: float, folds: int, seed: int) -> pd.DataFrame:
    """Hold out whole slides as the test set and give the others grouped, stratified folds.

    Parameters
    ----------
    table : DataFrame
        ``patch_id, label, slide``.
    test_share : float
        Share of the slides that are held out; at least 4 slides are, whatever it says.
    folds : int
        Folds of the remaining slides.
    seed : int

    Returns
    -------
    DataFrame
        ``table`` with ``split`` ("train" or "test") and ``fold`` (0 to folds - 1; -1 in the test set).

    Raises
    ------
    InputError
        One class only, too few slides, or a fold without both classes in its complement.
    """
    labels = table["label"].to_numpy()
    groups = patch_groups(table)
    check_enough(table, test_share=test_share, folds=folds)
    test = choose_test_groups(labels, groups, test_share=test_share, seed=seed)
    held_out = np.isin(groups, test)
    fold = np.full(len(table), -1, dtype=np.int8)
    train_rows = np.flatnonzero(~held_out)
    for number, rows in enumerate(grouped_folds(labels[train_rows], groups[train_rows], folds, seed)):
        fold[train_rows[rows]] = number
    result = table.assign(split=np.where(held_out, "test", "train"), fold=fold)
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
    names, codes = np.unique(groups.astype(str), return_inverse=True)
    positives = np.bincount(codes, labels, len(names))
    negatives = np.bincount(codes, 1 - labels, len(names))
    wanted = max(4, round(test_share * len(names)))
    rng = np.random.default_rng(seed)
    best, best_miss = None, np.inf
    # With thousands of groups (no slide map) every choice is balanced: a few draws do.
    for _ in range(CANDIDATES if len(names) < 1000 else 20):
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
    return np.sort(names[best])


def check_splits(table: pd.DataFrame) -> None:
    """Check that no slide and no patch stands in two folds or on both sides of the split.

    Raises
    ------
    InputError
        Naming the first slide that does, or a fold number that does not fit its split.
    """
    where = table["split"].astype(str) + "/" + table["fold"].astype(str)
    spans = where.groupby(patch_groups(table)).nunique()
    if (spans > 1).any():
        slide = spans.index[(spans > 1).to_numpy()][0]
        places = sorted(where[patch_groups(table) == slide].unique())
        raise InputError(
            f"a slide must stand in one fold of one split; got slide {slide!r} in {', '.join(places)}. "
            "Scores would be inflated: rebuild the split with --rebuild."
        )
    if table["patch_id"].duplicated().any():
        first = table.loc[table["patch_id"].duplicated(), "patch_id"].iloc[0]
        raise InputError(f"patch ids must be unique; got {first!r} twice. Remove one.")
    if ((table["split"] == "test") != (table["fold"] == -1)).any():
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

    # Where every row is its own group the two are the same, but the grouped one loops over the groups in Python.
    if len(np.unique(groups.astype(str))) == len(groups):
        return [rows for _, rows in StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels)]
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return [rows for _, rows in splitter.split(labels, labels, groups)]


def check_enough(table: pd.DataFrame, *, test_share: float, folds: int) -> None:
    """Check that a split is possible at all, before anything costly is done.

    Raises
    ------
    InputError
        One class only, or fewer slides than test set and folds need.
    """
    labels, groups = table["label"].to_numpy(), patch_groups(table)
    classes = np.unique(labels)
    if len(classes) < 2:
        raise InputError(f"labels must hold both 0 and 1; got only {classes.tolist()}. Nothing can be learned from it.")
    slides = len(np.unique(groups.astype(str)))
    needed = max(4, round(test_share * slides)) + folds
    if slides < needed:
        raise InputError(
            f"{folds} folds and {needed - folds} test slides need at least {needed} slides; got {slides}. "
            "Give more slides or fewer folds (--set split.folds=2)."
        )


def _check_folds(table: pd.DataFrame, folds: int) -> None:
    train = table[table["split"] == "train"]
    for number in range(folds):
        inside, outside = train[train["fold"] == number], train[train["fold"] != number]
        if inside.empty or outside["label"].nunique() < 2:
            raise InputError(
                f"fold {number} must hold patches and leave both labels to learn from; got {len(inside)} patches and "
                f"labels {sorted(outside['label'].unique())} outside. Use fewer folds (--set split.folds=2)."
            )
