"""Backends, engines and boosters on imitated GPUs."""

import importlib.metadata
import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import xgboost

from histoblend.features.networks import backend, devices, engines
from histoblend.features.networks.engines import Engine, engine_for
from histoblend.models.heads import boosted
from histoblend.models.heads.boosted import XGBoostHead
from histoblend.pipelines.config import CnnConfig


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Installs imitated packages: their distributions by module, and for PyTorch what it is built for."""

    def install(modules, torch="None"):
        (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\ncuda: Optional[str] = {torch}\nhip = None\n")
        spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name in modules else None)
        names = [name for distributions in modules.values() for name in distributions]
        found = [SimpleNamespace(metadata={"Name": name}) for name in names]
        monkeypatch.setattr(importlib.metadata, "distributions", lambda: found)
        monkeypatch.delitem(sys.modules, "keras", raising=False)
        monkeypatch.delenv("KERAS_BACKEND", raising=False)

    return install


CPU_TENSORFLOW = {"tensorflow": ["tensorflow-cpu"]}
MACHINES = {
    "torch for a GPU": (True, {**CPU_TENSORFLOW, "torch": ["torch"]}, "'13.0'", "torch"),
    "torch for the CPU": (True, {**CPU_TENSORFLOW, "torch": ["torch"]}, "None", "tensorflow"),
    "torch for a GPU, no driver": (False, {**CPU_TENSORFLOW, "torch": ["torch"]}, "'13.0'", "tensorflow"),
    "JAX for a GPU": (True, {**CPU_TENSORFLOW, "jax": ["jax", "jax-cuda12-plugin"]}, "None", "jax"),
    "JAX for the CPU": (True, {**CPU_TENSORFLOW, "jax": ["jax", "jaxlib"]}, "None", "tensorflow"),
    "TensorFlow for a GPU": (True, {"jax": ["jax"], "tensorflow": ["tensorflow"]}, "None", "tensorflow"),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_a_backend_that_can_use_the_gpu_is_chosen(machine, installed, monkeypatch):
    driver, modules, torch, expected = MACHINES[machine]
    monkeypatch.setattr(devices, "has_driver", lambda: driver)
    installed(modules, torch)
    assert backend.choose_backend() == expected
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert backend.choose_backend() == "jax"


@pytest.mark.parametrize("path", ["/proc/driver/nvidia", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/null"])
def test_a_driver_is_found_by_its_files(path, monkeypatch):
    monkeypatch.setattr(devices.Path, "exists", lambda self: self.as_posix() == path)
    assert devices.has_driver() == (path != "/dev/null")


def test_the_terminal_says_why_the_gpu_is_used_or_not(monkeypatch):
    onnx, keras = Engine("onnx", "tensorflow", "float32", False), Engine("keras", "tensorflow", "float32", False)
    assert Engine("keras", "torch", "bfloat16", True).reason() == "on the GPU, which torch can use"
    monkeypatch.setattr(engines, "has_driver", lambda: False)
    assert onnx.reason() == "on the CPU, because no GPU driver was found"
    monkeypatch.setattr(engines, "has_driver", lambda: True)
    monkeypatch.setattr(engines, "gpu_backends", list)
    assert keras.reason() == "on the CPU, because no installed backend of Keras can use the GPU (docs/gpu.md)"
    monkeypatch.setattr(engines, "gpu_backends", lambda: ["torch"])
    assert onnx.reason() == "on the CPU, because ONNX Runtime was chosen; torch may use it (docs/gpu.md)"
    assert keras.reason() == "on the CPU, because tensorflow does not use the GPU; torch may use it (docs/gpu.md)"


def test_on_a_gpu_only_transformers_are_embedded_in_bfloat16(monkeypatch):
    monkeypatch.setattr(engines, "has_gpu", lambda: True)
    monkeypatch.setattr(engines, "choose_backend", lambda: "torch")
    assert engine_for(["efficientnet-lite2"]) == Engine("keras", "torch", "float32", True)
    assert engine_for(["efficientnet-lite2", "dinov2-b"]) == Engine("keras", "torch", "bfloat16", True)
    assert engine_for(["onnx:model.onnx"]) == Engine("onnx", "torch", "float32", False)


def test_a_gpu_gets_patches_from_all_cores_and_learns_from_all_patches():
    gpu, cpu = (Engine("keras", "torch", "float32", gpu) for gpu in (True, False))
    assert [engine.feeders(16) for engine in (gpu, cpu, Engine("onnx", "tensorflow", "float32", False))] == [16, 2, 16]
    limits = [
        CnnConfig(patches=patches).most_patches(200_000, gpu=gpu) for patches in (0, 500) for gpu in (True, False)
    ]
    assert limits == [200_000, 20_000, 500, 500]
    with pytest.raises(ValueError, match="must be 0 or at least 20"):
        CnnConfig(patches=19)


def test_large_tables_are_boosted_on_the_gpu_and_predicted_on_the_cpu(monkeypatch):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(80, 6)).astype(np.float32), rng.integers(0, 2, 80)
    fit = XGBoostHead(trees=20, fewest=10).fit
    expected = fit(X, y, np.arange(80) // 4).predict_proba(X)
    train, asked = xgboost.train, []

    def imitated(parameters, matrix, trees):
        asked.append(parameters.get("device", "cpu"))
        return train({**parameters, "device": "cpu"}, matrix, trees)

    monkeypatch.setattr(xgboost, "train", imitated)
    monkeypatch.setattr(boosted, "has_driver", lambda: True)
    for built, least, device in ((True, 100, "cuda"), (True, 10_000, "cpu"), (False, 100, "cpu")):
        monkeypatch.setattr(xgboost, "build_info", lambda built=built: {"USE_CUDA": built})
        monkeypatch.setattr(boosted, "GPU_FROM", least)
        head = fit(X, y, np.arange(80) // 4)
        assert set(asked) == {device}
        np.testing.assert_array_equal(head.predict_proba(X), expected)
        assert '"device":"cpu"' in head.boosters_[0].save_config()
        asked.clear()
