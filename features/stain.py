"""Planes that several feature families share: grey levels and stain densities of a batch of patches."""

from __future__ import annotations

from functools import cache

import numba
import numpy as np
from skimage.color import hed_from_rgb

HAEMATOXYLIN_SCALE = 0.25
EOSIN_SCALE = 0.15


SMALLEST = 32


def as_batch(patches: np.ndarray) -> np.ndarray:
    """Check a batch of patches and copy it into plain memory.

    The copy is writable and contiguous whatever comes (a memory map, a slice), so that kernels are compiled once.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        RGB, at least 32 × 32 pixels.

    Returns
    -------
    ndarray of shape (n, height, width, 3), dtype uint8

    Raises
    ------
    ValueError
        When the shape is another, or patches are smaller than the centre of 32 × 32 pixels.
    TypeError
        When the values are not uint8.
    """
    patches = np.asarray(patches)
    if patches.ndim != 4 or patches.shape[-1] != 3:
        raise ValueError(f"patches must have shape (n, height, width, 3); got {patches.shape}.")
    if min(patches.shape[1:3]) < SMALLEST:
        raise ValueError(
            f"patches must be at least {SMALLEST} × {SMALLEST} pixels, the size of the centre; "
            f"got {patches.shape[1]} × {patches.shape[2]}."
        )
    if patches.dtype != np.uint8:
        raise TypeError(f"patches must be uint8, 0 to 255; got {patches.dtype}. Scale and round before calling.")
    return np.array(patches, order="C", subok=False)


@cache
def density_table() -> np.ndarray:
    """Relative optical density of each 8-bit level, as `skimage.color.separate_stains` defines it.

    Returns
    -------
    ndarray of shape (256,), dtype float64
        0 for white (255), 1 for black (0); the logarithm to the base 1e-6, levels below 1e-6 being lifted to it.
    """
    table = np.log(np.maximum(np.arange(256) / 255.0, 1e-6)) / np.log(1e-6)
    table.setflags(write=False)
    return table


def grey_levels(patches: np.ndarray) -> np.ndarray:
    """Luminance in 8 bits: scikit-image's `rgb2gray` weights, rounded half up.

    The weights are applied as integers, so the result does not depend on the order of a floating-point sum.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        As `as_batch` returns them.

    Returns
    -------
    ndarray of shape (n, height, width), dtype uint8
    """
    levels = np.empty(patches.shape[:3], np.uint8)
    _grey_kernel(patches, levels)
    return levels


def stain_levels(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin and eosin amounts in 8 bits.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        As `as_batch` returns them.

    Returns
    -------
    tuple of two ndarrays of shape (n, height, width), dtype uint8
        Haematoxylin, where 255 stands for 0.25 and more, and eosin, where 255 stands for 0.15 and more, in the
        units of `skimage.color.rgb2hed`. A fixed scale keeps patches comparable; the two ends hold all but about
        one pixel in a hundred of ordinary tissue.

    References
    ----------
    Ruifrok & Johnston (2001), Anal Quant Cytol Histol 23(4):291-299.
    """
    haematoxylin = np.empty(patches.shape[:3], np.uint8)
    eosin = np.empty(patches.shape[:3], np.uint8)
    scales = np.array([255 / HAEMATOXYLIN_SCALE, 255 / EOSIN_SCALE])
    _stain_kernel(patches, density_table(), hed_from_rgb, scales, haematoxylin, eosin)
    return haematoxylin, eosin


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _grey_kernel(patches: np.ndarray, levels: np.ndarray) -> None:
    n, height, width, _ = patches.shape
    for i in range(n):
        for row in range(height):
            for column in range(width):
                red = np.int32(patches[i, row, column, 0])
                green = np.int32(patches[i, row, column, 1])
                blue = np.int32(patches[i, row, column, 2])
                levels[i, row, column] = (2125 * red + 7154 * green + 721 * blue + 5000) // 10000


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _stain_kernel(
    patches: np.ndarray,
    density: np.ndarray,
    unmix: np.ndarray,
    scales: np.ndarray,
    haematoxylin: np.ndarray,
    eosin: np.ndarray,
) -> None:
    n, height, width, _ = patches.shape
    for i in range(n):
        for row in range(height):
            for column in range(width):
                red = density[patches[i, row, column, 0]]
                green = density[patches[i, row, column, 1]]
                blue = density[patches[i, row, column, 2]]
                amount = red * unmix[0, 0] + green * unmix[1, 0] + blue * unmix[2, 0]
                haematoxylin[i, row, column] = np.uint8(min(max(amount, 0.0) * scales[0] + 0.5, 255.0))
                amount = red * unmix[0, 1] + green * unmix[1, 1] + blue * unmix[2, 1]
                eosin[i, row, column] = np.uint8(min(max(amount, 0.0) * scales[1] + 0.5, 255.0))
