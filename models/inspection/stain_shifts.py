"""Altered stains: shifted at random, slide by slide, or exchanged between groups of slides."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from skimage.color import hed_from_rgb, rgb_from_hed

from histoblend.models.inspection.stain import (
    VECTORS,
    StainGroups,
)

#: How far stains are scaled and shifted at most; the network's training alters them by 0.1 unless told otherwise.
STRENGTHS = (0.05, 0.1, 0.2)
#: Draws at each strength: the second shifts every slide the other way.
SIGNS = (1, -1)
#: Two stain vectors with less than this as the sine of their angle count as one.
FLATTEST = 0.05


@dataclass(frozen=True)
class Alteration:
    """One way to alter the stains of n patches: their optical density (natural logarithm) times a matrix, plus a shift.

    Attributes
    ----------
    kind : str
        "shift", by the strength at random, or "restain", to the stain vectors of the other group of slides.
    strength : float
        0 leaves the patches as they are.
    draw : int
    turns : ndarray of shape (n, 3, 3)
    offsets : ndarray of shape (n, 3)
    """

    kind: str
    strength: float
    draw: int
    turns: np.ndarray
    offsets: np.ndarray

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Alter patches (n, height, width, 3) uint8, which are not modified."""
        if self.strength == 0:
            return patches
        # +1: black stays finite.
        density = -np.log((np.arange(256) + 1.0) / 256.0).astype(np.float32)[patches.reshape(len(patches), -1, 3)]
        altered = density @ self.turns.astype(np.float32) + self.offsets.astype(np.float32)[:, None]
        levels = np.rint(256.0 * np.exp(-altered) - 1.0)
        return np.clip(levels, 0, 255).astype(np.uint8).reshape(patches.shape)


def shift(ways: np.ndarray, strength: float, draw: int) -> Alteration:
    """Scale and shift haematoxylin, eosin and the residual, all patches of a slide alike.

    What :func:`models.augment.jitter_stains` draws for each patch is given here, as stain differs between slides.

    Parameters
    ----------
    ways : ndarray of shape (n, 6)
        From :func:`directions`.
    strength : float
        Every stain's amount ``c`` becomes ``(1 + strength · way) c + strength · way'``.
    draw : int
        Place in `SIGNS`.

    References
    ----------
    Tellez et al. (2018), IEEE Trans Med Imaging 37(9):2126-2136.
    """
    moves = strength * SIGNS[draw] * ways
    turns = np.einsum("ij,nj,jk->nik", hed_from_rgb, 1 + moves[:, :3], rgb_from_hed)
    return Alteration("shift", strength, draw, turns, moves[:, 3:] @ rgb_from_hed)


def restain(slides: np.ndarray, groups: StainGroups) -> Alteration:
    """Give each slide the stain vectors of the other group of slides, and leave the amounts of its stains alone.

    The other group's vectors are the medians over its slides. Slides in no group, and slides whose own two vectors are
    almost one, stay as they are.

    Parameters
    ----------
    slides : ndarray of shape (n,), str
    groups : StainGroups
        With the slides' stain vectors.
    """
    known = groups.slides.set_index("slide")
    other = {name: _frame(known.loc[known.group != name, list(VECTORS)].median().to_numpy()) for name in ("A", "B")}
    turns = {}
    for name in set(slides):
        turns[name] = np.eye(3)
        if name in known.index:
            own = _frame(known.loc[name, list(VECTORS)].to_numpy(dtype=float))
            if abs(np.linalg.det(own)) >= FLATTEST:
                turns[name] = np.linalg.inv(own) @ other[known.group[name]]
    return Alteration("restain", 1.0, 0, np.stack([turns[name] for name in slides]), np.zeros((len(slides), 3)))


def _frame(vectors: np.ndarray) -> np.ndarray:
    """Haematoxylin, eosin and what is at right angles to both: rows of length 1, their volume the sine of the angle."""
    pair = vectors.reshape(2, 3) / np.linalg.norm(vectors.reshape(2, 3), axis=1, keepdims=True)
    across = np.cross(*pair)
    size = np.linalg.norm(across)
    return np.vstack([pair, across / size if size > 0 else across])


def directions(slides: np.ndarray, seed: int) -> np.ndarray:
    """Which way the stains of each patch's slide are scaled and shifted.

    Parameters
    ----------
    slides : ndarray of shape (n,), str
    seed : int

    Returns
    -------
    ndarray of shape (n, 6), dtype float64
        Three gains and three shifts in −1 to 1, by which a strength is multiplied; the same for all patches of a slide,
        whatever other slides there are.
    """
    of = {name: np.random.default_rng([zlib.crc32(name.encode()), seed]).uniform(-1, 1, 6) for name in set(slides)}
    return np.stack([of[name] for name in slides])


def alterations(slides: np.ndarray, groups: StainGroups | None, seed: int) -> list[Alteration]:
    """All ways in which patches of these slides are altered; the first leaves them as they are."""
    ways = directions(slides, seed)
    found = [shift(ways, 0.0, 0)]
    found += [shift(ways, strength, draw) for strength in STRENGTHS for draw in range(len(SIGNS))]
    return found if groups is None else [*found, restain(slides, groups)]
