"""Where a fine-tuned network finds its evidence, and whether that depends on what it has learned.

The network ends in an average over its last feature map and one weight a channel. So its log-odds are themselves the
average of a log-odds for each cell of that map, and the map of these is what Grad-CAM comes to here, with the intercept
dealt out evenly: no approximation. One feature map further in has cells of half the side; there a cell's share is what
it holds, times the gradient of the log-odds by it (HiResCAM), which is only a first-order answer.

References
----------
Zhou et al. (2016), CVPR, 2921-2929 (class activation maps).
Selvaraju et al. (2017), ICCV, 618-626 (Grad-CAM).
Draelos & Carin (2020), arXiv:2011.08891 (HiResCAM, and that it equals CAM for such a network).
Adebayo et al. (2018), NeurIPS 31, 9505-9515 (sanity checks by randomised weights).
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
from histoblend.data.patches import CENTRE
from histoblend.features.networks.backbones import find_backbone
from histoblend.features.networks.backend import load_keras
from histoblend.features.networks.engines import KERAS_BATCH
from histoblend.features.networks.stored import StoredKeras
from histoblend.features.networks.views import SYMMETRIES, resize, symmetries
from histoblend.models.augment import normalise_stains
from histoblend.models.cnn import DESCRIPTION, KERAS_FILE, CnnSettings
from histoblend.models.safety import check_content
from histoblend.models.surgery import cut_network

if TYPE_CHECKING:
    import keras

#: What of a network is drawn at random, each part with all that come after it.
PARTS = {"head": "the head", "top": "all after the last inner map", "whole": "the whole network"}

#: Which map: the last one, in log-odds; as Grad-CAM has it, without the intercept; the last inner one.
MAPS = ("last", "grad-cam", "inner")

_FLAT = 1e-12


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
    return Cut(halves.lower if halves else None, keras.Model(start, outputs), *_head_values(head))


def _head_values(head: Any) -> tuple[np.ndarray, float]:
    kernel, intercept = head.get_weights()
    return kernel[:, 0].astype(np.float64), float(intercept[0])


def randomise(pieces: Cut, part: str, rng: np.random.Generator) -> Cut:
    """Draw a part of a network at random, with all that come after it.

    Kernels are drawn as He et al. (2015) start them, batch norms and intercepts as they start; the head keeps the
    spread of its trained values, so that maps keep a sensible size. Constants of the input contract stay.

    Parameters
    ----------
    pieces : Cut
        Not changed.
    part : {"head", "top", "whole"}
    rng : Generator

    Returns
    -------
    Cut
        Pieces that were not drawn anew are shared with `pieces`.

    References
    ----------
    Adebayo et al. (2018), NeurIPS 31, 9505-9515, section 3.1 (cascading randomisation).
    He et al. (2015), ICCV, 1026-1034.
    """
    keras = load_keras()
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}; got {part!r}.")
    upper = keras.models.clone_model(pieces.upper)
    upper.set_weights(pieces.upper.get_weights())
    head = upper.layers[-1]
    if part != "head":
        _draw_weights(upper, rng)
    kernel = rng.normal(0, pieces.kernel.std(), (len(pieces.kernel), 1))
    head.set_weights([kernel.astype(np.float32), np.array([pieces.intercept], np.float32)])
    lower = pieces.lower
    if part == "whole" and lower is not None:
        weights = lower.get_weights()
        lower = keras.models.clone_model(lower)
        lower.set_weights(weights)
        _draw_weights(lower, rng)
    return Cut(lower, upper, *_head_values(head))


def _draw_weights(model: keras.Model, rng: np.random.Generator) -> None:
    """Give a model fresh weights in place, a layer at a time."""
    starts = {"gamma": 1.0, "moving_variance": 1.0, "beta": 0.0, "moving_mean": 0.0, "bias": 0.0}
    for layer in model.layers:
        for weight in layer.weights:
            shape = tuple(weight.shape)
            if len(shape) >= 2:
                # A depthwise kernel (height, width, channels, 1) sees one channel of its input at a time.
                fan_in = np.prod(shape[:-2] if "depthwise" in weight.name else shape[:-1])
                weight.assign(rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32))
            elif weight.name in starts:
                weight.assign(np.full(shape, starts[weight.name], np.float32))


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


def upper_function(
    upper: keras.Model, *, gradient: bool = True
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]:
    """Make a function of the inner maps (n, h, w, c): to the last maps and the log-odds' gradient by the inner ones.

    Keras has no gradient of its own: each backend's is asked.

    Parameters
    ----------
    upper : keras.Model
        With two outputs, as in :class:`Cut`.
    gradient : bool
        Without it, the second value is None.
    """
    backend = load_keras().backend.backend()
    if not gradient:
        return lambda maps: (np.asarray(upper.predict_on_batch(maps)[0]), None)
    makers = {"tensorflow": _by_tensorflow, "jax": _by_jax, "torch": _by_torch}
    if backend not in makers:
        raise InputError(f"gradients need Keras on {', '.join(makers)}; got {backend}. Set KERAS_BACKEND to one.")
    return makers[backend](upper)


def _by_tensorflow(upper: keras.Model) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]:
    import tensorflow

    def both(maps: Any) -> tuple[Any, Any]:
        with tensorflow.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(maps)
            last, log_odds = upper(maps, training=False)
        return last, tape.gradient(log_odds, maps)

    # Traced once and for any batch: TensorFlow warns of functions of one name that it traces again and again.
    shape = tensorflow.TensorSpec((None, *upper.input.shape[1:]), tensorflow.float32)
    traced = tensorflow.function(both).get_concrete_function(shape)

    def run(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        last, slope = traced(tensorflow.constant(maps, tensorflow.float32))
        return last.numpy(), slope.numpy()

    return run


def _by_jax(upper: keras.Model) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]:
    import jax  # type: ignore[import-not-found]

    trained = [variable.value for variable in upper.trainable_variables]
    fixed = [variable.value for variable in upper.non_trainable_variables]

    def total(maps: Any) -> tuple[Any, Any]:
        (last, log_odds), _ = upper.stateless_call(trained, fixed, maps, training=False)
        return log_odds.sum(), last

    both = jax.jit(jax.value_and_grad(total, has_aux=True))

    def run(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (_, last), slope = both(np.asarray(maps, np.float32))
        return np.asarray(last), np.asarray(slope)

    return run


def _by_torch(upper: keras.Model) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]:
    keras = load_keras()

    def run(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch  # type: ignore[import-not-found]

        # Keras knows which device its backend uses.
        held = keras.ops.convert_to_tensor(np.asarray(maps, np.float32)).detach().requires_grad_(True)
        last, log_odds = upper(held, training=False)
        (slope,) = torch.autograd.grad(log_odds.sum(), held)
        return last.detach().cpu().numpy(), slope.cpu().numpy()

    return run


def centre_cells(rows: int, columns: int, side: int) -> np.ndarray:
    """Share of each cell of a map, laid over a square patch, that lies in the patch's centre.

    Parameters
    ----------
    rows, columns : int
    side : int
        Of the patch, px; the centre is `CENTRE` px wide.

    Returns
    -------
    ndarray of shape (rows, columns), dtype float64, 0 to 1
        The mean is the centre's share of the area.
    """
    low, high = max(0.0, (side - CENTRE) / 2), min(float(side), (side + CENTRE) / 2)

    def along(count: int) -> np.ndarray:
        edges = np.linspace(0, side, count + 1)
        inside = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
        return np.asarray(inside.clip(min=0) * count / side)

    return np.outer(along(rows), along(columns))


def area_share(rows: int, columns: int, side: int, *, border: bool = True) -> float:
    """Centre's share of the area: what :func:`centre_shares` comes to where evidence is spread evenly."""
    return float(centre_shares(np.ones((1, rows, columns)), side, border=border)[0])


def centre_shares(maps: np.ndarray, side: int, *, border: bool = True) -> np.ndarray:
    """Share of the evidence for tumour, that is of what is above zero, that lies inside the centre.

    Parameters
    ----------
    maps : ndarray of shape (n, rows, columns), float
    side : int
        Of the patches, px.
    border : bool
        Whether the outermost cells count: they see what a picture is padded with, and hold less for that alone.

    Returns
    -------
    ndarray of shape (n,), dtype float64
        0 to 1; NaN where nothing that counts is above zero.
    """
    _, rows, columns = maps.shape
    positive = np.asarray(maps, np.float64).clip(min=0) * _counted(rows, columns, border)
    total = positive.sum(axis=(1, 2))
    inside = (positive * centre_cells(rows, columns, side)).sum(axis=(1, 2))
    return np.where(total > 0, inside / np.where(total > 0, total, 1), np.nan)


def _counted(rows: int, columns: int, border: bool) -> np.ndarray:
    """Which cells count, ndarray of shape (rows, columns) of bool: all, or all but the outermost."""
    counted = np.ones((rows, columns), dtype=bool)
    if not border:
        counted[[0, -1], :] = counted[:, [0, -1]] = False
    return counted


def likeness(maps: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How alike two sets of maps are, patch by patch, whatever their scale and sign.

    A head drawn at random turns a map round as often as not: one that only shows the picture comes back as its
    negative, and is alike all the same (Adebayo et al. 2018 report both).

    Parameters
    ----------
    maps, others : ndarray of shape (n, rows, columns), float
        With at least three cells a side.

    Returns
    -------
    rank : ndarray of shape (n,)
        Size of Spearman's correlation over cells, 0 to 1; NaN where a map is flat.
    structure : ndarray of shape (n,)
        Structural similarity of the maps, each scaled to 0..1, in windows of at most 7 cells, or that with the negative
        where it is more; NaN where a map is flat.

    References
    ----------
    Wang et al. (2004), IEEE Trans Image Process 13(4):600-612.
    """
    from scipy.stats import spearmanr
    from skimage.metrics import structural_similarity

    window = min(7, *maps.shape[1:])
    window -= 1 - window % 2
    rank, structure = np.full(len(maps), np.nan), np.full(len(maps), np.nan)
    for place, pair in enumerate(zip(maps, others, strict=True)):
        if min(np.ptp(one) for one in pair) <= _FLAT:
            continue
        first, second = ((one - one.min()) / np.ptp(one) for one in pair)
        rank[place] = abs(spearmanr(first.ravel(), second.ravel()).statistic)
        structure[place] = max(
            structural_similarity(first, turned, win_size=window, data_range=1.0) for turned in (second, 1 - second)
        )
    return rank, structure


def sanity_table(true: Maps, drawn: dict[tuple[str, int], Maps], names: pd.DataFrame) -> pd.DataFrame:
    """Compare a network's maps with those of networks drawn at random, and with its own maps of other patches.

    Parameters
    ----------
    true : Maps
    drawn : dict from (part, number of the draw) to Maps
        Parts as in :data:`PARTS`; the same patches.
    names : DataFrame
        ``patch_id, slide``, a row a patch.

    Returns
    -------
    DataFrame
        ``patch_id, slide, map, part, draw, rank, structure``; the part ``"other"`` is the map of the next patch of
        another slide, where there is one.
    """
    parts = []
    order = _elsewhere(names["slide"])
    for name in ("last", "inner"):
        mine = true.named(name)
        if mine is None or min(mine.shape[1:]) < 3:
            continue
        rows = {("other", 0): mine[order]} | {key: maps.named(name) for key, maps in drawn.items()}
        for (part, number), theirs in rows.items():
            if theirs is None:
                continue
            rank, structure = likeness(mine, theirs)
            columns = {"map": name, "part": part, "draw": number, "rank": rank, "structure": structure}
            parts.append(names[["patch_id", "slide"]].assign(**columns))
    empty = pd.DataFrame(columns=["patch_id", "slide", "map", "part", "draw", "rank", "structure"])
    return pd.concat(parts, ignore_index=True) if parts else empty


def _elsewhere(slides: pd.Series) -> np.ndarray:
    """For each row another one, of another slide where there is one."""
    names = slides.astype(object).where(slides.notna(), None).to_numpy()
    order = np.arange(len(names))
    other = (order + 1) % len(names)
    for row in order:
        ahead = [place % len(names) for place in range(row + 1, row + len(names))]
        other[row] = next((place for place in ahead if names[place] != names[row]), other[row])
    return np.asarray(other)


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
