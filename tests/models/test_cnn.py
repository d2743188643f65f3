"""The fine-tuned network: its inputs, its stored files and its predictions."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from histoblend.data.errors import InputError
from histoblend.features.networks.engines import Engine
from histoblend.features.networks.views import resize
from histoblend.models.bundled_cnn import lighten_cnn
from histoblend.models.cnn import (
    DESCRIPTION,
    KERAS_FILE,
    ONNX_FILE,
    CnnSettings,
    PatchTransform,
    TrainablePart,
    cnn_from,
    open_cnn,
    store_cnn,
    turn_patch,
)

SIDE = 32
SETTINGS = CnnSettings(backbone="efficientnet-lite0", weights="random", size=SIDE, trained="top")
ONNX = Engine("onnx", "tensorflow", "float32", False)
KERAS = Engine("keras", "tensorflow", "float32", False)
MEAN, SCALE = np.linspace(-1, 1, 1280), np.linspace(0.5, 2, 1280)


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (11, 24, 24, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def trained() -> tuple[TrainablePart, list[np.ndarray]]:
    """A trainable part, and weights that differ from its initial weights."""
    trainable = TrainablePart(SETTINGS, (SIDE, SIDE))
    model = trainable.model(MEAN, SCALE)
    rng = np.random.default_rng(1)
    values = [value + rng.normal(0, 0.01, value.shape).astype(np.float32) for value in model.get_weights()]
    frozen = {id(variable) for variable in model.non_trainable_variables}
    values = [
        initial if id(variable) in frozen else altered
        for variable, initial, altered in zip(model.weights, model.get_weights(), values, strict=True)
    ]
    return trainable, values


@pytest.fixture(scope="module")
def network(trained: tuple[TrainablePart, list[np.ndarray]]) -> Any:
    trainable, values = trained
    return trainable.whole(values, MEAN, SCALE)


@pytest.fixture(scope="module")
def stored(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cnn")
    store_cnn(network, SETTINGS, (SIDE, SIDE), ONNX, folder)
    return folder


def test_the_whole_network_equals_the_trained_part_after_the_frozen_layers(
    trained: tuple[TrainablePart, list[np.ndarray]], network: Any
) -> None:
    trainable, values = trained
    assert trainable.lower is not None
    pictures = np.random.default_rng(2).uniform(0, 255, (3, SIDE, SIDE, 3)).astype(np.float32)
    model = trainable.model(MEAN, SCALE)
    before = model.get_weights()
    model.set_weights(values)
    expected = np.asarray(model(trainable.lower(pictures), training=False))
    model.set_weights(before)
    np.testing.assert_allclose(np.asarray(network(pictures, training=False)), expected, rtol=1e-3, atol=1e-3)


def test_only_standard_keras_layers_are_stored(network: Any) -> None:
    from histoblend.features.networks.backend import load_keras

    keras = load_keras()
    assert all(type(layer).__module__.startswith("keras.") for layer in network.layers)
    assert isinstance(network.layers[-1], keras.layers.Dense)


def test_all_layers_can_be_trained(patches: np.ndarray) -> None:
    trainable = TrainablePart(replace(SETTINGS, trained="all", batch_norm="trained"), (SIDE, SIDE))
    assert trainable.lower is None
    assert trainable.input_shape == (SIDE, SIDE, 3)
    model = trainable.model(MEAN, SCALE)
    names = {variable.path.split("/")[-2] for variable in model.trainable_variables}
    assert any("depthwise" in name for name in names)
    assert any("norm" in name for name in names)


@pytest.fixture(scope="module")
def by_keras(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keras")
    store_cnn(network, SETTINGS, (SIDE, SIDE), KERAS, folder)
    assert not (folder / ONNX_FILE).exists()
    return folder


def test_the_engines_agree(stored: Path, by_keras: Path, patches: np.ndarray) -> None:
    np.testing.assert_allclose(open_cnn(by_keras)(patches), open_cnn(stored)(patches), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ["onnx", "keras"])
def test_a_patch_gets_the_same_values_in_any_batch(
    stored: Path, by_keras: Path, patches: np.ndarray, engine: str
) -> None:
    compute = open_cnn(stored if engine == "onnx" else by_keras)
    together = compute(patches)
    assert together.shape == (len(patches), compute.width)
    assert together.dtype == np.float32
    alone = np.concatenate([compute(patch[None]) for patch in patches])
    np.testing.assert_allclose(together, alone, rtol=0, atol=0 if engine == "onnx" else 1e-6)


def test_turning_a_patch_changes_nothing(stored: Path, patches: np.ndarray) -> None:
    compute = open_cnn(stored)
    patches = resize(patches, SIDE)  # before turning, because resizing rounds rows first, then columns
    turned = np.stack([turn_patch(patch, 5) for patch in patches])
    np.testing.assert_allclose(compute(turned)[:, 0], compute(patches)[:, 0], rtol=1e-4, atol=1e-4)
    without = replace(compute, symmetries=1)
    assert np.abs(without(turned) - without(patches))[:, 0].max() > 1e-3
    # Channels are those of the unturned patch, with or without the other views.
    np.testing.assert_allclose(compute(patches)[:, 1:], without(patches)[:, 1:], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(compute(patches, plain=True), without(patches))


def test_the_eight_turns_are_the_symmetries_of_the_square() -> None:
    from histoblend.features.networks.views import symmetries

    patch = np.random.default_rng(3).integers(0, 256, (1, 5, 5, 3)).astype(np.uint8)
    for turn, expected in enumerate(symmetries(patch)):
        np.testing.assert_array_equal(turn_patch(patch[0], turn), expected[0])


@pytest.mark.parametrize("stain", ["jitter", "none", "macenko"])
def test_the_input_of_a_patch_depends_on_that_patch_only(patches: np.ndarray, stain: str) -> None:
    transform = PatchTransform(SIDE, stain, 0.2, 0, None, turn=None, slot=1)
    together = transform(patches)
    assert together.shape == (len(patches), SIDE * SIDE * 3)
    assert together.dtype == np.float16
    np.testing.assert_array_equal(np.concatenate([transform(patch[None]) for patch in patches]), together)
    other = replace(transform, slot=2)(patches)
    assert (other != together).any(axis=1).all()


def test_a_plain_view_is_the_patch_itself(patches: np.ndarray) -> None:
    transform = PatchTransform(0, "jitter", 0.5, 0, None, turn=0)
    np.testing.assert_array_equal(transform(patches).reshape(patches.shape), patches)


def test_patches_of_another_dtype_are_refused(stored: Path) -> None:
    with pytest.raises(ValueError, match=r"uint8 RGB of shape \(n, side, side, 3\); got float32"):
        open_cnn(stored)(np.zeros((2, 32, 32, 3), np.float32))


def test_paths_of_the_training_machine_are_not_stored(network: Any, tmp_path: Path) -> None:
    settings = replace(SETTINGS, weights="/secret/place/weights.pth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("histoblend.models.cnn.export_model", lambda *_: (tmp_path / ONNX_FILE).write_bytes(b""))
        store_cnn(network, settings, (SIDE, SIDE), ONNX, tmp_path)
    assert "secret" not in (tmp_path / DESCRIPTION).read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "expected format 3; got 99"),
        ({"settings": {"unknown": 1}}, "expected a fine-tuned network"),
        ({"shape": None}, "expected a fine-tuned network"),
    ],
)
def test_a_damaged_description_is_refused(stored: Path, change: dict[str, Any], message: str) -> None:
    content = {path.name: path.read_bytes() for path in stored.iterdir()}
    description = json.loads(content[DESCRIPTION]) | change
    with pytest.raises(InputError, match=message):
        cnn_from(content | {DESCRIPTION: json.dumps(description).encode()}, "bundle")


def linked(stored: Path, folder: Path) -> dict[str, bytes]:
    """Fill a folder with links to the stored files, as a bundle does; return their content."""
    for path in stored.iterdir():
        os.link(path, folder / path.name)
    return {path.name: path.read_bytes() for path in stored.iterdir()}


@pytest.mark.parametrize("count", [1, 4])
def test_a_bundle_averages_the_first_symmetries_and_changes_no_file_of_the_step(
    stored: Path, patches: np.ndarray, tmp_path: Path, count: int
) -> None:
    before = linked(stored, tmp_path)
    assert not lighten_cnn(tmp_path, patches, symmetries=count, precision="float32")
    assert {path.name: path.read_bytes() for path in stored.iterdir()} == before
    square, one = resize(patches, SIDE), replace(open_cnn(stored), symmetries=1)
    turned = [one(np.stack([turn_patch(patch, turn) for patch in square]))[:, 0] for turn in range(count)]
    np.testing.assert_allclose(open_cnn(tmp_path)(patches)[:, 0], np.mean(turned, axis=0), rtol=1e-4, atol=1e-4)


def test_a_bundle_runs_the_network_in_8_bits_if_that_hardly_changes_it(
    stored: Path, by_keras: Path, patches: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = linked(stored, tmp_path)
    options: dict[str, Any] = {"symmetries": 8, "precision": "auto"}
    refusing = Mock(side_effect=InputError("too different"))
    with monkeypatch.context() as patch:
        patch.setattr("histoblend.models.bundled_cnn.quantise", refusing)
        assert lighten_cnn(tmp_path, patches, **options) == "too different"
        assert (tmp_path / ONNX_FILE).read_bytes() == before[ONNX_FILE]
        with pytest.raises(InputError, match="too different"):
            lighten_cnn(tmp_path, patches, symmetries=8, precision="int8")
        patch.setattr("histoblend.models.bundled_cnn.quantise", made := Mock(return_value=b"8 bits"))
        assert not lighten_cnn(tmp_path, patches, **options)
    assert (tmp_path / ONNX_FILE).read_bytes() == b"8 bits"
    assert (stored / ONNX_FILE).read_bytes() == before[ONNX_FILE]
    # It is calibrated on patches as the network takes them, and its log-odds must keep their ranking.
    assert made.call_args.args[1] == before[ONNX_FILE]
    np.testing.assert_array_equal(np.concatenate(made.call_args.args[2]), resize(patches, SIDE))
    assert made.call_args.kwargs == {"scores": True}
    with pytest.raises(InputError, match="needs a network run by ONNX Runtime; got one of Keras"):
        lighten_cnn(by_keras, patches, symmetries=8, precision="int8")


@pytest.mark.parametrize("name", [DESCRIPTION, ONNX_FILE])
def test_a_missing_file_is_refused(stored: Path, name: str) -> None:
    content = {path.name: path.read_bytes() for path in stored.iterdir() if path.name != name}
    assert KERAS_FILE in content
    with pytest.raises(InputError, match="expected a fine-tuned network"):
        cnn_from(content, "bundle")
