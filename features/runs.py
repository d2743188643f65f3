"""Run lengths of a batch of patches."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import numba
import numpy as np

from features.column import Column, Row
from features.stain import Planes

CHANNELS = ("grey", "absorbed")
PROPERTIES = (
    Row("short", "1", 0, 1, "short run emphasis: mean of 1 / length²"),
    Row("long", "px²", 1, inf, "long run emphasis: mean of length²"),
    Row("level-nonuniformity", "1", 0, 1, "sum over levels of the squared share of runs"),
    Row("length-nonuniformity", "1", 0, 1, "sum over lengths of the squared share of runs"),
    Row("percentage", "1", 0, 1, "runs per pixel and direction"),
    Row("low", "1", 0, 1, "low grey-level emphasis: mean of 1 / level², levels counted from 1"),
    Row("high", "level²", 1, 64, "high grey-level emphasis: mean of level², levels counted from 1"),
    Row("entropy", "nat", 0, inf, "entropy of (level, length)"),
)


def runs(planes: Planes) -> np.ndarray:
    """Run-length statistics of grey and of the light absorbed in red, in 8 levels (8-bit level // 32).

    A run is a longest row of neighbours of the same level. The runs of all four directions (0, 45, 90 and 135 degrees)
    are counted together, which makes the statistics equal for a patch turned by 90 degrees or mirrored.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, 16), dtype float32
        By channel and statistic (`PROPERTIES`).

    References
    ----------
    Galloway (1975), Comput Graph Image Process 4(2):172-179.
    Chu, Sehgal & Greenleaf (1990), Pattern Recognit Lett 11(6):415-419 (levels).
    """
    out = np.empty((len(planes), len(CHANNELS), len(PROPERTIES)))
    for channel, levels in enumerate((planes.grey, planes.absorbed)):
        _runs_kernel(levels, out[:, channel])
    return out.reshape(len(planes), -1).astype(np.float32)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _count_runs(levels: np.ndarray, lengths: np.ndarray, down: int, right: int, counts: np.ndarray) -> None:
    """Count runs along (down, right); `lengths` holds those that end in the row above, and has a margin of one.

    A run that goes on takes back the count of its shorter beginning, so that nothing branches on the pixels.
    """
    height, width = levels.shape
    lengths[:] = 0
    for row in range(height):
        above, here = lengths[row % 2 if down else 0], lengths[(row + 1) % 2 if down else 0]
        line, before = levels[row], levels[max(row - down, 0)]
        here[0], here[width + 1] = 0, 0
        for column in range(width):
            level = line[column]
            back = column - right
            inside = row >= down and 0 <= back < width
            known = above[back + 1]
            goes_on = inside and before[max(min(back, width - 1), 0)] == level
            length = known + 1 if goes_on else 1
            counts[level, length] += 1
            counts[level, length - 1] -= 1
            here[column + 1] = length


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _runs_kernel(planes: np.ndarray, out: np.ndarray) -> None:
    n, height, width = planes.shape
    longest = max(height, width)
    counts = np.empty((8, longest + 1), np.int32)
    levels = np.empty((height, width), np.uint8)
    lengths = np.empty((2, width + 2), np.int32)
    for i in range(n):
        levels[:] = planes[i] >> 5
        counts[:] = 0
        _count_runs(levels, lengths, 0, 1, counts)
        _count_runs(levels, lengths, 1, 0, counts)
        _count_runs(levels, lengths, 1, 1, counts)
        _count_runs(levels, lengths, 1, -1, counts)
        _statistics(counts, 4 * height * width, out[i])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _statistics(counts: np.ndarray, steps: int, out: np.ndarray) -> None:
    """`PROPERTIES` from counts by level and length; length 0 is scratch."""
    longest = counts.shape[1] - 1
    out[:] = 0.0
    total, entropy = np.int64(0), 0.0
    by_level = np.zeros(8, np.int64)
    for length in range(1, longest + 1):
        together = np.int64(0)
        for level in range(8):
            count = np.int64(counts[level, length])
            if count > 0:
                by_level[level] += count
                together += count
                entropy += count * np.log(float(count))
        total += together
        out[0] += together / (length * length)
        out[1] += float(together) * length * length
        out[3] += float(together) * together
    for level in range(8):
        out[2] += float(by_level[level]) * by_level[level]
        out[5] += by_level[level] / (level + 1.0) ** 2
        out[6] += by_level[level] * (level + 1.0) ** 2
    for k in (0, 1, 5, 6):
        out[k] /= total
    out[2] /= float(total) * total
    out[3] /= float(total) * total
    out[4] = total / steps
    out[7] = max(np.log(float(total)) - entropy / total, 0.0)


_GALLOWAY = "Galloway (1975), Comput Graph Image Process 4(2):172-179"


def _columns() -> Iterator[Column]:
    for channel in CHANNELS:
        for row in PROPERTIES:
            yield Column(
                f"runs_{row.name}_{channel}_whole",
                *row[1:4],
                f"Of runs in 8 levels of {channel} and 4 directions, the {row.words}, whole patch.",
                _GALLOWAY,
            )


COLUMNS = tuple(_columns())
