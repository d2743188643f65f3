"""Texture of a batch of patches: co-occurrence, local binary patterns, gradients and blobs."""

from __future__ import annotations

from functools import cache

import numba
import numpy as np

from features.stain import as_batch, grey_levels, stain_levels

CHANNELS = ("grey", "haematoxylin", "eosin")
REGIONS = ("whole", "centre")

DISTANCES = (1, 3, 5)
COOCCURRENCE = ("contrast", "dissimilarity", "homogeneity", "asm", "energy", "correlation", "entropy")
PATTERNS = ((8, 1), (16, 2), (24, 3))
SCALES = (1, 2, 4)
GRADIENT = ("edge-mean", "edge-spread", "edge-strong", "blob-spread", "blob-dark", "blob-bright")
_LEVELS = 32


def cooccurrence(patches: np.ndarray) -> np.ndarray:
    """Grey-level co-occurrence properties of grey, haematoxylin and eosin, pooled over four directions.

    `skimage.feature.graycomatrix` with 32 levels (8-bit level // 8), distances 1, 3 and 5, angles 0, 45, 90 and
    135 degrees, symmetric and normed, then `graycoprops`; of the four directions the mean and the range (maximum
    minus minimum) are kept. The centre is cut out before pairs are counted.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        At least 32 × 32 pixels.

    Returns
    -------
    ndarray of shape (n, 252), dtype float32
        By region, channel, distance, property (`COOCCURRENCE`), pooling (mean, range).

    References
    ----------
    Haralick, Shanmugam & Dinstein (1973), IEEE Trans Syst Man Cybern 3(6):610-621.
    """
    patches = as_batch(patches)
    n, height, width, _ = patches.shape
    out = np.empty((n, len(REGIONS), len(CHANNELS), len(DISTANCES), len(COOCCURRENCE), 2))
    for channel, levels in enumerate((grey_levels(patches), *stain_levels(patches))):
        for region, part in enumerate((levels, _centre(levels))):
            quantised = np.ascontiguousarray(part >> 3)
            _cooccurrence_kernel(quantised, _pair_offsets(), _count_logs(height * width), out[:, region, channel])
    return out.reshape(n, -1).astype(np.float32)


def lbp(patches: np.ndarray) -> np.ndarray:
    """Histograms of uniform rotation-invariant local binary patterns of grey and haematoxylin.

    `skimage.feature.local_binary_pattern(method="uniform")` with (points, radius) (8, 1), (16, 2) and (24, 3) on
    8-bit levels. Patterns are found on the whole patch; the centre's histogram counts those of its pixels.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        At least 32 × 32 pixels.

    Returns
    -------
    ndarray of shape (n, 216), dtype float32
        Fractions of the region's pixels, by region, channel, radius and pattern (number of points not darker than
        the pixel, 0 to P, then the patterns that are not uniform).

    References
    ----------
    Ojala, Pietikäinen & Mäenpää (2002), IEEE Trans Pattern Anal Mach Intell 24(7):971-987.
    """
    patches = as_batch(patches)
    bins = sum(points + 2 for points, _ in PATTERNS)
    counts = np.zeros((len(patches), len(REGIONS), 2, bins), np.int64)
    for channel, levels in enumerate((grey_levels(patches), stain_levels(patches)[0])):
        first = 0
        for points, radius in PATTERNS:
            rows, columns = _circle(points, radius)
            part = counts[:, :, channel, first : first + points + 2]
            _lbp_kernel(levels, rows, columns, radius, part)
            first += points + 2
    pixels = np.array([patches.shape[1] * patches.shape[2], 1024.0])
    return (counts / pixels[:, None, None]).reshape(len(patches), -1).astype(np.float32)


def gradient(patches: np.ndarray) -> np.ndarray:
    """Strength of edges and blobs of grey and haematoxylin at three scales.

    Gradient magnitude and Laplacian of the Gaussian-smoothed plane (`scipy.ndimage.gaussian_gradient_magnitude`
    and `gaussian_laplace`, sigma 1, 2 and 4 pixels, borders reflected, levels in 0 to 1), multiplied by sigma and
    by sigma squared so that scales are comparable. The sampled second derivative does not quite sum to zero; what
    that adds, a small multiple of the smoothed plane, is taken away, so that a constant plane has no blobs.
    `edge-strong` is the fraction of pixels whose magnitude exceeds 0.1; `blob-dark` and `blob-bright` are the mean
    positive and mean negative part of the Laplacian.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        At least 32 × 32 pixels.

    Returns
    -------
    ndarray of shape (n, 72), dtype float32
        By region, channel, scale and statistic (`GRADIENT`).

    References
    ----------
    Lindeberg (1998), Int J Comput Vis 30(2):79-116.
    """
    patches = as_batch(patches)
    out = np.empty((len(patches), len(REGIONS), 2, len(SCALES), len(GRADIENT)))
    for channel, levels in enumerate((grey_levels(patches), stain_levels(patches)[0])):
        for scale, sigma in enumerate(SCALES):
            _gradient_kernel(levels, _gaussians(sigma), float(sigma), out[:, :, channel, scale])
    return out.reshape(len(patches), -1).astype(np.float32)


def _centre(planes: np.ndarray) -> np.ndarray:
    top, left = (planes.shape[1] - 32) // 2, (planes.shape[2] - 32) // 2
    return planes[:, top : top + 32, left : left + 32]


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


@cache
def _circle(points: int, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Neighbour positions, rounded to five places as scikit-image does."""
    angles = 2 * np.pi * np.arange(points, dtype=np.float64) / points
    return np.round(-radius * np.sin(angles), 5), np.round(radius * np.cos(angles), 5)


@cache
def _gaussians(sigma: int) -> np.ndarray:
    """SciPy's sampled Gaussian (cut at four sigma) and its first two derivatives; shape (3, 8 sigma + 1)."""
    x = np.arange(-4 * sigma, 4 * sigma + 1, dtype=np.float64)
    gaussian = np.exp(-0.5 * x**2 / sigma**2)
    gaussian /= gaussian.sum()
    bend = gaussian * (x**2 / sigma**4 - 1 / sigma**2)
    return np.stack([gaussian, gaussian * x / sigma**2, bend - bend.sum() * gaussian])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _matrix_properties(counts: np.ndarray, logs: np.ndarray, out: np.ndarray) -> None:
    """Properties of one direction from the counts of ordered pairs; the matrix is counts plus its transpose."""
    levels = counts.shape[0]
    total, contrast, dissimilarity, squares, first, second = 0, 0, 0, 0, 0, 0
    homogeneity, entropy, product = 0.0, 0.0, 0
    for i in range(levels):
        for j in range(i + 1):
            pair = counts[i, j] + counts[j, i]
            if pair == 0:
                continue
            # off the diagonal the pair stands in two cells; on it, `pair` is the cell's doubled count already
            cells = 1 if i == j else 2
            apart = i - j
            total += cells * pair
            contrast += cells * pair * apart * apart
            dissimilarity += cells * pair * apart
            homogeneity += cells * pair / (1.0 + apart * apart)
            squares += cells * pair * pair
            entropy += cells * logs[pair]
            first += pair * (i + j) if i != j else pair * i
            second += pair * (i * i + j * j) if i != j else pair * i * i
            product += cells * pair * i * j
    # integers up to here: a constant plane has a variance of exactly zero
    variance = total * second - first * first
    out[0], out[1], out[2] = contrast / total, dissimilarity / total, homogeneity / total
    out[3] = squares / (float(total) * total)
    out[4] = np.sqrt(out[3])
    out[5] = (total * product - first * first) / variance if variance > 0 else 1.0
    out[6] = max(np.log(total) - entropy / total, 0.0)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _cooccurrence_kernel(planes: np.ndarray, offsets: np.ndarray, logs: np.ndarray, out: np.ndarray) -> None:
    n, height, width = planes.shape
    counts = np.empty((_LEVELS, _LEVELS), np.int64)
    properties = np.empty((4, 7))
    for i in range(n):
        for d in range(offsets.shape[0]):
            for angle in range(4):
                down, right = offsets[d, angle]
                counts[:] = 0
                for row in range(height - down):
                    for column in range(max(0, -right), min(width, width - right)):
                        counts[planes[i, row, column], planes[i, row + down, column + right]] += 1
                _matrix_properties(counts, logs, properties[angle])
            for k in range(7):
                low, high, mean = properties[0, k], properties[0, k], 0.0
                for angle in range(4):
                    low, high = min(low, properties[angle, k]), max(high, properties[angle, k])
                    mean += properties[angle, k]
                out[i, d, k, 0], out[i, d, k, 1] = mean / 4.0, high - low


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _lbp_kernel(planes: np.ndarray, rows: np.ndarray, columns: np.ndarray, radius: int, counts: np.ndarray) -> None:
    n, height, width = planes.shape
    points = rows.size
    border = radius + 1
    padded = np.zeros((height + 2 * border, width + 2 * border))
    ones = np.empty((height, width), np.uint8)
    changes = np.empty((height, width), np.uint8)
    before = np.empty((height, width), np.uint8)
    weights = np.empty(width)
    top, left = (height - 32) // 2, (width - 32) // 2
    for i in range(n):
        padded[border : border + height, border : border + width] = planes[i]
        ones[:] = 0
        changes[:] = 0
        for point in range(points):
            right = int(np.floor(columns[point])) + border
            for column in range(width):
                # from the sum, not from the offset alone: scikit-image's rounding decides ties
                position = column + columns[point]
                weights[column] = position - np.floor(position)
            for row in range(height):
                position = row + rows[point]
                lower = position - np.floor(position)
                upper = padded[int(np.floor(position)) + border]
                below = padded[int(np.floor(position)) + border + 1]
                centre = padded[row + border]
                for column in range(width):
                    weight = weights[column]
                    high = (1.0 - weight) * upper[column + right] + weight * upper[column + right + 1]
                    low = (1.0 - weight) * below[column + right] + weight * below[column + right + 1]
                    value = (1.0 - lower) * high + lower * low
                    sign = np.uint8(value - centre[column + border] >= 0.0)
                    ones[row, column] += sign
                    if point > 0:
                        changes[row, column] += sign ^ before[row, column]
                    before[row, column] = sign
        for row in range(height):
            for column in range(width):
                pattern = ones[row, column] if changes[row, column] <= 2 else points + 1
                counts[i, 0, pattern] += 1
                if top <= row < top + 32 and left <= column < left + 32:
                    counts[i, 1, pattern] += 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _reflect(position: int, size: int) -> int:
    """Index of a pixel beyond the border, mirrored about the border's edge as often as needed."""
    position %= 2 * size
    return position if position < size else 2 * size - 1 - position


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _along_columns(plane: np.ndarray, taps: np.ndarray, out: np.ndarray) -> None:
    height, width = plane.shape
    reach = taps.size // 2
    for row in range(height):
        target = out[row]
        target[:] = 0.0
        for k in range(taps.size):
            source, tap = plane[_reflect(row + k - reach, height)], taps[k]
            for column in range(width):
                target[column] += tap * source[column]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _along_rows(plane: np.ndarray, taps: np.ndarray, out: np.ndarray) -> None:
    height, width = plane.shape
    reach = taps.size // 2
    line = np.empty(width + 2 * reach)
    for row in range(height):
        target = out[row]
        target[:] = 0.0
        for column in range(width + 2 * reach):
            line[column] = plane[row, _reflect(column - reach, width)]
        for k in range(taps.size):
            tap = taps[k]
            for column in range(width):
                target[column] += tap * line[column + k]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _summary(edges: np.ndarray, blobs: np.ndarray, out: np.ndarray) -> None:
    count = edges.size
    edge, edge2, strong, blob, blob2, dark, bright = 0.0, 0.0, 0, 0.0, 0.0, 0.0, 0.0
    for row in range(edges.shape[0]):
        for column in range(edges.shape[1]):
            edge += edges[row, column]
            strong += edges[row, column] > 0.1
            blob += blobs[row, column]
            dark += max(blobs[row, column], 0.0)
            bright += max(-blobs[row, column], 0.0)
    edge /= count
    blob /= count
    for row in range(edges.shape[0]):
        for column in range(edges.shape[1]):
            edge2 += (edges[row, column] - edge) ** 2
            blob2 += (blobs[row, column] - blob) ** 2
    out[0], out[1], out[2] = edge, np.sqrt(edge2 / count), strong / count
    out[3], out[4], out[5] = np.sqrt(blob2 / count), dark / count, bright / count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _gradient_kernel(planes: np.ndarray, taps: np.ndarray, sigma: float, out: np.ndarray) -> None:
    n, height, width = planes.shape
    plane = np.empty((height, width))
    smooth, slope, bend = np.empty((height, width)), np.empty((height, width)), np.empty((height, width))
    first, second = np.empty((height, width)), np.empty((height, width))
    top, left = (height - 32) // 2, (width - 32) // 2
    for i in range(n):
        # from the first pixel: neither slopes nor blobs depend on the offset, and a constant plane is exactly zero
        plane[:] = (planes[i] - np.float64(planes[i, 0, 0])) / 255.0
        _along_rows(plane, taps[0], smooth)
        _along_rows(plane, taps[1], slope)
        _along_rows(plane, taps[2], bend)
        _along_columns(slope, taps[0], first)
        _along_columns(smooth, taps[1], second)
        edges = np.sqrt(first * first + second * second) * sigma
        _along_columns(bend, taps[0], first)
        _along_columns(smooth, taps[2], second)
        blobs = (first + second) * (sigma * sigma)
        _summary(edges, blobs, out[i, 0])
        _summary(edges[top : top + 32, left : left + 32], blobs[top : top + 32, left : left + 32], out[i, 1])
