"""Leave one centre out: fit heads on the training slides of the other centres, and score them on each centre."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoblend.data.splits import is_known
from histoblend.models.heads.registry import head_class, heads_on
from histoblend.models.names import CONTEXT_RUNGS, SINGLE_FAMILIES
from histoblend.pipelines.engine.fits import IN_MEMORY_ROWS, FitTask, Fitter
from histoblend.pipelines.engine.kept_fits import FitCache, fit_all
from histoblend.pipelines.results import feature_sets, patches_of, predictions_of
from histoblend.pipelines.run_files import CENTRES, PREDICTIONS
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.steps.heads import fitters_of
from histoblend.pipelines.tables import chosen_families
from histoblend.reports.evaluation.centres import score_centres

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run

#: Training rows and held-out rows of each left-out centre.
Parts = dict[str, tuple[np.ndarray, np.ndarray]]


def is_needed(run: Run) -> bool:
    """Whether a centre can be left out, and a set other than single families is configured: only such sets are fitted.

    No table of columns is read or built for the answer.
    """
    table = patches_of(run).table
    names: set[str] = {*run.config.heads.features}
    if "families" in names:
        names |= set(chosen_families(run.config))
    if not is_known(table["slide"]).any():
        names -= set(CONTEXT_RUNGS)
    return bool(names - {"families", *SINGLE_FAMILIES}) and bool(centre_parts(table))


def build(run: Run, folder: Path) -> StepResult:
    """Write ``predictions.parquet`` (``patch_id, prob_<model>``, by models of other centres) and ``centres.csv``."""
    table, sets = patches_of(run).table, feature_sets(run)
    parts, seed = centre_parts(table), run.config.seed
    heads = affordable_heads(run.config.heads.heads, len(table))
    chosen = {name: heads_on(name, heads) for name in sets if name not in SINGLE_FAMILIES}
    rows = np.sort(np.concatenate([out for _, out in parts.values()]))
    left_out = table.loc[rows, ["patch_id"]]
    fitters, kept = fitters_of(run, sets, folder), FitCache(folder)
    with run.screen.progress("centres", sum(map(len, chosen.values())) * len(parts), "fits") as progress:
        for features, names in chosen.items():
            with fitters(features) as fitter:
                for head in names:
                    model = f"{head}_{features}"
                    probability = predict_centres(head, fitter, table, parts, seed, kept, model, progress)
                    left_out[f"prob_{model}"] = probability[rows]
    left_out.to_parquet(folder / PREDICTIONS, index=False)
    predictions = predictions_of(run, "heads").loc[rows, list(left_out)]
    scores = score_centres(
        table.loc[rows, ["label", "slide", "centre"]],
        left_out.drop(columns="patch_id").rename(columns=lambda name: name.removeprefix("prob_")),
        predictions.drop(columns="patch_id").rename(columns=lambda name: name.removeprefix("prob_")),
        draws=run.config.report.draws,
        seed=seed,
    )
    scores.to_csv(folder / CENTRES, index=False)
    kept.forget()
    return StepResult(len(left_out))


def affordable_heads(configured: Sequence[str], patches: int) -> list[str]:
    """Configured heads; with many patches only those that are a sum over columns, if any. Trees take far longer."""
    linear = [name for name in configured if head_class(name).additive]
    return linear if linear and patches > IN_MEMORY_ROWS else list(configured)


def centre_parts(table: pd.DataFrame) -> Parts:
    """Rows to fit on and rows to predict for each centre that can be left out.

    A fit uses training patches of other, known centres. Groups that are also of the left-out centre, through
    duplicates, are left out too. Groups of unknown or inferred slides are no evidence of duplicates: only their patches
    of the left-out centre are left out. Test patches are not used.

    Parameters
    ----------
    table : DataFrame
        ``label, slide, group, split`` and, if known, ``centre``.

    Returns
    -------
    dict from str to (ndarray of int, ndarray of int)
        Empty if fewer than two centres have training patches. Centres without which one label is missing are left out.
    """
    if "centre" not in table:
        return {}
    train = ((table["split"] == "train") & table["centre"].notna()).to_numpy()
    known = (is_known(table["group"]) | is_known(table["slide"])).to_numpy()
    parts = {}
    for centre in sorted(table["centre"][train].unique()):
        out = train & (table["centre"] == centre).fillna(False).to_numpy(dtype=bool)
        shared = known & table["group"].isin(table["group"][out]).to_numpy()
        rows = np.flatnonzero(train & ~out & ~shared)
        if table["label"].iloc[rows].nunique() == 2:
            parts[str(centre)] = (rows, np.flatnonzero(out))
    return parts


def predict_centres(
    head: str,
    fitter: Fitter,
    table: pd.DataFrame,
    parts: Parts,
    seed: int,
    kept: FitCache,
    model: str,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Probability of each patch from a head fitted without its centre; NaN for patches of no part.

    Parameters
    ----------
    head : str
        Name of a row of :data:`models.heads.registry.HEADS`.
    fitter : Fitter
    table : DataFrame
        ``label, group``, rows as in the fitter's table.
    parts : mapping
        From :func:`centre_parts`.
    seed : int
    kept : FitCache
        Where finished fits are kept and looked up.
    model : str
        Name of the fits.
    progress : callable, optional
        Called with 1 after each fit.

    Returns
    -------
    ndarray of shape (n,), float64
    """
    labels, groups = table["label"].to_numpy(), table["group"].to_numpy(dtype=object)
    tasks = [
        FitTask(f"{model}-{number}", head, rows, labels[rows], groups[rows], out, seed)
        for number, (rows, out) in enumerate(parts.values())
    ]
    fits = fit_all(fitter, tasks, kept, progress)
    probability = np.full(len(table), np.nan)
    for task in tasks:
        probability[task.out] = fits[task.name].predicted
    return probability
