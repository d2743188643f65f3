"""Step 5: fine-tune a network, out of fold and on all training slides."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.patches import PatchSet
from histoblend.data.splits import patch_groups
from histoblend.data.storage.arrays import StoredRows
from histoblend.data.storage.parts import Parts
from histoblend.models.names import CNN_CONTEXT
from histoblend.pipelines.config import Config
from histoblend.pipelines.results import patches_of
from histoblend.pipelines.run_files import CONTEXT, HISTORY, MODEL, PREDICTIONS, REFITTED, REFITTED_CONTEXT
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.steps.cnn_context import ChannelContext, store

if TYPE_CHECKING:
    from histoblend.features.networks.engines import Engine
    from histoblend.models.cnn import CnnCompute, CnnSettings, PatchTransform, TrainablePart
    from histoblend.models.finetune import FineTuned, TrainingData
    from histoblend.models.heads.head import Head
    from histoblend.pipelines.run import Run

WORK = "work"

#: Patches per shard of feature maps.
SHARD = 128
#: Share of the free disk that feature maps may take.
DISK_SHARE = 0.5


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


def cnn_engine(config: Config) -> Engine:
    """The engine for the frozen layers of the network. It also tells whether there is a GPU."""
    from histoblend.features.networks.engines import choose_engine

    engine = choose_engine("auto", "auto" if config.cnn.precision == "auto" else "float32")
    if config.cnn.precision != "auto" and config.cnn.precision != engine.precision:
        return replace(engine, name="keras", precision=config.cnn.precision)
    return engine


def cnn_settings(config: Config) -> CnnSettings:
    """The configured settings, with each "auto" resolved for this machine."""
    from histoblend.models.cnn import CnnSettings

    engine = cnn_engine(config)
    options = config.cnn.model_dump(exclude={"enabled", "folds", "patches", "cache_gb"})
    trained = options.pop("trained")
    if trained == "auto":
        trained = "all" if engine.gpu else "top"
    return CnnSettings(**{**options, "trained": trained, "precision": engine.precision, "seed": config.seed})


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
    training = _Training(config, patches, Parts(folder / WORK), workers, screen)
    screen.say(f"  {training.describe()}")
    table, rows = patches.table, training.rows[: training.train_count]
    probability, in_context = np.full(len(table), np.nan), np.full(len(table), np.nan)
    histories = []
    folds = sorted(set(table["fold"]) - {-1})[: config.cnn.folds or None]
    data = training.data()
    total = sum(training.planned(fold) for fold in [*folds, -1]) + (training.planned() if training.refits else 0)
    with screen.progress("fine-tuning", total, "images") as advance:
        for fold in folds:
            held_out = np.flatnonzero(table["fold"].to_numpy()[rows] == fold)
            log_odds, in_context[rows[held_out]], history = training.out_of_fold(data, fold, held_out, advance)
            probability[rows[held_out]] = _expit(log_odds)
            histories.append(history.assign(run=str(fold)))
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


class _Training:
    """All trainings of a run. They share the patches, the frozen layers of the network, and feature maps on disk."""

    def __init__(self, config: Config, patches: PatchSet, parts: Parts, workers: int, screen: Screen) -> None:
        from histoblend.models.cnn import TrainablePart, lower_network

        self.config, self.patches, self.parts, self.screen = config, patches, parts, screen
        self.folder = parts.folder
        self.settings, self.engine = cnn_settings(config), cnn_engine(config)
        self.table = patches.table
        train, test = (np.flatnonzero(self.table["split"] == split) for split in ("train", "test"))
        most = config.cnn.most_patches(len(train), gpu=self.engine.gpu)
        train_rows = _sample_rows(train, most, config.seed)
        self.train_count = len(train_rows)
        self.rows = train_rows
        if config.final.refit == "all":
            # Test rows follow the training rows, in the same proportion. Only the network that is trained after all
            # evaluations uses them.
            test_rows = _sample_rows(test, -(-len(test) * len(train_rows) // max(len(train), 1)), config.seed)
            self.rows = np.concatenate([train_rows, test_rows])
        self.shape = self.settings.shape(config.data.size)
        self.trainable: TrainablePart = TrainablePart(self.settings, self.shape, self.settings.precision)
        self.network = lower_network(self.trainable, self.engine, self.folder)
        self.context = ChannelContext(self.table, patch_groups(self.table), config.seed)
        self.workers = self.engine.feeders(workers)
        self.turns = 8 if self.settings.d4 else 1

    @property
    def refits(self) -> bool:
        """Whether another network is trained on all labelled slides, including test slides."""
        return len(self.rows) > self.train_count

    @property
    def width(self) -> int:
        """Number of input values of the trainable part per patch."""
        return int(np.prod(self.trainable.input_shape))

    def describe(self) -> str:
        """The training in one line: network, patches, epochs and trained layers."""
        from histoblend.features.networks.backbones import weights_note

        settings = self.settings
        layers = "all layers" if self.trainable.lower is None else "the layers after its last inner feature map"
        return (
            f"{settings.backbone} at {self.shape[0]} px, {self.train_count} patches, up to {settings.epochs} epochs; "
            f"training {layers} in {settings.precision}, {self.engine.reason()}"
            f"{weights_note([settings.backbone], settings.weights)}"
        )

    def planned(self, fold: int | None = None) -> int:
        """Largest number of images that training without a fold takes; None for the training on all labelled slides."""
        if fold is None:
            return len(self.rows) * self.settings.epochs * self.settings.seeds
        count = (self.table["fold"].to_numpy()[self.rows[: self.train_count]] != fold).sum()
        return int(count) * self.settings.epochs * self.settings.seeds

    def data(self) -> TrainingData:
        """Inputs of the trainable part and pooled channels, for every row. Inputs are stored on disk if they fit."""
        from histoblend.models.finetune import TrainingData, pool

        epochs = self.settings.epochs
        augmented = [self._transform(turn=None, slot=epoch) for epoch in range(epochs)]
        turned = [self._transform(turn=turn, slot=0) for turn in range(self.turns)]
        pixels = _RowView(self.patches.pixels, self.rows)
        # Only training rows are predicted out of fold, so only they are needed in all turns.
        counts = [len(self.rows)] + [self.train_count] * (self.turns - 1)
        if self._fits_on_disk(len(augmented) * len(self.rows) + sum(counts)):
            shown = self._stored_maps(augmented, [len(self.rows)] * epochs, "shown", "augmented")
            plain = self._stored_maps(turned, counts, "plain", "not augmented")
        else:
            shown, plain = _computed_maps(augmented, pixels), _computed_maps(turned, pixels)
        pooled = self.parts.find("pooled")
        if pooled is None:
            rows = np.arange(len(self.rows))
            sources = [lambda batch: plain(batch, 0), *([lambda batch: shown(batch, 0)] if epochs else [])]
            pooled = {"values": np.stack([pool(self.trainable, source, rows) for source in sources])}
            self.parts.keep("pooled", pooled)
        table = self.table.iloc[self.rows]
        labels, groups = table["label"].to_numpy(), patch_groups(table)
        return TrainingData(shown, plain, pooled["values"], labels, groups, self.turns)

    def _transform(self, *, turn: int | None, slot: int) -> PatchTransform:
        from histoblend.models.cnn import PatchTransform

        settings = self.settings
        return PatchTransform(settings.size, settings.stain, settings.jitter, settings.seed, self.network, turn, slot)

    def _fits_on_disk(self, maps: int) -> bool:
        """Whether this number of feature maps fits on the disk."""
        needed = maps * self.width * 2
        allowed = min(self.config.cnn.cache_gb * 1e9, DISK_SHARE * shutil.disk_usage(self.folder).free)
        if needed > allowed:
            self.screen.say(
                f"  feature maps need {needed / 1e9:.1f} GB of disk, but only {allowed / 1e9:.1f} GB are allowed. They "
                "are computed again for each use, which is slower. To avoid this, change cnn.cache_gb or cnn.patches."
            )
        return needed <= allowed

    def _stored_maps(
        self, variants: list[PatchTransform], counts: list[int], name: str, label: str
    ) -> Callable[[np.ndarray, int], np.ndarray]:
        """Feature maps by each variant, stored on disk; ``counts`` are the numbers of rows, from the first."""
        from histoblend.features.extract import extract_shards

        tables = []
        with self.screen.progress(f"feature maps, {label}", sum(counts)) as progress:
            for number, (variant, count) in enumerate(zip(variants, counts, strict=True)):
                target = self.folder / f"{name}-{number}"
                tables.append(
                    extract_shards(
                        variant,
                        _RowView(self.patches.pixels, self.rows[:count]),
                        target,
                        self.width,
                        shard_size=SHARD,
                        workers=self.workers,
                        prefer="threads",
                        dtype=np.float16,
                        progress=progress,
                    )
                )
        return lambda rows, which: tables[which][rows]

    def out_of_fold(
        self, data: TrainingData, fold: int, held_out: np.ndarray, advance: Callable[[int], None]
    ) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
        """Predict the rows of a fold with a network that was not trained on them.

        Returns
        -------
        log_odds : ndarray of shape (m,), float64
        in_context : ndarray of shape (m,), float64
            Probability from the head on the network's channels in slide context; NaN if slides are unknown.
        history : DataFrame
            One row per epoch of the training.
        """
        from histoblend.models.finetune import fine_tune

        name = f"fold-{fold}"
        done = self.parts.find(name)
        if done is not None:
            advance(self.planned(fold))
            return done["log_odds"], done["in_context"], pd.read_csv(io.StringIO(str(done["history"])))
        capped = _CappedProgress(advance, self.planned(fold))
        rows = np.setdiff1d(np.arange(self.train_count), held_out)
        watch = partial(self._say_epoch, name=f"fold {fold + 1}")
        tuned, predict = fine_tune(
            self.settings, self.trainable, data, rows, self.folder / name, watch=watch, advance=capped
        )
        capped.finish()
        self._say_stop(f"fold {fold + 1}", tuned)
        log_odds, in_context = predict(held_out), np.full(len(held_out), np.nan)
        if self.context.possible:
            values, _ = self._in_context(data, self.train_count)
            head = self.context.fit(values[rows], self.rows[rows])
            in_context = head.predict_proba(values[held_out])[:, 1]
        history = tuned.history.to_csv(index=False)
        self.parts.keep(name, {"log_odds": log_odds, "in_context": in_context, "history": history})
        return log_odds, in_context, tuned.history

    def _in_context(self, data: TrainingData, count: int) -> tuple[np.ndarray, list[str]]:
        """Channels in slide context of the first rows, from the network trained last, and their names."""
        from histoblend.models.finetune import pool

        channels = pool(self.trainable, lambda batch: data.plain(batch, 0), np.arange(count))
        return self.context.values(channels, self.rows[:count])

    def final(
        self,
        data: TrainingData,
        epochs: int,
        count: int,
        slides: str,
        network_folder: Path,
        head_folder: Path,
        advance: Callable[[int], None],
    ) -> tuple[pd.DataFrame, Any, Head | None]:
        """Train on the first rows, without validation slides, and store the network and the head.

        Parameters
        ----------
        data : TrainingData
        epochs : int
            Number of epochs, chosen on the folds.
        count : int
            Number of rows: those of the training slides, or all rows.
        slides : str
            Name of these slides in messages.
        network_folder, head_folder : Path
            Folders of the network and of the head on its channels in slide context.
        advance : callable
        """
        from histoblend.models.cnn import store_cnn
        from histoblend.models.finetune import fine_tune

        rows = np.arange(count)
        watch = partial(self._say_epoch, name=slides)
        folder = self.folder / network_folder.name
        capped = _CappedProgress(advance, count * self.settings.epochs * self.settings.seeds)
        tuned, _ = fine_tune(
            self.settings, self.trainable, data, rows, folder, exactly=epochs, watch=watch, advance=capped
        )
        capped.finish()
        self._say_stop(slides, tuned)
        head = None
        if self.context.possible:
            values, names = self._in_context(data, count)
            head = self.context.fit(values, self.rows[:count])
            store(head, names, head_folder)
        network = self.trainable.whole(tuned.values, tuned.mean, tuned.scale)
        return tuned.history, store_cnn(network, self.settings, self.shape, self.engine, network_folder), head

    def predict(self, compute: CnnCompute, head: Head | None, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities from the stored network, and from the head on its channels in slide context."""
        from histoblend.features.extract import extract_shards

        with self.screen.progress("predicting held-out slides", len(rows)) as progress:
            values = extract_shards(
                compute,
                _RowView(self.patches.pixels, rows),
                self.folder / "test",
                compute.width,
                shard_size=SHARD,
                workers=self.workers,
                prefer="threads",
                progress=progress,
            )
        in_context = np.full(len(rows), np.nan)
        if head is not None:
            in_context = head.predict_proba(self.context.values(np.asarray(values[:, 1:]), rows)[0])[:, 1]
        return _expit(values[:, 0]), in_context

    def _say_epoch(self, row: Mapping[str, Any], *, name: str) -> None:
        auc = "" if np.isnan(row["auc"]) else f", AUC {row['auc']:.3f} on the validation slides"
        if row["epoch"] == 0:
            self.screen.say(f"  {name}: only the head trained{auc}")
            return
        self.screen.say(
            f"  {name}: epoch {row['epoch']} of {self.settings.epochs}, loss {row['loss']:.3f}{auc}, "
            f"{row['images_per_s']:,.0f} images/s"
        )

    def _say_stop(self, name: str, tuned: FineTuned) -> None:
        if tuned.diverged:
            self.screen.warn(f"{name}: {tuned.stopped}")
        elif tuned.stopped:
            self.screen.say(f"  {name}: stopped: {tuned.stopped}")


class _CappedProgress:
    """Progress that sums to exactly the planned count, since training may stop early or use fewer patches."""

    def __init__(self, advance: Callable[[int], None], planned: int) -> None:
        self.advance, self.left = advance, planned

    def __call__(self, count: int) -> None:
        if count := min(count, self.left):
            self.left -= count
            self.advance(count)

    def finish(self) -> None:
        """Add the rest of the planned count."""
        self(self.left)


class _RowView:
    """Some rows of an array on disk. They are read when indexed, because all rows may not fit into memory."""

    def __init__(self, pixels: np.ndarray | StoredRows, rows: np.ndarray) -> None:
        self.pixels, self.rows = pixels, rows
        self.shape, self.ndim, self.dtype = (len(rows), *pixels.shape[1:]), pixels.ndim, pixels.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: slice | np.ndarray) -> np.ndarray:
        return self.pixels[self.rows[key]]


def _computed_maps(variants: list[PatchTransform], pixels: _RowView) -> Callable[[np.ndarray, int], np.ndarray]:
    return lambda rows, which: variants[which](pixels[rows])


def _sample_rows(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """A random sample of at most ``most`` rows, in their order."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def _expit(log_odds: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return np.asarray(expit(np.asarray(log_odds, np.float64)))
