"""Image planes that several feature families share, such as grey levels and stain amounts."""

from __future__ import annotations

from functools import cache, cached_property

import numpy as np
from skimage.color import hed_from_rgb

from histoblend.features.handcrafted.kernel import kernel

#: Stain amounts that map to level 255, in the units of `skimage.color.rgb2hed`: haematoxylin, eosin, residual.
STAIN_SCALES = (0.25, 0.15, 0.15)
SMALLEST = 32


def check_patches(patches: np.ndarray) -> None:
    """Raise ValueError or TypeError unless these are uint8 RGB patches of at least the size of the centre."""
    patches = np.asarray(patches)
    shape = patches.shape
    if len(shape) != 4 or shape[-1] != 3:
        hint = " For a single patch, give patch[np.newaxis]." if len(shape) == 3 and shape[-1] == 3 else ""
        raise ValueError(f"patches must have shape (n, height, width, 3); got {shape}.{hint}")
    if min(shape[1:3]) < SMALLEST:
        raise ValueError(
            f"patches must be at least {SMALLEST} × {SMALLEST} pixels, the size of the centre; "
            f"got {shape[1]} × {shape[2]}."
        )
    if patches.dtype != np.uint8:
        raise TypeError(f"patches must be uint8, 0 to 255; got {patches.dtype}. Scale and round before calling.")


class Planes:
    """Patches and the planes computed from them. Each plane is computed once, on first access.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        RGB, at least 32 × 32 pixels. A read-only memory map works too.

    Attributes
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        Always a writable, contiguous copy, so that Numba compiles each kernel only once.

    Raises
    ------
    ValueError
        If the shape is wrong, or the patches are smaller than the centre of 32 × 32 pixels.
    TypeError
        If the values are not uint8.
    """

    def __init__(self, patches: np.ndarray) -> None:
        check_patches(patches)
        self.patches = np.array(patches, order="C", subok=False)

    def __len__(self) -> int:
        """Return the number of patches."""
        return len(self.patches)

    @cached_property
    def channels(self) -> np.ndarray:
        """Red, green and blue; shape (3, n, height, width), dtype uint8."""
        levels = np.empty((3, *self.patches.shape[:3]), np.uint8)
        _channel_kernel(self.patches.reshape(-1), levels.reshape(3, -1))
        return levels

    @cached_property
    def grey(self) -> np.ndarray:
        """Luminance in 8 bits with the weights of scikit-image's `rgb2gray`, rounded half up.

        The weights are integers, so the result does not depend on the order of summation.
        Shape (n, height, width), dtype uint8.
        """
        levels = np.empty(self.patches.shape[:3], np.uint8)
        _grey_kernel(self.channels.reshape(3, -1), levels.reshape(-1))
        return levels

    @cached_property
    def stains(self) -> np.ndarray:
        """Haematoxylin, eosin and residual amounts in 8 bits; shape (3, n, height, width), dtype uint8.

        Level 255 means an amount of `STAIN_SCALES` or more. The scale is fixed, which keeps patches comparable.
        It covers about 99 % of the pixels of ordinary tissue.
        Ruifrok & Johnston (2001), Anal Quant Cytol Histol 23(4):291-299.
        """
        levels = np.empty((3, *self.patches.shape[:3]), np.uint8)
        scales = 255 / np.array(STAIN_SCALES)
        _stain_kernel(
            self.channels.reshape(3, -1), density_table(), hed_from_rgb.T * scales[:, None], levels.reshape(3, -1)
        )
        return levels

    @cached_property
    def absorbed(self) -> np.ndarray:
        """Light absorbed in red: 255 minus red; shape (n, height, width), dtype uint8.

        Haematoxylin absorbs red and eosin hardly does, so this plane shows nuclei whatever the shades of the stains.
        """
        return ~self.channels[0]

    @property
    def haematoxylin(self) -> np.ndarray:
        """Haematoxylin amounts in 8 bits; shape (n, height, width), dtype uint8."""
        return self.stains[0]

    @property
    def eosin(self) -> np.ndarray:
        """Eosin amounts in 8 bits; shape (n, height, width), dtype uint8."""
        return self.stains[1]


@cache
def density_table() -> np.ndarray:
    """Relative optical density of each 8-bit level, as `skimage.color.separate_stains` defines it.

    Returns
    -------
    ndarray of shape (256,), dtype float64
        0 for white (255), 1 for black (0). The logarithm has base 1e-6, and values below 1e-6 are raised to 1e-6.
    """
    table = np.log(np.maximum(np.arange(256) / 255.0, 1e-6)) / np.log(1e-6)
    table.setflags(write=False)
    return table


@kernel
def _channel_kernel(pixels: np.ndarray, channels: np.ndarray) -> None:
    # one loop per channel: a joint loop vectorises badly
    for k in range(channels.shape[1]):
        channels[0, k] = pixels[3 * k]
    for k in range(channels.shape[1]):
        channels[1, k] = pixels[3 * k + 1]
    for k in range(channels.shape[1]):
        channels[2, k] = pixels[3 * k + 2]


@kernel
def _grey_kernel(channels: np.ndarray, levels: np.ndarray) -> None:
    for k in range(levels.size):
        red, green, blue = np.int32(channels[0, k]), np.int32(channels[1, k]), np.int32(channels[2, k])
        # 32-bit division by a constant becomes a multiplication
        levels[k] = np.uint32(2125 * red + 7154 * green + 721 * blue + 5000) // np.uint32(10000)


@kernel
def _stain_kernel(channels: np.ndarray, densities: np.ndarray, weights: np.ndarray, levels: np.ndarray) -> None:
    """Compute the levels of three stains in blocks of 256 pixels; looking up first lets the sums be vectorised."""
    density = np.empty((3, 256))
    for start in range(0, levels.shape[1], 256):
        size, first = min(256, levels.shape[1] - start), np.uint64(start)
        for channel in range(3):
            for k in range(size):
                density[channel, k] = densities[channels[channel, np.uint64(k) + first]]
        for stain in range(3):
            red, green, blue = weights[stain, 0], weights[stain, 1], weights[stain, 2]
            for k in range(size):
                amount = red * density[0, k] + green * density[1, k] + blue * density[2, k]
                levels[stain, np.uint64(k) + first] = np.uint8(np.int32(min(max(amount, 0.0) + 0.5, 255.0)))
