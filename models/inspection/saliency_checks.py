"""Sanity checks of saliency maps: whether the maps change when network weights are replaced by random ones.

References
----------
Adebayo et al. (2018), NeurIPS 31, 9505-9515 (sanity checks by randomised weights).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoblend.features.networks.backend import load_keras
from histoblend.models.inspection.saliency import Cut, Maps, head_values

if TYPE_CHECKING:
    import keras


#: Parts of a network whose weights are randomised. Each part includes all later layers.
PARTS = {"head": "the head", "top": "all after the last inner map", "whole": "the whole network"}
#: A map whose values differ by no more than this is flat.
_FLAT = 1e-12


def randomise(pieces: Cut, part: str, rng: np.random.Generator) -> Cut:
    """Replace the weights of a part of a network, and of all later layers, by random ones.

    Kernels get a random He initialisation (2015), batch norms and intercepts their initial values. The head's weights
    keep the standard deviation of the trained ones, so that map values stay in a similar range. Preprocessing constants
    are not changed.

    Parameters
    ----------
    pieces : Cut
        Not modified.
    part : {"head", "top", "whole"}
    rng : Generator

    Returns
    -------
    Cut
        Shares the unchanged models with `pieces`.

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
    return Cut(lower, upper, *head_values(head))


def _draw_weights(model: keras.Model, rng: np.random.Generator) -> None:
    """Replace the weights of a model in place by random initial ones."""
    starts = {"gamma": 1.0, "moving_variance": 1.0, "beta": 0.0, "moving_mean": 0.0, "bias": 0.0}
    for layer in model.layers:
        for weight in layer.weights:
            shape = tuple(weight.shape)
            if len(shape) >= 2:
                # Each filter of a depthwise kernel (height, width, channels, 1) reads only one input channel.
                fan_in = np.prod(shape[:-2] if "depthwise" in weight.name else shape[:-1])
                weight.assign(rng.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32))
            elif weight.name in starts:
                weight.assign(np.full(shape, starts[weight.name], np.float32))


def likeness(maps: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Similarity of two sets of maps, patch by patch, independent of scale and sign.

    A random head inverts a map in half of all cases. A map that only shows the picture is then inverted, but counts as
    similar (Adebayo et al. 2018 report both).

    Parameters
    ----------
    maps, others : ndarray of shape (n, rows, columns), float
        At least three cells per side.

    Returns
    -------
    rank : ndarray of shape (n,)
        Absolute value of Spearman's correlation over cells, 0 to 1; NaN if either map is flat.
    structure : ndarray of shape (n,)
        Structural similarity of the maps, each scaled to 0..1, in windows of at most 7 cells. The inverted second map
        is used if it is more similar. NaN if either map is flat.

    References
    ----------
    Wang et al. (2004), IEEE Trans Image Process 13(4):600-612.
    """
    from scipy.stats import spearmanr
    from skimage.metrics import structural_similarity

    window = min(7, *maps.shape[1:])
    window -= 1 - window % 2
    rank, structure = np.full(len(maps), np.nan), np.full(len(maps), np.nan)
    for index, pair in enumerate(zip(maps, others, strict=True)):
        if min(np.ptp(cells) for cells in pair) <= _FLAT:
            continue
        first, second = ((cells - cells.min()) / np.ptp(cells) for cells in pair)
        rank[index] = abs(spearmanr(first.ravel(), second.ravel()).statistic)
        structure[index] = max(
            structural_similarity(first, other, win_size=window, data_range=1.0) for other in (second, 1 - second)
        )
    return rank, structure


def sanity_table(true: Maps, drawn: dict[tuple[str, int], Maps], names: pd.DataFrame) -> pd.DataFrame:
    """Compare a network's maps with those of randomised networks, and with its own maps of other patches.

    Parameters
    ----------
    true : Maps
    drawn : dict from (part, number of the draw) to Maps
        Maps of the same patches by randomised networks; parts as in :data:`PARTS`.
    names : DataFrame
        ``patch_id, slide``, one row per patch.

    Returns
    -------
    DataFrame
        ``patch_id, slide, map, part, draw, rank, structure``. The part ``"other"`` compares with the map of the next
        patch, from another slide if possible.
    """
    tables = []
    partners = _other_slide_rows(names["slide"])
    for name in ("last", "inner"):
        own = true.named(name)
        if own is None or min(own.shape[1:]) < 3:
            continue
        compared = {("other", 0): own[partners]} | {key: maps.named(name) for key, maps in drawn.items()}
        for (part, number), others in compared.items():
            if others is None:
                continue
            rank, structure = likeness(own, others)
            columns = {"map": name, "part": part, "draw": number, "rank": rank, "structure": structure}
            tables.append(names[["patch_id", "slide"]].assign(**columns))
    empty = pd.DataFrame(columns=["patch_id", "slide", "map", "part", "draw", "rank", "structure"])
    return pd.concat(tables, ignore_index=True) if tables else empty


def _other_slide_rows(slides: pd.Series) -> np.ndarray:
    """For each row, the next row of another slide, or simply the next row if there is no other slide."""
    names = slides.astype(object).where(slides.notna(), None).to_numpy()
    rows = np.arange(len(names))
    other = (rows + 1) % len(names)
    for row in rows:
        ahead = [number % len(names) for number in range(row + 1, row + len(names))]
        other[row] = next((number for number in ahead if names[number] != names[row]), other[row])
    return np.asarray(other)
