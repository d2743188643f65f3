"""Fine-tuning of a network, with early stopping on validation slides and a checkpoint after each epoch.

The head is fitted first: a ridge-penalised logistic regression on the pretrained, pooled channels. Then head and
trained layers learn together, with a small learning rate that warms up and decays along a cosine. Starting from a
random head would damage the pretrained channels before the head is useful (Kumar et al. 2022, ICLR, arXiv:2202.10054).
The initial weights and those after each epoch are averaged. On slides that differ from the training slides, this is
more reliable than the last weights (Izmailov et al. 2018, UAI, arXiv:1803.05407; Wortsman et al. 2022, CVPR,
arXiv:2109.01903).
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
from histoblend.features.networks.embeddings import ahead
from histoblend.features.networks.engines import PREPARED_AHEAD
from histoblend.models.cnn import CnnSettings, TrainablePart
from histoblend.models.heads.inner_folds import inner_folds
from histoblend.models.heads.logistic import LogisticHead

CHECKPOINT = "checkpoint"
#: One of this many folds, by slide, is the validation set for early stopping.
FOLDS = 5
#: Share of the training steps in which the learning rate warms up.
WARM_UP = 0.1
#: Patches per batch in prediction.
PREDICTION_BATCH = 64


@dataclass(frozen=True)
class TrainingData:
    """Inputs and labels for training. Row numbers refer to the caller's table.

    Attributes
    ----------
    shown : callable
        ``shown(rows, epoch) -> (m, values)``: inputs of the trained part, augmented differently in each epoch.
    plain : callable
        ``plain(rows, turn) -> (m, values)``: inputs without augmentation, turned by one of the 8 symmetries.
    pooled : ndarray of shape (copies, n, width), float32
        Pretrained pooled channels of each row, in one or more variants. Only training rows are read.
    labels : ndarray of shape (n,), 0 or 1
    groups : ndarray of shape (n,)
    turns : int
        Number of symmetries that predictions are averaged over.
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
        Mean and scale that standardise its pooled channels.
    history : DataFrame
        ``epoch, loss, auc, rate, images_per_s, seconds, kept``, one row per epoch; epoch 0 is the head alone. ``auc``
        is that of the averaged weights on the validation slides; NaN without validation slides.
    stopped : str
        Why training stopped early; empty if it did not.
    diverged : bool
        Whether it stopped because loss or weights became infinite.
    """

    values: list[np.ndarray]
    mean: np.ndarray
    scale: np.ndarray
    history: pd.DataFrame
    stopped: str = ""
    diverged: bool = False


#: Lists of arrays in a checkpoint.
LISTS = ("values", "optimizer", "average", "best")


@dataclass
class _State:
    """State of a training run: everything needed to resume it."""

    epoch: int
    values: list[np.ndarray]
    optimizer: list[np.ndarray]
    average: list[np.ndarray]
    best: list[np.ndarray]
    mean: np.ndarray
    scale: np.ndarray
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""
    diverged: bool = False

    def arrays(self) -> dict[str, np.ndarray]:
        lists = {f"{name}-{index}": array for name in LISTS for index, array in enumerate(getattr(self, name))}
        fields = ("epoch", "history", "stopped", "diverged")
        text = json.dumps({name: getattr(self, name) for name in fields})
        return lists | {"mean": self.mean, "scale": self.scale, "text": np.array(text)}

    @classmethod
    def find(cls, parts: Parts) -> _State | None:
        """Read the checkpoint; None if it is missing or damaged."""
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
    """Train on some rows. Resumes an interrupted call with the same arguments.

    With several seeds, one network per seed is trained, with different validation slides and a different order of
    patches. Their weights are averaged. This works because all start from the same pretrained weights. The average
    predicts as fast as one network.

    Parameters
    ----------
    settings : CnnSettings
    trainable : TrainablePart
        With its pretrained weights.
    data : TrainingData
    rows : ndarray of int
        Rows to learn from. One fifth of them, by group, is used for early stopping and not trained on.
    folder : Path
        For the checkpoint; created if missing.
    exactly : int, optional
        Train on all rows for this number of epochs, up to the settings' ``epochs``, without early stopping. For use
        when the best number is known from other runs.
    watch : callable, optional
        Called with each new row of the history.
    advance : callable, optional
        Called with the number of patches just trained on, including those of epochs read from the checkpoint.

    Returns
    -------
    tuned : FineTuned
        Its history is that of the first seed.
    predict : callable
        ``predict(rows) -> (m,) float64``: log-odds of other rows, averaged over the data's symmetries.

    References
    ----------
    Wortsman et al. (2022), ICML, Model soups: averaging weights of multiple fine-tuned models.
    """
    states: list[_State] = []
    for number in range(settings.seeds):
        seed_settings = replace(settings, seed=settings.seed + number)
        training = _Training(seed_settings, trainable, data, rows, Parts(folder / f"seed-{number}"), exactly)
        training.run((watch if watch and not number else None) or (lambda row: None), advance or (lambda count: None))
        states.append(training.state)
    mean, scale = training.state.mean, training.state.scale
    heads = [_rescaled(state, mean, scale) for state in states]
    values = [np.asarray(np.mean(arrays, axis=0, dtype=np.float64), np.float32) for arrays in zip(*heads, strict=True)]
    if len(states) > 1:
        training.model.set_weights(values)
    first_state = states[0]
    # A seed that diverged is reported rather than one that stopped as intended.
    ended = max(states, key=lambda state: (state.diverged, bool(state.stopped)))
    history = pd.DataFrame(first_state.history)
    return FineTuned(values, mean, scale, history, ended.stopped, ended.diverged), training.predict


def _rescaled(state: _State, mean: np.ndarray, scale: np.ndarray) -> list[np.ndarray]:
    """Best weights of a training run, with its head converted to another mean and scale of the pooled channels."""
    if mean is state.mean:  # the same mean and scale: keep the exact bits
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
        validate = exactly is None and settings.epochs
        split = next(inner_folds(labels, groups, FOLDS, settings.seed), None) if validate else None
        self.train = rows if split is None else rows[split[0]]
        self.validation = rows[:0] if split is None else rows[split[1]]
        self.batch = min(settings.batch, len(self.train))
        self.steps = len(self.train) // self.batch
        self.weights = _class_weights(data.labels[self.train], settings.balanced)
        # If all layers are trained, threads read and alter images while the network trains. Otherwise the frozen
        # layers may have to be computed, which uses the same cores or the same GPU.
        self.ahead = PREPARED_AHEAD if trainable.lower is None else 0

    def run(self, watch: Callable[[dict[str, Any]], None], advance: Callable[[int], None]) -> None:
        """Train until the last epoch or until stopped early."""
        keras = load_keras()
        keras.utils.set_random_seed(self.settings.seed)
        if choose_backend() == "tensorflow":
            import tensorflow

            # A fixed order of additions, so that a resumed run ends with the same weights.
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
        """The pretrained network with a fitted linear head."""
        rows, pooled = self.train, self.data.pooled
        self.trainable.restore()
        copies = len(pooled)
        labels, groups = (np.tile(values[rows], copies) for values in (self.data.labels, self.data.groups))
        head = LogisticHead(seed=self.settings.seed).fit(np.concatenate(pooled[:, rows]), labels, groups)
        model = self.trainable.model(head.mean_, head.scale_)
        model.layers[-1].set_weights([head.coef_.T.astype(np.float32), head.intercept_.astype(np.float32)])
        weights = model.get_weights()
        return _State(0, weights, [], weights, weights, head.mean_, head.scale_)

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
        # On TensorFlow, Keras sums gradients over devices, here one. This registers a gradient function that keeps the
        # graph and the optimizer's variables for the rest of the process, so memory would grow with each training.
        self.optimizer._all_reduce_sum_gradients = list
        self.model.compile(
            optimizer=self.optimizer,
            loss=keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=settings.label_smoothing),
            # XLA makes depthwise convolutions several times slower on a CPU.
            jit_compile=False if choose_backend() == "tensorflow" else "auto",
        )
        self.optimizer.build(self.model.trainable_variables)

    def _epoch(self, epoch: int, advance: Callable[[int], None]) -> None:
        """Train for one epoch and write the checkpoint. Stops training if the loss is not finite."""
        started, losses, state = time.perf_counter(), [], self.state
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(self.train)
        # Sorted, so that neighbouring rows of the file are read together.
        batches = [np.sort(order[step * self.batch : (step + 1) * self.batch]) for step in range(self.steps)]
        read = ahead(lambda rows: self._inputs(self.data.shown(rows, epoch - 1)), batches, self.ahead)
        for rows, inputs in zip(batches, read, strict=True):
            labels = self.data.labels[rows]
            targets = labels[:, None].astype(np.float32)
            losses.append(float(self.model.train_on_batch(inputs, targets, sample_weight=self.weights[labels])))
            if not np.isfinite(losses[-1]):
                self._stop_diverged(f"the loss became {losses[-1]} in epoch {epoch}")
                return
            advance(self.batch)
        seconds = time.perf_counter() - started
        values = self.model.get_weights()
        # The loss is computed before each update, so only the weights show whether the last update diverged.
        if not all(np.isfinite(value).all() for value in values):
            self._stop_diverged(
                f"the loss was {losses[-1]:.3g}, but weights became infinite in the last step of epoch {epoch}"
            )
            return
        state.epoch, state.values = epoch, values
        state.optimizer = [to_numpy(variable) for variable in self.optimizer.variables]
        if self.settings.average:
            # Mean of the initial weights and of those after each epoch so far, all with equal weight.
            state.average = [
                (mean * np.float32(epoch) + value) / np.float32(epoch + 1)
                for mean, value in zip(state.average, state.values, strict=True)
            ]
        else:
            state.average = state.values
        self._judge(epoch, float(np.mean(losses)), self.steps * self.batch / seconds, seconds)

    def _stop_diverged(self, reason: str) -> None:
        """Stop training and say which weights are kept."""
        kept = _kept_epoch(self.state.history)
        self.state.diverged = True
        self.state.stopped = f"{reason}: the weights of epoch {kept} were kept. Try a smaller cnn.learning_rate."
        self._save()

    def _judge(self, epoch: int, loss: float, speed: float, seconds: float) -> None:
        """Score the averaged weights on the validation slides, keep them if best, and write a checkpoint."""
        from sklearn.metrics import roc_auc_score

        state = self.state
        auc = np.nan
        if len(self.validation):
            self.model.set_weights(state.average)
            auc = float(roc_auc_score(self.data.labels[self.validation], self._score(self.validation, 0)))
            self.model.set_weights(state.values)
        best = max((row["auc"] for row in state.history), default=-np.inf)
        # Without validation slides there is no early stopping: the last weights are kept.
        kept = bool(not len(self.validation) or auc > best)
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
        waited = epoch - _kept_epoch(state.history)
        if waited >= self.settings.patience and epoch < self.last:
            state.stopped = f"no better AUC on the validation slides for {waited} epochs"
        self._save()

    def _save(self) -> None:
        self.parts.keep(CHECKPOINT, self.state.arrays())

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Log-odds of rows, averaged over the data's symmetries; ndarray of shape (m,), float64."""
        scores = np.stack([self._score(rows, turn) for turn in range(self.data.turns)])
        return np.asarray(scores.mean(axis=0, dtype=np.float64))

    def _score(self, rows: np.ndarray, turn: int) -> np.ndarray:
        scores = []
        batches = list(_batches(rows))
        read = ahead(lambda batch: self._inputs(self.data.plain(batch, turn)), batches, self.ahead)
        for batch, inputs in zip(batches, read, strict=True):
            # A fixed number of rows: another number would recompile the network and change the order of additions.
            padded = np.concatenate(
                [inputs, np.zeros((PREDICTION_BATCH - len(inputs), *inputs.shape[1:]), inputs.dtype)]
            )
            scores.append(np.asarray(self.model.predict_on_batch(padded))[: len(batch), 0])
        return np.concatenate(scores) if scores else np.empty(0)

    def _inputs(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values, np.float32).reshape(len(values), *self.trainable.input_shape)


def _batches(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), PREDICTION_BATCH):
        yield rows[start : start + PREDICTION_BATCH]


def _kept_epoch(history: list[dict[str, Any]]) -> int:
    return max((row["epoch"] for row in history if row["kept"]), default=0)


def _class_weights(labels: np.ndarray, balanced: bool) -> np.ndarray:
    """Sample weight for each label, ndarray of shape (2,), float32."""
    if not balanced:
        return np.ones(2, np.float32)
    return (len(labels) / (2 * np.bincount(labels, minlength=2).clip(1))).astype(np.float32)


def pool(trainable: TrainablePart, plain: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Pooled channels of rows, with the current weights of the trained part; ndarray of shape (m, width), float32."""
    model = trainable.pooling()
    pooled = []
    for batch in _batches(rows):
        inputs = np.zeros((PREDICTION_BATCH, *trainable.input_shape), np.float32)
        inputs[: len(batch)] = np.asarray(plain(batch), np.float32).reshape(len(batch), *trainable.input_shape)
        pooled.append(np.asarray(model.predict_on_batch(inputs))[: len(batch)].astype(np.float32))
    return np.concatenate(pooled)
