"""Saliency maps: the regions of a patch that a fine-tuned network's prediction comes from.

The network ends in an average over its last feature map and one weight per channel. Its log-odds are therefore exactly
the average of one log-odds value per cell of that map. This map equals Grad-CAM plus the intercept, without any
approximation. The previous feature map has cells of half the side. There the value of a cell is its activation times
the gradient of the log-odds (HiResCAM), which is a first-order approximation.

References
----------
Zhou et al. (2016), CVPR, 2921-2929 (class activation maps).
Selvaraju et al. (2017), ICCV, 618-626 (Grad-CAM).
Draelos & Carin (2020), arXiv:2011.08891 (HiResCAM, and that it equals CAM for such a network).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.features.networks.backbones import find_backbone
from histoblend.features.networks.backend import load_keras
from histoblend.features.networks.engines import KERAS_BATCH
from histoblend.features.networks.stored import StoredKeras
from histoblend.features.networks.views import SYMMETRIES, resize, symmetries
from histoblend.models.augment import normalise_stains
from histoblend.models.cnn import DESCRIPTION, KERAS_FILE, CnnSettings
from histoblend.models.file_checks import check_content
from histoblend.models.inspection.gradients import upper_function
from histoblend.models.surgery import cut_network

if TYPE_CHECKING:
    import keras

#: Names of the maps: the last map in log-odds, the same without the intercept (Grad-CAM), and the last inner map.
MAPS = ("last", "grad-cam", "inner")


@dataclass(frozen=True)
class Cut:
    """A network cut in two, and the weights of its last layer.

    Attributes
    ----------
    lower : keras.Model or None
        From pictures (0..255) to the inner feature map; None if the network cannot be cut.
    upper : keras.Model
        From the inner map (or the pictures) to the last map (n, height, width, channels) and the log-odds (n, 1).
    kernel : ndarray of shape (channels,)
    intercept : float
    """

    lower: keras.Model | None
    upper: keras.Model
    kernel: np.ndarray
    intercept: float


@dataclass(frozen=True)
class Maps:
    """Evidence for tumour: one map per patch, in the orientation of the patch.

    Attributes
    ----------
    last : ndarray of shape (n, rows, columns), dtype float64
        Log-odds of each cell of the last feature map, intercept included. The mean is the network's log-odds.
    inner : ndarray of shape (n, rows, columns), dtype float64, or None
        Activation times gradient at the inner map, summed over channels.
    intercept : float
        Included in :attr:`last`, but not in Grad-CAM.
    """

    last: np.ndarray
    inner: np.ndarray | None
    intercept: float

    def named(self, name: str) -> np.ndarray | None:
        """The map of this name, one of :data:`MAPS`."""
        return {"last": self.last, "grad-cam": self.last - self.intercept, "inner": self.inner}[name]


def open_network(folder: Path) -> tuple[keras.Model, CnnSettings]:
    """Open a network written by :func:`models.cnn.store_cnn` as a Keras model.

    Raises
    ------
    InputError
        A file is missing or damaged, or contains something that could run code.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        content = (folder / KERAS_FILE).read_bytes()
        settings = CnnSettings(**description["settings"])
        height, width = map(int, description["shape"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: expected a fine-tuned network with {KERAS_FILE}; got: {error!r}.") from error
    check_content(KERAS_FILE, content)
    key = None if find_backbone(settings.backbone).any_size else (height, width)
    return StoredKeras(settings.recipe, "float32", KERAS_BATCH, {key: content}).build(key), settings


def inner_layer(settings: CnnSettings) -> str | None:
    """Name of the layer that outputs the last inner feature map of the backbone; None if there is none."""
    stages = find_backbone(settings.backbone).stages
    return stages[-1].layer if stages else None


def cut(network: keras.Model, layer: str | None) -> Cut:
    """Cut a network that ends in a global average and one weight per channel.

    Parameters
    ----------
    network : keras.Model
        Functional model from pictures (0..255) to log-odds (n, 1).
    layer : str or None
        Layer that outputs the inner map. There is no inner map if this is None, or if a connection bypasses the layer.

    Raises
    ------
    ValueError
        The network ends differently, so its log-odds are not an average over a map.
    """
    keras = load_keras()
    ends = network.layers[-2:]
    kinds = (keras.layers.GlobalAveragePooling2D, keras.layers.Dense)
    if len(ends) < 2 or not all(isinstance(end, kind) for end, kind in zip(ends, kinds, strict=True)):
        names = ", ".join(type(end).__name__ for end in ends)
        raise ValueError(f"a network must end in a global average and one dense layer; got {names}.")
    pooling, head = ends
    # Read before the cut, which gives the later layers a second input.
    outputs = [pooling.input, network.output]
    halves = cut_network(network, layer) if layer else None
    start = network.input if layer is None or halves is None else network.get_layer(layer).output
    return Cut(halves.lower if halves else None, keras.Model(start, outputs), *head_values(head))


def head_values(head: Any) -> tuple[np.ndarray, float]:
    """Weights of the last layer (channels,) and its intercept."""
    kernel, intercept = head.get_weights()
    return kernel[:, 0].astype(np.float64), float(intercept[0])


def saliency(
    networks: Sequence[Cut],
    patches: np.ndarray,
    settings: CnnSettings,
    *,
    progress: Callable[[int], None] | None = None,
) -> list[Maps]:
    """Evidence maps of several networks. With ``d4`` they are averaged over the 8 symmetries, like the predictions.

    Parameters
    ----------
    networks : sequence of Cut
        A lower part that several networks share is computed once.
    patches : ndarray of shape (n, side, side, 3), dtype uint8
        RGB patches. They are read in small batches.
    settings : CnnSettings
        ``size``, ``stain`` and ``d4`` are used.
    progress : callable, optional
        Called with the number of patches in each finished batch.

    Returns
    -------
    list of Maps
        One item per network, each with one map per patch.
    """
    views = SYMMETRIES if settings.d4 else 1
    step = max(1, KERAS_BATCH // views)
    uppers = [upper_function(network.upper, gradient=network.lower is not None) for network in networks]
    last: list[list[np.ndarray]] = [[] for _ in networks]
    inner: list[list[np.ndarray]] = [[] for _ in networks]
    for start in range(0, len(patches), step):
        batch = np.asarray(patches[start : start + step])
        resized = resize(normalise_stains(batch) if settings.stain == "macenko" else batch, settings.size or None)
        pictures = np.concatenate(list(symmetries(resized))[:views]).astype(np.float32)
        inner_maps: dict[int, np.ndarray] = {}
        for number, (network, upper) in enumerate(zip(networks, uppers, strict=True)):
            lower = id(network.lower)
            if lower not in inner_maps:
                inner_maps[lower] = pictures if network.lower is None else _run(network.lower, pictures, step * views)
            maps, gradient = upper(_padded(inner_maps[lower], step * views))
            maps, gradient = maps[: len(pictures)], None if gradient is None else gradient[: len(pictures)]
            last[number].append(_upright(maps @ network.kernel + network.intercept, views))
            if gradient is not None:
                inner[number].append(_upright((inner_maps[lower].astype(np.float64) * gradient).sum(axis=3), views))
        if progress is not None:
            progress(len(batch))
    return [
        Maps(np.concatenate(coarse), np.concatenate(fine) if fine else None, network.intercept)
        for network, coarse, fine in zip(networks, last, inner, strict=True)
    ]


def _run(model: keras.Model, pictures: np.ndarray, size: int) -> np.ndarray:
    """Run a batch padded to a fixed size, so that the model is compiled once."""
    return np.asarray(model.predict_on_batch(_padded(pictures, size)))[: len(pictures)]


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    if len(values) == size:
        return values
    return np.concatenate([values, np.zeros((size - len(values), *values.shape[1:]), values.dtype)])


def _upright(maps: np.ndarray, views: int) -> np.ndarray:
    """Undo the symmetry of each view (views · n, rows, columns) and average: (n, rows, columns) float64."""
    by_view = np.asarray(maps, np.float64).reshape(views, -1, *maps.shape[1:])
    restored = []
    for number, maps_of_view in enumerate(by_view):
        back = np.rot90(maps_of_view, -(number % 4), axes=(1, 2))
        restored.append(back[:, :, ::-1] if number >= 4 else back)
    return np.asarray(np.mean(restored, axis=0))


def choose_sample(table: pd.DataFrame, most: int, seed: int) -> np.ndarray:
    """Choose a sample with the same number of rows per label, spread evenly over slides.

    Parameters
    ----------
    table : DataFrame
        ``slide, label``. A patch without a slide counts as a separate slide.
    most : int
        Largest number of rows.
    seed : int

    Returns
    -------
    ndarray of int
        Positions in the table, in increasing order.
    """
    labels = table["label"].to_numpy()
    chosen = [spread_over_slides(table, np.flatnonzero(labels == label), most // 2, seed) for label in (0, 1)]
    return np.sort(np.concatenate(chosen))


def spread_over_slides(table: pd.DataFrame, rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Choose at most `most` of the rows, in order of choice: slides take turns, and rows within a slide are random."""
    from histoblend.models.resampling import slide_groups

    rng = np.random.default_rng(seed)
    shuffled = rows[rng.permutation(len(rows))]
    if not len(shuffled):
        return shuffled
    groups = slide_groups(table["slide"].iloc[shuffled])
    turn = pd.Series(groups).groupby(groups).cumcount().to_numpy()
    return np.asarray(shuffled[np.argsort(turn, kind="stable")][:most])
