"""Step 4: fit every head on every set of columns, out of fold and on all training slides."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.patches import PatchSet
from data.splits import patch_groups
from models.bundle import save_head
from models.heads import HEADS
from pipelines.artefacts import Outcome, StepSpec
from pipelines.config import Config
from pipelines.console import Screen
from pipelines.memory import dismiss_workers, peak_memory

PREDICTIONS = "predictions.parquet"
COSTS = "costs.csv"
SETS = "sets.json"


def heads_spec(config: Config, inputs: Mapping[str, str]) -> StepSpec:
    """What the fitted heads depend on; ``inputs`` are the digests of the patches and of the feature tables."""
    sources = ("data", "features", "models", "pipelines/fitting.py", "pipelines/tables.py")
    return StepSpec("heads", "4-heads", sources, config.heads.model_dump(), inputs, config.seed)


def fit_heads(
    config: Config,
    patches: PatchSet,
    sets: Mapping[str, tuple[np.ndarray, list[str]]],
    folder: Path,
    *,
    workers: int,
    screen: Screen,
) -> Outcome:
    """Write out-of-fold and test predictions, the refitted heads, and what each model cost."""
    table = patches.table
    predictions = table[["patch_id", "slide", "split", "fold", "label"]].copy()
    predictions["prob_prevalence"] = prevalence(table)
    costs: list[dict[str, Any]] = []
    columns_of = {}
    with screen.progress("fits", len(sets) * len(config.heads.heads) * (config.split.folds + 1), "fits") as progress:
        for features, (values, columns) in sets.items():
            columns_of[features] = columns
            for head in config.heads.heads:
                with peak_memory() as peak:
                    probability, fitted, seconds = out_of_fold(
                        head, values, table, seed=config.seed, workers=workers, progress=progress
                    )
                model = f"{head}_{features}"
                predictions[f"prob_{model}"] = probability
                save_head(fitted, folder / model)
                costs.append({"model": model, "columns": len(columns), "seconds": seconds, "peak_mb": round(peak(), 1)})
    dismiss_workers()
    predictions.to_parquet(folder / PREDICTIONS, index=False)
    (folder / SETS).write_text(json.dumps(columns_of), encoding="utf-8")
    pd.DataFrame(costs).to_csv(folder / COSTS, index=False)
    return Outcome(len(predictions), {"models": [cost["model"] for cost in costs]})


def prevalence(table: pd.DataFrame) -> np.ndarray:
    """Share of positives among the patches that a model would have learned from, ndarray of shape (n,).

    A patch of fold k gets the share over the other folds, a test patch the share over all training patches.
    """
    probability = np.empty(len(table))
    train = (table["split"] == "train").to_numpy()
    for fold in table["fold"].unique():
        inside = (table["fold"] == fold).to_numpy()
        probability[inside] = table["label"][train & ~inside].mean()
    return probability


def out_of_fold(
    head: str, values: np.ndarray, table: pd.DataFrame, *, seed: int, workers: int, progress: Any = None
) -> tuple[np.ndarray, Any, float]:
    """Probability of each patch from a head that has not seen its slide.

    Parameters
    ----------
    head : str
        Row of :data:`models.heads.HEADS`.
    values : ndarray of shape (n, columns), float32
    table : DataFrame
        ``label, slide, split, fold``, rows as in ``values``.
    seed : int
    workers : int
        Fits that run at once. The result does not depend on it.
    progress : callable, optional
        Called with 1 after each fit.

    Returns
    -------
    probability : ndarray of shape (n,), float64
        Training patches: from the fold that holds them out. Test patches: from a fit on all training patches.
    fitted : head fitted on all training patches
    seconds : float
        Core seconds of all fits together.
    """
    from joblib import Parallel, delayed

    labels, groups, fold = table["label"].to_numpy(), patch_groups(table), table["fold"].to_numpy()
    train = (table["split"] == "train").to_numpy()
    # -1 is the test set's fold: holding it out means learning from all training patches.
    tasks = [(int(number), np.flatnonzero(train & (fold != number))) for number in np.unique(fold)]
    probability = np.empty(len(table))
    total, fitted = 0.0, None
    pool = Parallel(n_jobs=min(workers, len(tasks)), prefer="processes", return_as="generator")
    results = pool(
        delayed(_fit)(head, values, labels[rows], groups[rows], rows, np.flatnonzero(fold == number), seed)
        for number, rows in tasks
    )
    for (number, _), (predicted, model, seconds) in zip(tasks, results, strict=True):
        probability[fold == number] = predicted
        total += seconds
        fitted = model if number == -1 else fitted
        if progress is not None:
            progress(1)
    return probability, fitted, round(total, 2)


def _fit(
    head: str, values: np.ndarray, labels: np.ndarray, groups: np.ndarray, rows: np.ndarray, out: np.ndarray, seed: int
) -> tuple[np.ndarray, Any, float]:
    """Fit on ``rows``, predict ``out``; ``labels`` and ``groups`` are those of ``rows``: no other label gets here."""
    from threadpoolctl import threadpool_limits

    started = time.perf_counter()
    # One thread in every fit: matrix products then add in one order, whatever the number of cores and workers.
    with threadpool_limits(1):
        model = HEADS[head](seed).fit(values[rows], labels, groups)
        predicted = model.predict_proba(values[out])[:, 1]
    return predicted, model, time.perf_counter() - started
