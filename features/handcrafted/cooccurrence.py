"""Grey-level co-occurrence of a batch of patches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

from histoblend.features.handcrafted.channels import Planes
from histoblend.features.handcrafted.column import REGION_WORDS, Column, Row
from histoblend.features.handcrafted.kernel import kernel, part

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
#: Means over pairs that have a column, at the first distance, for the difference of centre and ring.
CONTRASTS = ("contrast", "homogeneity")


def cooccurrence(planes: Planes) -> np.ndarray:
    """Grey-level co-occurrence properties of four channels, pooled over four directions.

    The channels are grey, light absorbed in red, haematoxylin and eosin (`channels.Planes`).

    `skimage.feature.graycomatrix` with 16 levels (8-bit level // 16), distances 1 and 3, angles 0, 45, 90 and 135
    degrees, symmetric and normed; then `graycoprops`, and the entropies and skewness of the sums and (absolute)
    differences of the two levels. Of the four directions the mean and, over the whole patch, the range (maximum minus
    minimum) are kept. The centre is cut out before pairs are counted; the ring's pairs are all others, and where there
    are none its properties equal the centre's.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, 248), dtype float32
        By region (`REGIONS`), channel, distance, property (`PROPERTIES`), pool; then centre minus ring of `CONTRASTS`.

    References
    ----------
    Haralick, Shanmugam & Dinstein (1973), IEEE Trans Syst Man Cybern 3(6):610-621.
    """
    n, height, width = planes.grey.shape
    out = np.empty((len(CHANNELS), n, 2, len(DISTANCES), len(PROPERTIES), 2))
    for channel, levels in enumerate((planes.grey, planes.absorbed, planes.haematoxylin, planes.eosin)):
        _cooccurrence_kernel(levels, _steps(), _count_logs(height * width), out[channel])
    out = out.transpose(1, 2, 0, 3, 4, 5)
    contrasts = [[row.name for row in PROPERTIES].index(name) for name in CONTRASTS]
    parts = (out[:, 0], out[:, 1, ..., 0], out[:, 1, :, 0][..., contrasts, 1])
    return np.concatenate([part.reshape(n, -1) for part in parts], axis=1).astype(np.float32)


@cache
def _steps() -> np.ndarray:
    """Row and column steps by distance and angle, rounded as scikit-image does."""
    angles = np.arange(4) * np.pi / 4
    steps = [[(round(np.sin(a) * d), round(np.cos(a) * d)) for a in angles] for d in DISTANCES]
    return np.array(steps, np.int64)


@cache
def _count_logs(pixels: int) -> np.ndarray:
    """Table of c · ln c for every count a symmetric matrix of this many pixels can hold."""
    counts = np.arange(2 * pixels + 1, dtype=np.float64)
    return counts * np.log(np.maximum(counts, 1.0))


@part
def _count_pairs(
    padded: np.ndarray, height: int, width: int, steps: np.ndarray, keys: np.ndarray, triples: np.ndarray
) -> None:
    """Count ordered triples: a pixel with its neighbours in directions 0 and 2, and with those in 1 and 3.

    `triples` has, for both, 289 · pixel + 17 · neighbour + other neighbour: half as many counts as pairs would take.
    `padded` has three pixels of level 16 on the left, on the right and below; `keys` is room for two rows.
    """
    for k in range(triples.shape[1]):
        triples[0, k], triples[1, k] = 0, 0
    here, side = np.uint64(3), np.uint64(3 + steps[0, 1])
    right, left = np.uint64(3 + steps[1, 1]), np.uint64(3 + steps[3, 1])
    for row in range(height):
        across, down = row + steps[1, 0], row + steps[2, 0]
        for column in range(width):
            # unsigned: an index that may be negative keeps the loop from being vectorised
            at = np.uint64(column)
            level = np.int32(padded[row, at + here]) * np.int32(289)
            keys[0, column] = level + padded[row, at + side] * np.int32(17) + padded[down, at + here]
            keys[1, column] = level + padded[across, at + right] * np.int32(17) + padded[across, at + left]
        for column in range(width):
            triples[0, keys[0, column]] += 1
            triples[1, keys[1, column]] += 1


@part
def _fill_matrices(triples: np.ndarray, counts: np.ndarray) -> None:
    """Sum triples to pairs: `counts[direction, 16 · first + second]`; level 16 lies outside."""
    for both in range(2):
        for first in range(16):
            for second in range(16):
                counts[2 + both, 16 * first + second] = 0
            for second in range(17):
                start, total = 289 * first + 17 * second, 0
                for k in range(17):
                    total += triples[both, start + k]
                for k in range(16):
                    counts[both + 2, 16 * first + k] += triples[both, start + k]
                if second < 16:
                    counts[both, 16 * first + second] = total


@part
def _matrix_properties(
    counts: np.ndarray, direction: int, logs: np.ndarray, apart: np.ndarray, sums: np.ndarray, out: np.ndarray
) -> None:
    """Properties of one direction from the counts of ordered pairs; the matrix is counts plus its transpose.

    `apart` and `sums` are room for the counts of 16 differences and 31 sums.
    """
    for k in range(16):
        apart[k] = 0
    for k in range(31):
        sums[k] = 0
    squares, entropy = 0, 0.0
    for i in range(16):
        for j in range(i):
            pair = counts[direction, 16 * i + j] + counts[direction, 16 * j + i]
            apart[i - j] += 2 * pair
            sums[i + j] += 2 * pair
            squares += 2 * pair * pair
            entropy += 2.0 * logs[pair]
        pair = 2 * counts[direction, 17 * i]
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
    out[direction, 0], out[direction, 1] = contrast / total, dissimilarity / total
    out[direction, 2] = homogeneity / total
    out[direction, 3] = squares / (float(total) * total)
    out[direction, 4] = np.sqrt(out[direction, 3])
    out[direction, 5] = covariance / variance if variance > 0 else 1.0
    out[direction, 6] = max(np.log(total) - entropy / total, 0.0)
    out[direction, 7] = max(np.log(total) - mixed / total, 0.0)
    out[direction, 8] = third / total / (skewed * np.sqrt(skewed)) if skewed > 0.0 else 0.0
    out[direction, 9] = max(np.log(total) - spread / total, 0.0)


@kernel
def _cooccurrence_kernel(planes: np.ndarray, steps: np.ndarray, logs: np.ndarray, out: np.ndarray) -> None:
    n, height, width = planes.shape
    padded, keys = np.empty((height + 3, width + 6), np.uint8), np.empty((2, width), np.int32)
    triples, counts = np.empty((2, 17 * 289), np.int32), np.empty((4, 256), np.int32)
    apart, sums, properties = np.empty(16, np.int64), np.empty(31, np.int64), np.empty((4, 10))
    wholes = np.empty((2, 4, 3))
    for i in range(n):
        for region in range(2):
            rows, columns = (height, width) if region == 0 else (32, 32)
            top, left = (height - rows) // 2, np.uint64((width - columns) // 2)
            for row in range(rows + 3):
                for column in range(columns + 6):
                    padded[row, column] = 16
            for row in range(rows):
                for column in range(columns):
                    padded[row, column + 3] = planes[i, row + top, np.uint64(column) + left] >> 4
            for d in range(2):
                _count_pairs(padded, rows, columns, steps[d], keys, triples)
                _fill_matrices(triples, counts)
                for both in range(4):
                    _matrix_properties(counts, both, logs, apart, sums, properties)
                for k in range(10):
                    low, high, mean = properties[0, k], properties[0, k], 0.0
                    for both in range(4):
                        low, high = min(low, properties[both, k]), max(high, properties[both, k])
                        mean += properties[both, k]
                    out[i, region, d, k, 0], out[i, region, d, k, 1] = mean / 4.0, high - low
                # the centre's range is not wanted: centre minus ring, whose means follow, takes its place
                for k in range(3):
                    apart_mean = 0.0
                    for both in range(4):
                        if region == 0:
                            wholes[d, both, k] = properties[both, k]
                        down, right = steps[d, both, 0], abs(steps[d, both, 1])
                        pairs, inner = (height - down) * (width - right), (32 - down) * (32 - right)
                        if pairs > inner:
                            beyond = properties[both, k] - wholes[d, both, k]
                            apart_mean += beyond * (pairs / (pairs - inner)) / 4.0
                    if region == 1:
                        out[i, region, d, k, 1] = apart_mean


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
    for channel in CHANNELS:
        for row in PROPERTIES:
            if row.name in CONTRASTS:
                words = (
                    f"Mean over 4 directions of the {row.words}, of pairs {DISTANCES[0]} apart in {LEVELS} levels of "
                    f"{channel}, centre minus ring."
                )
                name = f"cooccurrence_{row.name}-d{DISTANCES[0]}-mean_{channel}_contrast"
                yield Column(name, row.unit, -row.high, row.high, words, _HARALICK)


COLUMNS = tuple(_columns())
