# mypy: allow-untyped-defs
# (Numba infers the types of the kernels)
"""Dye layers of a phantom patch and its background: reticular tissue, collagen fibres, fat and bare glass.

References
----------
Worley (1996), A cellular texture basis function, SIGGRAPH (walls between fat cells).
"""

import numpy as np

from histoblend.data.phantom.noise import (
    BROAD,
    FINE,
    ISLAND,
    LATTICE,
    MOTTLE,
    THICKNESS,
    WARP,
    compiled,
    level_above,
    noise_at,
    ramp,
    uniform,
)

HAEMATOXYLIN, EOSIN, BLOOD, TISSUE, FIBRES = 0, 1, 2, 3, 4  # layers of the drawing


@compiled
def draw_ground(patch, stream, lattice, planes, layers, slant):
    """Draw the background: reticular eosin, wavy collagen fibres, gaps and bare glass."""
    size = layers.shape[1]
    one = np.float32(1)
    along, across = np.float32(np.cos(slant)), np.float32(np.sin(slant))
    start_x, start_y = np.float32(LATTICE * uniform(stream)), np.float32(LATTICE * uniform(stream))
    fibrous, bare = np.float32(level_above(patch.stroma)), np.float32(level_above(patch.glass))
    gap = np.float32(0.92 - 0.5 * patch.loose)
    for y in range(size):
        for x in range(size):
            broad, fine, mottle = planes[BROAD, y, x], planes[FINE, y, x], planes[MOTTLE, y, x]
            fibres = ramp(broad, fibrous - np.float32(0.06), fibrous + np.float32(0.06))
            strand = np.float32(0)
            if fibres > 0:
                bend = np.float32(16) * (planes[WARP, y, x] - np.float32(0.5))
                length = x * along + y * across + bend
                breadth = y * along - x * across + np.float32(0.8) * bend
                strand = noise_at(lattice, length * np.float32(1 / 24) + start_x, breadth * np.float32(1 / 3) + start_y)
                strand = ramp(strand, np.float32(0.2), np.float32(0.8))
            ragged = mottle + np.float32(0.3) * (fine - np.float32(0.5))
            tissue = one - np.float32(0.9) * ramp(ragged, gap, gap + np.float32(0.2)) * (one - fibres)
            if patch.glass > 0:
                island = np.float32(0.75) * planes[ISLAND, y, x] + np.float32(0.25) * ragged
                tissue *= one - ramp(island, bare - np.float32(0.03), bare + np.float32(0.05))
            meshwork = np.float32(0.0) + np.float32(0.3) * fine + np.float32(0.18) * (one - mottle)
            collagen = np.float32(0.06) + np.float32(0.36) * strand + np.float32(0.22) * fine
            layers[EOSIN, y, x] = tissue * (meshwork + fibres * (collagen - meshwork))
            layers[HAEMATOXYLIN, y, x] = tissue * (np.float32(0.02) + np.float32(0.1) * (one - fibres) * mottle)
            layers[BLOOD, y, x] = 0
            layers[TISSUE, y, x] = tissue
            layers[FIBRES, y, x] = fibres


@compiled
def draw_fat(patch, stream, planes, layers):
    """Draw empty vacuoles with thin pink walls: the borders between the areas nearest to random centres."""
    size = layers.shape[1]
    pitch = 30.0 + 12.0 * uniform(stream)
    across = int(size / pitch) + 3
    centres = np.empty((across * across, 2), dtype=np.float32)
    for i in range(across * across):
        centres[i, 0] = (i % across - 1 + 0.8 * uniform(stream)) * pitch
        centres[i, 1] = (i // across - 1 + 0.8 * uniform(stream)) * pitch
    level = np.float32(level_above(patch.fat))
    for y in range(size):
        for x in range(size):
            # the thickness plane is reused as the map of fat: both vary slowly, and thickness is barely visible
            fatty = ramp(planes[THICKNESS, y, x], level - np.float32(0.04), level + np.float32(0.04))
            if fatty == 0:
                continue
            first, second = np.float32(1e9), np.float32(1e9)
            bent_x = x + np.float32(9) * (planes[WARP, y, x] - np.float32(0.5))
            bent_y = y + np.float32(9) * (planes[BROAD, y, x] - np.float32(0.5))
            for i in range(centres.shape[0]):
                dx, dy = bent_x - centres[i, 0], bent_y - centres[i, 1]
                distance = dx * dx + dy * dy
                if distance < first:
                    first, second = distance, first
                elif distance < second:
                    second = distance
            wall = np.float32(1) - ramp(np.sqrt(second) - np.sqrt(first), np.float32(0.5), np.float32(2.6))
            kept = np.float32(1) - fatty * (np.float32(1) - np.float32(0.6) * wall)
            layers[EOSIN, y, x] = layers[EOSIN, y, x] * kept + np.float32(0.1) * wall * fatty
            layers[HAEMATOXYLIN, y, x] *= kept
            layers[TISSUE, y, x] *= kept
