"""The bundle of a run: everything that predicts, put into one folder and sealed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoblend.models.bundle import HEADS_FOLDER, seal_bundle
from histoblend.models.names import ALONE, split_model_name
from histoblend.models.outliers import OUTLIERS, learn_outliers
from histoblend.models.predictor import CNN, ENSEMBLE_FILE, NETWORKS
from histoblend.pipelines.layout import BUNDLE, SETS
from histoblend.pipelines.runtime.artefacts import replace_folder
from histoblend.pipelines.runtime.provenance import code_digest
from histoblend.pipelines.tables import chosen_families, embedding_of, read_values
from histoblend.reports.model_card import CARD, model_card

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def write_bundle(run: Run, steps: pd.DataFrame, *, cnn: Path | None = None, ensemble: Path | None = None) -> None:
    """Write everything that predicts as a sealed bundle into the run folder.

    Parameters
    ----------
    run : Run
    steps : DataFrame
        The ladder.
    cnn : Path, optional
        Folder with the fine-tuned network, as :func:`models.cnn.open_cnn` opens it.
    ensemble : Path, optional
        ``ensemble.json``.
    """
    target, partial = run.folder / BUNDLE, run.folder / f"{BUNDLE}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    heads, manifest = run.heads
    models = _models(steps, manifest["notes"]["models"])
    for model in models:
        shutil.copytree(heads / model, partial / HEADS_FOLDER / model)
    if cnn is not None:
        shutil.copytree(cnn, partial / CNN)
        models[CNN] = _entry(steps, CNN, CNN)
    if ensemble is not None:
        shutil.copyfile(ensemble, partial / ENSEMBLE_FILE)
    networks = _store_networks(run, partial / NETWORKS)
    _store_outliers(run, partial / OUTLIERS)
    content = {
        **_source(run),
        "features": {"families": list(chosen_families(run.config)), "code": code_digest(("features",))},
        "networks": networks,
        "columns": json.loads((heads / SETS).read_text(encoding="utf-8")),
        "models": models,
    }
    (partial / CARD).write_text(card(run, steps), encoding="utf-8")
    seal_bundle(partial, content)
    replace_folder(partial, target)


def card(run: Run, steps: pd.DataFrame) -> str:
    """Return the model card of the run's bundle; `steps` is the ladder."""
    options = run.config.embeddings
    backbones = options.backbone if "embeddings" in run.tables else ()
    networks = [{"recipe": {"backbone": name}, "sizes": list(options.size)} for name in backbones]
    content = {**_source(run), "networks": networks}
    return model_card(content, steps, run.patches.table, phantom=run.config.data.source == "phantom")


def _source(run: Run) -> dict[str, Any]:
    """Where a bundle comes from, and what its patches and probabilities are like."""
    manifest = run.heads[1]
    return {
        "run": run.config.name,
        "made": manifest["made"],
        "commit": manifest["commit"],
        "libraries": manifest["libraries"],
        "patch": _patch(run),
        "prevalence": float(_training(run)["label"].mean()),
    }


def _training(run: Run) -> pd.DataFrame:
    return run.patches.table[run.patches.table["split"] == "train"]


def _models(steps: pd.DataFrame, names: list[str]) -> dict[str, dict[str, Any]]:
    """Every head but those of a family alone, which are fitted to be compared, not to be taken away."""
    return {
        name: _entry(steps, name, name.partition("_")[2]) for name in names if split_model_name(name)[0] not in ALONE
    }


def _entry(steps: pd.DataFrame, model: str, columns: str) -> dict[str, Any]:
    row = steps[(steps["model"] == model) & (steps["split"] == "oof")].iloc[0]
    return {"columns": columns, "auc": float(row["auc"]), "thresholds": {"youden": float(row["threshold"])}}


def _patch(run: Run) -> dict[str, Any]:
    """What a patch must be like, and how an image file becomes one."""
    data = run.config.data
    return {
        "size": data.size,
        # What whole slides are brought to before they are cut into patches.
        "mpp": data.mpp,
        "source": data.source,
        "resize": data.resize if data.source == "folder" else "refuse",
        "pixels": "8-bit RGB, 0 to 255; the label speaks of the centre 32 × 32",
    }


def _store_networks(run: Run, folder: Path) -> list[dict[str, Any]]:
    """Write the embedding networks of the run's own engine; none where no set of columns holds embeddings."""
    if "embeddings" not in run.tables:
        return []
    from histoblend.features.networks.stored import store_networks

    return store_networks(embedding_of(run), run.config.data.size, folder)


def _store_outliers(run: Run, folder: Path) -> None:
    """Write what tells a patch unlike all training patches: by handcrafted columns, which do so far better."""
    space = "handcrafted" if "handcrafted" in run.config.heads.features else ""
    space = space or ("embeddings" if "embeddings" in run.config.heads.features else "")
    if not space:
        return
    values, _ = read_values(run.tables["features" if space == "handcrafted" else "embeddings"][0])
    train = np.flatnonzero(run.patches.table["split"] == "train")
    folds = run.patches.table["fold"].to_numpy()[train]
    learn_outliers(np.asarray(values[train]), folds, space).save(folder)
