"""Fit the graph of a user's ONNX network to 0..255 images: its input and output, its scaling and a pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from histoblend.data.errors import InputError
from histoblend.features.networks.backend import Shape
from histoblend.features.networks.onnx_checks import BATCH
from histoblend.features.networks.recipe import MAX_WIDTH, check_choice

#: Advice about a network that cannot be used.
EXPORT_AGAIN = "Export the network again, with the standard operators only; docs/onnx.md shows how."

LAYOUTS = ("auto", "NCHW", "NHWC")
POOLINGS = ("auto", "class", "mean", "class-mean", "max")


@dataclass(frozen=True)
class OnnxOptions:
    """How an ONNX file is used.

    Attributes
    ----------
    input, output : str
        Names in the file; empty for the only one.
    layout : {"auto", "NCHW", "NHWC"}
        Order of the input's dimensions; "auto" finds the dimension of 3.
    scale : float
    mean, std : tuple of three floats
        The network gets ``(image / scale - mean) / std`` for RGB images of 0..255. By default those of ImageNet.
    pooling : {"auto", "class", "mean", "class-mean", "max"}
        For feature maps: "mean" (also "auto") or "max". For tokens: the first one ("class"), the mean of those after
        the prefix, or both. "auto" leaves one row per image as it is.
    prefix : int
        Number of tokens before those of the patches: the class token and registers.
    """

    input: str = ""
    layout: str = "auto"
    scale: float = 255.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    output: str = ""
    pooling: str = "auto"
    prefix: int = 1

    def check(self) -> None:
        """Raise InputError if an option is invalid."""
        check_choice("embeddings.onnx.layout", self.layout, LAYOUTS)
        check_choice("embeddings.onnx.pooling", self.pooling, POOLINGS)
        if not (len(self.mean) == len(self.std) == 3 and min(self.scale, *self.std) > 0):
            raise InputError(
                "embeddings.onnx: expected mean and std of three numbers, and scale and std above 0; got "
                f"mean={list(self.mean)}, std={list(self.std)}, scale={self.scale}."
            )


class OnnxError(ValueError):
    """What is wrong with a file, after its name."""


def fit_input(network: Any, options: OnnxOptions, shape: Shape) -> tuple[str, bool]:
    """Fix the shape of the input; return its name, and whether channels come first."""
    inputs = {value.name: value for value in network.graph.input}
    name = options.input or (next(iter(inputs)) if len(inputs) == 1 else "")
    if name not in inputs:
        got = f"{name!r}" if name else f"{len(inputs)} inputs"
        raise OnnxError(
            f"expected one input; got {got}. Set embeddings.onnx.input to one of: {', '.join(inputs) or 'none'}."
        )
    kind = inputs[name].type.tensor_type
    dims = list(kind.shape.dim)
    known = [dim.dim_value for dim in dims]
    if len(dims) != 4 or kind.elem_type != 1:
        raise OnnxError(
            f"expected float32 images of four dimensions as input {name}; got type {kind.elem_type}, {known}. "
            f"{EXPORT_AGAIN}"
        )
    first = _channels_first(options.layout, known)
    sides = known[2:] if first else known[1:3]
    if any(side and side != wanted for side, wanted in zip(sides, shape, strict=True)):
        raise OnnxError(
            f"expected images of {sides[0] or 'any'} × {sides[1] or 'any'} pixels; got {shape[0]} × {shape[1]}. "
            f"Set embeddings.size={sides[0] or sides[1]}."
        )
    if known[0] > BATCH:
        raise OnnxError(f"expected a free batch size, or at most {BATCH}; got {known[0]}. {EXPORT_AGAIN}")
    batch = known[0] or BATCH
    for dim, side in zip(dims, (batch, 3, *shape) if first else (batch, *shape, 3), strict=True):
        dim.dim_value = side
    return name, first


def _channels_first(layout: str, dims: list[int]) -> bool:
    certain = {"NCHW": dims[1] == 3, "NHWC": dims[3] == 3}
    if layout == "auto":
        if sum(certain.values()) != 1:
            raise OnnxError(f"expected one dimension of 3 channels; got {dims}. Set embeddings.onnx.layout.")
        return certain["NCHW"]
    channels, other = (dims[1], dims[3]) if layout == "NCHW" else (dims[3], dims[1])
    if channels not in (0, 3) or (other == 3 and not channels):
        raise OnnxError(f"expected 3 channels for embeddings.onnx.layout={layout}; got {dims}. Set the other layout.")
    return layout == "NCHW"


def choose_output(network: Any, name: str) -> str:
    """Return the name of the chosen output, or of the only one."""
    outputs = [value.name for value in network.graph.output]
    name = name or (outputs[0] if len(outputs) == 1 else "")
    if name not in outputs:
        got = f"{name!r}" if name else f"{len(outputs)} outputs"
        raise OnnxError(
            f"expected one output; got {got}. Set embeddings.onnx.output to one of: {', '.join(outputs) or 'none'}."
        )
    return name


def prune(network: Any, output: str, images: str) -> None:
    """Drop the nodes, inputs and outputs that an output does not need."""
    graph = network.graph
    needed, kept = {output}, []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed.update(node.input)
    others = [value.name for value in graph.input if value.name in needed and value.name != images]
    if others:
        raise OnnxError(
            f"expected a network of images only; it also needs the input {', '.join(others)}. {EXPORT_AGAIN}"
        )
    inputs = [value for value in graph.input if value.name == images]
    del graph.node[:], graph.output[:], graph.input[:]
    graph.node.extend(reversed(kept))
    graph.input.extend(inputs)
    graph.output.add(name=output)


def pool(network: Any, output: str, shape: tuple[int, ...] | None, first: bool, options: OnnxOptions) -> int:
    """Append a pooling, so that the network gives one row per image; return the row's width."""
    kinds = {2: ("auto",), 3: ("class", "mean", "class-mean"), 4: ("auto", "mean", "max")}
    batch = network.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    if shape is None or len(shape) not in kinds or shape[0] != batch:
        raise OnnxError(
            f"expected an output of {batch} images in two to four known dimensions; got {shape}. Choose another output."
        )
    if options.pooling not in kinds[len(shape)]:
        raise OnnxError(
            f"expected embeddings.onnx.pooling={' or '.join(kinds[len(shape)])} for an output of {list(shape)}; "
            f"got {options.pooling}."
        )
    add = _Adder(network)
    width = shape[-1]
    if len(shape) == 4:
        # Some transformers (Swin) take channels first and give them last. The map of square images has equal sides.
        given = [dim.dim_value for dim in network.graph.input[0].type.tensor_type.shape.dim]
        if first and given[2] == given[3] and shape[1] == shape[2] != shape[3]:
            first = False
        elif not first and given[1] == given[2] and shape[2] == shape[3] != shape[1]:
            first = True
        width = shape[1] if first else shape[3]
        maps = output if first else add("Transpose", output, perm=[0, 3, 1, 2])
        pooled = add("GlobalMaxPool" if options.pooling == "max" else "GlobalAveragePool", maps)
        output = add("Flatten", pooled, axis=1)
    elif len(shape) == 3:
        if not 0 <= options.prefix < shape[1]:
            raise OnnxError(f"expected embeddings.onnx.prefix below {shape[1]} tokens; got {options.prefix}.")
        parts = [add("Gather", output, add.constant(np.int64(0)), axis=1)] if "class" in options.pooling else []
        if "mean" in options.pooling:
            bounds = [add.constant(np.array([value])) for value in (options.prefix, shape[1], 1)]
            tokens = add("Transpose", add("Slice", output, *bounds), perm=[0, 2, 1])
            parts.append(add("Flatten", add("GlobalAveragePool", tokens), axis=1))
        width *= len(parts)
        output = parts[0] if len(parts) == 1 else add("Concat", *parts, axis=1)
    if width > MAX_WIDTH:
        raise OnnxError(f"expected at most {MAX_WIDTH} values per image; got {width}. Choose another output.")
    network.graph.output[0].name = output
    network.graph.output[0].type.tensor_type.elem_type = 1
    return width


def scale(network: Any, images: str, first: bool, shape: Shape, options: OnnxOptions) -> None:
    """Put the scaling of 0..255 images, with channels last, before the network."""
    import onnx

    graph = network.graph
    dims = graph.input[0].type.tensor_type.shape.dim
    add = _Adder(network)
    mean, std = np.array(options.mean), np.array(options.std)
    count = len(graph.node)
    given = add.name("images")
    factor, shift = (add.constant(values.astype(np.float32)) for values in (1 / (std * options.scale), -mean / std))
    scaled = add("Add", add("Mul", given, factor), shift)
    add("Transpose", scaled, perm=[0, 3, 1, 2]) if first else add("Identity", scaled)
    graph.node[-1].output[0] = images
    nodes = [*graph.node[count:], *graph.node[:count]]
    batch = dims[0].dim_value
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.append(onnx.helper.make_tensor_value_info(given, onnx.TensorProto.FLOAT, [batch, *shape, 3]))


class _Adder:
    """Adds nodes and constants to a network, under new names."""

    def __init__(self, network: Any) -> None:
        graph = network.graph
        self.graph = graph
        self.names = {name for node in graph.node for name in (*node.input, *node.output)}
        self.names |= {value.name for value in (*graph.initializer, *graph.input, *graph.output)}

    def name(self, wish: str) -> str:
        while wish in self.names:
            wish += "_"
        self.names.add(wish)
        return wish

    def constant(self, value: Any) -> str:
        import onnx

        name = self.name("added_constant")
        self.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        import onnx

        name = self.name(f"added_{kind}")
        self.graph.node.append(onnx.helper.make_node(kind, list(inputs), [name], **attributes))
        return name
