"""The error of invalid weights is raised from the child process of the export."""

import pytest

from histoblend.features.networks.onnx_export import export_onnx
from histoblend.features.networks.recipe import Recipe
from histoblend.features.networks.weights import CheckpointError


def test_weights_of_another_network_give_one_line(tmp_path):
    (tmp_path / "other.h5").write_bytes(b"not HDF5")
    with pytest.raises(CheckpointError, match=r"^\S*other\.h5: expected an HDF5 file; got: .*") as caught:
        export_onnx(Recipe(weights=str(tmp_path / "other.h5")), None, tmp_path / "cache")
    assert "\n" not in str(caught.value)
