"""Keras' files have listed layers and numbers inside the file, or are refused before Keras loads them."""

import io
import json
import zipfile

import h5py
import numpy as np
import pytest

from histoblend.data.errors import InputError
from histoblend.features.networks.backend import load_keras
from histoblend.features.networks.keras_checks import check_hdf5, check_keras, check_size
from histoblend.features.networks.recipe import Recipe
from histoblend.features.networks.stored import StoredKeras
from histoblend.models.file_checks import check_content


def hdf5(fill=lambda file: file.create_dataset("x", data=np.ones(4, np.float32))):
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        fill(file)
    return stream.getvalue()


def layer(name, module="keras.layers", registered=None, **config):
    return {"module": module, "class_name": name, "registered_name": registered, "config": config}


def keras_file(*layers, weights=None, **more):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("config.json", json.dumps(layer("Sequential", "keras", layers=layers)))
        archive.writestr("model.weights.h5", hdf5() if weights is None else weights)
        for name, content in more.items():
            archive.writestr(name, content)
    return stream.getvalue()


def function(name, module="builtins", registered=None):
    return {"module": module, "class_name": "function", "config": name, "registered_name": registered or name}


CONFIGS = {
    "vocabulary": (layer("StringLookup", vocabulary="/etc/passwd"), "known layers of Keras; got keras.layers.StringLo"),
    "integers": (layer("IntegerLookup", vocabulary="/etc/passwd"), "got keras.layers.IntegerLookup"),
    "text": (layer("TextVectorization", vocabulary="/etc/passwd"), "got keras.layers.TextVectorization"),
    "hash": (layer("Hashing", num_bins=2), "got keras.layers.Hashing"),
    "saved model": (layer("TFSMLayer", filepath="x"), "got keras.layers.TFSMLayer"),
    "lambda": (layer("Lambda"), "got keras.layers.Lambda"),
    "python lambda": (layer("Activation", activation={"class_name": "__lambda__", "config": {}}), "None.__lambda__"),
    "public function": (layer("Activation", activation=function("get_file", "keras.utils")), "keras.utils.function"),
    "built-in function": (layer("Dense", activation=function("relu")), r"got builtins.function \(relu\)"),
    "function as a class": (layer("Activation", activation=layer("abs", "keras.ops")), "got keras.ops.abs"),
    "function by name": (layer("Activation", activation="keras.utils.get_file"), "a known activation; got keras.utils"),
    "registered by name": (layer("Dense", activation="pack>mine"), "a known activation; got pack>mine"),
    "no text": (layer("Dense", activation=["relu"]), "a known activation; got"),
    "registered": (layer("Dense", registered="pack>Dense"), r"got keras.layers.Dense \(pack>Dense\)"),
    "another module": (layer("Dense", "keras.src.layers"), "got keras.src.layers.Dense"),
    "a list as a module": (layer("Dense", ["keras.layers"]), "got .*Dense"),
    "no module": (layer("Dense", None), "got None.Dense"),
    "operating system": (layer("system", "os"), "got os.system"),
    "type of TensorFlow": (layer("__typespec__", "tensorflow"), "got tensorflow.__typespec__"),
    "tensor": (layer("__tensor__", None), "got None.__tensor__"),
    "in an initializer": (layer("Dense", kernel_initializer=layer("Mine", "mine")), "got mine.Mine"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_other_layers_and_functions_are_refused(name):
    config, message = CONFIGS[name]
    inside = layer("Sequential", "keras", layers=[layer("Dense"), config])
    for content in (keras_file(config), keras_file(inside)):
        with pytest.raises(InputError, match=message):
            check_content("a.keras", content)


def doubled(file):
    """Groups that each contain the next one twice."""
    group = file.create_group("g")
    for _ in range(40):
        inner = group.create_group("a")
        group["b"] = inner
        group = inner


def circle(file):
    file.create_group("a")["b"] = file["/"]


def virtual(file):
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (4,))
    file.create_virtual_dataset("x", layout)


def texts(file):
    file.create_dataset("x", data=["a" * 1000] * 3, dtype=h5py.string_dtype())


def link(value):
    return lambda file: file.__setitem__("x", value)


def dataset(shape, **options):
    return lambda file: file.create_dataset("x", shape, **{"dtype": "f4"} | options)


def attribute(value, **options):
    return lambda file: file.attrs.create("x", value, **options)


WEIGHTS = {
    "external link": (link(h5py.ExternalLink("/etc/hostname", "/")), "has a link to another place, x"),
    "soft link": (link(h5py.SoftLink("/y")), "has a link to another place, x"),
    "external": (dataset((4,), dtype="u1", external=[("/etc/hostname", 0, 4)]), "/x is stored in another file"),
    "virtual": (virtual, "/x is stored in another file"),
    "named type": (link(np.dtype("f4")), "/x is neither a group nor an array"),
    "doubled": (doubled, "is linked twice"),
    "circle": (circle, "is linked twice"),
    "texts": (texts, "/x holds object"),
    "references": (dataset((4,), dtype=h5py.ref_dtype), "/x holds object"),
    "records": (dataset((4,), dtype=np.dtype([("a", "f4")])), "/x holds"),
    "not stored": (dataset((2**40,), chunks=(1024,)), r"at most 10000000 bytes \(100 times its size\)"),
    "packed": (
        lambda file: file.create_dataset("x", data=np.zeros(10**7, "f4"), compression="gzip", chunks=(10**6,)),
        "expected to expand to at most"),
    "huge chunks": (dataset((1,), chunks=(2**28,), maxshape=(None,), compression="gzip"), "expected to expand to at"),
    "foreign filter": (dataset((9,), chunks=(9,), compression="lzf"), "is packed by a filter of others"),
    "texts as an attribute": (attribute(["a" * 1000] * 3, dtype=h5py.string_dtype()), "has attributes of texts of any"),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_refer_elsewhere_or_expand_are_refused(name):
    fill, message = WEIGHTS[name]
    content = hdf5(fill)
    with pytest.raises(InputError, match=message):
        check_content("a.keras", keras_file(layer("Dense"), weights=content))
    with pytest.raises(InputError, match=message):
        check_hdf5("a.h5", io.BytesIO(content), len(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (keras_file(**{"assets/vocabulary.txt": b"x"}), "expected only .* got assets/vocabulary.txt"),
        (keras_file(weights=b"x"), "expected an HDF5 file"),
        (keras_file(weights=bytes(20_000_000)).replace(b"config.json", b"config.yaml"), "got config.yaml"),
        (b"PK", "expected a zip archive"),
    ],
    ids=["assets", "no weights", "no config", "damaged"],
)
def test_another_archive_is_refused(content, message):
    with pytest.raises(InputError, match=message):
        check_keras("a.keras", content)


def test_weights_of_any_depth_and_names_are_accepted():
    def fill(file):
        file.attrs["backend"] = "tensorflow"
        file.attrs["names"] = np.array([b"a", b"bc"])
        file.create_group("a/b/c").create_dataset("0", data=np.ones((3, 4)), compression="gzip", shuffle=True)
        file["empty"] = np.zeros((0, 3), np.float32)

    content = hdf5(fill)
    assert check_hdf5("a.h5", io.BytesIO(content), len(content)) == 12


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small network as Keras saves it: its configuration and weights."""
    layers = load_keras().layers
    images = load_keras().Input((None, None, 3))
    inner = load_keras().Sequential([layers.Input((None, None, 3)), layers.BatchNormalization()])
    maps = layers.ZeroPadding2D(1)(layers.Conv2D(4, 3, activation="relu")(inner(images)))
    pooled = layers.GlobalAveragePooling2D()(layers.Concatenate()([maps, maps]))
    network = load_keras().Model(images, layers.Dense(2)(pooled))
    path = tmp_path_factory.mktemp("saved") / "a.keras"
    network.save(path)
    return network, path.read_bytes()


def stored(content):
    return StoredKeras(Recipe("efficientnet-lite0"), "float32", 1, {None: content})


def test_a_saved_network_is_accepted(saved):
    network, content = saved
    check_content("a.keras", content)
    pixels = np.ones((1, 5, 7, 3), np.float32)
    expected, actual = (np.asarray(model(pixels)) for model in (network, stored(content).build(None)))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"units": 2', '"units": 100000000000', r"with \d+ weights .* got"),
        ('"filters": 4', '"filters": 1000000000', "expected layers that fit together"),
        ("[1, 1], [1, 1]", "[99999, 99999], [99999, 99999]", "at most 98304000 numbers per image; got"),
        ('"axis": -1', '"axis": 9', "expected layers that fit together"),
    ],
    ids=["units", "filters", "padding", "axis"],
)
def test_a_small_file_cannot_request_much_memory(saved, old, new, message, monkeypatch):
    with zipfile.ZipFile(io.BytesIO(saved[1])) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = members["config.json"].decode()
    assert old in config
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as archive:
        for name, content in (members | {"config.json": config.replace(old, new).encode()}).items():
            archive.writestr(name, content)
    monkeypatch.setattr(load_keras().saving, "load_model", lambda *_, **__: pytest.fail("it was loaded"))
    check_keras("a.keras", changed.getvalue())
    for read in (lambda content: check_size("a.keras", content), lambda content: stored(content).build(None)):
        with pytest.raises(InputError, match=message):
            read(changed.getvalue())
