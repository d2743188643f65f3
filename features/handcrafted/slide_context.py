"""Slide context: how a patch's features lie within its slide's, and its stain amounts on the slide's own vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoblend.features.handcrafted.column import REGION_WORDS

#: A slide of this many patches or fewer says nothing about its distribution.
FEWEST = 4
#: From this many patches on a slide's distribution is taken at its word.
ENOUGH = 16
#: Turns a median absolute deviation into a standard deviation, for a normal distribution.
_TO_SPREAD = 1.4826
_STAINS = ("haematoxylin", "eosin")
#: Whether a patch's own stain vectors could not be estimated.
_FALLBACK = "stain_fallback_both_whole"
_REGIONS = ("whole", "centre", "contrast")
#: Values in memory at a time while a slide's centres and spreads are found, 64 MB.
_AT_ONCE = 8_000_000
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
        weight = trust(len(rows))
        if weight > 0.0:
            out[rows] = _within(values[rows], weight, *_centre_and_spread(values[rows]))
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
    if _FALLBACK not in place:
        return np.empty((len(values), 0), np.float32), []
    table = np.asarray(values, dtype=np.float64)
    own = _own_vectors(table, place)
    vectors = own.copy()
    estimated = table[:, place[_FALLBACK]] < 0.5
    for rows in _rows_of_slides(np.asarray(slides, dtype=object)):
        weight, middle = _slide_vectors(own[rows], estimated[rows])
        if weight > 0.0:
            vectors[rows] = weight * middle + (1.0 - weight) * own[rows]
    return _amounts(table, place, own, vectors), list(slide_stain_sentences())


@dataclass(frozen=True)
class SlideReference:
    """What the patches of one slide are compared with; made by :func:`slide_reference`.

    Attributes
    ----------
    columns : tuple of str
        Names of the k columns.
    weight : float
        Trust in the slide's distribution.
    centre, spread : ndarray of shape (k,), dtype float64
        Of each column.
    stain_weight : float
        Trust in the slide's stain vectors.
    stain_vectors : ndarray of shape (2, 3), dtype float64
        Unit vectors of haematoxylin and eosin.
    """

    columns: tuple[str, ...]
    weight: float
    centre: np.ndarray
    spread: np.ndarray
    stain_weight: float
    stain_vectors: np.ndarray

    def relate(self, values: np.ndarray) -> np.ndarray:
        """Raw, relative and stain columns of some of the slide's patches.

        Parameters
        ----------
        values : ndarray of shape (m, k), dtype float32

        Returns
        -------
        ndarray of shape (m, 2 k + 9 or 2 k), dtype float32
            Bit by bit what :func:`slide_context` and :func:`slide_stains` make of these rows, given all of the slide.
        """
        relative = _within(values, self.weight, self.centre, self.spread) if self.weight > 0.0 else values
        place = {name: number for number, name in enumerate(self.columns)}
        if _FALLBACK not in place:
            return np.concatenate([values, relative], axis=1)
        table = values.astype(np.float64)
        own = _own_vectors(table, place)
        vectors = own
        if self.stain_weight > 0.0:
            vectors = self.stain_weight * self.stain_vectors + (1.0 - self.stain_weight) * own
        return np.concatenate([values, relative, _amounts(table, place, own, vectors)], axis=1)


def slide_reference(take: Callable[[np.ndarray], np.ndarray], patches: int, columns: Sequence[str]) -> SlideReference:
    """Find out what the patches of one slide are compared with, a few columns at a time.

    Parameters
    ----------
    take : callable
        Places of columns to their values over the slide's patches, ndarray of shape (patches, len(places)), float32.
    patches : int
        Of the slide.
    columns : sequence of str
        Names of all columns.

    Returns
    -------
    SlideReference
        The same bits however many columns are taken at a time: sums over patches add up one after another.
    """
    at_once = max(2, min(len(columns), _AT_ONCE // max(patches, 1)))
    # Never one column by itself: numpy would add up its values in another order than beside others.
    blocks = np.array_split(np.arange(len(columns)), max(1, len(columns) // at_once))
    found = [_centre_and_spread(np.ascontiguousarray(take(block))) for block in blocks]
    centre, spread = (np.concatenate(parts) for parts in zip(*found, strict=True))
    place = {name: number for number, name in enumerate(columns)}
    weight, vectors = 0.0, np.zeros((2, 3))
    if _FALLBACK in place:
        names = [*_vector_columns(), _FALLBACK]
        table = take(np.array([place[name] for name in names])).astype(np.float64)
        own = _own_vectors(table, {name: number for number, name in enumerate(names)})
        weight, vectors = _slide_vectors(own, table[:, -1] < 0.5)
    return SlideReference(tuple(columns), trust(patches), centre, spread, weight, vectors)


def context_columns(columns: Sequence[str]) -> list[str]:
    """Names of what :meth:`SlideReference.relate` makes of columns."""
    stains = list(slide_stain_sentences()) if _FALLBACK in columns else []
    return [*columns, *map(in_slide_name, columns), *stains]


def _vector_columns() -> list[str]:
    return [f"stain_{colour}_{stain}_whole" for stain in _STAINS for colour in ("red", "green", "blue")]


def _own_vectors(table: np.ndarray, place: dict[str, int]) -> np.ndarray:
    """Patches' own stain vectors, (n, 2, 3)."""
    return table[:, [place[name] for name in _vector_columns()]].reshape(len(table), 2, 3)


def _slide_vectors(own: np.ndarray, estimated: np.ndarray) -> tuple[float, np.ndarray]:
    """Trust in the vectors of a slide, and these: medians of its patches' own, where those could be estimated."""
    good = own[estimated]
    weight = trust(len(good))
    return weight, _unit(np.median(good, axis=0)) if weight > 0.0 else np.zeros((2, 3))


def _amounts(table: np.ndarray, place: dict[str, int], own: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Mean amounts of stain and their ratio by region, (n, 9) float32, resolved on some vectors."""
    solve = np.linalg.pinv(_unit(vectors))
    amounts = {}
    for region in _REGIONS:
        means = table[:, [place[f"stain_mean_{stain}_{region}"] for stain in _STAINS]]
        amounts[region] = np.einsum("ns,nsc,nct->nt", means, own, solve)
    # contrast is centre minus ring
    ratios = {"whole": _ratio(amounts["whole"]), "centre": _ratio(amounts["centre"])}
    ratios["contrast"] = ratios["centre"] - _ratio(amounts["centre"] - amounts["contrast"])
    parts = [np.column_stack([amounts[region], ratios[region]]) for region in _REGIONS]
    return np.concatenate(parts, axis=1).astype(np.float32)


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


def trust(patches: float) -> float:
    """Return the weight in 0 to 1 that the distribution of a slide with this many patches has."""
    return min(max((patches - FEWEST) / (ENOUGH - FEWEST), 0.0), 1.0)


def _rows_of_slides(slides: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each known slide."""
    known: dict[str, list[int]] = {}
    for row, slide in enumerate(slides):
        if not pd.isna(slide):
            known.setdefault(str(slide), []).append(row)
    return [np.array(rows) for rows in known.values()]


def _centre_and_spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and spread of each column over one slide's patches, float64."""
    exact = values.astype(np.float64)
    centre = np.median(exact, axis=0)
    spread = _TO_SPREAD * np.median(np.abs(exact - centre), axis=0)
    deviation = exact.std(axis=0)
    # rounding of float32 alone must not look like a spread
    floor = 1e-6 * np.maximum(np.abs(centre), 1e-6)
    spread = np.where(spread > floor, spread, deviation)
    return centre, np.where(spread > floor, spread, 1.0)


def _within(values: np.ndarray, weight: float, centre: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Relative values of patches of one slide; ``weight`` is above 0."""
    exact = values.astype(np.float64)
    exact = np.clip(exact, centre - _FARTHEST / weight * spread, centre + _FARTHEST / weight * spread)
    return ((exact - weight * centre) / spread**weight).astype(np.float32)
