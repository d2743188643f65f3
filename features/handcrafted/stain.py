"""Stain vectors and amounts of each patch by itself, after Macenko; defined for every patch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import inf

import numpy as np
from skimage.color import rgb_from_hed

from histoblend.features.handcrafted.channels import Planes
from histoblend.features.handcrafted.column import REGION_WORDS, Column, Row
from histoblend.features.handcrafted.kernel import kernel, part

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
    n, height, width = planes.channels.shape[1:]
    channels = planes.channels.reshape(3, n, height * width)
    sums, tissue = np.empty((n, 3, 9)), np.empty(n)
    _density_kernel(planes.channels, _densities(), sums, tissue)
    _, covariances = _moments(sums[:, 2:], np.maximum(tissue, 1)[:, None, None])
    values, bases = np.linalg.eigh(covariances[:, 0])
    flatness = np.divide(values[:, 1], values[:, 2], out=np.zeros(n), where=values[:, 2] > 1e-12)
    usable = (tissue >= _FEWEST) & (flatness >= _FLAT)
    # eigenvectors have no sign: the first points to more density
    bases = np.ascontiguousarray(bases[:, :, :0:-1])
    bases[bases[:, :, 0].sum(axis=1) < 0, :, 0] *= -1
    turns = np.zeros((n, 2, 2))
    _turn_kernel(channels, _densities(), bases, usable, tissue, turns)
    estimated = _vectors(turns, tissue, bases)
    usable &= _angle(estimated) >= _NARROW
    vectors = np.where(usable[:, None, None], estimated, _ruifrok())
    origins = _densities()[channels[:, :, 0]].T
    amounts = _amounts(sums[:, :2], origins, np.linalg.pinv(vectors.transpose(0, 2, 1)), height * width)
    flags = [_angle(vectors), np.clip(flatness, 0, 1), tissue / (height * width), 1.0 - usable]
    return np.concatenate([vectors.reshape(n, 6), np.stack(flags, axis=1), amounts], axis=1).astype(np.float32)


def _vectors(turns: np.ndarray, tissue: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """Unit vectors at both quantiles of the angle, that which absorbs more red first; shape (n, 2, 3).

    `turns` holds both neighbours in rank, (n, quantile, 2), as a number that grows with the angle.
    """
    right = 1.0 - np.abs(turns)
    angles = np.arctan2(np.copysign(1.0 - np.abs(right), turns), right)
    positions = np.array([0.01, 0.99]) * np.maximum(tissue - 1, 0)[:, None]
    angle = angles[..., 0] + (angles[..., 1] - angles[..., 0]) * (positions - np.floor(positions))
    parts = np.cos(angle)[..., None] * bases[:, None, :, 0] + np.sin(angle)[..., None] * bases[:, None, :, 1]
    parts = np.maximum(parts, 0.0)
    length = np.linalg.norm(parts, axis=2, keepdims=True)
    vectors = np.divide(parts, length, out=np.zeros_like(parts), where=length > 0.0)
    swapped = vectors[:, 0, 0] < vectors[:, 1, 0]
    vectors[swapped] = vectors[swapped, ::-1]
    return vectors


def _angle(vectors: np.ndarray) -> np.ndarray:
    """Angle between two unit vectors; exact for narrow ones. Shape (n, 2, 3) to (n,)."""
    apart = np.linalg.norm(vectors[:, 0] - vectors[:, 1], axis=1)
    return 2 * np.arcsin(np.minimum(apart / 2, 1.0))


def _amounts(sums: np.ndarray, origins: np.ndarray, solve: np.ndarray, pixels: int) -> np.ndarray:
    """Statistics of the amounts, (n, 13), which are linear in the densities.

    Means and covariances of the densities suffice: `sums` (n, region, 9) holds the sums and the sums of products of
    what they have beyond `origins` (n, 3); `solve` (n, 2, 3) turns densities into amounts.
    """
    n = len(sums)
    counts = np.array([pixels, 1024.0])[:, None]
    shifts, covariances = _moments(sums, counts)
    spreads = np.sqrt(np.maximum(np.einsum("nsi,nrij,nsj->nrs", solve, covariances, solve), 0.0))
    ring = (sums[:, 0, :3] - sums[:, 1, :3]) / (pixels - 1024) if pixels > 1024 else shifts[:, 0]
    densities = np.concatenate([shifts, ring[:, None]], axis=1) + origins[:, None]
    means = np.einsum("nsi,nri->nrs", solve, densities)
    ratios = [_ratio(means[:, region]) for region in range(3)]
    parts = []
    for region in range(2):
        parts += [np.stack([means[:, region], spreads[:, region]], axis=2).reshape(n, 4), ratios[region][:, None]]
    parts += [means[:, 1] - means[:, 2], (ratios[1] - ratios[2])[:, None]]
    return np.concatenate(parts, axis=1)


def _moments(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means (n, sets, 3) and covariances (n, sets, 3, 3) from sums and sums of products (n, sets, 9)."""
    means = sums[..., :3] / counts
    products = (sums[..., 3:] / counts)[..., [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(*means.shape, 3)
    return means, products - means[..., :, None] * means[..., None, :]


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


@part
def _select(values: np.ndarray, count: int, rank: int) -> float:
    """Return the value of this rank among the first `count`, which are moved about (Hoare's algorithm)."""
    low, high = 0, count - 1
    while low < high:
        pivot, i, j = values[(low + high) // 2], low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if rank <= j:
            high = j
        elif rank >= i:
            low = i
        else:
            break
    return values[rank]


@kernel
def _turn_kernel(
    channels: np.ndarray,
    densities: np.ndarray,
    bases: np.ndarray,
    usable: np.ndarray,
    tissue: np.ndarray,
    out: np.ndarray,
) -> None:
    """Find the pixels of tissue in rank next to the 1 % and 99 % quantile of the angle.

    For angles stand numbers that grow with them, and cost no arc tangent; a histogram says where to look.
    """
    _, n, pixels = channels.shape
    turns, bins, bucket, light = np.empty(pixels), np.empty(pixels, np.int32), np.empty(pixels + 1), np.empty((3, 256))
    counts = np.empty(1026, np.int32)
    for i in range(n):
        if not usable[i]:
            continue
        for k in range(1026):
            counts[k] = 0
        for start in range(0, pixels, 256):
            size, first = min(256, pixels - start), np.uint64(start)
            for channel in range(3):
                for k in range(size):
                    light[channel, k] = densities[channels[channel, i, np.uint64(k) + first]]
            for k in range(size):
                r, g, b = light[0, k], light[1, k], light[2, k]
                along = r * bases[i, 0, 0] + g * bases[i, 1, 0] + b * bases[i, 2, 0]
                across = r * bases[i, 0, 1] + g * bases[i, 1, 1] + b * bases[i, 2, 1]
                size_of = abs(along) + abs(across)
                turn = 1.0 - along / (size_of if size_of > 0.0 else 1.0)
                turn = turn if across >= 0.0 else -turn
                turns[np.uint64(k) + first] = turn
                inside = min(r, g, b) > _TISSUE
                bins[np.uint64(k) + first] = np.int32((turn + 2.0) * 256.0) if inside else np.int32(1025)
        for k in range(pixels):
            counts[bins[k]] += 1
        last, looked_at, found = int(tissue[i]) - 1, -1, 0
        for end in range(2):
            rank = int((0.01 if end == 0 else 0.99) * last)
            for neighbour in range(2):
                wanted, target = min(rank + neighbour, last), 0
                while counts[target] <= wanted:
                    wanted -= counts[target]
                    target += 1
                if target != looked_at:
                    looked_at, found = target, 0
                    for k in range(pixels):
                        bucket[found] = turns[k]
                        found += bins[k] == target
                out[i, end, neighbour] = _select(bucket, found, wanted)


@kernel
def _density_kernel(channels: np.ndarray, densities: np.ndarray, sums: np.ndarray, tissue: np.ndarray) -> None:
    """Sums, and sums of products, of what the densities have beyond the first pixel's.

    Of the patch, of the centre, and of the patch's tissue, whose pixels are counted.
    """
    _, n, height, width = channels.shape
    for i in range(n):
        # so that an even patch has a spread of exactly zero
        r0, g0, b0 = densities[channels[0, i, 0, 0]], densities[channels[1, i, 0, 0]], densities[channels[2, i, 0, 0]]
        # the patch last: what it has of tissue stands
        for region in range(1, -1, -1):
            rows, columns = (height, width) if region == 0 else (32, 32)
            top, left = (height - rows) // 2, (width - columns) // 2
            s0, s1, s2, s00, s01, s02, s11, s12, s22 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            t0, t1, t2, t00, t01, t02, t11, t12, t22, count = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for row in range(top, top + rows):
                for k in range(left, left + columns):
                    r, g, b = (
                        densities[channels[0, i, row, k]],
                        densities[channels[1, i, row, k]],
                        densities[channels[2, i, row, k]],
                    )
                    inside = 1.0 if min(r, g, b) > _TISSUE else 0.0
                    r, g, b = r - r0, g - g0, b - b0
                    s0 += r
                    s1 += g
                    s2 += b
                    rr, rg, rb, gg, gb, bb = r * r, r * g, r * b, g * g, g * b, b * b
                    s00 += rr
                    s01 += rg
                    s02 += rb
                    s11 += gg
                    s12 += gb
                    s22 += bb
                    count += inside
                    t0 += inside * r
                    t1 += inside * g
                    t2 += inside * b
                    t00 += inside * rr
                    t01 += inside * rg
                    t02 += inside * rb
                    t11 += inside * gg
                    t12 += inside * gb
                    t22 += inside * bb
            sums[i, region, 0], sums[i, region, 1], sums[i, region, 2] = s0, s1, s2
            sums[i, region, 3], sums[i, region, 4], sums[i, region, 5] = s00, s01, s02
            sums[i, region, 6], sums[i, region, 7], sums[i, region, 8] = s11, s12, s22
            sums[i, 2, 0], sums[i, 2, 1], sums[i, 2, 2] = t0, t1, t2
            sums[i, 2, 3], sums[i, 2, 4], sums[i, 2, 5] = t00, t01, t02
            sums[i, 2, 6], sums[i, 2, 7], sums[i, 2, 8] = t11, t12, t22
            tissue[i] = count


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
