"""The leakage meter: how much higher the same model scores on the same patches if folds ignore slides."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoblend.data.splits import BY_PATCH, base_groups, find_folds, is_known, leave_both
from histoblend.data.storage.arrays import Rows
from histoblend.models.heads.logistic import LogisticHead
from histoblend.models.metrics import bootstrap, measure
from histoblend.models.resampling import percentile_interval, slide_groups
from histoblend.pipelines.results import patches_of
from histoblend.pipelines.run_files import LEAKAGE
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.tables import MAX_PATCHES, read_values

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run

#: Fixed strength of the logistic regression. Tuning it for each kind of folds would confound the comparison.
STRENGTH = 0.01


def build(run: Run, folder: Path) -> StepResult:
    """Write ``leakage.csv`` if slides are known."""
    values, _ = read_values(run.step("features").folder)
    options = {"draws": run.config.report.draws, "seed": run.config.seed, "workers": run.workers}
    table = measure_leakage(values, patches_of(run).table, **options)
    if table is None:
        return StepResult(0)
    table.to_csv(folder / LEAKAGE, index=False)
    return StepResult(len(table))


def measure_leakage(
    values: Rows, table: pd.DataFrame, *, draws: int, seed: int, workers: int = 1
) -> pd.DataFrame | None:
    """Compare folds by slide with folds by patch, using out-of-fold predictions of a logistic regression.

    Parameters
    ----------
    values : Rows of shape (n, columns), float32
        Handcrafted features.
    table : DataFrame
        ``label, slide, group, split, fold``, rows as in ``values``. Test patches are ignored.
    draws : int
        Number of resamplings of slides for the intervals. Both AUCs and their difference share them.
    seed : int
    workers : int
        Number of parallel fits. The result does not depend on it.

    Returns
    -------
    DataFrame or None
        ``folds ("grouped", "random", "inflation"), auc, low, high, patches, slides, inferred``: the AUC with folds by
        slide, the AUC with folds by patch, and the difference. None if no slide is known or inferred, or if a label
        occurs on one slide only.
    """
    train = np.flatnonzero((table["split"] == "train") & table["slide"].notna())
    if table["slide"].nunique() < 2 or not len(train):
        return None
    if len(train) > MAX_PATCHES:
        train = np.sort(np.random.default_rng(seed).choice(train, MAX_PATCHES, replace=False))
    part, X = table.iloc[train].reset_index(drop=True), np.asarray(values[train])
    labels, folds = part["label"].to_numpy(), int(table["fold"].max()) + 1
    divisions = (_folds_by_slide(part, folds, seed), find_folds(labels, np.arange(len(part)), folds, seed))
    if not all(divisions):
        return None
    scores = np.stack([_out_of_fold(X, labels, parts, seed, workers) for parts in divisions], axis=1)
    units = slide_groups(part["slide"])
    auc = measure(labels, scores, 0.5)[:, 0]
    drawn = bootstrap(labels, scores, 0.5, units, draws=draws, seed=seed).values[:, :, 0]
    low, high = percentile_interval(np.column_stack([drawn, drawn[:, 1] - drawn[:, 0]]))
    return pd.DataFrame(
        {
            "folds": ["grouped", "random", "inflation"],
            "auc": [auc[0], auc[1], auc[1] - auc[0]],
            "low": low,
            "high": high,
            "patches": len(part),
            "slides": part["slide"].nunique(),
            "inferred": not bool(is_known(part["slide"]).any()),
        }
    )


def _folds_by_slide(part: pd.DataFrame, folds: int, seed: int) -> list[np.ndarray]:
    """Rows of each fold of the split, or of new folds by slide; empty if no valid folds exist.

    New folds are made if the split ignored slides, or if the drawn patches do not leave both labels to every fit.
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
    """Out-of-fold probability of each patch, ndarray of shape (n,)."""
    from joblib import Parallel, delayed
    from threadpoolctl import threadpool_limits

    # One thread per fit: results are then reproducible, and parallel fits do not compete for cores.
    with threadpool_limits(1):
        predicted = Parallel(n_jobs=workers, prefer="threads")(
            delayed(_fit_and_predict)(X, labels, rows, seed) for rows in parts
        )
    probability = np.empty(len(labels))
    for rows, values in zip(parts, predicted, strict=True):
        probability[rows] = values
    return probability


def _fit_and_predict(X: np.ndarray, labels: np.ndarray, held_out: np.ndarray, seed: int) -> np.ndarray:
    train = np.setdiff1d(np.arange(len(labels)), held_out, assume_unique=True)
    head = LogisticHead(strengths=(STRENGTH,), seed=seed).fit(X[train], labels[train])
    return head.predict_proba(X[held_out])[:, 1]
