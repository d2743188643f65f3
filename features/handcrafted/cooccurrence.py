"""Grey-level co-occurrence features of a batch of patches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

from histoblend.features.handcrafted.channels import Planes
from histoblend.features.handcrafted.column import CHANNEL_WORDS, REGION_WORDS, Column, Row
from histoblend.features.handcrafted.kernel import inner_kernel, kernel

CHANNELS = ("grey", "absorbed", "haematoxylin", "eosin")
DISTANCES = (1, 3)
LEVELS = 16
PROPERTIES = (
    Row("contrast", "level²", 0, 225, "contrast (mean squared level difference)"),
    Row("dissimilarity", "level", 0, 15, "dissimilarity (mean level difference)"),
    Row("homogeneity", "1", 0, 1, "homogeneity (mean of 1 / (1 + squared level difference))"),
    Row("asm", "1", 0, 1, "angular second moment (sum of squared probabilities)"),
    Row("energy", "1", 0, 1, "energy (square root of the angular second moment)"),
    Row("correlation", "1", -1, 1, "correlation of the two levels (1 if constant)"),
    Row("entropy", "nat", 0, 5.5452, "entropy"),
    Row("sum-entropy", "nat", 0, 3.434, "entropy of the level sums"),
    Row("sum-skew", "1", -200, 200, "skewness of the level sums (0 if constant)"),
    Row("difference-entropy", "nat", 0, 2.7726, "entropy of the level differences"),
)
#: How each region pools the four directions.
REGIONS = {"whole": ("mean", "range"), "centre": ("mean",)}
#: Properties that also have a column for centre minus ring, at the first distance.
CONTRASTS = ("contrast", "homogeneity")


def cooccurrence(planes: Planes) -> np.ndarray:
    """Grey-level co-occurrence properties of four channels, pooled over four directions.

    The channels are grey, light absorbed in red, haematoxylin and eosin (`channels.Planes`).

    The matrices are those of `skimage.feature.graycomatrix` with 16 levels (8-bit level // 16), distances 1 and 3, and
    angles 0, 45, 90 and 135 degrees, symmetric and normed. The properties are those of `graycoprops`, plus the
    entropies and skewness of the sums and (absolute) differences of the two levels. Each property is averaged over the
    four directions. The whole patch also has the range (maximum minus minimum) over the directions.

    The centre is cut out before its pairs are counted. The ring's pairs are all other pairs of the patch. If there are
    none, the ring's properties equal the centre's.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, 248), dtype float32
        Ordered by region (`REGIONS`), channel, distance, property (`PROPERTIES`) and pool, followed by centre minus
        ring of `CONTRASTS`.

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
    blocks = (out[:, 0], out[:, 1, ..., 0], out[:, 1, :, 0][..., contrasts, 1])
    return np.concatenate([block.reshape(n, -1) for block in blocks], axis=1).astype(np.float32)


@cache
def _steps() -> np.ndarray:
    """Row and column offsets by distance and angle, rounded as scikit-image does."""
    angles = np.arange(4) * np.pi / 4
    steps = [[(round(np.sin(a) * d), round(np.cos(a) * d)) for a in angles] for d in DISTANCES]
    return np.array(steps, np.int64)


@cache
def _count_logs(pixels: int) -> np.ndarray:
    """Table of c · ln c for every count a symmetric matrix of this many pixels can hold."""
    counts = np.arange(2 * pixels + 1, dtype=np.float64)
    return counts * np.log(np.maximum(counts, 1.0))


@inner_kernel
def _count_triples(
    padded: np.ndarray, height: int, width: int, steps: np.ndarray, keys: np.ndarray, triples: np.ndarray
) -> None:
    """Count triples of a pixel and two neighbours, in directions 0 and 2 and in directions 1 and 3.

    The index into `triples` is 272 · neighbour + 17 · pixel + other neighbour. Counting triples takes half as many
    increments as counting pairs. `triples` has a second pair of rows, which is added at the end, so that equal pixels
    in a row do not wait for the same counter. `padded` has three pixels of level 16 on the left, on the right and
    below. `keys` is scratch memory for two rows.
    """
    for k in range(triples.shape[1]):
        triples[0, k], triples[1, k], triples[2, k], triples[3, k] = 0, 0, 0, 0
    here, side = np.uint64(3), np.uint64(3 + steps[0, 1])
    right, left = np.uint64(3 + steps[1, 1]), np.uint64(3 + steps[3, 1])
    for row in range(height):
        across, down = row + steps[1, 0], row + steps[2, 0]
        # unsigned, because a loop whose index may be negative is not vectorised; one loop per key, because a product
        # that is used twice would be computed in 64 bits
        for column in range(width):
            position = np.uint64(column)
            levels = padded[row, position + side] * np.int32(16) + padded[row, position + here]
            keys[0, position] = levels * np.int32(17) + padded[down, position + here]
        for column in range(width):
            position = np.uint64(column)
            levels = padded[across, position + right] * np.int32(16) + padded[row, position + here]
            keys[1, position] = levels * np.int32(17) + padded[across, position + left]
        for column in range(width // 2):
            position, after = np.uint64(2 * column), np.uint64(2 * column + 1)
            triples[0, keys[0, position]] += 1
            triples[1, keys[1, position]] += 1
            triples[2, keys[0, after]] += 1
            triples[3, keys[1, after]] += 1
        if width % 2:
            triples[0, keys[0, width - 1]] += 1
            triples[1, keys[1, width - 1]] += 1
    for direction in range(2):
        for k in range(triples.shape[1]):
            triples[direction, k] += triples[direction + 2, k]


@inner_kernel
def _fill_matrices(triples: np.ndarray, counts: np.ndarray) -> None:
    """Sum triples to pairs, `counts[direction, 17 · pixel + neighbour]`. Level 16 is the padding.

    The triples are overwritten.
    """
    for direction in range(2):
        for pair in range(272):
            counts[direction + 2, pair] = 0
        for neighbour in range(17):
            first = np.uint64(272 * neighbour)
            for pair in range(272):
                counts[direction + 2, pair] += triples[direction, np.uint64(pair) + first]
            for level in range(16):
                counts[direction, 17 * level + neighbour] = triples[direction, 272 * neighbour + 17 * level + 16]
        # after sums of 2, 4 and 8, each entry is the sum of itself and the next 15 entries
        for power in range(4):
            step = np.uint64(1) << np.uint64(power)
            for k in range(triples.shape[1] - (1 << power)):
                triples[direction, k] += triples[direction, np.uint64(k) + step]
        for neighbour in range(17):
            for level in range(16):
                counts[direction, 17 * level + neighbour] += triples[direction, 272 * neighbour + 17 * level]


@inner_kernel
def _matrix_properties(
    counts: np.ndarray, direction: int, logs: np.ndarray, differences: np.ndarray, sums: np.ndarray, out: np.ndarray
) -> None:
    """Compute the properties of one direction from its counts of ordered pairs.

    The co-occurrence matrix is the counts plus their transpose. `differences` and `sums` are scratch memory for the
    counts of 16 level differences and 31 level sums.
    """
    for k in range(16):
        differences[k] = 0
    for k in range(31):
        sums[k] = 0
    square_sum, entropy = 0, 0.0
    for i in range(16):
        for j in range(i):
            pair = counts[direction, 17 * i + j] + counts[direction, 17 * j + i]
            differences[i - j] += 2 * pair
            sums[i + j] += 2 * pair
            square_sum += 2 * pair * pair
            entropy += 2.0 * logs[pair]
        pair = 2 * counts[direction, 18 * i]
        differences[0] += pair
        sums[2 * i] += pair
        square_sum += pair * pair
        entropy += logs[pair]
    total, contrast, dissimilarity, homogeneity, difference_logs = 0, 0, 0, 0.0, 0.0
    for k in range(16):
        total += differences[k]
        contrast += differences[k] * k * k
        dissimilarity += differences[k] * k
        homogeneity += differences[k] / (1.0 + k * k)
        difference_logs += logs[differences[k]]
    first, second, sum_logs = 0, 0, 0.0
    for k in range(31):
        first += sums[k] * k
        second += sums[k] * k * k
        sum_logs += logs[sums[k]]
    # all sums so far are whole numbers, so a constant plane has a variance of exactly zero
    variance, covariance = total * (second + contrast) - first * first, total * (second - contrast) - first * first
    mean, third = first / total, 0.0
    for k in range(31):
        third += sums[k] * (k - mean) ** 3
    sum_variance = (total * second - first * first) / (float(total) * total)
    out[direction, 0], out[direction, 1] = contrast / total, dissimilarity / total
    out[direction, 2] = homogeneity / total
    out[direction, 3] = square_sum / (float(total) * total)
    out[direction, 4] = np.sqrt(out[direction, 3])
    out[direction, 5] = covariance / variance if variance > 0 else 1.0
    out[direction, 6] = max(np.log(total) - entropy / total, 0.0)
    out[direction, 7] = max(np.log(total) - sum_logs / total, 0.0)
    out[direction, 8] = third / total / (sum_variance * np.sqrt(sum_variance)) if sum_variance > 0.0 else 0.0
    out[direction, 9] = max(np.log(total) - difference_logs / total, 0.0)


@kernel
def _cooccurrence_kernel(planes: np.ndarray, steps: np.ndarray, logs: np.ndarray, out: np.ndarray) -> None:
    n, height, width = planes.shape
    padded, keys = np.empty((height + 3, width + 6), np.uint8), np.empty((2, width), np.uint16)
    triples, counts = np.empty((4, 17 * 272), np.int32), np.empty((4, 272), np.int32)
    differences, sums, properties = np.empty(16, np.int64), np.empty(31, np.int64), np.empty((4, 10))
    whole_properties = np.empty((2, 4, 3))
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
                _count_triples(padded, rows, columns, steps[d], keys, triples)
                _fill_matrices(triples, counts)
                for direction in range(4):
                    _matrix_properties(counts, direction, logs, differences, sums, properties)
                for k in range(10):
                    low, high, mean = properties[0, k], properties[0, k], 0.0
                    for direction in range(4):
                        low, high = min(low, properties[direction, k]), max(high, properties[direction, k])
                        mean += properties[direction, k]
                    out[i, region, d, k, 0], out[i, region, d, k, 1] = mean / 4.0, high - low
                # for the centre, centre minus ring replaces the range, which has no column
                for k in range(3):
                    contrast = 0.0
                    for direction in range(4):
                        if region == 0:
                            whole_properties[d, direction, k] = properties[direction, k]
                        down, right = steps[d, direction, 0], abs(steps[d, direction, 1])
                        pairs, inner_pairs = (height - down) * (width - right), (32 - down) * (32 - right)
                        if pairs > inner_pairs:
                            change = properties[direction, k] - whole_properties[d, direction, k]
                            contrast += change * (pairs / (pairs - inner_pairs)) / 4.0
                    if region == 1:
                        out[i, region, d, k, 1] = contrast


_HARALICK = "Haralick, Shanmugam & Dinstein (1973), IEEE Trans Syst Man Cybern 3(6):610-621"


def _sentence(row: Row, distance: int, channel: str, pool: str, region: str) -> str:
    return (
        f"{row.words.capitalize()} of pixel pairs {distance} px apart in {CHANNEL_WORDS.get(channel, channel)} "
        f"({LEVELS} levels), {pool} over 4 directions, {region}."
    )


def _columns() -> Iterator[Column]:
    for region, pools in REGIONS.items():
        for channel in CHANNELS:
            for distance in DISTANCES:
                for row in PROPERTIES:
                    for pool in pools:
                        # a range is at least 0 and at most the width of the property's own range
                        low, high = (0, row.high - row.low) if pool == "range" else (row.low, row.high)
                        yield Column(
                            f"cooccurrence_{row.name}-d{distance}-{pool}_{channel}_{region}",
                            row.unit,
                            low,
                            high,
                            _sentence(row, distance, channel, pool, REGION_WORDS[region]),
                            _HARALICK,
                        )
    for channel in CHANNELS:
        for row in PROPERTIES:
            if row.name in CONTRASTS:
                words = _sentence(row, DISTANCES[0], channel, "mean", REGION_WORDS["contrast"])
                name = f"cooccurrence_{row.name}-d{DISTANCES[0]}-mean_{channel}_contrast"
                yield Column(name, row.unit, -row.high, row.high, words, _HARALICK)


COLUMNS = tuple(_columns())
