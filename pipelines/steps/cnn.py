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
from histoblend.data.storage.parts import Parts
from histoblend.models.names import CNN_CONTEXT
from histoblend.pipelines.config import Config
from histoblend.pipelines.results import patches_of
from histoblend.pipelines.run_files import CONTEXT, HISTORY, MODEL, PREDICTIONS, REFITTED, REFITTED_CONTEXT
from histoblend.pipelines.runtime.artefacts import Outcome
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.steps.cnn_context import ChannelContext, store

if TYPE_CHECKING:
    from histoblend.features.networks.engines import Engine
    from histoblend.models.cnn import CnnCompute, CnnSettings, PatchTransform, TrainablePart
    from histoblend.models.finetune import TrainingData
    from histoblend.models.heads.head import Head
    from histoblend.pipelines.run import Run

WORK = "work"

#: Patches of a shard of feature maps.
SHARD = 128
#: Share of the free disk that feature maps may take.
DISK_SHARE = 0.5


def inputs(run: Run) -> dict[str, str]:
    """Digest of the weights that training starts from, and what runs the network here."""
    from histoblend.features.networks.backbones import find_backbone, weights_digest

    options = run.config.cnn
    weights = weights_digest(find_backbone(options.backbone), options.weights)
    return {"weights": weights, "engine": str(cnn_engine(run.config))}


def build(run: Run, folder: Path) -> Outcome:
    """Fine-tune the network of a run."""
    return train_cnn(run.config, patches_of(run), folder, workers=run.workers, screen=run.screen)


def cnn_engine(config: Config) -> Engine:
    """What runs the parts of the network that are not trained, and says whether there is a GPU."""
    from histoblend.features.networks.engines import choose_engine

    engine = choose_engine("auto", "auto" if config.cnn.precision == "auto" else "float32")
    if config.cnn.precision != "auto" and config.cnn.precision != engine.precision:
        return replace(engine, name="keras", precision=config.cnn.precision)
    return engine


def cnn_settings(config: Config) -> CnnSettings:
    """The configured settings, with every "auto" decided for this machine."""
    from histoblend.models.cnn import CnnSettings

    engine = cnn_engine(config)
    options = config.cnn.model_dump(exclude={"enabled", "folds", "patches", "cache_gb"})
    trained = options.pop("trained")
    if trained == "auto":
        trained = "all" if engine.gpu else "top"
    return CnnSettings(**{**options, "trained": trained, "precision": engine.precision, "seed": config.seed})


def check_cnn(config: Config) -> None:
    """Find what is wrong with the network's options before hours of work, not after.

    Raises
    ------
    InputError
    """
    from histoblend.features.networks.backbones import check_shape

    settings = cnn_settings(config)
    settings.recipe.check()
    check_shape(settings.backbone, settings.shape(config.data.size))
    if config.cnn.folds > config.split.folds:
        raise InputError(
            f"cnn.folds must be at most split.folds, {config.split.folds}; got {config.cnn.folds}. "
            "0 stands for all of them."
        )
    settings.recipe.check_weights()


def train_cnn(config: Config, patches: PatchSet, folder: Path, *, workers: int, screen: Screen) -> Outcome:
    """Write out-of-fold and test predictions, the refitted network, and how each training went."""
    started = time.process_time()
    work = _Work(config, patches, Parts(folder / WORK), workers, screen)
    screen.say(f"  {work.words()}")
    table, rows = patches.table, work.rows[: work.learned]
    probability, in_context = np.full(len(table), np.nan), np.full(len(table), np.nan)
    histories = []
    folds = sorted(set(table["fold"]) - {-1})[: config.cnn.folds or None]
    data = work.data()
    total = sum(work.planned(fold) for fold in [*folds, -1]) + (work.planned() if work.refits else 0)
    with screen.progress("fine-tuning", total, "images") as advance:
        for fold in folds:
            inside = np.flatnonzero(table["fold"].to_numpy()[rows] == fold)
            log_odds, in_context[rows[inside]], history = work.out_of_fold(data, fold, inside, advance)
            probability[rows[inside]] = _expit(log_odds)
            histories.append(history.assign(run=str(fold)))
        best = [int(history.loc[history["kept"], "epoch"].max()) for history in histories]
        # No validation slides here: the median over the folds says when to stop, of whole epochs the later one.
        epochs = int(np.ceil(np.median(best)))
        places = folder / MODEL, folder / CONTEXT
        history, compute, head = work.final(data, epochs, len(rows), "all training slides", *places, advance)
        if work.refits:
            places = folder / REFITTED, folder / REFITTED_CONTEXT
            work.final(data, epochs, len(work.rows), "all labelled slides", *places, advance)
    histories.append(history.assign(run="final"))
    test = np.flatnonzero((table["split"] == "test").to_numpy())
    if len(test):
        probability[test], in_context[test] = work.predict(compute, head, test)
    predictions = pd.DataFrame({"patch_id": table["patch_id"].to_numpy(), "prob_cnn": probability})
    if work.context.possible:
        predictions[f"prob_{CNN_CONTEXT}"] = in_context
    predictions.to_parquet(folder / PREDICTIONS, index=False)
    frame = pd.concat(histories, ignore_index=True)
    frame[["run", *frame.columns.drop("run")]].to_csv(folder / HISTORY, index=False)
    work.parts.forget()
    notes = {
        "folds": len(folds),
        "patches": len(rows),
        "settings": asdict(work.settings),
        "engine": asdict(work.engine),
        "core_seconds": round(time.process_time() - started, 1),
    }
    return Outcome(len(table), notes, timed=(HISTORY,))


class _Work:
    """What all trainings of a run share: which patches, the network's lower part, and what is kept of it on disk."""

    def __init__(self, config: Config, patches: PatchSet, parts: Parts, workers: int, screen: Screen) -> None:
        from histoblend.models.cnn import TrainablePart, lower_network

        self.config, self.patches, self.parts, self.screen = config, patches, parts, screen
        self.folder = parts.folder
        self.settings, self.engine = cnn_settings(config), cnn_engine(config)
        self.table = patches.table
        train, test = (np.flatnonzero(self.table["split"] == split) for split in ("train", "test"))
        some = _some(train, config.cnn.patches, config.seed)
        self.learned = len(some)
        self.rows = some
        if config.final.refit == "all":
            # Behind the others, and in the same share: only what is trained once all is judged ever looks at them.
            more = _some(test, -(-len(test) * len(some) // max(len(train), 1)), config.seed)
            self.rows = np.concatenate([some, more])
        self.shape = self.settings.shape(config.data.size)
        self.trainable: TrainablePart = TrainablePart(self.settings, self.shape, self.settings.precision)
        self.network = lower_network(self.trainable, self.engine, self.folder)
        self.context = ChannelContext(self.table, patch_groups(self.table), config.seed)
        # ONNX Runtime gets one session of one thread for each of ours; Keras runs its own.
        self.workers = workers if self.engine.name == "onnx" else 2
        self.turns = 8 if self.settings.d4 else 1

    @property
    def refits(self) -> bool:
        """Whether a last network learns from held-out slides too."""
        return len(self.rows) > self.learned

    @property
    def width(self) -> int:
        """Values that the trained part is given for a patch."""
        return int(np.prod(self.trainable.input_shape))

    def words(self) -> str:
        """What is trained, in a line."""
        settings = self.settings
        learns = "all of it" if self.trainable.lower is None else "what follows its last inner feature map"
        return (
            f"{settings.backbone} at {self.shape[0]} px, {self.learned} patches, up to {settings.epochs} epochs; "
            f"trained: {learns}, in {settings.precision}{' on the GPU' if self.engine.gpu else ''}"
        )

    def planned(self, fold: int | None = None) -> int:
        """Patches that are shown while a fold is held out, at most; while none is, test slides included."""
        if fold is None:
            return len(self.rows) * self.settings.epochs * self.settings.seeds
        inside = (self.table["fold"].to_numpy()[self.rows[: self.learned]] != fold).sum()
        return int(inside) * self.settings.epochs * self.settings.seeds

    def data(self) -> TrainingData:
        """Inputs of the trained part for every row, from disk where they fit there, and the head's pooled channels."""
        from histoblend.models.finetune import TrainingData, pool

        epochs = self.settings.epochs
        altered = [self._shown(turn=None, slot=epoch) for epoch in range(epochs)]
        turned = [self._shown(turn=turn, slot=0) for turn in range(self.turns)]
        pixels = _Rows(self.patches.pixels, self.rows)
        # What is predicted out of fold is turned; the others are looked at unturned alone.
        counts = [len(self.rows)] + [self.learned] * (self.turns - 1)
        if self._fits(len(altered) * len(self.rows) + sum(counts)):
            shown = self._stored(altered, [len(self.rows)] * epochs, "shown")
            plain = self._stored(turned, counts, "plain")
        else:
            shown, plain = _computed(altered, pixels), _computed(turned, pixels)
        pooled = self.parts.find("pooled")
        if pooled is None:
            rows = np.arange(len(self.rows))
            sources = [lambda some: plain(some, 0), *([lambda some: shown(some, 0)] if epochs else [])]
            pooled = {"values": np.stack([pool(self.trainable, source, rows) for source in sources])}
            self.parts.keep("pooled", pooled)
        table = self.table.iloc[self.rows]
        labels, groups = table["label"].to_numpy(), patch_groups(table)
        return TrainingData(shown, plain, pooled["values"], labels, groups, self.turns)

    def _shown(self, *, turn: int | None, slot: int) -> PatchTransform:
        from histoblend.models.cnn import PatchTransform

        settings = self.settings
        return PatchTransform(settings.size, settings.stain, settings.jitter, settings.seed, self.network, turn, slot)

    def _fits(self, maps: int) -> bool:
        """Whether so many feature maps fit on the disk."""
        needed = maps * self.width * 2
        allowed = min(self.config.cnn.cache_gb * 1e9, DISK_SHARE * shutil.disk_usage(self.folder).free)
        if needed > allowed:
            self.screen.say(
                f"  feature maps would take {needed / 1e9:.1f} GB, {allowed / 1e9:.1f} GB are allowed: they are "
                "computed anew each time, which is slower. cnn.cache_gb and cnn.patches change that."
            )
        return needed <= allowed

    def _stored(
        self, variants: list[PatchTransform], counts: list[int], name: str
    ) -> Callable[[np.ndarray, int], np.ndarray]:
        """Feature maps of the first rows, as many as each variant counts."""
        from histoblend.features.extract import extract_shards

        tables = []
        with self.screen.progress(f"feature maps, {name}", sum(counts)) as progress:
            for number, (variant, count) in enumerate(zip(variants, counts, strict=True)):
                target = self.folder / f"{name}-{number}"
                tables.append(
                    extract_shards(
                        variant,
                        _Rows(self.patches.pixels, self.rows[:count]),
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
        self, data: TrainingData, fold: int, inside: np.ndarray, advance: Callable[[int], None]
    ) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
        """What a network that has not seen the rows of a fold says of them, and how its training went.

        Returns
        -------
        log_odds : ndarray of shape (m,), float64
        in_context : ndarray of shape (m,), float64
            Probability by a head on its channels in slide context; NaN where slides are unknown.
        history : DataFrame
        """
        from histoblend.models.finetune import fine_tune

        name = f"fold-{fold}"
        done = self.parts.find(name)
        if done is not None:
            advance(self.planned(fold))
            return done["log_odds"], done["in_context"], pd.read_csv(io.StringIO(str(done["history"])))
        counted = _Counted(advance, self.planned(fold))
        rows = np.setdiff1d(np.arange(self.learned), inside)
        watch = partial(self._watch, name=f"fold {fold + 1}")
        tuned, predict = fine_tune(
            self.settings, self.trainable, data, rows, self.folder / name, watch=watch, advance=counted
        )
        counted.finish()
        self._stopped(f"fold {fold + 1}", tuned.stopped)
        log_odds, in_context = predict(inside), np.full(len(inside), np.nan)
        if self.context.possible:
            values, _ = self._in_context(data, self.learned)
            head = self.context.fit(values[rows], self.rows[rows])
            in_context = head.predict_proba(values[inside])[:, 1]
        history = tuned.history.to_csv(index=False)
        self.parts.keep(name, {"log_odds": log_odds, "in_context": in_context, "history": history})
        return log_odds, in_context, tuned.history

    def _in_context(self, data: TrainingData, count: int) -> tuple[np.ndarray, list[str]]:
        """Channels of the first rows, by the network that was trained last, in slide context, and their names."""
        from histoblend.models.finetune import pool

        channels = pool(self.trainable, lambda some: data.plain(some, 0), np.arange(count))
        return self.context.values(channels, self.rows[:count])

    def final(
        self,
        data: TrainingData,
        epochs: int,
        count: int,
        slides: str,
        target: Path,
        beside: Path,
        advance: Callable[[int], None],
    ) -> tuple[pd.DataFrame, Any, Head | None]:
        """Train on the first rows, none set aside, for as many epochs as were best, and store network and head.

        Parameters
        ----------
        data : TrainingData
        epochs : int
        count : int
            How many rows: all of the training slides, or those of the held-out ones too.
        slides : str
            What they are, for messages.
        target, beside : Path
            Folders of the network, and of the head on its channels in slide context.
        advance : callable
        """
        from histoblend.models.cnn import store_cnn
        from histoblend.models.finetune import fine_tune

        rows = np.arange(count)
        watch = partial(self._watch, name=slides)
        folder = self.folder / target.name
        counted = _Counted(advance, count * self.settings.epochs * self.settings.seeds)
        tuned, _ = fine_tune(
            self.settings, self.trainable, data, rows, folder, exactly=epochs, watch=watch, advance=counted
        )
        counted.finish()
        self._stopped(slides, tuned.stopped)
        head = None
        if self.context.possible:
            values, names = self._in_context(data, count)
            head = self.context.fit(values, self.rows[:count])
            store(head, names, beside)
        network = self.trainable.whole(tuned.values, tuned.mean, tuned.scale)
        return tuned.history, store_cnn(network, self.settings, self.shape, self.engine, target), head

    def predict(self, compute: CnnCompute, head: Head | None, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probability of rows of the table by the stored network, and by the head on its channels in slide context."""
        from histoblend.features.extract import extract_shards

        with self.screen.progress("predicting held-out slides", len(rows)) as progress:
            values = extract_shards(
                compute,
                _Rows(self.patches.pixels, rows),
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

    def _watch(self, row: Mapping[str, Any], *, name: str) -> None:
        auc = "" if np.isnan(row["auc"]) else f", AUC {row['auc']:.3f} on the validation slides"
        if row["epoch"] == 0:
            self.screen.say(f"  {name}: the head alone{auc}")
            return
        self.screen.say(
            f"  {name}: epoch {row['epoch']} of {self.settings.epochs}, loss {row['loss']:.3f}{auc}, "
            f"{row['images_per_s']:,.0f} images/s"
        )

    def _stopped(self, name: str, reason: str) -> None:
        if reason.startswith("the loss"):
            self.screen.warn(f"{name}: {reason}")
        elif reason:
            self.screen.say(f"  {name}: stopped, {reason}")


class _Counted:
    """Passes counts on, never more than were planned: a training may stop early, and sets some patches aside."""

    def __init__(self, advance: Callable[[int], None], planned: int) -> None:
        self.advance, self.left = advance, planned

    def __call__(self, count: int) -> None:
        if count := min(count, self.left):
            self.left -= count
            self.advance(count)

    def finish(self) -> None:
        """Count what was not needed."""
        self(self.left)


class _Rows:
    """Some rows of an array on disk, read as they are asked for: all of them at once may not fit into memory."""

    def __init__(self, pixels: np.ndarray, rows: np.ndarray) -> None:
        self.pixels, self.rows = pixels, rows
        self.shape, self.ndim, self.dtype = (len(rows), *pixels.shape[1:]), pixels.ndim, pixels.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: slice | np.ndarray) -> np.ndarray:
        return np.asarray(self.pixels[self.rows[key]])


def _computed(variants: list[PatchTransform], pixels: _Rows) -> Callable[[np.ndarray, int], np.ndarray]:
    return lambda rows, which: variants[which](pixels[rows])


def _some(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many of the rows, in their order."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def _expit(log_odds: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return np.asarray(expit(np.asarray(log_odds, np.float64)))
