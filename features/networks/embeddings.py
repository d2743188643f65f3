"""Embeddings: pooled features of a pretrained network, one row per patch, computed by ONNX Runtime or Keras.

Each row depends only on its own patch and is bit-identical in any batch and on any number of workers: ONNX Runtime
computes a patch in one thread, and the Keras engine always runs batches of one size.

Only the export to ONNX needs TensorFlow, in a separate process. Without TensorFlow, or on a GPU, ``engine="auto"``
chooses ``"keras"``, which runs on any backend of Keras.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from histoblend.data.errors import InputError
from histoblend.data.patches import CENTRE
from histoblend.data.workers import count_workers
from histoblend.features.networks.backend import Shape
from histoblend.features.networks.engines import (
    GPU_BATCH,
    KERAS_BATCH,
    ONNX_BATCH,
    KerasNetwork,
    OnnxNetwork,
    StoredOnnx,
    engine_for,
)
from histoblend.features.networks.onnx_export import export_onnx
from histoblend.features.networks.onnx_files import OnnxOptions, open_onnx_file
from histoblend.features.networks.onnx_int8 import quantise, sample_rows
from histoblend.features.networks.recipe import recipes_of, shape_key
from histoblend.features.networks.views import SYMMETRIES, Size, Sizes, check_sizes, resize, symmetries

DEFAULT_CACHE = Path(".cache/networks")


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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
    onnx: Mapping[str, Any] | None = None,
    cache: str | os.PathLike[str] = DEFAULT_CACHE,
    calibration: np.ndarray | None = None,
) -> EmbeddingCompute | ConcatenatedEmbeddings:
    """Create the function that embeds patches. It is thread-safe and picklable.

    Parameters
    ----------
    backbone : str or sequence of str
        Names in :data:`features.networks.backbones.BACKBONES`, or ``onnx:`` and the path of an ONNX file. Embeddings of
        several are concatenated.
    size : int, None or sequence of these
        Side in pixels that patches are resized to (see :func:`resize`); None does not resize. The embeddings of several
        sizes are concatenated.
    centre : int
        Side in pixels of a central crop that is embedded as well, after the same resizing; 0 for none.
    engine, precision : str
        See :func:`features.networks.engines.choose_engine`. "onnx" exports the network once to `cache` and is faster on
        a CPU.
    d4 : bool
        Whether to average over the 8 symmetries of the square, which takes 8 times as long.
    pooling, stages, weights
        See :class:`Recipe`. ONNX files do not use them.
    onnx : mapping, optional
        Values of :class:`features.networks.onnx_files.OnnxOptions` for ONNX files.
    cache : path
        Folder for exported networks, created if missing.
    calibration : ndarray of shape (n, height, width, 3), dtype uint8, optional
        Patches that "int8" networks are calibrated on, needed for that precision only.

    Returns
    -------
    EmbeddingCompute, or ConcatenatedEmbeddings for several backbones

    Raises
    ------
    ValueError
        If an option is unknown, or "int8" has no patches to be calibrated on.
    InputError
        If "int8" changes the outputs of the network too much, or an ONNX file is missing or cannot be used.
    features.weights.CheckpointError
        If the weights are not available.
    RuntimeError
        If the export fails or its result differs from Keras.
    """
    sizes = check_sizes(size)
    if isinstance(centre, bool) or not isinstance(centre, int) or centre < 0:
        raise InputError(f"centre must be a number of pixels, such as 32, or 0 for none; got {centre!r}.")
    names = [backbone] if isinstance(backbone, str) else list(backbone)
    recipes = {recipe.backbone: recipe for recipe in recipes_of(names, weights, pooling, stages)}
    chosen = engine_for(names, engine, precision)
    computes = []
    for name in names:
        network: OnnxNetwork | KerasNetwork
        if (recipe := recipes.get(name)) is None:
            network = open_onnx_file(name, OnnxOptions(**(onnx or {})), sizes)
        elif chosen.name == "onnx":
            network = OnnxNetwork(recipe, Path(cache).absolute())
            for shape in network.shapes(sizes):  # before the workers start, so that only one exports
                export_onnx(recipe, shape, network.cache)
        else:
            network = KerasNetwork(recipe, chosen.precision, GPU_BATCH if chosen.gpu else KERAS_BATCH)
        compute = EmbeddingCompute(network, sizes, bool(d4), centre)
        computes.append(compute if chosen.precision != "int8" else _in_8_bits(compute, calibration))
    return computes[0] if len(computes) == 1 else ConcatenatedEmbeddings(tuple(computes))


@dataclass(frozen=True)
class EmbeddingCompute:
    """Embeds patches: (n, height, width, 3) uint8 RGB to (n, width) float32. Created by :func:`embedding_compute`.

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
        """Views of a patch that the network embeds: size, and side of the central crop or 0."""
        return tuple((size, side) for size in self.sizes for side in ([0, self.centre] if self.centre else [0]))

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names, such as ``embedding_efficientnet-lite0-0000_rgb_whole``, with all non-default options."""
        recipe = self.network.recipe
        names = []
        for size, centre in self.views:
            options = [f"{size}px"] * (size is not None) + [f"crop{centre}"] * (centre not in (0, CENTRE))
            options += ["d4"] * self.d4 + [recipe.pooling] * (recipe.pooling not in ("avg", "auto"))
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
            If the patches have another shape or dtype, or are smaller than the centre.
        """
        _check(patches)
        if self.centre > min(patches.shape[1:3]):
            raise InputError(f"centre must fit inside the patches of {patches.shape[1:3]} pixels; got {self.centre}.")
        batch = max(1, self.network.batch // SYMMETRIES) if self.d4 else self.network.batch
        jobs = [(view, start) for view in self.views for start in range(0, len(patches), batch)]
        prepared = ahead(lambda job: self._prepare(patches[job[1] : job[1] + batch], *job[0]), jobs, self.network.ahead)
        width = self.network.recipe.width
        values = np.zeros((len(patches), self.width), np.float32)
        for (view, start), batches in zip(jobs, prepared, strict=True):
            left = self.views.index(view) * width
            outputs = np.concatenate([self.network(images) for images in batches])
            averaged = outputs.reshape(SYMMETRIES if self.d4 else 1, -1, width).mean(axis=0)
            values[start : start + len(averaged), left : left + width] = averaged
        return values

    def _prepare(self, patches: np.ndarray, size: Size, centre: int) -> list[np.ndarray]:
        """Crop, resize and transform patches into batches of one shape each, ordered by symmetry."""
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


def _in_8_bits(compute: EmbeddingCompute, patches: np.ndarray | None) -> EmbeddingCompute:
    """The same embedding with networks in 8-bit integers."""
    if patches is None or not len(patches):
        raise ValueError('precision "int8" needs patches to be calibrated on; got none.')
    network, plain = compute.network, replace(compute, d4=False)
    if not isinstance(network, OnnxNetwork):
        raise TypeError(f"8-bit networks are made from ONNX files; got {type(network).__name__}.")
    batches: dict[Shape | None, list[np.ndarray]] = {}
    for size, centre in compute.views:
        for start in range(0, len(patches), ONNX_BATCH):
            (images,) = plain._prepare(patches[start : start + ONNX_BATCH], size, centre)
            batches.setdefault(shape_key(network.recipe, images), []).append(images)
    name = network.recipe.backbone
    contents = {shape: quantise(name, network.content(shape), given) for shape, given in batches.items()}
    return replace(compute, network=StoredOnnx(network.recipe, precision="int8", contents=contents))


def _check(patches: np.ndarray) -> None:
    """Raise ValueError if an array is not a batch of RGB patches."""
    if patches.ndim != 4 or patches.shape[3] != 3 or 0 in patches.shape[1:3] or patches.dtype != np.uint8:
        hint = " For a single patch, give patch[np.newaxis]." if patches.ndim == 3 and patches.shape[2] == 3 else ""
        raise ValueError(
            f"patches must be uint8 RGB of shape (n, height, width, 3); got {patches.dtype} {patches.shape}.{hint}"
        )


@dataclass(frozen=True)
class ConcatenatedEmbeddings:
    """Concatenated embeddings of several backbones. Created by :func:`embedding_compute`.

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
    """Yield ``function(item)`` in order, computing up to `depth` results in advance on threads."""
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


class Embeddings(TransformerMixin, BaseEstimator):
    """Embed patches with a pretrained network, as a scikit-learn transformer.

    It learns nothing from data, except that "int8" networks are calibrated on some of the patches: `fit` prepares the
    network. The pickle does not contain the network's session, which is created again on first use.

    Parameters
    ----------
    backbone, size, centre, engine, precision, d4, pooling, stages, weights, onnx, cache
        See :func:`embedding_compute`.
    n_jobs : int
        Number of threads of the "onnx" engine; -1 uses one per core. The result does not depend on it.

    Attributes
    ----------
    compute_ : EmbeddingCompute or ConcatenatedEmbeddings

    Examples
    --------
    >>> embedding = Embeddings(size=192).fit(patches)  # doctest: +SKIP
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
        onnx: Mapping[str, Any] | None = None,
        cache: str | os.PathLike[str] = DEFAULT_CACHE,
        n_jobs: int = 1,
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
        self.onnx = onnx
        self.cache = cache
        self.n_jobs = n_jobs

    def fit(self, X: np.ndarray | None = None, y: Any = None) -> Embeddings:
        """Prepare the network. The patches are ignored, except by "int8"."""
        options = self.get_params()
        count_workers(options.pop("n_jobs"), "n_jobs")
        sample = None if X is None else X[sample_rows(len(X))]
        self.compute_ = embedding_compute(**options, calibration=sample)
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
        _check(X)  # the whole array, because threads get only slices
        threads = count_workers(self.n_jobs, "n_jobs")
        if threads == 1 or len(X) <= ONNX_BATCH:
            return self.compute_(X)
        from joblib import Parallel, delayed

        step = 8 * ONNX_BATCH
        parts = Parallel(n_jobs=threads, prefer="threads")(
            delayed(self.compute_)(X[start : start + step]) for start in range(0, len(X), step)
        )
        return np.concatenate(parts)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the column names, an object array of shape (width,)."""
        check_is_fitted(self)
        return np.asarray(self.compute_.columns, dtype=object)
