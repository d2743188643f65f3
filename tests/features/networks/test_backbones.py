"""Backbones: the right weights in the right network, on the input that everybody has."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import skimage.data
from PIL import Image

from histoblend.data.errors import InputError
from histoblend.features.networks.backbones import (
    BACKBONES,
    FOUNDATION,
    catalogue,
    fill_randomly,
    find_backbone,
    load_backbone,
    locate_weights,
    weights_digest,
)
from histoblend.features.networks.backend import (
    HUB,
    DownloadedWeights,
    PackagedWeights,
    Preprocessing,
    choose_backend,
    load_keras,
    preprocess,
)
from histoblend.features.networks.efficientnet_lite import assign_lite, efficientnet_lite
from histoblend.features.networks.weights import CheckpointError, locate_package_file, read_checkpoint
from tests import ROOT
from tests.oracles.record_lite_activations import SIZES, crops

FIXTURES = ROOT / "tests" / "fixtures"
LITES = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")


@pytest.fixture(scope="module")
def lites():
    return {name: load_backbone(name, head=True) for name in LITES}


@pytest.fixture(scope="module")
def lite0(lites):
    return lites["efficientnet-lite0"]


@pytest.fixture(scope="module")
def lite0_arrays():
    weights = find_backbone("efficientnet-lite0").weights
    return read_checkpoint(locate_package_file(weights.package, weights.file), weights.sha256)


def run(model, images):
    return np.asarray(load_keras().ops.convert_to_numpy(model(np.asarray(images, np.float32), training=False)))


def photograph(name):
    """One of scikit-image's pictures, its middle square at 224 × 224."""
    try:
        picture = getattr(skimage.data, name)()
    except Exception as error:  # some builds of scikit-image leave pictures to a download
        pytest.skip(f"skimage.data.{name} is not installed and cannot be downloaded: {error}")
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(picture[top : top + side, left : left + side])
    return np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("name", "classes"),
    [("chelsea", {281, 282, 285}), ("coffee", {967}), ("rocket", {657})],
    ids=["cat", "espresso", "missile"],
)
def test_photographs_get_their_imagenet_class(lites, name, classes):
    picture = photograph(name)[None]
    seeing = LITES[:1] if name == "rocket" else LITES  # the larger two take its launch pad for a drilling platform
    for network in (lites[one] for one in seeing):
        logits = run(network, picture)
        assert logits.shape == (1, 1000)
        assert int(logits[0].argmax()) in classes


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LITES)
def test_agrees_with_the_pytorch_implementation(lites, name, size):
    keras = load_keras()
    recorded = np.load(FIXTURES / f"{name}-activations.npz")
    pooling = keras.Model(lites[name].input, [lites[name].get_layer("pool").output, lites[name].output])
    pooled, logits = pooling(crops(size).astype(np.float32), training=False)
    for ours, theirs in ((pooled, recorded[f"pooled_{size}"]), (logits[:, ::10], recorded[f"logits_{size}"])):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(ours), theirs, rtol=0, atol=1e-4)


def test_takes_any_size_and_gives_the_stated_width():
    row = find_backbone("efficientnet-lite0")
    body = load_backbone(row.name)
    for height, width in ((96, 96), (33, 64), (224, 96)):
        shape = run(body, np.zeros((1, height, width, 3))).shape
        assert shape == (1, -(-height // 32), -(-width // 32), row.width)


def test_the_callers_array_is_not_overwritten(lite0):
    images = np.full((1, 32, 32, 3), 200, np.float32)
    run(lite0, images)
    assert (images == 200).all()


def test_preprocessing_happens_once(lite0):
    """The stem sees (x - 127) / 128: black is -127/128 and 255 is exactly 1."""
    keras = load_keras()
    seen = keras.Model(lite0.input, lite0.get_layer("stem").input)
    values = run(seen, np.array([0, 127, 255]).reshape(1, 1, 3, 1).repeat(3, axis=3))
    np.testing.assert_array_equal(values[0, 0, :, 0], np.float32([-127 / 128, 0, 1]))


def test_preprocessing_by_channel():
    images = np.float32([10, 20, 30]).reshape(1, 1, 1, 3)
    caffe = Preprocessing(offset=(1.0, 2.0, 3.0), scale=(1.0, 2.0, 4.0), order="bgr")
    keras = load_keras()
    values = np.asarray(keras.ops.convert_to_numpy(preprocess(keras.ops.convert_to_tensor(images), caffe)))
    assert values.ravel().tolist() == [29, 9, 1.75]  # (30 - 1) / 1, (20 - 2) / 2, (10 - 3) / 4
    same = keras.ops.convert_to_numpy(preprocess(keras.ops.convert_to_tensor(images), Preprocessing()))
    assert np.asarray(same).ravel().tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("width", "depth", "parameters"),
    [(1.0, 1.0, 4_652_008), (1.0, 1.1, 5_416_680), (1.1, 1.2, 6_092_072)],
    ids=["lite0", "lite1", "lite2"],
)
def test_parameter_counts_are_the_published_ones(width, depth, parameters):
    """4.7, 5.4 and 6.1 million in TensorFlow's table; to the last one as counted in the PyTorch implementation."""
    model = efficientnet_lite(Preprocessing(), None, True, width=width, depth=depth)
    trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert trainable == parameters


def test_arrays_of_another_network_are_refused(lite0_arrays):
    model = efficientnet_lite(Preprocessing(), None, False, width=1.0, depth=1.0)
    arrays = dict(lite0_arrays)
    arrays["_blocks.3._bn0.bias"] = arrays["_blocks.3._bn0.bias"][:-1]
    with pytest.raises(CheckpointError, match=r"_blocks\.3\._bn0.*shape must be"):
        assign_lite(model, arrays)
    del arrays["_blocks.3._bn0.bias"]
    with pytest.raises(CheckpointError, match=r"needs the array '_blocks\.3\._bn0\.bias'"):
        assign_lite(model, arrays)
    with pytest.raises(CheckpointError, match=r"1 more, such as '_blocks\.16"):
        assign_lite(model, {**lite0_arrays, "_blocks.16._expand_conv.weight": np.zeros(1)})


def test_a_checkpoint_of_another_network_is_named():
    lite1 = find_backbone("efficientnet-lite1")
    path = locate_package_file(lite1.weights.package, lite1.weights.file)
    words = (
        r"\.pth: expected the weights of this EfficientNet-Lite: .*\. Give the file that was saved from this network"
    )
    with pytest.raises(CheckpointError, match=words) as caught:
        load_backbone("efficientnet-lite0", weights=str(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_an_unknown_backend_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.setenv("KERAS_BACKEND", "theano")
    with pytest.raises(InputError, match=r"KERAS_BACKEND must be one of tensorflow, jax, torch; got 'theano'"):
        choose_backend()


def test_changed_weights_are_refused(tmp_path, monkeypatch):
    row = find_backbone("efficientnet-lite0")
    content = bytearray(locate_package_file(row.weights.package, row.weights.file).read_bytes())
    content[-1] ^= 1
    (tmp_path / "changed.pth").write_bytes(content)
    monkeypatch.setattr(
        "histoblend.features.networks.backbones.locate_package_file", lambda package, file: tmp_path / "changed.pth"
    )
    with pytest.raises(CheckpointError, match="sha256 must be 579344248a93"):
        load_backbone(row.name)


def test_rows_are_complete_and_name_columns():
    assert len({row.name for row in BACKBONES}) == len(BACKBONES)
    for row in BACKBONES:
        assert "_" not in row.name
        assert row.weights.licence or row.name == "kimianet"  # its authors state none
        assert row.reference
        assert row.smallest <= row.size
        if isinstance(row.weights, PackagedWeights):
            assert len(row.weights.sha256) == 64
        else:
            assert row.weights.url.startswith("https://")
            assert row.weights.file.endswith(".h5") or row in FOUNDATION
            assert not row.weights.gated or row.weights.url.startswith(f"{HUB}/")
            length = {"md5": 32, "sha256": 64, "": 0}
            algorithm, _, digest = row.weights.digest.partition(":")
            assert len(digest) == length[algorithm]


def test_only_the_first_two_generations_of_mobilenet_have_no_digest():
    downloaded = [row for row in BACKBONES if isinstance(row.weights, DownloadedWeights)]
    without = [row for row in downloaded if not row.weights.digest]
    assert {row.name for row in without if row not in FOUNDATION} == {
        "mobilenet-v1",
        "mobilenet-v2",
        "mobilenet-v2-140",
    }
    assert set(FOUNDATION) <= set(without)
    assert len({row.weights.file for row in downloaded}) == len(downloaded)  # they share a folder


def test_kimianet_is_keras_own_densenet():
    kimianet, densenet = find_backbone("kimianet"), find_backbone("densenet121")
    assert kimianet.build.keywords == densenet.build.keywords
    assert (kimianet.contract, kimianet.stages) == (densenet.contract, densenet.stages)


def test_the_catalogue_in_docs_is_the_table():
    written = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    assert written == catalogue(), "run: python -m histoblend.features.networks.backbones docs/backbones.md"


@pytest.mark.parametrize("name", LITES)
def test_stages_are_the_last_maps_of_their_resolution(lites, name):
    """At 64 px: 1/4, 1/8 and 1/16, each right before the block that halves it."""
    keras = load_keras()
    model, row = lites[name], find_backbone(name)
    maps = keras.Model(model.input, [model.get_layer(stage.layer).output for stage in row.stages])
    shapes = [tuple(one.shape) for one in maps(np.zeros((1, 64, 64, 3), np.float32), training=False)]
    widths = [stage.width for stage in row.stages]
    assert shapes == [(1, 64 // scale, 64 // scale, width) for scale, width in zip((4, 8, 16), widths, strict=True)]
    names = [layer.name for layer in model.layers]
    for stage in row.stages:
        following = names[names.index(stage.layer) + 1 :]
        strided = next(one for one in following if one.endswith("_depthwise"))
        assert model.get_layer(strided).strides in (2, (2, 2))


def test_random_weights_are_seeded_and_say_so():
    models = [load_backbone("efficientnet-lite0", weights="random") for _ in range(2)]
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3))
    first, second = (run(model, images) for model in models)
    np.testing.assert_array_equal(first, second)
    fill_randomly(models[1], seed=1)
    assert np.abs(run(models[1], images) - first).max() > 0.1
    kernel = load_keras().ops.convert_to_numpy(models[0].get_layer("head").kernel)  # 1 × 1 × 320 × 1280
    assert kernel.std() == pytest.approx(np.sqrt(2 / 320), rel=0.01)
    assert weights_digest(find_backbone("efficientnet-lite0"), "random") == "random, seed 0"


def test_a_local_file_fills_the_network_and_is_known_by_its_digest(tmp_path):
    row = find_backbone("efficientnet-lite0")
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3))
    body = load_backbone(row.name)
    expected = run(body, images)
    (tmp_path / "copy.pth").write_bytes(locate_weights(row).read_bytes())
    assert weights_digest(row, str(tmp_path / "copy.pth")) == f"sha256:{row.weights.sha256}"
    body.save_weights(tmp_path / "own.weights.h5")
    body.save(tmp_path / "own.keras")
    for file in ("copy.pth", "own.weights.h5", "own.keras"):
        filled = load_backbone(row.name, weights=str(tmp_path / file))
        np.testing.assert_array_equal(run(filled, images), expected)


@pytest.mark.parametrize("name", ["absent.h5", "notes.txt"])
def test_a_local_file_that_is_not_there_or_of_another_kind_is_refused(tmp_path, name):
    (tmp_path / "notes.txt").touch()
    row = find_backbone("efficientnet-lite0")
    for ask in (lambda path: weights_digest(row, path), lambda path: load_backbone(row.name, weights=path)):
        with pytest.raises(CheckpointError, match=r"existing file of \.h5, \.keras, \.pth; got "):
            ask(str(tmp_path / name))


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match=r"got 'efficientnet-lite'\. Did you mean 'efficientnet-lite0'"):
        find_backbone("efficientnet-lite")
    with pytest.raises(ValueError, match="Known: efficientnet-lite0"):
        find_backbone("?")


def python(code, **environment):
    """Run code in a fresh interpreter from the checkout's root."""
    inherited = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr


def test_importing_loads_no_framework_and_loading_keras_is_silent():
    out, err = python(
        "import sys, histoblend.features.networks.embeddings, histoblend.features.networks.backend as b\n"
        "heavy = {'keras', 'tensorflow', 'torch', 'jax', 'onnxruntime', 'onnx', 'h5py'} & set(sys.modules)\n"
        "print(heavy, b.load_keras().backend.backend())"
    )
    installed = [name for name in ("tensorflow", "jax", "torch") if importlib.util.find_spec(name)]
    assert out == f"set() {installed[0]}"
    assert err == ""


def test_the_best_installed_backend_is_chosen_unless_one_is_asked_for():
    find = "import importlib.util, histoblend.features.networks.backend as n\nhere = set({})\n"
    find += "importlib.util.find_spec = lambda name: name in here or None\nprint(n.choose_backend())"
    assert python(find.format(["torch", "jax"]))[0] == "jax"
    assert python(find.format(["torch"]))[0] == "torch"
    assert python(find.format(["torch", "tensorflow"]))[0] == "tensorflow"
    assert python(find.format(["tensorflow"]), KERAS_BACKEND="jax")[0] == "jax"


def test_without_any_backend_the_message_says_what_to_install():
    out, _ = python(
        "import importlib.util, histoblend.features.networks.backend as b\n"
        "importlib.util.find_spec = lambda name: None\n"
        "try:\n    b.load_keras()\nexcept b.InputError as error:\n    print(error)"
    )
    assert out.startswith("Keras needs tensorflow, jax or torch; got none.")
