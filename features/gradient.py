"""Edges and blobs of a batch of patches, at three scales."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import inf

import numba
import numpy as np

from features.column import REGION_WORDS, Column, Row
from features.stain import Planes

CHANNELS = ("grey", "absorbed")
#: Scale in pixels of the patch, its sigma on the plane that it is computed on, and how much that plane is shrunk.
SCALES = ((1, 1, 1), (2, 1, 2), (4, 2, 2))
REGIONS = ("whole", "centre")
STATISTICS = (
    Row("edge-mean", "1", 0, 2, "Mean gradient magnitude"),
    Row("edge-spread", "1", 0, 2, "Standard deviation of the gradient magnitude"),
    Row("edge-strong", "1", 0, 1, "Fraction of pixels whose gradient magnitude exceeds 0.1"),
    Row("blob-spread", "1", 0, 2, "Standard deviation of the Laplacian"),
    Row("blob-dark", "1", 0, 2, "Mean positive part of the Laplacian (valleys)"),
    Row("blob-bright", "1", 0, 2, "Mean negative part of the Laplacian (peaks)"),
    Row("blob-count", "1 / px²", 0, 0.25, "Dark blobs (peaks of the Laplacian above 0.02) per pixel"),
    Row("blob-peak", "1", 0, inf, "Mean height of those peaks (0 without)"),
)
_STRONG = 0.1
_PEAK = 0.02


def gradient(planes: Planes) -> np.ndarray:
    """Strength of edges, and strength and number of blobs, of grey and of the light absorbed in red.

    Gradient magnitude and Laplacian of the Gaussian-smoothed plane (`scipy.ndimage.gaussian_gradient_magnitude` and
    `gaussian_laplace`, borders reflected, levels in 0 to 1), multiplied by sigma and by sigma squared so that scales
    are comparable. Scale 1 is sigma 1 on the plane; scales 2 and 4 are sigma 1 and 2 on the plane shrunk to half by
    means of 2 × 2 pixels (a last odd row or column is left out). The sampled second derivative does not quite sum to
    zero; what that adds, a small multiple of the smoothed plane, is taken away, so that a constant plane has no
    blobs. On the absorbed plane, where nuclei are bright, the Laplacian's sign is turned, so that dark is dark in
    both. A peak exceeds 0.02 and all of its eight neighbours, in steps of 2⁻²⁰.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, 96), dtype float32
        By region, channel, scale and statistic (`STATISTICS`).

    References
    ----------
    Lindeberg (1998), Int J Comput Vis 30(2):79-116.
    """
    out = np.empty((len(planes), len(REGIONS), len(CHANNELS), len(SCALES), len(STATISTICS)))
    for channel, (levels, sign) in enumerate(((planes.grey, 1.0), (planes.absorbed, -1.0))):
        _gradient_kernel(levels, sign, _gaussians(1), _gaussians(2), out[:, :, channel])
    return out.reshape(len(planes), -1).astype(np.float32)


@cache
def _gaussians(sigma: int) -> np.ndarray:
    """Right half, the middle first, of SciPy's sampled Gaussian (cut at four sigma) and its first two derivatives.

    Shape (3, 4 sigma + 1); times 1, sigma and sigma squared.
    """
    x = np.arange(-4 * sigma, 4 * sigma + 1, dtype=np.float64)
    gaussian = np.exp(-0.5 * x**2 / sigma**2)
    gaussian /= gaussian.sum()
    bend = gaussian * (x**2 / sigma**4 - 1 / sigma**2)
    taps = np.stack([gaussian, gaussian * x / sigma, (bend - bend.sum() * gaussian) * sigma**2])
    return np.ascontiguousarray(taps[:, 4 * sigma :])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _reflect(position: int, size: int) -> int:
    """Index of a pixel beyond the border, mirrored about the border's edge as often as needed."""
    position %= 2 * size
    return position if position < size else 2 * size - 1 - position


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _along_rows(plane: np.ndarray, taps: np.ndarray, line: np.ndarray, passes: np.ndarray) -> None:
    """Convolve each row with the Gaussian and its two derivatives; `line` is room for a row and its mirrored ends."""
    height, width = plane.shape
    reach = taps.shape[1] - 1
    for row in range(height):
        line[reach : reach + width] = plane[row]
        for k in range(reach):
            line[reach - 1 - k] = plane[row, _reflect(-1 - k, width)]
            line[reach + width + k] = plane[row, _reflect(width + k, width)]
        smooth, slope, bend = passes[0, row], passes[1, row], passes[2, row]
        middle = line[reach : reach + width]
        for column in range(width):
            smooth[column] = taps[0, 0] * middle[column]
            slope[column] = 0.0
            bend[column] = taps[2, 0] * middle[column]
        for k in range(1, reach + 1):
            left, right = line[reach - k : reach - k + width], line[reach + k : reach + k + width]
            even, odd, curved = taps[0, k], taps[1, k], taps[2, k]
            for column in range(width):
                both = right[column] + left[column]
                smooth[column] += even * both
                bend[column] += curved * both
                slope[column] += odd * (right[column] - left[column])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _along_columns(
    passes: np.ndarray, taps: np.ndarray, lines: np.ndarray, edges: np.ndarray, blobs: np.ndarray
) -> None:
    """Gradient magnitude and Laplacian from the three passes along rows; `lines` is room for two rows."""
    _, height, width = passes.shape
    reach = taps.shape[1] - 1
    for row in range(height):
        across, down, blob = lines[0, :width], lines[1, :width], blobs[row]
        for column in range(width):
            across[column] = taps[0, 0] * passes[1, row, column]
            down[column] = 0.0
            blob[column] = taps[0, 0] * passes[2, row, column] + taps[2, 0] * passes[0, row, column]
        for k in range(1, reach + 1):
            up, low = _reflect(row - k, height), _reflect(row + k, height)
            even, odd, curved = taps[0, k], taps[1, k], taps[2, k]
            smooth1, slope1, bend1 = passes[0, up], passes[1, up], passes[2, up]
            smooth2, slope2, bend2 = passes[0, low], passes[1, low], passes[2, low]
            for column in range(width):
                across[column] += even * (slope1[column] + slope2[column])
                down[column] += odd * (smooth2[column] - smooth1[column])
                blob[column] += even * (bend1[column] + bend2[column]) + curved * (smooth1[column] + smooth2[column])
        edge = edges[row]
        for column in range(width):
            edge[column] = np.sqrt(across[column] * across[column] + down[column] * down[column])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _summary(edges: np.ndarray, blobs: np.ndarray, box: tuple[int, int, int, int], out: np.ndarray) -> None:
    """`STATISTICS` of the box (top, left, height, width) up to the count of blobs."""
    top, left, height, width = box
    count = height * width
    sums = np.zeros(6)
    for row in range(top, top + height):
        edge, blob = edges[row, left : left + width], blobs[row, left : left + width]
        for column in range(width):
            sums[0] += edge[column]
            sums[1] += edge[column] * edge[column]
            sums[2] += edge[column] > _STRONG
            sums[3] += blob[column]
            sums[4] += blob[column] * blob[column]
            sums[5] += abs(blob[column])
    sums /= count
    out[0], out[1], out[2] = sums[0], np.sqrt(max(sums[1] - sums[0] * sums[0], 0.0)), sums[2]
    out[3] = np.sqrt(max(sums[4] - sums[3] * sums[3], 0.0))
    out[4], out[5] = (sums[5] + sums[3]) / 2.0, (sums[5] - sums[3]) / 2.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _peaks(blobs: np.ndarray, box: tuple[int, int, int, int], shrunk: int, out: np.ndarray) -> None:
    """Count blobs per pixel of the patch and average their heights, in the patch (out[0]) and in the box (out[1])."""
    height, width = blobs.shape
    top, left, inner, _ = box
    found, total, found2, total2 = 0, 0.0, 0, 0.0
    for row in range(height):
        for column in range(width):
            blob = blobs[row, column]
            if blob <= _PEAK:
                continue
            # most have a neighbour that is higher by more than a step
            limit = blob + 2.0 / 1048576.0
            if (column > 0 and blobs[row, column - 1] > limit) or (
                column < width - 1 and blobs[row, column + 1] > limit
            ):
                continue
            if (row > 0 and blobs[row - 1, column] > limit) or (row < height - 1 and blobs[row + 1, column] > limit):
                continue
            # in steps, so that what is equal but for rounding is equal
            here, peak = np.floor(blobs[row, column] * 1048576.0 + 0.5), True
            for r in range(max(row - 1, 0), min(row + 2, height)):
                for c in range(max(column - 1, 0), min(column + 2, width)):
                    lower = np.floor(blobs[r, c] * 1048576.0 + 0.5) < here
                    peak = peak and (lower or (r == row and c == column))
            if peak:
                found += 1
                total += blobs[row, column]
                if top <= row < top + inner and left <= column < left + inner:
                    found2 += 1
                    total2 += blobs[row, column]
    out[0, 6], out[0, 7] = found / (blobs.size * shrunk * shrunk), total / found if found > 0 else 0.0
    out[1, 6], out[1, 7] = found2 / 1024.0, total2 / found2 if found2 > 0 else 0.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _gradient_kernel(planes: np.ndarray, sign: float, narrow: np.ndarray, wide: np.ndarray, out: np.ndarray) -> None:
    n, height, width = planes.shape
    plane, half = np.empty((height, width)), np.empty((height // 2, width // 2))
    passes, edges, blobs = np.empty((3, height, width)), np.empty((height, width)), np.empty((height, width))
    line, lines = np.empty(width + 2 * wide.shape[1]), np.empty((2, width))
    for i in range(n):
        # from the first pixel: neither slopes nor blobs depend on the offset, and a constant plane is exactly zero
        plane[:] = planes[i]
        plane -= planes[i, 0, 0]
        plane *= sign / 255.0
        for row in range(height // 2):
            above, below = plane[2 * row], plane[2 * row + 1]
            for column in range(width // 2):
                k = 2 * column
                half[row, column] = 0.25 * (above[k] + above[k + 1] + below[k] + below[k + 1])
        for scale in range(3):
            part, shrunk = (plane, 1) if scale == 0 else (half, 2)
            taps = wide if scale == 2 else narrow
            rows, columns = part.shape
            room = passes.reshape(passes.size)[: 3 * rows * columns].reshape((3, rows, columns))
            edge = edges.reshape(edges.size)[: rows * columns].reshape((rows, columns))
            blob = blobs.reshape(blobs.size)[: rows * columns].reshape((rows, columns))
            _along_rows(part, taps, line, room)
            _along_columns(room, taps, lines, edge, blob)
            inner = 32 // shrunk
            box = ((rows - inner) // 2, (columns - inner) // 2, inner, inner)
            _summary(edge, blob, (0, 0, rows, columns), out[i, 0, scale])
            _summary(edge, blob, box, out[i, 1, scale])
            _peaks(blob, box, shrunk, out[i, :, scale])


_LINDEBERG = "Lindeberg (1998), Int J Comput Vis 30(2):79-116"


def _columns() -> Iterator[Column]:
    for region in REGIONS:
        for channel in CHANNELS:
            for scale, _, _ in SCALES:
                for row in STATISTICS:
                    yield Column(
                        f"gradient_{row.name}-s{scale}_{channel}_{region}",
                        *row[1:4],
                        f"{row.words} at scale {scale} px (scale-normalised), {channel}, {REGION_WORDS[region]}.",
                        _LINDEBERG,
                    )


COLUMNS = tuple(_columns())
