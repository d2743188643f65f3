"""Cut a pretrained network in two, and fold its batch norms away while the upper part is trained.

The lower part stays as it is: its feature maps can be computed once and kept. Batch norm keeps the statistics of the
pretraining, since a batch of patches from few slides has statistics of these slides; frozen, it is a scale and a shift,
which a convolution takes over exactly. What is left is a network with the same function that needs far less time to
train, and whose trained values are written back into the original layers afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from histoblend.features.networks.backend import load_keras, to_numpy

if TYPE_CHECKING:
    import keras

#: A norm that scales a channel by less than this leaves nothing to train in it.
SMALLEST_SCALE = 1e-6


class Halves(NamedTuple):
    """A network cut in two: ``upper(lower(pictures))`` is the network.

    Attributes
    ----------
    lower : keras.Model
        Pictures (n, height, width, 3) float32 of 0..255 to the feature map at the cut.
    upper : keras.Model
        That feature map to the network's last one. Layers are shared with the network.
    """

    lower: keras.Model
    upper: keras.Model


def cut_network(network: keras.Model, layer: str) -> Halves | None:
    """Cut a network behind a layer.

    Parameters
    ----------
    network : keras.Model
        Functional, with one input and one output.
    layer : str
        Name of the layer whose output is the cut.

    Returns
    -------
    Halves or None
        None where some connection goes past that layer, so that no single feature map lies between the two halves.
    """
    keras = load_keras()
    middle = network.get_layer(layer).output
    if not _separates(network, middle):
        return None
    return Halves(keras.Model(network.input, middle), keras.Model(middle, network.output))


def _separates(network: keras.Model, middle: Any) -> bool:
    """Whether every way from the input to the output leads through ``middle``."""
    waiting, seen = [network.output], set()
    while waiting:
        tensor = waiting.pop()
        if tensor is middle or id(tensor) in seen:
            continue
        if tensor is network.input:
            return False
        seen.add(id(tensor))
        history = tensor._keras_history
        waiting += history.operation._inbound_nodes[history.node_index].input_tensors
    return True


def folding_of(upper: keras.Model) -> dict[str, str]:
    """Name of the batch norm that each convolution can take over: the one that its output goes into, alone.

    Returns
    -------
    dict of str to str
        Convolution to batch norm. A separable convolution is left alone: its two kernels share one output.
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
        Keep depthwise kernels as they are. They are a hundredth of the values, and their gradient takes most of the
        time of a training step on a CPU.
    shape : tuple of int, optional
        Of one input, where the copy is to take no other.

    Returns
    -------
    keras.Model
        The same function, in inference, of the same input; batch norms that no convolution can take over stay, frozen.
        Layers keep their names.
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
    """Write the values of a folded copy back into the network that it was made of.

    Parameters
    ----------
    plain : keras.Model
        From :func:`fold_norms`, trained since.
    upper : keras.Model
        Changed: afterwards it is the same function as ``plain``. A batch norm keeps its statistics; what the bias has
        learned goes into its shift.
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
        trained = to_numpy(twin.kernel) / _along(layer, np.where(np.abs(scale) > SMALLEST_SCALE, scale, 1.0))
        layer.kernel.assign(np.where(_along(layer, np.abs(scale) > SMALLEST_SCALE), trained, before))
        offset = to_numpy(layer.bias) if layer.use_bias else 0.0
        norm.beta.assign(to_numpy(twin.bias) - (offset - to_numpy(norm.moving_mean)) * scale)


def _fold(convolution: Any, norm: Any) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias that do what the convolution and the batch norm behind it do."""
    scale = _scale(norm)
    offset = to_numpy(convolution.bias) if convolution.use_bias else 0.0
    kernel = to_numpy(convolution.kernel) * _along(convolution, scale)
    return kernel, (offset - to_numpy(norm.moving_mean)) * scale + to_numpy(norm.beta)


def _scale(norm: Any) -> np.ndarray:
    gain = to_numpy(norm.gamma) if norm.scale else 1.0
    return np.asarray(gain / np.sqrt(to_numpy(norm.moving_variance) + norm.epsilon))


def _along(convolution: Any, values: np.ndarray) -> np.ndarray:
    """One value an output channel, in the shape that multiplies the kernel."""
    if convolution.kernel.shape[-1] == len(values) and type(convolution).__name__ == "Conv2D":
        return values
    return values.reshape(1, 1, convolution.kernel.shape[2], convolution.kernel.shape[3])
