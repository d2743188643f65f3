"""Stain augmentation and stain normalisation of patches."""

from __future__ import annotations

import zlib

import numpy as np
from skimage.color import hed_from_rgb, rgb_from_hed

#: Optical density (natural logarithm) of the levels 0 to 255. Adding 1 keeps black finite.
_DENSITY = -np.log((np.arange(256) + 1.0) / 256.0)

#: The usual reference for Macenko normalisation: unit vectors of haematoxylin and eosin (rows) over red, green and
#: blue, and the 99th percentile of their amounts. These are constants: nothing is learned from the data.
REFERENCE_STAINS = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
REFERENCE_AMOUNTS = np.array([1.9705, 1.0308])

#: Pixels whose density is below GLASS in any channel are glass. Stains are not estimated from fewer than
#: MIN_STAINED_PIXELS other pixels.
GLASS = 0.15
MIN_STAINED_PIXELS = 64


def jitter_stains(patches: np.ndarray, strength: float, *, view: int, seed: int) -> np.ndarray:
    """Scale and shift each patch's haematoxylin, eosin and residual stain at random.

    The amount ``c`` of each stain becomes ``a c + b``, with ``a`` uniform in 1 ± `strength` and ``b`` uniform in
    ± `strength`, in units of optical density. ``a`` and ``b`` depend only on the patch's pixels, `view` and `seed`, so
    a patch is altered in the same way in any batch.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        RGB. Not modified.
    strength : float
        From 0 (no change) to 1.
    view : int
        Number of the random variant.
    seed : int

    Returns
    -------
    ndarray of shape (n, height, width, 3), dtype uint8

    References
    ----------
    Tellez et al. (2018), IEEE Trans Med Imaging 37(9):2126-2136.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be between 0 and 1; got {strength}.")
    if strength == 0 or not len(patches):
        return patches
    gains, shifts = np.empty((len(patches), 3)), np.empty((len(patches), 3))
    for row, patch in enumerate(patches):
        rng = np.random.default_rng([zlib.crc32(patch.tobytes()), view, seed])
        gains[row], shifts[row] = 1 + rng.uniform(-strength, strength, 3), rng.uniform(-strength, strength, 3)
    # Unmixing, scaling and remixing the stains is one 3 × 3 matrix and one offset per patch.
    matrices = np.einsum("ij,nj,jk->nik", hed_from_rgb, gains, rgb_from_hed).astype(np.float32)
    offsets = (shifts @ rgb_from_hed).astype(np.float32)
    density = _DENSITY.astype(np.float32)[patches.reshape(len(patches), -1, 3)]
    return _levels(density @ matrices + offsets[:, None]).reshape(patches.shape)


def normalise_stains(patches: np.ndarray) -> np.ndarray:
    """Normalise the haematoxylin and eosin of each patch to a fixed reference.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        RGB. Not modified.

    Returns
    -------
    ndarray of shape (n, height, width, 3), dtype uint8
        A patch whose stains cannot be told apart is returned unchanged.

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
    if len(stained) < MIN_STAINED_PIXELS:
        return patch
    stains = _stain_vectors(stained)
    if stains is None:
        return patch
    amounts = np.linalg.lstsq(stains.T, density.T, rcond=None)[0]
    peaks = np.percentile(amounts, 99, axis=1)
    if (peaks <= 0).any():
        return patch
    return _levels((amounts.T * (REFERENCE_AMOUNTS / peaks)) @ REFERENCE_STAINS).reshape(patch.shape)


def _stain_vectors(stained: np.ndarray) -> np.ndarray | None:
    """Haematoxylin and eosin (2, 3): robust extremes in the plane of the densities. None if they coincide."""
    plane = np.linalg.eigh(np.cov(stained.T))[1][:, :0:-1]  # eigenvectors of the two largest eigenvalues
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    angles = np.arctan2(*(stained @ plane).T[::-1])
    low, high = np.percentile(angles, [1, 99])
    if high - low < 1e-3:
        return None
    vectors = np.stack([plane @ (np.cos(angle), np.sin(angle)) for angle in (low, high)])
    # Haematoxylin absorbs more red than eosin.
    return vectors if vectors[0, 0] > vectors[1, 0] else vectors[::-1]


def _levels(density: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(256.0 * np.exp(-density) - 1.0), 0, 255).astype(np.uint8)
