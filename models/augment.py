"""What training shows a network of a patch: its stains altered at random, or normalised."""

from __future__ import annotations

import zlib

import numpy as np
from skimage.color import hed_from_rgb, rgb_from_hed

#: Optical density, by the natural logarithm, of the levels 0 to 255; +1: black stays finite.
_DENSITY = -np.log((np.arange(256) + 1.0) / 256.0)

#: Haematoxylin and eosin, rows of unit length over red, green and blue, and their densities' 99th percentile, to which
#: patches are normalised: the reference of Macenko et al., as used since. Nothing of it is learned here.
REFERENCE_STAINS = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
REFERENCE_AMOUNTS = np.array([1.9705, 1.0308])

#: Pixels of less density than this in some channel are glass; fewer stained ones than FEWEST tell no stain.
GLASS = 0.15
FEWEST = 64


def jitter_stains(patches: np.ndarray, strength: float, *, view: int, seed: int) -> np.ndarray:
    """Scale and shift each patch's haematoxylin, eosin and residual stain at random.

    Every stain's amount ``c`` becomes ``a c + b`` with ``a`` uniform in 1 ± `strength` and ``b`` in ± `strength`, in
    the units of optical density. What a patch gets follows from its pixels, `view` and `seed` alone, so that it is the
    same in any batch.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        RGB. Not modified.
    strength : float
        From 0, nothing, to 1.
    view : int
        Number of the variant.
    seed : int

    Returns
    -------
    ndarray of shape (n, height, width, 3), dtype uint8

    References
    ----------
    Tellez et al. (2018), IEEE Trans Med Imaging 37(9):2126-2136.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in 0..1; got {strength}.")
    if strength == 0 or not len(patches):
        return patches
    gains, shifts = np.empty((len(patches), 3)), np.empty((len(patches), 3))
    for row, patch in enumerate(patches):
        rng = np.random.default_rng([zlib.crc32(patch.tobytes()), view, seed])
        gains[row], shifts[row] = 1 + rng.uniform(-strength, strength, 3), rng.uniform(-strength, strength, 3)
    # Density to stains, there altered, and back: one 3 × 3 matrix and one offset a patch.
    turns = np.einsum("ij,nj,jk->nik", hed_from_rgb, gains, rgb_from_hed).astype(np.float32)
    offsets = (shifts @ rgb_from_hed).astype(np.float32)
    density = _DENSITY.astype(np.float32)[patches.reshape(len(patches), -1, 3)]
    return _levels(density @ turns + offsets[:, None]).reshape(patches.shape)


def normalise_stains(patches: np.ndarray) -> np.ndarray:
    """Give each patch the haematoxylin and eosin of a fixed reference.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        RGB. Not modified.

    Returns
    -------
    ndarray of shape (n, height, width, 3), dtype uint8
        A patch with too little stain to tell its stains apart is returned as it is.

    References
    ----------
    Macenko et al. (2009), IEEE ISBI, 1107-1110.
    """
    out = np.empty_like(patches)
    for target, patch in zip(out, patches, strict=True):
        target[:] = _normalise(patch)
    return out


def _normalise(patch: np.ndarray) -> np.ndarray:
    density = _DENSITY[patch.reshape(-1, 3)]
    stained = density[(density >= GLASS).all(axis=1)]
    if len(stained) < FEWEST:
        return patch
    stains = _stain_vectors(stained)
    if stains is None:
        return patch
    amounts = np.linalg.lstsq(stains.T, density.T, rcond=None)[0]
    most = np.percentile(amounts, 99, axis=1)
    if (most <= 0).any():
        return patch
    return _levels((amounts.T * (REFERENCE_AMOUNTS / most)) @ REFERENCE_STAINS).reshape(patch.shape)


def _stain_vectors(stained: np.ndarray) -> np.ndarray | None:
    """Haematoxylin and eosin (2, 3) as the robust extremes of the densities' plane; None where they are one."""
    plane = np.linalg.eigh(np.cov(stained.T))[1][:, :0:-1]  # of the two largest eigenvalues
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    angles = np.arctan2(*(stained @ plane).T[::-1])
    low, high = np.percentile(angles, [1, 99])
    if high - low < 1e-3:
        return None
    pair = np.stack([plane @ (np.cos(angle), np.sin(angle)) for angle in (low, high)])
    # Haematoxylin takes more of the red than eosin does.
    return pair if pair[0, 0] > pair[1, 0] else pair[::-1]


def _levels(density: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(256.0 * np.exp(-density) - 1.0), 0, 255).astype(np.uint8)
