"""Stain normalisation by slide: optical densities of a slide's tissue brought to a fixed mean and spread.

After Reinhard et al. (2001), IEEE Computer Graphics and Applications 21(5), 34-41, on densities of tissue alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from histoblend.features.handcrafted.kernel import kernel
from histoblend.features.handcrafted.slide_context import trust

#: Mean and standard deviation of each channel's density that every slide is brought to: about those of a lymph node in
#: PatchCamelyon. Fixed, so that nothing is learned and a slide comes out alike in every run.
REFERENCE = np.array([[0.38, 0.65, 0.34], [0.18, 0.33, 0.14]])
#: Ten-thousandths of optical density: whole numbers add up to the same sum in any order.
UNIT = 10_000
#: Density above which, in all three channels, a pixel is tissue.
TISSUE = 0.15
#: Tissue that hardly varies in a channel is stretched no further than this spread would be.
LEAST_SPREAD = 0.02
#: Glass stays lighter than tissue: what tissue's least density becomes is at least this.
LEAST_DENSITY = 0.02


def stain_sums(pixels: np.ndarray) -> np.ndarray:
    """Sum up the optical densities of each patch's tissue.

    Density is −log10((level + 1) / 256), rounded to ten-thousandths; tissue is what exceeds 0.15 in all channels.

    Parameters
    ----------
    pixels : ndarray of shape (n, height, width, 3), dtype uint8

    Returns
    -------
    ndarray of shape (n, 7), dtype int64
        Pixels of tissue; sums of red, green and blue density, ten-thousandths; sums of their squares.
    """
    sums = np.zeros((len(pixels), 7), np.int64)
    _sum_kernel(np.ascontiguousarray(pixels), _LEVELS, int(TISSUE * UNIT), sums)
    return sums


def stains_of(sums: np.ndarray, slides: np.ndarray, pixels: int) -> np.ndarray:
    """What each patch is normalised by: mean and spread of its slide's tissue, as far as these are trusted.

    Trust w grows from 0 where a slide's patches hold as much tissue as 4 patches full of it to 1 at 16
    (:func:`features.handcrafted.slide_context.trust`); the result is w times the slide's and 1 − w times those of
    :data:`REFERENCE`, which leave a patch as it is. No label is used, and no patch of another slide.

    Parameters
    ----------
    sums : ndarray of shape (n, 7), dtype int64
        From :func:`stain_sums`.
    slides : ndarray of shape (n,), dtype object
        Slide of each patch; None where it is unknown, which is trusted by 0.
    pixels : int
        Of a patch.

    Returns
    -------
    ndarray of shape (n, 2, 3), dtype float64
        Means of red, green and blue density, and their standard deviations.
    """
    stains = np.tile(REFERENCE, (len(sums), 1, 1))
    names = pd.Series(slides, dtype=object)
    for rows in names.groupby(names, sort=False).indices.values():
        total = sums[rows].sum(axis=0)
        if weight := trust(int(total[0]) / pixels):
            stains[rows] = weight * _moments(total) + (1 - weight) * REFERENCE
    return stains


def normalise_by_slide(pixels: np.ndarray, stains: np.ndarray) -> np.ndarray:
    """Bring the densities of patches' tissue to :data:`REFERENCE`, channel by channel.

    Densities of tissue are shifted and stretched. Below 0.15 they are scaled, so that white stays white: glass that a
    shift has tinted misleads a network.

    Parameters
    ----------
    pixels : ndarray of shape (n, height, width, 3), dtype uint8
    stains : ndarray of shape (n, 2, 3), dtype float64
        Their rows of :func:`stains_of`.

    Returns
    -------
    ndarray of shape (n, height, width, 3), dtype uint8
        A patch depends on itself and on its row of ``stains`` alone.
    """
    pixels = np.ascontiguousarray(pixels)
    mean, stretch = stains[:, 0, :, None], REFERENCE[1, :, None] / stains[:, 1, :, None]
    least = np.maximum((TISSUE - mean) * stretch + REFERENCE[0, :, None], LEAST_DENSITY)
    levels = _LEVELS / UNIT
    tissue = np.maximum((levels - mean) * stretch + REFERENCE[0, :, None], least)
    densities = np.where(levels < TISSUE, levels / TISSUE * least, tissue)
    tables = np.clip(np.rint(256 * 10**-densities - 1), 0, 255).astype(np.uint8)
    out = np.empty_like(pixels)
    _look_up_kernel(pixels, tables, out)
    return out


@dataclass(frozen=True)
class StainedPixels:
    """Patches and the stains of their slides, cut into shards together.

    Attributes
    ----------
    pixels : ndarray of shape (n, height, width, 3), dtype uint8
    stains : ndarray of shape (n, 2, 3), dtype float64
        From :func:`stains_of`.
    """

    pixels: np.ndarray
    stains: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.pixels.shape

    @property
    def dtype(self) -> Any:
        """Of the array."""
        return self.pixels.dtype

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: slice | np.ndarray) -> Any:
        return StainedPixels(self.pixels[rows], self.stains[rows])


class NormalisedPixels(StainedPixels):
    """Stain-normalised patches as an array that is computed as it is read: no copy of all patches is kept."""

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return normalise_by_slide(self.pixels[rows], self.stains[rows])


def normalised_name(column: str) -> str:
    """Name of a column of stain-normalised patches."""
    family, statistic, channel, region = column.split("_")
    return f"{family}_{statistic}-normalised_{channel}_{region}"


def _moments(sums: np.ndarray) -> np.ndarray:
    """Means and standard deviations, (2, 3), of tissue that was summed up."""
    mean, square = sums[1:4] / UNIT / sums[0], sums[4:] / UNIT**2 / sums[0]
    return np.stack([mean, np.maximum(np.sqrt(np.maximum(square - mean * mean, 0)), LEAST_SPREAD)])


#: Density of each level, in ten-thousandths.
_LEVELS = np.rint(-UNIT * np.log10((np.arange(256) + 1) / 256)).astype(np.int64)


@kernel
def _sum_kernel(pixels: np.ndarray, levels: np.ndarray, least: int, sums: np.ndarray) -> None:
    for n in range(pixels.shape[0]):
        for y in range(pixels.shape[1]):
            for x in range(pixels.shape[2]):
                red, green, blue = levels[pixels[n, y, x, 0]], levels[pixels[n, y, x, 1]], levels[pixels[n, y, x, 2]]
                if red > least and green > least and blue > least:
                    sums[n, 0] += 1
                    sums[n, 1] += red
                    sums[n, 2] += green
                    sums[n, 3] += blue
                    sums[n, 4] += red * red
                    sums[n, 5] += green * green
                    sums[n, 6] += blue * blue


@kernel
def _look_up_kernel(pixels: np.ndarray, tables: np.ndarray, out: np.ndarray) -> None:
    for n in range(pixels.shape[0]):
        for y in range(pixels.shape[1]):
            for x in range(pixels.shape[2]):
                for channel in range(3):
                    out[n, y, x, channel] = tables[n, channel, pixels[n, y, x, channel]]
