"""Cut a pretrained network in two, and fold batch norms of the upper half into convolutions for training.

The lower half is frozen, so its feature maps can be computed once and stored. Batch norms keep the statistics of the
pretraining, because a batch of patches comes from few slides and would have the statistics of those slides. A frozen
batch norm is a scale and a shift, which a convolution can absorb exactly. The folded network computes the same function
and trains much faster. Afterwards its trained weights are written back into the original layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from histoblend.features.networks.backend import load_keras, to_numpy

if TYPE_CHECKING:
    import keras

#: A channel that a norm scales by less than this cannot be trained.
SMALLEST_SCALE = 1e-6


class Halves(NamedTuple):
    """A network cut in two: ``upper(lower(images))`` is the network. The layers are shared with the network.

    Attributes
    ----------
    lower : keras.Model
        Images (n, height, width, 3) float32 of 0..255 to the feature map at the cut.
    upper : keras.Model
        Feature map at the cut to the last feature map.
    """

    lower: keras.Model
    upper: keras.Model


def cut_network(network: keras.Model, layer: str) -> Halves | None:
    """Cut a network after a layer.

    Parameters
    ----------
    network : keras.Model
        Functional, with one input and one output.
    layer : str
        Name of the layer before the cut.

    Returns
    -------
    Halves or None
        None if a connection bypasses that layer, because the halves would then share more than one feature map.
    """
    keras = load_keras()
    middle = network.get_layer(layer).output
    if not _separates(network, middle):
        return None
    return Halves(keras.Model(network.input, middle), keras.Model(middle, network.output))


def _separates(network: keras.Model, middle: Any) -> bool:
    """Whether every path from the input to the output passes through ``middle``."""
    queue, seen = [network.output], set()
    while queue:
        tensor = queue.pop()
        if tensor is middle or id(tensor) in seen:
            continue
        if tensor is network.input:
            return False
        seen.add(id(tensor))
        history = tensor._keras_history
        queue += history.operation._inbound_nodes[history.node_index].input_tensors
    return True


def folding_of(upper: keras.Model) -> dict[str, str]:
    """Find the batch norms that can be folded: those that are the only user of a convolution's output.

    Returns
    -------
    dict of str to str
        Name of the convolution to name of its batch norm. Separable convolutions are left out, because their two
        kernels share one output.
    """
    keras = load_keras()
    users: dict[int, int] = {}
    inside = [layer for layer in upper.layers if not isinstance(layer, keras.layers.InputLayer)]
    for layer in inside:
        for node in layer._inbound_nodes:
            for tensor in node.input_tensors:
                users[id(tensor)] = users.get(id(tensor), 0) + 1
    pairs = {}
    for layer in inside:
        if not isinstance(layer, keras.layers.BatchNormalization) or _axis(layer) != 3 or not layer.center:
            continue
        source = layer.input._keras_history.operation
        plain = type(source) in (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
        if plain and users[id(layer.input)] == 1 and source.activation is keras.activations.linear:
            pairs[source.name] = layer.name
    return pairs


def _axis(norm: Any) -> int:
    axis = norm.axis if isinstance(norm.axis, int) else norm.axis[0]
    return axis % 4


def fold_norms(
    upper: keras.Model, *, freeze_depthwise: bool = False, shape: tuple[int, ...] | None = None
) -> keras.Model:
    """Copy a network with its batch norms folded into the convolutions before them.

    Parameters
    ----------
    upper : keras.Model
        Not changed.
    freeze_depthwise : bool
        Freeze depthwise kernels. They are 1 % of the weights, but their gradient takes most of a training step on a
        CPU.
    shape : tuple of int, optional
        Fix the shape of one input; by default it is that of ``upper``.

    Returns
    -------
    keras.Model
        The same function of the same input in inference. Batch norms that cannot be folded remain, frozen. Layers keep
        their names.
    """
    keras = load_keras()
    norm_of = folding_of(upper)
    folded = set(norm_of.values())

    def copy(layer: Any) -> Any:
        if layer.name in folded:
            return layer  # never called
        config = layer.get_config()
        if layer.name in norm_of:
            config["use_bias"] = True
        return type(layer).from_config(config)

    def call(layer: Any, *inputs: Any, **options: Any) -> Any:
        return inputs[0] if layer.name in folded else layer(*inputs, **options)

    start = keras.Input(shape or upper.input.shape[1:], dtype=upper.input.dtype)
    plain = keras.models.clone_model(upper, clone_function=copy, call_function=call, input_tensors=start)
    for layer in upper.layers:
        if layer.name in norm_of:
            twin = plain.get_layer(layer.name)
            kernel, bias = _fold(layer, upper.get_layer(norm_of[layer.name]))
            twin.kernel.assign(kernel)
            twin.bias.assign(bias)
        elif layer.weights and layer.name not in folded:
            plain.get_layer(layer.name).set_weights(layer.get_weights())
    for layer in plain.layers:
        norm = isinstance(layer, keras.layers.BatchNormalization)
        if norm or (freeze_depthwise and isinstance(layer, keras.layers.DepthwiseConv2D)):
            layer.trainable = False
    return plain


def unfold_norms(plain: keras.Model, upper: keras.Model) -> None:
    """Write the weights of a folded copy back into the original network.

    Parameters
    ----------
    plain : keras.Model
        Trained network from :func:`fold_norms`.
    upper : keras.Model
        The original, modified in place to compute the same function as ``plain``. Batch norms keep their statistics;
        trained biases are written into their shifts.
    """
    norm_of = folding_of(upper)
    folded = set(norm_of.values())
    for layer in upper.layers:
        if layer.name in folded or not layer.weights:
            continue
        twin = plain.get_layer(layer.name)
        if layer.name not in norm_of:
            layer.set_weights(twin.get_weights())
            continue
        norm = upper.get_layer(norm_of[layer.name])
        scale = _scale(norm)
        before = to_numpy(layer.kernel)
        trained = to_numpy(twin.kernel) / _per_channel(layer, np.where(np.abs(scale) > SMALLEST_SCALE, scale, 1.0))
        layer.kernel.assign(np.where(_per_channel(layer, np.abs(scale) > SMALLEST_SCALE), trained, before))
        offset = to_numpy(layer.bias) if layer.use_bias else 0.0
        norm.beta.assign(to_numpy(twin.bias) - (offset - to_numpy(norm.moving_mean)) * scale)


def _fold(convolution: Any, norm: Any) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of a convolution that absorbs the batch norm after it."""
    scale = _scale(norm)
    offset = to_numpy(convolution.bias) if convolution.use_bias else 0.0
    kernel = to_numpy(convolution.kernel) * _per_channel(convolution, scale)
    return kernel, (offset - to_numpy(norm.moving_mean)) * scale + to_numpy(norm.beta)


def _scale(norm: Any) -> np.ndarray:
    gain = to_numpy(norm.gamma) if norm.scale else 1.0
    return np.asarray(gain / np.sqrt(to_numpy(norm.moving_variance) + norm.epsilon))


def _per_channel(convolution: Any, values: np.ndarray) -> np.ndarray:
    """Reshape one value per output channel to multiply the kernel."""
    if convolution.kernel.shape[-1] == len(values) and type(convolution).__name__ == "Conv2D":
        return values
    return values.reshape(1, 1, convolution.kernel.shape[2], convolution.kernel.shape[3])
