"""Backbones: the right weights in the right network, on the input that everybody has."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from features.backbones import (
    BACKBONES,
    Preprocessing,
    assign_lite,
    efficientnet_lite,
    find_backbone,
    load_backbone,
    load_keras,
    preprocess,
)
from features.weights import CheckpointError, locate_package_file, read_checkpoint
from tests.oracles.record_lite_activations import SIZES, crops

FIXTURES = Path(__file__).parents[1] / "fixtures"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lite0():
    return load_backbone("efficientnet-lite0", head=True)


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
def test_photographs_get_their_imagenet_class(lite0, name, classes):
    logits = run(lite0, photograph(name)[None])
    assert logits.shape == (1, 1000)
    assert int(logits[0].argmax()) in classes


@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_pytorch_implementation(lite0, size):
    keras = load_keras()
    recorded = np.load(FIXTURES / "efficientnet-lite0-activations.npz")
    pooling = keras.Model(lite0.input, [lite0.get_layer("pool").output, lite0.output])
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
    model = efficientnet_lite(Preprocessing(), True, width=width, depth=depth)
    trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert trainable == parameters


def test_arrays_of_another_network_are_refused(lite0_arrays):
    model = efficientnet_lite(Preprocessing(), False, width=1.0, depth=1.0)
    arrays = dict(lite0_arrays)
    arrays["_blocks.3._bn0.bias"] = arrays["_blocks.3._bn0.bias"][:-1]
    with pytest.raises(CheckpointError, match=r"_blocks\.3\._bn0.*shape must be"):
        assign_lite(model, arrays)
    del arrays["_blocks.3._bn0.bias"]
    with pytest.raises(CheckpointError, match=r"needs the array '_blocks\.3\._bn0\.bias'"):
        assign_lite(model, arrays)
    with pytest.raises(CheckpointError, match=r"1 more, such as '_blocks\.16"):
        assign_lite(model, {**lite0_arrays, "_blocks.16._expand_conv.weight": np.zeros(1)})


def test_changed_weights_are_refused(tmp_path, monkeypatch):
    row = find_backbone("efficientnet-lite0")
    content = bytearray(locate_package_file(row.weights.package, row.weights.file).read_bytes())
    content[-1] ^= 1
    (tmp_path / "changed.pth").write_bytes(content)
    monkeypatch.setattr("features.backbones.locate_package_file", lambda package, file: tmp_path / "changed.pth")
    with pytest.raises(CheckpointError, match="sha256 must be 579344248a93"):
        row.load(None, row.weights)


def test_rows_are_complete_and_name_columns():
    assert len({row.name for row in BACKBONES}) == len(BACKBONES)
    for row in BACKBONES:
        assert "_" not in row.name
        assert len(row.weights.sha256) == 64
        assert row.weights.licence
        assert row.reference


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
        "import sys, features.embeddings, features.backbones as b\n"
        "heavy = {'keras', 'tensorflow', 'torch', 'jax', 'onnxruntime', 'onnx'} & set(sys.modules)\n"
        "print(heavy, b.load_keras().backend.backend())"
    )
    installed = [name for name in ("tensorflow", "jax", "torch") if importlib.util.find_spec(name)]
    assert out == f"set() {installed[0]}"
    assert err == ""


def test_without_any_backend_the_message_says_what_to_install():
    out, _ = python(
        "import importlib.util, features.backbones as b\n"
        "importlib.util.find_spec = lambda name: None\n"
        "try:\n    b.load_keras()\nexcept ModuleNotFoundError as error:\n    print(error)"
    )
    assert out.startswith("Keras needs tensorflow, jax or torch; got none.")
