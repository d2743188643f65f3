"""Vision transformers: the same numbers as timm and Hugging Face, from their files, and no other file."""

import json
import pickle
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from histoblend.data.errors import InputError
from histoblend.features.networks.backbones import FOUNDATION, check_shape, load_backbone
from histoblend.features.networks.backend import SYMMETRIC, load_keras
from histoblend.features.networks.embeddings import embedding_compute
from histoblend.features.networks.onnx_export import export_model
from histoblend.features.networks.recipe import recipes_of
from histoblend.features.networks.vit import VitForm, vit
from histoblend.features.networks.vit_weights import load_vit, needed_shapes, place_arrays, resize_positions, translate
from histoblend.features.networks.weights import CheckpointError
from histoblend.pipelines.config import Config
from histoblend.pipelines.steps.embeddings import embeddings_engine
from tests import ROOT
from tests.oracles.record_vits import FAMILIES, SIZES, images

FIXTURES = ROOT / "tests" / "fixtures" / "vits"
PLAIN = "timm-plain.safetensors"


def network(name, size):
    form = VitForm(**FAMILIES[name])
    model = vit(SYMMETRIC, size, False, form=form)
    load_vit(model, FIXTURES / name, form=form)
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_agrees_with_timm_and_hugging_face(name):
    recorded = np.load(FIXTURES / "outputs.npz")
    for size, tolerance in zip(SIZES, (1e-5, 1e-4), strict=True):
        values = network(name, size)(images(size).astype(np.float32), training=False)
        expected = recorded[f"{name.partition('.')[0]}-{size[0]}x{size[1]}"]
        ours = load_keras().ops.convert_to_numpy(values)[:, 0, 0]
        np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("row", [row for row in FOUNDATION if row.multiple > 1], ids=lambda row: row.name)
def test_published_networks_have_the_names_and_shapes_of_their_library(row):
    form = row.build.keywords["form"]
    listed = json.loads((FIXTURES / "names.json").read_text(encoding="utf-8"))[row.name]
    assert listed["depth"] == form.depth
    shapes = {
        name.replace("{i}", str(number)): tuple(shape)
        for name, shape in listed["arrays"].items()
        for number in range(form.depth if "{i}" in name else 1)
    }
    placed = place_arrays(form, shapes)
    assert {translate(name) for name in placed.values()} == set(placed)
    positions = shapes[placed["pos_embed"]][1] - form.grid**2
    assert positions in (0, 1, form.prefix)
    used = sum(int(np.prod(shapes[name])) for name in placed.values())
    assert form.parameters == used + (1 - positions) * form.width
    # Files of 4 bytes per number, and small parts that are not used
    assert not row.weights.megabytes or used * 4e-6 == pytest.approx(row.weights.megabytes, rel=0.01)


def test_positions_are_resized_as_a_line_of_known_points():
    """A constant stays, and without antialiasing the middle of two points is their cubic with a = -0.75."""
    steps = np.float32([0, 0, 0, 1, 1, 1, 1, 1, 1, 1])[None, :, None]
    doubled = resize_positions(steps, (1, 20), antialias=False)[0, :, 0]
    # At a quarter of a step from the edge: weights of the four taps at 1.25, 0.25, 0.75 and 1.75.
    near, far = (lambda x: 1.25 * x**3 - 2.25 * x**2 + 1), (lambda x: -0.75 * (x**3 - 5 * x**2 + 8 * x - 4))
    assert doubled[6] == pytest.approx(near(0.25) + far(1.25), abs=1e-6)
    assert doubled[5] == pytest.approx(near(0.75) + far(1.75), abs=1e-6)
    for antialias in (False, True):
        same = resize_positions(np.ones((7, 7, 2), np.float32), (3, 11), antialias=antialias)
        np.testing.assert_allclose(same, 1, atol=1e-6)


def test_the_network_exports_to_a_file_that_bundles_accept(tmp_path):
    """A bundle's check allows neither operators that make values from a shape nor ones of other domains."""
    size = (24, 56)
    export_model(network("hf-dinov2.safetensors", size), size, str(tmp_path / "vit.onnx"))


def tampered(folder, name, change):
    """Copy of a recorded file with other arrays."""
    arrays = load_file(FIXTURES / name)
    change(arrays)
    save_file(arrays, folder / name)
    return folder / name


def cut(path):
    path.write_bytes((FIXTURES / PLAIN).read_bytes()[:-1])


def overlapping(path):
    arrays = {name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in "ab"}
    header = json.dumps(arrays).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(32))


WRONG = {
    "another network": (
        lambda path: path.write_bytes((FIXTURES / "hf-dinov2.safetensors").read_bytes()),
        r"left over 'encoder\.layer\.0\.layer_scale1\.lambda1'|4 left over",
    ),
    "cut off": (cut, r"the file holds \d+\. It is cut off or damaged"),
    "extra": (lambda path: tampered(path.parent, PLAIN, lambda a: a.update(more=a["norm.bias"])), "left over 'more'"),
    "missing": (lambda path: tampered(path.parent, PLAIN, lambda a: a.pop("norm.bias")), "missing 'norm.bias'"),
    "of another shape": (
        lambda path: tampered(path.parent, PLAIN, lambda a: a.update({"norm.bias": np.zeros(3, np.float32)})),
        r"norm\.bias: shape must be \(24,\); got \(3,\)",
    ),
    "a pickle": (
        lambda path: path.write_bytes(pickle.dumps({"norm.bias": bytes(1000)}, protocol=2)),
        "a header of at most 4194304 bytes; got",
    ),
    "a header of 2 GB": (
        lambda path: path.write_bytes(struct.pack("<Q", 2**31) + b"{}"),
        f"at most 4194304 bytes; got {2**31} bytes in a file of 10",
    ),
    "no JSON": (lambda path: path.write_bytes(struct.pack("<Q", 2) + b"[["), "its header is not JSON"),
    "arrays in one place": (overlapping, r"arrays of 16 bytes, one after another; the file holds 32"),
    "of other numbers": (
        lambda path: tampered(path.parent, PLAIN, lambda a: a.update(more=np.zeros(2, np.int64))),
        "must be an array of F16, F32, F64",
    ),
    "absent": (lambda path: None, "expected a weights file; got: No such file"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_another_file_is_refused_in_one_line(tmp_path, kind):
    make, message = WRONG[kind]
    make(tmp_path / PLAIN)
    form = VitForm(**FAMILIES[PLAIN])
    with pytest.raises(CheckpointError, match=message) as caught:
        load_vit(vit(SYMMETRIC, (32, 32), False, form=form), tmp_path / PLAIN, form=form)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_digest_is_checked():
    form = VitForm(**FAMILIES[PLAIN])
    with pytest.raises(CheckpointError, match="sha256 must be 0; got"):
        load_vit(vit(SYMMETRIC, (32, 32), False, form=form), FIXTURES / PLAIN, "0", form=form)


def changed_archive(path, change):
    """Copy of a PyTorch archive with other members."""
    with zipfile.ZipFile(FIXTURES / "timm-scaled.bin") as old:
        members = {member.filename: old.read(member) for member in old.infolist()}
    kind = change(members) or zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as new:
        for name, content in members.items():
            new.writestr(name, content)


ARCHIVES = {
    "no pickle": (lambda members: members.pop("timm-scaled/data.pkl") and None, "expected PyTorch's archive"),
    "a function": (
        lambda members: members.update({"timm-scaled/data.pkl": b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R."}),
        r"asks for os\.system",
    ),
    "a storage is missing": (lambda members: members.pop("timm-scaled/data/0") and None, r"got none\. It is damaged"),
    "a storage is cut": (
        lambda members: members.update({"timm-scaled/data/0": bytes(4)}),
        r"uncompressed bytes; got 4 \(kind 0\)",
    ),
    "compressed": (lambda members: zipfile.ZIP_DEFLATED, "expected PyTorch's archive"),
    "big-endian": (lambda members: members.update({"timm-scaled/byteorder": b"big"}), "little-endian; got b'big'"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_another_archive_is_refused_in_one_line(tmp_path, kind):
    change, message = ARCHIVES[kind]
    changed_archive(tmp_path / "changed.bin", change)
    form = VitForm(**FAMILIES["timm-scaled.bin"])
    with pytest.raises(CheckpointError, match=message) as caught:
        load_vit(vit(SYMMETRIC, (32, 32), False, form=form), tmp_path / "changed.bin", form=form)
    assert "\n" not in str(caught.value)


def test_other_numbers_of_positions_are_interpolated_and_others_refused():
    form = VitForm(**FAMILIES[PLAIN])
    shapes = needed_shapes(form)
    for count in (4**2, 1 + 6**2):
        assert place_arrays(form, {**shapes, "pos_embed": (1, count, 24)})
    with pytest.raises(CheckpointError, match=r"pos_embed: shape must be \(1, 17, 24\); got \(1, 15, 24\)"):
        place_arrays(form, {**shapes, "pos_embed": (1, 15, 24)})
    with pytest.raises(CheckpointError, match=r"8 missing, .*; 4 left over"):  # no blocks of one norm
        place_arrays(
            replace(form, scaled=True),
            {name.replace("norm1", "norm_1"): shape for name, shape in shapes.items()},
        )


def test_a_size_that_is_not_a_multiple_of_the_patch_is_refused():
    with pytest.raises(InputError, match=r"multiples of 14 pixels; got 192 × 192\. Choose for example 182, 196 or 224"):
        check_shape("dinov2-s", (192, 192))
    check_shape("kaiko-vit-s16", (192, 192))
    with pytest.raises(ValueError, match="must be built for one shape of multiples of 8"):
        vit(SYMMETRIC, (33, 32), False, form=VitForm(**FAMILIES[PLAIN]))


def test_a_row_builds_a_map_of_one_pixel_whatever_the_stages():
    """The default of two stages is for networks with inner maps."""
    assert [recipe.stages for recipe in recipes_of("kaiko-vit-s16", "random", "avg", 2)] == [1]
    model = load_backbone("kaiko-vit-s16", weights="random", shape=(32, 32))
    assert model.output_shape == (None, 1, 1, 384)


def test_networks_beyond_the_limit_of_onnx_files_run_in_keras(tmp_path):
    config = Config.model_validate({"embeddings": {"backbone": ["h-optimus-0", "kaiko-vit-s16"], "size": [224]}})
    assert embeddings_engine(config).name == "keras"
    with pytest.raises(InputError, match=r'h-optimus-0 does not fit into an ONNX file of 2 GB; got engine "onnx"'):
        embedding_compute("h-optimus-0", engine="onnx", weights="random", cache=tmp_path)
