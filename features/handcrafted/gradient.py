"""Edges and blobs of a batch of patches, at three scales."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import inf

import numpy as np

from histoblend.features.handcrafted.channels import Planes
from histoblend.features.handcrafted.column import CHANNEL_WORDS, REGION_WORDS, Column, Row
from histoblend.features.handcrafted.kernel import inner_kernel, kernel

CHANNELS = ("grey", "absorbed")
#: Scale in pixels of the patch, sigma on the (shrunk) plane, and the factor by which that plane is shrunk.
SCALES = ((1, 1, 1), (2, 1, 2), (4, 2, 2))
REGIONS = ("whole", "centre")
STATISTICS = (
    Row("edge-mean", "1", 0, 2, "Mean gradient magnitude"),
    Row("edge-spread", "1", 0, 2, "Standard deviation of the gradient magnitude"),
    Row("edge-strong", "1", 0, 1, "Fraction of pixels whose gradient magnitude exceeds 0.1"),
    Row("blob-spread", "1", 0, 2, "Standard deviation of the Laplacian"),
    Row("blob-dark", "1", 0, 2, "Mean positive part of the Laplacian (dark areas)"),
    Row("blob-bright", "1", 0, 2, "Mean negative part of the Laplacian (bright areas)"),
    Row("blob-count", "1 / px²", 0, 0.25, "Dark blobs (peaks of the Laplacian above 0.02) per pixel"),
    Row("blob-peak", "1", 0, inf, "Mean peak height of the dark blobs (0 without blobs)"),
)
#: Statistics that also have a column for centre minus ring.
CONTRASTS = ("edge-mean", "blob-dark")
_STRONG = 0.1
_PEAK = 0.02
#: Reach of the widest filter: number of rows and columns that it needs beyond the border.
_MARGIN = 8


def gradient(planes: Planes) -> np.ndarray:
    """Strength of edges, and strength and number of blobs, in grey and in the light absorbed in red.

    The features are statistics of the gradient magnitude and the Laplacian of the Gaussian-smoothed plane
    (`scipy.ndimage.gaussian_gradient_magnitude` and `gaussian_laplace`, borders reflected, levels 0 to 1). They are
    multiplied by sigma and by sigma squared, which makes scales comparable. Scale 1 is sigma 1 on the plane. Scales 2
    and 4 are sigma 1 and 2 on the plane shrunk to half by means of 2 × 2 pixels. A last odd row or column is left out.

    The sampled second derivative does not quite sum to zero. The resulting small multiple of the smoothed plane is
    subtracted, so that a constant plane has no blobs. Nuclei are bright in the absorbed plane, so there the sign of the
    Laplacian is reversed and nuclei count as dark in both channels. A peak exceeds 0.02 and all of its eight
    neighbours, in steps of 2⁻²⁰.

    The ring is the part of each scale's plane outside the centre. If there is none, its means equal the centre's.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, 108), dtype float32
        Ordered by region, channel, scale and statistic (`STATISTICS`), followed by centre minus ring of `CONTRASTS`.

    References
    ----------
    Lindeberg (1998), Int J Comput Vis 30(2):79-116.
    """
    out = np.empty((len(CHANNELS), len(planes), len(REGIONS), len(SCALES), len(STATISTICS)))
    for channel, (levels, sign) in enumerate(((planes.grey, 1.0), (planes.absorbed, -1.0))):
        _gradient_kernel(levels, sign, _gaussians(1), _gaussians(2), out[channel])
    blocks = [out.transpose(1, 2, 0, 3, 4), _contrasts(out, *planes.grey.shape[1:])]
    return np.concatenate([block.reshape(len(planes), -1) for block in blocks], axis=1).astype(np.float32)


def _contrasts(out: np.ndarray, height: int, width: int) -> np.ndarray:
    """Centre minus ring, from the means of the whole and the centre; shape (n, channel, scale, statistic)."""
    kept = [[row.name for row in STATISTICS].index(name) for name in CONTRASTS]
    change = (out[:, :, 1] - out[:, :, 0])[..., kept].transpose(1, 0, 2, 3)
    pixels = np.array([(height // shrunk) * (width // shrunk) for _, _, shrunk in SCALES])
    ring = pixels - np.array([(32 // shrunk) ** 2 for _, _, shrunk in SCALES])
    return change * np.where(ring > 0, pixels / np.maximum(ring, 1), 0.0)[:, None]


@cache
def _gaussians(sigma: int) -> np.ndarray:
    """Right half, from the middle, of SciPy's sampled Gaussian (cut at four sigma) and its first two derivatives.

    Shape (3, 4 sigma + 1). The rows are multiplied by 1, sigma and sigma squared.
    """
    x = np.arange(-4 * sigma, 4 * sigma + 1, dtype=np.float64)
    gaussian = np.exp(-0.5 * x**2 / sigma**2)
    gaussian /= gaussian.sum()
    bend = gaussian * (x**2 / sigma**4 - 1 / sigma**2)
    taps = np.stack([gaussian, gaussian * x / sigma, (bend - bend.sum() * gaussian) * sigma**2])
    return np.ascontiguousarray(taps[:, 4 * sigma :])


@inner_kernel
def _fill_margins(padded: np.ndarray, rows: int, columns: int) -> None:
    """Mirror the plane, which starts in row `_MARGIN`, at its upper and lower border."""
    for k in range(_MARGIN):
        for column in range(columns):
            padded[_MARGIN - 1 - k, column] = padded[_MARGIN + k, column]
            padded[_MARGIN + rows + k, column] = padded[_MARGIN + rows - 1 - k, column]


@inner_kernel
def _convolve_columns(padded: np.ndarray, row: int, columns: int, taps: np.ndarray, lines: np.ndarray) -> None:
    """Convolve one row vertically with the Gaussian and its derivatives into `lines`, and mirror its ends."""
    middle = row + _MARGIN
    for column in range(columns):
        level = padded[middle, column]
        lines[0, column + _MARGIN], lines[1, column + _MARGIN] = taps[0, 0] * level, 0.0
        lines[2, column + _MARGIN] = taps[2, 0] * level
    # a block of four taps, a constant that the compiler knows, stays in registers
    for first in range(1, taps.shape[1], 4):
        for column in range(columns):
            smooth, slope = lines[0, column + _MARGIN], lines[1, column + _MARGIN]
            bend = lines[2, column + _MARGIN]
            for k in range(4):
                above, below = padded[middle - first - k, column], padded[middle + first + k, column]
                smooth += taps[0, first + k] * (below + above)
                slope += taps[1, first + k] * (below - above)
                bend += taps[2, first + k] * (below + above)
            lines[0, column + _MARGIN], lines[1, column + _MARGIN] = smooth, slope
            lines[2, column + _MARGIN] = bend
    for kind in range(3):
        for k in range(_MARGIN):
            lines[kind, _MARGIN - 1 - k] = lines[kind, _MARGIN + k]
            lines[kind, _MARGIN + columns + k] = lines[kind, _MARGIN + columns - 1 - k]


@inner_kernel
def _convolve_rows(
    lines: np.ndarray, row: int, columns: int, taps: np.ndarray, scratch: np.ndarray, blobs: np.ndarray
) -> None:
    """Convolve `lines` horizontally: one row of the gradient's components (`scratch`) and the Laplacian (`blobs`)."""
    for column in range(columns):
        middle = column + _MARGIN
        scratch[0, column], scratch[1, column] = 0.0, taps[0, 0] * lines[1, middle]
        blobs[row + 1, column + 1] = taps[0, 0] * lines[2, middle] + taps[2, 0] * lines[0, middle]
    # one loop per result, and slices, because the compiler vectorises only if few arrays might overlap and no index
    # can be negative
    for first in range(1, taps.shape[1], 4):
        left, right = _MARGIN - first - 3, _MARGIN + first
        smooth1, smooth2 = lines[0, left : left + columns + 3], lines[0, right : right + columns + 3]
        slope1, slope2 = lines[1, left : left + columns + 3], lines[1, right : right + columns + 3]
        bend1, bend2 = lines[2, left : left + columns + 3], lines[2, right : right + columns + 3]
        for column in range(columns):
            across = scratch[0, column]
            for k in range(4):
                across += taps[1, first + k] * (smooth2[column + k] - smooth1[column + 3 - k])
            scratch[0, column] = across
        for column in range(columns):
            down = scratch[1, column]
            for k in range(4):
                down += taps[0, first + k] * (slope2[column + k] + slope1[column + 3 - k])
            scratch[1, column] = down
        for column in range(columns):
            blob = blobs[row + 1, column + 1]
            for k in range(4):
                blob += taps[0, first + k] * (bend2[column + k] + bend1[column + 3 - k])
                blob += taps[2, first + k] * (smooth2[column + k] + smooth1[column + 3 - k])
            blobs[row + 1, column + 1] = blob


@inner_kernel
def _filter_plane(
    padded: np.ndarray,
    rows: int,
    columns: int,
    taps: np.ndarray,
    inner: int,
    lines: np.ndarray,
    scratch: np.ndarray,
    sums: np.ndarray,
    blobs: np.ndarray,
) -> None:
    """Write the Laplacian into `blobs`, with a margin of one, and column sums into `sums`.

    The sums are separate for the centre's rows (band 1) and all other rows (band 0).
    """
    for band in range(2):
        for k in range(6):
            for column in range(columns):
                sums[band, k, column] = 0.0
    top = (rows - inner) // 2
    for row in range(rows):
        _convolve_columns(padded, row, columns, taps, lines)
        _convolve_rows(lines, row, columns, taps, scratch, blobs)
        band = 1 if top <= row < top + inner else 0
        # few results per loop, because the compiler vectorises only if few arrays might overlap
        for column in range(columns):
            square = scratch[0, column] * scratch[0, column] + scratch[1, column] * scratch[1, column]
            scratch[0, column] = np.sqrt(square)
            sums[band, 1, column] += square
        for column in range(columns):
            sums[band, 0, column] += scratch[0, column]
            sums[band, 2, column] += 1.0 if scratch[0, column] > _STRONG else 0.0
        for column in range(columns):
            blob = blobs[row + 1, column + 1]
            sums[band, 3, column] += blob
            sums[band, 4, column] += blob * blob
            sums[band, 5, column] += abs(blob)


@inner_kernel
def _summarise(
    sums: np.ndarray, left: int, columns: int, count: int, totals: np.ndarray, out: np.ndarray, region: int, scale: int
) -> None:
    """Write `STATISTICS` up to the count of blobs, from the sums of a range of columns. `totals` is scratch memory."""
    for k in range(6):
        totals[k] = 0.0
    # the centre uses only its own rows
    for band in range(region, 2):
        for k in range(6):
            for column in range(left, left + columns):
                totals[k] += sums[band, k, column]
    for k in range(6):
        totals[k] /= count
    out[region, scale, 0], out[region, scale, 2] = totals[0], totals[2]
    out[region, scale, 1] = np.sqrt(max(totals[1] - totals[0] * totals[0], 0.0))
    out[region, scale, 3] = np.sqrt(max(totals[4] - totals[3] * totals[3], 0.0))
    out[region, scale, 4], out[region, scale, 5] = (totals[5] + totals[3]) / 2.0, (totals[5] - totals[3]) / 2.0


@inner_kernel
def _count_peaks(
    blobs: np.ndarray, rows: int, columns: int, inner: int, pixels: int, excess: np.ndarray, out: np.ndarray, scale: int
) -> None:
    """Write the number of blobs per pixel of the patch, and their mean height, for the patch and the centre.

    `blobs` has a margin of one. `excess` is scratch memory for one row.
    """
    for row in range(rows + 2):
        blobs[row, 0], blobs[row, columns + 1] = -np.inf, -np.inf
    for column in range(columns + 2):
        blobs[0, column], blobs[rows + 1, column] = -np.inf, -np.inf
    top, left = (rows - inner) // 2, (columns - inner) // 2
    count, total, inner_count, inner_total = 0, 0.0, 0, 0.0
    for row in range(rows):
        for column in range(columns):
            above = max(blobs[row, column], blobs[row, column + 1], blobs[row, column + 2])
            below = max(blobs[row + 2, column], blobs[row + 2, column + 1], blobs[row + 2, column + 2])
            beside = max(blobs[row + 1, column], blobs[row + 1, column + 2])
            around = max(above, below, beside, _PEAK)
            excess[column] = max(blobs[row + 1, column + 1] - around, 0.0)
        for column in range(columns):
            if excess[column] == 0.0:
                continue
            blob = blobs[row + 1, column + 1]
            # in steps, so that values which differ only by rounding are equal
            here, peak = np.floor(blob * 1048576.0 + 0.5), True
            for r in range(row, row + 3):
                for c in range(column, column + 3):
                    lower = np.floor(blobs[r, c] * 1048576.0 + 0.5) < here
                    peak = peak and (lower or (r == row + 1 and c == column + 1))
            if peak:
                count += 1
                total += blob
                if top <= row < top + inner and left <= column < left + inner:
                    inner_count += 1
                    inner_total += blob
    out[0, scale, 6], out[0, scale, 7] = count / pixels, total / count if count > 0 else 0.0
    out[1, scale, 6], out[1, scale, 7] = inner_count / 1024.0, inner_total / inner_count if inner_count > 0 else 0.0


@kernel
def _gradient_kernel(planes: np.ndarray, sign: float, narrow: np.ndarray, wide: np.ndarray, out: np.ndarray) -> None:
    n, height, width = planes.shape
    half_height, half_width = height // 2, width // 2
    plane, half = np.empty((height + 2 * _MARGIN, width)), np.empty((half_height + 2 * _MARGIN, half_width))
    lines, scratch, sums = np.empty((3, width + 2 * _MARGIN)), np.empty((2, width)), np.empty((2, 6, width))
    blobs, totals = np.empty((height + 2, width + 2)), np.empty(6)
    for i in range(n):
        # relative to the first pixel, so that a constant plane is exactly zero; no statistic depends on the offset
        first = float(planes[i, 0, 0])
        for row in range(height):
            for column in range(width):
                plane[row + _MARGIN, column] = (planes[i, row, column] - first) * (sign / 255.0)
        for row in range(half_height):
            r = 2 * row + _MARGIN
            for column in range(half_width):
                c = 2 * column
                half[row + _MARGIN, column] = 0.25 * (
                    plane[r, c] + plane[r, c + 1] + plane[r + 1, c] + plane[r + 1, c + 1]
                )
        _fill_margins(plane, height, width)
        _fill_margins(half, half_height, half_width)
        for scale in range(3):
            scaled, taps = plane if scale == 0 else half, wide if scale == 2 else narrow
            rows, columns = (height, width) if scale == 0 else (half_height, half_width)
            inner, pixels = (32, rows * columns) if scale == 0 else (16, 4 * rows * columns)
            _filter_plane(scaled, rows, columns, taps, inner, lines, scratch, sums, blobs)
            for region in range(2):
                side = inner if region == 1 else columns
                count = inner * inner if region == 1 else rows * columns
                _summarise(sums, (columns - side) // 2, side, count, totals, out[i], region, scale)
            _count_peaks(blobs, rows, columns, inner, pixels, scratch[0], out[i], scale)


_LINDEBERG = "Lindeberg (1998), Int J Comput Vis 30(2):79-116"


def _columns() -> Iterator[Column]:
    for region in REGIONS:
        for channel in CHANNELS:
            for scale, _, _ in SCALES:
                for row in STATISTICS:
                    yield Column(
                        f"gradient_{row.name}-s{scale}_{channel}_{region}",
                        *row[1:4],
                        f"{row.words}, scale {scale} px, {CHANNEL_WORDS.get(channel, channel)}, "
                        f"{REGION_WORDS[region]}.",
                        _LINDEBERG,
                    )
    for channel in CHANNELS:
        for scale, _, _ in SCALES:
            for row in STATISTICS:
                if row.name in CONTRASTS:
                    words = f"{row.words}, scale {scale} px, {CHANNEL_WORDS.get(channel, channel)}, centre minus ring."
                    yield Column(
                        f"gradient_{row.name}-s{scale}_{channel}_contrast",
                        row.unit,
                        -row.high,
                        row.high,
                        words,
                        _LINDEBERG,
                    )


COLUMNS = tuple(_columns())
