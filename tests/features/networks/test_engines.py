"""The engine that computes embeddings, chosen by machine or setting."""

import pytest

import histoblend.features.networks.engines
from histoblend.features.networks.engines import Engine, choose_engine


@pytest.mark.parametrize(
    ("gpu", "asked", "expected"),
    [
        (False, ("auto", "auto"), Engine("onnx", "jax", "float32", False)),
        (False, ("keras", "bfloat16"), Engine("keras", "jax", "bfloat16", False)),
        (True, ("auto", "auto"), Engine("keras", "jax", "bfloat16", True)),
        (True, ("keras", "float32"), Engine("keras", "jax", "float32", True)),
        (True, ("onnx", "auto"), Engine("onnx", "jax", "float32", False)),
        (True, ("auto", "int8"), Engine("onnx", "jax", "int8", False)),
    ],
    ids=["cpu", "cpu-half", "gpu", "gpu-single", "gpu-onnx", "8 bits"],
)
def test_the_engine_depends_on_the_machine_unless_it_is_given(monkeypatch, gpu, asked, expected):
    monkeypatch.setattr(histoblend.features.networks.engines, "has_gpu", lambda: gpu)
    monkeypatch.setattr(histoblend.features.networks.engines, "choose_backend", lambda: "jax")
    assert choose_engine(*asked) == expected


def test_an_engine_has_a_readable_name():
    assert str(Engine("keras", "torch", "bfloat16", True)) == "Keras on torch, bfloat16, GPU"
    assert str(choose_engine("onnx")) == "ONNX Runtime, float32"
