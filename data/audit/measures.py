"""Measures of a patch, computed while it is decoded: the input of flags, duplicate search and inferred slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import pandas as pd

#: Cosine coefficients per axis that describe a patch, and coefficients per axis whose signs give its 63 bits.
FREQUENCIES = 16
SIGNS = 8

#: Side in pixels of the blocks that grey values are averaged over, which removes sensor noise and grain.
BLOCK = 3

#: Colour is measured on every second pixel of every second row.
STRIDE = 2

#: Side, in blocks, of a square that counts as ink if it is dark throughout: 15 pixels, more than a nucleus.
INK_BLOCKS = 5

MEASURES = {
    "brightness": "mean grey value, 0 to 255",
    "contrast": "standard deviation of grey values over blocks of 3 × 3 pixels",
    "tissue": "share of blocks darker than grey 200",
    "dark": "share of blocks with no colour channel above 60",
    "ink": "share of squares of 15 × 15 pixels that absorb most red light (no block above 90)",
    "clipped": "share of pixels with a colour channel at 0 or 255",
    "detail": "mean squared difference of neighbouring blocks of 6 × 6 pixels, summed over both directions",
    "sharpness": "the same difference for blocks of 3 × 3 pixels, divided by detail: noise near 4, tissue about 1.2",
    "red": "mean red, 0 to 255",
    "green": "mean green, 0 to 255",
    "blue": "mean blue, 0 to 255",
    "nuclei_red": "red's share of the optical density in the 15 % of pixels with the darkest red",
    "nuclei_blue": "blue's share of the optical density in the same pixels",
    "fibres_red": "red's share of the optical density in the 60 % of pixels with the brightest red, without glass",
    "fibres_blue": "blue's share of the optical density in the same pixels",
}
"""Measures of a patch, each with its definition."""

_COLUMNS = tuple(MEASURES)
_DENSITY = (np.log10(256.0) - np.log10(np.arange(256) + 1.0)).astype(np.float32)

_compiled = numba.njit(cache=True, nogil=True)


@dataclass(frozen=True)
class Measures:
    """Measures of some patches.

    Attributes
    ----------
    values : ndarray of shape (m, len(MEASURES)), dtype float32
    bits : ndarray of shape (m,), dtype uint64
    vectors : ndarray of shape (m, FREQUENCIES, FREQUENCIES), dtype int8
        Description of each patch, see :func:`describe`.
    """

    values: np.ndarray
    bits: np.ndarray
    vectors: np.ndarray

    @classmethod
    def join(cls, parts: Sequence[Measures]) -> Measures:
        """Concatenate the measures of several batches."""
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.bits for part in parts]),
            np.concatenate([part.vectors for part in parts]),
        )

    def table(self) -> pd.DataFrame:
        """Return the measures as a table with one row per patch and one column per measure."""
        return pd.DataFrame(self.values, columns=list(_COLUMNS))


def measure(patches: np.ndarray) -> Measures:
    """Measure patches.

    The function is thread-safe. The measures of a patch depend only on its own pixels.

    Parameters
    ----------
    patches : ndarray of shape (m, height, width, 3), dtype uint8
        At least 32 × 32 pixels.

    Returns
    -------
    Measures
    """
    height, width = patches.shape[1:3]
    values = np.empty((len(patches), len(_COLUMNS)), np.float32)
    bits = np.empty(len(patches), np.uint64)
    vectors = np.empty((len(patches), FREQUENCIES, FREQUENCIES), np.int8)
    _measure(patches, (cosines(height), cosines(width)), _DENSITY, values, bits, vectors)
    return Measures(values, bits, vectors)


def cosines(size: int) -> np.ndarray:
    """Return the orthonormal cosine basis, ndarray of shape (size, FREQUENCIES), dtype float32."""
    positions = (np.arange(size) + 0.5)[:, None] / size
    basis = np.sqrt(2 / size) * np.cos(np.pi * positions * np.arange(FREQUENCIES))
    basis[:, 0] /= np.sqrt(2)
    return basis.astype(np.float32)


@_compiled
def describe(grey, basis, vector):  # type: ignore[no-untyped-def]
    """Describe one patch: write its coefficients into ``vector`` and return their signs.

    Parameters
    ----------
    grey : ndarray of shape (height, width), dtype float32
    basis : pair of ndarray
        From :func:`cosines`, for height and for width.
    vector : ndarray of shape (FREQUENCIES, FREQUENCIES), dtype int8
        Output: coefficients times their frequency, scaled to −127..127; all 0 for a flat patch.

    Returns
    -------
    uint64
        Bit ``8 u + v`` is set if coefficient (u, v) is positive. Bit 0, the mean, is not used.
    """
    height, width = grey.shape
    tall, wide = basis
    coefficients = np.zeros((FREQUENCIES, FREQUENCIES), dtype=np.float32)
    row = np.empty(FREQUENCIES, dtype=np.float32)
    # The mean is subtracted: its rounding noise would hide the structure of a nearly flat patch.
    mean = np.float32(grey.mean())
    for y in range(height):
        row[:] = 0
        for x in range(width):
            value = grey[y, x] - mean
            for v in range(FREQUENCIES):
                row[v] += value * wide[x, v]
        for u in range(FREQUENCIES):
            for v in range(FREQUENCIES):
                coefficients[u, v] += tall[y, u] * row[v]
    bits, largest = np.uint64(0), np.float32(0)
    for u in range(FREQUENCIES):
        for v in range(FREQUENCIES):
            if u < SIGNS and v < SIGNS and u + v > 0 and coefficients[u, v] > 0:
                bits |= np.uint64(1) << np.uint64(SIGNS * u + v)
            coefficients[u, v] *= np.float32(np.sqrt(u * u + v * v))
            largest = max(largest, abs(coefficients[u, v]))
    # A flat patch leaves only rounding noise; a difference of one grey level on one side of the patch gives 20 or more.
    scale = np.float32(127) / largest if largest > 1 else np.float32(0)
    for u in range(FREQUENCIES):
        for v in range(FREQUENCIES):
            vector[u, v] = np.int8(np.rint(coefficients[u, v] * scale))
    return bits


@_compiled
def _measure(patches, bases, density, values, bits, vectors):  # type: ignore[no-untyped-def]
    height, width = patches.shape[1:3]
    grey = np.empty((height, width), dtype=np.float32)
    for i in range(len(patches)):
        patch = patches[i]
        clipped = 0
        for y in range(height):
            for x in range(width):
                red, green, blue = patch[y, x, 0], patch[y, x, 1], patch[y, x, 2]
                grey[y, x] = (np.float32(red) + np.float32(green) + np.float32(blue)) / np.float32(3)
                least, most = min(red, green, blue), max(red, green, blue)
                clipped += least == 0 or most == 255
        bits[i] = describe(grey, bases, vectors[i])
        row = values[i]
        _measure_blocks(patch, row)
        row[5] = clipped / (height * width)
        _measure_colours(patch, density, row)


@_compiled
def _measure_blocks(patch, row):  # type: ignore[no-untyped-def]
    """Compute brightness, contrast, tissue, dark, ink, detail and sharpness."""
    tall, wide = patch.shape[0] // BLOCK, patch.shape[1] // BLOCK
    blocks, reds = np.empty((tall, wide), dtype=np.float32), np.empty((tall, wide), dtype=np.float32)
    tissue, dark, total, squares = 0, 0, 0.0, 0.0
    for y in range(tall):
        for x in range(wide):
            red, green, blue = np.int64(0), np.int64(0), np.int64(0)
            for dy in range(BLOCK):
                for dx in range(BLOCK):
                    red += patch[BLOCK * y + dy, BLOCK * x + dx, 0]
                    green += patch[BLOCK * y + dy, BLOCK * x + dx, 1]
                    blue += patch[BLOCK * y + dy, BLOCK * x + dx, 2]
            area = np.float32(BLOCK * BLOCK)
            level = (red + green + blue) / (3 * area)
            blocks[y, x], reds[y, x] = level, red / area
            tissue += level < 200
            dark += max(red, green, blue) < 60 * area
            total += level
            squares += level * level
    count = tall * wide
    mean = total / count
    row[0], row[1] = mean, np.sqrt(max(squares / count - mean * mean, 0.0))
    row[2], row[3], row[4] = tissue / count, dark / count, _ink(reds)
    fine = _mean_squared_difference(blocks)
    coarse = np.empty((tall // 2, wide // 2), dtype=np.float32)
    for y in range(tall // 2):
        for x in range(wide // 2):
            upper = blocks[2 * y, 2 * x] + blocks[2 * y, 2 * x + 1]
            coarse[y, x] = (upper + blocks[2 * y + 1, 2 * x] + blocks[2 * y + 1, 2 * x + 1]) / 4
    row[6] = _mean_squared_difference(coarse)
    # A flat patch has no differences to compare.
    row[7] = fine / row[6] if row[6] > 0 else np.float32(4)


@_compiled
def _mean_squared_difference(blocks):  # type: ignore[no-untyped-def]
    tall, wide = blocks.shape
    down, across = 0.0, 0.0
    for y in range(tall - 1):
        for x in range(wide):
            down += (blocks[y + 1, x] - blocks[y, x]) ** 2
    for y in range(tall):
        for x in range(wide - 1):
            across += (blocks[y, x + 1] - blocks[y, x]) ** 2
    return down / ((tall - 1) * wide) + across / (tall * (wide - 1))


@_compiled
def _ink(reds):  # type: ignore[no-untyped-def]
    tall, wide = reds.shape[0] - INK_BLOCKS + 1, reds.shape[1] - INK_BLOCKS + 1
    count = 0
    for y in range(tall):
        for x in range(wide):
            opaque = True
            for dy in range(INK_BLOCKS):
                for dx in range(INK_BLOCKS):
                    opaque = opaque and reds[y + dy, x + dx] < 90
            count += opaque
    return count / (tall * wide)


@_compiled
def _measure_colours(patch, density, row):  # type: ignore[no-untyped-def]
    """Compute the mean colour and the tints of nuclei and fibres."""
    height, width = patch.shape[:2]
    counts = np.zeros(256, dtype=np.int64)
    sums = np.zeros(3, dtype=np.int64)
    pixels = 0
    for y in range(0, height, STRIDE):
        for x in range(0, width, STRIDE):
            counts[patch[y, x, 0]] += 1
            pixels += 1
            for channel in range(3):
                sums[channel] += patch[y, x, channel]
    for channel in range(3):
        row[8 + channel] = sums[channel] / pixels
    dark_end, bright_end = _level(counts, 0.15 * pixels), _level(counts, 0.4 * pixels)
    nuclei, fibres = np.full(3, 1e-3), np.full(3, 1e-3)
    for y in range(0, height, STRIDE):
        for x in range(0, width, STRIDE):
            red = patch[y, x, 0]
            if red <= dark_end:
                for channel in range(3):
                    nuclei[channel] += density[patch[y, x, channel]]
            elif red > bright_end and patch[y, x, 1] < 193:
                for channel in range(3):
                    fibres[channel] += density[patch[y, x, channel]]
    row[11], row[12] = nuclei[0] / nuclei.sum(), nuclei[2] / nuclei.sum()
    row[13], row[14] = fibres[0] / fibres.sum(), fibres[2] / fibres.sum()


@_compiled
def _level(counts, minimum):  # type: ignore[no-untyped-def]
    """Return the lowest level that at least ``minimum`` values do not exceed."""
    total = 0
    for level in range(256):
        total += counts[level]
        if total >= minimum:
            return level
    return 255
