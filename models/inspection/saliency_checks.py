"""Sanity checks of saliency maps: whether they change when a network's weights are drawn at random.

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


#: What of a network is drawn at random, each part with all that come after it.
PARTS = {"head": "the head", "top": "all after the last inner map", "whole": "the whole network"}
_FLAT = 1e-12


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
    return Cut(lower, upper, *head_values(head))


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
