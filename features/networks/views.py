"""Views of a patch that a network sees: resized to squares, and the eight symmetries of the square."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from histoblend.data.errors import InputError

SYMMETRIES = 8
Size = int | None
Sizes = Size | Sequence[Size]


def check_sizes(size: Sizes) -> tuple[Size, ...]:
    """One or more sides that patches are resized to, as a tuple; raises InputError for anything else."""
    sizes = tuple(size) if isinstance(size, Sequence) else (size,)
    for one in sizes:
        if one is not None and (isinstance(one, bool) or not isinstance(one, int) or one < 1):
            raise InputError(f"size must be a positive number of pixels or None; got {one!r}.")
    if not sizes or len(set(sizes)) < len(sizes):
        raise InputError(f"sizes must be one or more different ones; got {sizes}.")
    return sizes


def symmetries(patches: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the 8 symmetries of the square of patches (n, height, width, 3) as views: 4 turns, and 4 of the mirror."""
    for mirrored in (patches, patches[:, :, ::-1]):
        for turns in range(4):
            yield np.rot90(mirrored, turns, axes=(1, 2))


def resize(patches: np.ndarray, size: Size) -> np.ndarray:
    """Resize patches to squares by Pillow's bicubic filter, rounded to 0..255.

    Keys' kernel with a = -0.5, pixel centres at half-integers, edges cut and renormalised, widened when shrinking. One
    rule for every engine, outside of the network, so that the input contract stays 0..255.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
    size : int or None
        None, or the size that they have, returns them as they are.

    Returns
    -------
    ndarray of shape (n, size, size, 3), dtype uint8
    """
    if size is None or patches.shape[1:3] == (size, size):
        return patches
    from PIL import Image

    resized = np.empty((len(patches), size, size, 3), np.uint8)
    for target, patch in zip(resized, patches, strict=True):
        picture = Image.fromarray(np.ascontiguousarray(patch))
        target[:] = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
    return resized
