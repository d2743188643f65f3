"""The leakage meter: what the same model would score on the same patches if slides were ignored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoblend.data.splits import BY_PATCH, base_groups, find_folds, is_known, leave_both
from histoblend.models.heads.logistic import LogisticHead
from histoblend.models.metrics import bootstrap, measure
from histoblend.models.resampling import percentile_interval, slide_groups
from histoblend.pipelines.results import patches_of
from histoblend.pipelines.run_files import LEAKAGE
from histoblend.pipelines.runtime.artefacts import Outcome
from histoblend.pipelines.tables import read_values

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run

#: Penalty of the logistic regression, the same on both sides: choosing it would compare two ways of choosing as well.
STRENGTH = 0.01

#: Training patches that it is measured on at most, drawn at random: ten fits of these take about ten seconds.
MOST_PATCHES = 6000


def build(run: Run, folder: Path) -> Outcome:
    """Write ``leakage.csv``, where a slide is known."""
    values, _ = read_values(run.step("features").folder)
    options = {"draws": run.config.report.draws, "seed": run.config.seed, "workers": run.workers}
    found = measure_leakage(values, patches_of(run).table, **options)
    if found is None:
        return Outcome(0)
    found.to_csv(folder / LEAKAGE, index=False)
    return Outcome(len(found))


def measure_leakage(
    values: np.ndarray, table: pd.DataFrame, *, draws: int, seed: int, workers: int = 1
) -> pd.DataFrame | None:
    """Compare folds that keep slides together with folds that do not, for logistic regression out of fold.

    Parameters
    ----------
    values : ndarray of shape (n, columns), float32
        Handcrafted features.
    table : DataFrame
        ``label, slide, group, split, fold``, rows as in ``values``. Test patches are left out.
    draws : int
        Resamplings of slides behind the intervals, the same for both and for their difference.
    seed : int
    workers : int
        Fits that run at once. The result does not depend on it.

    Returns
    -------
    DataFrame or None
        ``folds ("grouped", "random", "inflation"), auc, low, high, patches, slides, inferred``: what folds by slide and
        folds by patch score, and the difference. None where no slide is known or inferred, or a label is on one only.
    """
    train = np.flatnonzero((table["split"] == "train") & table["slide"].notna())
    if table["slide"].nunique() < 2 or not len(train):
        return None
    if len(train) > MOST_PATCHES:
        train = np.sort(np.random.default_rng(seed).choice(train, MOST_PATCHES, replace=False))
    part, X = table.iloc[train].reset_index(drop=True), np.asarray(values[train])
    labels, folds = part["label"].to_numpy(), int(table["fold"].max()) + 1
    both = (_by_slide(part, folds, seed), find_folds(labels, np.arange(len(part)), folds, seed))
    if not all(both):
        return None
    scores = np.stack([_out_of_fold(X, labels, rows, seed, workers) for rows in both], axis=1)
    units = slide_groups(part["slide"])
    whole = measure(labels, scores, 0.5)[:, 0]
    aucs = bootstrap(labels, scores, 0.5, units, draws=draws, seed=seed).values[:, :, 0]
    low, high = percentile_interval(np.column_stack([aucs, aucs[:, 1] - aucs[:, 0]]))
    return pd.DataFrame(
        {
            "folds": ["grouped", "random", "inflation"],
            "auc": [whole[0], whole[1], whole[1] - whole[0]],
            "low": low,
            "high": high,
            "patches": len(part),
            "slides": part["slide"].nunique(),
            "inferred": not bool(is_known(part["slide"]).any()),
        }
    )


def _by_slide(part: pd.DataFrame, folds: int, seed: int) -> list[np.ndarray]:
    """Rows of each fold of the split, or of new folds by slide where the split ignored slides; none where none will do.

    Patches drawn from the split's folds may lack a label that those hold.
    """
    labels, groups = part["label"].to_numpy(), part["group"].to_numpy(dtype=object)
    if part["group"].astype(str).str.startswith(BY_PATCH).any():
        groups = base_groups(part)
    else:
        parts = [np.flatnonzero(part["fold"] == number) for number in range(folds)]
        if leave_both(labels, parts):
            return parts
    return find_folds(labels, groups, min(folds, len(set(groups))), seed)


def _out_of_fold(X: np.ndarray, labels: np.ndarray, parts: list[np.ndarray], seed: int, workers: int) -> np.ndarray:
    """Probability of each patch from a fit on the other folds, ndarray of shape (n,)."""
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    # One thread a fit: matrix products then add in one order, and fits do not fight for cores.
    with threadpool_limits(1):
        predicted = Parallel(n_jobs=workers, prefer="threads")(delayed(_fit)(X, labels, rows, seed) for rows in parts)
    probability = np.empty(len(labels))
    for rows, values in zip(parts, predicted, strict=True):
        probability[rows] = values
    return probability


def _fit(X: np.ndarray, labels: np.ndarray, out: np.ndarray, seed: int) -> np.ndarray:
    inside = np.setdiff1d(np.arange(len(labels)), out, assume_unique=True)
    head = LogisticHead(strengths=(STRENGTH,), seed=seed).fit(X[inside], labels[inside])
    return head.predict_proba(X[out])[:, 1]
