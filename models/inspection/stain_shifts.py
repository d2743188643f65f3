"""Altered stains: random shifts for each slide, or stains exchanged between groups of slides."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from skimage.color import hed_from_rgb, rgb_from_hed

from histoblend.models.inspection.stain import (
    VECTORS,
    StainGroups,
)

#: Largest relative scaling and shift of the stains. The default jitter in training is 0.1.
STRENGTHS = (0.05, 0.1, 0.2)
#: Signs of the two draws at each strength: the second shifts every slide in the opposite direction.
SIGNS = (1, -1)
#: Two stain vectors count as the same if the sine of the angle between them is smaller than this.
SMALLEST_SINE = 0.05


@dataclass(frozen=True)
class Alteration:
    """An alteration of the stains of n patches.

    The optical density (natural logarithm) is multiplied by a matrix and shifted.

    Attributes
    ----------
    kind : str
        "shift": random scaling and shift; "restain": change to the stain vectors of the other group of slides.
    strength : float
        0 leaves the patches unchanged.
    draw : int
    turns : ndarray of shape (n, 3, 3)
        Matrices.
    offsets : ndarray of shape (n, 3)
        Shifts.
    """

    kind: str
    strength: float
    draw: int
    turns: np.ndarray
    offsets: np.ndarray

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Return altered copies of patches (n, height, width, 3) uint8."""
        if self.strength == 0:
            return patches
        # +1 keeps black finite.
        density = -np.log((np.arange(256) + 1.0) / 256.0).astype(np.float32)[patches.reshape(len(patches), -1, 3)]
        altered = density @ self.turns.astype(np.float32) + self.offsets.astype(np.float32)[:, None]
        levels = np.rint(256.0 * np.exp(-altered) - 1.0)
        return np.clip(levels, 0, 255).astype(np.uint8).reshape(patches.shape)


def shift(ways: np.ndarray, strength: float, draw: int) -> Alteration:
    """Scale and shift haematoxylin, eosin and the residual, in the same way for all patches of a slide.

    The formula is that of :func:`models.augment.jitter_stains`, which draws random values per patch. Here the values
    are given per slide, because stain differs between slides.

    Parameters
    ----------
    ways : ndarray of shape (n, 6)
        From :func:`directions`.
    strength : float
        The amount ``c`` of each stain becomes ``(1 + strength · way) c + strength · way'``.
    draw : int
        Index into `SIGNS`.

    References
    ----------
    Tellez et al. (2018), IEEE Trans Med Imaging 37(9):2126-2136.
    """
    moves = strength * SIGNS[draw] * ways
    turns = np.einsum("ij,nj,jk->nik", hed_from_rgb, 1 + moves[:, :3], rgb_from_hed)
    return Alteration("shift", strength, draw, turns, moves[:, 3:] @ rgb_from_hed)


def restain(slides: np.ndarray, groups: StainGroups) -> Alteration:
    """Give each slide the stain vectors of the other group of slides, and keep the amounts of its stains.

    The other group's vectors are the medians over its slides. A slide is left unchanged if it is in no group, or if its
    two stain vectors are almost the same.

    Parameters
    ----------
    slides : ndarray of shape (n,), str
        Slide of each patch.
    groups : StainGroups
        Must include the slides' stain vectors.
    """
    known = groups.slides.set_index("slide")
    other = {
        name: _stain_basis(known.loc[known.group != name, list(VECTORS)].median().to_numpy()) for name in ("A", "B")
    }
    matrices = {}
    for name in set(slides):
        matrices[name] = np.eye(3)
        if name in known.index:
            own = _stain_basis(known.loc[name, list(VECTORS)].to_numpy(dtype=float))
            if abs(np.linalg.det(own)) >= SMALLEST_SINE:
                matrices[name] = np.linalg.inv(own) @ other[known.group[name]]
    return Alteration("restain", 1.0, 0, np.stack([matrices[name] for name in slides]), np.zeros((len(slides), 3)))


def _stain_basis(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors of haematoxylin, eosin and their normal, as rows. The determinant is the sine of the angle."""
    pair = vectors.reshape(2, 3) / np.linalg.norm(vectors.reshape(2, 3), axis=1, keepdims=True)
    normal = np.cross(*pair)
    size = np.linalg.norm(normal)
    return np.vstack([pair, normal / size if size > 0 else normal])


def directions(slides: np.ndarray, seed: int) -> np.ndarray:
    """Random directions in which the stains of each slide are scaled and shifted.

    Parameters
    ----------
    slides : ndarray of shape (n,), str
        Slide of each patch.
    seed : int

    Returns
    -------
    ndarray of shape (n, 6), dtype float64
        Three gains and three shifts between −1 and 1, to be multiplied by a strength. They are the same for all patches
        of a slide and do not depend on the other slides.
    """
    ways = {name: np.random.default_rng([zlib.crc32(name.encode()), seed]).uniform(-1, 1, 6) for name in set(slides)}
    return np.stack([ways[name] for name in slides])


def alterations(slides: np.ndarray, groups: StainGroups | None, seed: int) -> list[Alteration]:
    """List all alterations for patches of these slides; the first one leaves the patches unchanged."""
    ways = directions(slides, seed)
    shifts = [shift(ways, 0.0, 0)]
    shifts += [shift(ways, strength, draw) for strength in STRENGTHS for draw in range(len(SIGNS))]
    return shifts if groups is None else [*shifts, restain(slides, groups)]
