"""Export embedding networks to ONNX files, which are compared with Keras and cached."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoblend.data.errors import AWAY, InputError
from histoblend.data.storage.atomic import PARTIAL, remove_unfinished_files, sync_folder, sync_tree
from histoblend.features.networks.applications import file_sha256
from histoblend.features.networks.backbones import find_backbone, weights_digest
from histoblend.features.networks.backend import Shape, choose_backend, to_numpy
from histoblend.features.networks.child_process import call_in_child
from histoblend.features.networks.onnx_checks import checked_network
from histoblend.features.networks.onnx_writer import onnx_network
from histoblend.features.networks.recipe import (
    Recipe,
    embedding_network,
)

if TYPE_CHECKING:
    import keras


EXPORT_TOLERANCE = 1e-4  # maximum difference of ONNX Runtime and Keras, relative to max(1, largest value)

#: Source files that the numbers of a network depend on.
_SOURCES = (
    "applications.py", "backbone_table.py", "backbones.py", "backend.py", "efficientnet_lite.py", "embeddings.py",
    "engines.py", "onnx_export.py", "onnx_writer.py", "recipe.py", "views.py", "vit.py", "vit_weights.py", "weights.py",
)  # fmt: skip


def open_session(content: bytes) -> Any:
    """Check an ONNX file and open it on the CPU, with one thread so that results do not depend on the core count."""
    import onnxruntime

    content = checked_network("the ONNX file", content)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    # Otherwise a file that also has the first bytes of ONNX Runtime's own format would be read as that, unchecked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if b"DequantizeLinear" in content and _overflows():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@functools.cache
def _overflows() -> bool:
    """Whether products of 8-bit numbers overflow on this processor: x86 without VNNI adds them in 16 bits.

    ONNX Runtime then needs an option for exact products, which would make processors with VNNI slower.
    """
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    size = 64
    factor = numpy_helper.from_array(np.full((size, size), 127, np.int8), "factor")
    value = helper.make_tensor_value_info("value", TensorProto.UINT8, [size, size])
    product = helper.make_tensor_value_info("product", TensorProto.INT32, [size, size])
    node = helper.make_node("MatMulInteger", ["value", "factor"], ["product"])
    graph = helper.make_graph([node], "product", [value], [product], [factor])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return bool((session.run(None, {"value": np.full((size, size), 255, np.uint8)})[0] != size * 255 * 127).any())


def export_onnx(recipe: Recipe, shape: Shape | None, cache: Path) -> Path:
    """Return the network's ONNX file from the cache, after exporting it and comparing it with Keras if missing.

    The file name includes a digest of the weights, this code and the versions of the libraries. A ``.sha256`` file next
    to it detects damage.

    Parameters
    ----------
    recipe : Recipe
    shape : tuple of int or None
        Height and width of the images; None for any.
    cache : Path
        Folder, created if missing. Several processes may share it.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If the weights are not available or belong to another network, or Keras is not installed.
    RuntimeError
        If the export fails for another reason, or differs from Keras by more than 1e-4.
    """
    side = f"-{shape[0]}x{shape[1]}" if shape else ""
    path = cache / f"{recipe.label}-{recipe.pooling}{side}-{_export_key(recipe, shape)[:16]}.onnx"
    digest = path.with_suffix(".sha256")
    if path.is_file() and digest.is_file() and digest.read_text() == file_sha256(path):
        return path
    cache.mkdir(parents=True, exist_ok=True)
    remove_unfinished_files(cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".export-", suffix=f".{os.getpid()}{PARTIAL}") as folder:
        exported = Path(folder, path.name)
        _run_export(recipe, shape, exported)
        exported.with_suffix(".sha256").write_text(file_sha256(exported))
        sync_tree(Path(folder))
        os.replace(exported, path)
        os.replace(exported.with_suffix(".sha256"), digest)
    sync_folder(cache)
    return path


def _run_export(recipe: Recipe, shape: Shape | None, path: Path) -> None:
    """Export in a child process, which isolates the memory, threads and messages of Keras from this process."""
    environment = {"KERAS_BACKEND": choose_backend(), "CUDA_VISIBLE_DEVICES": "-1"}
    try:
        call_in_child(write_onnx, (recipe, shape, str(path)), environment)
    except RuntimeError as error:
        raise RuntimeError(
            f'{recipe.backbone}: the export to ONNX failed: {error} Choose engine="keras" (embeddings.engine), '
            "which works without it."
        ) from error


def write_onnx(recipe: Recipe, shape: Shape | None, path: str) -> None:
    """Export an embedding network, see :func:`export_model`. Raises InputError if its weights do not fit."""
    export_model(embedding_network(recipe, shape), shape, path)


def export_model(model: keras.Model, shape: Shape | None, path: str) -> None:
    """Export an image network to an ONNX file with a free batch size, and compare the file with Keras.

    Parameters
    ----------
    model : keras.Model
        Maps (n, height, width, 3) float32 RGB, 0..255, to numbers.
    shape : tuple of int or None
        Height and width of the images; None leaves them free as well.
    path : str

    Raises
    ------
    RuntimeError
        If ONNX Runtime and Keras differ by more than EXPORT_TOLERANCE, or the network has a layer that cannot be
        exported.
    """
    Path(path).write_bytes(onnx_network(model))
    try:
        session = open_session(Path(path).read_bytes())
    except InputError as error:  # a network that this version cannot export, not a file from somebody else
        raise RuntimeError(str(error).removesuffix(f" {AWAY}")) from error
    rng = np.random.default_rng(0)
    for batch_shape in ((3, *(shape or (96, 96)), 3), (2, *(shape or (64, 64)), 3)):
        batch = rng.integers(0, 256, batch_shape).astype(np.float32)
        expected = to_numpy(model(batch, training=False))
        values = session.run(None, {session.get_inputs()[0].name: batch})[0]
        difference = float(np.abs(values - expected).max() / max(1.0, np.abs(expected).max()))
        if not difference <= EXPORT_TOLERANCE:
            raise RuntimeError(
                f"ONNX Runtime must agree with Keras to {EXPORT_TOLERANCE}; got a difference of {difference:.2g}."
            )


def _export_key(recipe: Recipe, shape: Shape | None) -> str:
    """Return a digest of everything that the exported file depends on."""
    folder = Path(__file__).parent
    parts = {
        "recipe": {**asdict(recipe), "weights": weights_digest(find_backbone(recipe.backbone), recipe.weights)},
        "shape": shape,
        "code": [file_sha256(folder / name) for name in _SOURCES],
        "backend": choose_backend(),
        "versions": {name: _version(name) for name in ("keras", "onnx", "onnxruntime", "jax", "torch")},
        "tensorflow": _version("tensorflow") or _version("tensorflow-cpu"),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@functools.lru_cache(maxsize=16)
def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
