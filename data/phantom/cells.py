# mypy: allow-untyped-defs
# (Numba infers the types of the kernels)
"""Cells of a phantom patch: tumour, lymphocytes, large pale and spindle cells, and red blood cells."""

import numpy as np

from histoblend.data.patches import CENTRE
from histoblend.data.phantom.noise import LATTICE, compiled, noise_at, normal, ramp, uniform
from histoblend.data.phantom.patch_record import NESTS, NO_TUMOUR, SCATTERED, SHEET, TUMOUR_IN_CENTRE, TUMOUR_IN_RING
from histoblend.data.phantom.tissue import BLOOD, EOSIN, FIBRES, HAEMATOXYLIN, TISSUE

LYMPHOCYTE, TUMOUR, LARGE, SPINDLE = 1, 2, 3, 4  # kinds of nuclei, as stored in the owner map


@compiled
def _is_free(owner, x, y, reach):
    """Return whether no nucleus covers the point and eight points around it."""
    size = owner.shape[0]
    for i in range(9):
        step = 0.0 if i == 8 else reach
        column = int(np.floor(x + step * np.cos(0.7853981633974483 * i) + 0.5))
        row = int(np.floor(y + step * np.sin(0.7853981633974483 * i) + 0.5))
        if 0 <= column < size and 0 <= row < size and owner[row, column] != 0:
            return False
    return True


@compiled
def _draw_cytoplasm(layers, x, y, radius, eosin):
    size = layers.shape[1]
    for row in range(max(0, int(y - radius)), min(size, int(y + radius) + 2)):
        for column in range(max(0, int(x - radius)), min(size, int(x + radius) + 2)):
            distance = np.sqrt((column - x) ** 2 + (row - y) ** 2)
            inside = 1 - ramp(distance, radius - 2.5, radius)
            shade = np.float32(eosin * (0.7 + 0.3 * distance / radius))
            layers[EOSIN, row, column] += inside * (shade - layers[EOSIN, row, column]) * np.float32(0.75)
            layers[HAEMATOXYLIN, row, column] += (
                inside * (np.float32(0.09) - layers[HAEMATOXYLIN, row, column]) * np.float32(0.75)
            )


@compiled
def _draw_nucleus(stream, lattice, layers, owner, kind, x, y, radius, stretch, slant, bump, density, rim, grain):
    """Draw one nucleus: an ellipse with third- and fifth-order bumps, a rim and chromatin grains.

    Pixels farther away than ``radius * stretch * (1 + 1.6 * bump) + 1`` are not changed.
    """
    size = owner.shape[0]
    reach = radius * stretch * (1 + 1.6 * bump) + 1
    cosine, sine = np.cos(slant), np.sin(slant)
    turn3, turn5 = 6.2831853 * uniform(stream), 6.2831853 * uniform(stream)
    cos3, sin3, cos5, sin5 = np.cos(turn3), np.sin(turn3), 0.6 * np.cos(turn5), 0.6 * np.sin(turn5)
    shift = LATTICE * uniform(stream)
    for row in range(max(0, int(y - reach)), min(size, int(y + reach) + 2)):
        for column in range(max(0, int(x - reach)), min(size, int(x + reach) + 2)):
            dx, dy = column - x, row - y
            u, v = (dx * cosine + dy * sine) / stretch, (dy * cosine - dx * sine) * stretch
            distance = np.sqrt(u * u + v * v) + 1e-6
            if distance > radius * (1 + 1.6 * bump) + 1:
                continue
            c, s = u / distance, v / distance
            c2, s2, c3, s3 = c * c - s * s, 2 * s * c, c * (4 * c * c - 3), s * (3 - 4 * s * s)
            c5, s5 = c2 * c3 - s2 * s3, s2 * c3 + c2 * s3
            edge = radius * (1 + bump * (c3 * cos3 - s3 * sin3 + c5 * cos5 - s5 * sin5))
            cover = ramp(edge - distance, -0.5, 0.5)
            if cover == 0:
                continue
            depth = distance / edge
            chromatin = noise_at(lattice, column / 1.7 + shift, row / 1.7 + 0.37 * shift) - 0.5
            amount = density * (1 + grain * chromatin + rim * (ramp(depth, 0.62, 0.92) - 0.45))
            layers[HAEMATOXYLIN, row, column] += np.float32(cover * (amount - 0.5 * layers[HAEMATOXYLIN, row, column]))
            layers[EOSIN, row, column] *= np.float32(1 - 0.45 * cover)
            if cover >= 0.5 and owner[row, column] != TUMOUR:
                owner[row, column] = kind


@compiled
def _is_in_tumour_region(patch, lattice, x, y, centre, heading, front, shift):
    """Return whether a point is inside the tumour region, regardless of the rule for rings."""
    if patch.pattern == SHEET or patch.pattern == SCATTERED:
        return True
    field = noise_at(lattice, x / 21.0 + shift, y / 21.0 + 0.5 * shift)
    if patch.pattern == NESTS:
        return field > 0.5
    return (x - centre) * np.cos(heading) + (y - centre) * np.sin(heading) + 14.0 * (field - 0.5) > front


@compiled
def _draw_tumour_cell(patch, stream, lattice, layers, owner, x, y, radius, stretch, bump):
    _draw_cytoplasm(layers, x, y, radius * (1.5 + 0.35 * uniform(stream)), 0.27 + 0.1 * uniform(stream))
    density = patch.pale_density * (1 + 0.16 * normal(stream))
    slant = 3.14159265 * uniform(stream)
    _draw_nucleus(
        stream, lattice, layers, owner, TUMOUR, x, y, radius, stretch, slant, bump, max(density, 0.2), 0.45, 0.75
    )
    if uniform(stream) < patch.nucleoli:
        for _ in range(1 + int(1.6 * uniform(stream))):
            offset, turn = 0.4 * radius * uniform(stream), 6.2831853 * uniform(stream)
            _draw_nucleus(
                stream, lattice, layers, owner, TUMOUR, x + offset * np.cos(turn), y + offset * np.sin(turn),
                0.9 + 0.09 * radius, 1.0, 0.0, 0.0, 0.55, 0.0, 0.0,
            )  # fmt: skip


@compiled
def draw_tumour(patch, stream, lattice, layers, owner, heading, front, shift):
    """Draw tumour cells. In a positive patch the first is in the central square; otherwise none reaches that square."""
    size = owner.shape[0]
    centre, half = 0.5 * (size - 1), 0.5 * CENTRE
    if patch.tumour == TUMOUR_IN_CENTRE:
        x = centre + (half - 2) * (2 * uniform(stream) - 1)
        y = centre + (half - 2) * (2 * uniform(stream) - 1)
        _draw_tumour_cell(patch, stream, lattice, layers, owner, x, y, patch.tumour_radius, 1.12, patch.irregularity)
    pitch = 2.25 * patch.tumour_radius
    sites = int((size + 16) / pitch) + 1
    for site in range(sites * sites):
        x = -8 + pitch * (site % sites + 0.5 * (site // sites % 2) + 0.6 * (uniform(stream) - 0.5))
        y = -8 + pitch * (site // sites + 0.6 * (uniform(stream) - 0.5))
        radius = patch.tumour_radius * min(max(1 + 0.16 * normal(stream), 0.65), 1.45)
        stretch = 1 + 0.28 * uniform(stream)
        bump = patch.irregularity * (0.5 + uniform(stream))
        dropped = uniform(stream) < (0.9 if patch.pattern == SCATTERED else 0.1)
        reach = radius * stretch * (1 + 1.6 * bump) + 2
        near = max(abs(x - centre), abs(y - centre)) < half + reach
        if dropped or (patch.tumour == TUMOUR_IN_RING and near):
            continue
        column, row = min(max(int(x), 0), size - 1), min(max(int(y), 0), size - 1)
        if layers[TISSUE, row, column] < 0.4 or not _is_free(owner, x, y, 0.9 * radius):
            continue
        if _is_in_tumour_region(patch, lattice, x, y, centre, heading, front, shift):
            _draw_tumour_cell(patch, stream, lattice, layers, owner, x, y, radius, stretch, bump)


@compiled
def _draw_benign_cell(patch, stream, lattice, layers, owner, x, y, kind, slant):
    dark = 0.9 + 0.12 * normal(stream)
    if kind == SPINDLE:
        radius, stretch = 2.5 + 0.3 * normal(stream), 1.55 + 0.5 * uniform(stream)
        _draw_nucleus(
            stream, lattice, layers, owner, kind, x, y, radius, stretch, slant + 0.25 * normal(stream),
            0.03, 0.75 * dark, 0.1, 0.4,
        )  # fmt: skip
    elif kind == LARGE:
        radius = patch.large_radius * min(max(1 + 0.1 * normal(stream), 0.7), 1.3)
        turn = 3.14159265 * uniform(stream)
        _draw_cytoplasm(layers, x, y, 1.6 * radius, 0.24 + 0.1 * uniform(stream))
        stretch = 1.08 + 0.22 * uniform(stream)
        _draw_nucleus(
            stream,
            lattice,
            layers,
            owner,
            kind,
            x,
            y,
            radius,
            stretch,
            turn,
            0.03,
            patch.pale_density * (dark + 0.15),
            0.35,
            0.6,
        )
    else:
        radius, turn = 3.35 + 0.25 * normal(stream), 3.14159265 * uniform(stream)
        stretch = 1.02 + 0.1 * uniform(stream)
        _draw_nucleus(stream, lattice, layers, owner, kind, x, y, radius, stretch, turn, 0.03, dark, 0.1, 0.7)


@compiled
def draw_cells(patch, stream, lattice, layers, owner, slant, heading, front, shift):
    """Draw lymphocytes, large pale benign cells and, among fibres, spindle cells, if there is room."""
    size = owner.shape[0]
    centre, half = 0.5 * (size - 1), 0.5 * CENTRE
    pitch = 6.9
    sites = int((size + 12) / pitch) + 1
    for site in range(sites * sites):
        x = -6 + pitch * (site % sites + 0.5 * (site // sites % 2) + 0.55 * (uniform(stream) - 0.5))
        y = -6 + pitch * (site // sites + 0.55 * (uniform(stream) - 0.5))
        column, row = min(max(int(x), 0), size - 1), min(max(int(y), 0), size - 1)
        fibres, tissue = layers[FIBRES, row, column], layers[TISSUE, row, column]
        choice, chance = uniform(stream), uniform(stream)
        kind, share = LYMPHOCYTE, patch.cells
        if choice < fibres:
            kind, share = SPINDLE, 0.12 + 0.25 * patch.cells
        elif noise_at(lattice, x / 18.0 + shift, y / 18.0) * 0.6 + 0.4 * choice < patch.large:
            kind = LARGE
        if patch.tumour != NO_TUMOUR and _is_in_tumour_region(patch, lattice, x, y, centre, heading, front, shift):
            near = max(abs(x - centre), abs(y - centre)) < half + 4
            if patch.pattern != SCATTERED and not (patch.tumour == TUMOUR_IN_RING and near):
                share *= patch.infiltrate
        room = 0.95 * patch.large_radius if kind == LARGE else 2.2
        if chance < share * tissue and _is_free(owner, x, y, room):
            _draw_benign_cell(patch, stream, lattice, layers, owner, x, y, kind, slant)


@compiled
def draw_blood(patch, stream, layers, owner):
    """Draw red blood cells: small discs with a paler centre, in loose clusters."""
    size = owner.shape[0]
    count = int(patch.blood * size * size / 1000.0)
    centre_x, centre_y = size * uniform(stream), size * uniform(stream)
    for _ in range(count):
        x, y = centre_x + 17.0 * normal(stream), centre_y + 17.0 * normal(stream)
        radius = 3.0 + 0.4 * uniform(stream)
        if not _is_free(owner, x, y, 1.5):
            continue
        for row in range(max(0, int(y - 4)), min(size, int(y + 4) + 2)):
            for column in range(max(0, int(x - 4)), min(size, int(x + 4) + 2)):
                distance = np.sqrt((column - x) ** 2 + (row - y) ** 2)
                cover = ramp(radius - distance, -0.6, 0.6)
                amount = cover * np.float32(0.34 + 0.16 * distance / radius)
                layers[BLOOD, row, column] = max(layers[BLOOD, row, column], amount)
                layers[EOSIN, row, column] *= 1 - np.float32(0.4) * cover
