"""Step 4: fit every head on every set of columns, out of fold and on all training slides, and without each theme."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.patches import PatchSet
from data.splits import patch_groups
from features.table import group_columns
from models.bundle import save_head
from models.heads import HEADS
from pipelines.artefacts import Outcome, StepSpec
from pipelines.config import Config
from pipelines.console import Screen
from pipelines.memory import dismiss_workers, peak_memory

PREDICTIONS = "predictions.parquet"
COSTS = "costs.csv"
SETS = "sets.json"
FITTED = "fitted.parquet"
DROPPED = "dropped.parquet"

#: The set of columns whose themes and regions are left out, one at a time.
LEFT_OUT_OF = "handcrafted"


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
    """Write out-of-fold and test predictions, the refitted heads, what they say of their columns, and what each cost.

    ``fitted.parquet`` holds ``model, fold, measure, feature, value``, fold −1 for the refit. ``dropped.parquet`` holds
    what refits without one theme or region say of the held-out patches; nothing but the report reads it.
    """
    table = patches.table
    predictions = table[["patch_id", "slide", "split", "fold", "label"]].copy()
    predictions["prob_prevalence"] = prevalence(table)
    costs: list[dict[str, Any]] = []
    columns_of, said = {}, []
    heads = config.heads.heads
    left_out = left_out_groups(sets[LEFT_OUT_OF][1]) if LEFT_OUT_OF in sets else {}
    fits = len(heads) * (len(sets) * (config.split.folds + 1) + len(left_out))
    dropped = table.loc[table["split"] == "test", ["patch_id"]]
    with screen.progress("fits", fits, "fits") as progress:
        for features, (values, columns) in sets.items():
            columns_of[features] = columns
            for head in heads:
                with peak_memory() as peak:
                    probability, fitted, seconds = out_of_fold(
                        head, values, table, seed=config.seed, workers=workers, progress=progress
                    )
                model = f"{head}_{features}"
                predictions[f"prob_{model}"] = probability
                save_head(fitted[-1], folder / model)
                said += [_column_rows(model, fold, columns, each) for fold, each in fitted.items()]
                costs.append({"model": model, "columns": len(columns), "seconds": seconds, "peak_mb": round(peak(), 1)})
            if features == LEFT_OUT_OF:
                refits = refit_without(
                    heads, values, left_out, table, seed=config.seed, workers=workers, progress=progress
                )
                dropped = dropped.assign(**{f"prob_{name}": found for name, found in refits.items()})
    dismiss_workers()
    predictions.to_parquet(folder / PREDICTIONS, index=False)
    pd.concat(said, ignore_index=True).to_parquet(folder / FITTED, index=False)
    dropped.to_parquet(folder / DROPPED, index=False)
    (folder / SETS).write_text(json.dumps(columns_of), encoding="utf-8")
    pd.DataFrame(costs).to_csv(folder / COSTS, index=False)
    return Outcome(len(predictions), {"models": [cost["model"] for cost in costs]})


def _column_rows(model: str, fold: int, columns: list[str], head: Any) -> pd.DataFrame:
    """What a fitted head says of its columns, a row a measure and column."""
    parts = [
        pd.DataFrame({"model": model, "fold": fold, "measure": measure, "feature": columns, "value": values})
        for measure, values in head.column_measures().items()
    ]
    return pd.concat(parts, ignore_index=True).astype({"fold": np.int16, "value": np.float32})


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
) -> tuple[np.ndarray, dict[int, Any], float]:
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
    fitted : dict from int to head
        Fold to the head that held it out; −1 to the one that learned from all training patches.
    seconds : float
        Core seconds of all fits together.
    """
    from joblib import Parallel, delayed

    labels, groups, fold = table["label"].to_numpy(), patch_groups(table), table["fold"].to_numpy()
    train = (table["split"] == "train").to_numpy()
    # -1 is the test set's fold: holding it out means learning from all training patches.
    tasks = [(int(number), np.flatnonzero(train & (fold != number))) for number in np.unique(fold)]
    probability = np.empty(len(table))
    total, fitted = 0.0, {}
    pool = Parallel(n_jobs=min(workers, len(tasks)), prefer="processes", return_as="generator")
    results = pool(
        delayed(_fit)(head, values, labels[rows], groups[rows], rows, np.flatnonzero(fold == number), seed)
        for number, rows in tasks
    )
    for (number, _), (predicted, model, seconds) in zip(tasks, results, strict=True):
        probability[fold == number] = predicted
        total += seconds
        fitted[number] = model
        if progress is not None:
            progress(1)
    return probability, fitted, round(total, 2)


def left_out_groups(columns: Sequence[str]) -> dict[str, list[int]]:
    """Places of the columns of each theme and each region; what would leave no column is not among them."""
    groups = {**group_columns(columns, "theme"), **group_columns(columns, "region")}
    return {name: places for name, places in groups.items() if len(places) < len(columns)}


def refit_without(
    heads: Sequence[str],
    values: np.ndarray,
    groups: Mapping[str, list[int]],
    table: pd.DataFrame,
    *,
    seed: int,
    workers: int,
    progress: Any = None,
) -> dict[str, np.ndarray]:
    """Fit each head on all training patches without one group of columns, and predict the held-out slides.

    Parameters
    ----------
    heads : sequence of str
        Rows of :data:`models.heads.HEADS`.
    values : ndarray of shape (n, columns), float32
    groups : mapping from str to list of int
        Columns to leave out, by name.
    table : DataFrame
        ``label, slide, split``, rows as in ``values``.
    seed : int
        That of the fit with all columns, so that only the columns differ.
    workers : int
        Fits that run at once. The result does not depend on it.
    progress : callable, optional
        Called with 1 after each fit.

    Returns
    -------
    dict from str to ndarray of shape (test patches,), float64
        ``<head>_handcrafted_without_<group>`` to the probabilities of the test patches, in their order.
    """
    from joblib import Parallel, delayed

    labels, owners = table["label"].to_numpy(), patch_groups(table)
    train, test = (np.flatnonzero(table["split"] == split) for split in ("train", "test"))
    everything = np.arange(values.shape[1])
    tasks = {
        f"{head}_{LEFT_OUT_OF}_without_{name}": (head, np.setdiff1d(everything, places))
        for head in heads
        for name, places in groups.items()
    }
    pool = Parallel(n_jobs=max(1, min(workers, len(tasks))), prefer="processes", return_as="generator")
    results = pool(
        delayed(_fit)(head, values, labels[train], owners[train], train, test, seed, kept)
        for head, kept in tasks.values()
    )
    found = {}
    for name, (predicted, _, _) in zip(tasks, results, strict=True):
        found[name] = predicted
        if progress is not None:
            progress(1)
    return found


def _fit(
    head: str,
    values: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
    seed: int,
    kept: np.ndarray | None = None,
) -> tuple[np.ndarray, Any, float]:
    """Fit on ``rows``, predict ``out``; ``labels`` and ``groups`` are those of ``rows``: no other label gets here.

    ``kept`` are the columns to use, all when None.
    """
    from threadpoolctl import threadpool_limits

    started = time.perf_counter()
    # One thread in every fit: matrix products then add in one order, whatever the number of cores and workers.
    inside, outside = (values[part] if kept is None else values[np.ix_(part, kept)] for part in (rows, out))
    with threadpool_limits(1):
        model = HEADS[head](seed).fit(inside, labels, groups)
        predicted = model.predict_proba(outside)[:, 1]
    return predicted, model, time.perf_counter() - started
