"""The bundle of a run: the models to use elsewhere, and a model card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoblend.data.splits import is_known
from histoblend.models.bundle import HEADS_FOLDER, INDEX
from histoblend.models.names import CNN_CONTEXT, SINGLE_FAMILIES, split_model_name
from histoblend.models.predictor import CNN
from histoblend.pipelines.analysis.model_set import models_of
from histoblend.pipelines.results import patches_of, read_ladder
from histoblend.pipelines.run_files import BUNDLE, MODEL_SET, REFITTED, REFITTED_CONTEXT
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.steps.model_set import sealed, source
from histoblend.reports.model_card import CARD, model_card

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


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
    (folder / CARD).write_text(card(run), encoding="utf-8")
    return sealed(folder, content, words=(CARD,))


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


def card(run: Run) -> str:
    """Return the model card of the run's bundle."""
    options = run.config.embeddings
    backbones = options.backbone if run.has("embeddings") else ()
    networks = [{"recipe": {"backbone": name}, "sizes": list(options.size)} for name in backbones]
    phantom = run.config.data.source == "phantom"
    content = {**source(run), "networks": networks, "learned": learned(run)}
    return model_card(content, read_ladder(run), patches_of(run).table, phantom=phantom)
