"""Step 4: fit each head on each set of columns, out of fold, on all training slides, and without each theme."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoblend.data.patches import PatchSet
from histoblend.data.splits import patch_groups
from histoblend.features.handcrafted.families import group_columns
from histoblend.models.heads.registry import heads_on
from histoblend.pipelines.config import Config
from histoblend.pipelines.engine.fits import IN_MEMORY_ROWS, FitTask, Fitter, Fitters, local_fitters, on_demand
from histoblend.pipelines.engine.kept_fits import Fit, FitCache, fit_all
from histoblend.pipelines.results import feature_sets, feature_tables, patches_of
from histoblend.pipelines.run_files import COSTS, DROPPED, FITTED, JOINED, LEFT_OUT_OF, PREDICTIONS, SETS
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.runtime.resources import check_memory, peak_memory, stop_workers
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.tables import FeatureSets, check_finite

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def inputs(run: Run) -> dict[str, str]:
    """Sets of columns whose table is spread, and XGBoost's device: both change the last digits of fits."""
    from histoblend.models.heads.boosted import GPU_FROM, device_for

    device = device_for((GPU_FROM,))
    spread = {f"spread {name}": "yes" for name in spread_sets(run)}
    return spread if device == "cpu" else {**spread, "large tables of XGBoost": device}


def spread_sets(run: Run) -> list[str]:
    """Sets of columns whose table is spread over the memory of a cluster's workers."""
    from histoblend.pipelines.engine.cluster_fits import is_spread

    if run.cluster is None:
        return []
    sets, rows = feature_sets(run), len(patches_of(run).table)
    return [name for name in sets if is_spread(run.config.engine.heads, (rows, len(sets.columns(name))))]


def build(run: Run, folder: Path) -> StepResult:
    """Fit the heads of a run."""
    patches = patches_of(run)
    for table in feature_tables(run).values():
        check_finite(table.folder, patches.table)
    sets = feature_sets(run)
    columns = {name: sets.columns(name) for name in sets}
    return fit_heads(run.config, patches, columns, fitters_of(run, sets, folder), folder, run.screen)


def fitters_of(run: Run, sets: FeatureSets, folder: Path) -> Fitters:
    """Fitters of heads, on this machine or on the cluster."""
    from histoblend.pipelines.engine.cluster_fits import cluster_fitters

    if run.cluster is not None:
        fitters = cluster_fitters(run.cluster, run.config.engine.heads, sets, folder)
    else:
        fits = min(run.workers, run.config.split.folds + 1)
        fitters = local_fitters(sets, run.workers, folder / JOINED, lambda name, shape: check_room(name, shape, fits))
    return on_demand(fitters, sets.columns)


def fit_heads(
    config: Config,
    patches: PatchSet,
    sets: Mapping[str, list[str]],
    fitters: Fitters,
    folder: Path,
    screen: Screen,
) -> StepResult:
    """Write out-of-fold and test predictions, the refitted heads, measures of their columns, and costs.

    ``fitted.parquet`` has the columns ``model, fold, measure, feature, value``, with fold −1 for the refit.
    ``dropped.parquet`` has predictions of the held-out patches by refits without one theme or region; only the report
    reads it.

    Parameters
    ----------
    config : Config
    patches : PatchSet
    sets : mapping from str to list of str
        Names of the columns of each set.
    fitters : callable
        Opens the fitter of a set of columns.
    folder : Path
        Folder of the current step.
    screen : Screen
    """
    table = patches.table
    predictions = table[["patch_id", "slide", "split", "fold", "label"]].copy()
    predictions["prob_prevalence"] = prevalence(table)
    costs: list[dict[str, Any]] = []
    measures = []
    heads = config.heads.heads
    left_out = left_out_groups(sets[LEFT_OUT_OF]) if LEFT_OUT_OF in sets else {}
    fits = sum(len(heads_on(features, heads)) for features in sets) * (config.split.folds + 1)
    fits += len(heads) * len(left_out)
    dropped = table.loc[table["split"] == "test", ["patch_id"]]
    kept = FitCache(folder)
    with screen.progress("fits", fits, "fits") as progress:
        for features, columns in sets.items():
            with fitters(features) as fitter:
                for head in heads_on(features, heads):
                    model = f"{head}_{features}"
                    with peak_memory() as peak:
                        probability, fits_by_fold = out_of_fold(
                            head, fitter, table, seed=config.seed, progress=progress, kept=kept, model=model
                        )
                    predictions[f"prob_{model}"] = probability
                    measures += [_column_rows(model, fold, columns, fit) for fold, fit in fits_by_fold.items()]
                    costs.append(_cost(model, columns, fits_by_fold, peak()))
                if features == LEFT_OUT_OF:
                    refits = refit_without(
                        heads, fitter, left_out, table, seed=config.seed, progress=progress, kept=kept
                    )
                    dropped = dropped.assign(**{f"prob_{name}": probability for name, probability in refits.items()})
    stop_workers()
    predictions.to_parquet(folder / PREDICTIONS, index=False)
    pd.concat(measures, ignore_index=True).to_parquet(folder / FITTED, index=False)
    dropped.to_parquet(folder / DROPPED, index=False)
    (folder / SETS).write_text(json.dumps(dict(sets)), encoding="utf-8")
    pd.DataFrame(costs).to_csv(folder / COSTS, index=False)
    kept.forget()
    return StepResult(len(predictions), {"models": [cost["model"] for cost in costs]}, timed=(COSTS,))


def _cost(model: str, columns: list[str], fits: Mapping[int, Fit], peak_mb: float) -> dict[str, Any]:
    seconds = round(sum(fit.seconds for fit in fits.values()), 2)
    return {"model": model, "columns": len(columns), "seconds": seconds, "peak_mb": round(peak_mb, 1)}


def check_room(features: str, shape: tuple[int, int], fits: int) -> None:
    """Check the memory for parallel fits. Each needs its rows, or a share of them if there are many."""
    rows, columns = shape
    check_memory(
        4 * fits * min(rows, IN_MEMORY_ROWS) * columns, f"{fits} parallel fits on {columns} columns ({features})"
    )


def _column_rows(model: str, fold: int, columns: list[str], fit: Fit) -> pd.DataFrame:
    """Measures of the columns by a fitted head, one row per measure and column."""
    parts = [
        pd.DataFrame({"model": model, "fold": fold, "measure": measure, "feature": columns, "value": values})
        for measure, values in fit.measures.items()
    ]
    return pd.concat(parts, ignore_index=True).astype({"fold": np.int16, "value": np.float32})


def prevalence(table: pd.DataFrame) -> np.ndarray:
    """Share of positives among the patches that a model would be fitted to, ndarray of shape (n,).

    A patch of fold k gets the share over the other folds. A test patch gets the share over all training patches.
    """
    probability = np.empty(len(table))
    train = (table["split"] == "train").to_numpy()
    for fold in table["fold"].unique():
        inside = (table["fold"] == fold).to_numpy()
        probability[inside] = table["label"][train & ~inside].mean()
    return probability


def out_of_fold(
    head: str,
    fitter: Fitter,
    table: pd.DataFrame,
    *,
    seed: int,
    progress: Any = None,
    kept: FitCache | None = None,
    model: str = "",
) -> tuple[np.ndarray, dict[int, Fit]]:
    """Probability of each patch from a head that was not fitted on its slide.

    Parameters
    ----------
    head : str
        Name of a row of :data:`models.heads.registry.HEADS`.
    fitter : Fitter
    table : DataFrame
        ``label, slide, split, fold``, rows as in the fitter's table.
    seed : int
    progress : callable, optional
        Called with 1 after each fit.
    kept : FitCache, optional
        Where finished fits are kept and looked up.
    model : str
        Used with ``kept``: name of the fits, and of the folder for the head fitted to all training patches.

    Returns
    -------
    probability : ndarray of shape (n,), float64
        For training patches, from the fit without their fold. For test patches, from the fit on all training patches.
    fits : dict from int to Fit
        From each fold to the fit without it, and from −1 to the fit on all training patches.
    """
    labels, groups, fold = table["label"].to_numpy(), patch_groups(table), table["fold"].to_numpy()
    train = (table["split"] == "train").to_numpy()
    # The test set is fold -1: the fit without it uses all training patches.
    tasks = {}
    for number in np.unique(fold).tolist():
        name, rows = f"{model}-{'all' if number < 0 else number}", np.flatnonzero(train & (fold != number))
        tasks[number] = FitTask(name, head, rows, labels[rows], groups[rows], np.flatnonzero(fold == number), seed)
    fits = fit_all(fitter, list(tasks.values()), kept, progress, {f"{model}-all": model})
    probability = np.empty(len(table))
    for task in tasks.values():
        probability[task.out] = fits[task.name].predicted
    return probability, {number: fits[task.name] for number, task in tasks.items()}


def left_out_groups(columns: Sequence[str]) -> dict[str, list[int]]:
    """Column numbers of each theme and region, except those that contain all columns."""
    groups = {**group_columns(columns, "theme"), **group_columns(columns, "region")}
    return {name: numbers for name, numbers in groups.items() if len(numbers) < len(columns)}


def refit_without(
    heads: Sequence[str],
    fitter: Fitter,
    groups: Mapping[str, list[int]],
    table: pd.DataFrame,
    *,
    seed: int,
    progress: Any = None,
    kept: FitCache | None = None,
) -> dict[str, np.ndarray]:
    """Fit each head on all training patches without one group of columns, and predict the held-out slides.

    Parameters
    ----------
    heads : sequence of str
        Names of rows of :data:`models.heads.registry.HEADS`.
    fitter : Fitter
    groups : mapping from str to list of int
        Numbers of the columns to leave out, by name of the group.
    table : DataFrame
        ``label, slide, split``, rows as in the fitter's table.
    seed : int
        Seed of the fit with all columns, so that only the columns differ.
    progress : callable, optional
        Called with 1 after each fit.
    kept : FitCache, optional
        Where finished fits are kept and looked up.

    Returns
    -------
    dict from str to ndarray of shape (test patches,), float64
        From ``<head>_handcrafted_without_<group>`` to the probabilities of the test patches, in their order.
    """
    labels, row_groups = table["label"].to_numpy(), patch_groups(table)
    train, test = (np.flatnonzero(table["split"] == split) for split in ("train", "test"))
    all_columns = np.arange(len(fitter.columns))
    columns_of = {
        f"{head}_{LEFT_OUT_OF}_without_{name}": (head, np.setdiff1d(all_columns, left_out))
        for head in heads
        for name, left_out in groups.items()
    }
    # Tasks, and so files, have numbers, because names of groups may contain characters that file names cannot.
    tasks = {
        name: FitTask(f"without-{number}", head, train, labels[train], row_groups[train], test, seed, columns)
        for number, (name, (head, columns)) in enumerate(columns_of.items())
    }
    fits = fit_all(fitter, list(tasks.values()), kept, progress)
    return {name: fits[task.name].predicted for name, task in tasks.items()}
