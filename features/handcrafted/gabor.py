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
_FEW = 8


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
    # one product per patch, always of the same shape, so that sums do not depend on the batch size
    sums = np.matmul(_power(planes), _bank(height, width)).reshape(n, len(CHANNELS), len(WAVELENGTHS), 3)
    total, vector = sums[..., 0], np.hypot(sums[..., 1], sums[..., 2])
    all_energy = total.sum(axis=2, keepdims=True)
    share = np.divide(total, all_energy, out=np.zeros_like(total), where=all_energy > 1e-15)
    anisotropy = np.divide(vector, total, out=np.zeros_like(total), where=total > 1e-15)
    statistics = np.stack([np.log10(total + 1e-6), share, anisotropy], axis=3)
    return statistics.reshape(len(planes), -1).astype(np.float32)


def _power(planes: Planes) -> np.ndarray:
    """Half power spectra of the windowed planes, flattened; shape (n, channel, height · (width // 2 + 1))."""
    from scipy import fft

    n, height, width = planes.grey.shape
    power = np.empty((n, len(CHANNELS), height * (width // 2 + 1)))
    # small batches stay in the processor cache
    for start in range(0, n, _FEW):
        levels = [plane[start : start + _FEW] for plane in (planes.grey, planes.absorbed)]
        plane = np.empty((len(levels[0]), len(CHANNELS), height, width))
        for channel, block in enumerate(levels):
            _window_kernel(block, _window(height, width), channel, plane)
        spectrum = fft.rfft2(plane, overwrite_x=True)
        _power_kernel(spectrum.view(np.float64).reshape(*plane.shape[:2], -1), power[start : start + _FEW])
    return power


@kernel
def _window_kernel(levels: np.ndarray, window: np.ndarray, channel: int, out: np.ndarray) -> None:
    """Subtract the weighted mean and multiply by the window."""
    n, height, width = levels.shape
    weight, line = 0.0, np.empty(width)
    for row in range(height):
        for column in range(width):
            weight += window[row, column]
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
def _power_kernel(spectrum: np.ndarray, power: np.ndarray) -> None:
    """Squared magnitudes of complex numbers, stored as alternating real and imaginary parts."""
    n, channels, size = power.shape
    for i in range(n):
        for channel in range(channels):
            for k in range(size):
                real, imaginary = spectrum[i, channel, 2 * k], spectrum[i, channel, 2 * k + 1]
                power[i, channel, k] = real * real + imaginary * imaginary


@cache
def _window(height: int, width: int) -> np.ndarray:
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])
    return window / np.sqrt((window**2).mean())


@cache
def _bank(height: int, width: int) -> np.ndarray:
    """Weights of the half spectrum for three numbers per wavelength.

    The numbers are the sum of the energies over all directions and the two components of their mean vector over doubled
    angles. Shape (height · (width // 2 + 1), 15).
    """
    down, right = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    radius, angle = np.hypot(down, right), np.arctan2(down, right)
    radius[0, 0] = 1.0
    # a frequency of half a cycle per pixel has no sign and thus no direction
    signed = (np.abs(down) < 0.5) & (np.abs(right) < 0.5)
    filters = []
    for wavelength in WAVELENGTHS:
        radial = np.exp(-(np.log(radius * wavelength) ** 2) / (2 * np.log(_BANDWIDTH) ** 2))
        radial[0, 0] = 0.0
        radial *= signed
        directions = []
        for direction in range(DIRECTIONS):
            doubled = 2 * (angle - direction * np.pi / DIRECTIONS)
            difference = np.arctan2(np.sin(doubled), np.cos(doubled)) / 2
            angular = np.exp(-(difference**2) / (2 * np.deg2rad(20.0) ** 2))
            directions.append(_folded((radial * angular) ** 2).ravel())
        turns = 2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS
        filters += [weights @ np.stack(directions) for weights in (np.ones(DIRECTIONS), np.cos(turns), np.sin(turns))]
    return np.ascontiguousarray(np.stack(filters, axis=1) / (height * width) ** 2)


def _folded(weights: np.ndarray) -> np.ndarray:
    """Fold the weights of the full spectrum onto the half that a real plane needs, adding mirrored frequencies."""
    width = weights.shape[1]
    half = width // 2 + 1
    mirrored = np.roll(weights[::-1, ::-1], 1, axis=(0, 1))
    folded = weights[:, :half] + mirrored[:, :half]
    # these columns contain each frequency and its mirror image already
    unpaired = [0, width // 2] if width % 2 == 0 else [0]
    folded[:, unpaired] = weights[:, unpaired]
    return folded


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
