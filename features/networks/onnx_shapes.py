"""Give an ONNX network fixed shapes: everything that depends on shapes alone is computed once, and becomes a constant.

Exporters write the computation of shapes into the network, with operators that :mod:`features.networks.onnx_checks`
refuses, because they could allocate any amount of memory. With a fixed batch and a fixed size they are constants.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from histoblend.features.networks.onnx_checks import MAX_CONSTANT, MAX_SHAPE, OPERATORS

# Operators that are computed once if their inputs are constants. None of them reads files or draws random numbers.
_FOLDED_NAMES = (
    "Add And Cast Ceil Concat Constant ConstantOfShape Div Equal Expand Flatten Floor Gather Greater GreaterOrEqual "
    "Identity Less LessOrEqual Max Min Mod Mul Neg Not Or Pow Range ReduceProd Reshape Shape Size Slice Split Sqrt "
    "Squeeze Sub Tile Transpose Unsqueeze Where"
)
FOLDED = frozenset(_FOLDED_NAMES.split())


class ShapeError(ValueError):
    """The layers of a network do not fit its input, or compute too many constants."""


def fix_shapes(network: Any, version: int) -> dict[str, tuple[int, ...]]:
    """Replace nodes whose inputs are constants, or that only read shapes, by their values.

    Parameters
    ----------
    network : onnx.ModelProto
        Changed in place. All dimensions of its inputs are known, and its nodes are in order.
    version : int
        Version of the standard operators.

    Returns
    -------
    dict from name to tuple of int
        Shape of each value whose shape is known.

    Raises
    ------
    ShapeError
    """
    import onnx

    graph = network.graph
    types = {value.name: value.type for value in graph.input}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    types |= {
        tensor.name: onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims) for tensor in graph.initializer
    }
    kept: list[Any] = []
    left = {True: MAX_CONSTANT, False: MAX_CONSTANT}  # large weights leave enough for shapes
    for node in graph.node:
        given = [name for name in node.input if name]
        inferred = _infer(node, version, types, constants)
        types |= inferred
        size = sum(math.prod(_shape(value) or ()) for value in inferred.values())
        known = all(_shape(value) is not None for value in inferred.values()) and len(inferred) == len(node.output)
        if not (known and _is_constant(node, given, types, constants)):
            kept.append(node)
            continue
        charged = 0 if node.op_type == "Constant" else size  # its value is in the file
        large = size > MAX_SHAPE and node.op_type in OPERATORS
        if charged > left[large] and node.op_type in OPERATORS:  # it may stay: the network's check bounds its values
            kept.append(node)
            continue
        left[large] -= charged
        if left[large] < 0:
            raise ShapeError(f"more than {MAX_CONSTANT} constants computed from shapes ({node.op_type})")
        constants |= _evaluate(node, version, types, constants)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    used = {name for node in kept for name in node.input} | {value.name for value in graph.output}
    graph.initializer.extend(tensor for name, tensor in constants.items() if name in used)
    return {name: shape for name, value in types.items() if (shape := _shape(value)) is not None}


def _is_constant(node: Any, given: list[str], types: dict[str, Any], constants: dict[str, Any]) -> bool:
    if node.op_type in ("Shape", "Size"):
        return _shape(types.get(given[0])) is not None
    return node.op_type in FOLDED and all(name in constants for name in given)


def _infer(node: Any, version: int, types: dict[str, Any], constants: dict[str, Any]) -> dict[str, Any]:
    """Types of the outputs of a node."""
    import onnx

    unknown = [name for name in node.input if name and name not in types]
    if unknown:
        raise ShapeError(f"{node.op_type} reads {unknown[0]!r}, which no earlier node computes")
    try:
        inferred: dict[str, Any] = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op_type, version, ""),
            node,
            {name: types[name] for name in node.input if name},
            {name: constants[name] for name in node.input if name in constants and _is_small(constants[name])},
            opset_imports=[onnx.helper.make_opsetid("", version)],
        )
    except Exception as error:  # of several kinds
        raise ShapeError(f"layers that do not fit ({str(error).strip().splitlines()[0][:200]})") from error
    return inferred


def _is_small(tensor: Any) -> bool:
    return math.prod(tensor.dims) <= MAX_SHAPE


def _shape(value: Any) -> tuple[int, ...] | None:
    """Shape of a type, if it is completely known."""
    if value is None or not value.tensor_type.HasField("shape"):
        return None
    dims = value.tensor_type.shape.dim
    return tuple(dim.dim_value for dim in dims) if all(dim.HasField("dim_value") for dim in dims) else None


def _evaluate(node: Any, version: int, types: dict[str, Any], constants: dict[str, Any]) -> dict[str, Any]:
    """Compute the outputs of a node with ONNX's reference implementation."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    try:
        feeds = {name: _value(name, types, constants) for name in node.input if name}
        outputs = ReferenceEvaluator(node, opsets={"": version}).run(None, feeds)
    except Exception as error:  # of several kinds
        raise ShapeError(f"{node.op_type} that cannot be computed ({str(error).strip()[:200]})") from error
    named = zip(node.output, outputs, strict=True)
    return {name: onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in named}


def _value(name: str, types: dict[str, Any], constants: dict[str, Any]) -> np.ndarray:
    """A constant, or for a value whose shape alone is read, zeros that take no memory."""
    import onnx

    if name in constants:
        value: np.ndarray = onnx.numpy_helper.to_array(constants[name])
        return value
    return np.broadcast_to(np.float32(0), _shape(types[name]) or ())
