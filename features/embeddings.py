"""Embeddings: pooled features of a pretrained network, one row a patch, by ONNX Runtime or by Keras itself.

Each row depends on its own patch alone and comes out the same, bit for bit, in any batch and on any number of workers:
ONNX Runtime computes a patch in one thread, and the Keras engine always runs batches of one size.

Only the export to ONNX needs TensorFlow, in a process of its own. Without TensorFlow, or on a GPU, use
``engine="keras"``, which runs on any backend of Keras.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

import features.backbones
from data.errors import InputError
from features.backbones import find_backbone, load_backbone, load_keras

if TYPE_CHECKING:
    import keras

ENGINES = ("onnx", "keras")
POOLINGS = ("avg", "max", "both")
EXPORT_TOLERANCE = 1e-4  # ONNX Runtime against Keras, relative to the larger of 1 and the largest value
ONNX_BATCH = 8  # small batches stay in the processor's cache: faster than 64 (benchmarks/embeddings.py)
KERAS_BATCH = 32
DEFAULT_CACHE = Path(".cache/networks")

Size = int | None
Sizes = Size | Sequence[Size]


def embedding_network(backbone: str, pooling: str = "avg") -> keras.Model:
    """Pretrained network with pooling in place of its classifier.

    Parameters
    ----------
    backbone : str
        A name in :data:`features.backbones.BACKBONES`.
    pooling : {"avg", "max", "both"}
        Over the last feature map; "both" puts the maxima behind the averages.

    Returns
    -------
    keras.Model
        Maps (n, height, width, 3) float32 holding 0..255 RGB to (n, width) float32.
    """
    keras = load_keras()
    body = load_backbone(backbone)
    layers = keras.layers
    pooled = {
        "avg": layers.GlobalAveragePooling2D(data_format="channels_last", name="pool_avg")(body.output),
        "max": layers.GlobalMaxPooling2D(data_format="channels_last", name="pool_max")(body.output),
    }
    output = layers.Concatenate(name="pool_both")(list(pooled.values())) if pooling == "both" else pooled[pooling]
    return keras.Model(body.input, output, name=f"{backbone}-{pooling}")


def embedding_compute(
    backbone: str = "efficientnet-lite0",
    *,
    size: Sizes = None,
    engine: str = "onnx",
    d4: bool = False,
    pooling: str = "avg",
    cache: str | os.PathLike[str] = DEFAULT_CACHE,
) -> EmbeddingCompute:
    """Prepare the function that embeds patches, ready to be called from many threads or sent to processes.

    Parameters
    ----------
    backbone : str
        A name in :data:`features.backbones.BACKBONES`.
    size : int, None or sequence of these
        Side in pixels that patches are resized to (see :func:`resize`); None leaves them as they are. Several sizes
        give their embeddings side by side.
    engine : {"onnx", "keras"}
        "onnx" exports the network once, into `cache`, and is the fast one on a CPU.
    d4 : bool
        Average over the 8 symmetries of the square; costs 8 times as much.
    pooling : {"avg", "max", "both"}
    cache : path
        Folder for exported networks, made when missing.

    Returns
    -------
    EmbeddingCompute

    Raises
    ------
    ValueError
        For an unknown option.
    RuntimeError
        When the export fails or its result differs from Keras'.
    """
    sizes = tuple(size) if isinstance(size, Sequence) else (size,)
    for one in sizes:
        if one is not None and (isinstance(one, bool) or not isinstance(one, int) or one < 1):
            raise InputError(f"size must be a positive number of pixels or None; got {one!r}.")
    if not sizes or len(set(sizes)) < len(sizes):
        raise InputError(f"sizes must be one or more different ones; got {sizes}.")
    for name, value, known in (("engine", engine, ENGINES), ("pooling", pooling, POOLINGS)):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}; got {value!r}.")
    find_backbone(backbone)
    network: OnnxNetwork | KerasNetwork
    if engine == "onnx":
        network = OnnxNetwork(backbone, pooling, Path(cache).absolute())
        export_onnx(backbone, pooling, network.cache)  # now, so that workers do not all set out to do it
    else:
        network = KerasNetwork(backbone, pooling)
    return EmbeddingCompute(network, sizes, bool(d4))


@dataclass(frozen=True)
class EmbeddingCompute:
    """Embeds patches: (n, height, width, 3) uint8 RGB to (n, width) float32. Made by :func:`embedding_compute`.

    Attributes
    ----------
    network : OnnxNetwork or KerasNetwork
    sizes : tuple of int or None
    d4 : bool
    """

    network: OnnxNetwork | KerasNetwork
    sizes: tuple[Size, ...]
    d4: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names, such as ``embedding_efficientnet-lite0-0000_rgb_whole``, with whatever is not plain."""
        pooling = self.network.pooling
        names = []
        for size in self.sizes:
            options = [f"{size}px"] * (size is not None) + ["d4"] * self.d4 + [pooling] * (pooling != "avg")
            statistic = "-".join([self.network.backbone, *options])
            names += [f"embedding_{statistic}-{i:04d}_rgb_whole" for i in range(self.network.width)]
        return tuple(names)

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.network.width * len(self.sizes)

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Embed patches.

        Parameters
        ----------
        patches : ndarray of shape (n, height, width, 3), dtype uint8
            RGB, 0..255. Not modified.

        Returns
        -------
        ndarray of shape (n, width), dtype float32

        Raises
        ------
        ValueError
            When the patches have another shape or dtype.
        """
        if patches.ndim != 4 or patches.shape[3] != 3 or 0 in patches.shape[1:3] or patches.dtype != np.uint8:
            raise ValueError(
                f"patches must be uint8 RGB of shape (n, height, width, 3); got {patches.dtype} {patches.shape}."
            )
        values = np.zeros((len(patches), self.width), np.float32)
        for place, size in enumerate(self.sizes):
            part = values[:, place * self.network.width : (place + 1) * self.network.width]
            for start in range(0, len(patches), self.network.batch):
                batch = resize(patches[start : start + self.network.batch], size)
                part[start : start + len(batch)] = self._embed(batch)
        return values

    def _embed(self, batch: np.ndarray) -> np.ndarray:
        if not self.d4:
            return self.network(batch.astype(np.float32))
        total = np.zeros((len(batch), self.network.width), np.float32)
        for view in symmetries(batch):
            total += self.network(view.astype(np.float32, order="C"))
        return total / np.float32(8)


class KerasEmbedding(TransformerMixin, BaseEstimator):
    """Embed patches with a pretrained network, as a scikit-learn transformer.

    It learns nothing from data: `fit` prepares the network. Pickles without the network's session; unpickled elsewhere,
    the network is prepared again on first use.

    Parameters
    ----------
    backbone, size, engine, d4, pooling, cache
        As for :func:`embedding_compute`.
    workers : int
        Threads of the "onnx" engine. The result does not depend on it.

    Attributes
    ----------
    compute_ : EmbeddingCompute

    Examples
    --------
    >>> embedding = KerasEmbedding(size=192).fit(patches)  # doctest: +SKIP
    >>> embedding.transform(patches).shape  # doctest: +SKIP
    (1000, 1280)
    """

    def __init__(
        self,
        backbone: str = "efficientnet-lite0",
        size: Sizes = None,
        engine: str = "onnx",
        d4: bool = False,
        pooling: str = "avg",
        cache: str | os.PathLike[str] = DEFAULT_CACHE,
        workers: int = 1,
    ) -> None:
        self.backbone = backbone
        self.size = size
        self.engine = engine
        self.d4 = d4
        self.pooling = pooling
        self.cache = cache
        self.workers = workers

    def fit(self, X: np.ndarray | None = None, y: Any = None) -> KerasEmbedding:
        """Prepare the network; the patches are not looked at."""
        options = {name: getattr(self, name) for name in ("size", "engine", "d4", "pooling", "cache")}
        self.compute_ = embedding_compute(self.backbone, **options)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Embed patches.

        Parameters
        ----------
        X : ndarray of shape (n, height, width, 3), dtype uint8

        Returns
        -------
        ndarray of shape (n, width), dtype float32
        """
        check_is_fitted(self)
        if self.workers == 1 or len(X) <= ONNX_BATCH:
            return self.compute_(X)
        from joblib import Parallel, delayed

        step = 8 * ONNX_BATCH
        parts = Parallel(n_jobs=self.workers, prefer="threads")(
            delayed(self.compute_)(X[start : start + step]) for start in range(0, len(X), step)
        )
        return np.concatenate(parts)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns, an object array of shape (width,)."""
        check_is_fitted(self)
        return np.asarray(self.compute_.columns, dtype=object)


def symmetries(patches: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the 8 symmetries of the square of patches (n, height, width, 3) as views: 4 turns, and 4 of the mirror."""
    for mirrored in (patches, patches[:, :, ::-1]):
        for turns in range(4):
            yield np.rot90(mirrored, turns, axes=(1, 2))


def resize(patches: np.ndarray, size: Size) -> np.ndarray:
    """Resize patches to squares by Pillow's bicubic filter, rounded to 0..255.

    Keys' kernel with a = -0.5, pixel centres at half-integers, edges cut and renormalised, widened when shrinking. One
    rule for every engine, outside of the network, so that the input contract stays 0..255.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
    size : int or None
        None, or the size that they have, returns them as they are.

    Returns
    -------
    ndarray of shape (n, size, size, 3), dtype uint8
    """
    if size is None or patches.shape[1:3] == (size, size):
        return patches
    from PIL import Image

    resized = np.empty((len(patches), size, size, 3), np.uint8)
    for target, patch in zip(resized, patches, strict=True):
        picture = Image.fromarray(np.ascontiguousarray(patch))
        target[:] = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
    return resized


@dataclass
class _Network:
    backbone: str
    pooling: str

    @property
    def width(self) -> int:
        return find_backbone(self.backbone).width * (2 if self.pooling == "both" else 1)


@dataclass
class OnnxNetwork(_Network):
    """A network run by ONNX Runtime, one thread a call; any number of calls at a time.

    Parameters
    ----------
    backbone, pooling : str
    cache : Path
        Where the exported file is, or is put when it is missing.
    """

    cache: Path
    batch = ONNX_BATCH
    _sessions: deque[Any] = field(default_factory=deque, init=False, repr=False, compare=False)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Run (n, height, width, 3) float32, C-contiguous, to (n, width) float32."""
        try:
            session = self._sessions.pop()
        except IndexError:  # as many as there are calls at a time, kept for the next
            session = open_session(export_onnx(self.backbone, self.pooling, self.cache))
        values: np.ndarray = session.run(None, {session.get_inputs()[0].name: images})[0]
        self._sessions.append(session)
        return values

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sessions": deque()}


@dataclass
class KerasNetwork(_Network):
    """A network run by Keras on its backend, one call at a time, always in batches of one size."""

    batch = KERAS_BATCH
    _model: Any = field(default=None, init=False, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Run (n, height, width, 3) float32 with n up to `batch` to (n, width) float32."""
        padded = np.zeros((self.batch, *images.shape[1:]), np.float32)
        padded[: len(images)] = images
        with self._lock:
            if self._model is None:
                self._model = embedding_network(self.backbone, self.pooling)
            return np.asarray(self._model.predict_on_batch(padded))[: len(images)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def open_session(path: Path) -> Any:
    """Open an ONNX file on the CPU with one thread: numbers then do not depend on how many cores there are."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def export_onnx(backbone: str, pooling: str, cache: Path) -> Path:
    """Find the network's ONNX file in the cache, or export it there and hold it against Keras.

    The file's name carries a digest of what it was made of: weights, this code and the libraries' versions. A
    ``.sha256`` file beside it guards against damage.

    Parameters
    ----------
    backbone, pooling : str
    cache : Path
        Folder, made when missing. Several processes may share it.

    Returns
    -------
    Path

    Raises
    ------
    RuntimeError
        When the export fails, for instance without TensorFlow, or differs from Keras by more than 1e-4.
    """
    path = cache / f"{backbone}-{pooling}-{_export_key(backbone, pooling)[:16]}.onnx"
    digest = path.with_suffix(".sha256")
    if path.is_file() and digest.is_file() and digest.read_text() == _sha256(path):
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".export-") as folder:
        made = Path(folder, path.name)
        _run_export(backbone, pooling, made)
        made.with_suffix(".sha256").write_text(_sha256(made))
        os.replace(made, path)
        os.replace(made.with_suffix(".sha256"), digest)
    return path


def _run_export(backbone: str, pooling: str, path: Path) -> None:
    """Export in a child process: TensorFlow's memory, threads and remarks stay there, whatever the backend here."""
    code = f"from features.embeddings import write_onnx; write_onnx({backbone!r}, {pooling!r}, {str(path)!r})"
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(  # noqa: S603 - our own code and names out of BACKBONES
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=Path(__file__).resolve().parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(
            f"{backbone}: expected an export to ONNX; got: {reason} "
            'The export needs TensorFlow and tf2onnx; engine="keras" works without them.'
        )


def write_onnx(backbone: str, pooling: str, path: str) -> None:
    """Export a network to an ONNX file with free batch, height and width, and check the file against Keras.

    Raises
    ------
    RuntimeError
        When ONNX Runtime's numbers differ from Keras' by more than EXPORT_TOLERANCE.
    """
    model = embedding_network(backbone, pooling)
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (n, side, side, 3)).astype(np.float32) for n, side in ((3, 96), (2, 64))]
    expected = [np.asarray(model(batch, training=False)) for batch in batches]
    model.export(path, format="onnx", verbose=False)
    session = open_session(Path(path))
    for batch, keras_values in zip(batches, expected, strict=True):
        values = session.run(None, {session.get_inputs()[0].name: batch})[0]
        gap = float(np.abs(values - keras_values).max() / max(1.0, np.abs(keras_values).max()))
        if not gap <= EXPORT_TOLERANCE:
            raise RuntimeError(
                f"ONNX Runtime must agree with Keras to {EXPORT_TOLERANCE}; got a difference of {gap:.2g}."
            )


def _export_key(backbone: str, pooling: str) -> str:
    """Digest of everything that the exported file depends on."""
    parts = {
        "backbone": backbone,
        "pooling": pooling,
        "weights": find_backbone(backbone).weights.sha256,
        "code": [_sha256(Path(file)) for file in (__file__, features.backbones.__file__)],
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
