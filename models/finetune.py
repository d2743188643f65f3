"""Fine-tune a network on slides, stopped early on others, with a checkpoint after every epoch.

The head comes first: a ridge-penalised logistic regression on the pretrained, pooled channels, whose solution is where
training starts. Then everything that learns goes on together, at a small rate that warms up and falls along a cosine;
fine-tuning from a random head would spoil the pretrained channels before the head is of any use (Kumar et al. 2022,
ICLR, arXiv:2202.10054). The weights are averaged over the start and the end of every epoch, which is steadier on slides
unlike those of training than the last weights are (Izmailov et al. 2018, UAI, arXiv:1803.05407; Wortsman et al. 2022,
CVPR, arXiv:2109.01903).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from histoblend.data.storage.parts import Parts
from histoblend.features.networks.backend import choose_backend, load_keras, to_numpy
from histoblend.models.cnn import CnnSettings, TrainablePart
from histoblend.models.heads.inner_folds import inner_folds
from histoblend.models.heads.logistic import LogisticHead

CHECKPOINT = "checkpoint"
#: One part of this many, by slide, is what a network is stopped on.
PARTS = 5
#: Share of the steps in which the learning rate warms up.
WARM_UP = 0.1
#: Patches that are predicted at once.
TOGETHER = 64


@dataclass(frozen=True)
class TrainingData:
    """What a network is trained on; rows are those of the caller's table.

    Attributes
    ----------
    shown : callable
        ``shown(rows, epoch) -> (m, values)``: the trained part's inputs, altered anew in each epoch.
    plain : callable
        ``plain(rows, turn) -> (m, values)``: not altered, but for one of the symmetries.
    pooled : ndarray of shape (copies, n, width), float32
        Pretrained pooled channels of every row, in one or more variants; rows outside of training are never looked at.
    labels : ndarray of shape (n,), 0 or 1
    groups : ndarray of shape (n,)
    turns : int
        Symmetries that predictions are averaged over.
    """

    shown: Callable[[np.ndarray, int], np.ndarray]
    plain: Callable[[np.ndarray, int], np.ndarray]
    pooled: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    turns: int = 1


@dataclass
class FineTuned:
    """A fine-tuned network.

    Attributes
    ----------
    values : list of ndarray
        Its weights, for :meth:`models.cnn.TrainablePart.whole`.
    mean, scale : ndarray of shape (width,)
        That its pooled channels are standardised with.
    history : DataFrame
        A row an epoch, 0 being the head alone: ``epoch, loss, auc, rate, images_per_s, seconds, kept``. ``auc`` is that
        of the averaged weights on the validation slides, missing where there are none.
    stopped : str
        Why training ended before its last epoch; empty where it did not.
    """

    values: list[np.ndarray]
    mean: np.ndarray
    scale: np.ndarray
    history: pd.DataFrame
    stopped: str = ""


#: Lists of arrays in a checkpoint.
LISTS = ("values", "optimizer", "average", "best")


@dataclass
class _State:
    """Everything that the rest of a training depends on."""

    epoch: int
    values: list[np.ndarray]
    optimizer: list[np.ndarray]
    average: list[np.ndarray]
    best: list[np.ndarray]
    mean: np.ndarray
    scale: np.ndarray
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""

    def arrays(self) -> dict[str, np.ndarray]:
        lists = {f"{name}-{place}": array for name in LISTS for place, array in enumerate(getattr(self, name))}
        text = json.dumps({"epoch": self.epoch, "history": self.history, "stopped": self.stopped})
        return lists | {"mean": self.mean, "scale": self.scale, "text": np.array(text)}

    @classmethod
    def find(cls, parts: Parts) -> _State | None:
        """The checkpoint; None where there is none, or a damaged one."""
        arrays = parts.find(CHECKPOINT)
        if arrays is None:
            return None
        fields: dict[str, Any] = json.loads(str(arrays["text"]))
        fields |= {name: [array for key, array in arrays.items() if key.startswith(f"{name}-")] for name in LISTS}
        return cls(**fields, mean=arrays["mean"], scale=arrays["scale"])


def fine_tune(
    settings: CnnSettings,
    trainable: TrainablePart,
    data: TrainingData,
    rows: np.ndarray,
    folder: Path,
    *,
    exactly: int | None = None,
    watch: Callable[[dict[str, Any]], None] | None = None,
    advance: Callable[[int], None] | None = None,
) -> tuple[FineTuned, Callable[[np.ndarray], np.ndarray]]:
    """Train on some rows, and continue where an interrupted call with the same arguments stopped.

    With several seeds, as many networks are trained, each with other validation slides and in another order, and their
    weights are averaged. All start from the same pretraining, so the average is one network, as fast as one.

    Parameters
    ----------
    settings : CnnSettings
    trainable : TrainablePart
        Fresh: its values are those of the pretraining.
    data : TrainingData
    rows : ndarray of int
        Rows to learn from. One part of five, by group, decides when to stop and is not trained on.
    folder : Path
        For the checkpoint; made where it is missing.
    exactly : int, optional
        Train on all rows for so many of the settings' epochs, where others have found out how many are best.
    watch : callable, optional
        Called with each row of the history as it comes.
    advance : callable, optional
        Called with the number of patches just trained on, also for those of epochs that the checkpoint holds.

    Returns
    -------
    tuned : FineTuned
        Its history is that of the first seed.
    predict : callable
        ``predict(rows) -> (m,) float64`` log-odds of other rows, averaged over the data's turns.

    References
    ----------
    Wortsman et al. (2022), ICML, Model soups: averaging weights of multiple fine-tuned models.
    """
    states: list[_State] = []
    for number in range(settings.seeds):
        one = replace(settings, seed=settings.seed + number)
        training = _Training(one, trainable, data, rows, Parts(folder / f"seed-{number}"), exactly)
        training.run((watch if watch and not number else None) or (lambda row: None), advance or (lambda count: None))
        states.append(training.state)
    mean, scale = training.state.mean, training.state.scale
    heads = [_rescaled(state, mean, scale) for state in states]
    values = [np.asarray(np.mean(some, axis=0, dtype=np.float64), np.float32) for some in zip(*heads, strict=True)]
    if len(states) > 1:
        training.model.set_weights(values)
    first = states[0]
    stopped = next((state.stopped for state in states if state.stopped), "")
    return FineTuned(values, mean, scale, pd.DataFrame(first.history), stopped), training.predict


def _rescaled(state: _State, mean: np.ndarray, scale: np.ndarray) -> list[np.ndarray]:
    """Best values of a training, its head as if pooled channels had been standardised by others."""
    if mean is state.mean:  # its own: the bits stay as they are
        return state.best
    kernel = state.best[-2].astype(np.float64) / state.scale[:, None]
    bias = state.best[-1] + (mean - state.mean) @ kernel
    return [*state.best[:-2], kernel * scale[:, None], bias]


class _Training:
    def __init__(
        self,
        settings: CnnSettings,
        trainable: TrainablePart,
        data: TrainingData,
        rows: np.ndarray,
        parts: Parts,
        exactly: int | None,
    ) -> None:
        self.settings, self.trainable, self.data, self.parts = settings, trainable, data, parts
        labels, groups = data.labels[rows], data.groups[rows]
        self.last = settings.epochs if exactly is None else min(exactly, settings.epochs)
        wanted = exactly is None and settings.epochs
        split = next(inner_folds(labels, groups, PARTS, settings.seed), None) if wanted else None
        self.train = rows if split is None else rows[split[0]]
        self.held = rows[:0] if split is None else rows[split[1]]
        self.batch = min(settings.batch, len(self.train))
        self.steps = len(self.train) // self.batch
        self.weights = _class_weights(data.labels[self.train], settings.balanced)

    def run(self, watch: Callable[[dict[str, Any]], None], advance: Callable[[int], None]) -> None:
        """Bring training to its end."""
        keras = load_keras()
        keras.utils.set_random_seed(self.settings.seed)
        if choose_backend() == "tensorflow":
            import tensorflow

            # Sums in one order, so that a training that went on from a checkpoint ends with the same weights.
            tensorflow.config.experimental.enable_op_determinism()
        self.state = _State.find(self.parts) or self._start()
        self.model = self.trainable.model(self.state.mean, self.state.scale)
        self._compile(keras)
        self.model.set_weights(self.state.values)
        if self.state.optimizer:
            for variable, value in zip(self.optimizer.variables, self.state.optimizer, strict=True):
                variable.assign(value)
        if not self.state.history:
            self._judge(0, np.nan, 0.0, 0.0)
        for row in self.state.history:
            watch(row)
        if self.state.epoch:
            advance(self.state.epoch * self.steps * self.batch)
        for epoch in range(self.state.epoch + 1, self.last + 1):
            if self.state.stopped:
                break
            self._epoch(epoch, advance)
            watch(self.state.history[-1])
        self.model.set_weights(self.state.best)

    def _start(self) -> _State:
        """The pretrained part that learns, with the best linear head for it."""
        rows, pooled = self.train, self.data.pooled
        self.trainable.restore()
        copies = len(pooled)
        labels, groups = (np.tile(of[rows], copies) for of in (self.data.labels, self.data.groups))
        head = LogisticHead(seed=self.settings.seed).fit(np.concatenate(pooled[:, rows]), labels, groups)
        model = self.trainable.model(head.mean_, head.scale_)
        model.layers[-1].set_weights([head.coef_.T.astype(np.float32), head.intercept_.astype(np.float32)])
        values = model.get_weights()
        return _State(0, values, [], values, values, head.mean_, head.scale_)

    def _compile(self, keras: Any) -> None:
        settings = self.settings
        total = max(1, self.steps * settings.epochs)
        warm = max(1, round(WARM_UP * total))
        rate = keras.optimizers.schedules.CosineDecay(
            0.01 * settings.learning_rate,
            max(1, total - warm),
            alpha=0.01,
            warmup_target=settings.learning_rate,
            warmup_steps=warm,
        )
        self.optimizer = keras.optimizers.AdamW(rate, weight_decay=settings.weight_decay)
        self.optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        self.model.compile(
            optimizer=self.optimizer,
            loss=keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=settings.label_smoothing),
            # Compiled by XLA, a depthwise convolution is several times slower on a CPU.
            jit_compile=False if choose_backend() == "tensorflow" else "auto",
        )
        self.optimizer.build(self.model.trainable_variables)

    def _epoch(self, epoch: int, advance: Callable[[int], None]) -> None:
        """Train for one epoch and write the checkpoint; a loss that is no number ends training."""
        started, loss, state = time.perf_counter(), np.nan, self.state
        self.model.reset_metrics()
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(self.train)
        for step in range(self.steps):
            # Sorted: rows that lie close in the file are read together.
            rows = np.sort(order[step * self.batch : (step + 1) * self.batch])
            labels = self.data.labels[rows]
            # Keras returns the mean over the epoch so far.
            loss = float(
                self.model.train_on_batch(
                    self._inputs(self.data.shown(rows, epoch - 1)),
                    labels[:, None].astype(np.float32),
                    sample_weight=self.weights[labels],
                )
            )
            if not np.isfinite(loss):
                self._diverged(f"the loss became {loss} in epoch {epoch}")
                return
            advance(self.batch)
        seconds = time.perf_counter() - started
        values = self.model.get_weights()
        # A step's loss is that before the step: what the last one did shows in the weights alone.
        if not all(np.isfinite(value).all() for value in values):
            self._diverged(f"the loss was {loss:.3g} and weights became infinite in the last step of epoch {epoch}")
            return
        state.epoch, state.values = epoch, values
        state.optimizer = [to_numpy(variable) for variable in self.optimizer.variables]
        if self.settings.average:
            # An equal share for the start and for the end of each epoch so far.
            state.average = [
                (mean * np.float32(epoch) + value) / np.float32(epoch + 1)
                for mean, value in zip(state.average, state.values, strict=True)
            ]
        else:
            state.average = state.values
        self._judge(epoch, loss, self.steps * self.batch / seconds, seconds)

    def _diverged(self, what: str) -> None:
        """End training, and say which weights are left."""
        kept = _kept(self.state.history)
        self.state.stopped = f"{what}: the weights of epoch {kept} were kept. Try a smaller cnn.learning_rate."
        self._save()

    def _judge(self, epoch: int, loss: float, speed: float, seconds: float) -> None:
        """Score the averaged weights on the validation slides, keep them if they are the best, write a checkpoint."""
        from sklearn.metrics import roc_auc_score

        state = self.state
        auc = np.nan
        if len(self.held):
            self.model.set_weights(state.average)
            auc = float(roc_auc_score(self.data.labels[self.held], self._score(self.held, 0)))
            self.model.set_weights(state.values)
        best = max((row["auc"] for row in state.history), default=-np.inf)
        # Without validation slides nothing tells when to stop: the last weights are taken.
        kept = bool(not len(self.held) or auc > best)
        if kept:
            state.best = state.average
        rate = float(to_numpy(self.optimizer.learning_rate))
        state.history.append(
            {
                "epoch": epoch,
                "loss": loss,
                "auc": auc,
                "rate": rate,
                "images_per_s": round(speed, 1),
                "seconds": round(seconds, 2),
                "kept": kept,
            }
        )
        waited = epoch - _kept(state.history)
        if waited >= self.settings.patience and epoch < self.last:
            state.stopped = f"no better AUC on the validation slides for {waited} epochs"
        self._save()

    def _save(self) -> None:
        self.parts.keep(CHECKPOINT, self.state.arrays())

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Log-odds of rows, averaged over the data's turns, ndarray of shape (m,), float64."""
        scores = np.stack([self._score(rows, turn) for turn in range(self.data.turns)])
        return np.asarray(scores.mean(axis=0, dtype=np.float64))

    def _score(self, rows: np.ndarray, turn: int) -> np.ndarray:
        scores = []
        for some in _batches(rows):
            inputs = self._inputs(self.data.plain(some, turn))
            # Always as many: another number of rows would be compiled anew, and add up in another order.
            padded = np.concatenate([inputs, np.zeros((TOGETHER - len(inputs), *inputs.shape[1:]), inputs.dtype)])
            scores.append(np.asarray(self.model.predict_on_batch(padded))[: len(some), 0])
        return np.concatenate(scores) if scores else np.empty(0)

    def _inputs(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values, np.float32).reshape(len(values), *self.trainable.input_shape)


def _batches(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), TOGETHER):
        yield rows[start : start + TOGETHER]


def _kept(history: list[dict[str, Any]]) -> int:
    return max((row["epoch"] for row in history if row["kept"]), default=0)


def _class_weights(labels: np.ndarray, balanced: bool) -> np.ndarray:
    """Weight of a patch by its label, ndarray of shape (2,), float32."""
    if not balanced:
        return np.ones(2, np.float32)
    return (len(labels) / (2 * np.bincount(labels, minlength=2).clip(1))).astype(np.float32)


def pool(trainable: TrainablePart, plain: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Pooled channels of rows by the part that learns, as it is now: ndarray of shape (m, width), float32."""
    model = trainable.pooling()
    pooled = []
    for some in _batches(rows):
        inputs = np.zeros((TOGETHER, *trainable.input_shape), np.float32)
        inputs[: len(some)] = np.asarray(plain(some), np.float32).reshape(len(some), *trainable.input_shape)
        pooled.append(np.asarray(model.predict_on_batch(inputs))[: len(some)].astype(np.float32))
    return np.concatenate(pooled)
