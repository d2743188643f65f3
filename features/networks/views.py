"""Views of a patch for a network: resized to squares, and the eight symmetries of the square."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from histoblend.data.errors import InputError

SYMMETRIES = 8
Size = int | None
Sizes = Size | Sequence[Size]


def check_sizes(size: Sizes) -> tuple[Size, ...]:
    """Return one or more patch sizes as a tuple; raise InputError for anything else."""
    sizes = tuple(size) if isinstance(size, Sequence) else (size,)
    for side in sizes:
        if side is not None and (isinstance(side, bool) or not isinstance(side, int) or side < 1):
            raise InputError(f"size must be a positive number of pixels or None; got {side!r}.")
    if not sizes or len(set(sizes)) < len(sizes):
        raise InputError(f"sizes must be one or more different numbers; got {sizes}.")
    return sizes


def symmetries(patches: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the 8 symmetries of patches (n, height, width, 3) as views: 4 rotations, and 4 of the mirror image."""
    for mirrored in (patches, patches[:, :, ::-1]):
        for quarter_turns in range(4):
            yield np.rot90(mirrored, quarter_turns, axes=(1, 2))


def resize(patches: np.ndarray, size: Size) -> np.ndarray:
    """Resize patches to squares with Pillow's bicubic filter, rounded to 0..255.

    The filter is Keys' kernel with a = -0.5, pixel centres at half-integers, truncated and renormalised at edges, and
    widened for shrinking. Resizing is outside the network, so all engines do it alike and the input stays 0..255.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
    size : int or None
        New side in pixels. None or the present size returns the input.

    Returns
    -------
    ndarray of shape (n, size, size, 3), dtype uint8
    """
    if size is None or patches.shape[1:3] == (size, size):
        return patches
    from PIL import Image

    resized = np.empty((len(patches), size, size, 3), np.uint8)
    for target, patch in zip(resized, patches, strict=True):
        image = Image.fromarray(np.ascontiguousarray(patch))
        target[:] = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    return resized
