"""Grey-level co-occurrence of a batch of patches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numba
import numpy as np

from features.column import REGION_WORDS, Column, Row
from features.stain import Planes

CHANNELS = ("grey", "absorbed", "haematoxylin", "eosin")
DISTANCES = (1, 3)
LEVELS = 16
PROPERTIES = (
    Row("contrast", "level²", 0, 225, "mean squared difference of levels"),
    Row("dissimilarity", "level", 0, 15, "mean difference of levels"),
    Row("homogeneity", "1", 0, 1, "mean of 1 / (1 + squared difference)"),
    Row("asm", "1", 0, 1, "angular second moment (sum of squared probabilities)"),
    Row("energy", "1", 0, 1, "root of the angular second moment"),
    Row("correlation", "1", -1, 1, "correlation of the two levels (1 when constant)"),
    Row("entropy", "nat", 0, 5.5452, "entropy of the pairs"),
    Row("sum-entropy", "nat", 0, 3.434, "entropy of the sums of the two levels"),
    Row("sum-skew", "1", -200, 200, "skewness of the sums of the two levels (0 when constant)"),
    Row("difference-entropy", "nat", 0, 2.7726, "entropy of the differences of the two levels"),
)
#: Pools over the four directions that each region has.
REGIONS = {"whole": ("mean", "range"), "centre": ("mean",)}


def cooccurrence(planes: Planes) -> np.ndarray:
    """Grey-level co-occurrence properties of four channels, pooled over four directions.

    The channels are grey, light absorbed in red, haematoxylin and eosin (`features.stain.Planes`).

    `skimage.feature.graycomatrix` with 16 levels (8-bit level // 16), distances 1 and 3, angles 0, 45, 90 and 135
    degrees, symmetric and normed; then `graycoprops`, and the entropies and skewness of the sums and (absolute)
    differences of the two levels. Of the four directions the mean and, over the whole patch, the range (maximum minus
    minimum) are kept. The centre is cut out before pairs are counted.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, 240), dtype float32
        By region (`REGIONS`), channel, distance, property (`PROPERTIES`), pool.

    References
    ----------
    Haralick, Shanmugam & Dinstein (1973), IEEE Trans Syst Man Cybern 3(6):610-621.
    """
    n, height, width = planes.grey.shape
    out = np.empty((n, 2, len(CHANNELS), len(DISTANCES), len(PROPERTIES), 2))
    for channel, levels in enumerate((planes.grey, planes.absorbed, planes.haematoxylin, planes.eosin)):
        _cooccurrence_kernel(levels, _pair_offsets(), _count_logs(height * width), out[:, :, channel])
    whole, centre = out[:, 0], out[:, 1, ..., :1]
    return np.concatenate([whole.reshape(n, -1), centre.reshape(n, -1)], axis=1).astype(np.float32)


@cache
def _pair_offsets() -> np.ndarray:
    """Row and column steps by distance and angle, rounded as scikit-image does."""
    angles = np.arange(4) * np.pi / 4
    steps = [[(round(np.sin(a) * d), round(np.cos(a) * d)) for a in angles] for d in DISTANCES]
    return np.array(steps, np.int64)


@cache
def _count_logs(pixels: int) -> np.ndarray:
    """Table of c · ln c for every count a symmetric matrix of this many pixels can hold."""
    counts = np.arange(2 * pixels + 1, dtype=np.float64)
    return counts * np.log(np.maximum(counts, 1.0))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _count_pairs(padded: np.ndarray, height: int, width: int, offsets: np.ndarray, counts: np.ndarray) -> None:
    """Count ordered pairs in four directions at once: `counts[direction, 32 · first + second]`.

    `padded` has three pixels of level 16 on the left, on the right and below, which count in columns that nobody reads.
    """
    counts[:] = 0
    down1, right1 = offsets[1]
    down2 = offsets[2, 0]
    down3, right3 = offsets[3]
    right0 = offsets[0, 1]
    first, second, third, fourth = counts
    for row in range(height):
        here, below1, below2, below3 = padded[row], padded[row + down1], padded[row + down2], padded[row + down3]
        for column in range(3, width + 3):
            level = np.int32(here[column]) << 5
            first[level + here[column + right0]] += 1
            second[level + below1[column + right1]] += 1
            third[level + below2[column]] += 1
            fourth[level + below3[column + right3]] += 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _matrix_properties(counts: np.ndarray, logs: np.ndarray, sums: np.ndarray, out: np.ndarray) -> None:
    """Properties of one direction from the counts of ordered pairs; the matrix is counts plus its transpose."""
    apart = np.zeros(16, np.int64)
    sums[:] = 0
    squares, entropy = 0, 0.0
    for i in range(16):
        for j in range(i):
            pair = counts[32 * i + j] + counts[32 * j + i]
            apart[i - j] += 2 * pair
            sums[i + j] += 2 * pair
            squares += 2 * pair * pair
            entropy += 2.0 * logs[pair]
        pair = 2 * counts[33 * i]
        apart[0] += pair
        sums[2 * i] += pair
        squares += pair * pair
        entropy += logs[pair]
    total, contrast, dissimilarity, homogeneity, spread = 0, 0, 0, 0.0, 0.0
    for k in range(16):
        total += apart[k]
        contrast += apart[k] * k * k
        dissimilarity += apart[k] * k
        homogeneity += apart[k] / (1.0 + k * k)
        spread += logs[apart[k]]
    first, second, mixed = 0, 0, 0.0
    for k in range(31):
        first += sums[k] * k
        second += sums[k] * k * k
        mixed += logs[sums[k]]
    # whole numbers up to here: a constant plane has a variance of exactly zero
    variance, covariance = total * (second + contrast) - first * first, total * (second - contrast) - first * first
    mean, third = first / total, 0.0
    for k in range(31):
        third += sums[k] * (k - mean) ** 3
    skewed = (total * second - first * first) / (float(total) * total)
    out[0], out[1], out[2] = contrast / total, dissimilarity / total, homogeneity / total
    out[3] = squares / (float(total) * total)
    out[4] = np.sqrt(out[3])
    out[5] = covariance / variance if variance > 0 else 1.0
    out[6] = max(np.log(total) - entropy / total, 0.0)
    out[7] = max(np.log(total) - mixed / total, 0.0)
    out[8] = third / total / (skewed * np.sqrt(skewed)) if skewed > 0.0 else 0.0
    out[9] = max(np.log(total) - spread / total, 0.0)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _cooccurrence_kernel(planes: np.ndarray, offsets: np.ndarray, logs: np.ndarray, out: np.ndarray) -> None:
    n, height, width = planes.shape
    padded = np.empty((height + 3, width + 6), np.uint8)
    counts, sums = np.empty((4, 1024), np.int32), np.empty(31, np.int64)
    properties = np.empty((4, 10))
    for i in range(n):
        for region in range(2):
            rows, columns = (height, width) if region == 0 else (32, 32)
            top, left = (height - rows) // 2, (width - columns) // 2
            part = padded[: rows + 3, : columns + 6]
            part[:] = 16
            part[:rows, 3 : columns + 3] = planes[i, top : top + rows, left : left + columns] >> 4
            for d in range(offsets.shape[0]):
                _count_pairs(part, rows, columns, offsets[d], counts)
                for angle in range(4):
                    _matrix_properties(counts[angle], logs, sums, properties[angle])
                for k in range(10):
                    low, high, mean = properties[0, k], properties[0, k], 0.0
                    for angle in range(4):
                        low, high = min(low, properties[angle, k]), max(high, properties[angle, k])
                        mean += properties[angle, k]
                    out[i, region, d, k, 0], out[i, region, d, k, 1] = mean / 4.0, high - low


_HARALICK = "Haralick, Shanmugam & Dinstein (1973), IEEE Trans Syst Man Cybern 3(6):610-621"


def _columns() -> Iterator[Column]:
    for region, pools in REGIONS.items():
        for channel in CHANNELS:
            for distance in DISTANCES:
                for row in PROPERTIES:
                    for pool in pools:
                        # a range is a difference: never below 0, never above the property's own width
                        low, high = (0, row.high - row.low) if pool == "range" else (row.low, row.high)
                        yield Column(
                            f"cooccurrence_{row.name}-d{distance}-{pool}_{channel}_{region}",
                            row.unit,
                            low,
                            high,
                            f"{pool.capitalize()} over 4 directions of the {row.words}, of pairs {distance} apart in "
                            f"{LEVELS} levels of {channel}, {REGION_WORDS[region]}.",
                            _HARALICK,
                        )


COLUMNS = tuple(_columns())
