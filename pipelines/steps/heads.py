"""Step 4: fit every head on every set of columns, out of fold and on all training slides, and without each theme."""

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
from histoblend.pipelines.engine.fits import FitTask, Fitter, Fitters, local_fitters
from histoblend.pipelines.engine.kept_fits import Fit, KeptFits
from histoblend.pipelines.results import feature_sets, feature_tables, patches_of
from histoblend.pipelines.run_files import COSTS, DROPPED, FITTED, LEFT_OUT_OF, PREDICTIONS, SETS
from histoblend.pipelines.runtime.artefacts import Outcome
from histoblend.pipelines.runtime.resources import check_memory, dismiss_workers, peak_memory
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.tables import FeatureSets, check_finite

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def inputs(run: Run) -> dict[str, str]:
    """Sets of columns whose table is spread: fits on these differ in their last digits from those in memory."""
    return {f"spread {name}": "yes" for name in spread_sets(run)}


def spread_sets(run: Run) -> list[str]:
    """Sets of columns whose table is spread over a cluster's memories."""
    from histoblend.pipelines.engine.cluster_fits import is_spread

    if run.cluster is None:
        return []
    sets, rows = feature_sets(run), len(patches_of(run).table)
    return [name for name in sets if is_spread(run.config.engine.heads, (rows, len(sets.columns(name))))]


def build(run: Run, folder: Path) -> Outcome:
    """Fit the heads of a run."""
    patches = patches_of(run)
    for table in feature_tables(run).values():
        check_finite(table.folder, patches.table)
    sets = feature_sets(run)
    columns = {name: sets.columns(name) for name in sets}
    return fit_heads(run.config, patches, columns, fitters_of(run, sets, folder), folder, run.screen)


def fitters_of(run: Run, sets: FeatureSets, folder: Path) -> Fitters:
    """What fits heads: this machine, or the cluster."""
    from histoblend.pipelines.engine.cluster_fits import cluster_fitters

    if run.cluster is not None:
        return cluster_fitters(run.cluster, run.config.engine.heads, sets, folder)
    fits = min(run.workers, run.config.split.folds + 1)
    return local_fitters(sets, run.workers, lambda name, values: check_room(name, values, fits))


def fit_heads(
    config: Config,
    patches: PatchSet,
    sets: Mapping[str, list[str]],
    fitters: Fitters,
    folder: Path,
    screen: Screen,
) -> Outcome:
    """Write out-of-fold and test predictions, the refitted heads, what they say of their columns, and what each cost.

    ``fitted.parquet`` holds ``model, fold, measure, feature, value``, fold −1 for the refit. ``dropped.parquet`` holds
    what refits without one theme or region say of the held-out patches; nothing but the report reads it.

    Parameters
    ----------
    config : Config
    patches : PatchSet
    sets : mapping from str to list of str
        Names of the columns of each set.
    fitters : callable
        Opens what fits heads on a set.
    folder : Path
        Of the step under way.
    screen : Screen
    """
    table = patches.table
    predictions = table[["patch_id", "slide", "split", "fold", "label"]].copy()
    predictions["prob_prevalence"] = prevalence(table)
    costs: list[dict[str, Any]] = []
    said = []
    heads = config.heads.heads
    left_out = left_out_groups(sets[LEFT_OUT_OF]) if LEFT_OUT_OF in sets else {}
    fits = sum(len(heads_on(features, heads)) for features in sets) * (config.split.folds + 1)
    fits += len(heads) * len(left_out)
    dropped = table.loc[table["split"] == "test", ["patch_id"]]
    kept = KeptFits(folder)
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
                    said += [_column_rows(model, fold, columns, each) for fold, each in fits_by_fold.items()]
                    costs.append(_cost(model, columns, fits_by_fold, peak()))
                if features == LEFT_OUT_OF:
                    refits = refit_without(
                        heads, fitter, left_out, table, seed=config.seed, progress=progress, kept=kept
                    )
                    dropped = dropped.assign(**{f"prob_{name}": found for name, found in refits.items()})
    dismiss_workers()
    predictions.to_parquet(folder / PREDICTIONS, index=False)
    pd.concat(said, ignore_index=True).to_parquet(folder / FITTED, index=False)
    dropped.to_parquet(folder / DROPPED, index=False)
    (folder / SETS).write_text(json.dumps(dict(sets)), encoding="utf-8")
    pd.DataFrame(costs).to_csv(folder / COSTS, index=False)
    kept.forget()
    return Outcome(len(predictions), {"models": [cost["model"] for cost in costs]}, timed=(COSTS,))


def _cost(model: str, columns: list[str], fits: Mapping[int, Fit], peak_mb: float) -> dict[str, Any]:
    seconds = round(sum(each.seconds for each in fits.values()), 2)
    return {"model": model, "columns": len(columns), "seconds": seconds, "peak_mb": round(peak_mb, 1)}


def check_room(features: str, values: np.ndarray, fits: int) -> None:
    """See that memory holds what fits at once take: their share of the rows, and its copy in a head's form."""
    check_memory(fits * values.nbytes, f"{fits} fits at once on {values.shape[1]} columns ({features})")


def _column_rows(model: str, fold: int, columns: list[str], fit: Fit) -> pd.DataFrame:
    """What a fitted head says of its columns, a row a measure and column."""
    parts = [
        pd.DataFrame({"model": model, "fold": fold, "measure": measure, "feature": columns, "value": values})
        for measure, values in fit.measures.items()
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
    head: str,
    fitter: Fitter,
    table: pd.DataFrame,
    *,
    seed: int,
    progress: Any = None,
    kept: KeptFits | None = None,
    model: str = "",
) -> tuple[np.ndarray, dict[int, Fit]]:
    """Probability of each patch from a head that has not seen its slide.

    Parameters
    ----------
    head : str
        Row of :data:`models.heads.registry.HEADS`.
    fitter : Fitter
    table : DataFrame
        ``label, slide, split, fold``, rows as in the fitter's table.
    seed : int
    progress : callable, optional
        Called with 1 after each fit.
    kept : KeptFits, optional
        Where fits are kept and looked for.
    model : str
        With ``kept``: name of the fits, and of the folder that gets the head fitted to all training patches.

    Returns
    -------
    probability : ndarray of shape (n,), float64
        Training patches: from the fold that holds them out. Test patches: from a fit on all training patches.
    fits : dict from int to Fit
        Fold to the fit that held it out; −1 to the one on all training patches.
    """
    labels, groups, fold = table["label"].to_numpy(), patch_groups(table), table["fold"].to_numpy()
    train = (table["split"] == "train").to_numpy()
    # -1 is the test set's fold: holding it out means learning from all training patches.
    tasks = [(int(number), np.flatnonzero(train & (fold != number))) for number in np.unique(fold)]
    names = {number: f"{model}-{'all' if number < 0 else number}" for number, _ in tasks}
    found = {} if kept is None else {number: kept.find(name) for number, name in names.items()}
    fits = {number: fit for number, fit in found.items() if fit is not None}
    missing = [task for task in tasks if task[0] not in fits]
    if progress is not None and fits:
        progress(len(fits))
    results = fitter(
        [
            FitTask(names[number], head, rows, labels[rows], groups[rows], np.flatnonzero(fold == number), seed)
            for number, rows in missing
        ]
    )
    for (number, _), (predicted, fitted, seconds) in zip(missing, results, strict=True):
        fits[number] = Fit(predicted, fitted.column_measures(), seconds)
        if kept is not None:
            kept.keep(names[number], fits[number], fitted, model if number < 0 else "")
        if progress is not None:
            progress(1)
    probability = np.empty(len(table))
    for number, fit in fits.items():
        probability[fold == number] = fit.predicted
    return probability, {number: fits[number] for number, _ in tasks}


def left_out_groups(columns: Sequence[str]) -> dict[str, list[int]]:
    """Places of the columns of each theme and each region; what would leave no column is not among them."""
    groups = {**group_columns(columns, "theme"), **group_columns(columns, "region")}
    return {name: places for name, places in groups.items() if len(places) < len(columns)}


def refit_without(
    heads: Sequence[str],
    fitter: Fitter,
    groups: Mapping[str, list[int]],
    table: pd.DataFrame,
    *,
    seed: int,
    progress: Any = None,
    kept: KeptFits | None = None,
) -> dict[str, np.ndarray]:
    """Fit each head on all training patches without one group of columns, and predict the held-out slides.

    Parameters
    ----------
    heads : sequence of str
        Rows of :data:`models.heads.registry.HEADS`.
    fitter : Fitter
    groups : mapping from str to list of int
        Columns to leave out, by name.
    table : DataFrame
        ``label, slide, split``, rows as in the fitter's table.
    seed : int
        That of the fit with all columns, so that only the columns differ.
    progress : callable, optional
        Called with 1 after each fit.
    kept : KeptFits, optional
        Where fits are kept and looked for.

    Returns
    -------
    dict from str to ndarray of shape (test patches,), float64
        ``<head>_handcrafted_without_<group>`` to the probabilities of the test patches, in their order.
    """
    labels, owners = table["label"].to_numpy(), patch_groups(table)
    train, test = (np.flatnonzero(table["split"] == split) for split in ("train", "test"))
    everything = np.arange(len(fitter.columns))
    tasks = {
        f"{head}_{LEFT_OUT_OF}_without_{name}": (head, np.setdiff1d(everything, places))
        for head in heads
        for name, places in groups.items()
    }
    # Numbered: names of groups are words for readers, and no names of files.
    files = {name: f"without-{number}" for number, name in enumerate(tasks)}
    fits = {} if kept is None else {name: kept.find(file) for name, file in files.items()}
    found = {name: fit.predicted for name, fit in fits.items() if fit is not None}
    missing = {name: task for name, task in tasks.items() if name not in found}
    if progress is not None and found:
        progress(len(found))
    results = fitter(
        [
            FitTask(files[name], head, train, labels[train], owners[train], test, seed, columns)
            for name, (head, columns) in missing.items()
        ]
    )
    for name, (predicted, _, seconds) in zip(missing, results, strict=True):
        found[name] = predicted
        if kept is not None:
            kept.keep(files[name], Fit(predicted, {}, seconds))
        if progress is not None:
            progress(1)
    return {name: found[name] for name in tasks}
