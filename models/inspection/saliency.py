"""Saliency maps: where a fine-tuned network finds its evidence.

The network ends in an average over its last feature map and one weight a channel. So its log-odds are themselves the
average of a log-odds for each cell of that map, and the map of these is what Grad-CAM comes to here, with the intercept
dealt out evenly: no approximation. One feature map further in has cells of half the side; there a cell's share is what
it holds, times the gradient of the log-odds by it (HiResCAM), which is only a first-order answer.

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

#: Which map: the last one, in log-odds; as Grad-CAM has it, without the intercept; the last inner one.
MAPS = ("last", "grad-cam", "inner")


@dataclass(frozen=True)
class Cut:
    """A network in two pieces, with the head's values at hand.

    Attributes
    ----------
    lower : keras.Model or None
        Pictures of 0..255 to the inner feature map; None where the network cannot be cut.
    upper : keras.Model
        The inner map (or pictures) to the last map (n, height, width, channels) and the log-odds (n, 1).
    kernel : ndarray of shape (channels,)
    intercept : float
    """

    lower: keras.Model | None
    upper: keras.Model
    kernel: np.ndarray
    intercept: float


@dataclass(frozen=True)
class Maps:
    """Evidence for tumour, a map a patch, each in the patch's own orientation.

    Attributes
    ----------
    last : ndarray of shape (n, rows, columns), dtype float64
        Log-odds of each cell of the last feature map, intercept included: their mean is the network's log-odds.
    inner : ndarray of shape (n, rows, columns), dtype float64, or None
        Activation times gradient, summed over channels, at the inner map.
    intercept : float
        What :attr:`last` holds that Grad-CAM leaves out.
    """

    last: np.ndarray
    inner: np.ndarray | None
    intercept: float

    def named(self, name: str) -> np.ndarray | None:
        """One of :data:`MAPS`."""
        return {"last": self.last, "grad-cam": self.last - self.intercept, "inner": self.inner}[name]


def open_network(folder: Path) -> tuple[keras.Model, CnnSettings]:
    """Open the network that :func:`models.cnn.store_cnn` wrote, for Keras.

    Raises
    ------
    InputError
        A file is missing or damaged, or holds what could run code.
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
    """Name of the layer that makes the last inner feature map of a backbone; None where it has none."""
    stages = find_backbone(settings.backbone).stages
    return stages[-1].layer if stages else None


def cut(network: keras.Model, layer: str | None) -> Cut:
    """Take a network apart that ends in a global average and one weight a channel.

    Parameters
    ----------
    network : keras.Model
        Functional; pictures of 0..255 to log-odds (n, 1).
    layer : str or None
        Whose output the inner map is; None, or a layer that some connection goes past, leaves out the inner map.

    Raises
    ------
    ValueError
        It ends otherwise, so that its evidence is no average over a map.
    """
    keras = load_keras()
    ends = network.layers[-2:]
    kinds = (keras.layers.GlobalAveragePooling2D, keras.layers.Dense)
    if len(ends) < 2 or not all(isinstance(end, kind) for end, kind in zip(ends, kinds, strict=True)):
        found = ", ".join(type(end).__name__ for end in ends)
        raise ValueError(f"a network must end in a global average and one dense layer; got {found}.")
    pooling, head = ends
    # Before the cut: it gives the layers behind it a second input.
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
    """Maps of evidence by several networks, averaged over the 8 symmetries where the network's predictions are.

    Parameters
    ----------
    networks : sequence of Cut
        What two of them share is computed once.
    patches : ndarray of shape (n, side, side, 3), dtype uint8
        RGB; read a few rows at a time.
    settings : CnnSettings
        ``size``, ``stain`` and ``d4`` are used.
    progress : callable, optional
        Called with the number of patches just finished.

    Returns
    -------
    list of Maps
        One for each of `networks`, each with a map a patch.
    """
    views = SYMMETRIES if settings.d4 else 1
    step = max(1, KERAS_BATCH // views)
    tops = [upper_function(network.upper, gradient=network.lower is not None) for network in networks]
    last: list[list[np.ndarray]] = [[] for _ in networks]
    inner: list[list[np.ndarray]] = [[] for _ in networks]
    for start in range(0, len(patches), step):
        some = np.asarray(patches[start : start + step])
        shown = resize(normalise_stains(some) if settings.stain == "macenko" else some, settings.size or None)
        pictures = np.concatenate(list(symmetries(shown))[:views]).astype(np.float32)
        held: dict[int, np.ndarray] = {}
        for place, (network, top) in enumerate(zip(networks, tops, strict=True)):
            below = id(network.lower)
            if below not in held:
                held[below] = pictures if network.lower is None else _run(network.lower, pictures, step * views)
            maps, slope = top(_padded(held[below], step * views))
            maps, slope = maps[: len(pictures)], None if slope is None else slope[: len(pictures)]
            last[place].append(_upright(maps @ network.kernel + network.intercept, views))
            if slope is not None:
                inner[place].append(_upright((held[below].astype(np.float64) * slope).sum(axis=3), views))
        if progress is not None:
            progress(len(some))
    return [
        Maps(np.concatenate(some), np.concatenate(fine) if fine else None, network.intercept)
        for network, some, fine in zip(networks, last, inner, strict=True)
    ]


def _run(model: keras.Model, pictures: np.ndarray, size: int) -> np.ndarray:
    """Run a batch that is filled up to one size, so that nothing is compiled twice."""
    return np.asarray(model.predict_on_batch(_padded(pictures, size)))[: len(pictures)]


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    if len(values) == size:
        return values
    return np.concatenate([values, np.zeros((size - len(values), *values.shape[1:]), values.dtype)])


def _upright(maps: np.ndarray, views: int) -> np.ndarray:
    """Turn the maps of all views (views · n, rows, columns) back and average them: (n, rows, columns) float64."""
    parts = np.asarray(maps, np.float64).reshape(views, -1, *maps.shape[1:])
    turned = []
    for number, part in enumerate(parts):
        back = np.rot90(part, -(number % 4), axes=(1, 2))
        turned.append(back[:, :, ::-1] if number >= 4 else back)
    return np.asarray(np.mean(turned, axis=0))


def choose_sample(table: pd.DataFrame, most: int, seed: int) -> np.ndarray:
    """Rows of a sample: as many of each label, evenly over slides.

    Parameters
    ----------
    table : DataFrame
        ``slide, label``; a patch without a slide counts as a slide of its own.
    most : int
        Rows at most.
    seed : int

    Returns
    -------
    ndarray of int
        Rising positions in the table.
    """
    labels = table["label"].to_numpy()
    chosen = [spread_over_slides(table, np.flatnonzero(labels == label), most // 2, seed) for label in (0, 1)]
    return np.sort(np.concatenate(chosen))


def spread_over_slides(table: pd.DataFrame, rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many of the rows, one of each slide in turn, by chance within a slide; in the order of choice."""
    from histoblend.models.resampling import slide_groups

    rng = np.random.default_rng(seed)
    shuffled = rows[rng.permutation(len(rows))]
    if not len(shuffled):
        return shuffled
    groups = slide_groups(table["slide"].iloc[shuffled])
    turn = pd.Series(groups).groupby(groups).cumcount().to_numpy()
    return np.asarray(shuffled[np.argsort(turn, kind="stable")][:most])
