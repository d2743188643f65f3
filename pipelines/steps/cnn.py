"""Step 5: fine-tune a network, out of fold and on all training slides."""

from __future__ import annotations

import io
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.patches import PatchSet
from histoblend.data.storage.parts import Parts
from histoblend.models.names import CNN_CONTEXT
from histoblend.pipelines.config import Config
from histoblend.pipelines.results import patches_of
from histoblend.pipelines.run_files import CONTEXT, HISTORY, MODEL, PREDICTIONS, REFITTED, REFITTED_CONTEXT
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.steps.cnn_training import NetworkTraining, cnn_engine, cnn_settings, expit

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run

WORK = "work"


def inputs(run: Run) -> dict[str, str]:
    """Digest of the weights that training starts from, and the engine and the backend on this machine."""
    from histoblend.features.networks.backbones import find_backbone, weights_digest

    options = run.config.cnn
    weights = weights_digest(find_backbone(options.backbone), options.weights)
    engine = cnn_engine(run.config)
    # Keras trains the network, also where ONNX Runtime computes the frozen layers.
    return {"weights": weights, "engine": str(engine), "backend": engine.backend}


def build(run: Run, folder: Path) -> StepResult:
    """Fine-tune the network of a run."""
    return train_cnn(run.config, patches_of(run), folder, workers=run.workers, screen=run.screen)


def check_cnn(config: Config) -> None:
    """Check the network's options before hours of work.

    Raises
    ------
    InputError
        An option is wrong, a size is too small for the network, or a weights file is not available.
    """
    from histoblend.features.networks.backbones import check_shape

    settings = cnn_settings(config)
    settings.recipe.check()
    check_shape(settings.backbone, settings.shape(config.data.size))
    if config.cnn.folds > config.split.folds:
        raise InputError(
            f"cnn.folds must be at most split.folds, {config.split.folds}; got {config.cnn.folds}. 0 means all folds."
        )
    if config.final.precision == "int8" and cnn_engine(config).name != "onnx":
        raise InputError(
            'final.precision "int8" needs ONNX Runtime for the fine-tuned network, but Keras runs it here. '
            'Set final.precision=float32, or leave cnn.precision at "auto" on a machine without a GPU.'
        )
    settings.recipe.check_weights()


def train_cnn(config: Config, patches: PatchSet, folder: Path, *, workers: int, screen: Screen) -> StepResult:
    """Write out-of-fold and test predictions, the network trained on all training slides, and training histories."""
    started = time.process_time()
    table = patches.table
    rows, test_rows = _chosen_rows(config, table)
    training = NetworkTraining(config, patches, Parts(folder / WORK), workers, screen, rows=rows, test_rows=test_rows)
    screen.say(f"  {training.describe()}")
    probability, in_context = np.full(len(table), np.nan), np.full(len(table), np.nan)
    histories = []
    folds = sorted(set(table["fold"]) - {-1})[: config.cnn.folds or None]
    data = training.data()
    fold_of = table["fold"].to_numpy()[rows]
    trained = [int((fold_of != fold).sum()) for fold in folds] + [len(rows)]
    trained += [len(training.rows)] if training.refits else []
    with screen.progress("fine-tuning", training.planned(sum(trained)), "images") as advance:
        for fold in folds:
            held_out, others = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
            result = training.out_of_fold(data, f"fold-{fold}", f"fold {fold + 1}", others, held_out, advance)
            probability[rows[held_out]] = expit(result["log_odds"])
            in_context[rows[held_out]] = result["in_context"]
            histories.append(pd.read_csv(io.StringIO(str(result["history"]))).assign(run=str(fold)))
        best = [int(history.loc[history["kept"], "epoch"].max()) for history in histories]
        # The final training has no validation slides, so it stops at the median over the folds, rounded up.
        epochs = int(np.ceil(np.median(best)))
        targets = folder / MODEL, folder / CONTEXT
        history, compute, head = training.final(data, epochs, len(rows), "all training slides", *targets, advance)
        if training.refits:
            targets = folder / REFITTED, folder / REFITTED_CONTEXT
            training.final(data, epochs, len(training.rows), "all labelled slides", *targets, advance)
    histories.append(history.assign(run="final"))
    test = np.flatnonzero((table["split"] == "test").to_numpy())
    if len(test):
        probability[test], in_context[test] = training.predict(compute, head, test)
    predictions = pd.DataFrame({"patch_id": table["patch_id"].to_numpy(), "prob_cnn": probability})
    if training.context.possible:
        predictions[f"prob_{CNN_CONTEXT}"] = in_context
    predictions.to_parquet(folder / PREDICTIONS, index=False)
    frame = pd.concat(histories, ignore_index=True)
    frame[["run", *frame.columns.drop("run")]].to_csv(folder / HISTORY, index=False)
    training.parts.forget()
    notes = {
        "folds": len(folds),
        "patches": len(rows),
        "settings": asdict(training.settings),
        "engine": asdict(training.engine),
        "core_seconds": round(time.process_time() - started, 1),
    }
    return StepResult(len(table), notes, timed=(HISTORY,))


def _chosen_rows(config: Config, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Training rows, and the test rows that only the network trained after all evaluations uses."""
    train, test = (np.flatnonzero(table["split"] == split) for split in ("train", "test"))
    rows = _sample_rows(train, config.cnn.most_patches(len(train), gpu=cnn_engine(config).gpu), config.seed)
    if config.final.refit != "all":
        return rows, test[:0]
    # In the same proportion.
    return rows, _sample_rows(test, -(-len(test) * len(rows) // max(len(train), 1)), config.seed)


def _sample_rows(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """A random sample of at most ``most`` rows, in their order."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
