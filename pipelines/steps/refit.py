"""Heads for the bundle, refitted on all labelled patches, including test slides, after all evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoblend.data.splits import patch_groups
from histoblend.models.heads.registry import heads_on
from histoblend.models.names import SINGLE_FAMILIES
from histoblend.pipelines.engine.fits import FitTask
from histoblend.pipelines.engine.kept_fits import FitCache, fit_all
from histoblend.pipelines.results import feature_sets, patches_of
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.runtime.resources import stop_workers
from histoblend.pipelines.steps.heads import fitters_of

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def is_needed(run: Run) -> bool:
    """Whether models are refitted, and there are test slides to add."""
    return run.config.final.refit == "all" and bool((patches_of(run).table["split"] == "test").any())


def build(run: Run, folder: Path) -> StepResult:
    """Fit each head of the bundle on all labelled patches, and store it in a folder named after it."""
    table, seed = patches_of(run).table, run.config.seed
    labels, groups, rows = table["label"].to_numpy(), patch_groups(table), np.arange(len(table))
    sets = feature_sets(run)
    heads = {name: heads_on(name, run.config.heads.heads) for name in sets if name not in SINGLE_FAMILIES}
    fitters, kept = fitters_of(run, sets, folder), FitCache(folder)
    refitted: list[str] = []
    with run.screen.progress("fits on all labelled patches", sum(map(len, heads.values())), "fits") as progress:
        for name, heads_of_set in heads.items():
            models = {f"{head}_{name}": head for head in heads_of_set}
            refitted += models
            # No patches are left for an evaluation. One row is predicted only because each fit must predict.
            tasks = [FitTask(model, head, rows, labels, groups, rows[:1], seed) for model, head in models.items()]
            with fitters(name) as fitter:
                fit_all(fitter, tasks, kept, progress, {model: model for model in models})
    stop_workers()
    kept.forget()
    return StepResult(len(table), {"models": refitted})
