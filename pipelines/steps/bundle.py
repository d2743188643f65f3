"""The bundle of a run: the models to use elsewhere, and a model card."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoblend.data.splits import is_known
from histoblend.data.storage.arrays import files_under
from histoblend.models.blends import ENSEMBLE_FILE
from histoblend.models.bundle import HEADS_FOLDER, INDEX, Bundle
from histoblend.models.bundled_cnn import lighten_cnn
from histoblend.models.costs import model_costs
from histoblend.models.names import CNN_CONTEXT, SINGLE_FAMILIES, split_model_name
from histoblend.models.predictor import CNN, open_predictor
from histoblend.pipelines.analysis.model_set import models_of
from histoblend.pipelines.results import patches_of, read_ladder
from histoblend.pipelines.run_files import BUNDLE, MODEL_SET, REFITTED, REFITTED_CONTEXT
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.steps.model_set import sealed
from histoblend.pipelines.tables import calibration_patches
from histoblend.reports.model_card import CARD, model_card

if TYPE_CHECKING:
    import numpy as np

    from histoblend.pipelines.run import Run

#: Patches that costs are measured on.
TIMED = 32


def build(run: Run, folder: Path) -> StepResult:
    """Copy the models, except those of single families, which are fitted for comparison only.

    With ``final.refit=all``, models fitted to all labelled patches replace those fitted to training patches.
    """
    index = models_of(run).index
    alone = [name for name in index["models"] if split_model_name(name)[0] in SINGLE_FAMILIES]
    content = {key: value for key, value in index.items() if key not in ("format", "files", "digest")}
    content["models"] = {name: entry for name, entry in index["models"].items() if name not in alone}
    content["learned"] = learned(run)
    models, folder = run.step("models").folder / MODEL_SET, folder / BUNDLE
    shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted run
    shutil.copytree(models, folder, ignore=shutil.ignore_patterns(INDEX), copy_function=_link)
    for name in alone:
        shutil.rmtree(folder / HEADS_FOLDER / name)
    if run.has("refit"):
        for name in run.step("refit").manifest["notes"]["models"]:
            _replace(run.step("refit").folder / name, folder / HEADS_FOLDER / name)
        if run.has("cnn"):
            _replace(run.step("cnn").folder / REFITTED, folder / CNN)
        if CNN_CONTEXT in content["models"]:
            _replace(run.step("cnn").folder / REFITTED_CONTEXT, folder / HEADS_FOLDER / CNN_CONTEXT)
    sample = calibration_patches(patches_of(run), run.config.seed)
    if run.has("cnn"):
        final = run.config.final
        problem = lighten_cnn(folder / CNN, sample, symmetries=final.symmetries, precision=final.precision)
        if problem:
            run.screen.warn(f"the bundle's network stays in float32 (final.precision=auto). {problem}")
    content["costs"] = _costs(folder, content, sample[:TIMED])
    (folder / CARD).write_text(card(run, content), encoding="utf-8")
    return sealed(folder, content, words=(CARD,))


def inputs(run: Run) -> dict[str, str]:
    """How the network predicts. A new value rebuilds the bundle and is not refused, because no score changes."""
    return {"cnn": json.dumps(run.config.final.model_dump(exclude={"refit"}))}


def _costs(folder: Path, content: dict[str, Any], pixels: np.ndarray) -> dict[str, float]:
    """Core-milliseconds per patch of each model and each ensemble, measured on some patches."""
    bundle = Bundle(folder, content, {name: (folder / name).read_bytes() for name in files_under(folder)})
    stored = bundle.json(ENSEMBLE_FILE) or {}
    choices = {name: (name,) for name in content["models"]}
    choices |= {name: tuple(ensemble["members"]) for name, ensemble in stored.items() if ensemble is not None}
    with open_predictor(bundle, list(content["models"])) as predictor:
        return model_costs(predictor, pixels, choices)


def learned(run: Run) -> dict[str, Any]:
    """Labelled patches that the models of the bundle are fitted to: "all" or "train", and their number."""
    table = patches_of(run).table
    refit = run.has("refit")
    rows = table if refit else table[table["split"] == "train"]
    known = bool(is_known(rows["slide"]).all())
    return {
        "patches": "all" if refit else "train",
        "count": len(rows),
        "slides": int(rows["slide"].nunique()) if known else None,
    }


def say_bundle(run: Run) -> None:
    """Print where the bundle is, and which patches its models are fitted to."""
    fitted_to = learned(run)
    fits = (
        f"its models are refitted to all {fitted_to['count']:,} labelled patches; the scores above are of models "
        "fitted to training slides"
        if fitted_to["patches"] == "all"
        else f"its models are those scored above, fitted to {fitted_to['count']:,} training patches"
    )
    run.screen.say(f"bundle: {run.folder / BUNDLE}; {fits} (final.refit={fitted_to['patches']})")


def _replace(source: Path, target: Path) -> None:
    shutil.rmtree(target)
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    """Hard-link a file, since networks take tens of megabytes. Copy it if the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def card(run: Run, content: Mapping[str, Any]) -> str:
    """Return the model card of a bundle with this index."""
    phantom = run.config.data.source == "phantom"
    return model_card(content, read_ladder(run), patches_of(run).table, phantom=phantom)
