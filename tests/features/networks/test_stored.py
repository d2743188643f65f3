"""Stored networks give the same numbers from the files alone, with both engines."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import histoblend.features.networks.stored
from histoblend.data.errors import InputError
from histoblend.features.networks.embeddings import EmbeddingCompute, embedding_compute
from histoblend.features.networks.engines import KerasNetwork
from histoblend.features.networks.recipe import Recipe
from histoblend.features.networks.stored import open_networks, store_networks
from histoblend.models.file_checks import check_content

PATCHES = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("engine", ["onnx", "keras"])
def test_a_stored_network_gives_the_same_numbers(engine, tmp_path):
    compute = embedding_compute(weights="random", engine=engine, size=[None, 96], d4=True)
    entries = json.loads(json.dumps(store_networks(compute, 64, tmp_path)))
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name, content in contents.items():
        check_content(name, content)
    again = open_networks(entries, contents)
    assert again.columns == compute.columns
    np.testing.assert_array_equal(again(PATCHES), compute(PATCHES))


def test_a_mismatched_description_is_rejected(tmp_path):
    entries = store_networks(embedding_compute(weights="random", engine="onnx"), 64, tmp_path)
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="expected an embedding of 7 columns; this version gives 1280"):
        open_networks([{**entries[0], "width": 7}], contents)
    with pytest.raises(InputError, match="description of its networks cannot be read"):
        open_networks([{**entries[0], "files": {"any": "other.onnx"}}], contents)
    with pytest.raises(InputError, match="efficientnet-lite9"):
        open_networks([{**entries[0], "recipe": {**entries[0]["recipe"], "backbone": "efficientnet-lite9"}}], contents)


HOSTILE = (
    {"width": 2_000_000}, {"width": 7.0}, {"width": "7"}, {"width": True}, {"width": 0}, {"sha256": 5},
    {"backbone": []}, {"pooling": None}, {"offset": [0, 0]}, {"offset": "000"}, {"scale": [1, 1, float("nan")]},
    {"scale": [1, 1, 10**400]},
)  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE, ids=str)
def test_a_hostile_description_of_an_onnx_file_is_rejected(change):
    recipe = {"backbone": "onnx:own.onnx", "sha256": "0" * 64, "width": 7, "pooling": "auto"}
    recipe |= {"offset": [0, 0, 0.5], "scale": [1, 1, 1]}
    entry = {"files": {}, "engine": "onnx", "precision": "float32", "sizes": [32], "d4": False, "centre": 0, "width": 7}
    assert open_networks([{**entry, "recipe": recipe}], {}).width == 7
    with pytest.raises(InputError, match="the bundle's description of an ONNX file: expected "):
        open_networks([{**entry, "recipe": {**recipe, **change}}], {})


def test_no_local_path_is_stored(tmp_path, monkeypatch):
    saved = SimpleNamespace(save=lambda path: Path(path).touch())
    monkeypatch.setattr(histoblend.features.networks.stored, "byte_network", lambda *names: saved)
    network = KerasNetwork(Recipe(weights="/home/user/own.weights.h5"))
    (entry,) = store_networks(EmbeddingCompute(network, (None,), False), 64, tmp_path)
    assert "/home" not in json.dumps(entry)
    assert (
        open_networks([entry], {"0-efficientnet-lite0-local-any.keras": b""})
        .columns[0]
        .startswith("embedding_efficientnet-lite0-local-0000")
    )
