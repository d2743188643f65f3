"""Check ONNX files from other people before ONNX Runtime opens them: its own reader trusts what a file says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from histoblend.data.errors import AWAY, InputError

# Operators that networks of images need. None of them reads files, runs another graph, draws random numbers or makes
# values from a shape alone.
OPERATOR_NAMES = (
    "Abs Add AveragePool BatchNormalization Cast Ceil Clip Concat Constant Conv DequantizeLinear Div Dropout Einsum "
    "Elu Erf Exp Expand Flatten Floor Gather Gelu Gemm GlobalAveragePool GlobalMaxPool GroupNormalization HardSigmoid "
    "HardSwish Identity LayerNormalization LeakyRelu Log MatMul Max MaxPool Min Mul Neg Pad Pow PRelu QuantizeLinear "
    "Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Selu Sigmoid Slice Softmax Softplus "
    "Split Sqrt Squeeze Sub Sum Tanh Transpose Unsqueeze"
)
OPERATORS = frozenset(OPERATOR_NAMES.split())

# Kinds of protobuf messages in a plain network. Others are functions, sparse tensors, sequences or training graphs.
KIND_NAMES = (
    "ModelProto GraphProto NodeProto AttributeProto TensorProto ValueInfoProto TypeProto Tensor TensorShapeProto "
    "Dimension OperatorSetIdProto StringStringEntryProto"
)
KINDS = frozenset(KIND_NAMES.split())

#: Names of the standard domain of operators. Bundles of earlier versions list a second one, which no node may use.
_STANDARD, _LISTED = ("", "ai.onnx"), ("", "ai.onnx", "ai.onnx.ml")

#: Most protobuf fields of a file: a node has about 40, and the largest supported network 1,500 nodes.
MAX_FIELDS = 500_000

#: Most numbers in a tensor that may be a shape, and the largest integer in an attribute, so that no size overflows.
MAX_SHAPE, MAX_INTEGER = 4096, 2**31

#: Images that are run at once, and sides that a network of any size is checked with; the second is the largest patch.
BATCH, SIDES = 8, (64, 4096)

#: Most numbers that all layers together compute per number of the input (NASNet-Large: 885; vision transformers: 2,400
#: for 300 million weights, 6,800 for 1,100 million), and without the input.
MAX_GROWTH, MAX_CONSTANT = 8000, 2**24


def checked_network(name: str, content: bytes) -> bytes:
    """Check an ONNX file: one graph of known operators, with all numbers in the file and bounded values.

    Parameters
    ----------
    name : str
        The file's name, for messages.
    content : bytes

    Returns
    -------
    bytes
        The checked network, written anew: ONNX Runtime gets what was checked, even if it would read the file
        differently.

    Raises
    ------
    InputError
        The file is damaged or refers to other files. Or it has another operator, type or domain, a function, a graph
        inside a node or a sparse tensor. Or its values are too large, or their sizes depend on more than the images.
    """
    network = parsed_network(name, content)
    checked: bytes = network.SerializeToString()
    if fault := network_fault(network) or _size_fault(network):
        raise InputError(f"{name}: expected a network of known layers with all numbers inside; got {fault}. {AWAY}")
    return checked


def parsed_network(name: str, content: bytes, advice: str = "Get the bundle again.") -> Any:
    """Parse an ONNX file with a bounded number of fields; see :func:`checked_network`."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        if _count_fields(content, onnx.ModelProto.DESCRIPTOR) > MAX_FIELDS:
            raise InputError(f"{name}: expected a network of at most {MAX_FIELDS} fields; got more. {AWAY}")
        network = onnx.load_model_from_string(content)
    except (DecodeError, IndexError) as error:
        raise InputError(f"{name}: expected an ONNX file; got: {error}. {advice}") from error
    network.DiscardUnknownFields()
    return network


def network_fault(network: Any, operators: frozenset[str] = OPERATORS, inputs: int = 1) -> str:
    """Return what a parsed network has that it must not have; empty if nothing. Sizes are not checked."""
    return next(_faults(network, operators, inputs), "")


def _count_fields(content: bytes, kind: Any) -> int:
    """Count the fields of a serialised message before it is parsed, which takes up to 100 bytes of memory for each."""
    count, parts = 0, [(0, len(content), kind)]
    while parts:
        position, end, kind = parts.pop()
        while position < end and count <= MAX_FIELDS:
            count += 1
            key, position = _varint(content, position)
            size = {1: 8, 5: 4}.get(key & 7, 0)
            if key & 7 in (0, 2):
                value, position = _varint(content, position)
                size = value if key & 7 == 2 else 0
            field = kind.fields_by_number.get(key >> 3)
            if key & 7 == 2 and field is not None and field.message_type is not None:
                parts.append((position, min(position + size, end), field.message_type))
            position += size
    return count


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """Read a protobuf integer; return it and the position after it."""
    value = shift = 0
    while content[position] & 0x80:
        if shift > 63:
            raise IndexError("an integer of more than 64 bits")
        value |= (content[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    return value | content[position] << shift, position + 1


def _messages(message: Any) -> Iterator[tuple[str, Any]]:
    """Yield every message inside a message, with the kind of the one that holds it."""
    pending = [message]
    while pending:
        holder = pending.pop()
        for field, value in holder.ListFields():
            if field.message_type is not None:
                inner = [value] if hasattr(value, "ListFields") else list(value)
                yield from ((holder.DESCRIPTOR.name, part) for part in inner)
                pending += inner


def _texts(message: Any) -> Iterator[str | bytes]:
    """Yield the texts of a message itself. The parser leaves those that are not UTF-8 as bytes."""
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            yield from [value] if isinstance(value, str | bytes) else value


def _faults(network: Any, operators: frozenset[str], inputs: int) -> Iterator[str]:
    """Yield what a network has that it must not have, wherever it is."""
    import onnx

    for message in (network, *(part for _, part in _messages(network))):
        if any(isinstance(text, bytes) for text in _texts(message)):
            yield f"a {message.DESCRIPTOR.name} with text that is not UTF-8"
    for entry in network.opset_import:
        if entry.domain not in _LISTED or entry.version > onnx.defs.onnx_opset_version():
            yield f"operators of {entry.domain!r} {entry.version}"
    if sum(entry.domain in _STANDARD for entry in network.opset_import) > 1:
        yield "two versions of the standard operators"
    if len(network.graph.input) > inputs:
        yield f"{len(network.graph.input)} inputs"
    for holder, part in _messages(network):
        kind = part.DESCRIPTOR.name
        if kind not in KINDS or (kind == "GraphProto" and holder != "ModelProto"):
            yield f"a {kind} in a {holder}"
        elif kind == "NodeProto" and (part.domain not in _STANDARD or part.op_type not in operators):
            yield f"the operator {'.'.join(filter(None, (part.domain, part.op_type)))}"
        elif kind == "AttributeProto" and any(abs(value) > MAX_INTEGER for value in (part.i, *part.ints)):
            yield f"{part.name}={part.i or max(part.ints, key=abs)}"
        elif kind == "TensorProto":
            yield from _tensor_faults(part)


def _tensor_faults(tensor: Any) -> Iterator[str]:
    import onnx

    if tensor.external_data or tensor.data_location:
        yield "references to other files"
    if tensor.data_type not in _types():
        yield f"a tensor of type {tensor.data_type}"
        return
    field, size = _types()[tensor.data_type]
    numbers = math.prod(tensor.dims)
    held = len(tensor.raw_data) if tensor.HasField("raw_data") else len(getattr(tensor, field)) * size
    if min(tensor.dims, default=0) < 0 or numbers * size != held:
        yield f"a tensor of {numbers} numbers that holds {held} bytes"
    if size > 1 and tensor.data_type != onnx.TensorProto.FLOAT and numbers > MAX_SHAPE:
        yield f"{numbers} integers in a tensor"


def _types() -> dict[int, tuple[str, int]]:
    """Field with the numbers, and bytes per number, of each type of tensor."""
    import onnx

    kinds = onnx.TensorProto
    return {
        kinds.FLOAT: ("float_data", 4), kinds.INT64: ("int64_data", 8), kinds.INT32: ("int32_data", 4),
        kinds.UINT8: ("int32_data", 1), kinds.INT8: ("int32_data", 1), kinds.BOOL: ("int32_data", 1),
    }  # fmt: skip


def _size_fault(network: Any) -> str:
    """Return which value of a network is too large or of unknown size. Drops the weights and the sizes in the file."""
    import onnx

    graph = network.graph
    del graph.value_info[:]
    for value in graph.output:
        value.ClearField("type")
    for tensor in graph.initializer:
        if math.prod(tensor.dims) > MAX_SHAPE:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
            tensor.ClearField("int32_data")
    dims = [(axis, dim) for value in graph.input for axis, dim in enumerate(value.type.tensor_type.shape.dim)]
    free = [(axis, dim) for axis, dim in dims if not dim.HasField("dim_value")]
    largest = [BATCH, *[max(SIDES)] * 3]
    if len(dims) > 4 or any(dim.dim_value > limit for (_, dim), limit in zip(dims, largest, strict=False)):
        return f"an input of {[dim.dim_value for _, dim in dims]}"
    for side in SIDES:
        for axis, dim in free:
            dim.dim_value = side if axis else BATCH
        try:
            inferred = onnx.shape_inference.infer_shapes(network, strict_mode=True)
        except Exception as error:  # of several kinds
            return f"layers that do not fit ({str(error).strip().splitlines()[0][:200]})"
        if fault := _growth_fault(inferred.graph, math.prod(dim.dim_value for _, dim in dims)):
            return fault
    return ""


def _growth_fault(graph: Any, given: int) -> str:
    """Return which value makes all values together too many for an input of ``given`` numbers."""
    known = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.output)}
    of_images = {value.name for value in graph.input}
    stored = sum(math.prod(tensor.dims) for tensor in graph.initializer)  # 8-bit weights become floats once
    left = {True: MAX_GROWTH * given, False: MAX_CONSTANT + stored}
    for node in graph.node:
        from_images = not of_images.isdisjoint(node.input)
        for name in filter(None, node.output):
            dims = known[name].shape.dim if name in known and known[name].HasField("shape") else None
            if (
                dims is None
                or not all(dim.HasField("dim_value") for dim in dims)
                or known[name].elem_type not in _types()
            ):
                return f"values of unknown size from {node.op_type}"
            left[from_images] -= math.prod(dim.dim_value for dim in dims)
            if left[from_images] < 0:
                return f"too many values, of {[dim.dim_value for dim in dims]} from {node.op_type}"
            if from_images:
                of_images.add(name)
    return ""
