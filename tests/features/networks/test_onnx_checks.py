"""ONNX files are one plain network of bounded size, or are refused before ONNX Runtime sees them."""

from itertools import pairwise

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from histoblend.data.errors import InputError
from histoblend.features.networks import onnx_checks
from histoblend.features.networks.onnx_checks import checked_network
from histoblend.features.networks.onnx_export import open_session
from histoblend.models.file_checks import check_content

IMAGES = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "height", "width", 3])
OUT = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
ONE = numpy_helper.from_array(np.ones(3, np.float32), "one")


def node(kind, inputs=("x",), outputs=("y",), **options):
    return helper.make_node(kind, list(inputs), list(outputs), **options)


def network(*nodes, weights=(ONE,), given=(IMAGES,), domain="", **options):
    """A network with these nodes; by default images of any size to ``y``."""
    graph = helper.make_graph(nodes or [node("Add", ("x", "one"))], "graph", list(given), [OUT], list(weights))
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 2)]
    opsets += [helper.make_opsetid(domain, 1)] if domain else []
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, **options)


def shape(*dims, name="shape"):
    return numpy_helper.from_array(np.array(dims, np.int64), name)


def external(tensor):
    """The tensor with its numbers in a file of the working folder."""
    moved = TensorProto()
    moved.CopyFrom(tensor)
    moved.ClearField("raw_data")
    moved.data_location = TensorProto.EXTERNAL
    entry = moved.external_data.add()
    entry.key, entry.value = "location", "secret"
    return moved


def branches(tensor=ONE):
    """An If node whose graphs return a tensor."""
    one = helper.make_tensor_value_info("one", TensorProto.FLOAT, [3])
    body = helper.make_graph([], "body", [], [one], [tensor])
    return node("If", ("yes",), then_branch=body, else_branch=body)


def sparse(tensor=ONE):
    return helper.make_sparse_tensor(tensor, shape(0, 1, 2, name="places"), [3])


def changed(change):
    made = network()
    change(made)
    return made


def function(*nodes):
    opset = [helper.make_opsetid("", 15)]
    return helper.make_function("own", "Mine", ["x"], ["y"], nodes, opset)


def claiming(dims):
    """A network whose file claims that a value is small."""
    made = network(node("Reshape", ("x", "where"), ("r",)), node("Add", ("r", "one")), weights=(ONE,))
    made.graph.input.add().CopyFrom(helper.make_tensor_value_info("where", TensorProto.INT64, [4]))
    made.graph.value_info.add().CopyFrom(helper.make_tensor_value_info("r", TensorProto.FLOAT, dims))
    return made


def doubling(first, axis):
    """Nodes that concatenate a value with itself, 24 times over."""
    names = [first, *map(str, range(23)), "y"]
    return [node("Concat", (before, before), (after,), axis=axis) for before, after in pairwise(names)]


TEXT = helper.make_tensor("t", TensorProto.STRING, [1], [b"a"])
BYTES = numpy_helper.from_array(np.zeros(2**20, np.int8), "bytes")
UNIT = numpy_helper.from_array(np.float32(1), "unit")
YES = numpy_helper.from_array(np.array(True), "yes")
BIG = 50_000
HOSTILE = {
    "external weights": (lambda: network(weights=(external(ONE),)), "references to other files"),
    "external in an attribute": (
        lambda: network(node("Constant", (), value=external(ONE))), "references to other files"),
    "external in a list of an attribute": (
        lambda: network(node("Add", ("x", "one"), more=[external(ONE)])), "references to other files"),
    "location without a flag": (
        lambda: changed(lambda made: made.graph.initializer[0].external_data.add(key="location", value="secret")),
        "references to other files"),
    "external in a branch": (lambda: network(branches(external(ONE)), weights=(YES,)), "."),
    "a branch": (lambda: network(branches(), weights=(YES,)), "the operator If"),
    "a graph in a known operator": (
        lambda: network(node("Add", ("x", "one"), body=network().graph)), "a GraphProto in a AttributeProto"),
    "graphs in a known operator": (
        lambda: network(node("Add", ("x", "one"), body=[network().graph])), "a GraphProto in a AttributeProto"),
    "sparse weights": (
        lambda: changed(lambda made: made.graph.sparse_initializer.add().CopyFrom(sparse())), "a SparseTensorProto"),
    "sparse external weights": (
        lambda: changed(lambda made: made.graph.sparse_initializer.add().CopyFrom(sparse(external(ONE)))), "Sparse"),
    "a sparse attribute": (lambda: network(node("Constant", (), sparse_value=sparse())), "a SparseTensorProto"),
    "text": (
        lambda: network(weights=(ONE, TEXT)), "tensor of type 8"),
    "text in an attribute": (
        lambda: network(node("Constant", (), value=TEXT)), "tensor of type 8"),
    "text from a cast": (lambda: network(node("Cast", to=TensorProto.STRING)), "unknown size from Cast"),
    "a function": (
        lambda: network(functions=[function(node("Add", ("x", "x")))]), "a FunctionProto in a ModelProto"),
    "a called function": (
        lambda: network(node("Mine", domain="own"), functions=[function(node("Relu"))], domain="own"), "own"),
    "training": (
        lambda: changed(lambda made: made.training_info.add().algorithm.CopyFrom(made.graph)), "a TrainingInfoProto"),
    "a foreign domain": (lambda: network(domain="com.microsoft"), "operators of 'com.microsoft'"),
    "a foreign operator": (
        lambda: network(node("EPContext", domain="com.microsoft")), "the operator com.microsoft.EPContext"),
    "another standard domain": (
        lambda: network(node("Scaler", domain="ai.onnx.ml")), "the operator ai.onnx.ml.Scaler"),
    "a loop": (lambda: network(node("Loop")), "the operator Loop"),
    "random numbers": (
        lambda: network(node("RandomNormal", (), shape=[BIG, BIG]), given=()), "the operator RandomNormal"),
    "constant": (
        lambda: network(node("ConstantOfShape", ("shape",)), weights=(shape(BIG, BIG),), given=()), "ConstantOfShape"),
    "expanded": (lambda: network(node("Expand", ("one", "shape")), weights=(ONE, shape(BIG, BIG, 3))), "Expand"),
    "tiled": (lambda: network(node("Tile", ("x", "shape")), weights=(shape(1, BIG, 1, 1),)), "operator Tile"),
    "resized": (lambda: network(node("Resize")), "the operator Resize"),
    "padded images": (
        lambda: network(node("Pad", ("x", "pads")), weights=(shape(*[0] * 5, BIG, BIG, 0, name="pads"),)),
        r"too many values, of \[8, 50064, 50064, 3\] from Pad"),
    "padded weights": (
        lambda: network(node("Pad", ("one", "pads"), ("p",)), node("Add", ("x", "one")),
                        weights=(ONE, shape(2**30, 0, name="pads"))), r"too many values, of \[1073741827\] from Pad"),
    "padding that overflows": (
        lambda: network(node("MaxPool", kernel_shape=[1, 1], pads=[0, 2**62, 0, 2**62])), "pads=4611686018427387904"),
    "an outer product": (
        lambda: network(node("Transpose", ("x",), ("t",), perm=[0, 1, 3, 2]), node("MatMul", ("x", "t"), ("m",)),
                        node("Reshape", ("m", "rows"), ("r",)), node("Transpose", ("r",), ("c",), perm=[0, 2, 1]),
                        node("Add", ("r", "c")), weights=(shape(8, -1, 1, name="rows"),)), "too many values"),
    "doubled images": (lambda: network(*doubling("x", 1)), "too many values, .* from Concat"),
    "doubled weights": (lambda: network(*doubling("one", 0)), "too many values, .* from Concat"),
    "8-bit weights as floats again and again": (
        lambda: network(*(node("DequantizeLinear", ("bytes", "unit"), (f"{n}",)) for n in range(20)),
                        node("Add", ("x", "one")), weights=(ONE, BYTES, UNIT)),
        r"too many values, of \[1048576\] from DequantizeLinear"),
    "a large integer tensor": (
        lambda: network(weights=(ONE, numpy_helper.from_array(np.zeros(5000, np.int32), "z"))), "5000 integers"),
    "a size that the images decide": (
        lambda: network(node("Cast", ("x",), ("c",), to=TensorProto.INT64), node("Reshape", ("x", "c"))),
        "values of unknown size|layers that do not fit"),
    "a false claim of a size": (lambda: claiming([8, 1, 1, 1]), "2 inputs"),
    "huge images": (
        lambda: network(given=(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 10**6, 10**6, 3]),)),
        "an input of"),
    "missing numbers": (
        lambda: changed(lambda made: made.graph.initializer[0].dims.append(2**40)), "numbers that holds 12 bytes"),
    "a negative size": (
        lambda: changed(lambda made: made.graph.initializer[0].dims.extend([-1, -1])), "numbers that holds 12 bytes"),
    "layers that do not fit": (lambda: network(node("Concat", ("x", "one"), axis=1)), "layers that do not fit"),
    "a newer version": (
        lambda: changed(lambda made: setattr(made.opset_import[0], "version", 10**6)), "operators of '' 1000000"),
    "two versions": (lambda: network(domain="ai.onnx"), "two versions of the standard operators"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_network_is_refused_before_it_is_opened(name, tmp_path, monkeypatch):
    make, message = HOSTILE[name]
    content = make().SerializeToString()
    (tmp_path / "secret").write_bytes(np.full(3, 7, np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: pytest.fail("it was opened"))
    for read in (open_session, lambda content: check_content("a.onnx", content)):
        with pytest.raises(InputError, match=f"expected a network of known layers .* got .*{message}"):
            read(content)


def test_a_plain_network_is_accepted_and_gives_its_numbers():
    content = network().SerializeToString()
    assert checked_network("a.onnx", content) == content
    images = np.zeros((2, 5, 7, 3), np.float32)
    np.testing.assert_array_equal(open_session(content).run(None, {"x": images})[0], images + 1)


def test_what_was_not_checked_is_left_out():
    """A field that this version of ONNX does not know could mean something to ONNX Runtime."""
    content = network().SerializeToString()
    assert checked_network("a.onnx", content + b"\xfa\x7f\x03abc") == content


@pytest.mark.parametrize("text", [b"Add", b"ai.onnx.ml", b"graph", b"height", b"one"])
def test_text_that_is_not_utf_8_is_refused(text):
    made = network()
    made.graph.node[0].domain = "ai.onnx.ml"
    content = made.SerializeToString()
    assert text in content
    with pytest.raises(InputError, match=r"with text that is not UTF-8\. "):
        checked_network("a", content.replace(text, b"\xff" * len(text)))


def test_a_file_of_onnx_runtime_itself_is_not_read_as_one(monkeypatch):
    """``ORTM`` at the fifth byte marks ONNX Runtime's own format, which is checked by nobody; here it is a name."""
    made = network()
    made.producer_name = "ORTM"
    content = made.SerializeToString()
    assert content[4:8] == b"ORTM"
    assert open_session(content).run(None, {"x": np.zeros((1, 1, 1, 3), np.float32)})[0].sum() == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xff\xff", "expected an ONNX file"),
        (b"\x80" * 1000, "expected an ONNX file"),
        (b"\x3a\xff\xff\xff\xff\x7f", "expected an ONNX file"),
        (b"\x3a\x84\x07" + b"\x0a\0" * 450, "expected a network of at most 100 fields"),
    ],
    ids=["no message", "endless integer", "cut", "empty nodes"],
)
def test_a_damaged_or_expanding_file_is_refused(content, message, monkeypatch):
    monkeypatch.setattr(onnx_checks, "MAX_FIELDS", 100)
    with pytest.raises(InputError, match=message):
        checked_network("a.onnx", content)
