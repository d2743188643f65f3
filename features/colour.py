"""Colour statistics of a batch of patches, in RGB, HSV, Lab and stain amounts."""

from __future__ import annotations

from functools import cache

import numba
import numpy as np
from skimage.color import hed_from_rgb, rgb2xyz, xyz_tristimulus_values

from features.stain import as_batch, density_table

CHANNELS = (
    "red", "green", "blue", "hue", "saturation", "value", "lightness", "green-red", "blue-yellow",
    "haematoxylin", "eosin", "dab",
)  # fmt: skip
STATISTICS = ("mean", "spread", "skew", "kurtosis", "q05", "q25", "q50", "q75", "q95")
REGIONS = ("whole", "centre")
_QUANTILES = np.array([0.05, 0.25, 0.50, 0.75, 0.95])
_HUE = 3


def colour(patches: np.ndarray) -> np.ndarray:
    """Moments and quantiles of twelve colour channels, over the whole patch and its centre 32 × 32.

    scikit-image's `rgb2hsv`, `rgb2lab` and `rgb2hed` define the channels; red, green, blue lie in 0 to 1. Mean,
    spread (standard deviation), skewness and excess kurtosis are the population moments (`scipy.stats`), 0 where
    the channel is constant; quantiles are `numpy.quantile`'s. Hue is a circle: it is counted in turns from red, −½
    to ½, over the pixels that have a hue; mean is the direction of the mean vector, spread one minus its length R,
    skew and kurtosis are the mean sine and cosine of twice the angle from the mean. Without a hue all are 0, and
    where R is below 1e-9 the mean direction counts as 0.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        At least 32 × 32 pixels.

    Returns
    -------
    ndarray of shape (n, 216), dtype float32
        By region (whole, centre), then channel (`CHANNELS`), then statistic (`STATISTICS`).

    References
    ----------
    Ruifrok & Johnston (2001), Anal Quant Cytol Histol 23(4):291-299 (stain amounts).
    Batschelet (1981), Circular Statistics in Biology (hue).
    """
    patches = as_batch(patches)
    out = np.empty((len(patches), len(REGIONS) * len(CHANNELS) * len(STATISTICS)))
    density, linear, xyz = _tables()
    _colour_kernel(patches, density, linear, xyz, hed_from_rgb, _QUANTILES, out)
    return out.astype(np.float32)


@cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Density and linear light of each 8-bit level, and the matrix to XYZ relative to the white point."""
    level = np.arange(256) / 255.0
    linear = np.where(level > 0.04045, ((level + 0.055) / 1.055) ** 2.4, level / 12.92)
    white = xyz_tristimulus_values(illuminant="D65", observer="2")
    # the XYZ of the three primaries are the columns of the matrix
    return density_table(), linear, np.ascontiguousarray(rgb2xyz(np.eye(3)).T / white[:, None])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _lab_curve(t: float) -> float:
    return np.cbrt(t) if t > 0.008856 else 7.787 * t + 16.0 / 116.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _signed_hue(red: int, green: int, blue: int) -> float:
    """Hue in turns, −½ to ½ from red; 2 for a pixel without hue."""
    high = max(red, green, blue)
    delta = high - min(red, green, blue)
    if delta == 0:
        return 2.0
    # scikit-image lets the last channel that reaches the maximum decide
    if blue == high:
        sixth = 4.0 + (red - green) / delta
    elif green == high:
        sixth = 2.0 + (blue - red) / delta
    else:
        sixth = (green - blue) / delta
    return sixth / 6.0 - 1.0 if sixth > 3.0 else sixth / 6.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fill_planes(
    patch: np.ndarray,
    density: np.ndarray,
    linear: np.ndarray,
    xyz: np.ndarray,
    unmix: np.ndarray,
    planes: np.ndarray,
) -> None:
    height, width, _ = patch.shape
    for row in range(height):
        for column in range(width):
            red, green = np.int64(patch[row, column, 0]), np.int64(patch[row, column, 1])
            blue = np.int64(patch[row, column, 2])
            at = row * width + column
            high = max(red, green, blue)
            planes[0, at], planes[1, at], planes[2, at] = red / 255.0, green / 255.0, blue / 255.0
            planes[3, at] = _signed_hue(red, green, blue)
            planes[4, at] = (high - min(red, green, blue)) / high if high > 0 else 0.0
            planes[5, at] = high / 255.0
            r, g, b = linear[red], linear[green], linear[blue]
            x = _lab_curve(r * xyz[0, 0] + g * xyz[0, 1] + b * xyz[0, 2])
            y = _lab_curve(r * xyz[1, 0] + g * xyz[1, 1] + b * xyz[1, 2])
            z = _lab_curve(r * xyz[2, 0] + g * xyz[2, 1] + b * xyz[2, 2])
            planes[6, at], planes[7, at], planes[8, at] = 116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)
            r, g, b = density[red], density[green], density[blue]
            for stain in range(3):
                planes[9 + stain, at] = max(r * unmix[0, stain] + g * unmix[1, stain] + b * unmix[2, stain], 0.0)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _moments(values: np.ndarray, out: np.ndarray) -> None:
    # taken from the first value, so that a constant channel has deviations of exactly zero
    origin, count = values[0], values.size
    shift = 0.0
    for value in values:
        shift += value - origin
    mean = origin + shift / count
    second, third, fourth = 0.0, 0.0, 0.0
    for value in values:
        deviation = value - mean
        square = deviation * deviation
        second += square
        third += square * deviation
        fourth += square * square
    second, third, fourth = second / count, third / count, fourth / count
    out[0], out[1] = mean, np.sqrt(second)
    # scipy.stats' own test for a channel that is constant but for rounding
    if second <= (2.220446049250313e-16 * mean) ** 2:
        out[2], out[3] = 0.0, 0.0
    else:
        out[2], out[3] = third / second**1.5, fourth / (second * second) - 3.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _circular_moments(turns: np.ndarray, out: np.ndarray) -> None:
    cosine, sine, cosine2, sine2 = 0.0, 0.0, 0.0, 0.0
    for turn in turns:
        c, s = np.cos(2.0 * np.pi * turn), np.sin(2.0 * np.pi * turn)
        cosine += c
        sine += s
        cosine2 += c * c - s * s
        sine2 += 2.0 * s * c
    count = turns.size
    length = np.hypot(cosine, sine) / count
    angle = np.arctan2(sine, cosine) if length >= 1e-9 else 0.0
    c, s = np.cos(2.0 * angle), np.sin(2.0 * angle)
    out[0], out[1] = angle / (2.0 * np.pi), 1.0 - length
    out[2], out[3] = (sine2 * c - cosine2 * s) / count, (cosine2 * c + sine2 * s) / count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _order_statistic(values: np.ndarray, rank: int, low: float, scale: float, starts: np.ndarray) -> float:
    """Return the value of this rank: sort only those that share its histogram bin."""
    target = 0
    while starts[target + 1] <= rank:
        target += 1
    bucket = np.empty(starts[target + 1] - starts[target])
    found = 0
    for value in values:
        if int((value - low) * scale) == target:
            bucket[found] = value
            found += 1
    bucket.sort()
    return bucket[rank - starts[target]]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _quantiles(values: np.ndarray, quantiles: np.ndarray, out: np.ndarray) -> None:
    low, high = values.min(), values.max()
    if low == high:
        out[:] = low
        return
    bins = 1024
    scale = (bins - 1) / (high - low)
    starts = np.zeros(bins + 1, np.int64)
    for value in values:
        starts[int((value - low) * scale) + 1] += 1
    for i in range(bins):
        starts[i + 1] += starts[i]
    for i in range(quantiles.size):
        position = quantiles[i] * (values.size - 1)
        rank = int(position)
        below = _order_statistic(values, rank, low, scale, starts)
        above = below
        if rank + 1 < values.size:
            above = _order_statistic(values, rank + 1, low, scale, starts)
        out[i] = below + (above - below) * (position - rank)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _channel_statistics(values: np.ndarray, circular: bool, quantiles: np.ndarray, out: np.ndarray) -> None:
    if circular:
        values = values[values < 2.0]
        if values.size == 0:
            out[:] = 0.0
            return
        _circular_moments(values, out[:4])
    else:
        _moments(values, out[:4])
    _quantiles(values, quantiles, out[4:])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _colour_kernel(
    patches: np.ndarray,
    density: np.ndarray,
    linear: np.ndarray,
    xyz: np.ndarray,
    unmix: np.ndarray,
    quantiles: np.ndarray,
    out: np.ndarray,
) -> None:
    n, height, width, _ = patches.shape
    planes = np.empty((12, height * width))
    top, left = (height - 32) // 2, (width - 32) // 2
    statistics = 4 + quantiles.size
    for i in range(n):
        _fill_planes(patches[i], density, linear, xyz, unmix, planes)
        for channel in range(12):
            whole = planes[channel]
            centre = whole.reshape((height, width))[top : top + 32, left : left + 32].copy().reshape(1024)
            at = channel * statistics
            _channel_statistics(whole, channel == _HUE, quantiles, out[i, at : at + statistics])
            at += 12 * statistics
            _channel_statistics(centre, channel == _HUE, quantiles, out[i, at : at + statistics])
