"""Networks in 8-bit integers: quantise an ONNX file, with ranges and mean errors measured on patches."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from histoblend.data.errors import InputError
from histoblend.features.networks.onnx_export import open_session

#: Operators that run on integers. The rest, such as the head of a network, costs little and stays float32.
QUANTISED = ("Conv", "Clip", "Relu", "Add")

#: Smallest agreement of the float32 network and its 8-bit copy: the mean cosine between their outputs. For scores, also
#: the correlation.
MIN_AGREEMENT = 0.995

#: Patches that a network is calibrated on.
PATCHES = 128


def sample_rows(count: int, seed: int = 0) -> np.ndarray:
    """Row numbers of at most PATCHES patches to calibrate on, a random sample in order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:PATCHES])


def quantise(name: str, content: bytes, batches: Sequence[np.ndarray], *, scores: bool = False) -> bytes:
    """Make an 8-bit copy of a network: weights per channel, activations per tensor.

    Rounding a weight shifts the output of its channel, because activations are not centred on zero. This shift is most
    of the error, so it is computed from the mean of each input channel and subtracted from the bias (Nagel et al.
    2019). Activations are rounded between their extremes, because a range without outliers was worse.

    Parameters
    ----------
    name : str
        The network's name, for messages.
    content : bytes
        ONNX file from :func:`features.networks.onnx_export.export_model`.
    batches : sequence of ndarray of shape (n, height, width, 3), dtype uint8
        Inputs to calibrate on.
    scores : bool
        Whether the first output is a score, which must keep its ranking.

    Returns
    -------
    bytes
        ONNX file.

    Raises
    ------
    InputError
        The copy differs too much from the network.

    References
    ----------
    Nagel, van Baalen, Blankevoort & Welling (2019), ICCV, Data-free quantization through weight equalization and bias
    correction.
    """
    with tempfile.TemporaryDirectory() as folder:
        network = _folded(content, Path(folder, "folded.onnx"))
        means = _input_means(network, batches)
        copy = _quantised(network, batches, Path(folder))
    _correct_biases(network, copy, means)
    result: bytes = copy.SerializeToString()
    agreement = _agreement(content, result, batches, scores)
    if not agreement >= MIN_AGREEMENT:
        raise InputError(
            f'{name}: precision "int8" must agree with float32 to {MIN_AGREEMENT} (cosine or correlation of outputs); '
            f'got {agreement:.4f}. Choose precision "float32" for this network.'
        )
    return result


def _folded(content: bytes, path: Path) -> Any:
    """The network with batch norms folded into convolutions, all of which have a bias."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    kinds = ["CPUExecutionProvider"]
    # Shared constants would give several convolutions the same bias.
    onnxruntime.InferenceSession(content, options, providers=kinds, disabled_optimizers=["ConstantSharing"])
    network = onnx.load(path)
    weights = _weights(network)
    for number, node in enumerate(_convolutions(network, weights)):
        if len(node.input) < 3:
            zeros = np.zeros(weights[node.input[1]].dims[0], np.float32)
            network.graph.initializer.append(onnx.numpy_helper.from_array(zeros, f"zero_bias_{number}"))
            node.input.append(f"zero_bias_{number}")
    del network.graph.value_info[:]
    plain = [entry for entry in network.opset_import if not entry.domain]  # all domains that ONNX Runtime knows
    del network.opset_import[:]
    network.opset_import.extend(plain)
    # Says that this preparation was done; the library would otherwise advise it on standard error.
    onnx.helper.set_model_props(network, {"onnx.quant.pre_process": "onnxruntime.quant"})
    onnx.save(network, path)
    return network


def _weights(network: Any) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in network.graph.initializer}


def _convolutions(network: Any, weights: dict[str, Any]) -> list[Any]:
    return [node for node in network.graph.node if node.op_type == "Conv" and node.input[1] in weights]


def _input_means(network: Any, batches: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Mean of each channel over patches and pixels, for the input of each convolution."""
    import onnx

    wider = onnx.ModelProto()
    wider.CopyFrom(network)
    names = sorted({node.input[0] for node in _convolutions(network, _weights(network))})
    for name in names:
        wider.graph.node.append(onnx.helper.make_node("GlobalAveragePool", [name], [f"{name}_mean"]))
    del wider.graph.output[:]
    wider.graph.output.extend(onnx.helper.make_empty_tensor_value_info(f"{name}_mean") for name in names)
    session = open_session(wider.SerializeToString())
    outputs = [_run(session, batch) for batch in batches]
    return {
        name: np.concatenate([batch[index] for batch in outputs]).mean(axis=(0, 2, 3), dtype=np.float64)
        for index, name in enumerate(names)
    }


def _quantised(network: Any, batches: Sequence[np.ndarray], folder: Path) -> Any:
    import onnx
    from onnxruntime import quantization

    name = network.graph.input[0].name

    class Reader(quantization.CalibrationDataReader):
        left = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.left, None)
            return None if batch is None else {name: batch.astype(np.float32)}

    quantization.quantize_static(
        folder / "folded.onnx",
        folder / "int8.onnx",
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=list(QUANTISED),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return onnx.load(folder / "int8.onnx")


def _correct_biases(network: Any, copy: Any, means: dict[str, np.ndarray]) -> None:
    """Subtract from each bias of the copy how much its rounded weights shift the mean output."""
    from onnx import numpy_helper

    plain, rounded = _weights(network), _weights(copy)
    for node in _convolutions(network, plain):
        _, weight, bias = node.input[:3]
        if f"{weight}_quantized" not in rounded or f"{bias}_quantized" not in rounded:
            continue
        kernel = numpy_helper.to_array(plain[weight]).astype(np.float64)
        scale = numpy_helper.to_array(rounded[f"{weight}_scale"]).reshape(-1, 1, 1, 1)
        error = (numpy_helper.to_array(rounded[f"{weight}_quantized"]) * scale - kernel).sum(axis=(2, 3))
        groups = len(means[node.input[0]]) // kernel.shape[1]
        # Each output channel reads the input channels of its group.
        inputs = means[node.input[0]].reshape(groups, 1, -1)
        shift = (error.reshape(groups, -1, kernel.shape[1]) * inputs).sum(axis=2).ravel()
        stored = rounded[f"{bias}_quantized"]
        unit = numpy_helper.to_array(rounded[f"{bias}_quantized_scale"])
        values = numpy_helper.to_array(stored) - np.round(shift / unit)
        stored.CopyFrom(numpy_helper.from_array(values.astype(np.int32), stored.name))


def _agreement(content: bytes, copy: bytes, batches: Sequence[np.ndarray], scores: bool) -> float:
    """Mean cosine of the outputs of a network and of its copy, or the correlation of scores if that is lower."""
    first, second = (
        np.concatenate([_run(session, batch)[0] for batch in batches]).astype(np.float64)
        for session in map(open_session, (content, copy))
    )
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosine = float(((first * second).sum(axis=1) / np.where(lengths > 0, lengths, 1)).mean())
    return min(cosine, float(np.corrcoef(first[:, 0], second[:, 0])[0, 1])) if scores else cosine


def _run(session: Any, batch: np.ndarray) -> list[np.ndarray]:
    outputs: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: batch.astype(np.float32)})
    return outputs
