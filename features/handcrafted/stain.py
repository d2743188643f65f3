"""Stain vectors and amounts of each single patch by Macenko's method, with a fallback for unusual patches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import inf

import numpy as np
from skimage.color import rgb_from_hed

from histoblend.features.handcrafted.channels import Planes
from histoblend.features.handcrafted.column import REGION_WORDS, Column, Row
from histoblend.features.handcrafted.kernel import inner_kernel, kernel

_TISSUE = 0.065
_FEWEST = 64
_FLAT = 1e-3
_NARROW = 0.05
#: Number of pixels that are handled together.
_BLOCK = 64

#: One number per patch: name, channel, lowest and highest value, description.
VECTORS = (
    Row("red", "haematoxylin", 0, 1, "Red component of the haematoxylin unit vector"),
    Row("green", "haematoxylin", 0, 1, "Green component of the haematoxylin unit vector"),
    Row("blue", "haematoxylin", 0, 1, "Blue component of the haematoxylin unit vector"),
    Row("red", "eosin", 0, 1, "Red component of the eosin unit vector"),
    Row("green", "eosin", 0, 1, "Green component of the eosin unit vector"),
    Row("blue", "eosin", 0, 1, "Blue component of the eosin unit vector"),
    Row("angle", "both", 0, 3.1416, "Angle between the two stain vectors"),
    Row("flatness", "both", 0, 1, "Second / first eigenvalue of the optical density covariance (0 without tissue)"),
    Row("tissue", "both", 0, 1, "Fraction of pixels with an optical density above 0.065 in every channel"),
    Row("fallback", "both", 0, 1, "1 if the vectors could not be estimated and Ruifrok's are used, else 0"),
)
#: Statistics of the amount of a stain in a region.
AMOUNTS = (
    Row("mean", "decade", -inf, inf, "Mean"),
    Row("spread", "decade", 0, inf, "Standard deviation of the"),
)
REGIONS = ("whole", "centre")


def stain(planes: Planes) -> np.ndarray:
    """Macenko's stain vectors of each patch, and the resulting amounts of both stains.

    Optical density is −log10((level + 1) / 256). Pixels above 0.065 in every channel are tissue. Their densities are
    projected on the plane of the two largest eigenvectors of their covariance. The stain vectors are the directions at
    the 1 % and 99 % quantiles (`numpy.quantile`) of the angle in that plane. Haematoxylin is the one that absorbs more
    red. Negative components are set to 0.

    Ruifrok's vectors are used, and `fallback` is 1, if there are fewer than 64 tissue pixels, if the second eigenvalue
    is below a thousandth of the first (as with a single stain), or if the vectors are less than 0.05 radians apart.

    Amounts are the least-squares solution for each pixel's density. The ratio is mean haematoxylin divided by the sum
    of both stains' absolute means, and 0 if that sum is below 1e-9.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, 23), dtype float32
        `VECTORS`, then per region `AMOUNTS` of each stain and the ratio, then centre minus ring of the means and the
        ratio.

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
    # eigenvectors have no sign, so the first is made to point towards higher density
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
    """Unit vectors at both quantiles of the angle, shape (n, 2, 3). The one that absorbs more red comes first.

    `turns`, (n, quantile, 2), are the two values next in rank to each quantile, as numbers that increase with the
    angle.
    """
    right = 1.0 - np.abs(turns)
    angles = np.arctan2(np.copysign(1.0 - np.abs(right), turns), right)
    positions = np.array([0.01, 0.99]) * np.maximum(tissue - 1, 0)[:, None]
    angle = angles[..., 0] + (angles[..., 1] - angles[..., 0]) * (positions - np.floor(positions))
    components = np.cos(angle)[..., None] * bases[:, None, :, 0] + np.sin(angle)[..., None] * bases[:, None, :, 1]
    components = np.maximum(components, 0.0)
    length = np.linalg.norm(components, axis=2, keepdims=True)
    vectors = np.divide(components, length, out=np.zeros_like(components), where=length > 0.0)
    swapped = vectors[:, 0, 0] < vectors[:, 1, 0]
    vectors[swapped] = vectors[swapped, ::-1]
    return vectors


def _angle(vectors: np.ndarray) -> np.ndarray:
    """Angle between two unit vectors, accurate also for small angles. Maps shape (n, 2, 3) to (n,)."""
    distance = np.linalg.norm(vectors[:, 0] - vectors[:, 1], axis=1)
    return 2 * np.arcsin(np.minimum(distance / 2, 1.0))


def _amounts(sums: np.ndarray, origins: np.ndarray, solve: np.ndarray, pixels: int) -> np.ndarray:
    """Statistics of the stain amounts, (n, 13).

    Amounts are linear in the densities, so means and covariances of the densities suffice. `sums` (n, region, 9) are
    the sums and sums of products of the densities minus `origins` (n, 3). `solve` (n, 2, 3) maps densities to amounts.
    """
    n = len(sums)
    counts = np.array([pixels, 1024.0])[:, None]
    shifts, covariances = _moments(sums, counts)
    spreads = np.sqrt(np.maximum(np.einsum("nsi,nrij,nsj->nrs", solve, covariances, solve), 0.0))
    ring = (sums[:, 0, :3] - sums[:, 1, :3]) / (pixels - 1024) if pixels > 1024 else shifts[:, 1]
    densities = np.concatenate([shifts, ring[:, None]], axis=1) + origins[:, None]
    means = np.einsum("nsi,nri->nrs", solve, densities)
    ratios = [_ratio(means[:, region]) for region in range(3)]
    blocks = []
    for region in range(2):
        blocks += [np.stack([means[:, region], spreads[:, region]], axis=2).reshape(n, 4), ratios[region][:, None]]
    blocks += [means[:, 1] - means[:, 2], (ratios[1] - ratios[2])[:, None]]
    return np.concatenate(blocks, axis=1)


def _moments(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means (n, sets, 3) and covariances (n, sets, 3, 3) from sums and sums of products (n, sets, 9)."""
    means = sums[..., :3] / counts
    products = (sums[..., 3:] / counts)[..., [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(*means.shape, 3)
    return means, products - means[..., :, None] * means[..., None, :]


def _ratio(means: np.ndarray) -> np.ndarray:
    sum_of_magnitudes = np.abs(means).sum(axis=1)
    return np.divide(means[:, 0], sum_of_magnitudes, out=np.zeros(len(means)), where=sum_of_magnitudes >= 1e-9)


@cache
def _densities() -> np.ndarray:
    """Optical density of each level."""
    return np.log10(256.0) - np.log10(np.arange(256) + 1.0)


@cache
def _ruifrok() -> np.ndarray:
    """Haematoxylin and eosin unit vectors of scikit-image; shape (2, 3)."""
    vectors = rgb_from_hed[:2]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@inner_kernel
def _select(values: np.ndarray, count: int, rank: int) -> float:
    """Return the value with this rank among the first `count` values, which are reordered (Hoare's algorithm)."""
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
    """Find the tissue pixels next in rank to the 1 % and 99 % quantiles of the angle.

    Angles are replaced by numbers that increase with them and need no arc tangent. A histogram narrows the search.
    """
    _, n, pixels = channels.shape
    turns, bins, bucket, light = np.empty(pixels), np.empty(pixels, np.uint32), np.empty(pixels + 1), np.empty((3, 256))
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
                magnitude = abs(along) + abs(across)
                turn = 1.0 - along / (magnitude if magnitude > 0.0 else 1.0)
                turn = turn if across >= 0.0 else -turn
                turns[np.uint64(k) + first] = turn
                is_tissue = min(r, g, b) > _TISSUE
                bins[np.uint64(k) + first] = np.int32((turn + 2.0) * 256.0) if is_tissue else np.int32(1025)
        for k in range(pixels):
            counts[bins[k]] += 1
        last, current_bin, count = int(tissue[i]) - 1, -1, np.int64(0)
        for end in range(2):
            rank = int((0.01 if end == 0 else 0.99) * last)
            for neighbour in range(2):
                remaining_rank, target_bin = min(rank + neighbour, last), 0
                while counts[target_bin] <= remaining_rank:
                    remaining_rank -= counts[target_bin]
                    target_bin += 1
                if target_bin != current_bin:
                    current_bin, count = target_bin, np.int64(0)
                    for k in range(pixels):
                        bucket[count] = turns[k]
                        count += bins[k] == target_bin
                out[i, end, neighbour] = _select(bucket, count, remaining_rank)


@kernel
def _density_kernel(channels: np.ndarray, densities: np.ndarray, sums: np.ndarray, tissue: np.ndarray) -> None:
    """Sums, and sums of products, of the densities minus the first pixel's density.

    They are computed for the patch, the centre and the patch's tissue. The tissue pixels are also counted.
    """
    _, n, height, width = channels.shape
    levels = channels.reshape((3, n, height * width))
    # one sum per pixel of a block, so that sums keep their order and are vectorised
    light, partial = np.empty((3, _BLOCK)), np.empty((19, _BLOCK))
    for i in range(n):
        # subtracting the first pixel gives a constant patch a spread of exactly zero
        r0, g0, b0 = densities[levels[0, i, 0]], densities[levels[1, i, 0]], densities[levels[2, i, 0]]
        # the whole patch comes last, so that its tissue sums are the ones kept
        for region in range(1, -1, -1):
            # the whole patch is one long row
            rows, columns, first = 1, height * width, 0
            if region == 1:
                rows, columns, first = 32, 32, (height - 32) // 2 * width + (width - 32) // 2
            for j in range(19):
                for k in range(_BLOCK):
                    partial[j, k] = 0.0
            for row in range(rows):
                for start in range(0, columns, _BLOCK):
                    size, here = min(_BLOCK, columns - start), np.uint64(first + row * width + start)
                    for channel in range(3):
                        for k in range(size):
                            light[channel, k] = densities[levels[channel, i, np.uint64(k) + here]]
                    for k in range(size):
                        inside = 1.0 if min(light[0, k], light[1, k], light[2, k]) > _TISSUE else 0.0
                        r, g, b = light[0, k] - r0, light[1, k] - g0, light[2, k] - b0
                        rr, rg, rb, gg, gb, bb = r * r, r * g, r * b, g * g, g * b, b * b
                        partial[0, k] += r
                        partial[1, k] += g
                        partial[2, k] += b
                        partial[3, k] += rr
                        partial[4, k] += rg
                        partial[5, k] += rb
                        partial[6, k] += gg
                        partial[7, k] += gb
                        partial[8, k] += bb
                        partial[9, k] += inside * r
                        partial[10, k] += inside * g
                        partial[11, k] += inside * b
                        partial[12, k] += inside * rr
                        partial[13, k] += inside * rg
                        partial[14, k] += inside * rb
                        partial[15, k] += inside * gg
                        partial[16, k] += inside * gb
                        partial[17, k] += inside * bb
                        partial[18, k] += inside
            for j in range(19):
                total = 0.0
                for k in range(_BLOCK):
                    total += partial[j, k]
                if j < 18:
                    sums[i, region if j < 9 else 2, j % 9] = total
                else:
                    tissue[i] = total


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
                words = f"{row.words} {channel} amount on the patch's own stain vectors, {REGION_WORDS[region]}."
                yield Column(f"stain_{row.name}_{channel}_{region}", *row[1:4], words, _MACENKO)
        words = f"Haematoxylin share (mean haematoxylin / sum of both stains' absolute means), {REGION_WORDS[region]}."
        yield Column(f"stain_ratio_both_{region}", "1", -1, 1, words, _MACENKO)
    for channel in ("haematoxylin", "eosin"):
        words = f"Mean {channel} amount on the patch's own stain vectors, centre minus ring."
        yield Column(f"stain_mean_{channel}_contrast", "decade", -inf, inf, words, _MACENKO)
    words = "Haematoxylin share (mean haematoxylin / sum of both stains' absolute means), centre minus ring."
    yield Column("stain_ratio_both_contrast", "1", -2, 2, words, _MACENKO)


COLUMNS = tuple(_columns())
