"""Write Keras networks as ONNX graphs, layer by layer, on any backend of Keras.

Only the layers of the networks in docs/backbones.md are known. Tensors of images and feature maps are channels-first in
ONNX, because ONNX has no other convolution. All others, such as the tokens of a transformer, have the axes of Keras.
Batch norms are written as a product and a sum, which ONNX Runtime folds into the convolution before them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from histoblend.features.networks.backend import load_keras, to_numpy

if TYPE_CHECKING:
    import keras

#: The first version of ONNX operators with LayerNormalization; axes of means are still attributes.
OPSET, IR_VERSION = 17, 8

_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


def onnx_network(model: keras.Model) -> bytes:
    """Return an ONNX file that computes the same as a Keras network.

    Parameters
    ----------
    model : keras.Model
        Functional, float32, with one input (n, height, width, channels) and one output.

    Returns
    -------
    bytes
        Its input has the name and the shape of the Keras network's, its output that of the last layer.

    Raises
    ------
    NotImplementedError
        The network has a layer, or an option of a layer, that this module does not know.
    """
    import onnx
    from onnx import helper

    float32 = onnx.TensorProto.FLOAT
    graph = _Graph()
    source, target = model.inputs[0], model.outputs[0]
    result = graph.call(model, graph.add("Transpose", source.name, perm=_TO_CHANNELS_FIRST))
    if len(target.shape) == 4:
        result = graph.add("Transpose", result, perm=_TO_CHANNELS_LAST)
    values = [
        helper.make_tensor_value_info(name, float32, [size or f"{name}_{axis}" for axis, size in enumerate(shape)])
        for name, shape in ((source.name, source.shape), (result, target.shape))
    ]
    content = helper.make_graph(graph.nodes, model.name, values[:1], values[1:], graph.constants)
    network: onnx.ModelProto = helper.make_model(
        content, producer_name="histoblend", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    return network.SerializeToString()


class _Graph:
    """Nodes and constants written so far. Values are known by their names."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._scalars: dict[float, str] = {}
        #: Values with the axes of Keras, although they may have four like a map.
        self.as_in_keras: set[str] = set()

    def call(self, model: keras.Model, value: str) -> str:
        """Write a whole Keras network for an input."""
        known = {id(model.inputs[0]): value}
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if not node.is_input:
                    inputs, _ = node.arguments.fill_in(known)  # options such as mask=None change nothing in inference
                    results = self.layer(node, _flat(inputs))
                    known |= zip(map(id, node.outputs), [results] if isinstance(results, str) else results, strict=True)
        return known[id(model.outputs[0])]

    def layer(self, node: Any, inputs: list[Any]) -> str | list[str]:
        """Write a layer and its activation. Of the inputs, tensors are given by name."""
        layer = node.operation
        kind = type(layer).__name__
        if kind == "Sequential":
            return self.call(layer._functional, inputs[0])
        if kind not in _LAYERS or getattr(layer, "data_format", "channels_last") != "channels_last":
            raise NotImplementedError(f"the layer {layer.name} ({kind}) has no counterpart here")
        value = _LAYERS[kind](self, layer, *inputs)
        activation = getattr(layer, "activation", None)
        if activation is not None and isinstance(value, str):
            value = self.activation(activation.__name__, value)
        if kind != "Reshape" and not self.as_in_keras.isdisjoint(inputs):
            self.as_in_keras |= {value} if isinstance(value, str) else set(value)
        return value

    def activation(self, name: str, x: str) -> str:
        """Write an activation function by its name in Keras."""
        if name == "linear":
            return x
        if name == "silu":
            return self.add("Mul", x, self.add("Sigmoid", x))
        if name == "gelu":  # Keras' default is the exact one
            area = self.add("Erf", self.add("Mul", x, self.constant(math.sqrt(0.5))))
            return self.add("Mul", self.add("Mul", x, self.constant(0.5)), self.add("Add", area, self.constant(1.0)))
        kinds = {"relu": "Relu", "sigmoid": "Sigmoid", "hard_silu": "HardSwish"}
        if name not in kinds:
            raise NotImplementedError(f"the activation {name} has no counterpart here")
        return self.add(kinds[name], x)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Write a node; return the name of its output."""
        from onnx import helper

        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, values: Any) -> str:
        """Write a constant: a number or an array as float32, or a list as 64-bit integers. Numbers are shared."""
        from onnx import numpy_helper

        if isinstance(values, float) and values in self._scalars:
            return self._scalars[values]
        name = f"constant_{len(self.constants)}"
        array = np.array(values, np.int64 if isinstance(values, list) else np.float32, order="C")
        self.constants.append(numpy_helper.from_array(array, name))
        if isinstance(values, float):
            self._scalars[values] = name
        return name

    def term(self, value: Any) -> str:
        """Name of an input that may also be a number."""
        return value if isinstance(value, str) else self.constant(float(value))


def _flat(values: Sequence[Any]) -> list[Any]:
    """Arguments of a layer in order, those in lists too."""
    return [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]


def _per_channel(values: Any) -> np.ndarray:
    """One value per channel (or one for all), for channels-first maps."""
    return np.asarray(values, np.float32).reshape(1, -1, 1, 1)


def _kernel(weight: Any) -> np.ndarray:
    """Kernel (height, width, in, out) as ONNX takes it."""
    return to_numpy(weight).transpose(3, 2, 0, 1)


def _depthwise_kernel(weight: Any) -> np.ndarray:
    """Kernel (height, width, channels, multiplier) as ONNX takes it."""
    kernel = to_numpy(weight)
    return kernel.transpose(2, 3, 0, 1).reshape(-1, 1, *kernel.shape[:2])


def _convolve(graph: _Graph, layer: Any, x: str, kernel: np.ndarray, groups: int, bias: Any) -> str:
    constants = [graph.constant(kernel)] + ([] if bias is None else [graph.constant(to_numpy(bias))])
    return graph.add(
        "Conv", x, *constants, group=groups, kernel_shape=list(kernel.shape[2:]), strides=list(layer.strides),
        dilations=list(layer.dilation_rate), auto_pad=_padding(layer),
    )  # fmt: skip


def _padding(layer: Any) -> str:
    return {"same": "SAME_UPPER", "valid": "VALID"}[layer.padding]


def _conv(graph: _Graph, layer: Any, x: str) -> str:
    return _convolve(graph, layer, x, _kernel(layer.kernel), layer.groups, layer.bias)


def _depthwise(graph: _Graph, layer: Any, x: str) -> str:
    return _convolve(graph, layer, x, _depthwise_kernel(layer.kernel), layer.kernel.shape[2], layer.bias)


def _separable(graph: _Graph, layer: Any, x: str) -> str:
    depthwise = _depthwise_kernel(layer.depthwise_kernel)
    x = _convolve(graph, layer, x, depthwise, layer.depthwise_kernel.shape[2], None)
    bias = [] if layer.bias is None else [graph.constant(to_numpy(layer.bias))]
    return graph.add("Conv", x, graph.constant(_kernel(layer.pointwise_kernel)), *bias)


def _dense(graph: _Graph, layer: Any, x: str) -> str:
    kernel = to_numpy(layer.kernel)
    if len(layer.input.shape) == 4:  # over the channels of a map
        bias = [] if layer.bias is None else [graph.constant(to_numpy(layer.bias))]
        return graph.add("Conv", x, graph.constant(kernel.T[:, :, None, None]), *bias)
    x = graph.add("MatMul", x, graph.constant(kernel))
    return x if layer.bias is None else graph.add("Add", x, graph.constant(to_numpy(layer.bias)))


def _batch_norm(graph: _Graph, layer: Any, x: str) -> str:
    # The backend's own inverse root, whose last bit may differ from NumPy's: Keras computes with it.
    scale = to_numpy(load_keras().ops.rsqrt(layer.moving_variance + layer.epsilon))
    if layer.scale:
        scale = scale * to_numpy(layer.gamma)
    shift = (to_numpy(layer.beta) if layer.center else 0) - to_numpy(layer.moving_mean) * scale
    return _scaled(graph, x, scale, shift)


def _scaled(graph: _Graph, x: str, scale: Any, shift: Any) -> str:
    x = graph.add("Mul", x, graph.constant(_per_channel(scale)))
    return graph.add("Add", x, graph.constant(_per_channel(shift)))


def _layer_norm(graph: _Graph, layer: Any, x: str) -> str:
    ndim = len(layer.input.shape)
    x = graph.add("Transpose", x, perm=_TO_CHANNELS_LAST) if ndim == 4 else x
    constants = [graph.constant(to_numpy(weight)) for weight in (layer.gamma, layer.beta)]
    x = graph.add("LayerNormalization", x, *constants, axis=-1, epsilon=layer.epsilon)
    return graph.add("Transpose", x, perm=_TO_CHANNELS_FIRST) if ndim == 4 else x


def _normalise(graph: _Graph, layer: Any, x: str) -> str:
    x = graph.add("Sub", x, graph.constant(_per_channel(to_numpy(layer.mean))))
    return graph.add("Div", x, graph.constant(_per_channel(np.sqrt(to_numpy(layer.variance)))))


def _relu(graph: _Graph, layer: Any, x: str) -> str:
    if layer.negative_slope or layer.threshold:
        raise NotImplementedError(f"the layer {layer.name} has a slope or a threshold, which has no counterpart here")
    if layer.max_value is None:
        return graph.add("Relu", x)
    return graph.add("Clip", x, graph.constant(0.0), graph.constant(float(layer.max_value)))


def _pool(kind: str) -> Callable[[_Graph, Any, str], str]:
    def pool(graph: _Graph, layer: Any, x: str) -> str:
        sizes = {"kernel_shape": list(layer.pool_size), "strides": list(layer.strides)}
        return graph.add(kind, x, auto_pad=_padding(layer), **sizes)

    return pool


def _global_pool(kind: str) -> Callable[[_Graph, Any, str], str]:
    def pool(graph: _Graph, layer: Any, x: str) -> str:
        x = graph.add(kind, x)
        return x if layer.keepdims else graph.add("Flatten", x)

    return pool


def _pad(graph: _Graph, layer: Any, x: str) -> str:
    (top, bottom), (left, right) = layer.padding
    return graph.add("Pad", x, graph.constant([0, 0, top, left, 0, 0, bottom, right]))


def _crop(graph: _Graph, layer: Any, x: str) -> str:
    (top, bottom), (left, right) = layer.cropping
    ends = [-bottom or 2**31 - 1, -right or 2**31 - 1]
    return graph.add("Slice", x, graph.constant([top, left]), graph.constant(ends), graph.constant([2, 3]))


def _reshape(graph: _Graph, layer: Any, x: str) -> str:
    shape = [int(size) for size in getattr(layer, "target_shape", None) or layer.newshape[1:]]
    if len(shape) == 3 and shape[:2] == [1, 1]:  # a map of one pixel
        return graph.add("Reshape", x, graph.constant([0, shape[2], 1, 1]))
    x = graph.add("Reshape", _with_keras_axes(graph, layer, x), graph.constant([0, *shape]))
    graph.as_in_keras.add(x)
    return x


def _with_keras_axes(graph: _Graph, layer: Any, x: str) -> str:
    """The layer's input, with the axes that it has in Keras."""
    is_map = len(layer.input.shape) == 4 and x not in graph.as_in_keras
    return graph.add("Transpose", x, perm=_TO_CHANNELS_LAST) if is_map else x


def _transpose(graph: _Graph, layer: Any, x: str) -> str:
    x = graph.add("Transpose", _with_keras_axes(graph, layer, x), perm=list(layer.axes))
    graph.as_in_keras.add(x)
    return x


def _split(graph: _Graph, layer: Any, x: str) -> list[str]:
    size = layer.input.shape[layer.axis] // layer.indices_or_sections
    return [
        _slice(graph, x, start * size, (start + 1) * size, layer.axis) for start in range(layer.indices_or_sections)
    ]


def _slice(graph: _Graph, x: str, start: int, end: int, axis: int) -> str:
    return graph.add("Slice", x, graph.constant([start]), graph.constant([end]), graph.constant([axis]))


def _project(graph: _Graph, layer: Any, x: str) -> str:
    if layer.equation != "btc,cd->btd":
        raise NotImplementedError(f"the layer {layer.name} ({layer.equation}) has no counterpart here")
    x = graph.add("MatMul", x, graph.constant(to_numpy(layer.kernel)))
    return x if layer.bias is None else graph.add("Add", x, graph.constant(to_numpy(layer.bias)))


def _combine(kind: str) -> Callable[..., str]:
    def combine(graph: _Graph, layer: Any, first: Any, *others: Any) -> str:
        result = graph.term(first)
        for other in others:
            result = graph.add(kind, result, graph.term(other))
        return result

    return combine


def _scaled_sum(graph: _Graph, layer: Any, x: str, residual: str) -> str:
    return graph.add("Add", x, graph.add("Mul", residual, graph.constant(float(layer.scale))))


def _unchanged(graph: _Graph, layer: Any, x: str, *_: Any) -> str:
    return x


def _take(graph: _Graph, layer: Any, x: str, *channels: int) -> str:
    return graph.add("Gather", x, graph.constant(list(channels)), axis=1)


#: How each class of layers, and each operation of ``keras.ops``, is written.
_LAYERS: dict[str, Callable[..., str | list[str]]] = {
    "Activation": _unchanged,  # the activation itself is written after every layer
    "Add": _combine("Add"),
    "AveragePooling2D": _pool("AveragePool"),
    "BatchNormalization": _batch_norm,
    "Concatenate": lambda graph, layer, *inputs: graph.add("Concat", *inputs, axis=1),
    "Conv2D": _conv,
    "Cropping1D": lambda graph, layer, x: _slice(
        graph, x, layer.cropping[0], layer.input.shape[1] - layer.cropping[1], 1
    ),
    "Cropping2D": _crop,
    "CustomScaleLayer": _scaled_sum,
    "Dense": _dense,
    "DepthwiseConv2D": _depthwise,
    "Dropout": _unchanged,
    "EinsumDense": _project,
    "GlobalAveragePooling1D": lambda graph, layer, x: graph.add("ReduceMean", x, axes=[1], keepdims=0),
    "GlobalAveragePooling2D": _global_pool("GlobalAveragePool"),
    "GlobalMaxPooling2D": _global_pool("GlobalMaxPool"),
    "LayerNormalization": _layer_norm,
    "LayerScale": lambda graph, layer, x: graph.add("Mul", x, graph.constant(_per_channel(to_numpy(layer.gamma)))),
    "Matmul": lambda graph, layer, *inputs: graph.add("MatMul", *inputs),
    "MaxPooling2D": _pool("MaxPool"),
    "Multiply": _combine("Mul"),
    "Normalization": _normalise,
    "ReLU": _relu,
    "Rescaling": lambda graph, layer, x: _scaled(graph, x, layer.scale, layer.offset),
    "Reshape": _reshape,
    "SeparableConv2D": _separable,
    "Softmax": lambda graph, layer, x: graph.add("Softmax", x, axis=layer.axis),
    "Split": _split,
    "Take": _take,
    "Transpose": _transpose,
    "ZeroPadding1D": lambda graph, layer, x: graph.add(
        "Pad", x, graph.constant([0, layer.padding[0], 0, 0, layer.padding[1], 0])
    ),
    "ZeroPadding2D": _pad,
}
