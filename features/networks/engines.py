"""Engines that run an embedding network: ONNX Runtime, or Keras on any backend."""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from histoblend.data.errors import InputError
from histoblend.features.networks.backbones import find_backbone
from histoblend.features.networks.backend import Shape, choose_backend, has_gpu
from histoblend.features.networks.devices import gpu_backends, has_driver
from histoblend.features.networks.onnx_export import export_onnx, open_session
from histoblend.features.networks.recipe import ONNX_PREFIX, FileRecipe, Recipe, byte_network, check_choice, shape_key
from histoblend.features.networks.views import Size

if TYPE_CHECKING:
    import keras


ENGINES = ("auto", "onnx", "keras")
PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")
ONNX_BATCH = 8  # faster than 64, because small batches fit the processor cache (benchmarks/embeddings.py)
KERAS_BATCH = 32
GPU_BATCH = 256
PREPARED_AHEAD = 3  # batches that threads prepare while a Keras network runs or is trained

#: A larger ONNX file has one session for all threads: each session takes more memory than the file has bytes.
SHARED_BYTES = 50_000_000

#: Shape in the name of a network file that accepts images of any shape.
ANY_SHAPE = "any"


@dataclass(frozen=True)
class Engine:
    """How a network is run, after every "auto" has been resolved.

    Attributes
    ----------
    name : {"onnx", "keras"}
    backend : str
        Backend of Keras, which computes or exports.
    precision : {"float32", "bfloat16", "float16", "int8"}
    gpu : bool
    """

    name: str
    backend: str
    precision: str
    gpu: bool

    def __str__(self) -> str:
        if self.name == "onnx":
            return f"ONNX Runtime, {self.precision}"
        return f"Keras on {self.backend}, {self.precision}{', GPU' if self.gpu else ''}"

    def feeders(self, workers: int) -> int:
        """Number of threads that read and prepare patches: all, or 2 where Keras itself occupies the cores."""
        return workers if self.name == "onnx" or self.gpu else 2

    def reason(self) -> str:
        """Why the GPU is used or not, to follow the engine's name in the terminal."""
        if self.gpu:
            return f"on the GPU, which {self.backend} can use"
        if not has_driver():
            return "on the CPU, because no GPU driver was found"
        able = gpu_backends()
        if not able:
            return "on the CPU, because no installed backend of Keras can use the GPU (docs/gpu.md)"
        cause = "ONNX Runtime was chosen" if self.name == "onnx" else f"{self.backend} does not use the GPU"
        return f"on the CPU, because {cause}; {', '.join(able)} may use it (docs/gpu.md)"


def choose_engine(engine: str = "auto", precision: str = "auto", *, files: bool = False, half: bool = True) -> Engine:
    """Choose the engine and the precision on this machine.

    Parameters
    ----------
    engine : {"auto", "onnx", "keras"}
        "auto" is "keras" if there is a GPU, and "onnx" otherwise and for "int8".
    precision : {"auto", "float32", "bfloat16", "float16", "int8"}
        Precision of multiplications; pooled values stay float32, and weights too except in "int8". "auto" is bfloat16
        on a GPU if ``half``, and float32 otherwise.
    files : bool
        Whether a backbone is an ONNX file, which is always run by ONNX Runtime on the CPU, in float32.
    half : bool
        Whether bfloat16 is worth its rounding on a GPU: in training, and for transformers.

    Returns
    -------
    Engine

    Raises
    ------
    InputError
        If a name is unknown, the engine does not support the precision, or Keras has no backend.
    """
    check_choice("engine", engine, ENGINES)
    check_choice("precision", precision, PRECISIONS)
    if files:
        if engine == "keras" or precision not in ("auto", "float32"):
            raise InputError(
                f'an ONNX file as backbone needs engine "onnx" and precision "float32"; got {engine!r} and '
                f'{precision!r}. Leave both at "auto".'
            )
        engine = "onnx"
    if precision == "int8" and engine == "auto":
        engine = "onnx"
    gpu = engine != "onnx" and has_gpu()
    if engine == "auto":
        engine = "keras" if gpu else "onnx"
    if engine == "onnx":
        if precision not in ("auto", "float32", "int8"):
            raise InputError(
                f'engine "onnx" computes in float32 or int8; got precision {precision!r}. Choose engine "keras".'
            )
        return Engine("onnx", choose_backend(), "float32" if precision == "auto" else precision, False)
    if precision == "int8":
        raise InputError('precision "int8" needs engine "onnx"; got engine "keras". Choose engine "auto".')
    chosen = ("bfloat16" if gpu and half else "float32") if precision == "auto" else precision
    return Engine("keras", choose_backend(), chosen, gpu)


def engine_for(backbones: Sequence[str], engine: str = "auto", precision: str = "auto") -> Engine:
    """Choose the engine for embeddings by some backbones, named as in a configuration; see :func:`choose_engine`."""
    rows = [find_backbone(name) for name in backbones if not name.startswith(ONNX_PREFIX)]
    files = len(rows) < len(backbones)
    large = [row.name for row in rows if not row.exports]
    if large and (files or engine == "onnx"):
        got = "an ONNX file beside it" if files else 'engine "onnx"'
        raise InputError(
            f'{large[0]} does not fit into an ONNX file of 2 GB; got {got}. Run it alone, by engine "auto".'
        )
    transformer = any(row.multiple > 1 for row in rows)
    return choose_engine("keras" if large and engine == "auto" else engine, precision, files=files, half=transformer)


@dataclass
class OnnxNetwork:
    """A network run by ONNX Runtime, with one thread per call and any number of concurrent calls.

    Parameters
    ----------
    recipe : Recipe or FileRecipe
    cache : Path
        Folder of the exported file, which is written there if missing.
    precision : {"float32", "int8"}
        Of the file.
    """

    recipe: Recipe | FileRecipe
    cache: Path = Path()
    precision: str = "float32"
    batch: ClassVar[int] = ONNX_BATCH
    ahead: ClassVar[int] = 0
    _sessions: dict[Shape | None, deque[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _shared: dict[Shape | None, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def shapes(self, sizes: Sequence[Size]) -> list[Shape | None]:
        """Return the shapes to export networks for, as far as they are known without the patches."""
        if self.recipe.any_size:
            return [None]
        return [(size, size) for size in sizes if size is not None]

    def content(self, shape: Shape | None) -> bytes:
        """Return the content of the ONNX file for images of a shape; it is exported if it is not in the cache."""
        if not isinstance(self.recipe, Recipe):
            raise TypeError(f"only networks of this program are exported; got {self.recipe.backbone}.")
        return export_onnx(self.recipe, shape, self.cache).read_bytes()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Run (n, height, width, 3) uint8 to (n, width) float32."""
        shape = shape_key(self.recipe, images)
        idle = self._sessions.setdefault(shape, deque())
        try:
            session = idle.pop()
        except IndexError:
            session = self._session(shape)
        values = _run(session, images.astype(np.float32, order="C"))
        if session is not self._shared.get(shape):
            idle.append(session)
        return values

    def _session(self, shape: Shape | None) -> Any:
        """One session per concurrent call, reused by later calls; a large network has one that all calls share."""
        with self._lock:
            if shape in self._shared:
                return self._shared[shape]
            content = self.content(shape)
            if len(content) > SHARED_BYTES:
                self._shared[shape] = open_session(content)
                return self._shared[shape]
        return open_session(content)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sessions": {}, "_shared": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def _run(session: Any, images: np.ndarray) -> np.ndarray:
    """Run images, in batches of the size that the network is fixed to, if any."""
    given = session.get_inputs()[0]
    batch = given.shape[0] if isinstance(given.shape[0], int) else len(images)
    parts = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        count = len(part)
        if count < batch:
            part = np.concatenate([part, np.zeros((batch - count, *part.shape[1:]), part.dtype)])
        parts.append(session.run(None, {given.name: part})[0][:count])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass
class StoredOnnx(OnnxNetwork):
    """A network run by ONNX Runtime from given ONNX files, without an export.

    Parameters
    ----------
    recipe, precision
        See :class:`OnnxNetwork`. The cache is not used.
    contents : mapping from shape to bytes
        ONNX file for images of each shape (height, width); under None if one file accepts all shapes.
    """

    contents: Mapping[Shape | None, bytes] = field(default_factory=dict, repr=False)

    def content(self, shape: Shape | None) -> bytes:
        """Return the content of the ONNX file for images of a shape."""
        return content_for(self.contents, shape)


@dataclass
class KerasNetwork:
    """A network run by Keras in batches of a fixed size, all on one thread.

    On a GPU each new thread plans every convolution again: 3 seconds of an H200 for EfficientNet-Lite2.

    Parameters
    ----------
    recipe : Recipe
    precision : {"float32", "bfloat16", "float16"}
    batch : int
    """

    recipe: Recipe
    precision: str = "float32"
    batch: int = KERAS_BATCH
    ahead: ClassVar[int] = PREPARED_AHEAD
    _models: dict[Shape | None, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def build(self, shape: Shape | None) -> keras.Model:
        """Build the network for images of a shape."""
        return byte_network(self.recipe, shape, self.precision)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Run (n, height, width, 3) uint8 with n up to `batch` to (n, width) float32."""
        padded = np.zeros((self.batch, *images.shape[1:]), np.uint8)  # uint8: a quarter of the transfer to the GPU
        padded[: len(images)] = images
        return _keras_thread(os.getpid()).submit(self._run, padded).result()[: len(images)]

    def _run(self, images: np.ndarray) -> np.ndarray:
        shape = shape_key(self.recipe, images)
        if shape not in self._models:
            self._models[shape] = self.build(shape)
        return np.asarray(self._models[shape].predict_on_batch(images))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_models": {}}


@functools.cache
def _keras_thread(process: int) -> ThreadPoolExecutor:
    """Return the thread of a process that runs its networks. A forked process has none of its parent's threads."""
    return ThreadPoolExecutor(1, "keras")


def content_for(contents: Mapping[Shape | None, bytes], shape: Shape | None) -> bytes:
    """Return the file for images of a shape; raise InputError if there is none."""
    if shape not in contents:
        known = ", ".join(shape_name(known_shape) for known_shape in contents)
        raise InputError(f"expected images of {known} pixels; got {shape_name(shape)}. Use patches of the same size.")
    return contents[shape]


def shape_name(shape: Shape | None) -> str:
    """Shape in the name of a network file."""
    return f"{shape[0]}x{shape[1]}" if shape else ANY_SHAPE
