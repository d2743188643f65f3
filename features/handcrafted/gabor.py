"""Log-Gabor energies of a batch of patches, computed from the power spectrum."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

from histoblend.features.handcrafted.channels import Planes
from histoblend.features.handcrafted.column import CHANNEL_WORDS, Column, Row
from histoblend.features.handcrafted.kernel import kernel

CHANNELS = ("grey", "absorbed")
#: Wavelengths in pixels, spaced by a factor of about 1.6.
WAVELENGTHS = (3, 5, 8, 13, 21)
DIRECTIONS = 6
STATISTICS = (
    Row("energy", "decade", -6, 2, "Log10 of (energy + 1e-6)"),
    Row("share", "1", 0, 1, "Share of the energy of all wavelengths (0 without energy)"),
    Row("anisotropy", "1", 0, 1, "Anisotropy (1 if all energy has one direction, 0 without energy)"),
)
_BANDWIDTH = 0.65
#: Number of pixels that are transformed together, so that they stay in the processor cache.
_BLOCK = 8 * 96 * 96


def gabor(planes: Planes) -> np.ndarray:
    """Energies of a log-Gabor filter bank (5 wavelengths, 6 directions) on grey and light absorbed in red.

    The weighted mean of the plane (levels 0 to 1) is subtracted, and the plane is multiplied by a Hann window of mean
    square 1. The middle of the patch therefore counts most, and the borders do not count. The energy of a filter is the
    mean squared magnitude of the filtered plane. By Parseval's theorem this is a weighted sum of the power spectrum, so
    no filter is applied.

    The filters are Gaussian in the logarithm of frequency (sigma 0.65 of the centre frequency) and in angle (sigma
    20 degrees, both ends of a direction). They exclude frequencies of half a cycle per pixel. Energies are summed over
    the directions. Anisotropy is the length of the energies' mean vector over doubled angles. Neither changes if a
    patch is turned by 90 degrees.

    Parameters
    ----------
    planes : Planes

    Returns
    -------
    ndarray of shape (n, 30), dtype float32
        Ordered by channel, wavelength and statistic (`STATISTICS`).

    References
    ----------
    Field (1987), J Opt Soc Am A 4(12):2379-2394.
    """
    n, height, width = planes.grey.shape
    sums = np.empty((n, len(CHANNELS), 3, len(WAVELENGTHS)))
    size = max(_BLOCK // (height * width), 1)
    for start in range(0, n, size):
        levels = [plane[start : start + size] for plane in (planes.grey, planes.absorbed)]
        sums[start : start + size] = _sums(*levels)
    total, vector = sums[:, :, 0], np.hypot(sums[:, :, 1], sums[:, :, 2])
    all_energy = total.sum(axis=2, keepdims=True)
    share = np.divide(total, all_energy, out=np.zeros_like(total), where=all_energy > 1e-15)
    anisotropy = np.divide(vector, total, out=np.zeros_like(total), where=total > 1e-15)
    statistics = np.stack([np.log10(total + 1e-6), share, anisotropy], axis=3)
    return statistics.reshape(len(planes), -1).astype(np.float32)


def _sums(*levels: np.ndarray) -> np.ndarray:
    """Weighted sums of the power spectra of the windowed planes; shape (n, channel, 3, wavelength).

    They are the sum of the energies over all directions and the two components of their mean vector over doubled
    angles.
    """
    from scipy import fft

    n, height, width = levels[0].shape
    angular, radial = _bank(height, width)
    plane = np.empty((n, len(levels), height, width))
    for channel, block in enumerate(levels):
        _window_kernel(block, *_window(height, width), channel, plane)
    spectrum = fft.rfft2(plane, overwrite_x=True)
    sums = np.empty((n, len(levels), 3, len(WAVELENGTHS)))
    _energy_kernel(spectrum.view(np.float64), angular, radial, sums)
    return sums


@kernel
def _window_kernel(levels: np.ndarray, window: np.ndarray, weight: float, channel: int, out: np.ndarray) -> None:
    """Subtract the weighted mean and multiply by the window, whose sum is `weight`."""
    n, height, width = levels.shape
    line = np.empty(width)
    for i in range(n):
        # relative to the first pixel, so that a constant plane is exactly zero
        first, total = float(levels[i, 0, 0]), 0.0
        for column in range(width):
            line[column] = 0.0
        for row in range(height):
            for column in range(width):
                line[column] += window[row, column] * (levels[i, row, column] - first)
        for column in range(width):
            total += line[column]
        mean = first + total / weight
        for row in range(height):
            for column in range(width):
                out[i, channel, row, column] = (levels[i, row, column] - mean) * (window[row, column] / 255.0)


@kernel
def _energy_kernel(spectrum: np.ndarray, angular: np.ndarray, radial: np.ndarray, sums: np.ndarray) -> None:
    """Sum squared magnitudes, weighted over angles and radii, after joining each row with its mirror image.

    Complex numbers are stored as alternating real and imaginary parts. The first two angular weights are the same in
    rows `row` and -`row`, the third has the opposite sign.
    """
    n, channels, height, _ = spectrum.shape
    wavelengths, rows, columns = radial.shape
    lines, weighted = np.empty((2, columns)), np.empty(columns)
    # one sum per column, so that sums keep their order and are vectorised
    partial = np.empty((3, wavelengths, columns))
    for i in range(n):
        for channel in range(channels):
            for kind in range(3):
                for wavelength in range(wavelengths):
                    for k in range(columns):
                        partial[kind, wavelength, k] = 0.0
            for row in range(rows):
                mirror, share = (height - row, 1.0) if row > 0 else (0, 0.5)
                for k in range(columns):
                    real, imaginary = spectrum[i, channel, row, 2 * k], spectrum[i, channel, row, 2 * k + 1]
                    here = real * real + imaginary * imaginary
                    real, imaginary = spectrum[i, channel, mirror, 2 * k], spectrum[i, channel, mirror, 2 * k + 1]
                    there = real * real + imaginary * imaginary
                    lines[0, k], lines[1, k] = share * (here + there), here - there
                for kind in range(3):
                    for k in range(columns):
                        weighted[k] = angular[kind, row, k] * lines[kind // 2, k]
                    for wavelength in range(wavelengths):
                        for k in range(columns):
                            partial[kind, wavelength, k] += radial[wavelength, row, k] * weighted[k]
            for kind in range(3):
                for wavelength in range(wavelengths):
                    total = 0.0
                    for k in range(columns):
                        total += partial[kind, wavelength, k]
                    sums[i, channel, kind, wavelength] = total


@cache
def _window(height: int, width: int) -> tuple[np.ndarray, float]:
    """Hann window of mean square 1, and its sum."""
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    window /= np.sqrt((window**2).mean())
    return window, float(window.sum())


@cache
def _bank(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared filters, as products of angular and radial weights of the frequencies from 0 to below a half.

    A frequency of half a cycle per pixel has no sign and thus no direction. Returns the weights over angles, for the
    sum over all directions and the two components of the mean vector over doubled angles, (3, rows, columns), and the
    weights over radii, (wavelength, rows, columns).
    """
    down, right = np.meshgrid(np.arange((height + 1) // 2) / height, np.arange((width + 1) // 2) / width, indexing="ij")
    radius, angle = np.hypot(down, right), np.arctan2(down, right)
    radius[0, 0] = 1.0
    wavelengths = np.array(WAVELENGTHS)[:, None, None]
    radial = np.exp(-((np.log(radius * wavelengths) / np.log(_BANDWIDTH)) ** 2)) / (height * width) ** 2
    radial[:, 0, 0] = 0.0
    doubled = 2 * (angle - np.arange(DIRECTIONS)[:, None, None] * np.pi / DIRECTIONS)
    difference = np.arctan2(np.sin(doubled), np.cos(doubled)) / 2
    # half the spectrum also counts for the mirrored frequencies, which only the first column contains
    angular = np.exp(-((difference / np.deg2rad(20.0)) ** 2)) * np.where(right > 0, 2.0, 1.0)
    turns = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    weights = np.tensordot([np.ones(DIRECTIONS), np.cos(turns), np.sin(turns)], angular, axes=1)
    return np.ascontiguousarray(weights), radial


_FIELD = "Field (1987), J Opt Soc Am A 4(12):2379-2394"


def _columns() -> Iterator[Column]:
    for channel in CHANNELS:
        for wavelength in WAVELENGTHS:
            for row in STATISTICS:
                yield Column(
                    f"gabor_{row.name}-w{wavelength}_{channel}_whole",
                    *row[1:4],
                    f"{row.words}, log-Gabor filters of wavelength {wavelength} px, "
                    f"{CHANNEL_WORDS.get(channel, channel)}, whole patch.",
                    _FIELD,
                )


COLUMNS = tuple(_columns())
