"""8-bit networks: close to float32, without bias, exact on every processor, and never calibrated on held-out slides."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from onnx import TensorProto, helper, load_from_string, numpy_helper

from histoblend.data.errors import InputError
from histoblend.features.networks import onnx_export, onnx_int8
from histoblend.features.networks.onnx_export import open_session
from histoblend.features.networks.onnx_int8 import PATCHES, quantise
from histoblend.models.file_checks import check_content
from histoblend.pipelines.tables import calibration_patches

RNG = np.random.default_rng(0)
BATCHES = [RNG.integers(100, 256, (8, 24, 24, 3), dtype=np.uint8) for _ in range(2)]


def network() -> bytes:
    """Images to 6 channels: a convolution without a bias, one per channel, one of all channels, and their means."""
    shapes = {"first": (8, 3, 3, 3), "each": (8, 1, 3, 3), "mix": (6, 8, 1, 1)}
    weights = [numpy_helper.from_array(RNG.normal(0, 0.3, shape).astype(np.float32), n) for n, shape in shapes.items()]
    weights += [numpy_helper.from_array(np.linspace(-1, 1, n, dtype=np.float32), f"bias{n}") for n in (8, 6)]
    weights += [numpy_helper.from_array(np.float32(value), name) for name, value in {"low": 0, "high": 6}.items()]
    weights.append(numpy_helper.from_array(np.float32(1 / 64), "unit"))
    nodes = [
        helper.make_node("Mul", ["images", "unit"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "first"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["a", "low", "high"], ["b"], name="clip"),
        helper.make_node("Conv", ["b", "each", "bias8"], ["c"], name="each", group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "mix", "bias6"], ["d"], name="mix"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["out"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", "height", "width", 3])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 6])
    graph = helper.make_graph(nodes, "small", [images], [out], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8).SerializeToString()


def outputs(content: bytes) -> np.ndarray:
    session = open_session(content)
    return np.concatenate([session.run(None, {"images": batch.astype(np.float32)})[0] for batch in BATCHES])


@pytest.fixture(scope="module")
def plain() -> bytes:
    return network()


@pytest.fixture(scope="module")
def small(plain: bytes) -> bytes:
    return quantise("small", plain, BATCHES)


def test_an_8_bit_network_passes_the_checks_and_agrees(plain, small):
    check_content("small.onnx", small)
    kinds = [node.op_type for node in load_from_string(small).graph.node]
    assert "QuantizeLinear" in kinds
    stored = {tensor.name: tensor.data_type for tensor in load_from_string(small).graph.initializer}
    assert [stored[f"{name}_quantized"] for name in ("first", "each", "mix")] == [TensorProto.INT8] * 3
    expected = outputs(plain)
    assert np.abs(outputs(small) - expected).max() < 0.05 * np.abs(expected).max()


def test_biases_take_away_the_mean_error_of_rounded_weights(plain, small, monkeypatch):
    monkeypatch.setattr(onnx_int8, "_correct_biases", lambda *_: None)
    rounded = quantise("small", plain, BATCHES)
    corrected, shifted = (np.abs((outputs(copy) - outputs(plain)).mean(axis=0)) for copy in (small, rounded))
    assert corrected.sum() < 0.4 * shifted.sum()


def test_a_network_that_8_bits_change_is_refused(plain, monkeypatch):
    monkeypatch.setattr(onnx_int8, "_agreement", lambda *_: 0.9)
    with pytest.raises(InputError, match=r'small: precision "int8" must agree with float32 to 0.995 .*; got 0.9000'):
        quantise("small", plain, BATCHES)


def test_a_lower_correlation_of_scores_counts(plain, monkeypatch):
    """Cosines near 1 can hide a shuffled first output, which ranks patches."""
    values = np.column_stack([np.arange(8.0), np.full((8, 2), 1e4)])
    results = iter([values, values[[1, 0, 3, 2, 5, 4, 7, 6]]] * 2)
    monkeypatch.setattr(onnx_int8, "_run", lambda *_: [next(results)])
    assert onnx_int8._agreement(plain, plain, BATCHES[:1], False) > 0.9999
    assert onnx_int8._agreement(plain, plain, BATCHES[:1], True) < 0.95


def test_processors_whose_products_overflow_get_exact_ones(small, monkeypatch):
    expected = outputs(small)
    for overflows in (True, False):
        monkeypatch.setattr(onnx_export, "_overflows", lambda answer=overflows: answer)
        np.testing.assert_array_equal(outputs(small), expected)


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_patches_never_calibrate(seed):
    count = 3 * PATCHES
    split = np.where(np.arange(count) % 3 == 0, "test", "train")
    patches = SimpleNamespace(table=pd.DataFrame({"split": split}), pixels=np.arange(count))
    chosen = calibration_patches(patches, seed)
    assert len(np.unique(chosen)) == PATCHES
    assert set(split[chosen]) == {"train"}
    assert (chosen != calibration_patches(patches, seed + 1)).any()
