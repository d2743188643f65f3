"""Stain normalisation by slide: scale the optical density of a slide's tissue to a fixed mean and standard deviation.

The method follows Reinhard et al. (2001), IEEE Computer Graphics and Applications 21(5), 34-41, applied to the density
of tissue only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from histoblend.data.storage.arrays import StoredRows
from histoblend.features.handcrafted.kernel import kernel
from histoblend.features.handcrafted.slide_context import trust

#: Target mean and standard deviation of the density per channel, typical of a lymph node in PatchCamelyon. They are
#: fixed: nothing is learned, and a slide gets the same result in every run.
REFERENCE = np.array([[0.38, 0.65, 0.34], [0.18, 0.33, 0.14]])
#: Densities are stored as integers in units of 1 / 10,000, so sums do not depend on their order.
UNIT = 10_000
#: Minimum density of tissue, in all three channels.
TISSUE = 0.15
#: Minimum standard deviation of a channel, which limits the scaling of nearly uniform tissue.
MIN_SPREAD = 0.02
#: Minimum density that the lightest tissue is mapped to, so glass stays lighter than tissue.
MIN_DENSITY = 0.02


def stain_sums(pixels: np.ndarray) -> np.ndarray:
    """Sum the optical densities of each patch's tissue.

    Density is −log10((level + 1) / 256), rounded to 1 / 10,000. Tissue is the pixels above 0.15 in all channels.

    Parameters
    ----------
    pixels : ndarray of shape (n, height, width, 3), dtype uint8

    Returns
    -------
    ndarray of shape (n, 7), dtype int64
        Number of tissue pixels; sums of the red, green and blue density in 1 / 10,000; sums of their squares.
    """
    sums = np.zeros((len(pixels), 7), np.int64)
    _sum_kernel(np.ascontiguousarray(pixels), _LEVELS, int(TISSUE * UNIT), sums)
    return sums


def stains_of(sums: np.ndarray, slides: np.ndarray, pixels: int) -> np.ndarray:
    """Return the mean and standard deviation that each patch is normalised with.

    They are w times the statistics of the slide's tissue plus 1 − w times :data:`REFERENCE`, which leaves a patch
    unchanged. The trust w rises from 0 to 1 as the slide's tissue grows from 4 to 16 full patches
    (:func:`features.handcrafted.slide_context.trust`). No labels and no patches of other slides are used.

    Parameters
    ----------
    sums : ndarray of shape (n, 7), dtype int64
        From :func:`stain_sums`.
    slides : ndarray of shape (n,), dtype object
        Slide of each patch; None if unknown, which has trust 0.
    pixels : int
        Number of pixels of a patch.

    Returns
    -------
    ndarray of shape (n, 2, 3), dtype float64
        Means and standard deviations of the red, green and blue density.
    """
    stains = np.tile(REFERENCE, (len(sums), 1, 1))
    names = pd.Series(slides, dtype=object)
    for rows in names.groupby(names, sort=False).indices.values():
        total = sums[rows].sum(axis=0)
        if weight := trust(int(total[0]) / pixels):
            stains[rows] = weight * _moments(total) + (1 - weight) * REFERENCE
    return stains


def normalise_by_slide(pixels: np.ndarray, stains: np.ndarray) -> np.ndarray:
    """Normalise the density of tissue to :data:`REFERENCE`, channel by channel.

    Densities of tissue are shifted and scaled. Densities below 0.15 are only scaled, so white stays white: tinted glass
    would mislead a network.

    Parameters
    ----------
    pixels : ndarray of shape (n, height, width, 3), dtype uint8
    stains : ndarray of shape (n, 2, 3), dtype float64
        Statistics of each patch, from :func:`stains_of`.

    Returns
    -------
    ndarray of shape (n, height, width, 3), dtype uint8
        Each patch depends only on its own pixels and its row of ``stains``.
    """
    pixels = np.ascontiguousarray(pixels)
    mean, scale = stains[:, 0, :, None], REFERENCE[1, :, None] / stains[:, 1, :, None]
    lightest = np.maximum((TISSUE - mean) * scale + REFERENCE[0, :, None], MIN_DENSITY)
    levels = _LEVELS / UNIT
    tissue = np.maximum((levels - mean) * scale + REFERENCE[0, :, None], lightest)
    densities = np.where(levels < TISSUE, levels / TISSUE * lightest, tissue)
    tables = np.clip(np.rint(256 * 10**-densities - 1), 0, 255).astype(np.uint8)
    out = np.empty_like(pixels)
    _look_up_kernel(pixels, tables, out)
    return out


@dataclass(frozen=True)
class StainedPixels:
    """Patches and the stain statistics of their slides, sliced together.

    Attributes
    ----------
    pixels : ndarray or StoredRows of shape (n, height, width, 3), dtype uint8
    stains : ndarray of shape (n, 2, 3), dtype float64
        From :func:`stains_of`.
    """

    pixels: np.ndarray | StoredRows
    stains: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pixels."""
        return self.pixels.shape

    @property
    def dtype(self) -> Any:
        """Type of the pixels."""
        return self.pixels.dtype

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: slice | np.ndarray) -> Any:
        return StainedPixels(self.pixels[rows], self.stains[rows])


class NormalisedPixels(StainedPixels):
    """Stain-normalised patches, computed when they are read, without a copy of all patches."""

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return normalise_by_slide(self.pixels[rows], self.stains[rows])


def normalised_name(column: str) -> str:
    """Return the name of a column for stain-normalised patches."""
    family, statistic, channel, region = column.split("_")
    return f"{family}_{statistic}-normalised_{channel}_{region}"


def _moments(sums: np.ndarray) -> np.ndarray:
    """Return means and standard deviations, (2, 3), from the sums over tissue."""
    mean, mean_square = sums[1:4] / UNIT / sums[0], sums[4:] / UNIT**2 / sums[0]
    return np.stack([mean, np.maximum(np.sqrt(np.maximum(mean_square - mean * mean, 0)), MIN_SPREAD)])


#: Density of each grey level, in 1 / 10,000.
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
