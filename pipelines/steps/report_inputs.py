"""Inputs of the report, read from earlier steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from histoblend.data.audit.flags import FLAGS
from histoblend.data.storage.arrays import open_array
from histoblend.data.storage.spreadsheet import read_written
from histoblend.models.names import WITH_SLIDES, WITHOUT_SLIDES
from histoblend.pipelines.analysis.attributions import read_explorer, read_measured
from histoblend.pipelines.analysis.importances import read_importances
from histoblend.pipelines.analysis.model_set import bundle_of
from histoblend.pipelines.analysis.saliency import open_saliency
from histoblend.pipelines.analysis.shortcuts import read_shortcuts
from histoblend.pipelines.analysis.stain import read_stain
from histoblend.pipelines.config import DataConfig, shown_configuration
from histoblend.pipelines.results import (
    family_costs,
    patches_of,
    predictions_of,
    read_centres,
    read_ladder,
    read_leakage,
)
from histoblend.pipelines.run_files import (
    AUDIT,
    CHOICES,
    COMBINED,
    CURVE,
    CURVE_COSTS,
    ENSEMBLE,
    ERRORS,
    EXAMPLES,
    GAINS,
    HISTORY,
    LABEL_GAINS,
    MEMBERS,
    PICTURES,
    RECALIBRATION,
    SLIDE_CALIBRATION,
    SLIDES,
    SUMMARY,
)
from histoblend.pipelines.runtime.artefacts import FinishedStep
from histoblend.pipelines.steps.bundle import card
from histoblend.pipelines.steps.ladder import read_decisions
from histoblend.pipelines.steps.patches import balance, split_warnings
from histoblend.reports.report import ReportInputs
from histoblend.reports.sections.cautions import pretraining_warnings
from histoblend.reports.sections.cnn import CnnView
from histoblend.reports.sections.data import AuditView
from histoblend.reports.sections.data_card import KNOWN_CARDS, DataCard
from histoblend.reports.sections.ensemble import EnsembleView
from histoblend.reports.sections.generalise import LearningView

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run

#: Steps whose results the report shows.
SHOWN = (
    "prepare", "features", "embeddings", "heads", "cnn", "ensemble",
    "ladder", "importances", "attributions", "leakage", "centres", "shortcuts", "learning", "learning-network",
    "stain", "saliency",
)  # fmt: skip


def report_inputs(run: Run) -> ReportInputs:
    """Read everything that the report shows, without computing anything."""
    return run.open("report inputs", lambda: _read(run))


def _read(run: Run) -> ReportInputs:
    prepared = run.step("prepare")
    return ReportInputs(
        title=f"Histoblend: {run.config.name}",
        predictions=predictions_of(run),
        ladder=read_ladder(run),
        importances=read_measured(run),
        groups=read_importances(run)[1],
        patches=patches_of(run),
        warnings=(
            *split_warnings(patches_of(run).table, prepared.manifest["notes"]),
            *pretraining_warnings(_pretrained(run)),
        ),
        facts=facts(run),
        sentences=column_sentences(),
        families=family_costs(run),
        stain=read_stain(run),
        phantom=run.config.data.source == "phantom",
        audit=audit_view(prepared.folder),
        leakage=read_leakage(run),
        centres=read_centres(run),
        ensemble=ensemble_view(run),
        decisions=read_decisions(run),
        artefacts={step.folder.name: step.manifest["files"] for step in finished(run)},
        card=card(run, bundle_of(run).index),
        explorer=read_explorer(run),
        flags=patch_flags(prepared.folder),
        cnn=cnn_view(run),
        data_card=data_card(run.config.data, prepared.manifest["notes"]["set_aside"]),
        shortcuts=read_shortcuts(run),
        learning=learning_view(run),
        learning_omitted=not run.has("learning"),
    )


def finished(run: Run) -> list[FinishedStep]:
    """All steps of the run whose results the report shows."""
    return [run.step(name) for name in SHOWN if run.has(name)]


def audit_view(folder: Path) -> AuditView:
    """Results of the audit, from the folder of step 1."""
    summary = pd.read_csv(folder / SUMMARY)
    examples = read_written(folder / EXAMPLES, ("patch_id", "slide"))
    slides = read_written(folder / SLIDES, ("slide",))
    return AuditView(summary, examples, open_array(folder / PICTURES), slides)


def _pretrained(run: Run) -> list[str]:
    """Networks with pretrained weights that saw the patches of this run, unless these are synthetic."""
    config = run.config
    if config.data.source == "phantom":
        return []
    embedding = config.embeddings.backbone if run.has("embeddings") and config.embeddings.weights != "random" else ()
    tuned = (config.cnn.backbone,) if run.has("cnn") and config.cnn.weights != "random" else ()
    return list(dict.fromkeys([*embedding, *tuned]))


def data_card(data: DataConfig, set_aside: int) -> DataCard:
    """What is known about the data set; ``data.card`` has priority over what is known about a kind of data set."""
    known = KNOWN_CARDS.get(data.source, DataCard())
    stated = {name: text for name, text in data.card.model_dump().items() if text}
    if data.source == "folder" and data.mpp and "mpp" in data.model_fields_set:
        stated = {"um_per_pixel": f"{data.mpp:g}"} | stated
    if "um_per_pixel" in stated:
        known = replace(known, objective="")
    return replace(known, set_aside=set_aside, **stated)


def patch_flags(folder: Path) -> pd.DataFrame:
    """Audit flags of each patch, from the folder of step 1: ``patch_id`` and one bool column per flag."""
    return pd.read_parquet(folder / AUDIT, columns=["patch_id", *(flag.name for flag in FLAGS)])


def cnn_view(run: Run) -> CnnView | None:
    """Training history and saliency maps of step 5, or None if the run does not include it."""
    if not run.has("cnn"):
        return None
    history = pd.read_csv(run.step("cnn").folder / HISTORY, dtype={"run": str})
    return CnnView(history, open_saliency(run.step("saliency").folder))


def learning_view(run: Run) -> LearningView | None:
    """Learning curves and calibration on new slides; None if not part of the run, or if too few slides are known."""
    if not run.has("learning") or not (run.step("learning").folder / CURVE).is_file():
        return None
    folder = run.step("learning").folder
    curve, gains = _curves(folder)
    if run.has("learning-network") and (run.step("learning-network").folder / CURVE).is_file():
        tuned_curve, tuned_gains = _curves(run.step("learning-network").folder)
        curve, gains = (pd.concat(both, ignore_index=True) for both in ((curve, tuned_curve), (gains, tuned_gains)))
    recalibration = pd.read_csv(folder / RECALIBRATION)
    slides = pd.read_csv(folder / SLIDE_CALIBRATION, dtype={"slide": str})
    return LearningView(curve, gains, slides, recalibration)


def _curves(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Points of learning curves with their times, and gains."""
    curve, gains, costs = (pd.read_csv(folder / name) for name in (CURVE, LABEL_GAINS, CURVE_COSTS))
    return curve.assign(seconds=costs["seconds"]), gains


def ensemble_view(run: Run) -> EnsembleView | None:
    """Results of step 6, or None if the run does not include it."""
    if not run.has("ensemble"):
        return None
    folder, manifest = run.step("ensemble")
    content = json.loads((folder / ENSEMBLE).read_text(encoding="utf-8"))
    names = (MEMBERS, COMBINED, ERRORS, CHOICES, GAINS)
    members, combiners, errors, choices, gains = (pd.read_csv(folder / name) for name in names)
    return EnsembleView(
        members=members,
        combiners=combiners,
        errors=errors,
        choices=choices,
        gains=gains,
        combiner=content[WITH_SLIDES]["combiner"]["kind"],
        calibrator=content[WITH_SLIDES]["calibrator"]["kind"],
        without_slides=None if content[WITHOUT_SLIDES] is None else tuple(content[WITHOUT_SLIDES]["members"]),
        left_out=manifest["notes"]["left_out"],
    )


def facts(run: Run) -> dict[str, Any]:
    """Provenance of the results: configuration, split, and each step's manifest without its file list."""
    steps = {step.folder.name: step.manifest for step in finished(run)}
    keys = (
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
        "split": balance(patches_of(run).table).to_dict("records"),
        "patches digest": patches_of(run).digest,
        "test predictions": "from a refit of every head on all training slides",
        "steps": {name: {key: manifest[key] for key in keys} for name, manifest in steps.items()},
    }


def column_sentences() -> dict[str, str]:
    """A sentence that describes each handcrafted column, and each column relative to the slide."""
    from histoblend.features.handcrafted.families import columns
    from histoblend.features.handcrafted.slide_context import in_slide_name, slide_stain_sentences

    raw = {column.name: column.sentence for column in columns()}
    relative = {in_slide_name(name): f"{text} Relative to the patch's slide." for name, text in raw.items()}
    return raw | relative | slide_stain_sentences()
