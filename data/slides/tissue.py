"""Tissue detection at low resolution: stain colour, a bounded Otsu threshold, and removal of specks.

References
----------
Otsu (1979), IEEE Trans Syst Man Cybern 9(1):62-66 (threshold).
"""

from __future__ import annotations

import numpy as np

#: Micrometres per pixel of the image for tissue detection; the image is scaled by the nearest power of two.
SPACING = 8.0

#: Bounds of Otsu's threshold of chroma (see :func:`chroma`). Without them, Otsu's threshold would split noise on bare
#: glass, and would separate pink from violet on slides full of tissue.
MIN_THRESHOLD, MAX_THRESHOLD = 0.05, 0.12

#: Red level, 0 to 255, below which a pixel is too dark for a stain at low resolution; as ``ink`` in
#: :mod:`data.audit.measures`.
_INK_RED = 90
#: Minimum ratio of red to green optical density of blue and green ink. The ratio of haematoxylin is lower.
_INK_RATIO = 1.2

#: Minimum areas in mm² of tissue, holes and ink. Smaller pieces of tissue are dirt, smaller holes are vessels and
#: tears, and smaller dark areas are not ink.
SPECK, HOLE, INK = 0.01, 0.05, 0.05

_DENSITY = (np.log10(256.0) - np.log10(np.arange(256) + 1.0)).astype(np.float32)


def chroma(picture: np.ndarray) -> np.ndarray:
    """Return the optical density of green minus the lower of the densities of red and blue.

    Haematoxylin and eosin absorb green most and blue little. Dust, shadows, pencil and the dark frame of a scan absorb
    all colours equally.

    Parameters
    ----------
    picture : ndarray of shape (height, width, 3), dtype uint8

    Returns
    -------
    ndarray of shape (height, width), dtype float32
        Difference of optical densities (log10 units); negative for green pixels.
    """
    # The brighter of the two colours has the lower density.
    minimum = _DENSITY[np.maximum(picture[..., 0], picture[..., 2])]
    return np.asarray(_DENSITY[picture[..., 1]] - minimum)


def is_ink(picture: np.ndarray) -> np.ndarray:
    """Return a mask of blue, green and black ink, which absorb most red light and either less green or all colours.

    Red ink is not detected: its colour resembles blood and eosin.

    Returns
    -------
    ndarray of shape (height, width), dtype bool
    """
    dark = picture[..., 0] < _INK_RED
    coloured = _DENSITY[picture[..., 0]] > _INK_RATIO * _DENSITY[picture[..., 1]]
    return np.asarray(dark & (coloured | (picture.max(axis=2) < 60)))


def threshold(values: np.ndarray) -> float:
    """Return Otsu's threshold of chroma, clipped to ``MIN_THRESHOLD``..``MAX_THRESHOLD``."""
    counts, edges = np.histogram(np.clip(values, 0, 1), bins=256, range=(0, 1))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(np.clip(edges[1 + int(np.argmax(np.nan_to_num(between)))], MIN_THRESHOLD, MAX_THRESHOLD))


def find_tissue(picture: np.ndarray, spacing: float) -> np.ndarray:
    """Return the tissue mask of a low-resolution image.

    Parameters
    ----------
    picture : ndarray of shape (height, width, 3), dtype uint8
    spacing : float
        Micrometres per pixel.

    Returns
    -------
    ndarray of shape (height, width), dtype bool
        Pieces smaller than ``SPECK`` are removed, and holes smaller than ``HOLE`` are filled. Bare glass gives an empty
        mask.
    """
    from scipy import ndimage

    area = (spacing / 1000) ** 2
    values = ndimage.uniform_filter(chroma(picture), 3, mode="nearest")
    # Dense nuclei and keratin can be as dark as ink, but pen lines are larger.
    ink = _remove_small(is_ink(picture), INK / area)
    tissue = (values >= threshold(values[~ink] if not ink.all() else values)) & ~ink
    # Closing joins strands separated by one or two pixels; padding preserves tissue at the border.
    tissue = ndimage.binary_closing(np.pad(tissue, 2), np.ones((3, 3), bool))[2:-2, 2:-2] & ~ink
    tissue = _remove_small(tissue, SPECK / area)
    glass = _remove_small(~tissue, HOLE / area, keep_at_border=True)
    return np.asarray(~glass & ~ink)


def _remove_small(mask: np.ndarray, minimum: float, *, keep_at_border: bool = False) -> np.ndarray:
    """Remove 8-connected pieces below a number of pixels, optionally except those that touch the border."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask, np.ones((3, 3), bool))
    kept = np.bincount(labels.ravel()) >= minimum
    if keep_at_border:
        kept[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = True
    kept[0] = False
    return np.asarray(kept[labels])
