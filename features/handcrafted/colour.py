"""Colour statistics of a batch of patches, in RGB, HSV, Lab and stain amounts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from skimage.color import rgb2xyz, xyz_tristimulus_values

from histoblend.features.handcrafted.channels import STAIN_SCALES, Planes
from histoblend.features.handcrafted.column import REGION_WORDS, Column, Row
from histoblend.features.handcrafted.kernel import fused_kernel, inner_kernel, kernel

#: Name, unit, values at levels 0 and 255, description.
CHANNELS = (
    Row("red", "1", 0, 1, "red"),
    Row("green", "1", 0, 1, "green"),
    Row("blue", "1", 0, 1, "blue"),
    Row("hue", "turn", -0.5, 0.5 - 1 / 256, "hue (from red, coloured pixels only)"),
    Row("saturation", "1", 0, 1, "saturation (HSV)"),
    Row("lightness", "1", 0, 100, "lightness L* (CIE Lab, D65)"),
    Row("green-red", "1", -128, 127, "a* (green to red; CIE Lab, D65)"),
    Row("blue-yellow", "1", -128, 127, "b* (blue to yellow; CIE Lab, D65)"),
    Row("haematoxylin", "6 decades", 0, STAIN_SCALES[0], "haematoxylin amount (optical density)"),
    Row("eosin", "6 decades", 0, STAIN_SCALES[1], "eosin amount (optical density)"),
    Row("residual", "6 decades", 0, STAIN_SCALES[2], "residual (third) stain amount (optical density)"),
)
STATISTICS = ("mean", "spread", "skew", "kurtosis", "q05", "q50", "q95")
#: Number of statistics per region, from the start of `STATISTICS`.
REGIONS = {"whole": 7, "centre": 2, "ring": 1, "contrast": 2}
_QUANTILES = (0.05, 0.5, 0.95)
#: A value this close to a rounding boundary is recomputed in double precision.
_DOUBT = 1e-3


def colour(planes: Planes) -> np.ndarray:
    """Moments and quantiles of eleven 8-bit colour channels.

    The channels are those of scikit-image's `rgb2hsv`, `rgb2lab` and `rgb2hed`, rounded (half up) to 256 levels. Red,
    green, blue and saturation are level / 255, hue is level / 256 of a turn, L* is level / 2.55, and a* and b* are
    level − 128. Stain amounts are those of `channels.Planes.stains`. Mean, spread (standard deviation), skewness and
    excess kurtosis are population moments (`scipy.stats`). Skewness and kurtosis of a constant channel are 0. Quantiles
    follow `numpy.quantile`.

    Hue is circular. It is measured in turns from red, −½ to ½, over the pixels that have a hue. The mean is the
    direction of the mean vector, and the spread is 1 − R, where R is the length of that vector. Skew and kurtosis are
    the mean sine and cosine of twice the angle from the mean direction. If no pixel has a hue, all are 0. If R is below
    1e-9, the mean direction is taken as 0.

    The ring is the part of the patch outside the centre. If a patch has no ring, the ring's statistics equal the
    centre's.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, 132), dtype float32
        Ordered by region (`REGIONS`), channel (`CHANNELS`) and statistic.

    References
    ----------
    Ruifrok & Johnston (2001), Anal Quant Cytol Histol 23(4):291-299 (stain amounts).
    Batschelet (1981), Circular Statistics in Biology (hue).
    """
    n = len(planes)
    tables = np.empty((n, 3, len(CHANNELS), len(STATISTICS)))
    lows = np.array([row.low for row in CHANNELS])
    steps = (np.array([row.high for row in CHANNELS]) - lows) / 255
    turns = 2 * np.pi * (np.arange(256) - 128) / 256
    circle = np.stack([np.cos(turns), np.sin(turns), np.cos(2 * turns), np.sin(2 * turns)])
    _colour_kernel(planes.channels, planes.stains, *_light_tables(), lows, steps, circle, np.array(_QUANTILES), tables)
    whole, centre, ring = (tables[:, region] for region in range(3))
    contrast = centre[..., :2] - ring[..., :2]
    # hue: a difference of directions must stay within half a turn
    contrast[:, 3, 0] -= np.round(contrast[:, 3, 0])
    blocks = (whole, centre[..., :2], ring[..., :1], contrast)
    return np.concatenate([block.reshape(n, -1) for block in blocks], axis=1).astype(np.float32)


@cache
def _light_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the linear light of each level, the RGB to XYZ matrix divided by the white point, and two polynomials.

    Shapes (256,), (3 axes, 3 channels) and (2, 9). The polynomials approximate u^(2/3). One step of Halley's method
    after a polynomial gives cube roots without a branch, to 1e-11 with the first polynomial and to single precision
    with the second, which has fewer terms.
    """
    level = np.arange(256) / 255.0
    linear = np.where(level > 0.04045, ((level + 0.055) / 1.055) ** 2.4, level / 12.92)
    white = xyz_tristimulus_values(illuminant="D65", observer="2")
    # the columns of the matrix are the XYZ values of the three primaries
    shares = np.ascontiguousarray(rgb2xyz(np.eye(3)).T / white[:, None])
    roots = np.linspace(np.sqrt(0.0088), 1.001, 4001)
    polynomials = np.zeros((2, 9))
    for row, degree in zip(polynomials, (8, 4), strict=True):
        fit = np.polynomial.Chebyshev.fit(roots, roots ** (2 / 3), degree, w=roots ** (-2 / 3))
        row[: degree + 1] = fit.convert(kind=np.polynomial.Polynomial).coef
    return linear, shares, polynomials


@inner_kernel
def _fill_hue(channels: np.ndarray, patch: int, planes: np.ndarray) -> None:
    """Write the levels of hue (0 if a pixel has none) and saturation into planes 0 and 1.

    All quotients are of whole numbers below 2^24, so single precision rounds them down correctly.
    """
    zero, one, two, four, six = np.float32(0), np.float32(1), np.float32(2), np.float32(4), np.float32(6)
    for k in range(planes.shape[1]):
        red, green = np.float32(channels[0, patch, k]), np.float32(channels[1, patch, k])
        blue = np.float32(channels[2, patch, k])
        high = max(red, green, blue)
        delta = high - min(red, green, blue)
        # as in scikit-image, the last channel that equals the maximum decides
        turn = two * delta + (blue - red) if green == high else green - blue
        turn = four * delta + (red - green) if blue == high else turn
        turn = turn + six * delta if turn < zero else turn
        size = max(six * delta, one)
        planes[0, k] = np.uint8(np.int32((np.float32(512) * turn + size) / (two * size)) & 255) if delta > zero else 0
        high = max(high, one)
        planes[1, k] = np.uint8(np.int32((np.float32(510) * delta + high) / (two * high)))


@inner_kernel
def _fill_lab_exactly(light: np.ndarray, shares: np.ndarray, root: np.ndarray, k: int, planes: np.ndarray) -> None:
    """Write L*, a* and b* of one pixel into planes 2 to 4, from its linear light, in double precision."""
    x, y, z = 0.0, 0.0, 0.0
    for axis in range(3):
        t = shares[axis, 0] * light[0] + shares[axis, 1] * light[1] + shares[axis, 2] * light[2]
        u = np.sqrt(max(t, 0.008))
        value = root[0, 8]
        for power in range(7, -1, -1):
            value = root[0, power] + u * value
        cube = value * value * value
        value *= (cube + 2.0 * t) / (2.0 * cube + t)
        x, y, z = y, z, value if t > 0.008856 else 7.787 * t + 16.0 / 116.0
    planes[2, k] = np.int32((116.0 * y - 16.0) * 2.55 + 0.5)
    planes[3, k] = np.int32(500.0 * (x - y) + 128.5)
    planes[4, k] = np.int32(200.0 * (y - z) + 128.5)


@fused_kernel
def _fill_lab(
    channels: np.ndarray,
    patch: int,
    linear: np.ndarray,
    shares: np.ndarray,
    root: np.ndarray,
    light: np.ndarray,
    levels: np.ndarray,
    unsure: np.ndarray,
    exact: np.ndarray,
    planes: np.ndarray,
) -> None:
    """Write L*, a* and b* of all pixels into planes 2 to 4.

    Single precision is used first. Pixels whose rounding is then uncertain are recomputed in double precision. The four
    arrays before the planes are scratch memory.
    """
    half, doubt = np.float32(0.5), np.float32(_DOUBT)
    for start in range(0, planes.shape[1], 256):
        size, first = min(256, planes.shape[1] - start), np.uint64(start)
        for channel in range(3):
            for k in range(size):
                light[3 + channel, k] = linear[channels[channel, patch, np.uint64(k) + first]]
        for axis in range(3):
            red, green, blue = np.float32(shares[axis, 0]), np.float32(shares[axis, 1]), np.float32(shares[axis, 2])
            for k in range(size):
                t = red * light[3, k] + green * light[4, k] + blue * light[5, k]
                u = np.sqrt(max(t, np.float32(0.008)))
                value = np.float32(root[1, 3]) + u * np.float32(root[1, 4])
                value = np.float32(root[1, 1]) + u * (np.float32(root[1, 2]) + u * value)
                value = np.float32(root[1, 0]) + u * value
                cube = value * value * value
                value *= (cube + np.float32(2) * t) / (np.float32(2) * cube + t)
                low = np.float32(7.787) * t + np.float32(16.0 / 116.0)
                light[axis, k] = value if t > np.float32(0.008856) else low
        for k in range(size):
            levels[0, k] = np.float32(295.8) * light[1, k] + np.float32(0.5 - 40.8)
            levels[1, k] = np.float32(500) * (light[0, k] - light[1, k]) + np.float32(128.5)
            levels[2, k] = np.float32(200) * (light[1, k] - light[2, k]) + np.float32(128.5)
            unsure[k] = 0
        count = 0
        for axis in range(3):
            for k in range(size):
                level = np.int32(levels[axis, k])
                planes[2 + axis, np.uint64(k) + first] = np.uint8(level)
                # close to a rounding boundary
                distance = abs(levels[axis, k] - np.float32(level) - half)
                unsure[k] |= np.int32(1) if distance > half - doubt else np.int32(0)
        for k in range(size):
            count += unsure[k]
        if count > 0:
            for k in range(size):
                if unsure[k]:
                    for channel in range(3):
                        exact[channel] = linear[channels[channel, patch, start + k]]
                    _fill_lab_exactly(exact, shares, root, start + k, planes)


@inner_kernel
def _fill_histogram(plane: np.ndarray, patch: int, counts: np.ndarray, scratch: np.ndarray) -> None:
    """Write the histogram of one row of `plane` into `counts`.

    `scratch` holds four partial histograms, so that equal neighbouring pixels do not wait for the same counter.
    """
    for level in range(256):
        scratch[0, level], scratch[1, level], scratch[2, level], scratch[3, level] = 0, 0, 0, 0
    size = plane.shape[1]
    for quarter in range(size // 4):
        # unsigned, because a signed index would be tested for negative values
        first = np.uint64(4 * quarter)
        scratch[0, plane[patch, first]] += 1
        scratch[1, plane[patch, first + np.uint64(1)]] += 1
        scratch[2, plane[patch, first + np.uint64(2)]] += 1
        scratch[3, plane[patch, first + np.uint64(3)]] += 1
    for k in range(size - size % 4, size):
        scratch[0, plane[patch, k]] += 1
    for level in range(256):
        counts[level] = scratch[0, level] + scratch[1, level] + scratch[2, level] + scratch[3, level]


@inner_kernel
def _circular_moments(counts: np.ndarray, total: int, circle: np.ndarray, out: np.ndarray) -> None:
    """Direction of the mean vector, 1 − its length, and mean sine and cosine of twice the angle from it."""
    for k in range(4):
        out[k] = 0.0
    if total == 0:
        return
    cosine, sine, cosine2, sine2 = 0.0, 0.0, 0.0, 0.0
    for level in range(256):
        cosine += counts[level] * circle[0, level]
        sine += counts[level] * circle[1, level]
        cosine2 += counts[level] * circle[2, level]
        sine2 += counts[level] * circle[3, level]
    length = np.sqrt(cosine * cosine + sine * sine) / total
    angle = np.arctan2(sine, cosine) if length >= 1e-9 else 0.0
    c, s = np.cos(2.0 * angle), np.sin(2.0 * angle)
    out[0], out[1] = angle / (2.0 * np.pi), 1.0 - length
    out[2], out[3] = (sine2 * c - cosine2 * s) / total, (cosine2 * c + sine2 * s) / total


@inner_kernel
def _moments(counts: np.ndarray, total: int, low: float, step: float, out: np.ndarray) -> None:
    total_level = 0
    for level in range(256):
        total_level += counts[level] * level
    mean = total_level / total
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


@inner_kernel
def _quantiles(counts: np.ndarray, total: int, low: float, step: float, quantiles: np.ndarray, out: np.ndarray) -> None:
    """Write quantiles into out[4:]; 0 if the histogram is empty."""
    level, below = 0, counts[0]
    for k in range(quantiles.size):
        out[4 + k] = 0.0
        if total == 0:
            continue
        position = quantiles[k] * (total - 1)
        rank = int(position)
        while below <= rank:
            level += 1
            below += counts[level]
        next_level = level
        if below <= rank + 1 < total:
            next_level += 1
            while counts[next_level] == 0:
                next_level += 1
        out[4 + k] = low + step * (level + (next_level - level) * (position - rank))


@inner_kernel
def _centre_and_ring(
    plane: np.ndarray, patch: int, height: int, width: int, counts: np.ndarray, low: float, step: float, out: np.ndarray
) -> None:
    """Write mean and spread of the centre and the ring into out[1:3]; `counts` is the histogram of the whole patch."""
    sums, squares, inner, inner_squares = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for level in range(256):
        sums += counts[level] * level
        squares += counts[level] * level * level
    for row in range((height - 32) // 2, (height - 32) // 2 + 32):
        start = np.uint64(row * width + (width - 32) // 2)
        for column in range(32):
            value = np.int32(plane[patch, np.uint64(column) + start])
            inner += value
            inner_squares += np.int32(value * value)
    total = height * width - 1024
    if total > 0:
        sums, squares = sums - inner, squares - inner_squares
    else:
        total = 1024
    out[1, 0] = low + step * (inner / 1024)
    out[1, 1] = step * np.sqrt(1024 * inner_squares - inner * inner) / 1024
    out[2, 0] = low + step * (sums / total)
    out[2, 1] = step * np.sqrt(total * squares - sums * sums) / total


@inner_kernel
def _hue_statistics(
    planes: np.ndarray,
    height: int,
    width: int,
    counts: np.ndarray,
    low: float,
    step: float,
    circle: np.ndarray,
    quantiles: np.ndarray,
    inner: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write all statistics of hue. Pixels without saturation have no hue and are left out.

    `inner` is scratch memory for the histogram of the centre.
    """
    hueless, inner_hueless = 0, 0
    for level in range(256):
        inner[level] = 0
    for k in range(planes.shape[1]):
        hueless += planes[1, k] == 0
    for row in range((height - 32) // 2, (height - 32) // 2 + 32):
        start = row * width + (width - 32) // 2
        for k in range(start, start + 32):
            inner[planes[0, k]] += 1
            inner_hueless += planes[1, k] == 0
    counts[0] -= hueless
    inner[0] -= inner_hueless
    # shift the histogram so that it begins at minus half a turn
    for level in range(128):
        counts[level], counts[level + 128] = counts[level + 128], counts[level]
        inner[level], inner[level + 128] = inner[level + 128], inner[level]
    total, inner_total = planes.shape[1] - hueless, 1024 - inner_hueless
    _circular_moments(counts, total, circle, out[0])
    _quantiles(counts, total, low, step, quantiles, out[0])
    _circular_moments(inner, inner_total, circle, out[1])
    if planes.shape[1] > 1024:
        for level in range(256):
            counts[level] -= inner[level]
        total -= inner_total
    _circular_moments(counts, total, circle, out[2])


@kernel
def _colour_kernel(
    channels: np.ndarray,
    stains: np.ndarray,
    linear: np.ndarray,
    shares: np.ndarray,
    root: np.ndarray,
    lows: np.ndarray,
    steps: np.ndarray,
    circle: np.ndarray,
    quantiles: np.ndarray,
    out: np.ndarray,
) -> None:
    _, n, height, width = channels.shape
    pixels = height * width
    levels, amounts = channels.reshape((3, n, pixels)), stains.reshape((3, n, pixels))
    hsv_lab, counts, scratch = np.empty((5, pixels), np.uint8), np.empty(256, np.int32), np.empty((4, 256), np.int32)
    light, lab, exact = np.empty((6, 256), np.float32), np.empty((3, 256), np.float32), np.empty(3)
    inner = np.empty(256, np.int32)
    for i in range(n):
        _fill_hue(levels, i, hsv_lab)
        _fill_lab(levels, i, linear, shares, root, light, lab, inner, exact, hsv_lab)
        for channel in range(11):
            # red, green, blue; hue, saturation, L*, a*, b*; haematoxylin, eosin, residual
            plane, row = hsv_lab, channel - 3
            if channel < 3:
                plane, row = levels[channel], i
            elif channel > 7:
                plane, row = amounts[channel - 8], i
            _fill_histogram(plane, row, counts, scratch)
            statistics = out[i, :, channel]
            if channel == 3:
                _hue_statistics(hsv_lab, height, width, counts, lows[3], steps[3], circle, quantiles, inner, statistics)
            else:
                _centre_and_ring(plane, row, height, width, counts, lows[channel], steps[channel], statistics)
                _moments(counts, pixels, lows[channel], steps[channel], statistics[0])
                _quantiles(counts, pixels, lows[channel], steps[channel], quantiles, statistics[0])


# Descriptions of the statistics. For hue, circular statistics replace the first four.
_WORDS = {
    "mean": "mean",
    "spread": "standard deviation",
    "skew": "skewness (0 if constant)",
    "kurtosis": "excess kurtosis (0 if constant)",
    "q05": "5 % quantile",
    "q50": "median",
    "q95": "95 % quantile",
}
_HUE_WORDS = {
    "mean": "mean direction",
    "spread": "circular spread (1 − length of the mean vector)",
    "skew": "circular skewness (mean sine of twice the angle from the mean)",
    "kurtosis": "circular kurtosis (mean cosine of twice the angle from the mean)",
}
_STAINS = "Ruifrok & Johnston (2001), Anal Quant Cytol Histol 23(4):291-299"
_REFERENCES = {
    "hue": "Batschelet (1981), Circular Statistics in Biology",
    "saturation": "Smith (1978), SIGGRAPH Comput Graph 12(3):12-19",
    **dict.fromkeys(("lightness", "green-red", "blue-yellow"), "CIE 15:2004, Colorimetry"),
    **dict.fromkeys(("haematoxylin", "eosin", "residual"), _STAINS),
}


def _range(channel: Row, statistic: str, region: str) -> tuple[str, float, float]:
    """Return the unit, lowest and highest value of a statistic of a channel."""
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
    if statistic in ("skew", "kurtosis"):
        return "1", -2.0 if statistic == "kurtosis" else -np.inf, np.inf
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
