"""Embeddings: pooled features of a pretrained network, one row a patch, by ONNX Runtime or by Keras itself.

Each row depends on its own patch alone and comes out the same, bit for bit, in any batch and on any number of workers:
ONNX Runtime computes a patch in one thread, and the Keras engine always runs batches of one size.

Only the export to ONNX needs TensorFlow, in a process of its own. Without TensorFlow, or on a GPU, ``engine="auto"``
takes ``"keras"``, which runs on any backend of Keras.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from histoblend.data.errors import InputError
from histoblend.data.patches import CENTRE
from histoblend.data.workers import count_workers
from histoblend.features.networks.engines import (
    GPU_BATCH,
    KERAS_BATCH,
    ONNX_BATCH,
    KerasNetwork,
    OnnxNetwork,
    choose_engine,
)
from histoblend.features.networks.onnx_export import export_onnx
from histoblend.features.networks.recipe import recipes_of
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
    sizes = check_sizes(size)
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
        _check(patches)
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


def _check(patches: np.ndarray) -> None:
    """Raise ValueError when something is no patches of RGB."""
    if patches.ndim != 4 or patches.shape[3] != 3 or 0 in patches.shape[1:3] or patches.dtype != np.uint8:
        hint = " For a single patch, give patch[np.newaxis]." if patches.ndim == 3 and patches.shape[2] == 3 else ""
        raise ValueError(
            f"patches must be uint8 RGB of shape (n, height, width, 3); got {patches.dtype} {patches.shape}.{hint}"
        )


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


class Embeddings(TransformerMixin, BaseEstimator):
    """Embed patches with a pretrained network, as a scikit-learn transformer.

    It learns nothing from data: `fit` prepares the network. Pickles without the network's session; unpickled elsewhere,
    the network is prepared again on first use.

    Parameters
    ----------
    backbone, size, centre, engine, precision, d4, pooling, stages, weights, cache
        As for :func:`embedding_compute`.
    workers : int
        Threads of the "onnx" engine, -1 for one per core. The result does not depend on it.

    Attributes
    ----------
    compute_ : EmbeddingCompute or SideBySide

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

    def fit(self, X: np.ndarray | None = None, y: Any = None) -> Embeddings:
        """Prepare the network; the patches are not looked at."""
        options = self.get_params()
        count_workers(options.pop("workers"))
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
        _check(X)  # whole: a thread sees a part of it
        workers = count_workers(self.workers)
        if workers == 1 or len(X) <= ONNX_BATCH:
            return self.compute_(X)
        from joblib import Parallel, delayed

        step = 8 * ONNX_BATCH
        parts = Parallel(n_jobs=workers, prefer="threads")(
            delayed(self.compute_)(X[start : start + step]) for start in range(0, len(X), step)
        )
        return np.concatenate(parts)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns, an object array of shape (width,)."""
        check_is_fitted(self)
        return np.asarray(self.compute_.columns, dtype=object)
