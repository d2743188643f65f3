"""Where a slide shows tissue, found at low power: colour of the stains, a threshold held within bounds, no specks.

References
----------
Otsu (1979), IEEE Trans Syst Man Cybern 9(1):62-66 (threshold).
"""

from __future__ import annotations

import numpy as np

#: Micrometres a pixel of the picture in which tissue is looked for, as near as a power of two comes.
SPACING = 8.0

#: Chroma (see :func:`chroma`) below which nothing counts as tissue, and from which on everything does. Between them
#: Otsu's threshold decides, which on bare glass would part noise from noise, and on tissue throughout pink from violet.
LEAST, MOST = 0.05, 0.12

#: Share of red light below which a place is too dark for any stain at low power, as in :mod:`data.audit.measures`' ink.
_INK_RED = 90
#: Ink is blue or green where it takes up so many times as much red light as green light; haematoxylin takes up less.
_INK_RATIO = 1.2

#: mm²: smaller pieces of tissue are dirt, smaller holes are vessels and tears, smaller pieces of ink are none.
SPECK, HOLE, INK = 0.01, 0.05, 0.05

_DENSITY = (np.log10(256.0) - np.log10(np.arange(256) + 1.0)).astype(np.float32)


def chroma(picture: np.ndarray) -> np.ndarray:
    """How far green light is taken up beyond the colour that is taken up least.

    Haematoxylin and eosin take up green most and blue little; dust, shadows, pencil and the dark frame of a scan take
    up all colours alike.

    Parameters
    ----------
    picture : ndarray of shape (height, width, 3), dtype uint8

    Returns
    -------
    ndarray of shape (height, width), dtype float32
        Difference of optical densities, in decades; negative where something is green.
    """
    # The brighter of two colours is the one that is taken up less.
    least = _DENSITY[np.maximum(picture[..., 0], picture[..., 2])]
    return np.asarray(_DENSITY[picture[..., 1]] - least)


def is_ink(picture: np.ndarray) -> np.ndarray:
    """Blue, green and black ink: hardly any red light passes, and green passes more easily, or nothing does.

    Red ink cannot be told from blood and eosin by colour, and stays.

    Returns
    -------
    ndarray of shape (height, width), dtype bool
    """
    dark = picture[..., 0] < _INK_RED
    coloured = _DENSITY[picture[..., 0]] > _INK_RATIO * _DENSITY[picture[..., 1]]
    return np.asarray(dark & (coloured | (picture.max(axis=2) < 60)))


def threshold(values: np.ndarray) -> float:
    """Return Otsu's threshold of chroma, held between ``LEAST`` and ``MOST``."""
    counts, edges = np.histogram(np.clip(values, 0, 1), bins=256, range=(0, 1))
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(np.clip(edges[1 + int(np.argmax(np.nan_to_num(between)))], LEAST, MOST))


def find_tissue(picture: np.ndarray, spacing: float) -> np.ndarray:
    """Where a low-power picture shows tissue.

    Parameters
    ----------
    picture : ndarray of shape (height, width, 3), dtype uint8
    spacing : float
        Micrometres a pixel.

    Returns
    -------
    ndarray of shape (height, width), dtype bool
        Without pieces below ``SPECK`` and without holes below ``HOLE``. Nothing on bare glass.
    """
    from scipy import ndimage

    area = (spacing / 1000) ** 2
    values = ndimage.uniform_filter(chroma(picture), 3, mode="nearest")
    # Dense nuclei and keratin are as dark as ink in places; a pen's line is larger.
    ink = _without_small(is_ink(picture), INK / area)
    found = (values >= threshold(values[~ink] if not ink.all() else values)) & ~ink
    # Strands of tissue that a gap of a cell or two divides belong together; the frame is padded so that none is lost.
    found = ndimage.binary_closing(np.pad(found, 2), np.ones((3, 3), bool))[2:-2, 2:-2] & ~ink
    found = _without_small(found, SPECK / area)
    glass = _without_small(~found, HOLE / area, open_at_border=True)
    return np.asarray(~glass & ~ink)


def _without_small(mask: np.ndarray, least: float, *, open_at_border: bool = False) -> np.ndarray:
    """Drop connected pieces (diagonals connect) of fewer pixels, but for those that may go on beyond the border."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask, np.ones((3, 3), bool))
    kept = np.bincount(labels.ravel()) >= least
    if open_at_border:
        kept[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = True
    kept[0] = False
    return np.asarray(kept[labels])
