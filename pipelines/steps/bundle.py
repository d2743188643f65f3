"""The bundle of a run: every model that is made to be taken away, and a model card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from histoblend.models.bundle import HEADS_FOLDER, INDEX
from histoblend.models.names import ALONE, split_model_name
from histoblend.pipelines.analysis.model_set import models_of
from histoblend.pipelines.results import patches_of, read_ladder
from histoblend.pipelines.run_files import BUNDLE, MODEL_SET
from histoblend.pipelines.runtime.artefacts import Outcome
from histoblend.pipelines.steps.model_set import sealed, source
from histoblend.reports.model_card import CARD, model_card

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def build(run: Run, folder: Path) -> Outcome:
    """Copy the models but for those of single families, which are fitted to be compared only."""
    index = models_of(run).index
    alone = [name for name in index["models"] if split_model_name(name)[0] in ALONE]
    content = {key: value for key, value in index.items() if key not in ("format", "files", "digest")}
    content["models"] = {name: entry for name, entry in index["models"].items() if name not in alone}
    models, folder = run.step("models").folder / MODEL_SET, folder / BUNDLE
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
    shutil.copytree(models, folder, ignore=shutil.ignore_patterns(INDEX), copy_function=_link)
    for name in alone:
        shutil.rmtree(folder / HEADS_FOLDER / name)
    (folder / CARD).write_text(card(run), encoding="utf-8")
    return sealed(folder, content, words=(CARD,))


def _link(source: str, target: str) -> None:
    """Give a file a second name: networks take tens of megabytes. Copy it where the file system has no links."""
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
    return model_card({**source(run), "networks": networks}, read_ladder(run), patches_of(run).table, phantom=phantom)
