"""Stain vectors and amounts of each patch by itself, after Macenko; defined for every patch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import inf

import numba
import numpy as np
from skimage.color import rgb_from_hed

from features.column import REGION_WORDS, Column, Row
from features.stain import Planes

_TISSUE = 0.065
_FEWEST = 64
_FLAT = 1e-3
_NARROW = 0.05

#: One number a patch.
VECTORS = (
    Row("red", "haematoxylin", 0, 1, "Red part of the haematoxylin vector (of length 1)"),
    Row("green", "haematoxylin", 0, 1, "Green part of the haematoxylin vector"),
    Row("blue", "haematoxylin", 0, 1, "Blue part of the haematoxylin vector"),
    Row("red", "eosin", 0, 1, "Red part of the eosin vector (of length 1)"),
    Row("green", "eosin", 0, 1, "Green part of the eosin vector"),
    Row("blue", "eosin", 0, 1, "Blue part of the eosin vector"),
    Row("angle", "both", 0, 3.1416, "Angle in radians between the two stain vectors"),
    Row(
        "flatness", "both", 0, 1, "Second over first eigenvalue of the optical density's covariance (0 without tissue)"
    ),
    Row("tissue", "both", 0, 1, "Fraction of pixels with an optical density above 0.065 in every channel"),
    Row("fallback", "both", 0, 1, "1 where vectors could not be estimated and Ruifrok's stand in, else 0"),
)
#: Numbers of a stain's amounts in a region.
AMOUNTS = (
    Row("mean", "decade", -inf, inf, "Mean"),
    Row("spread", "decade", 0, inf, "Standard deviation"),
)
REGIONS = ("whole", "centre")


def stain(planes: Planes) -> np.ndarray:
    """Macenko's stain vectors of each patch, and the amounts of both stains that they give.

    Optical density is −log10((level + 1) / 256). Pixels above 0.065 in every channel are tissue; their densities are
    projected on the plane of the two largest eigenvectors of their covariance, and the directions at the 1 % and 99 %
    quantile (`numpy.quantile`) of the angle in that plane are the stains; haematoxylin is the redder-absorbing. Parts
    below 0 count as 0. Where that is not possible (fewer than 64 tissue pixels, a second eigenvalue below a
    thousandth of the first, as in a patch of a single stain, or vectors less than 0.05 radians apart) the vectors are
    Ruifrok's, and `fallback` is 1. Amounts are the least-squares solution of every pixel's density; the ratio is mean
    haematoxylin over the sum of both means' magnitudes, 0 where that is below 1e-9.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, 23), dtype float32
        `VECTORS`; by region and stain `AMOUNTS`, and the region's ratio; differences of the means and ratios of centre
        and ring.

    References
    ----------
    Macenko et al. (2009), IEEE ISBI, 1107-1110.
    """
    n = len(planes)
    covariances, tissue = np.empty((n, 3, 3)), np.empty(n)
    _covariance_kernel(planes.patches, _densities(), covariances, tissue)
    values, bases = np.linalg.eigh(covariances)
    vectors = np.empty((n, 2, 3))
    flatness = np.divide(values[:, 1], values[:, 2], out=np.zeros(n), where=values[:, 2] > 1e-12)
    usable = (tissue >= _FEWEST) & (flatness >= _FLAT)
    _vector_kernel(planes.patches, _densities(), np.ascontiguousarray(bases[:, :, :0:-1]), usable, vectors)
    estimated, angle = vectors, _angle(vectors)
    usable &= angle >= _NARROW
    vectors = np.where(usable[:, None, None], estimated, _ruifrok())
    sums, origins = np.empty((n, 2, 2, 2)), np.empty((n, 2))
    _amount_kernel(planes.patches, _densities(), np.linalg.pinv(vectors.transpose(0, 2, 1)), sums, origins)
    pixels = planes.patches.shape[1] * planes.patches.shape[2]
    flags = np.stack([_angle(vectors), np.clip(flatness, 0, 1), tissue / pixels, 1.0 - usable], axis=1)
    return np.concatenate([vectors.reshape(n, 6), flags, _amounts(sums, origins, pixels)], axis=1).astype(np.float32)


def _angle(vectors: np.ndarray) -> np.ndarray:
    """Angle between two unit vectors; exact for narrow ones. Shape (n, 2, 3) to (n,)."""
    apart = np.linalg.norm(vectors[:, 0] - vectors[:, 1], axis=1)
    return 2 * np.arcsin(np.minimum(apart / 2, 1.0))


def _amounts(sums: np.ndarray, origins: np.ndarray, pixels: int) -> np.ndarray:
    """Statistics from sums and sums of squares, (n, region, stain, 2); shape (n, 13)."""
    n = len(sums)
    counts = np.array([pixels, 1024.0])[:, None]
    means = sums[..., 0] / counts
    spreads = np.sqrt(np.maximum(sums[..., 1] / counts - means**2, 0.0))
    outside = (sums[:, 0, :, 0] - sums[:, 1, :, 0]) / (pixels - 1024) if pixels > 1024 else means[:, 0]
    means, outside = means + origins[:, None], outside + origins
    ratios = [_ratio(part) for part in (means[:, 0], means[:, 1], outside)]
    parts = []
    for region in range(2):
        parts += [np.stack([means[:, region], spreads[:, region]], axis=2).reshape(n, 4), ratios[region][:, None]]
    parts += [means[:, 1] - outside, (ratios[1] - ratios[2])[:, None]]
    return np.concatenate(parts, axis=1)


def _ratio(means: np.ndarray) -> np.ndarray:
    size = np.abs(means).sum(axis=1)
    return np.divide(means[:, 0], size, out=np.zeros(len(means)), where=size >= 1e-9)


@cache
def _densities() -> np.ndarray:
    """Optical density of each level."""
    return np.log10(256.0) - np.log10(np.arange(256) + 1.0)


@cache
def _ruifrok() -> np.ndarray:
    """Haematoxylin and eosin vectors of length 1, as scikit-image has them; shape (2, 3)."""
    vectors = rgb_from_hed[:2]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _covariance_kernel(patches: np.ndarray, densities: np.ndarray, covariances: np.ndarray, tissue: np.ndarray) -> None:
    n, height, width, _ = patches.shape
    for i in range(n):
        pixels = patches[i].reshape((height * width, 3))
        s0, s1, s2, s00, s01, s02, s11, s12, s22, count = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0
        for k in range(height * width):
            r, g, b = densities[pixels[k, 0]], densities[pixels[k, 1]], densities[pixels[k, 2]]
            if min(r, g, b) > _TISSUE:
                count += 1
                s0 += r
                s1 += g
                s2 += b
                s00 += r * r
                s01 += r * g
                s02 += r * b
                s11 += g * g
                s12 += g * b
                s22 += b * b
        tissue[i] = count
        covariance = covariances[i]
        covariance[:] = 0.0
        if count > 0:
            covariance[0, 0], covariance[0, 1], covariance[0, 2] = (
                s00 - s0 * s0 / count,
                s01 - s0 * s1 / count,
                s02 - s0 * s2 / count,
            )
            covariance[1, 1], covariance[1, 2], covariance[2, 2] = (
                s11 - s1 * s1 / count,
                s12 - s1 * s2 / count,
                s22 - s2 * s2 / count,
            )
            covariance[1, 0], covariance[2, 0], covariance[2, 1] = covariance[0, 1], covariance[0, 2], covariance[1, 2]
            covariance /= count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _ranked(turns: np.ndarray, count: int, rank: int, starts: np.ndarray, bucket: np.ndarray) -> float:
    """Return the angle of this rank: sort only those that share its histogram bin."""
    target = 0
    while starts[target + 1] <= rank:
        target += 1
    found = 0
    for k in range(count):
        if int((turns[k] + 2.0) * 256.0) == target:
            bucket[found] = turns[k]
            found += 1
    part = bucket[:found]
    part.sort()
    turn = part[rank - starts[target]]
    right = 1.0 - abs(turn)
    return np.arctan2(np.copysign(1.0 - abs(right), turn), right)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _vector_kernel(
    patches: np.ndarray, densities: np.ndarray, bases: np.ndarray, usable: np.ndarray, vectors: np.ndarray
) -> None:
    """Find unit vectors at the 1 % and 99 % quantile of the angle; the one that absorbs more red is the first."""
    n, height, width, _ = patches.shape
    turns, bucket, starts = np.empty(height * width), np.empty(height * width), np.empty(1026, np.int64)
    for i in range(n):
        vectors[i] = 0.0
        if not usable[i]:
            continue
        first, second = bases[i, :, 0], bases[i, :, 1]
        # eigenvectors have no sign: the first points to more density
        sign = 1.0 if first[0] + first[1] + first[2] >= 0.0 else -1.0
        pixels = patches[i].reshape((height * width, 3))
        count = 0
        starts[:] = 0
        for k in range(height * width):
            r, g, b = densities[pixels[k, 0]], densities[pixels[k, 1]], densities[pixels[k, 2]]
            if min(r, g, b) > _TISSUE:
                along = sign * (r * first[0] + g * first[1] + b * first[2])
                across = r * second[0] + g * second[1] + b * second[2]
                # grows with the angle, and costs no arc tangent
                turn = np.copysign(1.0 - along / (abs(along) + abs(across)), across)
                turns[count] = turn
                count += 1
                starts[int((turn + 2.0) * 256.0) + 1] += 1
        for k in range(1025):
            starts[k + 1] += starts[k]
        for end in range(2):
            position = (0.01 if end == 0 else 0.99) * (count - 1)
            rank = int(position)
            low = _ranked(turns, count, rank, starts, bucket)
            high = _ranked(turns, count, min(rank + 1, count - 1), starts, bucket)
            angle = low + (high - low) * (position - rank)
            total = 0.0
            for c in range(3):
                part = max(np.cos(angle) * sign * first[c] + np.sin(angle) * second[c], 0.0)
                vectors[i, end, c] = part
                total += part * part
            vectors[i, end] /= np.sqrt(total) if total > 0.0 else 1.0
        if vectors[i, 0, 0] < vectors[i, 1, 0]:
            for c in range(3):
                swap = vectors[i, 0, c]
                vectors[i, 0, c] = vectors[i, 1, c]
                vectors[i, 1, c] = swap


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _amount_kernel(
    patches: np.ndarray,
    densities: np.ndarray,
    solve: np.ndarray,
    sums: np.ndarray,
    origins: np.ndarray,
) -> None:
    """Sum both stains' amounts beyond the first pixel's, and their squares, over the whole patch and the centre."""
    n, height, width, _ = patches.shape
    top, left = (height - 32) // 2, (width - 32) // 2
    tables = np.empty((2, 3, 256))
    for i in range(n):
        for s in range(2):
            for c in range(3):
                for level in range(256):
                    tables[s, c, level] = solve[i, s, c] * densities[level]
        for s in range(2):
            reds, greens, blues = tables[s]
            total, squares, inner, inner_squares = 0.0, 0.0, 0.0, 0.0
            first = patches[i, 0, 0]
            # from the first pixel, so that an even patch has a spread of exactly zero
            origin = reds[first[0]] + greens[first[1]] + blues[first[2]]
            for row in range(height):
                part, part_squares = 0.0, 0.0
                for column in range(width):
                    pixel = patches[i, row, column]
                    amount = reds[pixel[0]] + greens[pixel[1]] + blues[pixel[2]] - origin
                    total += amount
                    squares += amount * amount
                    if left <= column < left + 32:
                        part += amount
                        part_squares += amount * amount
                if top <= row < top + 32:
                    inner += part
                    inner_squares += part_squares
            sums[i, 0, s, 0], sums[i, 0, s, 1] = total, squares
            sums[i, 1, s, 0], sums[i, 1, s, 1] = inner, inner_squares
            origins[i, s] = origin


_MACENKO = "Macenko et al. (2009), IEEE ISBI, 1107-1110"


def _columns() -> Iterator[Column]:
    for row in VECTORS:
        unit = "rad" if row.name == "angle" else "1"
        yield Column(
            f"stain_{row.name}_{row.unit}_whole", unit, row.low, row.high, f"{row.words}, whole patch.", _MACENKO
        )
    for region in REGIONS:
        for channel in ("haematoxylin", "eosin"):
            for row in AMOUNTS:
                words = f"{row.words} of the amount of the patch's own {channel}, {REGION_WORDS[region]}."
                yield Column(f"stain_{row.name}_{channel}_{region}", *row[1:4], words, _MACENKO)
        words = f"Mean haematoxylin over the sum of both means' magnitudes, {REGION_WORDS[region]}."
        yield Column(f"stain_ratio_both_{region}", "1", -1, 1, words, _MACENKO)
    for channel in ("haematoxylin", "eosin"):
        words = f"Mean amount of the patch's own {channel}, centre minus ring."
        yield Column(f"stain_mean_{channel}_contrast", "decade", -inf, inf, words, _MACENKO)
    words = "Mean haematoxylin over the sum of both means' magnitudes, centre minus ring."
    yield Column("stain_ratio_both_contrast", "1", -2, 2, words, _MACENKO)


COLUMNS = tuple(_columns())
