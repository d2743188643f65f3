"""Slide context: features relative to the slide's distribution, and stain amounts on the slide's stain vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoblend.features.handcrafted.column import REGION_WORDS

#: With this many patches or fewer, a slide's distribution has no weight.
FEWEST = 4
#: From this many patches on, a slide's distribution has full weight.
ENOUGH = 16
#: Turns a median absolute deviation into a standard deviation, for a normal distribution.
_TO_SPREAD = 1.4826
_STAINS = ("haematoxylin", "eosin")
#: Column that is 1 if a patch's own stain vectors could not be estimated.
_FALLBACK = "stain_fallback_both_whole"
_REGIONS = ("whole", "centre", "contrast")
#: Most values in memory while a slide's centres and spreads are computed (64 MB).
_MAX_VALUES = 8_000_000
#: Values are clipped at this many spreads from the centre, for a slide with full weight.
_CLIP = 6.0


def slide_context(values: np.ndarray, slides: np.ndarray, columns: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Express each patch's features relative to the patches of its slide.

    For each column, the slide's centre is the median over its patches. The spread is 1.4826 times the median absolute
    deviation, or the standard deviation if more than half of the values are equal, or 1 if all are equal. The weight w
    of the slide increases from 0 at 4 patches to 1 at 16 patches. Values are clipped at 6 / w spreads from the centre.
    The result is (value − w · centre) / spread^w. With enough patches, this is the distance from the slide's centre in
    units of its spread. With few patches, or if the slide is unknown, it is the raw value. No labels and no patches of
    other slides are used.

    Parameters
    ----------
    values : ndarray of shape (n, k), dtype float32
        Finite features.
    slides : ndarray of shape (n,)
        Slide of each patch, str; None or NaN if unknown.
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
        If the lengths do not match, or a value is not finite.

    Notes
    -----
    A model fitted on these features also needs many patches of each slide for prediction.
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

    A patch may contain a single stain only, and then its own vectors are unreliable. The slide's vectors are the
    medians of its patches' own vectors (family "stain", by Macenko's method), scaled to length 1. Patches without an
    estimate are left out. The weight w follows from the number of patches with an estimate (:func:`trust`). The
    vectors used are w times the slide's plus 1 − w times the patch's own, scaled to length 1. The patch's mean optical
    density, computed from its own vectors and amounts, is then decomposed on these vectors by least squares.

    Parameters
    ----------
    values : ndarray of shape (n, k), dtype float32
        Handcrafted features, including the "stain" family.
    slides : ndarray of shape (n,)
        Slide of each patch, str; None or NaN if unknown. Such a patch keeps its own vectors.
    columns : sequence of str
        Names of the k columns.

    Returns
    -------
    values : ndarray of shape (n, 9), dtype float32
        Per region (whole, centre, contrast): amounts of haematoxylin and eosin in decades of optical density, and
        haematoxylin divided by the sum of both magnitudes (0 if that sum is below 1e-9). Shape (n, 0) if the columns
        lack the family.
    names : list of str

    References
    ----------
    Macenko et al. (2009), IEEE ISBI, 1107-1110.
    """
    positions = {name: position for position, name in enumerate(columns)}
    if _FALLBACK not in positions:
        return np.empty((len(values), 0), np.float32), []
    table = np.asarray(values, dtype=np.float64)
    own = _own_vectors(table, positions)
    vectors = own.copy()
    estimated = table[:, positions[_FALLBACK]] < 0.5
    for rows in _rows_of_slides(np.asarray(slides, dtype=object)):
        weight, slide_vectors = _slide_vectors(own[rows], estimated[rows])
        if weight > 0.0:
            vectors[rows] = weight * slide_vectors + (1.0 - weight) * own[rows]
    return _amounts(table, positions, own, vectors), list(slide_stain_sentences())


@dataclass(frozen=True)
class SlideReference:
    """The distribution and stain vectors of one slide, computed by :func:`slide_reference`.

    Attributes
    ----------
    columns : tuple of str
        Names of the k columns.
    weight : float
        Weight of the slide's distribution, 0 to 1.
    centre, spread : ndarray of shape (k,), dtype float64
        Centre and spread of each column.
    stain_weight : float
        Weight of the slide's stain vectors, 0 to 1.
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
        """Return raw, relative and stain columns of some of the slide's patches.

        Parameters
        ----------
        values : ndarray of shape (m, k), dtype float32

        Returns
        -------
        ndarray of shape (m, 2 k + 9 or 2 k), dtype float32
            Bit-identical to these rows of :func:`slide_context` and :func:`slide_stains` on the whole slide.
        """
        relative = _within(values, self.weight, self.centre, self.spread) if self.weight > 0.0 else values
        positions = {name: position for position, name in enumerate(self.columns)}
        if _FALLBACK not in positions:
            return np.concatenate([values, relative], axis=1)
        table = values.astype(np.float64)
        own = _own_vectors(table, positions)
        vectors = own
        if self.stain_weight > 0.0:
            vectors = self.stain_weight * self.stain_vectors + (1.0 - self.stain_weight) * own
        return np.concatenate([values, relative, _amounts(table, positions, own, vectors)], axis=1)


def slide_reference(take: Callable[[np.ndarray], np.ndarray], patches: int, columns: Sequence[str]) -> SlideReference:
    """Compute the reference of one slide, in blocks of columns to save memory.

    Parameters
    ----------
    take : callable
        Maps positions of columns to their values, ndarray of shape (patches, len(positions)), dtype float32.
    patches : int
        Number of patches of the slide.
    columns : sequence of str
        Names of all columns.

    Returns
    -------
    SlideReference
        Bit-identical for any block size, because patches are always summed in the same order.
    """
    columns_at_once = max(2, min(len(columns), _MAX_VALUES // max(patches, 1)))
    # Never a block of one column: numpy would sum it in another order than several columns.
    blocks = np.array_split(np.arange(len(columns)), max(1, len(columns) // columns_at_once))
    statistics = [_centre_and_spread(np.ascontiguousarray(take(block))) for block in blocks]
    centre, spread = (np.concatenate(parts) for parts in zip(*statistics, strict=True))
    positions = {name: position for position, name in enumerate(columns)}
    weight, vectors = 0.0, np.zeros((2, 3))
    if _FALLBACK in positions:
        names = [*_vector_columns(), _FALLBACK]
        table = take(np.array([positions[name] for name in names])).astype(np.float64)
        own = _own_vectors(table, {name: position for position, name in enumerate(names)})
        weight, vectors = _slide_vectors(own, table[:, -1] < 0.5)
    return SlideReference(tuple(columns), trust(patches), centre, spread, weight, vectors)


def join_references(parts: Sequence[SlideReference]) -> SlideReference:
    """Reference of several tables of one slide, side by side. At most one of them has stain columns."""
    stained = max(parts, key=lambda part: part.stain_weight)
    return SlideReference(
        tuple(column for part in parts for column in part.columns),
        stained.weight,
        np.concatenate([part.centre for part in parts]),
        np.concatenate([part.spread for part in parts]),
        stained.stain_weight,
        stained.stain_vectors,
    )


def context_columns(columns: Sequence[str]) -> list[str]:
    """Return the names of the columns that :meth:`SlideReference.relate` returns."""
    stains = list(slide_stain_sentences()) if _FALLBACK in columns else []
    return [*columns, *map(in_slide_name, columns), *stains]


def _vector_columns() -> list[str]:
    return [f"stain_{colour}_{stain}_whole" for stain in _STAINS for colour in ("red", "green", "blue")]


def _own_vectors(table: np.ndarray, positions: dict[str, int]) -> np.ndarray:
    """Patches' own stain vectors, (n, 2, 3)."""
    return table[:, [positions[name] for name in _vector_columns()]].reshape(len(table), 2, 3)


def _slide_vectors(own: np.ndarray, estimated: np.ndarray) -> tuple[float, np.ndarray]:
    """Weight and stain vectors of a slide; the vectors are medians over patches with an estimate."""
    good = own[estimated]
    weight = trust(len(good))
    return weight, _unit(np.median(good, axis=0)) if weight > 0.0 else np.zeros((2, 3))


def _amounts(table: np.ndarray, positions: dict[str, int], own: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Mean stain amounts and their ratio by region, (n, 9) float32, decomposed on `vectors`."""
    solve = np.linalg.pinv(_unit(vectors))
    amounts = {}
    for region in _REGIONS:
        means = table[:, [positions[f"stain_mean_{stain}_{region}"] for stain in _STAINS]]
        amounts[region] = np.einsum("ns,nsc,nct->nt", means, own, solve)
    # contrast is centre minus ring, so the ring is centre minus contrast
    ratios = {"whole": _ratio(amounts["whole"]), "centre": _ratio(amounts["centre"])}
    ratios["contrast"] = ratios["centre"] - _ratio(amounts["centre"] - amounts["contrast"])
    parts = [np.column_stack([amounts[region], ratios[region]]) for region in _REGIONS]
    return np.concatenate(parts, axis=1).astype(np.float32)


def slide_stain_sentences() -> dict[str, str]:
    """Return the column names of :func:`slide_stains`, in order, with a description of each."""
    sentences = {}
    for region in _REGIONS:
        region_words = REGION_WORDS[region]
        for stain in _STAINS:
            sentences[f"stain_mean-on-slide_{stain}_{region}"] = (
                f"Mean {stain} amount on the slide's stain vectors, {region_words}."
            )
        sentences[f"stain_ratio-on-slide_both_{region}"] = (
            f"Haematoxylin share (mean haematoxylin / sum of both stains' absolute means) on the slide's stain "
            f"vectors, {region_words}."
        )
    return sentences


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _ratio(amounts: np.ndarray) -> np.ndarray:
    sum_of_magnitudes = np.abs(amounts).sum(axis=1)
    return np.divide(amounts[:, 0], sum_of_magnitudes, out=np.zeros(len(amounts)), where=sum_of_magnitudes >= 1e-9)


def in_slide_name(column: str) -> str:
    """Return the name of the column that is relative to the slide.

    Raises
    ------
    ValueError
        If the name does not have exactly four parts.
    """
    parts = column.split("_")
    if len(parts) != 4 or not all(parts):
        raise ValueError(f"a column name must be family_statistic_channel_region; got {column!r}.")
    parts[1] += "-in-slide"
    return "_".join(parts)


def trust(patches: float) -> float:
    """Return the weight, 0 to 1, of the distribution of a slide with this many patches."""
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
    # the rounding error of float32 must not count as a spread
    floor = 1e-6 * np.maximum(np.abs(centre), 1e-6)
    spread = np.where(spread > floor, spread, deviation)
    return centre, np.where(spread > floor, spread, 1.0)


def _within(values: np.ndarray, weight: float, centre: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Relative values of patches of one slide. ``weight`` must be above 0."""
    exact = values.astype(np.float64)
    exact = np.clip(exact, centre - _CLIP / weight * spread, centre + _CLIP / weight * spread)
    return ((exact - weight * centre) / spread**weight).astype(np.float32)
