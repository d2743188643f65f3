"""Embeddings: pooled features of a pretrained network, one row a patch, by ONNX Runtime or by Keras itself.

Each row depends on its own patch alone and comes out the same, bit for bit, in any batch and on any number of workers:
ONNX Runtime computes a patch in one thread, and the Keras engine always runs batches of one size.

Only the export to ONNX needs TensorFlow, in a process of its own. Without TensorFlow, or on a GPU, ``engine="auto"``
takes ``"keras"``, which runs on any backend of Keras.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

import histoblend
from histoblend.data.errors import InputError
from histoblend.data.patches import CENTRE
from histoblend.data.storage.atomic import PARTIAL, clear_leftovers, sync_folder, sync_tree
from histoblend.features.networks.applications import file_sha256
from histoblend.features.networks.backbones import check_kind, find_backbone, load_backbone, weights_digest
from histoblend.features.networks.backend import Shape, choose_backend, has_gpu, load_keras

if TYPE_CHECKING:
    import keras

ENGINES = ("auto", "onnx", "keras")
POOLINGS = ("avg", "max", "both")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
EXPORT_TOLERANCE = 1e-4  # ONNX Runtime against Keras, relative to the larger of 1 and the largest value
ONNX_BATCH = 8  # small batches stay in the processor's cache: faster than 64 (benchmarks/embeddings.py)
KERAS_BATCH = 32
GPU_BATCH = 256
PREPARED_AHEAD = 3  # batches that the Keras engine's threads make ready while the network runs
SYMMETRIES = 8
DEFAULT_CACHE = Path(".cache/networks")

#: Code that a network's numbers depend on.
_SOURCES = ("applications.py", "backbones.py", "backend.py", "efficientnet_lite.py", "embeddings.py", "weights.py")

Size = int | None
Sizes = Size | Sequence[Size]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Recipe:
    """What a network is made of, whatever the size of its pictures.

    Attributes
    ----------
    backbone : str
        A name in :data:`features.networks.backbones.BACKBONES`.
    weights : str
        "imagenet", "random" or the path of a file, as for :func:`features.networks.backbones.load_backbone`.
    pooling : {"avg", "max", "both"}
        Over a feature map; "both" puts the maxima behind the averages.
    stages : int
        How many feature maps are pooled, from the last one backwards, put side by side with the earliest first.
    """

    backbone: str = "efficientnet-lite0"
    weights: str = "imagenet"
    pooling: str = "avg"
    stages: int = 1

    @property
    def maps(self) -> tuple[tuple[str, int], ...]:
        """Label, empty for the last map, and width of each pooled map."""
        row = find_backbone(self.backbone)
        first = len(row.stages) + 1 - self.stages
        inner = [(f"stage{place + 1}", stage.width) for place, stage in enumerate(row.stages) if place >= first]
        factor = 2 if self.pooling == "both" else 1
        return tuple((label, factor * width) for label, width in [*inner, ("", row.width)])

    @property
    def width(self) -> int:
        """Number of values for one picture."""
        return sum(width for _, width in self.maps)

    @property
    def label(self) -> str:
        """The backbone's name, with the kind of weights where they are not the pretrained ones."""
        kinds = {"imagenet": "", "random": "-random"}
        return self.backbone + kinds.get(self.weights, "-local")

    def check(self) -> None:
        """Raise InputError when a part is unknown or missing."""
        row = find_backbone(self.backbone)
        _check_choice("pooling", self.pooling, POOLINGS)
        most = len(row.stages) + 1
        if isinstance(self.stages, bool) or not isinstance(self.stages, int) or not 1 <= self.stages <= most:
            raise InputError(f"stages must be a number from 1 to {most} for {row.name}; got {self.stages!r}.")
        if self.weights not in ("imagenet", "random"):
            check_kind(row, self.weights)


@dataclass(frozen=True)
class Engine:
    """What runs a network, after every "auto" has been decided.

    Attributes
    ----------
    name : {"onnx", "keras"}
    backend : str
        Keras' backend; for "onnx" the one that exports.
    precision : {"float32", "bfloat16", "float16"}
    gpu : bool
    """

    name: str
    backend: str
    precision: str
    gpu: bool

    def __str__(self) -> str:
        if self.name == "onnx":
            return "ONNX Runtime, float32"
        return f"Keras on {self.backend}, {self.precision}{', GPU' if self.gpu else ''}"


def choose_engine(engine: str = "auto", precision: str = "auto") -> Engine:
    """Decide what runs the network here.

    Parameters
    ----------
    engine : {"auto", "onnx", "keras"}
        "auto" is "keras" where there is a GPU or the export to ONNX is not possible, and "onnx" elsewhere.
    precision : {"auto", "float32", "bfloat16", "float16"}
        Of the network's products; weights and pooled values stay float32. "auto" is bfloat16 on a GPU and float32
        elsewhere.

    Returns
    -------
    Engine

    Raises
    ------
    InputError
        For an unknown name, or a precision that the engine does not have.
    """
    _check_choice("engine", engine, ENGINES)
    _check_choice("precision", precision, PRECISIONS)
    gpu = engine != "onnx" and has_gpu()
    if engine == "auto":
        needed = ("tensorflow", "tf2onnx", "onnxruntime")
        possible = all(importlib.util.find_spec(name) is not None for name in needed)
        engine = "keras" if gpu or not possible else "onnx"
    if engine == "onnx":
        if precision not in ("auto", "float32"):
            raise InputError(f'engine "onnx" computes in float32; got precision {precision!r}. Choose engine "keras".')
        return Engine("onnx", "tensorflow", "float32", False)
    chosen = ("bfloat16" if gpu else "float32") if precision == "auto" else precision
    return Engine("keras", choose_backend(), chosen, gpu)


def embedding_network(recipe: Recipe, shape: Shape | None = None) -> keras.Model:
    """Pretrained network with pooling in place of its classifier.

    Parameters
    ----------
    recipe : Recipe
    shape : tuple of int, optional
        Height and width of the pictures; needed by rows without `any_size`.

    Returns
    -------
    keras.Model
        Maps (n, height, width, 3) float32 holding 0..255 RGB to (n, recipe.width) float32.
    """
    keras = load_keras()
    row = find_backbone(recipe.backbone)
    body = load_backbone(recipe.backbone, weights=recipe.weights, shape=shape)
    inner = row.stages[len(row.stages) + 1 - recipe.stages :]
    pooled = []
    for feature_map in [*(body.get_layer(stage.layer).output for stage in inner), body.output]:
        # float32 whatever the policy: a mean over many pixels in half precision would round in each step.
        if recipe.pooling in ("avg", "both"):
            pool = keras.layers.GlobalAveragePooling2D(data_format="channels_last", dtype="float32")
            pooled.append(pool(feature_map))
        if recipe.pooling in ("max", "both"):
            pool = keras.layers.GlobalMaxPooling2D(data_format="channels_last", dtype="float32")
            pooled.append(pool(feature_map))
    output = keras.layers.Concatenate(dtype="float32")(pooled) if len(pooled) > 1 else pooled[0]
    return keras.Model(body.input, output, name=f"{recipe.backbone}-{recipe.pooling}")


def embedding_compute(
    backbone: str | Sequence[str] = "efficientnet-lite0",
    *,
    size: Sizes = None,
    centre: int = 0,
    engine: str = "auto",
    precision: str = "auto",
    d4: bool = False,
    pooling: str = "avg",
    stages: int = 1,
    weights: str = "imagenet",
    cache: str | os.PathLike[str] = DEFAULT_CACHE,
) -> EmbeddingCompute | SideBySide:
    """Prepare the function that embeds patches, ready to be called from many threads or sent to processes.

    Parameters
    ----------
    backbone : str or sequence of str
        Names in :data:`features.networks.backbones.BACKBONES`; several give their embeddings side by side.
    size : int, None or sequence of these
        Side in pixels that patches are resized to (see :func:`resize`); None leaves them as they are. Several sizes
        give their embeddings side by side.
    centre : int
        Side in pixels of the patch's centre that is embedded as well, resized like the whole; 0 for none.
    engine, precision : str
        As for :func:`choose_engine`. "onnx" exports the network once, into `cache`, and is the fast one on a CPU.
    d4 : bool
        Average over the 8 symmetries of the square; costs 8 times as much.
    pooling, stages, weights
        As for :class:`Recipe`.
    cache : path
        Folder for exported networks, made when missing.

    Returns
    -------
    EmbeddingCompute or, of several backbones, SideBySide

    Raises
    ------
    ValueError
        For an unknown option.
    features.weights.CheckpointError
        When the weights cannot be had.
    RuntimeError
        When the export fails or its result differs from Keras'.
    """
    sizes = _check_sizes(size)
    if isinstance(centre, bool) or not isinstance(centre, int) or centre < 0:
        raise InputError(f"centre must be a number of pixels, such as 32, or 0 for none; got {centre!r}.")
    recipes = recipes_of(backbone, weights, pooling, stages)
    chosen = choose_engine(engine, precision)
    computes = []
    for recipe in recipes:
        network: OnnxNetwork | KerasNetwork
        if chosen.name == "onnx":
            network = OnnxNetwork(recipe, Path(cache).absolute())
            for shape in network.shapes(sizes):  # now, so that workers do not all set out to do it
                export_onnx(recipe, shape, network.cache)
        else:
            network = KerasNetwork(recipe, chosen.precision, GPU_BATCH if chosen.gpu else KERAS_BATCH)
        computes.append(EmbeddingCompute(network, sizes, bool(d4), centre))
    return computes[0] if len(computes) == 1 else SideBySide(tuple(computes))


def recipes_of(backbone: str | Sequence[str], weights: str, pooling: str, stages: int) -> list[Recipe]:
    """Recipe of each backbone, checked; a path of weights is made absolute.

    Raises
    ------
    InputError
        For an unknown option, or one file of weights for several backbones.
    """
    names = [backbone] if isinstance(backbone, str) else list(backbone)
    if not names or len(set(names)) < len(names):
        raise InputError(f"backbone must be one name or several different ones; got {names}.")
    local = weights not in ("imagenet", "random")
    if local and len(names) > 1:
        raise InputError(f"a file of weights fits one backbone; got {weights!r} for {', '.join(names)}.")
    recipes = [Recipe(name, weights, pooling, stages) for name in names]
    for recipe in recipes:
        recipe.check()
    return [replace(recipe, weights=str(Path(weights).absolute())) for recipe in recipes] if local else recipes


def _check_sizes(size: Sizes) -> tuple[Size, ...]:
    sizes = tuple(size) if isinstance(size, Sequence) else (size,)
    for one in sizes:
        if one is not None and (isinstance(one, bool) or not isinstance(one, int) or one < 1):
            raise InputError(f"size must be a positive number of pixels or None; got {one!r}.")
    if not sizes or len(set(sizes)) < len(sizes):
        raise InputError(f"sizes must be one or more different ones; got {sizes}.")
    return sizes


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{name} must be one of {', '.join(known)}; got {value!r}.")


@dataclass(frozen=True)
class EmbeddingCompute:
    """Embeds patches: (n, height, width, 3) uint8 RGB to (n, width) float32. Made by :func:`embedding_compute`.

    Attributes
    ----------
    network : OnnxNetwork or KerasNetwork
    sizes : tuple of int or None
    d4 : bool
    centre : int
    """

    network: OnnxNetwork | KerasNetwork
    sizes: tuple[Size, ...]
    d4: bool
    centre: int = 0

    @property
    def views(self) -> tuple[tuple[Size, int], ...]:
        """What the network is shown of a patch: size and, for the centre, its side."""
        return tuple((size, side) for size in self.sizes for side in ([0, self.centre] if self.centre else [0]))

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names, such as ``embedding_efficientnet-lite0-0000_rgb_whole``, with whatever is not plain."""
        recipe = self.network.recipe
        names = []
        for size, centre in self.views:
            options = [f"{size}px"] * (size is not None) + [f"crop{centre}"] * (centre not in (0, CENTRE))
            options += ["d4"] * self.d4 + [recipe.pooling] * (recipe.pooling != "avg")
            region = "centre" if centre else "whole"
            for label, width in recipe.maps:
                statistic = "-".join([recipe.label, *options, *([label] if label else [])])
                names += [f"embedding_{statistic}-{i:04d}_rgb_{region}" for i in range(width)]
        return tuple(names)

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.network.recipe.width * len(self.views)

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
            When the patches have another shape or dtype, or are smaller than the centre.
        """
        if patches.ndim != 4 or patches.shape[3] != 3 or 0 in patches.shape[1:3] or patches.dtype != np.uint8:
            raise ValueError(
                f"patches must be uint8 RGB of shape (n, height, width, 3); got {patches.dtype} {patches.shape}."
            )
        if self.centre > min(patches.shape[1:3]):
            raise InputError(f"centre must lie inside the patches of {patches.shape[1:3]} pixels; got {self.centre}.")
        step = max(1, self.network.batch // SYMMETRIES) if self.d4 else self.network.batch
        jobs = [(view, start) for view in self.views for start in range(0, len(patches), step)]
        prepared = ahead(lambda job: self._prepare(patches[job[1] : job[1] + step], *job[0]), jobs, self.network.ahead)
        width = self.network.recipe.width
        values = np.zeros((len(patches), self.width), np.float32)
        for (view, start), pictures in zip(jobs, prepared, strict=True):
            left = self.views.index(view) * width
            several = np.concatenate([self.network(batch) for batch in pictures])
            averaged = several.reshape(SYMMETRIES if self.d4 else 1, -1, width).mean(axis=0)
            values[start : start + len(averaged), left : left + width] = averaged
        return values

    def _prepare(self, patches: np.ndarray, size: Size, centre: int) -> list[np.ndarray]:
        """Cut, resize and turn patches; batches of one shape each, the first symmetry of all patches first."""
        if centre:
            top, left = ((length - centre) // 2 for length in patches.shape[1:3])
            size = size or patches.shape[1]
            patches = patches[:, top : top + centre, left : left + centre]
        patches = resize(patches, size)
        if not self.d4:
            return [patches]
        views = list(symmetries(patches))
        if patches.shape[1] == patches.shape[2]:
            return [np.concatenate(views)]
        return [np.concatenate(views[::2]), np.concatenate(views[1::2])]


@dataclass(frozen=True)
class SideBySide:
    """Embeddings of several backbones, one after the other in each row. Made by :func:`embedding_compute`.

    Attributes
    ----------
    parts : tuple of EmbeddingCompute
    """

    parts: tuple[EmbeddingCompute, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names of all parts."""
        return tuple(name for part in self.parts for name in part.columns)

    @property
    def width(self) -> int:
        """Number of columns."""
        return sum(part.width for part in self.parts)

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Embed (n, height, width, 3) uint8 RGB to (n, width) float32; see :class:`EmbeddingCompute`."""
        return np.concatenate([part(patches) for part in self.parts], axis=1)


def ahead(function: Callable[[_Item], _Result], items: Sequence[_Item], depth: int) -> Iterator[_Result]:
    """Yield ``function(item)`` in order, with up to `depth` of them made on threads before they are asked for."""
    if depth < 1:
        yield from map(function, items)
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    with ThreadPoolExecutor(depth) as pool:
        pending: deque[Future[_Result]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class KerasEmbedding(TransformerMixin, BaseEstimator):
    """Embed patches with a pretrained network, as a scikit-learn transformer.

    It learns nothing from data: `fit` prepares the network. Pickles without the network's session; unpickled elsewhere,
    the network is prepared again on first use.

    Parameters
    ----------
    backbone, size, centre, engine, precision, d4, pooling, stages, weights, cache
        As for :func:`embedding_compute`.
    workers : int
        Threads of the "onnx" engine. The result does not depend on it.

    Attributes
    ----------
    compute_ : EmbeddingCompute or SideBySide

    Examples
    --------
    >>> embedding = KerasEmbedding(size=192).fit(patches)  # doctest: +SKIP
    >>> embedding.transform(patches).shape  # doctest: +SKIP
    (1000, 1280)
    """

    def __init__(
        self,
        backbone: str | Sequence[str] = "efficientnet-lite0",
        size: Sizes = None,
        centre: int = 0,
        engine: str = "auto",
        precision: str = "auto",
        d4: bool = False,
        pooling: str = "avg",
        stages: int = 1,
        weights: str = "imagenet",
        cache: str | os.PathLike[str] = DEFAULT_CACHE,
        workers: int = 1,
    ) -> None:
        self.backbone = backbone
        self.size = size
        self.centre = centre
        self.engine = engine
        self.precision = precision
        self.d4 = d4
        self.pooling = pooling
        self.stages = stages
        self.weights = weights
        self.cache = cache
        self.workers = workers

    def fit(self, X: np.ndarray | None = None, y: Any = None) -> KerasEmbedding:
        """Prepare the network; the patches are not looked at."""
        options = self.get_params()
        del options["workers"]
        self.compute_ = embedding_compute(**options)
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
class OnnxNetwork:
    """A network run by ONNX Runtime, one thread a call; any number of calls at a time.

    Parameters
    ----------
    recipe : Recipe
    cache : Path
        Where the exported file is, or is put when it is missing.
    """

    recipe: Recipe
    cache: Path
    batch: ClassVar[int] = ONNX_BATCH
    ahead: ClassVar[int] = 0
    _sessions: dict[Shape | None, deque[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def shapes(self, sizes: Sequence[Size]) -> list[Shape | None]:
        """Shapes that networks must be exported for, as far as they are known before the patches."""
        if find_backbone(self.recipe.backbone).any_size:
            return [None]
        return [(size, size) for size in sizes if size is not None]

    def content(self, shape: Shape | None) -> bytes:
        """Return the ONNX file for pictures of a shape, exported where it is not in the cache."""
        return export_onnx(self.recipe, shape, self.cache).read_bytes()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Run (n, height, width, 3) uint8 to (n, width) float32."""
        shape = shape_key(self.recipe, images)
        idle = self._sessions.setdefault(shape, deque())
        try:
            session = idle.pop()
        except IndexError:  # as many as there are calls at a time, kept for the next
            with self._lock:
                content = self.content(shape)
            session = open_session(content)
        values: np.ndarray = session.run(None, {session.get_inputs()[0].name: images.astype(np.float32, order="C")})[0]
        idle.append(session)
        return values

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sessions": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


@dataclass
class KerasNetwork:
    """A network run by Keras on its backend, one call at a time, always in batches of one size.

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
    _lock: Any = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def build(self, shape: Shape | None) -> keras.Model:
        """Make the network for pictures of a shape."""
        return byte_network(self.recipe, shape, self.precision)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Run (n, height, width, 3) uint8 with n up to `batch` to (n, width) float32."""
        padded = np.zeros((self.batch, *images.shape[1:]), np.uint8)  # bytes: a quarter of the way to a GPU's memory
        padded[: len(images)] = images
        shape = shape_key(self.recipe, images)
        with self._lock:
            if shape not in self._models:
                self._models[shape] = self.build(shape)
            return np.asarray(self._models[shape].predict_on_batch(padded))[: len(images)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_models": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def shape_key(recipe: Recipe, images: np.ndarray) -> Shape | None:
    """Shape to build the network for; None where one network serves all."""
    return None if find_backbone(recipe.backbone).any_size else (images.shape[1], images.shape[2])


def byte_network(recipe: Recipe, shape: Shape | None, precision: str) -> keras.Model:
    """Embedding network on uint8 pictures, computing in a precision."""
    keras = load_keras()
    with dtype_policy(keras, precision):
        network = embedding_network(recipe, shape)
        pictures = keras.Input((*(shape or (None, None)), 3), dtype="uint8")
        return keras.Model(pictures, network(keras.ops.cast(pictures, "float32")))


@contextlib.contextmanager
def dtype_policy(keras: Any, precision: str) -> Iterator[None]:
    """Build layers in mixed precision: Keras' builders take the policy from a global setting only."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


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
    RuntimeError
        When the export fails, for instance without TensorFlow, or differs from Keras by more than 1e-4.
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
    call = f"e.write_onnx(e.Recipe(**{asdict(recipe)!r}), {shape!r}, {str(path)!r})"
    code = f"import histoblend.features.networks.embeddings as e; {call}"
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(  # noqa: S603 - our own code; what the user gave is quoted by repr
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=Path(histoblend.__file__).parents[1],  # so that it finds this very package, installed or not
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(
            f"{recipe.backbone}: expected an export to ONNX; got: {reason} "
            'The export needs TensorFlow and tf2onnx; engine="keras" works without them.'
        )


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
    RuntimeError
        When ONNX Runtime's numbers differ from Keras' by more than EXPORT_TOLERANCE, or Keras is not on TensorFlow.
    """
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
