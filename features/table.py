"""The registry of handcrafted features: every family and every column, in the order of the table.

A new family is one function from patches to numbers, and one row in `FAMILIES`.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.errors import InputError
from features import colour, nuclei, texture
from features.stain import as_batch

_BATCH = 64


@dataclass(frozen=True)
class Column:
    """One number of a patch.

    Attributes
    ----------
    name : str
        ``family_statistic_channel_region``; the four parts hold hyphens, never underscores.
    unit : str
        "1" for pure numbers.
    low, high : float
        Range, ends included; infinite where there is no bound.
    sentence : str
        What the number is, in words.
    reference : str
        Where it was published.
    """

    name: str
    unit: str
    low: float
    high: float
    sentence: str
    reference: str


@dataclass(frozen=True)
class Family:
    """Columns that one function computes together.

    Attributes
    ----------
    name : str
        First part of its columns' names.
    columns : tuple of Column
    compute : callable
        (n, height, width, 3) uint8 to (n, len(columns)) float32; pure, finite on any pixels, any n.
    """

    name: str
    columns: tuple[Column, ...]
    compute: Callable[[np.ndarray], np.ndarray]


class Parts(NamedTuple):
    """The four parts of a column's name."""

    family: str
    statistic: str
    channel: str
    region: str


class _Row(NamedTuple):
    """A statistic or channel before it is crossed with the others."""

    name: str
    unit: str
    low: float
    high: float
    words: str


_REGION_WORDS = {"whole": "whole patch", "centre": "centre 32 × 32"}

_COLOUR_CHANNELS = (
    _Row("red", "1", 0, 1, "red"),
    _Row("green", "1", 0, 1, "green"),
    _Row("blue", "1", 0, 1, "blue"),
    _Row("hue", "turn", -0.5, 0.5, "hue, counted from red, of the pixels that have one"),
    _Row("saturation", "1", 0, 1, "saturation (HSV)"),
    _Row("value", "1", 0, 1, "value (HSV)"),
    _Row("lightness", "1", 0, 100.001, "lightness L* (CIE Lab, D65)"),
    _Row("green-red", "1", -86.2, 98.3, "green to red a* (CIE Lab, D65)"),
    _Row("blue-yellow", "1", -107.9, 94.5, "blue to yellow b* (CIE Lab, D65)"),
    _Row("haematoxylin", "6 decades", 0, 1.88, "haematoxylin amount (optical density)"),
    _Row("eosin", "6 decades", 0, 1.14, "eosin amount (optical density)"),
    _Row("dab", "6 decades", 0, 1.58, "residual (third) stain amount (optical density)"),
)

# The words of a statistic; for hue the words and ranges of the circle stand in for the first four.
_COLOUR_WORDS = {
    "mean": "mean",
    "spread": "standard deviation",
    "skew": "skewness (0 when constant)",
    "kurtosis": "excess kurtosis (0 when constant)",
    "q05": "5 % quantile",
    "q25": "25 % quantile",
    "q50": "median",
    "q75": "75 % quantile",
    "q95": "95 % quantile",
}
_HUE_WORDS = {
    "mean": "direction of the mean vector",
    "spread": "one minus length of the mean vector",
    "skew": "mean sine of twice the angle from the mean direction",
    "kurtosis": "mean cosine of twice the angle from the mean direction",
}
_STAINS = "Ruifrok & Johnston (2001), Anal Quant Cytol Histol 23(4):291-299"
_COLOUR_REFERENCES = {
    "hue": "Batschelet (1981), Circular Statistics in Biology",
    "saturation": "Smith (1978), SIGGRAPH Comput Graph 12(3):12-19",
    "value": "Smith (1978), SIGGRAPH Comput Graph 12(3):12-19",
    "lightness": "CIE 15:2004, Colorimetry",
    "green-red": "CIE 15:2004, Colorimetry",
    "blue-yellow": "CIE 15:2004, Colorimetry",
    "haematoxylin": _STAINS,
    "eosin": _STAINS,
    "dab": _STAINS,
}


def _colour_range(channel: _Row, statistic: str) -> tuple[str, float, float]:
    """Return unit and range of a statistic of a channel."""
    if channel.name == "hue" and statistic in ("spread", "skew", "kurtosis"):
        return "1", 0.0 if statistic == "spread" else -1.0, 1.0
    if statistic == "spread":
        return channel.unit, 0.0, (channel.high - channel.low) / 2
    if statistic == "skew":
        return "1", -inf, inf
    if statistic == "kurtosis":
        return "1", -2.0, inf
    return channel.unit, channel.low, channel.high


def _colour_columns() -> Iterator[Column]:
    for region in colour.REGIONS:
        for channel in _COLOUR_CHANNELS:
            for statistic in colour.STATISTICS:
                words = _COLOUR_WORDS | (_HUE_WORDS if channel.name == "hue" else {})
                yield Column(
                    f"colour_{statistic}_{channel.name}_{region}",
                    *_colour_range(channel, statistic),
                    f"{words[statistic].capitalize()} of {channel.words}, {_REGION_WORDS[region]}.",
                    _COLOUR_REFERENCES.get(channel.name, "Gonzalez & Woods (2018), Digital Image Processing, 4th ed."),
                )


_HARALICK = "Haralick, Shanmugam & Dinstein (1973), IEEE Trans Syst Man Cybern 3(6):610-621"
_COOCCURRENCE = (
    _Row("contrast", "level²", 0, 961, "mean squared difference of levels"),
    _Row("dissimilarity", "level", 0, 31, "mean difference of levels"),
    _Row("homogeneity", "1", 0, 1, "mean of 1 / (1 + squared difference)"),
    _Row("asm", "1", 0, 1, "angular second moment (sum of squared probabilities)"),
    _Row("energy", "1", 0, 1, "root of the angular second moment"),
    _Row("correlation", "1", -1, 1, "correlation of the two levels (1 when constant)"),
    _Row("entropy", "nat", 0, 6.932, "entropy of the pairs"),
)


def _cooccurrence_columns() -> Iterator[Column]:
    for region in texture.REGIONS:
        for channel in texture.CHANNELS:
            for distance in texture.DISTANCES:
                for row in _COOCCURRENCE:
                    for pool in ("mean", "range"):
                        # a range is a difference: never below 0, never above the property's own width
                        low, high = (0, row.high - row.low) if pool == "range" else (row.low, row.high)
                        yield Column(
                            f"cooccurrence_{row.name}-d{distance}-{pool}_{channel}_{region}",
                            row.unit,
                            low,
                            high,
                            f"{pool.capitalize()} over 4 directions of the {row.words}, of pairs {distance} apart in "
                            f"32 levels of {channel}, {_REGION_WORDS[region]}.",
                            _HARALICK,
                        )


_OJALA = "Ojala, Pietikäinen & Mäenpää (2002), IEEE Trans Pattern Anal Mach Intell 24(7):971-987"


def _lbp_columns() -> Iterator[Column]:
    for region in texture.REGIONS:
        for channel in texture.CHANNELS[:2]:
            for points, radius in texture.PATTERNS:
                for pattern in range(points + 2):
                    mixed = pattern == points + 1
                    words = "no uniform pattern" if mixed else f"a uniform pattern with {pattern}"
                    yield Column(
                        f"lbp_r{radius}-{'mixed' if mixed else f'p{pattern}'}_{channel}_{region}",
                        "1",
                        0,
                        1,
                        f"Fraction of pixels with {words} of {points} points at radius {radius} not below the pixel, "
                        f"{channel}, {_REGION_WORDS[region]}.",
                        _OJALA,
                    )


_LINDEBERG = "Lindeberg (1998), Int J Comput Vis 30(2):79-116"
_GRADIENT_WORDS = {
    "edge-mean": "Mean gradient magnitude",
    "edge-spread": "Standard deviation of the gradient magnitude",
    "edge-strong": "Fraction of pixels whose gradient magnitude exceeds 0.1",
    "blob-spread": "Standard deviation of the Laplacian",
    "blob-dark": "Mean positive part of the Laplacian (valleys)",
    "blob-bright": "Mean negative part of the Laplacian (peaks)",
}


def _gradient_columns() -> Iterator[Column]:
    for region in texture.REGIONS:
        for channel in texture.CHANNELS[:2]:
            for sigma in texture.SCALES:
                for statistic in texture.GRADIENT:
                    yield Column(
                        f"gradient_{statistic}-s{sigma}_{channel}_{region}",
                        "1",
                        0,
                        1 if statistic == "edge-strong" else 2,
                        f"{_GRADIENT_WORDS[statistic]} at scale {sigma} px (scale-normalised), {channel}, "
                        f"{_REGION_WORDS[region]}.",
                        _LINDEBERG,
                    )


_OTSU = "Otsu (1979), IEEE Trans Syst Man Cybern 9(1):62-66"
_SHAPES = "Wolberg, Street & Mangasarian (1994), Cancer Lett 77(2-3):163-171"
_NUCLEI_PATCH = (
    _Row("count", "1", 0, inf, "Number of nuclei"),
    _Row("fraction", "1", 0, 1, "Fraction of pixels that nuclei cover"),
    _Row("threshold", "1", 0, 1, "Threshold that found the nuclei, of the whole patch's smoothed plane"),
    _Row("contrast", "1", -1, 1, "Mean level inside nuclei minus outside (0 when either is empty)"),
    _Row("gap-mean", "px", 0, inf, "Mean distance from a nucleus to its nearest neighbour (0 when alone)"),
    _Row("gap-spread", "px", 0, inf, "Standard deviation of the distance to the nearest neighbour"),
)
_NUCLEI_ROWS = (
    _Row("area", "px²", 0, inf, "area"),
    _Row("perimeter", "px", 0, inf, "perimeter"),
    _Row("circularity", "1", 0, inf, "circularity 4π area / perimeter²"),
    _Row("eccentricity", "1", 0, 1, "eccentricity of the ellipse with the same second moments"),
    _Row("solidity", "1", 0, 1, "solidity (area / area of the convex hull)"),
    _Row("extent", "1", 0, 1, "extent (area / area of the upright box)"),
    _Row("major", "px", 0, inf, "major axis of the ellipse with the same second moments"),
    _Row("minor", "px", 0, inf, "minor axis of the ellipse with the same second moments"),
    _Row("intensity", "1", 0, 1, "mean level inside"),
    _Row("grain", "1", 0, 0.5, "standard deviation of the level inside"),
)
_POOL_WORDS = {"mean": "Mean", "spread": "Standard deviation", "max": "Maximum"}


def _nuclei_columns() -> Iterator[Column]:
    for region in nuclei.REGIONS:
        end = f", haematoxylin, {_REGION_WORDS[region]}."
        for row in _NUCLEI_PATCH:
            yield Column(
                f"nuclei_{row.name}_haematoxylin_{region}", row.unit, row.low, row.high, row.words + end, _OTSU
            )
        for row in _NUCLEI_ROWS:
            for pool in nuclei.POOLS:
                yield Column(
                    f"nuclei_{row.name}-{pool}_haematoxylin_{region}",
                    row.unit,
                    0,
                    (row.high - row.low) / 2 if pool == "spread" else row.high,
                    f"{_POOL_WORDS[pool]} over nuclei of the {row.words} (0 without nuclei){end}",
                    _SHAPES,
                )


FAMILIES: tuple[Family, ...] = (
    Family("colour", tuple(_colour_columns()), colour.colour),
    Family("cooccurrence", tuple(_cooccurrence_columns()), texture.cooccurrence),
    Family("lbp", tuple(_lbp_columns()), texture.lbp),
    Family("gradient", tuple(_gradient_columns()), texture.gradient),
    Family("nuclei", tuple(_nuclei_columns()), nuclei.nuclei),
)


def family_named(name: str) -> Family:
    """Return the family of this name.

    Raises
    ------
    InputError
        When there is none; names the nearest.
    """
    names = [family.name for family in FAMILIES]
    if name in names:
        return FAMILIES[names.index(name)]
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise InputError(f"family must be one of {', '.join(names)}; got {name!r}.{hint}")


def families_named(names: Sequence[str] | None) -> tuple[Family, ...]:
    """Return the families of these names in the order given, or all of them for None.

    Raises
    ------
    ValueError
        When a name is unknown, given twice, or none is given.
    """
    if names is None:
        return FAMILIES
    if isinstance(names, str) or not len(names) or len(set(names)) < len(names):
        raise ValueError(f"families must be a list of different names, at least one; got {names!r}.")
    return tuple(family_named(name) for name in names)


def columns(families: Sequence[str] | None = None) -> tuple[Column, ...]:
    """Return the columns of these families (None: all), in the order of `compute`."""
    return tuple(column for family in families_named(families) for column in family.columns)


def parse_column(name: str) -> Parts:
    """Split a column's name into family, statistic, channel and region.

    Raises
    ------
    ValueError
        When it has not exactly four parts.
    """
    parts = name.split("_")
    if len(parts) != 4 or not all(parts):
        raise ValueError(f"a column's name must be family_statistic_channel_region; got {name!r}.")
    return Parts(*parts)


def compute(patches: np.ndarray, families: Sequence[str] | None = None) -> np.ndarray:
    """Compute the table of handcrafted features.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        RGB, at least 32 × 32 pixels; a read-only memory map will do.
    families : sequence of str, optional
        Names of families; all when left out.

    Returns
    -------
    ndarray of shape (n, k), dtype float32
        One column per entry of ``columns(families)``; finite on any pixels. A row depends on its own patch only, bit
        for bit, however the patches are cut into batches.

    Raises
    ------
    ValueError
        When a family is unknown, the shape is another, or patches are smaller than 32 × 32.
    TypeError
        When the values are not uint8.
    """
    chosen = families_named(families)
    as_batch(patches[:1])
    table = np.empty((len(patches), len(columns(families))), np.float32)
    for start in range(0, len(patches), _BATCH):
        batch = patches[start : start + _BATCH]
        table[start : start + _BATCH] = np.concatenate([family.compute(batch) for family in chosen], axis=1)
    return table


def catalogue() -> str:
    """Return docs/features.md: every family, what it computes, and its columns."""
    lines = [
        "# Handcrafted features",
        "",
        f"{len(columns())} columns in {len(FAMILIES)} families, generated from `features/table.py` by "
        "`python -m features.table docs/features.md`.",
        "A name reads `family_statistic_channel_region`.",
    ]
    for family in FAMILIES:
        explanation = inspect.cleandoc(family.compute.__doc__ or "").split("\n\nParameters\n")[0]
        lines += ["", f"## {family.name} ({len(family.columns)} columns)", "", explanation, ""]
        lines += ["| column | what | unit | range | reference |", "|---|---|---|---|---|"]
        lines += [
            f"| `{column.name}` | {column.sentence} | {column.unit} | {column.low:g} to {column.high:g} "
            f"| {column.reference} |"
            for column in family.columns
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(catalogue(), encoding="utf-8")
