"""The engine that computes embeddings, chosen by machine or setting."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest

import histoblend.features.networks.engines
from histoblend.features.networks.engines import Engine, KerasNetwork, choose_engine
from histoblend.features.networks.recipe import recipes_of


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


class Means:
    """A network that returns the mean of each image, and notes its threads."""

    def __init__(self):
        self.threads = set()

    def predict_on_batch(self, images):
        self.threads.add(threading.current_thread().name)
        return images.mean(axis=(1, 2, 3), keepdims=False)[:, None].astype(np.float32)


@dataclass
class MeansOnKeras(KerasNetwork):
    def build(self, shape):
        return Means()


def test_one_thread_runs_a_keras_network_for_all():
    (recipe,) = recipes_of("efficientnet-lite0", "random", "avg", 1)
    network = copy.deepcopy(MeansOnKeras(recipe, batch=4))  # as for a worker
    images = [np.full((count, 8, 8, 3), 10 * count, np.uint8) for count in (1, 2, 3, 4)]
    with ThreadPoolExecutor(4) as pool:
        for given, values in zip(images, pool.map(network, images), strict=True):
            np.testing.assert_array_equal(values, np.full((len(given), 1), 10.0 * len(given)))
    (means,) = network._models.values()
    assert means.threads == {"keras_0"}
