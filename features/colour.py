"""Colour statistics of a batch of patches, in RGB, HSV, Lab and stain amounts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import inf

import numba
import numpy as np
from skimage.color import rgb2xyz, xyz_tristimulus_values

from features.column import REGION_WORDS, Column, Row
from features.stain import STAIN_SCALES, Planes

#: Name, unit, lowest and highest value (levels 0 and 255), words.
CHANNELS = (
    Row("red", "1", 0, 1, "red"),
    Row("green", "1", 0, 1, "green"),
    Row("blue", "1", 0, 1, "blue"),
    Row("hue", "turn", -0.5, 0.5 - 1 / 256, "hue, counted from red, of the pixels that have one"),
    Row("saturation", "1", 0, 1, "saturation (HSV)"),
    Row("lightness", "1", 0, 100, "lightness L* (CIE Lab, D65)"),
    Row("green-red", "1", -128, 127, "green to red a* (CIE Lab, D65)"),
    Row("blue-yellow", "1", -128, 127, "blue to yellow b* (CIE Lab, D65)"),
    Row("haematoxylin", "6 decades", 0, STAIN_SCALES[0], "haematoxylin amount (optical density)"),
    Row("eosin", "6 decades", 0, STAIN_SCALES[1], "eosin amount (optical density)"),
    Row("residual", "6 decades", 0, STAIN_SCALES[2], "residual (third) stain amount (optical density)"),
)
STATISTICS = ("mean", "spread", "skew", "kurtosis", "q05", "q50", "q95")
#: How many of the statistics each region has.
REGIONS = {"whole": 7, "centre": 2, "ring": 1, "contrast": 2}
_HUE = 3
_QUANTILES = (0.05, 0.5, 0.95)


def colour(planes: Planes) -> np.ndarray:
    """Moments and quantiles of eleven colour channels in 8 bits.

    scikit-image's `rgb2hsv`, `rgb2lab` and `rgb2hed` define the channels, which are rounded (half up) to 256 levels:
    red, green, blue and saturation as level / 255, hue as level / 256 of a turn, L* as level / 2.55, a* and b* as
    level − 128, stain amounts as `features.stain.Planes.stains`. Mean, spread (standard deviation), skewness and
    excess kurtosis are the population moments (`scipy.stats`), 0 where the channel is constant; quantiles are
    `numpy.quantile`'s. Hue is a circle: it is counted in turns from red, −½ to ½, over the pixels that have a hue;
    mean is the direction of the mean vector, spread one minus its length R, skew and kurtosis are the mean sine and
    cosine of twice the angle from the mean. Without a hue all are 0, and where R is below 1e-9 the mean direction
    counts as 0. The ring is what lies outside the centre; where a patch has no ring its statistics equal the centre's.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, 132), dtype float32
        By region (`REGIONS`), then channel (`CHANNELS`), then statistic.

    References
    ----------
    Ruifrok & Johnston (2001), Anal Quant Cytol Histol 23(4):291-299 (stain amounts).
    Batschelet (1981), Circular Statistics in Biology (hue).
    """
    patches = planes.patches
    tables = np.empty((len(patches), 3, len(CHANNELS), len(STATISTICS)))
    lows = np.array([row.low for row in CHANNELS])
    steps = (np.array([row.high for row in CHANNELS]) - lows) / 255
    _colour_kernel(patches, planes.stains, *_light_tables(), lows, steps, np.array(_QUANTILES), tables)
    whole, centre, ring = (tables[:, region] for region in range(3))
    contrast = centre[..., :2] - ring[..., :2]
    # a difference of directions is a direction
    contrast[:, _HUE, 0] -= np.round(contrast[:, _HUE, 0])
    parts = (whole, centre[..., :2], ring[..., :1], contrast)
    return np.concatenate([part.reshape(len(patches), -1) for part in parts], axis=1).astype(np.float32)


@cache
def _light_tables() -> tuple[np.ndarray, np.ndarray]:
    """Return what each level of red, green, blue adds to X, Y, Z of the white point; and a polynomial for u^(2/3).

    The polynomial, with one step of Halley's method, gives cube roots to 1e-11 without a branch.
    """
    level = np.arange(256) / 255.0
    linear = np.where(level > 0.04045, ((level + 0.055) / 1.055) ** 2.4, level / 12.92)
    white = xyz_tristimulus_values(illuminant="D65", observer="2")
    # the XYZ of the three primaries are the columns of the matrix
    shares = (rgb2xyz(np.eye(3)).T / white[:, None])[:, :, None] * linear
    roots = np.linspace(np.sqrt(0.0088), 1.001, 4001)
    fit = np.polynomial.Chebyshev.fit(roots, roots ** (2 / 3), 8, w=roots ** (-2 / 3))
    return np.ascontiguousarray(shares), fit.convert(kind=np.polynomial.Polynomial).coef


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fill_hue(pixels: np.ndarray, hue: np.ndarray, saturation: np.ndarray) -> None:
    """Levels of hue (0 where there is none) and saturation."""
    for k in range(hue.size):
        red, green, blue = np.int32(pixels[k, 0]), np.int32(pixels[k, 1]), np.int32(pixels[k, 2])
        high = max(red, green, blue)
        delta = high - min(red, green, blue)
        # scikit-image lets the last channel that reaches the maximum decide
        sector, apart = np.int32(0), green - blue
        if green == high:
            sector, apart = np.int32(2), blue - red
        if blue == high:
            sector, apart = np.int32(4), red - green
        turn = (sector + apart / max(delta, np.int32(1))) * (256.0 / 6.0)
        hue[k] = np.int32(np.floor(turn + 0.5)) & 255 if delta > 0 else 0
        saturation[k] = np.int32(np.floor(255.0 * delta / max(high, np.int32(1)) + (0.5 + 1e-9)))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fill_lab(pixels: np.ndarray, shares: np.ndarray, root: np.ndarray, light: np.ndarray, levels: np.ndarray) -> None:
    """Levels of L*, a* and b*; `light` is room for X, Y and Z."""
    count = levels.shape[1]
    for axis in range(3):
        reds, greens, blues = shares[axis]
        plane = light[axis]
        for k in range(count):
            plane[k] = reds[pixels[k, 0]] + greens[pixels[k, 1]] + blues[pixels[k, 2]]
        for k in range(count):
            t = plane[k]
            u = np.sqrt(max(t, 0.008))
            y = root[7] + u * root[8]
            y = root[5] + u * (root[6] + u * y)
            y = root[3] + u * (root[4] + u * y)
            y = root[1] + u * (root[2] + u * y)
            y = root[0] + u * y
            cube = y * y * y
            y *= (cube + 2.0 * t) / (2.0 * cube + t)
            plane[k] = y if t > 0.008856 else 7.787 * t + 16.0 / 116.0
    for k in range(count):
        x, y, z = light[0, k], light[1, k], light[2, k]
        levels[0, k] = np.int32((116.0 * y - 16.0) * 2.55 + 0.5)
        levels[1, k] = np.int32(500.0 * (x - y) + 128.5)
        levels[2, k] = np.int32(200.0 * (y - z) + 128.5)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _count(plane: np.ndarray, counts: np.ndarray) -> None:
    """Add the histogram of `plane` to `counts`; two counters, so that equal neighbours need not wait."""
    other = np.zeros(256, np.int32)
    for row in range(plane.shape[0]):
        for column in range(0, plane.shape[1] - 1, 2):
            counts[plane[row, column]] += 1
            other[plane[row, column + 1]] += 1
        if plane.shape[1] % 2:
            counts[plane[row, plane.shape[1] - 1]] += 1
    counts += other


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _circular_moments(counts: np.ndarray, total: int, out: np.ndarray) -> None:
    cosine, sine, cosine2, sine2 = 0.0, 0.0, 0.0, 0.0
    for level in range(256):
        if counts[level]:
            c, s = np.cos(np.pi * (level - 128) / 128.0), np.sin(np.pi * (level - 128) / 128.0)
            cosine += counts[level] * c
            sine += counts[level] * s
            cosine2 += counts[level] * (c * c - s * s)
            sine2 += counts[level] * (2.0 * s * c)
    length = np.hypot(cosine, sine) / total
    angle = np.arctan2(sine, cosine) if length >= 1e-9 else 0.0
    c, s = np.cos(2.0 * angle), np.sin(2.0 * angle)
    out[0], out[1] = angle / (2.0 * np.pi), 1.0 - length
    out[2], out[3] = (sine2 * c - cosine2 * s) / total, (cosine2 * c + sine2 * s) / total


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _moments(counts: np.ndarray, total: int, low: float, step: float, out: np.ndarray) -> None:
    first = np.int64(0)
    for level in range(256):
        first += counts[level] * level
    mean = first / total
    second, third, fourth = 0.0, 0.0, 0.0
    for level in range(256):
        deviation = level - mean
        square = deviation * deviation
        second += counts[level] * square
        third += counts[level] * (square * deviation)
        fourth += counts[level] * (square * square)
    second, third, fourth = second / total, third / total, fourth / total
    out[0], out[1], out[2], out[3] = low + step * mean, step * np.sqrt(second), 0.0, 0.0
    if second > 0.0:
        out[2], out[3] = third / (second * np.sqrt(second)), fourth / (second * second) - 3.0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _quantiles(counts: np.ndarray, total: int, low: float, step: float, quantiles: np.ndarray, out: np.ndarray) -> None:
    level, below = 0, counts[0]
    for k in range(quantiles.size):
        position = quantiles[k] * (total - 1)
        rank = int(position)
        while below <= rank:
            level += 1
            below += counts[level]
        after = level
        if below <= rank + 1 < total:
            after += 1
            while counts[after] == 0:
                after += 1
        out[k] = low + step * (level + (after - level) * (position - rank))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _summary(
    counts: np.ndarray, circular: bool, low: float, step: float, quantiles: np.ndarray, out: np.ndarray
) -> None:
    total = np.int64(0)
    for level in range(256):
        total += counts[level]
    if total == 0:
        out[:] = 0.0
        return
    if circular:
        _circular_moments(counts, total, out)
    else:
        _moments(counts, total, low, step, out)
    _quantiles(counts, total, low, step, quantiles, out[4:])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _colour_kernel(
    patches: np.ndarray,
    stains: np.ndarray,
    shares: np.ndarray,
    root: np.ndarray,
    lows: np.ndarray,
    steps: np.ndarray,
    quantiles: np.ndarray,
    out: np.ndarray,
) -> None:
    n, height, width, _ = patches.shape
    planes, light = np.empty((11, height, width), np.uint8), np.empty((3, height * width))
    levels = planes.reshape((11, height * width))
    top, left = (height - 32) // 2, (width - 32) // 2
    counts = np.empty((3, 256), np.int32)
    for i in range(n):
        pixels = patches[i].reshape((height * width, 3))
        for channel in range(3):
            levels[channel] = pixels[:, channel]
            planes[8 + channel] = stains[channel, i]
        _fill_hue(pixels, levels[3], levels[4])
        _fill_lab(pixels, shares, root, light, levels[5:8])
        for channel in range(11):
            counts[:] = 0
            _count(planes[channel], counts[0])
            _count(planes[channel, top : top + 32, left : left + 32], counts[1])
            if channel == 3:
                _forget_hueless(patches[i], top, left, counts)
            counts[2] = counts[0] - counts[1] if height * width > 1024 else counts[0]
            for region in range(3):
                _summary(
                    counts[region], channel == 3, lows[channel], steps[channel], quantiles, out[i, region, channel]
                )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _forget_hueless(patch: np.ndarray, top: int, left: int, counts: np.ndarray) -> None:
    """Take pixels without hue out of the histograms, and turn these so that they begin at half a turn."""
    height, width, _ = patch.shape
    for row in range(height):
        for column in range(width):
            red, green, blue = patch[row, column]
            if red == green == blue:
                counts[0, 0] -= 1
                if top <= row < top + 32 and left <= column < left + 32:
                    counts[1, 0] -= 1
    for region in range(2):
        for level in range(128):
            lower = counts[region, level]
            counts[region, level] = counts[region, level + 128]
            counts[region, level + 128] = lower


# The words of a statistic; for hue the words and ranges of the circle stand in for the first four.
_WORDS = {
    "mean": "mean",
    "spread": "standard deviation",
    "skew": "skewness (0 when constant)",
    "kurtosis": "excess kurtosis (0 when constant)",
    "q05": "5 % quantile",
    "q50": "median",
    "q95": "95 % quantile",
}
_HUE_WORDS = {
    "mean": "direction of the mean vector",
    "spread": "one minus length of the mean vector",
    "skew": "mean sine of twice the angle from the mean direction",
    "kurtosis": "mean cosine of twice the angle from the mean direction",
}
_STAINS = "Ruifrok & Johnston (2001), Anal Quant Cytol Histol 23(4):291-299"
_REFERENCES = {
    "hue": "Batschelet (1981), Circular Statistics in Biology",
    "saturation": "Smith (1978), SIGGRAPH Comput Graph 12(3):12-19",
    "lightness": "CIE 15:2004, Colorimetry",
    "green-red": "CIE 15:2004, Colorimetry",
    "blue-yellow": "CIE 15:2004, Colorimetry",
    "haematoxylin": _STAINS,
    "eosin": _STAINS,
    "residual": _STAINS,
}


def _range(channel: Row, statistic: str, region: str) -> tuple[str, float, float]:
    """Return unit and range of a statistic of a channel."""
    circular = channel.name == "hue" and statistic in ("spread", "skew", "kurtosis")
    if region == "contrast":
        widest = {"mean": channel.high - channel.low, "spread": (channel.high - channel.low) / 2}[statistic]
        widest = {"mean": 0.5, "spread": 1.0}[statistic] if channel.name == "hue" else widest
        return "1" if circular else channel.unit, -widest, widest
    if circular:
        return "1", 0.0 if statistic == "spread" else -1.0, 1.0
    if statistic == "mean" and channel.name == "hue":
        return channel.unit, -0.5, 0.5
    if statistic == "spread":
        return channel.unit, 0.0, (channel.high - channel.low) / 2
    if statistic == "skew":
        return "1", -inf, inf
    if statistic == "kurtosis":
        return "1", -2.0, inf
    return channel.unit, channel.low, channel.high


def _columns() -> Iterator[Column]:
    for region, kept in REGIONS.items():
        for channel in CHANNELS:
            for statistic in STATISTICS[:kept]:
                words = _WORDS | (_HUE_WORDS if channel.name == "hue" else {})
                yield Column(
                    f"colour_{statistic}_{channel.name}_{region}",
                    *_range(channel, statistic, region),
                    f"{words[statistic].capitalize()} of {channel.words}, {REGION_WORDS[region]}.",
                    _REFERENCES.get(channel.name, "Gonzalez & Woods (2018), Digital Image Processing, 4th ed."),
                )


COLUMNS = tuple(_columns())
