"""Run-length features of a batch of patches."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import numpy as np

from histoblend.features.handcrafted.channels import Planes
from histoblend.features.handcrafted.column import CHANNEL_WORDS, Column, Row
from histoblend.features.handcrafted.kernel import inner_kernel, kernel

CHANNELS = ("grey", "absorbed")
PROPERTIES = (
    Row("short", "1", 0, 1, "Short run emphasis (mean of 1 / length²)"),
    Row("long", "px²", 1, inf, "Long run emphasis (mean of length²)"),
    Row("level-nonuniformity", "1", 0, 1, "Level non-uniformity (sum over levels of the squared share of runs)"),
    Row("length-nonuniformity", "1", 0, 1, "Length non-uniformity (sum over lengths of the squared share of runs)"),
    Row("percentage", "1", 0, 1, "Run percentage (runs per pixel and direction)"),
    Row("low", "1", 0, 1, "Low-level emphasis (mean of 1 / level², levels counted from 1)"),
    Row("high", "level²", 1, 64, "High-level emphasis (mean of level², levels counted from 1)"),
    Row("entropy", "nat", 0, inf, "Entropy of pairs of level and run length"),
)


def runs(planes: Planes) -> np.ndarray:
    """Run-length statistics of grey and of the light absorbed in red, with 8 levels (8-bit level // 32).

    A run is a maximal line of neighbouring pixels with the same level. The runs of all four directions (0, 45, 90 and
    135 degrees) are counted together, so the statistics do not change if a patch is mirrored or turned by 90 degrees.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, 16), dtype float32
        Ordered by channel and statistic (`PROPERTIES`).

    References
    ----------
    Galloway (1975), Comput Graph Image Process 4(2):172-179.
    Chu, Sehgal & Greenleaf (1990), Pattern Recognit Lett 11(6):415-419 (levels).
    """
    out = np.empty((len(CHANNELS), len(planes), len(PROPERTIES)))
    for channel, levels in enumerate((planes.grey, planes.absorbed)):
        _runs_kernel(levels, out[channel])
    return out.transpose(1, 0, 2).reshape(len(planes), -1).astype(np.float32)


@inner_kernel
def _count_runs(
    levels: np.ndarray,
    height: int,
    width: int,
    right: int,
    lengths: np.ndarray,
    keys: np.ndarray,
    ended: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Count runs in direction (1, right) by level and length. Entries of length 0 are meaningless.

    The plane starts at row 0 and column 1 of `levels`, with a margin of level 8 on three sides. `lengths` contains the
    lengths of the runs that reach the current row. `keys` and `ended` are scratch memory for one row, which lets the
    search for run ends be vectorised.
    """
    stride = np.int32(counts.size // 8)
    for column in range(width + 2):
        lengths[0, column], lengths[1, column] = 1, 1
    beside = np.uint64(1 + right)
    for row in range(height):
        here, next_row = row % 2, (row + 1) % 2
        for column in range(width):
            level, length = levels[row, column + 1], lengths[here, column + 1]
            next_column = np.uint64(column) + beside
            same = level == levels[row + 1, next_column]
            keys[column] = np.int32(level) * stride + length
            ended[column] = 0 if same else 1
            lengths[next_row, next_column] = length + 1 if same else 1
        # a pixel at the border starts a new run
        lengths[next_row, 1 if right > 0 else width] = 1 if right else lengths[next_row, width]
        for column in range(width):
            counts[keys[column]] += ended[column]


@kernel
def _runs_kernel(planes: np.ndarray, out: np.ndarray) -> None:
    n, height, width = planes.shape
    longest = max(height, width)
    counts = np.empty((8, longest + 1), np.int32)
    flat = counts.reshape(counts.size)
    upright, transposed = np.empty((height + 1, width + 2), np.uint8), np.empty((width + 1, height + 2), np.uint8)
    for row in range(height + 1):
        for column in range(width + 2):
            upright[row, column] = 8
    for row in range(width + 1):
        for column in range(height + 2):
            transposed[row, column] = 8
    lengths, keys = np.empty((2, longest + 2), np.int32), np.empty(longest, np.uint32)
    ended = np.empty(longest, np.int32)
    for i in range(n):
        for row in range(height):
            for column in range(width):
                upright[row, column + 1] = planes[i, row, column] >> 5
                transposed[column, row + 1] = planes[i, row, column] >> 5
        for level in range(8):
            for length in range(longest + 1):
                counts[level, length] = 0
        for direction in range(4):
            levels, rows, columns = (transposed, width, height) if direction == 3 else (upright, height, width)
            _count_runs(levels, rows, columns, direction - 1 if direction < 3 else 0, lengths, keys, ended, flat)
        _statistics(counts, 4 * height * width, out, i)


@inner_kernel
def _statistics(counts: np.ndarray, steps: int, table: np.ndarray, patch: int) -> None:
    """Write `PROPERTIES` from counts by level and length; entries of length 0 are ignored."""
    total, entropy, length_squares, level_squares = 0, 0.0, 0.0, 0.0
    short, long, low, high = 0.0, 0.0, 0.0, 0.0
    for length in range(1, counts.shape[1]):
        subtotal = 0
        for level in range(8):
            count = counts[level, length]
            if count > 0:
                subtotal += count
                entropy += count * np.log(float(count))
        total += subtotal
        short += subtotal / (length * length)
        long += float(subtotal) * length * length
        length_squares += float(subtotal) * subtotal
    for level in range(8):
        subtotal = 0
        for length in range(1, counts.shape[1]):
            subtotal += counts[level, length]
        level_squares += float(subtotal) * subtotal
        low += subtotal / ((level + 1.0) * (level + 1.0))
        high += subtotal * ((level + 1.0) * (level + 1.0))
    squared = float(total) * total
    table[patch, 0], table[patch, 1] = short / total, long / total
    table[patch, 2], table[patch, 3] = level_squares / squared, length_squares / squared
    table[patch, 4], table[patch, 5], table[patch, 6] = total / steps, low / total, high / total
    table[patch, 7] = max(np.log(float(total)) - entropy / total, 0.0)


_GALLOWAY = "Galloway (1975), Comput Graph Image Process 4(2):172-179"


def _columns() -> Iterator[Column]:
    for channel in CHANNELS:
        for row in PROPERTIES:
            yield Column(
                f"runs_{row.name}_{channel}_whole",
                *row[1:4],
                f"{row.words}, runs in {CHANNEL_WORDS.get(channel, channel)} (8 levels, 4 directions), whole patch.",
                _GALLOWAY,
            )


COLUMNS = tuple(_columns())
