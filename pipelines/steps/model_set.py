"""All models fitted on the training slides, in the format of a bundle. Analyses predict with them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoblend.models.blends import ENSEMBLE_FILE
from histoblend.models.bundle import HEADS_FOLDER, INDEX, seal_bundle
from histoblend.models.calibration import operating_points
from histoblend.models.names import CNN_CONTEXT
from histoblend.models.outliers import OUTLIERS, learn_outliers
from histoblend.models.predictor import CNN, NETWORKS
from histoblend.pipelines.results import (
    embedding_of,
    embedding_tables,
    feature_sets,
    patches_of,
    predictions_of,
    read_ladder,
)
from histoblend.pipelines.run_files import CONTEXT, ENSEMBLE, ENSEMBLE_SCORES, MODEL, MODEL_SET, SETS
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.runtime.provenance import code_digest
from histoblend.pipelines.steps.cnn_context import columns_of
from histoblend.pipelines.tables import chosen_families

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def inputs(run: Run) -> dict[str, str]:
    """Description of patches and run that the models store. A new value rebuilds the models but not the patches."""
    return {"patch": json.dumps(_patch(run), sort_keys=True), "run": run.config.name}


def build(run: Run, folder: Path) -> StepResult:
    """Write every fitted model, including the heads of single families, and the outlier detector."""
    steps, predictions, heads, folder = read_ladder(run), predictions_of(run), run.step("heads"), folder / MODEL_SET
    folder.mkdir(exist_ok=True)
    entry = partial(_entry, steps, predictions)
    models = {name: entry(name, name.partition("_")[2]) for name in heads.manifest["notes"]["models"]}
    for model in models:
        shutil.copytree(heads.folder / model, folder / HEADS_FOLDER / model, dirs_exist_ok=True)
    if run.has("cnn"):
        shutil.copytree(run.step("cnn").folder / MODEL, folder / CNN, dirs_exist_ok=True)
        models[CNN] = entry(CNN, CNN)
    columns = json.loads((heads.folder / SETS).read_text(encoding="utf-8"))
    if run.has("cnn") and (context := run.step("cnn").folder / CONTEXT).is_dir():
        shutil.copytree(context, folder / HEADS_FOLDER / CNN_CONTEXT, dirs_exist_ok=True)
        models[CNN_CONTEXT] = entry(CNN_CONTEXT, CNN_CONTEXT.partition("_")[2])
        columns[CNN_CONTEXT.partition("_")[2]] = columns_of(context)
    ensembles = {}
    if run.has("ensemble"):
        shutil.copyfile(run.step("ensemble").folder / ENSEMBLE, folder / ENSEMBLE_FILE)
        rows = pd.read_csv(run.step("ensemble").folder / ENSEMBLE_SCORES).to_dict("records")
        ensembles = {row["ensemble"]: _score(row) for row in rows}
    _store_outliers(run, folder / OUTLIERS)
    content = {
        **source(run),
        "features": {"families": list(chosen_families(run.config)), "code": code_digest(("features",))},
        "networks": store_networks(run, folder / NETWORKS),
        "columns": columns,
        "models": models,
        "ensembles": ensembles,
    }
    return sealed(folder, content)


def sealed(folder: Path, content: dict[str, Any], words: tuple[str, ...] = ()) -> StepResult:
    """Seal a bundle. Later steps depend on its models, but not on times, costs, commit or the text files ``words``."""
    seal_bundle(folder, content)
    lasting = {key: value for key, value in content.items() if key not in ("made", "commit", "costs")}
    digest = hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()
    timed = tuple(f"{folder.name}/{name}" for name in (INDEX, *words))
    return StepResult(len(content["models"]), timed=timed, stands_for={"content": digest})


def source(run: Run) -> dict[str, Any]:
    """Origin of the models, and description of their patches and probabilities."""
    manifest, table = run.step("heads").manifest, patches_of(run).table
    return {
        "run": run.config.name,
        "made": manifest["made"],
        "commit": manifest["commit"],
        "libraries": manifest["libraries"],
        "patch": _patch(run),
        "prevalence": float(table.loc[table["split"] == "train", "label"].mean()),
    }


def _entry(steps: pd.DataFrame, predictions: pd.DataFrame, model: str, columns: str) -> dict[str, Any]:
    row = steps[(steps["model"] == model) & (steps["split"] == "oof")].iloc[0]
    probability = f"prob_{model}"
    train = predictions[(predictions["split"] == "train") & predictions[probability].notna()]
    thresholds = operating_points(train["label"].to_numpy(), train[probability].to_numpy())
    return {"columns": columns, **_score(row.to_dict()), "thresholds": thresholds}


def _score(row: Mapping[Hashable, Any]) -> dict[str, float | None]:
    """Out-of-fold AUC and its interval; None instead of ends that few slides do not determine."""
    return {name: None if pd.isna(row[name]) else float(row[name]) for name in ("auc", "auc_low", "auc_high")}


def _patch(run: Run) -> dict[str, Any]:
    """Requirements for a patch, and how an image file is converted to a patch."""
    data = run.config.data
    return {
        "size": data.size,
        # Resolution to which whole slides are resampled before they are cut into patches.
        "mpp": data.mpp,
        "source": data.source,
        "resize": data.resize if data.source == "folder" else "refuse",
        "pixels": "8-bit RGB, 0 to 255; the label describes the centre 32 × 32",
    }


def store_networks(run: Run, folder: Path) -> list[dict[str, Any]]:
    """Write the embedding networks for the run's engine, and return their entries; none without embeddings."""
    if not embedding_tables(run):
        return []
    from histoblend.features.networks import stored

    return stored.store_networks(embedding_of(run), run.config.data.size, folder)


def _store_outliers(run: Run, folder: Path) -> None:
    """Write the detector of patches unlike all training patches. Handcrafted columns detect these far better."""
    space = "handcrafted" if "handcrafted" in run.config.heads.features else ""
    space = space or ("embeddings" if "embeddings" in run.config.heads.features else "")
    if not space:
        return
    train = np.flatnonzero(patches_of(run).table["split"] == "train")
    folds = patches_of(run).table["fold"].to_numpy()[train]
    learn_outliers(feature_sets(run).stored(space, train), folds, space).save(folder)
