# mypy: allow-untyped-defs
# (Numba infers the types of the kernels)
"""Random numbers and smooth noise for the phantom's kernels: one splitmix64 stream and one lattice per patch.

References
----------
Steele, Lea & Flood (2014), Fast splittable pseudorandom number generators, OOPSLA (splitmix64).
Perlin (1985), An image synthesizer, SIGGRAPH (lattice noise).
"""

import numpy as np
from numba import njit

from histoblend.data.kernel_cache import recompiled_with

LATTICE = 64
BROAD, WARP, FINE, MOTTLE, ISLAND, THICKNESS = 0, 1, 2, 3, 4, 5  # planes of noise
PERIODS = np.array([26.0, 19.0, 1.9, 4.6, 37.0, 45.0])

# No fastmath: reordered sums would make the pixels differ between machines.
compiled = recompiled_with(
    njit(cache=True, nogil=True, error_model="numpy"), "cells", "drawing", "noise", "optics", "patch_record", "tissue"
)


@compiled
def _bits(stream):
    stream[0] += np.uint64(0x9E3779B97F4A7C15)
    z = stream[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled
def uniform(stream):
    """Return a uniform random number in 0..1, 1 excluded."""
    return (_bits(stream) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@compiled
def normal(stream):
    """Return the standardised sum of four 16-bit uniforms: nearly Gaussian, within 3.5 standard deviations, fast."""
    z = _bits(stream)
    low = np.uint64(0xFFFF)
    total = (z & low) + ((z >> np.uint64(16)) & low) + ((z >> np.uint64(32)) & low) + (z >> np.uint64(48))
    return (np.int64(total) - 131070) * (1.7320508 / 65536.0)


@compiled
def fill_lattice(stream, lattice):
    """Fill the lattice with uniform numbers in 0..1, four per draw."""
    for i in range(lattice.shape[0]):
        for j in range(0, lattice.shape[1], 4):
            z = _bits(stream)
            for k in range(4):
                lattice[i, j + k] = np.float32((z >> np.uint64(16 * k)) & np.uint64(0xFFFF)) * np.float32(1 / 65535)


@compiled
def noise_at(lattice, x, y):
    """Return smooth noise in 0..1 (mean 0.5, standard deviation about 0.2); one unit is one lattice cell."""
    x, y = np.float32(x), np.float32(y)
    column, row = np.int32(np.floor(x)), np.int32(np.floor(y))
    u, v = x - np.float32(column), y - np.float32(row)
    u, v = u * u * (np.float32(3) - np.float32(2) * u), v * v * (np.float32(3) - np.float32(2) * v)
    left, right = column & (LATTICE - 1), (column + 1) & (LATTICE - 1)
    top, bottom = row & (LATTICE - 1), (row + 1) & (LATTICE - 1)
    above = lattice[top, left] + u * (lattice[top, right] - lattice[top, left])
    below = lattice[bottom, left] + u * (lattice[bottom, right] - lattice[bottom, left])
    return above + v * (below - above)


@compiled
def ramp(value, low, high):
    """Return 0 below `low`, 1 above `high` and a linear ramp between them; float32."""
    return min(max(np.float32((value - low) / (high - low)), np.float32(0)), np.float32(1))


@compiled
def level_above(share):
    """Return the level that a given share of the lattice noise exceeds (the noise spans 0.05 to 0.95 in practice)."""
    return 1.02 - 1.04 * share if share <= 0.0 or share >= 1.0 else 0.86 - 0.72 * share


@compiled
def fill_planes(stream, lattice, periods, planes):
    """Fill planes with smooth noise.

    Two lattice rows are blended once per row of pixels, which is several times faster than evaluating each point.
    """
    size = planes.shape[1]
    cells, weights = np.empty(size, dtype=np.int32), np.empty(size, dtype=np.float32)
    blend = np.empty(LATTICE + 1, dtype=np.float32)
    for plane in range(planes.shape[0]):
        start_x, start_y = LATTICE * uniform(stream), LATTICE * uniform(stream)
        for x in range(size):
            position = start_x + x / periods[plane]
            cells[x] = np.int32(position) & (LATTICE - 1)
            weight = position - np.floor(position)
            weights[x] = weight * weight * (3 - 2 * weight)
        for y in range(size):
            position = start_y + y / periods[plane]
            top = np.int32(position) & (LATTICE - 1)
            bottom = (top + 1) & (LATTICE - 1)
            weight = position - np.floor(position)
            weight = np.float32(weight * weight * (3 - 2 * weight))
            for i in range(LATTICE):
                blend[i] = lattice[top, i] + weight * (lattice[bottom, i] - lattice[top, i])
            blend[LATTICE] = blend[0]
            for x in range(size):
                left = blend[cells[x]]
                planes[plane, y, x] = left + weights[x] * (blend[cells[x] + 1] - left)
