"""A failed or wrong export leaves no network, and its error is raised from the child process."""

import pytest

import histoblend.features.networks.onnx_export
from histoblend.data.errors import InputError
from histoblend.features.networks.embeddings import embedding_compute
from histoblend.features.networks.onnx_export import export_onnx
from histoblend.features.networks.recipe import Recipe
from histoblend.features.networks.weights import CheckpointError


def test_weights_of_another_network_give_one_line(tmp_path):
    (tmp_path / "other.h5").write_bytes(b"not HDF5")
    with pytest.raises(CheckpointError, match=r"^\S*other\.h5: expected an HDF5 file; got: .*") as caught:
        export_onnx(Recipe(weights=str(tmp_path / "other.h5")), None, tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_a_failed_export_gives_the_reason_and_leaves_no_file(tmp_path, monkeypatch):
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub/tensorflow.py").write_text("raise ImportError('no TensorFlow here')")
    monkeypatch.syspath_prepend(tmp_path / "stub")
    with pytest.raises(InputError, match=r"no TensorFlow here"):
        embedding_compute(engine="onnx", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_an_export_that_differs_is_rejected(tmp_path, monkeypatch):
    written = histoblend.features.networks.onnx_export.onnx_network

    def wrong(model):
        content = written(model)
        model.layers[1].scale = 1e3  # of the input
        return content

    monkeypatch.setattr(histoblend.features.networks.onnx_export, "onnx_network", wrong)
    with pytest.raises(RuntimeError, match=r"must agree with Keras to 0\.0001; got a difference of"):
        histoblend.features.networks.onnx_export.write_onnx(Recipe(weights="random"), None, str(tmp_path / "x.onnx"))
