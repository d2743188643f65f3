"""Slide context: how a patch's features lie within its slide's, and its stain amounts on the slide's own vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from features.column import REGION_WORDS

#: A slide of this many patches or fewer says nothing about its distribution.
FEWEST = 4
#: From this many patches on a slide's distribution is taken at its word.
ENOUGH = 16
#: Turns a median absolute deviation into a standard deviation, for a normal distribution.
_TO_SPREAD = 1.4826
_STAINS = ("haematoxylin", "eosin")
_REGIONS = ("whole", "centre", "contrast")
#: Spreads from the centre beyond which values of a fully trusted slide are drawn in.
_FARTHEST = 6.0


def slide_context(values: np.ndarray, slides: np.ndarray, columns: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Express each patch's features relative to those of its slide's patches.

    A slide's centre is the median and its spread 1.4826 times the median absolute deviation of the column over the
    slide's patches (the standard deviation where more than half of the values are equal, 1 where all are). With n
    patches of a slide, trust w grows from 0 at n = 4 to 1 at n = 16. A value is drawn in to 6 / w spreads from the
    centre, and the result is (value − w · centre) / spread^w: the distance from the slide's centre in units of its
    spread where the slide has enough patches, and the raw value where it has few or is unknown. No label is used, and
    no patch of another slide.

    Parameters
    ----------
    values : ndarray of shape (n, k), dtype float32
        Finite features.
    slides : ndarray of shape (n,)
        Slide of each patch, str; None or NaN where it is unknown.
    columns : sequence of str
        Names of the k columns, ``family_statistic_channel_region``.

    Returns
    -------
    values : ndarray of shape (n, k), dtype float32
    names : list of str
        ``family_statistic-in-slide_channel_region``.

    Raises
    ------
    ValueError
        When the lengths do not agree, or a value is not finite.

    Notes
    -----
    A model fitted on this presumes a slide's worth of patches at prediction time too.
    """
    values, slides = np.asarray(values, dtype=np.float32), np.asarray(slides, dtype=object)
    if values.ndim != 2 or slides.shape != values.shape[:1] or len(columns) != values.shape[1]:
        raise ValueError(
            f"values (n, k), slides (n,) and k columns must agree; got {values.shape}, {slides.shape} and "
            f"{len(columns)}."
        )
    if not np.isfinite(values).all():
        raise ValueError("values must be finite; got NaN or infinity.")
    out = values.copy()
    for rows in _rows_of_slides(slides):
        out[rows] = _within(values[rows])
    return out, [in_slide_name(column) for column in columns]


def slide_stains(values: np.ndarray, slides: np.ndarray, columns: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Express each patch's mean stain amounts on the stain vectors of its slide.

    A single patch may hold one stain only, and its own vectors are then a guess. The slide's vectors are the medians,
    over its patches, of the patches' own vectors (family "stain", after Macenko), brought to length 1; patches whose
    own could not be estimated are left out. With trust w (see :func:`trust`, by the number of patches with an estimate)
    the vectors in use are w times the slide's plus 1 − w times the patch's own, brought to length 1. The patch's mean
    optical density, as its own vectors and amounts give it, is then resolved on these by least squares.

    Parameters
    ----------
    values : ndarray of shape (n, k), dtype float32
        Handcrafted features, the "stain" family among them.
    slides : ndarray of shape (n,)
        Slide of each patch, str; None or NaN where it is unknown: such a patch keeps its own vectors.
    columns : sequence of str
        Names of the k columns.

    Returns
    -------
    values : ndarray of shape (n, 9), dtype float32
        By region (whole, centre, contrast): amount of haematoxylin and of eosin in decades of optical density, and
        haematoxylin over the sum of both magnitudes (0 where that is below 1e-9); (n, 0) without the family.
    names : list of str

    References
    ----------
    Macenko et al. (2009), IEEE ISBI, 1107-1110.
    """
    place = {name: number for number, name in enumerate(columns)}
    if "stain_fallback_both_whole" not in place:
        return np.empty((len(values), 0), np.float32), []
    table = np.asarray(values, dtype=np.float64)

    def pick(statistics: Sequence[str], region: str) -> np.ndarray:
        return table[:, [place[f"stain_{part}_{stain}_{region}"] for stain in _STAINS for part in statistics]]

    own = pick(("red", "green", "blue"), "whole").reshape(len(table), 2, 3)
    vectors = own.copy()
    estimated = table[:, place["stain_fallback_both_whole"]] < 0.5
    for rows in _rows_of_slides(np.asarray(slides, dtype=object)):
        good = rows[estimated[rows]]
        weight = trust(len(good))
        if weight > 0.0:
            vectors[rows] = weight * _unit(np.median(own[good], axis=0)) + (1.0 - weight) * own[rows]
    solve = np.linalg.pinv(_unit(vectors))
    amounts = {region: np.einsum("ns,nsc,nct->nt", pick(("mean",), region), own, solve) for region in _REGIONS}
    # contrast is centre minus ring
    ratios = {"whole": _ratio(amounts["whole"]), "centre": _ratio(amounts["centre"])}
    ratios["contrast"] = ratios["centre"] - _ratio(amounts["centre"] - amounts["contrast"])
    parts = [np.column_stack([amounts[region], ratios[region]]) for region in _REGIONS]
    return np.concatenate(parts, axis=1).astype(np.float32), list(slide_stain_sentences())


def slide_stain_sentences() -> dict[str, str]:
    """Name the columns of :func:`slide_stains` in their order, and say what each is."""
    sentences = {}
    for region in _REGIONS:
        where = REGION_WORDS[region]
        for stain in _STAINS:
            sentences[f"stain_mean-on-slide_{stain}_{region}"] = f"Mean amount of the slide's own {stain}, {where}."
        sentences[f"stain_ratio-on-slide_both_{region}"] = (
            f"Mean haematoxylin over the sum of both means' magnitudes, on the slide's own stain vectors, {where}."
        )
    return sentences


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _ratio(amounts: np.ndarray) -> np.ndarray:
    size = np.abs(amounts).sum(axis=1)
    return np.divide(amounts[:, 0], size, out=np.zeros(len(amounts)), where=size >= 1e-9)


def in_slide_name(column: str) -> str:
    """Return the name of a column's version relative to its slide.

    Raises
    ------
    ValueError
        When the name has not exactly four parts.
    """
    parts = column.split("_")
    if len(parts) != 4 or not all(parts):
        raise ValueError(f"a column's name must be family_statistic_channel_region; got {column!r}.")
    parts[1] += "-in-slide"
    return "_".join(parts)


def trust(patches: int) -> float:
    """Return the weight in 0 to 1 that the distribution of a slide with this many patches has."""
    return min(max((patches - FEWEST) / (ENOUGH - FEWEST), 0.0), 1.0)


def _rows_of_slides(slides: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each known slide."""
    known: dict[str, list[int]] = {}
    for row, slide in enumerate(slides):
        if not pd.isna(slide):
            known.setdefault(str(slide), []).append(row)
    return [np.array(rows) for rows in known.values()]


def _within(values: np.ndarray) -> np.ndarray:
    """Relative values of one slide's patches."""
    weight = trust(len(values))
    if weight == 0.0:
        return values
    exact = values.astype(np.float64)
    centre = np.median(exact, axis=0)
    spread = _TO_SPREAD * np.median(np.abs(exact - centre), axis=0)
    deviation = exact.std(axis=0)
    # rounding of float32 alone must not look like a spread
    floor = 1e-6 * np.maximum(np.abs(centre), 1e-6)
    spread = np.where(spread > floor, spread, deviation)
    spread = np.where(spread > floor, spread, 1.0)
    exact = np.clip(exact, centre - _FARTHEST / weight * spread, centre + _FARTHEST / weight * spread)
    return ((exact - weight * centre) / spread**weight).astype(np.float32)
