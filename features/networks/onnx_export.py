"""Export of embedding networks to ONNX files, each checked against Keras and kept in a cache."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.storage.atomic import PARTIAL, clear_leftovers, sync_folder, sync_tree
from histoblend.features.networks.applications import file_sha256
from histoblend.features.networks.backbones import find_backbone, weights_digest
from histoblend.features.networks.backend import Shape, choose_backend
from histoblend.features.networks.child_process import call_in_child
from histoblend.features.networks.recipe import (
    Recipe,
    embedding_network,
)

if TYPE_CHECKING:
    import keras


EXPORT_TOLERANCE = 1e-4  # ONNX Runtime against Keras, relative to the larger of 1 and the largest value

#: Code that a network's numbers depend on.
_SOURCES = (
    "applications.py", "backbone_table.py", "backbones.py", "backend.py", "efficientnet_lite.py", "embeddings.py",
    "engines.py", "onnx_export.py", "recipe.py", "views.py", "weights.py",
)  # fmt: skip


def open_session(content: bytes) -> Any:
    """Open an ONNX file's content on the CPU with one thread: numbers do not depend on how many cores there are."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def export_onnx(recipe: Recipe, shape: Shape | None, cache: Path) -> Path:
    """Find the network's ONNX file in the cache, or export it there and hold it against Keras.

    The file's name carries a digest of what it was made of: weights, this code and the libraries' versions. A
    ``.sha256`` file beside it guards against damage.

    Parameters
    ----------
    recipe : Recipe
    shape : tuple of int or None
        Height and width of the pictures; None for any.
    cache : Path
        Folder, made when missing. Several processes may share it.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        When the weights cannot be had or belong to another network, or TensorFlow or tf2onnx is not installed.
    RuntimeError
        When the export fails otherwise, or differs from Keras by more than 1e-4.
    """
    side = f"-{shape[0]}x{shape[1]}" if shape else ""
    path = cache / f"{recipe.label}-{recipe.pooling}{side}-{_export_key(recipe, shape)[:16]}.onnx"
    digest = path.with_suffix(".sha256")
    if path.is_file() and digest.is_file() and digest.read_text() == file_sha256(path):
        return path
    cache.mkdir(parents=True, exist_ok=True)
    clear_leftovers(cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".export-", suffix=f".{os.getpid()}{PARTIAL}") as folder:
        made = Path(folder, path.name)
        _run_export(recipe, shape, made)
        made.with_suffix(".sha256").write_text(file_sha256(made))
        sync_tree(Path(folder))
        os.replace(made, path)
        os.replace(made.with_suffix(".sha256"), digest)
    sync_folder(cache)
    return path


def _run_export(recipe: Recipe, shape: Shape | None, path: Path) -> None:
    """Export in a child process: TensorFlow's memory, threads and remarks stay there, whatever the backend here."""
    environment = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    try:
        call_in_child(write_onnx, (recipe, shape, str(path)), environment)
    except RuntimeError as error:
        raise RuntimeError(
            f'{recipe.backbone}: expected an export to ONNX; got: {error} engine="keras" works without it.'
        ) from error


def write_onnx(recipe: Recipe, shape: Shape | None, path: str) -> None:
    """Export a network to an ONNX file with free batch, and check the file against Keras.

    Parameters
    ----------
    recipe : Recipe
    shape : tuple of int or None
        Height and width of the pictures; None leaves them free as well.
    path : str

    Raises
    ------
    InputError
        When TensorFlow or tf2onnx is not installed, or the weights do not fit.
    RuntimeError
        When ONNX Runtime's numbers differ from Keras' by more than EXPORT_TOLERANCE, or Keras is not on TensorFlow.
    """
    try:
        importlib.import_module("tensorflow")
        for name in ("tf2onnx", "onnx"):
            if importlib.util.find_spec(name) is None:
                raise ImportError(f"{name} is not installed")
    except ImportError as error:
        raise InputError(
            f"{recipe.backbone}: the export to ONNX needs TensorFlow and tf2onnx; got: {error}. Install them "
            '(requirements.txt), or choose engine="keras" (embeddings.engine), which works without them.'
        ) from error
    backend = choose_backend()
    if backend != "tensorflow":  # from PyTorch, free sizes come out silently wrong
        raise RuntimeError(f"the export to ONNX must run on TensorFlow; got {backend}. Set KERAS_BACKEND=tensorflow.")
    export_model(embedding_network(recipe, shape), shape, path)


def export_model(model: keras.Model, shape: Shape | None, path: str) -> None:
    """Write a network of pictures as an ONNX file with free batch, and check the file against Keras on TensorFlow.

    Parameters
    ----------
    model : keras.Model
        Maps (n, height, width, 3) float32 holding 0..255 RGB to numbers.
    shape : tuple of int or None
        Height and width of the pictures; None leaves them free as well.
    path : str

    Raises
    ------
    RuntimeError
        When ONNX Runtime's numbers differ from Keras' by more than EXPORT_TOLERANCE.
    """
    rng = np.random.default_rng(0)
    shapes = [(3, *(shape or (96, 96)), 3), (2, *(shape or (64, 64)), 3)]
    batches = [rng.integers(0, 256, one).astype(np.float32) for one in shapes]
    expected = [np.asarray(model(batch, training=False)) for batch in batches]
    with warnings.catch_warnings(), _without_chatter():
        warnings.simplefilter("ignore")  # other people's deprecations, in the export only
        model.export(path, format="onnx", verbose=False)
    session = open_session(Path(path).read_bytes())
    for batch, keras_values in zip(batches, expected, strict=True):
        values = session.run(None, {session.get_inputs()[0].name: batch})[0]
        gap = float(np.abs(values - keras_values).max() / max(1.0, np.abs(keras_values).max()))
        if not gap <= EXPORT_TOLERANCE:
            raise RuntimeError(
                f"ONNX Runtime must agree with Keras to {EXPORT_TOLERANCE}; got a difference of {gap:.2g}."
            )


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Keep TensorFlow's remarks on devices off standard error, which no setting does; failures raise all the same."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _export_key(recipe: Recipe, shape: Shape | None) -> str:
    """Digest of everything that the exported file depends on."""
    here = Path(__file__).parent
    parts = {
        "recipe": {**asdict(recipe), "weights": weights_digest(find_backbone(recipe.backbone), recipe.weights)},
        "shape": shape,
        "code": [file_sha256(here / name) for name in _SOURCES],
        "versions": {name: _version(name) for name in ("keras", "tf2onnx", "onnx", "onnxruntime")},
        "tensorflow": _version("tensorflow") or _version("tensorflow-cpu"),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@functools.lru_cache(maxsize=16)
def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
