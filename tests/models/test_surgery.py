"""Cutting a network, folding its batch norms, and writing trained weights back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from histoblend.features.networks.backend import load_keras
from histoblend.models.surgery import cut_network, fold_norms, folding_of, unfold_norms

SIDE, CHANNELS = 8, 4


def network(*, skip: bool = False) -> Any:
    """Convolution, depthwise convolution and projection, with batch norms far from the identity."""
    keras = load_keras()
    layers = keras.layers
    start = keras.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(CHANNELS, 3, padding="same", use_bias=False, name="first")(start)
    x = first = layers.ReLU(name="cut")(layers.BatchNormalization(name="first_norm")(x))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=True, name="depthwise")(x)
    x = layers.ReLU()(layers.BatchNormalization(scale=False, name="depthwise_norm")(x))
    x = layers.Conv2D(CHANNELS, 1, use_bias=False, name="project")(x)
    x = layers.Add()([layers.BatchNormalization(name="project_norm")(x), first])
    x = layers.BatchNormalization(name="alone")(x)
    if skip:
        x = layers.Add()([x, layers.Conv2D(CHANNELS, 1, name="past")(start)])
    model = keras.Model(start, x)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            for variable in layer.weights:
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(count, SIDE, SIDE, 3)).astype(np.float32)


def run(model: Any, inputs: np.ndarray) -> np.ndarray:
    return np.asarray(model(inputs, training=False))


def test_the_halves_make_the_network() -> None:
    model = network()
    halves = cut_network(model, "cut")
    assert halves is not None
    np.testing.assert_allclose(run(halves.upper, run(halves.lower, images())), run(model, images()), atol=1e-6)


def test_a_connection_past_the_cut_prevents_cutting() -> None:
    assert cut_network(network(skip=True), "cut") is None


def test_norms_fold_into_the_convolution_before_them() -> None:
    pairs = {"first": "first_norm", "depthwise": "depthwise_norm", "project": "project_norm"}
    assert folding_of(network()) == pairs


def test_folding_keeps_the_function() -> None:
    model = network()
    plain = fold_norms(model)
    np.testing.assert_allclose(run(plain, images()), run(model, images()), atol=1e-5)
    names = {layer.name for layer in plain.layers}
    assert "first_norm" not in names
    assert "alone" in names
    assert not plain.get_layer("alone").trainable


def test_depthwise_kernels_can_be_frozen() -> None:
    plain = fold_norms(network(), freeze_depthwise=True)
    trained = {variable.path for variable in plain.trainable_variables}
    assert any("project" in path for path in trained)
    assert not any("depthwise" in path for path in trained)


def test_trained_weights_are_written_back_into_the_network() -> None:
    model = network()
    before = run(model, images())
    plain = fold_norms(model)
    rng = np.random.default_rng(2)
    for variable in plain.trainable_variables:
        variable.assign(np.asarray(variable) + rng.normal(0, 0.1, variable.shape).astype(np.float32))
    expected = run(plain, images())
    assert np.abs(expected - before).max() > 0.1
    unfold_norms(plain, model)
    np.testing.assert_allclose(run(model, images()), expected, atol=1e-5)


def test_a_dead_channel_keeps_its_kernel() -> None:
    model = network()
    gamma = np.array([0.0, 1.0, 1.0, 1.0], np.float32)
    model.get_layer("project_norm").gamma.assign(gamma)
    kernel = np.asarray(model.get_layer("project").kernel).copy()
    unfold_norms(fold_norms(model), model)
    np.testing.assert_allclose(np.asarray(model.get_layer("project").kernel), kernel, atol=1e-6)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "mobilenet-v2", "densenet121"])
def test_a_backbone_of_each_kind_folds(name: str) -> None:
    from histoblend.features.networks.backbones import find_backbone, load_backbone

    row = find_backbone(name)
    body = load_backbone(name, weights="random", shape=(32, 32))
    halves = cut_network(body, row.stages[-1].layer)
    assert halves is not None
    middle = np.random.default_rng(3).uniform(0, 1, (2, 2, 2, row.stages[-1].width)).astype(np.float32)
    expected = run(halves.upper, middle)
    plain = fold_norms(halves.upper)
    assert len(plain.layers) < len(halves.upper.layers)
    np.testing.assert_allclose(run(plain, middle), expected, rtol=1e-4, atol=1e-4)


def test_folding_converts_no_variable_by_numpy_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch refuses this for tensors in GPU memory."""
    model = network()
    before = run(model, images())

    def refuse(*arguments: object) -> None:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    monkeypatch.setattr(load_keras().Variable, "__array__", refuse)
    plain = fold_norms(model)
    unfold_norms(plain, model)
    np.testing.assert_allclose(run(model, images()), before, atol=1e-5)
