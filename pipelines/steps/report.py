"""Step 7 and the stable outputs: ladder, importances, report, predictions.parquet, ladder.csv and the bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from histoblend.data.audit.flags import FLAGS
from histoblend.data.storage.arrays import open_array
from histoblend.data.storage.atomic import copy_whole, write_whole
from histoblend.data.storage.spreadsheet import read_written
from histoblend.pipelines.analysis.attributions import attribution_importances, attributions, explorer_view
from histoblend.pipelines.analysis.importances import importances
from histoblend.pipelines.analysis.leakage import measure_leakage
from histoblend.pipelines.analysis.saliency import open_saliency
from histoblend.pipelines.analysis.stain import stain_view
from histoblend.pipelines.config import Config
from histoblend.pipelines.layout import (
    AUDIT,
    CALIBRATORS,
    CHOICES,
    COMBINED,
    COSTS,
    ENSEMBLE,
    ERRORS,
    EXAMPLES,
    GAINS,
    HISTORY,
    LADDER,
    MEMBERS,
    MODEL,
    PICTURES,
    PREDICTIONS,
    SLIDES,
    SUMMARY,
    THRESHOLDS,
)
from histoblend.pipelines.runtime.artefacts import Outcome, StepSpec
from histoblend.pipelines.steps.outputs import card, write_bundle
from histoblend.pipelines.steps.patches import balance, split_warnings
from histoblend.pipelines.steps.predictions import predict_unlabelled
from histoblend.pipelines.tables import read_values
from histoblend.reports.evaluation.ladder import ladder
from histoblend.reports.report import ReportInputs, write_report
from histoblend.reports.sections.cnn import CnnView
from histoblend.reports.sections.data import AuditView
from histoblend.reports.sections.decisions import DecisionsView, decide
from histoblend.reports.sections.ensemble import EnsembleView

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def report_spec(config: Config, inputs: Mapping[str, str]) -> StepSpec:
    """What the report depends on; ``inputs`` are the digests of the patches, heads and feature tables."""
    sources = (
        "data",
        "features",
        "models",
        "reports",
        "pipelines/steps/patches.py",
        "pipelines/tables.py",
        "pipelines/analysis/leakage.py",
        "pipelines/analysis/attributions.py",
        "pipelines/analysis/importances.py",
        "pipelines/analysis/stain.py",
        "pipelines/analysis/saliency.py",
        "pipelines/steps/outputs.py",
        "pipelines/steps/ensemble.py",
        "pipelines/steps/heads.py",
        "pipelines/steps/cnn.py",
    )
    # The page shows all of the configuration; another one rebuilds it, where a step before would refuse.
    shown = hashlib.sha256(json.dumps(shown_configuration(config), sort_keys=True).encode()).hexdigest()
    section = {**config.report.model_dump(), "name": config.name}
    return StepSpec(
        "report",
        "7-report",
        (*sources, "pipelines/steps/report.py"),
        section,
        {**inputs, "configuration": shown},
        config.seed,
    )


def shown_configuration(config: Config) -> dict[str, Any]:
    """What of the configuration a result may depend on."""
    return config.model_dump(mode="json", exclude={"engine", "track"})


def make_report(run: Run, folder: Path) -> Outcome:
    """Write ``ladder.csv``, ``report.html`` and the figures' numbers into ``folder``."""
    predictions = run.predictions()
    models = [name.removeprefix("prob_") for name in map(str, predictions.columns) if name.startswith("prob_")]
    steps = ladder(predictions, models, draws=run.config.report.draws, seed=run.config.seed, costs=rung_costs(run))
    phantom = run.config.data.source == "phantom"
    features, groups = importances(run, predictions)
    shares, explained = attributions(run, predictions)
    measured = pd.concat([features, attribution_importances(run, shares, explained)])
    inputs = ReportInputs(
        title=f"Histoblend: {run.config.name}",
        predictions=predictions,
        ladder=steps,
        importances=measured.reset_index(drop=True),
        groups=groups,
        patches=run.patches,
        warnings=tuple(split_warnings(run.patches.table, run.prepared[1]["notes"]["set_aside"])),
        facts=facts(run),
        sentences=column_sentences(),
        families=family_costs(run),
        stain=stain_view(run, predictions, steps),
        phantom=phantom,
        audit=audit_view(run.prepared[0]),
        leakage=leakage(run),
        ensemble=ensemble_view(run),
        decisions=decisions_view(run, predictions, steps),
        artefacts={folder.name: manifest["files"] for folder, manifest in finished(run)},
        card=card(run, steps),
        explorer=explorer_view(run, predictions, measured, shares, explained),
        flags=patch_flags(run.prepared[0]),
        cnn=cnn_view(run),
    )
    write_report(folder, inputs, prints=True, workers=run.workers)
    return Outcome(len(predictions))


def audit_view(folder: Path) -> AuditView:
    """What the audit left in the folder of step 1."""
    summary = pd.read_csv(folder / SUMMARY)
    examples = read_written(folder / EXAMPLES, ("patch_id", "slide"))
    slides = read_written(folder / SLIDES, ("slide",))
    return AuditView(summary, examples, open_array(folder / PICTURES), slides)


def patch_flags(folder: Path) -> pd.DataFrame:
    """The audit's flags of every patch, in the folder of step 1: ``patch_id`` and a column of bool a flag."""
    return pd.read_parquet(folder / AUDIT, columns=["patch_id", *(flag.name for flag in FLAGS)])


def cnn_view(run: Run) -> CnnView | None:
    """How step 5 went and where its network looks; None where it is no part of the run."""
    if not run.fine_tuned:
        return None
    return CnnView(pd.read_csv(run.cnn[0] / HISTORY, dtype={"run": str}), open_saliency(run.saliency_probe[0]))


def leakage(run: Run) -> pd.DataFrame | None:
    """The leakage meter; None without slides, or without handcrafted features."""
    if "features" not in run.tables:
        return None
    values, _ = read_values(run.tables["features"][0])
    config = run.config
    return measure_leakage(values, run.patches.table, draws=config.report.draws, seed=config.seed, workers=run.workers)


def ensemble_view(run: Run) -> EnsembleView | None:
    """What step 6 left; None where it is no part of the run."""
    if not run.combined:
        return None
    folder, manifest = run.ensemble
    content = json.loads((folder / ENSEMBLE).read_text(encoding="utf-8"))
    names = (MEMBERS, COMBINED, ERRORS, CHOICES, GAINS)
    members, combiners, errors, choices, gains = (pd.read_csv(folder / name) for name in names)
    return EnsembleView(
        members=members,
        combiners=combiners,
        errors=errors,
        choices=choices,
        gains=gains,
        combiner=content["default"]["combiner"]["kind"],
        calibrator=content["default"]["calibrator"]["kind"],
        without_slides=None if content["without_slides"] is None else tuple(content["without_slides"]["members"]),
        left_out=manifest["notes"]["left_out"],
    )


def decisions_view(run: Run, predictions: pd.DataFrame, steps: pd.DataFrame) -> DecisionsView:
    """What probabilities and thresholds come to: the ensemble's, which step 6 chose, or the best model's."""
    draws, seed = run.config.report.draws, run.config.seed
    if not run.combined:
        return decide(predictions, steps, draws=draws, seed=seed)
    folder = run.ensemble[0]
    content = json.loads((folder / ENSEMBLE).read_text(encoding="utf-8"))
    cuts = predictions[["patch_id"]].merge(pd.read_parquet(folder / THRESHOLDS), on="patch_id", validate="one_to_one")
    chosen = cuts, content["default"]["thresholds"]
    calibrators = pd.read_csv(folder / CALIBRATORS)
    return decide(predictions, steps, chosen=chosen, calibrators=calibrators, draws=draws, seed=seed)


def rung_costs(run: Run) -> dict[str, tuple[float, float]]:
    """Core-seconds and peak memory (MB) of each model: the feature tables that it needs, and all its fits."""
    steps = {name: manifest for name, (_, manifest) in run.tables.items()}
    seconds = {name: manifest["notes"]["core_seconds"] for name, manifest in steps.items()}
    needs: dict[str, tuple[str, ...]] = {family: (family,) for family in family_costs(run)}
    # A family alone needs that family only.
    seconds |= {family: cost * steps["features"]["rows"] / 1e3 for family, (_, cost) in family_costs(run).items()}
    needs |= {
        "handcrafted": ("features",),
        "embeddings": ("embeddings",),
        "both": ("features", "embeddings"),
        "context": ("features",),
    }
    costs = {"prevalence": (0.0, 0.0)}
    for row in pd.read_csv(run.heads[0] / COSTS).to_dict("records"):
        wanted = needs[row["model"].partition("_")[2]]
        peaks = [steps[name if name in steps else "features"]["peak_mb"] for name in wanted]
        total = row["seconds"] + sum(seconds[name] for name in wanted)
        costs[row["model"]] = (round(total, 1), max(row["peak_mb"], *peaks))
    if run.fine_tuned:
        manifest = run.cnn[1]
        costs["cnn"] = (manifest["notes"]["core_seconds"], manifest["peak_mb"])
    if run.combined:
        costs["ensemble"] = _ensemble_cost(run, costs)
    return costs


def _ensemble_cost(run: Run, costs: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """Core-seconds and peak memory of the ensemble: every table once, all members' fits, and its own."""
    manifest = run.ensemble[1]
    members = manifest["notes"]["members"]
    fits = pd.read_csv(run.heads[0] / COSTS).set_index("model")["seconds"]
    tables = sum(table["notes"]["core_seconds"] for _, table in run.tables.values())
    # What no head is, such as the network, brings its own whole cost.
    own = sum(fits[member] if member in fits.index else costs.get(member, (0.0, 0.0))[0] for member in members)
    peak = max(manifest["peak_mb"], *(costs[member][1] for member in members if member in costs))
    return round(tables + own + manifest["seconds"], 1), peak


def family_costs(run: Run) -> dict[str, tuple[int, float]]:
    """Columns of each computed family of handcrafted features, and milliseconds of one core a patch."""
    if "features" not in run.tables:
        return {}
    folder, manifest = run.tables["features"]
    columns = pd.Series(read_values(folder)[1]).str.partition("_")[0].value_counts()
    return {name: (int(columns[name]), float(cost)) for name, cost in manifest["notes"]["ms_a_patch"].items()}


def facts(run: Run) -> dict[str, Any]:
    """How the numbers came about: configuration, split, and every step's manifest without its file list."""
    steps = {folder.name: manifest for folder, manifest in finished(run)}
    wanted = (
        "rows",
        "seconds",
        "peak_mb",
        "made",
        "commit",
        "python",
        "machine",
        "libraries",
        "inputs",
        "code",
        "notes",
    )
    return {
        "configuration": shown_configuration(run.config),
        "split": balance(run.patches.table).to_dict("records"),
        "patches digest": run.patches.digest,
        "test predictions": "from a refit of every head on all training slides",
        "steps": {name: {key: manifest[key] for key in wanted} for name, manifest in steps.items()},
    }


def finished(run: Run) -> list[tuple[Path, dict[str, Any]]]:
    """Folder and manifest of every step that the report is made of."""
    return [run.prepared, *run.tables.values(), run.heads, *run.last_steps(), *run.probes()]


def column_sentences() -> dict[str, str]:
    """What each handcrafted column is, in a sentence, and the same relative to the slide."""
    from histoblend.features.handcrafted.families import columns
    from histoblend.features.handcrafted.slide_context import in_slide_name, slide_stain_sentences

    raw = {column.name: column.sentence for column in columns()}
    relative = {in_slide_name(name): f"{text} Relative to the patch's slide." for name, text in raw.items()}
    return raw | relative | slide_stain_sentences()


def publish(run: Run, folder: Path) -> None:
    """Write the stable outputs into the run folder: ``predictions.parquet``, ``ladder.csv`` and ``bundle/``.

    Patches without labels are predicted with the bundle; see :func:`pipelines.steps.predictions.predict_unlabelled`.
    """
    for name in (PREDICTIONS, LADDER):
        if name == PREDICTIONS and run.combined:
            write_whole(run.folder / name, lambda file: run.predictions().to_parquet(file, index=False))
        else:
            copy_whole((run.heads[0] if name == PREDICTIONS else folder) / name, run.folder / name)
    write_bundle(
        run,
        pd.read_csv(folder / LADDER),
        cnn=run.cnn[0] / MODEL if run.fine_tuned else None,
        ensemble=run.ensemble[0] / ENSEMBLE if run.combined else None,
    )
    predict_unlabelled(run)
