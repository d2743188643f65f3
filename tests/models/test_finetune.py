"""Fine-tuning: training and validation rows, early stopping, and resuming with identical results."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from histoblend.features.networks.backend import load_keras
from histoblend.models.cnn import CnnSettings, TrainablePart
from histoblend.models.finetune import CHECKPOINT, FineTuned, TrainingData, fine_tune, pool

SIDE = 32
SETTINGS = CnnSettings(
    backbone="efficientnet-lite0",
    weights="random",
    size=SIDE,
    trained="top",
    epochs=3,
    patience=3,
    batch=8,
    learning_rate=1e-2,
)
PATCHES = 60
SHAPE = (SIDE // 16, SIDE // 16, 112)


class SmallPart(TrainablePart):
    """A trainable part of one layer. What is tested here does not depend on the layers, which take long to compile."""

    def __init__(self) -> None:
        keras = load_keras()
        self.settings, self.shape, self.input_shape, self.width = SETTINGS, (SIDE, SIDE), SHAPE, 8
        keras.utils.set_random_seed(0)
        self.lower = keras.Sequential([keras.Input(SHAPE)])
        maps = keras.Input(SHAPE)
        self._trained = keras.Model(maps, keras.layers.Conv2D(self.width, 1, activation="relu")(maps))
        self._pretrained = self._trained.get_weights()


@pytest.fixture(scope="module")
def trainable() -> TrainablePart:
    return SmallPart()


@pytest.fixture(scope="module")
def data(trainable: TrainablePart) -> TrainingData:
    """Feature maps whose first channels are larger in positives, in 10 slides."""
    rng = np.random.default_rng(0)
    labels = np.arange(PATCHES) % 2
    maps = rng.normal(0, 1, (PATCHES, *SHAPE)).astype(np.float16)
    maps[labels == 1, ..., :20] += np.float16(1.5)
    flat = maps.reshape(PATCHES, -1)

    def shown(rows: np.ndarray, epoch: int) -> np.ndarray:
        return flat[rows] * np.float16(1 + 0.01 * epoch)

    def plain(rows: np.ndarray, turn: int) -> np.ndarray:
        return flat[rows]

    pooled = pool(trainable, lambda rows: plain(rows, 0), np.arange(PATCHES))[None]
    return TrainingData(shown, plain, pooled, labels, np.repeat(np.arange(10), PATCHES // 10))


ROWS = np.arange(48)


def tune(
    trainable: TrainablePart, data: TrainingData, folder: Path, settings: CnnSettings = SETTINGS, **options: Any
) -> tuple[FineTuned, Callable[[np.ndarray], np.ndarray]]:
    return fine_tune(settings, trainable, data, ROWS, folder, **options)


@pytest.fixture(scope="module")
def tuned(
    trainable: TrainablePart, data: TrainingData, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FineTuned, np.ndarray]:
    result, predict = tune(trainable, data, tmp_path_factory.mktemp("whole"))
    return result, predict(np.arange(48, PATCHES))


def test_training_learns_the_planted_signal(tuned: tuple[FineTuned, np.ndarray], data: TrainingData) -> None:
    result, log_odds = tuned
    assert list(result.history["epoch"]) == [0, 1, 2, 3]
    assert result.history["loss"].iloc[-1] < result.history["loss"].iloc[1]
    labels = data.labels[48:]
    assert log_odds[labels == 1].mean() > log_odds[labels == 0].mean() + 0.5


def test_a_finished_training_leaves_no_graph_in_memory(
    trainable: TrainablePart, data: TrainingData, tmp_path: Path
) -> None:
    def graphs() -> int:
        gc.collect()
        return sum(type(thing).__name__ == "FuncGraph" for thing in gc.get_objects())

    before = graphs()
    tune(trainable, data, tmp_path, replace(SETTINGS, epochs=1))
    assert graphs() <= before


def test_a_killed_training_ends_with_the_same_weights(
    trainable: TrainablePart, data: TrainingData, tuned: tuple[FineTuned, np.ndarray], tmp_path: Path
) -> None:
    def kill(row: dict[str, Any]) -> None:
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(trainable, data, tmp_path, watch=kill)
    seen: list[int] = []
    result, predict = tune(trainable, data, tmp_path, advance=seen.append)
    for one, other in zip(result.values, tuned[0].values, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(predict(np.arange(48, PATCHES)), tuned[1])
    # The finished epoch is counted at once; none of its steps is repeated.
    assert seen[0] == max(seen)


def test_a_finished_training_is_not_repeated(trainable: TrainablePart, data: TrainingData, tmp_path: Path) -> None:
    settings = CnnSettings(**{**vars(SETTINGS), "epochs": 1})
    first, _ = tune(trainable, data, tmp_path, settings)
    seen: list[int] = []
    again, _ = tune(trainable, data, tmp_path, settings, advance=seen.append)
    assert len(seen) == 1
    for one, other in zip(first.values, again.values, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_damaged_checkpoint_restarts_training(
    trainable: TrainablePart, data: TrainingData, tuned: tuple[FineTuned, np.ndarray], tmp_path: Path
) -> None:
    tune(trainable, data, tmp_path)
    path = tmp_path / "seed-0" / f"{CHECKPOINT}.npz"
    path.write_bytes(path.read_bytes()[:-100])
    result, _ = tune(trainable, data, tmp_path)
    for one, other in zip(result.values, tuned[0].values, strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_outside_of_training_have_no_effect(
    trainable: TrainablePart, data: TrainingData, tuned: tuple[FineTuned, np.ndarray], tmp_path: Path
) -> None:
    labels, pooled = data.labels.copy(), data.pooled.copy()
    labels[48:] = 1 - labels[48:]
    pooled[:, 48:] = 1e6
    other = TrainingData(data.shown, data.plain, pooled, labels, data.groups)
    result, _ = tune(trainable, other, tmp_path)
    for one, two in zip(result.values, tuned[0].values, strict=True):
        np.testing.assert_array_equal(one, two)


def test_validation_slides_are_never_trained_on(trainable: TrainablePart, data: TrainingData, tmp_path: Path) -> None:
    trained: set[int] = set()
    judged: set[int] = set()

    def shown(rows: np.ndarray, epoch: int) -> np.ndarray:
        trained.update(data.groups[rows].tolist())
        return data.shown(rows, epoch)

    def plain(rows: np.ndarray, turn: int) -> np.ndarray:
        judged.update(data.groups[rows].tolist())
        return data.plain(rows, turn)

    tune(trainable, TrainingData(shown, plain, data.pooled, data.labels, data.groups), tmp_path)
    assert judged
    assert trained
    assert not judged & trained
    assert judged | trained == set(data.groups[ROWS].tolist())


def test_a_loss_that_is_not_finite_keeps_the_last_good_weights(
    trainable: TrainablePart, data: TrainingData, tmp_path: Path
) -> None:
    settings = CnnSettings(**{**vars(SETTINGS), "learning_rate": 1e30})
    result, predict = tune(trainable, data, tmp_path, settings)
    assert "the loss became" in result.stopped
    assert "the weights of epoch 0 were kept" in result.stopped
    assert "cnn.learning_rate" in result.stopped
    assert result.diverged
    assert list(result.history["epoch"]) == [0]
    assert np.isfinite(predict(ROWS)).all()


def test_training_stops_when_the_validation_auc_stops_improving(
    trainable: TrainablePart, data: TrainingData, tmp_path: Path
) -> None:
    settings = CnnSettings(**{**vars(SETTINGS), "epochs": 6, "patience": 1, "learning_rate": 1e-9})
    result, _ = tune(trainable, data, tmp_path, settings)
    assert "no better AUC" in result.stopped
    assert not result.diverged
    assert len(result.history) == 2
    assert result.history["kept"].tolist() == [True, False]


def test_a_given_number_of_epochs_trains_on_all_slides(
    trainable: TrainablePart, data: TrainingData, tmp_path: Path
) -> None:
    trained: set[int] = set()

    def shown(rows: np.ndarray, epoch: int) -> np.ndarray:
        trained.update(rows.tolist())
        return data.shown(rows, epoch)

    def plain(rows: np.ndarray, turn: int) -> np.ndarray:
        raise AssertionError("there are no validation slides")

    given = TrainingData(shown, plain, data.pooled, data.labels, data.groups)
    result, _ = tune(trainable, given, tmp_path / "one", exactly=1)
    assert result.history["epoch"].tolist() == [0, 1]
    assert result.history["auc"].isna().all()
    assert trained == set(ROWS.tolist())
    trained.clear()
    result, _ = tune(trainable, given, tmp_path / "none", exactly=0)
    assert result.history["epoch"].tolist() == [0]
    assert not trained


def test_the_loss_of_an_epoch_is_the_mean_over_its_batches(
    trainable: TrainablePart, data: TrainingData, tmp_path: Path
) -> None:
    still = replace(SETTINGS, epochs=1, learning_rate=1e-12, label_smoothing=0.0)
    result, predict = tune(trainable, data, tmp_path, still, exactly=1)
    signs = 1 - 2 * data.labels[ROWS]
    expected = np.logaddexp(0, signs * predict(ROWS)).mean()
    assert result.history["loss"].iloc[1] == pytest.approx(expected, rel=1e-4)


def test_zero_epochs_give_the_head_alone(trainable: TrainablePart, data: TrainingData, tmp_path: Path) -> None:
    from histoblend.models.heads.logistic import LogisticHead

    settings = CnnSettings(**{**vars(SETTINGS), "epochs": 0})
    _, predict = tune(trainable, data, tmp_path, settings)
    head = LogisticHead(seed=0).fit(data.pooled[0][ROWS], data.labels[ROWS], data.groups[ROWS])
    expected = head.predict_proba(data.pooled[0][48:])[:, 1]
    np.testing.assert_allclose(1 / (1 + np.exp(-predict(np.arange(48, PATCHES)))), expected, atol=1e-4)


def test_no_variable_is_converted_by_numpy_directly(
    trainable: TrainablePart, data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch refuses this for tensors in GPU memory."""
    keras = load_keras()

    def refuse(*arguments: Any) -> None:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    monkeypatch.setattr(keras.Variable, "__array__", refuse)
    settings = CnnSettings(**{**vars(SETTINGS), "epochs": 1})
    result, _ = tune(trainable, data, tmp_path, settings)
    assert result.history["epoch"].tolist() == [0, 1]
    assert result.history["rate"].iloc[1] > 0


def test_several_seeds_are_averaged_into_one_network(
    trainable: TrainablePart, data: TrainingData, tmp_path: Path
) -> None:
    out = np.arange(48, PATCHES)
    settings = {**vars(SETTINGS), "learning_rate": 1e-5, "epochs": 1}
    alone = []
    for seed in (0, 1):
        one, predict = tune(trainable, data, tmp_path / str(seed), CnnSettings(**{**settings, "seed": seed}))
        alone.append((one, predict(out)))
    seen: list[int] = []
    both, predict = tune(
        trainable, data, tmp_path / "both", CnnSettings(**{**settings, "seeds": 2}), advance=seen.append
    )
    log_odds = predict(out)
    for index in range(len(both.values) - 2):
        np.testing.assert_allclose(
            both.values[index], (alone[0][0].values[index] + alone[1][0].values[index]) / 2, atol=1e-6
        )
    # They have different validation slides, so their heads use different means and scales.
    assert (alone[0][0].mean != alone[1][0].mean).any()
    assert (alone[0][1] != alone[1][1]).any()
    np.testing.assert_allclose(log_odds, (alone[0][1] + alone[1][1]) / 2, atol=0.02)
    assert sum(seen) == 2 * sum(seen[: len(seen) // 2])
    # A second call repeats neither.
    again: list[int] = []
    tune(trainable, data, tmp_path / "both", CnnSettings(**{**settings, "seeds": 2}), advance=again.append)
    assert len(again) == 2
