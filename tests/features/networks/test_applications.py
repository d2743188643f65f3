"""Rows of ``keras.applications`` equal Keras' own network, weights and normalisation, with one input contract."""

import inspect
import re
import zipfile

import h5py
import numpy as np
import pytest

import histoblend.features.networks.backbones
from histoblend.features.networks.applications import IMAGENET_SPREAD, load_application
from histoblend.features.networks.backbones import (
    BACKBONES,
    FOUNDATION,
    fill_randomly,
    find_backbone,
    load_backbone,
    weights_digest,
    weights_note,
)
from histoblend.features.networks.backend import load_keras
from histoblend.features.networks.weights import CheckpointError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.input_shape. is undefined or non-square:UserWarning",  # MobileNet at sizes without pretrained weights
)

#: Module and builder of each row.
ROWS = {
    "mobilenet-v1": "mobilenet.MobileNet",
    "mobilenet-v2": "mobilenet_v2.MobileNetV2",
    "mobilenet-v2-140": "mobilenet_v2.MobileNetV2",
    "mobilenet-v3-small": "mobilenet_v3.MobileNetV3Small",
    "mobilenet-v3-large": "mobilenet_v3.MobileNetV3Large",
    "efficientnet-b0": "efficientnet.EfficientNetB0",
    "efficientnet-b4": "efficientnet.EfficientNetB4",
    "efficientnet-v2-b0": "efficientnet_v2.EfficientNetV2B0",
    "efficientnet-v2-s": "efficientnet_v2.EfficientNetV2S",
    "resnet50": "resnet.ResNet50",
    "resnet101": "resnet.ResNet101",
    "resnet50-v2": "resnet_v2.ResNet50V2",
    "resnet101-v2": "resnet_v2.ResNet101V2",
    "densenet121": "densenet.DenseNet121",
    "densenet201": "densenet.DenseNet201",
    "convnext-tiny": "convnext.ConvNeXtTiny",
    "convnext-base": "convnext.ConvNeXtBase",
    "xception": "xception.Xception",
    "inception-v3": "inception_v3.InceptionV3",
    "inception-resnet-v2": "inception_resnet_v2.InceptionResNetV2",
    "vgg16": "vgg16.VGG16",
    "vgg19": "vgg19.VGG19",
    "nasnet-mobile": "nasnet.NASNetMobile",
    "nasnet-large": "nasnet.NASNetLarge",
}

#: The smallest network of each family is run. Larger ones differ only in depth and width, and are only built.
QUICK = ("mobilenet-v1", "mobilenet-v2", "mobilenet-v3-small", "efficientnet-b0", "efficientnet-v2-b0")
SLOW = ("resnet50", "densenet121", "convnext-tiny", "xception", "inception-v3", "inception-resnet-v2", "vgg16")
SLOW += ("nasnet-mobile", "resnet50-v2")
SMALLEST = [*QUICK, *(pytest.param(name, marks=pytest.mark.length) for name in SLOW)]
LARGER = [name for name in ROWS if name not in QUICK + SLOW]


def keras_own(row):
    """Return Keras' builder and `preprocess_input` for a row."""
    applications = load_keras().applications
    module, _, builder = ROWS[row.name].partition(".")
    return getattr(applications, builder), getattr(applications, module).preprocess_input


def run(model, images):
    return np.asarray(load_keras().ops.convert_to_numpy(model(images, training=False)))


def randomise(model, seed):
    """Set random weights and statistics, so that a missing or repeated layer changes the output."""
    fill_randomly(model, seed)
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if (
            isinstance(layer, load_keras().layers.Normalization) and layer.weights
        ):  # EfficientNet's file has the standard deviation in place of the variance
            mean, variance, *_ = layer.weights
            mean.assign(np.reshape(np.float32([0.485, 0.456, 0.406]), mean.shape))
            variance.assign(np.reshape(np.float32(IMAGENET_SPREAD), variance.shape))
        elif isinstance(layer, load_keras().layers.BatchNormalization):
            for variable in layer.weights:  # small, otherwise rounding errors would grow from layer to layer
                low, high = (0.5, 1.5) if "moving" in variable.name else (0.2, 0.6)
                variable.assign(rng.uniform(low, high, variable.shape).astype(np.float32))


def test_every_family_of_keras_has_a_row():
    applications = load_keras().applications
    modules = {name for name in dir(applications) if inspect.ismodule(getattr(applications, name))}
    modules -= {"imagenet_utils", "resnet50"}  # not networks; an older name of resnet
    assert modules == {path.partition(".")[0] for path in ROWS.values()}
    general = [row for row in BACKBONES[3:] if row not in FOUNDATION]
    assert set(ROWS) == {row.name for row in general}
    for row in general:
        assert row.build.keywords["builder"] == ROWS[row.name].partition(".")[2]


@pytest.mark.parametrize("name", ROWS)
def test_url_and_digest_are_those_in_the_source_of_keras(name):
    """For networks too large to build here; the next test calls Keras itself."""
    row = find_backbone(name)
    builder, _ = keras_own(row)
    modules = {inspect.getmodule(builder), inspect.getmodule(load_keras().applications.ResNet50)}
    source = "".join(inspect.getsource(module) for module in modules)
    source = re.sub(r'"\s+f?"', "", source)  # strings over several lines
    assert row.weights.digest.partition(":")[2] in source
    assert row.weights.url.rpartition("/")[0] in source


@pytest.mark.parametrize("name", SMALLEST)
def test_output_equals_that_of_keras_on_preprocessed_pixels(name, tmp_path, monkeypatch):
    """Compare with Keras' own builder, weights and `preprocess_input`; Keras requests the file of the row."""
    row = find_backbone(name)
    builder, preprocess_input = keras_own(row)
    side = max(row.smallest, 64)
    ours = load_backbone(name, weights="random", shape=(side, side))
    randomise(ours, seed=1)
    file = tmp_path / "weights.weights.h5"
    ours.save_weights(file)
    if name.startswith("efficientnet-b"):  # Keras adds a layer only if it loads the file itself
        row.load(ours, file, None)
    requested = []

    def get_file(name, origin=None, *, cache_subdir="", file_hash=None):
        requested.append((name, origin, file_hash))
        return str(file)

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    options = {key: value for key, value in row.build.keywords.items() if key == "alpha"}
    plain = builder(include_top=False, weights="imagenet", input_shape=(side, side, 3), **options)
    digest = row.weights.digest.partition(":")[2] or None
    if name in ("mobilenet-v1", "mobilenet-v2"):  # Keras has weights trained at 64 px
        requested = [(file_.replace("_64", "_224"), url.replace("_64", "_224"), md5) for file_, url, md5 in requested]
    assert requested == [(row.weights.file, row.weights.url, digest)]

    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3)).astype(np.float32)
    before = pixels.copy()
    values = run(ours, pixels)
    np.testing.assert_array_equal(pixels, before)
    expected = run(plain, preprocess_input(pixels.copy()))
    assert np.isfinite(expected).all()
    assert expected.std() > 0
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    _check_stages(ours, row)


@pytest.mark.length
@pytest.mark.parametrize("name", LARGER)
def test_the_larger_networks_of_a_family_have_the_stages_of_their_row(name):
    row = find_backbone(name)
    side = max(row.smallest, 64)
    _check_stages(row.build(row.contract, (side, side), False), row)


def _check_stages(model, row):
    """Check that each map has the width of the row and is smaller than the previous map."""
    maps = [model.get_layer(stage.layer).output for stage in row.stages] + [model.output]
    assert [feature_map.shape[-1] for feature_map in maps] == [stage.width for stage in row.stages] + [row.width]
    sides = [feature_map.shape[1] for feature_map in maps]
    assert sides == sorted(set(sides), reverse=True)
    assert len(load_keras().Model(model.input, maps).outputs) == len(row.stages) + 1


def test_too_small_images_are_rejected_before_building():
    with pytest.raises(ValueError, match=r"xception takes inputs of at least 71 × 71 pixels; got 71 × 64\. Choose"):
        load_backbone("xception", weights="random", shape=(71, 64))


@pytest.mark.parametrize("options", [{}, {"shape": (32, 32), "head": True}])
def test_a_network_with_size_dependent_padding_needs_a_shape(options):
    with pytest.raises(ValueError, match="MobileNet must be built for one shape and without a head"):
        load_backbone("mobilenet-v1", weights="random", **options)


@pytest.fixture(scope="module")
def small():
    return load_backbone("mobilenet-v1", weights="random", shape=(32, 32))


def test_weights_of_another_network_are_rejected(small, tmp_path):
    load_keras().Sequential([load_keras().Input((3,)), load_keras().layers.Dense(2)]).save_weights(
        tmp_path / "other.weights.h5"
    )
    words = r"other\.weights\.h5: expected the weights of MobileNet without its classifier; got: .* could not be loaded"
    # Tests turn warnings into errors; a warning of Keras would otherwise become the reason.
    with pytest.raises(CheckpointError, match=words) as caught:
        load_application(small, tmp_path / "other.weights.h5")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("or the backbone that the file belongs to.")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n" + 100 * b"\0"])
@pytest.mark.parametrize("name", ["x.h5", "x.weights.h5", "x.keras"])
def test_damaged_files_are_rejected(small, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"expected (the weights of|an HDF5 file|a zip archive)"):
        load_application(small, tmp_path / name)


def test_a_missing_file_and_a_wrong_digest_are_rejected(small, tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.h5: expected a weights file; there is none"):
        load_application(small, tmp_path / "absent.h5")
    (tmp_path / "other.h5").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="sha256 must be 00; got 2d711642"):  # SHA-256 of "x"
        load_application(small, tmp_path / "other.h5", "00")


@pytest.mark.parametrize("kind", ["external link", "soft link", "external data", "virtual data"])
@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_files_that_refer_to_other_files_are_rejected(small, tmp_path, kind, suffix):
    path = tmp_path / "model.weights.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("layers")
        if kind == "external link":
            group["x"] = h5py.ExternalLink("/etc/hostname", "/")
        elif kind == "soft link":
            group["x"] = h5py.SoftLink("/elsewhere")
        elif kind == "external data":
            group.create_dataset("x", (4,), "u1", external=[("/etc/hostname", 0, 4)])
        else:
            layout = h5py.VirtualLayout((4,), "u1")
            layout[:] = h5py.VirtualSource("/etc/hostname", "x", (4,))
            group.create_virtual_dataset("x", layout)
    if suffix == ".keras":
        with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
            archive.write(path, "model.weights.h5")
        path = tmp_path / "model.keras"
    with pytest.raises(CheckpointError, match=r"has a link to another place, x|layers/x is stored in another file"):
        load_application(small, path)


@pytest.mark.parametrize("name", ["own.keras", "own.weights.h5"])
def test_extensions_are_accepted_in_any_case(small, tmp_path, name):
    randomise(small, seed=3)
    file = tmp_path / name.upper()
    (small.save if name.endswith(".keras") else small.save_weights)(tmp_path / name)
    (tmp_path / name).rename(file)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.float32)
    again = load_backbone("mobilenet-v1", weights=str(file), shape=(32, 32))
    np.testing.assert_array_equal(run(again, pixels), run(small, pixels))
    assert list(tmp_path.iterdir()) == [file]


def test_pretrained_weights_come_from_the_download(small, tmp_path, monkeypatch):
    randomise(small, seed=3)
    file = tmp_path / "mobilenet_1_0_224_tf_no_top.weights.h5"
    small.save_weights(file)
    monkeypatch.setattr(histoblend.features.networks.backbones, "fetch", lambda weights, **_: file)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)).astype(np.float32)
    again = load_backbone("mobilenet-v1", shape=(32, 32))
    np.testing.assert_array_equal(run(again, pixels), run(small, pixels))
    digest = weights_digest(find_backbone("mobilenet-v1"), "imagenet")
    # MobileNet has no published digest, so that of the file is used.
    assert digest == f"{weights_digest(find_backbone('mobilenet-v1'), str(file))} (not verified)"
    assert "mobilenet-v1 not verified" in weights_note(["vgg16", "mobilenet-v1"], "imagenet")
    assert weights_note(["vgg16"], "imagenet") == weights_note(["mobilenet-v1"], "random") == ""
    assert weights_digest(find_backbone("vgg16"), "imagenet") == "md5:6d6bbae143d832006294945121d1f1fc"
