"""The ladder, and all other scores that are computed from predictions alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from histoblend.data.storage.spreadsheet import write_csv
from histoblend.models.names import CNN_CONTEXT, WITH_SLIDES, tables_of
from histoblend.pipelines.results import family_costs, feature_tables, predictions_of
from histoblend.pipelines.run_files import CALIBRATORS, COSTS, DECISIONS, ENSEMBLE, LADDER, SCORES, THRESHOLDS, TIMES
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.runtime.dataclass_files import load_dataclass, save_dataclass
from histoblend.reports.evaluation.decisions import DecisionsView, decide
from histoblend.reports.evaluation.ladder import ladder

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run

#: Columns of the ladder that differ between runs of the same code.
TIMED = ["seconds", "seconds_per_1000", "peak_mb"]


def build(run: Run, folder: Path) -> StepResult:
    """Write the ladder, and the evaluation of probabilities and thresholds."""
    predictions = predictions_of(run)
    options = {"draws": run.config.report.draws, "seed": run.config.seed}
    steps = ladder(predictions, model_names(predictions), costs=rung_costs(run), **options)
    write_csv(steps, folder / LADDER)
    steps.drop(columns=TIMED).to_parquet(folder / SCORES)
    steps[TIMED].to_parquet(folder / TIMES)
    save_dataclass(judge_decisions(run, predictions, steps), folder / DECISIONS)
    return StepResult(len(steps), timed=(LADDER, TIMES))


def model_names(predictions: pd.DataFrame) -> list[str]:
    """Models with a column ``prob_<model>`` in a table of predictions."""
    return [name.removeprefix("prob_") for name in map(str, predictions.columns) if name.startswith("prob_")]


def read_decisions(run: Run) -> DecisionsView:
    """The evaluation of a run's probabilities and thresholds."""
    return load_dataclass(run.step("ladder").folder / DECISIONS, DecisionsView)


def judge_decisions(run: Run, predictions: pd.DataFrame, steps: pd.DataFrame) -> DecisionsView:
    """Evaluate the ensemble at the thresholds that step 6 chose. Without an ensemble, evaluate the best model."""
    options: dict[str, Any] = {"draws": run.config.report.draws, "seed": run.config.seed}
    if not run.has("ensemble"):
        return decide(predictions, steps, **options)
    folder = run.step("ensemble").folder
    content = json.loads((folder / ENSEMBLE).read_text(encoding="utf-8"))
    cuts = predictions[["patch_id"]].merge(pd.read_parquet(folder / THRESHOLDS), on="patch_id", validate="one_to_one")
    chosen = cuts, content[WITH_SLIDES]["thresholds"]
    return decide(predictions, steps, chosen=chosen, calibrators=pd.read_csv(folder / CALIBRATORS), **options)


def rung_costs(run: Run) -> dict[str, tuple[float, float]]:
    """Core-seconds and peak memory (MB) of each model, including its feature tables and all its fits."""
    steps = {name: manifest for name, (_, manifest) in feature_tables(run).items()}
    seconds = {name: manifest["notes"]["core_seconds"] for name, manifest in steps.items()}
    needs: dict[str, tuple[str, ...]] = {family: (family,) for family in family_costs(run)}
    # A model of a single family needs only that family.
    seconds |= {family: cost * steps["features"]["rows"] / 1e3 for family, (_, cost) in family_costs(run).items()}
    costs = {"prevalence": (0.0, 0.0)}
    for row in pd.read_csv(run.step("heads").folder / COSTS).to_dict("records"):
        columns = row["model"].partition("_")[2]
        tables = needs.get(columns, tables_of(columns))
        peaks = [steps[name if name in steps else "features"]["peak_mb"] for name in tables]
        total = row["seconds"] + sum(seconds[name] for name in tables)
        costs[row["model"]] = (round(total, 1), max(row["peak_mb"], *peaks))
    if run.has("cnn"):
        manifest = run.step("cnn").manifest
        # Step 5 also fits the head on the network's channels.
        costs |= dict.fromkeys(("cnn", CNN_CONTEXT), (manifest["notes"]["core_seconds"], manifest["peak_mb"]))
    if run.has("ensemble"):
        costs["ensemble"] = _ensemble_cost(run, costs)
    return costs


def _ensemble_cost(run: Run, costs: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """Core-seconds and peak memory of the ensemble: each table once, all fits of its members, and its own fit."""
    manifest = run.step("ensemble").manifest
    members = manifest["notes"]["members"]
    fits = pd.read_csv(run.step("heads").folder / COSTS).set_index("model")["seconds"]
    needed = {table for member in members if member in fits.index for table in tables_of(member.partition("_")[2])}
    tables = sum(table["notes"]["core_seconds"] for name, (_, table) in feature_tables(run).items() if name in needed)
    own = sum(fits[member] for member in members if member in fits.index)
    own += costs["cnn"][0] if {"cnn", CNN_CONTEXT} & set(members) else 0.0
    peak = max(manifest["peak_mb"], *(costs[member][1] for member in members if member in costs))
    return round(tables + own + manifest["notes"]["core_seconds"], 1), peak
