"""A user's ONNX file becomes an embedding network that gives the exporter's numbers, or is refused in one line."""

import copy
import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from histoblend.data.errors import InputError
from histoblend.features.networks import engines, onnx_files, onnx_shapes
from histoblend.features.networks.embeddings import embedding_compute
from histoblend.features.networks.onnx_files import OnnxOptions, read_onnx_file
from histoblend.features.networks.onnx_shapes import ShapeError, fix_shapes
from histoblend.features.networks.stored import open_networks, store_networks
from histoblend.models.file_checks import check_content
from tests import ROOT
from tests.oracles.record_onnx import EXPORTS, MEAN, SIDE, STD, images

FILES = ROOT / "tests" / "fixtures" / "onnx"
SCALING = {"mean": MEAN, "std": STD}
TOKENS = {**SCALING, "output": "last_hidden_state"}
UNSCALED = {"mean": (0, 0, 0), "std": (1, 1, 1), "scale": 1.0}
VIT, CONV, KERAS, SIDECAR = (
    FILES / f"{name}.onnx" for name in ("vit-dynamo-free", "conv-dynamo-any", "keras-conv", "vit-dynamo-sidecar")
)


def embed(file, size=SIDE, **options):
    return embedding_compute(f"onnx:{file}", size=size, onnx=options)


def recorded(kind):
    return np.load(FILES / f"{'keras' if kind == 'keras' else 'torch'}-outputs.npz")


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_of_pytorch_give_its_numbers(name):
    outputs = recorded("torch")
    if name.startswith("conv"):
        expected = {"auto": outputs["maps"].mean((2, 3)), "max": outputs["maps"].max((2, 3))}
        options = SCALING
    else:
        means = outputs["tokens"][:, 2:].mean(axis=1)
        expected = {"class-mean": np.concatenate([outputs["class"], means], axis=1)}
        options = {**TOKENS, "prefix": 2}
    for pooling, values in expected.items():
        compute = embed(FILES / f"{name}.onnx", **options, pooling=pooling)
        np.testing.assert_allclose(compute(images()), values, rtol=0, atol=1e-5)
        assert compute.width == values.shape[1]


def test_single_outputs_and_poolings_of_tokens():
    outputs = recorded("torch")
    for options, expected in (
        ({"output": "pooler_output"}, outputs["class"]),
        ({"output": "last_hidden_state", "pooling": "class"}, outputs["class"]),
        ({"output": "last_hidden_state", "pooling": "mean", "prefix": 0}, outputs["tokens"].mean(axis=1)),
    ):
        np.testing.assert_allclose(embed(VIT, **SCALING, **options)(images(3)), expected[:3], rtol=0, atol=1e-5)


def test_an_export_of_keras_with_channels_last_gives_its_numbers():
    expected = recorded("keras")["maps"].mean((1, 2))
    np.testing.assert_allclose(embed(KERAS, **UNSCALED)(images()), expected, rtol=0, atol=1e-5)


def test_a_network_of_any_size_takes_the_patches_as_they_are():
    patches = np.random.default_rng(1).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(embed(CONV, size=None)(patches), embed(CONV, size=40)(patches)[:, :8])


def test_it_is_stored_without_its_path_and_runs_again_without_keras(tmp_path):
    compute = embedding_compute(f"onnx:{SIDECAR}", size=SIDE, d4=True, onnx={**TOKENS, "pooling": "class"})
    expected = compute(images())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(compute))(images()), expected)  # noqa: S301
    entries = json.loads(json.dumps(store_networks(compute, 96, tmp_path)))
    assert str(FILES) not in json.dumps(entries)
    assert entries[0]["recipe"]["backbone"] == "onnx:vit-dynamo-sidecar.onnx"
    np.testing.assert_allclose(entries[0]["preprocessing"]["offset"], np.multiply(MEAN, 255))
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name, content in contents.items():
        check_content(name, content)
    again = open_networks(entries, contents)
    assert again.columns == compute.columns
    np.testing.assert_array_equal(again(images()), expected)
    with pytest.raises(InputError, match="expected images of 32x32 pixels; got 40x40"):
        again.network(np.zeros((1, 40, 40, 3), np.uint8))
    code = (
        "import json, pathlib, sys, numpy\n"
        "from histoblend.features.networks.stored import open_networks\n"
        "entries, folder = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2])\n"
        "compute = open_networks(entries, {path.name: path.read_bytes() for path in folder.iterdir()})\n"
        "compute(numpy.zeros((1, 96, 96, 3), 'u1'))\n"
        "assert not {'keras', 'tensorflow', 'torch', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, json.dumps(entries), str(tmp_path)], check=True, cwd=ROOT)


def test_it_is_concatenated_with_another_network():
    compute = embedding_compute([f"onnx:{CONV}", f"onnx:{KERAS}"], size=SIDE, onnx=UNSCALED)
    labels = {name.split("_")[1].split("-")[0] for name in compute.columns}
    digests = [read_onnx_file(str(file)).sha256[:8] for file in (CONV, KERAS)]
    assert labels == {f"onnx.convdynamoany.{digests[0]}", f"onnx.kerasconv.{digests[1]}"}
    assert compute(images(2)).shape == (2, 16)


def changed(tmp_path, change, source=CONV):
    """A copy of a file, after a change of its network."""
    network = onnx.load(source, load_external_data=False)
    change(network)
    (tmp_path / "own.onnx").write_bytes(network.SerializeToString())
    return tmp_path / "own.onnx"


def foreign(network):
    network.graph.node[0].domain = "com.example"
    network.opset_import.append(helper.make_opsetid("com.example", 1))


def second_input(network):
    network.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 8, 1, 1]))
    network.graph.node[-1].input[0] = "mask"


def huge(network):
    """Values from a shape alone."""
    network.graph.initializer.append(numpy_helper.from_array(np.array([2**16, 2**16]), "shape"))
    network.graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["zeros"]))
    network.graph.node.append(helper.make_node("ReduceSum", ["zeros"], ["sum"]))
    network.graph.node[-2].output[0] = "before"
    network.graph.node.append(helper.make_node("Add", ["before", "sum"], ["maps"]))


def newer(network):
    network.opset_import[0].version = 999


def elsewhere(name):
    def change(network):
        for tensor in network.graph.initializer:
            for entry in tensor.external_data:
                entry.value = name if entry.key == "location" else entry.value

    return change


def beyond(network):
    for entry in next(tensor for tensor in network.graph.initializer if tensor.external_data).external_data:
        entry.value = {"offset": "9" * 9, "location": "own.onnx.data"}.get(entry.key, entry.value)


def batch(network):
    network.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 64


WRONG = {
    "a missing file": (lambda folder: folder / "none.onnx", {}, "existing file after 'onnx:', .onnx; got"),
    "another file": (lambda folder: shutil.copy(FILES / "torch-outputs.npz", folder / "own.onnx"), {}, "an ONNX file"),
    "a truncated file": (
        lambda folder: [(folder / "own.onnx").write_bytes(CONV.read_bytes()[:3000]), folder / "own.onnx"][1],
        {}, "an ONNX file",
    ),
    "an empty file": (lambda folder: [(folder / "o.onnx").touch(), folder / "o.onnx"][1], {}, "version 11 to"),
    "another side": (lambda _: VIT, {"size": 64}, "images of 32 × 32 pixels; got 64 × 64. Set embeddings.size=32"),
    "the other layout": (lambda _: CONV, {"layout": "NHWC"}, r"3 channels for embeddings.onnx.layout=NHWC; got \["),
    "an unknown layout": (lambda _: CONV, {"layout": "HWC"}, "must be one of auto, NCHW, NHWC; got 'HWC'"),
    "no output chosen": (lambda _: VIT, {}, "got 2 outputs. Set embeddings.onnx.output to one of: last_hidden_state, "),
    "an unknown output": (lambda _: VIT, {"output": "logits"}, "got 'logits'. Set embeddings.onnx.output to one of"),
    "an unknown input": (lambda _: VIT, {"input": "x"}, "got 'x'. Set embeddings.onnx.input to one of: pixel_values"),
    "tokens without a pooling": (lambda _: VIT, TOKENS, r"pooling=class or mean or class-mean for an output of \[8"),
    "more prefix tokens than tokens": (lambda _: VIT, {**TOKENS, "pooling": "mean", "prefix": 18}, "below 18 tokens"),
    "a deviation of zero": (lambda _: CONV, {"std": (1, 0, 1)}, "std above 0; got mean="),
    "foreign operators": (lambda folder: changed(folder, foreign), {}, "operators of 'com.example' 1"),
    "several inputs": (lambda folder: changed(folder, second_input), {}, "got 2 inputs. Set embeddings.onnx.input to"),
    "a second input that is needed": (
        lambda folder: changed(folder, second_input), {"input": "images"}, "it also needs the input mask"
    ),
    "a huge constant": (lambda folder: changed(folder, huge), {}, "more than 16777216 constants"),
    "an opset that is too new": (lambda folder: changed(folder, newer), {}, "got 999. Export it with opset_version=17"),
    "a large fixed batch": (lambda folder: changed(folder, batch), {}, "a free batch size, or at most 8; got 64"),
    "no sidecar": (lambda folder: shutil.copy(SIDECAR, folder), TOKENS, "vit-dynamo-sidecar.onnx.data, in the same"),
    "a sidecar elsewhere": (
        lambda folder: changed(folder, elsewhere("../secret"), SIDECAR), TOKENS, "of the same folder; got '../secret'"
    ),
    "a sidecar of another network": (
        lambda folder: changed(folder, elsewhere("other.onnx.data"), SIDECAR), TOKENS, "begins with 'own'; got 'other"
    ),
    "a short sidecar": (
        lambda folder: [shutil.copy(f"{SIDECAR}.data", folder / "own.onnx.data"), changed(folder, beyond, SIDECAR)][1],
        TOKENS, "bytes in own.onnx.data; got 29696",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_used_is_refused_in_one_line(case, tmp_path):
    make, options, message = WRONG[case]
    with pytest.raises(InputError, match=message) as caught:
        embed(make(tmp_path), **options)
    assert "\n" not in str(caught.value)


def test_sidecars_count_with_all_their_bytes(tmp_path, monkeypatch):
    file = changed(tmp_path, elsewhere("own.onnx.data"), SIDECAR)
    (tmp_path / "own.onnx.data").write_bytes(SIDECAR.with_suffix(".onnx.data").read_bytes() + bytes(10_000))
    read_onnx_file(str(file))
    monkeypatch.setattr(onnx_files, "MAX_BYTES", 45_000)
    with pytest.raises(InputError, match="at most 2 GB with all numbers"):
        read_onnx_file(str(file))


@pytest.mark.parametrize(("limit", "sessions"), [(engines.SHARED_BYTES, 2), (0, 1)])
def test_threads_share_the_session_of_a_large_network_only(limit, sessions, monkeypatch):
    network, opened, run, both = embed(CONV).network, [], engines._run, Barrier(2, timeout=60)
    expected = network(images())
    network = copy.deepcopy(network)  # as for a worker, without sessions
    monkeypatch.setattr(engines, "SHARED_BYTES", limit)
    open_session = engines.open_session
    monkeypatch.setattr(engines, "open_session", lambda content: opened.append(1) or open_session(content))
    monkeypatch.setattr(engines, "_run", lambda *given: [both.wait(), run(*given)][1])
    with ThreadPoolExecutor(2) as pool:
        for values in pool.map(network, [images()] * 4):
            np.testing.assert_array_equal(values, expected)
    assert len(opened) == sessions
    pickle.dumps(network)


@pytest.mark.parametrize(("source", "order"), [(CONV, [0, 2, 3, 1]), (KERAS, [0, 3, 1, 2])])
def test_maps_in_the_other_layout_than_the_images_are_pooled_over_their_sides(source, order, tmp_path):
    def free(network):
        for dim in network.graph.input[0].type.tensor_type.shape.dim:
            dim.dim_value = dim.dim_value if dim.dim_value == 3 else 0

    def turn(network):
        free(network)
        last = network.graph.node[-1]
        name, last.output[0] = last.output[0], "before"
        network.graph.node.append(helper.make_node("Transpose", ["before"], [name], perm=order))

    # Maps of 12 x 12 with 8 channels: at 32 px, all three would be 8.
    plain, turned = (embed(changed(tmp_path, change, source), size=48) for change in (free, turn))
    assert turned.width == plain.width == 8
    np.testing.assert_allclose(turned(images(2)), plain(images(2)), rtol=0, atol=1e-6)


def test_what_onnx_runtime_does_not_run_is_refused_in_one_line(monkeypatch):
    def fail(content):
        raise RuntimeError("[ONNXRuntimeError] : opset 28\nis under development")

    monkeypatch.setattr("histoblend.features.networks.onnx_files.open_session", fail)
    with pytest.raises(InputError, match=r"ONNX Runtime \S+ runs; got: .* opset 28 is under development") as caught:
        embed(CONV)
    assert "\n" not in str(caught.value)


def test_only_onnx_runtime_runs_it_in_float32_with_its_own_weights():
    for options in ({"engine": "keras"}, {"precision": "int8"}):
        with pytest.raises(InputError, match='needs engine "onnx" and precision "float32"'):
            embedding_compute(f"onnx:{CONV}", size=SIDE, **options)
    with pytest.raises(InputError, match="contains its weights; got weights='random'"):
        embedding_compute(f"onnx:{CONV}", size=SIDE, weights="random")


def test_shapes_are_fixed_as_numpy_computes_them():
    """A constant of the batch and the width, through the operators that exporters use for shapes."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"], axis=0),
        helper.make_node("Range", ["zero", "n", "one"], ["rows"]),
        helper.make_node("Equal", ["rows", "one"], ["is_one"]),
        helper.make_node("Where", ["is_one", "n", "rows"], ["chosen"]),
        helper.make_node("Cast", ["chosen"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "numbers"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 5])
    weights = [numpy_helper.from_array(np.array(value), name) for value, name in ((0, "zero"), (1, "one"))]
    graph = helper.make_graph(nodes, "graph", [given], [helper.make_empty_tensor_value_info("y")], weights)
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert fix_shapes(network, 17)["y"] == (5, 5)
    assert [node.op_type for node in network.graph.node] == ["Mul"]
    np.testing.assert_array_equal(numpy_helper.to_array(network.graph.initializer[0]), [0, 5, 2, 3, 4])
    network.graph.node.append(helper.make_node("Add", ["y", "nothing"], ["z"]))
    with pytest.raises(ShapeError, match="reads 'nothing', which no earlier node computes"):
        fix_shapes(network, 17)


def test_large_stored_weights_stay_nodes_and_hostile_sizes_are_refused(monkeypatch):
    def network(*nodes):
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 5])
        weights = [numpy_helper.from_array(np.eye(5, dtype=np.float32), "w")]
        weights.append(numpy_helper.from_array(np.array([2**31] * 3), "huge"))
        graph = helper.make_graph(nodes, "graph", [given], [helper.make_empty_tensor_value_info("y")], weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])

    monkeypatch.setattr(onnx_shapes, "MAX_CONSTANT", 10)
    large = network(
        helper.make_node("Transpose", ["w"], ["turned"]),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones((5, 5), np.float32))),
        helper.make_node("Add", ["x", "c"], ["moved"]),
        helper.make_node("MatMul", ["moved", "turned"], ["y"]),
    )
    assert fix_shapes(large, 17)["y"] == (5, 5)
    assert [node.op_type for node in large.graph.node] == ["Transpose", "Add", "MatMul"]
    one = numpy_helper.from_array(np.ones(1, np.float32))
    hostile = network(
        helper.make_node("Constant", [], ["one"], value=one),
        helper.make_node("Expand", ["one", "huge"], ["expanded"]),
        helper.make_node("Shape", ["expanded"], ["y"]),
    )
    with pytest.raises(ShapeError, match="Shape that cannot be computed"):
        fix_shapes(hostile, 17)


def test_the_options_default_to_the_scaling_of_imagenet():
    np.testing.assert_allclose(np.multiply(OnnxOptions().mean, 255), (123.675, 116.28, 103.53))
    np.testing.assert_allclose(np.multiply(OnnxOptions().std, 255), (58.395, 57.12, 57.375))
