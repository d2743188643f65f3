"""Trainings of the fine-tuned network that share patches, frozen layers and feature maps on disk."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoblend.data.patches import PatchSet
from histoblend.data.splits import patch_groups
from histoblend.data.storage.arrays import StoredRows
from histoblend.data.storage.parts import Parts
from histoblend.pipelines.config import Config
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.steps.cnn_context import ChannelContext, store

if TYPE_CHECKING:
    from histoblend.features.networks.engines import Engine
    from histoblend.models.cnn import CnnCompute, CnnSettings, PatchTransform, TrainablePart
    from histoblend.models.finetune import FineTuned, TrainingData
    from histoblend.models.heads.head import Head

#: Patches per shard of feature maps.
SHARD = 128
#: Share of the free disk that feature maps may take.
DISK_SHARE = 0.5


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


class NetworkTraining:
    """Trainings of a run. They share the patches, the frozen layers of the network, and feature maps on disk.

    Parameters
    ----------
    config : Config
    patches : PatchSet
    parts : Parts
        For feature maps and finished trainings, so that an interrupted run resumes.
    workers : int
    screen : Screen
    rows : ndarray of int
        Rows of training slides that networks are trained on and predict out of fold.
    test_rows : ndarray of int
        Rows of test slides, for a network that is trained after all evaluations; may be empty.
    """

    def __init__(
        self,
        config: Config,
        patches: PatchSet,
        parts: Parts,
        workers: int,
        screen: Screen,
        *,
        rows: np.ndarray,
        test_rows: np.ndarray,
    ) -> None:
        from histoblend.models.cnn import TrainablePart, lower_network

        self.config, self.patches, self.parts, self.screen = config, patches, parts, screen
        self.folder = parts.folder
        self.settings, self.engine = cnn_settings(config), cnn_engine(config)
        self.table = patches.table
        self.train_count = len(rows)
        self.rows = np.concatenate([rows, test_rows])
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

    def planned(self, patches: int) -> int:
        """Largest number of images that training on so many patches takes."""
        return patches * self.settings.epochs * self.settings.seeds

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
        self,
        data: TrainingData,
        name: str,
        words: str,
        rows: np.ndarray,
        held_out: np.ndarray,
        advance: Callable[[int], None],
        *,
        brief: bool = False,
    ) -> dict[str, np.ndarray]:
        """Predict some rows with a network that was trained on others. A finished training is not repeated.

        Parameters
        ----------
        data : TrainingData
        name : str
            Of the stored result, different for each training.
        words : str
            Name of the training in messages.
        rows, held_out : ndarray of int
            Positions in ``self.rows``.
        advance : callable
        brief : bool
            Report only failures, and do not fit a head in slide context.

        Returns
        -------
        dict from str to ndarray
            ``log_odds`` (m,) and ``in_context`` (m,), the probability from the head on the network's channels in slide
            context, NaN if there is none; ``history`` (CSV text with one row per epoch) and ``seconds`` (core-seconds
            of the training; after an interruption, of its last part).
        """
        from histoblend.models.finetune import fine_tune

        capped = _CappedProgress(advance, self.planned(len(rows)))
        result = self.parts.find(name)
        if result is None:
            gc.collect()  # the model of the last training refers to itself, with its optimizer
            started = time.process_time()
            tuned, predict = fine_tune(
                self.settings,
                self.trainable,
                data,
                rows,
                self.folder / name,
                watch=None if brief else partial(self._say_epoch, name=words),
                advance=capped,
            )
            seconds = time.process_time() - started
            if tuned.diverged or not brief:
                self._say_stop(words, tuned)
            log_odds, in_context = predict(held_out), np.full(len(held_out), np.nan)
            if self.context.possible and not brief:
                values, _ = self._in_context(data, self.train_count)
                head = self.context.fit(values[rows], self.rows[rows])
                in_context = head.predict_proba(values[held_out])[:, 1]
            history = np.array(tuned.history.to_csv(index=False))
            result = {
                "log_odds": log_odds,
                "in_context": in_context,
                "history": history,
                "seconds": np.array(seconds),
            }
            self.parts.keep(name, result)
            shutil.rmtree(self.folder / name)  # the checkpoints are several times as large as the network
        capped.finish()
        return result

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
        capped = _CappedProgress(advance, self.planned(count))
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
        return expit(values[:, 0]), in_context

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


def expit(log_odds: np.ndarray) -> np.ndarray:
    """Probabilities of log-odds; float64."""
    from scipy.special import expit

    return np.asarray(expit(np.asarray(log_odds, np.float64)))
