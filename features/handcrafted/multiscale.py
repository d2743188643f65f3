"""Features across scales: wavelet energies, entropy of small blocks and fractal dimension."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from histoblend.features.handcrafted.channels import Planes
from histoblend.features.handcrafted.column import CHANNEL_WORDS, REGION_WORDS, Column, Row
from histoblend.features.handcrafted.kernel import inner_kernel, kernel

CHANNELS = ("grey", "absorbed", "eosin")
STATISTICS = (
    Row("haar1-sides", "decade", -6, 1, "Log10 of (energy + 1e-6), horizontal and vertical Haar bands, level 1"),
    Row("haar1-corners", "decade", -6, 1, "Log10 of (energy + 1e-6), diagonal Haar band, level 1"),
    Row("haar2-sides", "decade", -6, 1, "Log10 of (energy + 1e-6), horizontal and vertical Haar bands, level 2"),
    Row("haar2-corners", "decade", -6, 1, "Log10 of (energy + 1e-6), diagonal Haar band, level 2"),
    Row("haar3-sides", "decade", -6, 2, "Log10 of (energy + 1e-6), horizontal and vertical Haar bands, level 3"),
    Row("haar3-corners", "decade", -6, 2, "Log10 of (energy + 1e-6), diagonal Haar band, level 3"),
    Row("fractal", "1", 0, 4, "Fractal dimension (differential box counting, boxes of 2, 4, 8 and 16 px)"),
    Row("entropy-mean", "nat", 0, 2.7726, "Mean entropy of blocks of 8 × 8 px (16 levels)"),
    Row("entropy-spread", "nat", 0, 1.3863, "Standard deviation of the entropy of blocks of 8 × 8 px (16 levels)"),
)


def multiscale(planes: Planes) -> np.ndarray:
    """Wavelet energies, fractal dimension and local entropy of grey, light absorbed in red, and eosin.

    Haar energies come from three levels of the Haar wavelet (`pywt.dwt2`, levels 0 to 1; a last odd row or column is
    left out). The energy is the mean square of the horizontal and vertical details together, or of the diagonal
    details. The feature is log10 of (energy + 1e-6).

    The fractal dimension comes from differential box counting on levels 0 to 255. With h the shorter side of the patch,
    a box of side s spans ⌊max · h / (256 · s)⌋ − ⌊min · h / (256 · s)⌋ + 1 cells. The dimension is the slope of
    log(mean number of cells per box / s²) over −log s.

    Entropy is that of the 16-level histogram of each complete block of 8 × 8 pixels, counted from the upper left
    corner. The centre has 16 blocks of its own. The ring consists of the whole patch's blocks that do not touch the
    centre. If there are none, centre minus ring is 0.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, 33), dtype float32
        Per channel: `STATISTICS` of the whole patch, then the mean entropy of the centre and of centre minus ring.

    References
    ----------
    Mallat (1989), IEEE Trans Pattern Anal Mach Intell 11(7):674-693.
    Sarkar & Chaudhuri (1994), IEEE Trans Syst Man Cybern 24(1):115-120.
    """
    out = np.empty((len(CHANNELS), len(planes), len(STATISTICS) + 2))
    for channel, levels in enumerate((planes.grey, planes.absorbed, planes.eosin)):
        _multiscale_kernel(levels, out[channel])
    return out.transpose(1, 0, 2).reshape(len(planes), -1).astype(np.float32)


@inner_kernel
def _haar(plane: np.ndarray, half: np.ndarray, height: int, width: int, step: int, out: np.ndarray) -> None:
    """Write the energies of one level, and the sums of 2 × 2 pixels into `half`.

    The plane holds sums of 2^step × 2^step pixels. All sums are whole numbers, so their order does not matter.
    """
    sides, corners = np.int64(0), np.int64(0)
    for row in range(height // 2):
        for column in range(width // 2):
            a, b = plane[2 * row, 2 * column], plane[2 * row, 2 * column + 1]
            c, d = plane[2 * row + 1, 2 * column], plane[2 * row + 1, 2 * column + 1]
            across, down, corner = np.int64(a - b + c - d), np.int64(a + b - c - d), np.int64(a - b - c + d)
            sides += across * across + down * down
            corners += corner * corner
            half[row, column] = a + b + c + d
    # levels are 0 to 255, and 65025 is 255²; each level halves the sum of four
    count = 65025.0 * (height // 2) * (width // 2) * (4 << (2 * step))
    out[2 * step] = np.log10(sides / (2.0 * count) + 1e-6)
    out[2 * step + 1] = np.log10(corners / count + 1e-6)


@inner_kernel
def _fractal(highs: np.ndarray, lows: np.ndarray, height: int, width: int) -> float:
    """Slope over four box sizes. The first of the two planes of `highs` and of `lows` are copies of the plane."""
    side = np.int32(min(height, width))
    mean, slope = 0.0, 0.0
    for step in range(4):
        high, low, next_high, next_low = highs[step % 2], lows[step % 2], highs[1 - step % 2], lows[1 - step % 2]
        height, width, shift = height // 2, width // 2, np.int32(9 + step)
        cells = np.int64(height * width)
        for row in range(height):
            for column in range(width):
                r, c = 2 * row, 2 * column
                next_high[row, column] = max(high[r, c], high[r, c + 1], high[r + 1, c], high[r + 1, c + 1])
            for column in range(width):
                r, c = 2 * row, 2 * column
                next_low[row, column] = min(low[r, c], low[r, c + 1], low[r + 1, c], low[r + 1, c + 1])
            for column in range(width):
                top, bottom = np.int32(next_high[row, column]) * side, np.int32(next_low[row, column]) * side
                # a box of side s is s · 256 / side levels high
                cells += (top >> shift) - (bottom >> shift)
        # mean per box, because at some scales boxes do not cover the whole patch
        density = np.log(cells / (height * width)) + (3 - step) * np.log(4.0)
        mean += density
        slope += (step - 1.5) * density
    return -slope / 5.0 / np.log(2.0)


@inner_kernel
def _entropies(
    planes: np.ndarray, patch: int, rows: int, columns: int, logs: np.ndarray, counts: np.ndarray, out: np.ndarray
) -> None:
    """Write mean and spread of the entropy of the blocks in a central box, and the mean of the blocks in the ring.

    The last is NaN if the ring has no blocks. `counts` is scratch memory for four partial histograms of 16 levels, so
    that equal neighbouring pixels do not wait for the same counter.
    """
    _, height, width = planes.shape
    top, left = (height - rows) // 2, (width - columns) // 2
    total, squares, blocks, ring_total, ring_blocks = 0.0, 0.0, 0, 0.0, 0
    near_top, near_left = (height - 32) // 2 - 8, (width - 32) // 2 - 8
    for block_top in range(top, top + rows - 7, 8):
        for block_left in range(left, left + columns - 7, 8):
            for level in range(16):
                counts[0, level], counts[1, level], counts[2, level], counts[3, level] = 0, 0, 0, 0
            for row in range(block_top, block_top + 8):
                for column in range(8):
                    level = planes[patch, row, np.uint64(block_left) + np.uint64(column)] >> np.uint8(4)
                    counts[column % 4, level] += 1
            entropy = 0.0
            for level in range(16):
                entropy += logs[counts[0, level] + counts[1, level] + counts[2, level] + counts[3, level]]
            entropy = max(logs[64] / 64.0 - entropy / 64.0, 0.0)
            total += entropy
            squares += entropy * entropy
            blocks += 1
            if not (near_top < block_top < near_top + 40 and near_left < block_left < near_left + 40):
                ring_total += entropy
                ring_blocks += 1
    mean = total / blocks
    out[0], out[1] = mean, np.sqrt(max(squares / blocks - mean * mean, 0.0))
    out[2] = ring_total / ring_blocks if ring_blocks > 0 else np.nan


@kernel
def _multiscale_kernel(planes: np.ndarray, out: np.ndarray) -> None:
    n, height, width = planes.shape
    plane, half = np.empty((height, width), np.int32), np.empty((height // 2, width // 2), np.int32)
    highs, lows = np.empty((2, height, width), np.uint8), np.empty((2, height, width), np.uint8)
    logs, counts, entropies, ring = np.empty(65), np.empty((4, 16), np.int64), np.empty(3), 0.0
    logs[0] = 0.0
    for count in range(1, 65):
        logs[count] = count * np.log(float(count))
    for i in range(n):
        for row in range(height):
            for column in range(width):
                plane[row, column] = planes[i, row, column]
                highs[0, row, column], lows[0, row, column] = planes[i, row, column], planes[i, row, column]
        for step in range(3):
            source, target = (half, plane) if step == 1 else (plane, half)
            _haar(source, target, height >> step, width >> step, step, out[i])
        out[i, 6] = _fractal(highs, lows, height, width)
        for region in range(2):
            rows, columns = (height, width) if region == 0 else (32, 32)
            _entropies(planes, i, rows, columns, logs, counts, entropies)
            if region == 0:
                out[i, 7], out[i, 8], ring = entropies[0], entropies[1], entropies[2]
        out[i, 9], out[i, 10] = entropies[0], entropies[0] - ring if ring == ring else 0.0


_MALLAT = "Mallat (1989), IEEE Trans Pattern Anal Mach Intell 11(7):674-693"
_BOXES = "Sarkar & Chaudhuri (1994), IEEE Trans Syst Man Cybern 24(1):115-120"
_SHANNON = "Shannon (1948), Bell Syst Tech J 27(3):379-423"


def _columns() -> Iterator[Column]:
    references = {"haar": _MALLAT, "frac": _BOXES, "entr": _SHANNON}
    for channel in CHANNELS:
        entropy = STATISTICS[7]
        rows = [(row, "whole") for row in STATISTICS]
        rows += [(entropy, "centre"), (entropy._replace(low=-entropy.high), "contrast")]
        for row, region in rows:
            yield Column(
                f"multiscale_{row.name}_{channel}_{region}",
                *row[1:4],
                f"{row.words}, {CHANNEL_WORDS.get(channel, channel)}, {REGION_WORDS[region]}.",
                references[row.name[:4]],
            )


COLUMNS = tuple(_columns())
