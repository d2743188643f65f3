# mypy: allow-untyped-defs
# (Numba infers the types of the kernels; only draw() is called from Python)
"""Draws one haematoxylin and eosin patch of a lymph node from a record of numbers: the kernels behind the phantom.

Everything is drawn as amounts of dye, turned into transmitted light by Beer and Lambert's law, blurred by the optics
and read by one of two scanners. One pixel is about one micrometre, as in PCam. A patch's randomness comes from its own
splitmix64 stream, so a patch looks the same whichever others are drawn, in whatever order and on however many threads.

References
----------
Ruifrok & Johnston (2001), Anal Quant Cytol Histol 23(4):291-299 (stain vectors).
Steele, Lea & Flood (2014), Fast splittable pseudorandom number generators, OOPSLA (splitmix64).
Perlin (1985), An image synthesizer, SIGGRAPH (lattice noise).
Worley (1996), A cellular texture basis function, SIGGRAPH (walls between fat cells).
"""

import numpy as np
from numba import njit

from histoblend.data.patches import CENTRE

NO_TUMOUR, TUMOUR_IN_CENTRE, TUMOUR_IN_RING = 0, 1, 2
SCATTERED, FRONT, SHEET, NESTS = 0, 1, 2, 3
AS_DRAWN, BLANK, BLACK = 0, 1, 2

PATCH = np.dtype(
    [
        ("key", "u8"),  # start of the patch's random stream
        ("scanner", "i4"),  # row of SENSORS
        ("override", "i4"),  # AS_DRAWN, BLANK or BLACK
        ("haematoxylin_intensity", "f4"),
        ("eosin_intensity", "f4"),
        ("focus", "f4"),  # sigma of the optical blur, pixels
        ("cells", "f4"),  # share of cell sites that are taken, 0..1
        ("stroma", "f4"),  # share of the patch that is fibrous, 0..1
        ("fat", "f4"),  # share that is fat, 0..1
        ("glass", "f4"),  # share without tissue, 0..1
        ("loose", "f4"),  # gaps between cells, 0..1
        ("large", "f4"),  # share of benign cells that are large and pale (histiocytes, centroblasts), 0..1
        ("large_radius", "f4"),  # their nuclear radius, pixels
        ("blood", "f4"),  # red cells per 1,000 square pixels
        ("fold", "f4"),  # extra thickness along a fold, 0 without one
        ("ink", "f4"),  # density of pen ink, 0 without it
        ("ink_colour", "i4"),  # row of INKS
        ("tumour", "i4"),  # NO_TUMOUR, TUMOUR_IN_CENTRE or TUMOUR_IN_RING
        ("pattern", "i4"),  # SCATTERED, FRONT, SHEET or NESTS
        ("tumour_radius", "f4"),  # mean nuclear radius, pixels
        ("irregularity", "f4"),  # amplitude of the outline's bumps, share of the radius
        ("pale_density", "f4"),  # haematoxylin in tumour nuclei and in large benign ones, optical density
        ("nucleoli", "f4"),  # chance that a tumour nucleus shows one, 0..1
        ("infiltrate", "f4"),  # share of lymphocytes kept between tumour cells, 0..1
    ],
    align=True,
)
"""What a patch is drawn from."""

HAEMOGLOBIN = np.array([0.18, 0.66, 0.73], dtype=np.float32)
INKS = np.array([[0.95, 0.75, 0.12], [0.95, 0.25, 0.75], [0.9, 0.9, 0.85]], dtype=np.float32)  # blue, green, black

# Mixing of the colour channels (rows sum to 1), white point, gamma and read noise of two scanners. The first gives the
# brownish and the second the violet look of the two laboratories behind CAMELYON16, judged by eye and by the stain
# vectors measured on real patches (haematoxylin 0.56 0.69 0.46 and 0.60 0.76 0.26, eosin 0.36 0.87 0.34 and
# 0.26 0.94 0.19).
MATRICES = np.array(
    [
        [[0.62, 0.10, 0.28], [0.00, 1.02, -0.02], [0.25, 0.42, 0.33]],
        [[0.72, 0.17, 0.11], [0.00, 1.00, 0.00], [0.00, 0.10, 0.90]],
    ],
    dtype=np.float32,
)
WHITES = np.array([[248.0, 246.0, 247.0], [230.0, 228.0, 238.0]], dtype=np.float32)
GAMMAS = np.array([1.0, 0.94])
NOISES = np.array([3.4, 4.2], dtype=np.float32)
SHARPENING = np.array([1.5, 1.1])
_STEPS = 1024
RESPONSES = ((np.arange(_STEPS + 1) / _STEPS) ** GAMMAS[:, None]).astype(np.float32)

_H, _E, _BLOOD, _TISSUE, _FIBRES = 0, 1, 2, 3, 4  # layers of the drawing
_LYMPHOCYTE, _TUMOUR, _LARGE, _SPINDLE = 1, 2, 3, 4  # owners of a pixel
_LATTICE = 64
_OPAQUE = 4.0  # optical density beyond which nothing passes
TRANSMITTANCES = (10.0 ** -np.linspace(0, _OPAQUE, 4097)).astype(np.float32)
_PER_DENSITY = np.float32(4096 / _OPAQUE)
_BROAD, _WARP, _FINE, _MOTTLE, _ISLAND, _THICKNESS = 0, 1, 2, 3, 4, 5  # planes of noise
PERIODS = np.array([26.0, 19.0, 1.9, 4.6, 37.0, 45.0])

# No fastmath: it would let the compiler reorder sums, and the bytes would differ between machines.
_compiled = njit(cache=True, nogil=True, error_model="numpy")


@_compiled
def _bits(stream):
    stream[0] += np.uint64(0x9E3779B97F4A7C15)
    z = stream[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@_compiled
def _uniform(stream):
    return (_bits(stream) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@_compiled
def _normal(stream):
    """Sum of four 16-bit uniforms: close to Gaussian, bounded at 3.5 standard deviations, and cheap."""
    z = _bits(stream)
    low = np.uint64(0xFFFF)
    total = (z & low) + ((z >> np.uint64(16)) & low) + ((z >> np.uint64(32)) & low) + (z >> np.uint64(48))
    return (np.int64(total) - 131070) * (1.7320508 / 65536.0)


@_compiled
def _fill_lattice(stream, lattice):
    for i in range(lattice.shape[0]):
        for j in range(0, lattice.shape[1], 4):
            z = _bits(stream)
            for k in range(4):
                lattice[i, j + k] = np.float32((z >> np.uint64(16 * k)) & np.uint64(0xFFFF)) * np.float32(1 / 65535)


@_compiled
def _noise(lattice, x, y):
    """Smooth noise in 0..1 (mean 0.5, spread about 0.2), one lattice cell a unit."""
    x, y = np.float32(x), np.float32(y)
    column, row = np.int32(np.floor(x)), np.int32(np.floor(y))
    u, v = x - np.float32(column), y - np.float32(row)
    u, v = u * u * (np.float32(3) - np.float32(2) * u), v * v * (np.float32(3) - np.float32(2) * v)
    left, right = column & (_LATTICE - 1), (column + 1) & (_LATTICE - 1)
    top, bottom = row & (_LATTICE - 1), (row + 1) & (_LATTICE - 1)
    above = lattice[top, left] + u * (lattice[top, right] - lattice[top, left])
    below = lattice[bottom, left] + u * (lattice[bottom, right] - lattice[bottom, left])
    return above + v * (below - above)


@_compiled
def _ramp(value, low, high):
    return min(max(np.float32((value - low) / (high - low)), np.float32(0)), np.float32(1))


@_compiled
def _quantile(share):
    """Level that a share of the lattice noise lies above (it spans 0.05 to 0.95 in practice)."""
    return 1.02 - 1.04 * share if share <= 0.0 or share >= 1.0 else 0.86 - 0.72 * share


@_compiled
def _fill_planes(stream, lattice, periods, planes):
    """Draw the same noise over whole patches.

    Two lattice rows are blended once a row of pixels, which is several times cheaper than a point at a time.
    """
    size = planes.shape[1]
    cells, weights = np.empty(size, dtype=np.int32), np.empty(size, dtype=np.float32)
    blend = np.empty(_LATTICE + 1, dtype=np.float32)
    for plane in range(planes.shape[0]):
        start_x, start_y = _LATTICE * _uniform(stream), _LATTICE * _uniform(stream)
        for x in range(size):
            place = start_x + x / periods[plane]
            cells[x] = np.int32(place) & (_LATTICE - 1)
            weight = place - np.floor(place)
            weights[x] = weight * weight * (3 - 2 * weight)
        for y in range(size):
            place = start_y + y / periods[plane]
            top = np.int32(place) & (_LATTICE - 1)
            bottom = (top + 1) & (_LATTICE - 1)
            weight = place - np.floor(place)
            weight = np.float32(weight * weight * (3 - 2 * weight))
            for i in range(_LATTICE):
                blend[i] = lattice[top, i] + weight * (lattice[bottom, i] - lattice[top, i])
            blend[_LATTICE] = blend[0]
            for x in range(size):
                left = blend[cells[x]]
                planes[plane, y, x] = left + weights[x] * (blend[cells[x] + 1] - left)


@_compiled
def _draw_ground(patch, stream, lattice, planes, layers, slant):
    """Background: reticular eosin, wavy collagen fibres, gaps and bare glass."""
    size = layers.shape[1]
    one = np.float32(1)
    along, across = np.float32(np.cos(slant)), np.float32(np.sin(slant))
    start_x, start_y = np.float32(_LATTICE * _uniform(stream)), np.float32(_LATTICE * _uniform(stream))
    fibrous, bare = np.float32(_quantile(patch.stroma)), np.float32(_quantile(patch.glass))
    gap = np.float32(0.92 - 0.5 * patch.loose)
    for y in range(size):
        for x in range(size):
            broad, fine, mottle = planes[_BROAD, y, x], planes[_FINE, y, x], planes[_MOTTLE, y, x]
            fibres = _ramp(broad, fibrous - np.float32(0.06), fibrous + np.float32(0.06))
            strand = np.float32(0)
            if fibres > 0:
                bend = np.float32(16) * (planes[_WARP, y, x] - np.float32(0.5))
                length = x * along + y * across + bend
                breadth = y * along - x * across + np.float32(0.8) * bend
                strand = _noise(lattice, length * np.float32(1 / 24) + start_x, breadth * np.float32(1 / 3) + start_y)
                strand = _ramp(strand, np.float32(0.2), np.float32(0.8))
            ragged = mottle + np.float32(0.3) * (fine - np.float32(0.5))
            tissue = one - np.float32(0.9) * _ramp(ragged, gap, gap + np.float32(0.2)) * (one - fibres)
            if patch.glass > 0:
                island = np.float32(0.75) * planes[_ISLAND, y, x] + np.float32(0.25) * ragged
                tissue *= one - _ramp(island, bare - np.float32(0.03), bare + np.float32(0.05))
            meshwork = np.float32(0.0) + np.float32(0.3) * fine + np.float32(0.18) * (one - mottle)
            collagen = np.float32(0.06) + np.float32(0.36) * strand + np.float32(0.22) * fine
            layers[_E, y, x] = tissue * (meshwork + fibres * (collagen - meshwork))
            layers[_H, y, x] = tissue * (np.float32(0.02) + np.float32(0.1) * (one - fibres) * mottle)
            layers[_BLOOD, y, x] = 0
            layers[_TISSUE, y, x] = tissue
            layers[_FIBRES, y, x] = fibres


@_compiled
def _draw_fat(patch, stream, planes, layers):
    """Empty vacuoles with thin pink walls: the gap between the nearest and the next of scattered centres."""
    size = layers.shape[1]
    pitch = 30.0 + 12.0 * _uniform(stream)
    across = int(size / pitch) + 3
    centres = np.empty((across * across, 2), dtype=np.float32)
    for i in range(across * across):
        centres[i, 0] = (i % across - 1 + 0.8 * _uniform(stream)) * pitch
        centres[i, 1] = (i // across - 1 + 0.8 * _uniform(stream)) * pitch
    level = np.float32(_quantile(patch.fat))
    for y in range(size):
        for x in range(size):
            # the thickness plane doubles as the map of fat: both are broad, and thickness shows little
            fatty = _ramp(planes[_THICKNESS, y, x], level - np.float32(0.04), level + np.float32(0.04))
            if fatty == 0:
                continue
            first, second = np.float32(1e9), np.float32(1e9)
            bent_x = x + np.float32(9) * (planes[_WARP, y, x] - np.float32(0.5))
            bent_y = y + np.float32(9) * (planes[_BROAD, y, x] - np.float32(0.5))
            for i in range(centres.shape[0]):
                dx, dy = bent_x - centres[i, 0], bent_y - centres[i, 1]
                distance = dx * dx + dy * dy
                if distance < first:
                    first, second = distance, first
                elif distance < second:
                    second = distance
            wall = np.float32(1) - _ramp(np.sqrt(second) - np.sqrt(first), np.float32(0.5), np.float32(2.6))
            kept = np.float32(1) - fatty * (np.float32(1) - np.float32(0.6) * wall)
            layers[_E, y, x] = layers[_E, y, x] * kept + np.float32(0.1) * wall * fatty
            layers[_H, y, x] *= kept
            layers[_TISSUE, y, x] *= kept


@_compiled
def _is_free(owner, x, y, reach):
    """Whether no nucleus lies under the middle and eight points around it."""
    size = owner.shape[0]
    for i in range(9):
        step = 0.0 if i == 8 else reach
        column = int(np.floor(x + step * np.cos(0.7853981633974483 * i) + 0.5))
        row = int(np.floor(y + step * np.sin(0.7853981633974483 * i) + 0.5))
        if 0 <= column < size and 0 <= row < size and owner[row, column] != 0:
            return False
    return True


@_compiled
def _draw_cytoplasm(layers, x, y, radius, eosin):
    size = layers.shape[1]
    for row in range(max(0, int(y - radius)), min(size, int(y + radius) + 2)):
        for column in range(max(0, int(x - radius)), min(size, int(x + radius) + 2)):
            distance = np.sqrt((column - x) ** 2 + (row - y) ** 2)
            inside = 1 - _ramp(distance, radius - 2.5, radius)
            shade = np.float32(eosin * (0.7 + 0.3 * distance / radius))
            layers[_E, row, column] += inside * (shade - layers[_E, row, column]) * np.float32(0.75)
            layers[_H, row, column] += inside * (np.float32(0.09) - layers[_H, row, column]) * np.float32(0.75)


@_compiled
def _draw_nucleus(stream, lattice, layers, owner, kind, x, y, radius, stretch, slant, bump, density, rim, grain):
    """One nucleus: an ellipse with a third- and a fifth-order bump, a rim and grains of chromatin.

    No pixel beyond ``radius * stretch * (1 + 1.6 * bump) + 1`` is touched.
    """
    size = owner.shape[0]
    reach = radius * stretch * (1 + 1.6 * bump) + 1
    cosine, sine = np.cos(slant), np.sin(slant)
    turn3, turn5 = 6.2831853 * _uniform(stream), 6.2831853 * _uniform(stream)
    cos3, sin3, cos5, sin5 = np.cos(turn3), np.sin(turn3), 0.6 * np.cos(turn5), 0.6 * np.sin(turn5)
    shift = _LATTICE * _uniform(stream)
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
            cover = _ramp(edge - distance, -0.5, 0.5)
            if cover == 0:
                continue
            depth = distance / edge
            chromatin = _noise(lattice, column / 1.7 + shift, row / 1.7 + 0.37 * shift) - 0.5
            amount = density * (1 + grain * chromatin + rim * (_ramp(depth, 0.62, 0.92) - 0.45))
            layers[_H, row, column] += np.float32(cover * (amount - 0.5 * layers[_H, row, column]))
            layers[_E, row, column] *= np.float32(1 - 0.45 * cover)
            if cover >= 0.5 and owner[row, column] != _TUMOUR:
                owner[row, column] = kind


@_compiled
def _is_tumour_land(patch, lattice, x, y, centre, heading, front, shift):
    """Whether the place belongs to the tumour's territory, the rule for rings aside."""
    if patch.pattern == SHEET or patch.pattern == SCATTERED:
        return True
    field = _noise(lattice, x / 21.0 + shift, y / 21.0 + 0.5 * shift)
    if patch.pattern == NESTS:
        return field > 0.5
    return (x - centre) * np.cos(heading) + (y - centre) * np.sin(heading) + 14.0 * (field - 0.5) > front


@_compiled
def _draw_tumour_cell(patch, stream, lattice, layers, owner, x, y, radius, stretch, bump):
    _draw_cytoplasm(layers, x, y, radius * (1.5 + 0.35 * _uniform(stream)), 0.27 + 0.1 * _uniform(stream))
    density = patch.pale_density * (1 + 0.16 * _normal(stream))
    slant = 3.14159265 * _uniform(stream)
    _draw_nucleus(
        stream, lattice, layers, owner, _TUMOUR, x, y, radius, stretch, slant, bump, max(density, 0.2), 0.45, 0.75
    )
    if _uniform(stream) < patch.nucleoli:
        for _ in range(1 + int(1.6 * _uniform(stream))):
            away, turn = 0.4 * radius * _uniform(stream), 6.2831853 * _uniform(stream)
            _draw_nucleus(
                stream, lattice, layers, owner, _TUMOUR, x + away * np.cos(turn), y + away * np.sin(turn),
                0.9 + 0.09 * radius, 1.0, 0.0, 0.0, 0.55, 0.0, 0.0,
            )  # fmt: skip


@_compiled
def _draw_tumour(patch, stream, lattice, layers, owner, heading, front, shift):
    """Tumour cells; the first stands in the central square when the patch is positive, none reaches it otherwise."""
    size = owner.shape[0]
    centre, half = 0.5 * (size - 1), 0.5 * CENTRE
    if patch.tumour == TUMOUR_IN_CENTRE:
        x = centre + (half - 2) * (2 * _uniform(stream) - 1)
        y = centre + (half - 2) * (2 * _uniform(stream) - 1)
        _draw_tumour_cell(patch, stream, lattice, layers, owner, x, y, patch.tumour_radius, 1.12, patch.irregularity)
    pitch = 2.25 * patch.tumour_radius
    sites = int((size + 16) / pitch) + 1
    for site in range(sites * sites):
        x = -8 + pitch * (site % sites + 0.5 * (site // sites % 2) + 0.6 * (_uniform(stream) - 0.5))
        y = -8 + pitch * (site // sites + 0.6 * (_uniform(stream) - 0.5))
        radius = patch.tumour_radius * min(max(1 + 0.16 * _normal(stream), 0.65), 1.45)
        stretch = 1 + 0.28 * _uniform(stream)
        bump = patch.irregularity * (0.5 + _uniform(stream))
        dropped = _uniform(stream) < (0.9 if patch.pattern == SCATTERED else 0.1)
        reach = radius * stretch * (1 + 1.6 * bump) + 2
        near = max(abs(x - centre), abs(y - centre)) < half + reach
        if dropped or (patch.tumour == TUMOUR_IN_RING and near):
            continue
        column, row = min(max(int(x), 0), size - 1), min(max(int(y), 0), size - 1)
        if layers[_TISSUE, row, column] < 0.4 or not _is_free(owner, x, y, 0.9 * radius):
            continue
        if _is_tumour_land(patch, lattice, x, y, centre, heading, front, shift):
            _draw_tumour_cell(patch, stream, lattice, layers, owner, x, y, radius, stretch, bump)


@_compiled
def _draw_benign_cell(patch, stream, lattice, layers, owner, x, y, kind, slant):
    dark = 0.9 + 0.12 * _normal(stream)
    if kind == _SPINDLE:
        radius, stretch = 2.5 + 0.3 * _normal(stream), 1.55 + 0.5 * _uniform(stream)
        _draw_nucleus(
            stream, lattice, layers, owner, kind, x, y, radius, stretch, slant + 0.25 * _normal(stream),
            0.03, 0.75 * dark, 0.1, 0.4,
        )  # fmt: skip
    elif kind == _LARGE:
        radius = patch.large_radius * min(max(1 + 0.1 * _normal(stream), 0.7), 1.3)
        turn = 3.14159265 * _uniform(stream)
        _draw_cytoplasm(layers, x, y, 1.6 * radius, 0.24 + 0.1 * _uniform(stream))
        stretch = 1.08 + 0.22 * _uniform(stream)
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
        radius, turn = 3.35 + 0.25 * _normal(stream), 3.14159265 * _uniform(stream)
        stretch = 1.02 + 0.1 * _uniform(stream)
        _draw_nucleus(stream, lattice, layers, owner, kind, x, y, radius, stretch, turn, 0.03, dark, 0.1, 0.7)


@_compiled
def _draw_cells(patch, stream, lattice, layers, owner, slant, heading, front, shift):
    """Lymphocytes, large pale benign cells and, among fibres, spindle cells, wherever there is room."""
    size = owner.shape[0]
    centre, half = 0.5 * (size - 1), 0.5 * CENTRE
    pitch = 6.9
    sites = int((size + 12) / pitch) + 1
    for site in range(sites * sites):
        x = -6 + pitch * (site % sites + 0.5 * (site // sites % 2) + 0.55 * (_uniform(stream) - 0.5))
        y = -6 + pitch * (site // sites + 0.55 * (_uniform(stream) - 0.5))
        column, row = min(max(int(x), 0), size - 1), min(max(int(y), 0), size - 1)
        fibres, tissue = layers[_FIBRES, row, column], layers[_TISSUE, row, column]
        choice, chance = _uniform(stream), _uniform(stream)
        kind, share = _LYMPHOCYTE, patch.cells
        if choice < fibres:
            kind, share = _SPINDLE, 0.12 + 0.25 * patch.cells
        elif _noise(lattice, x / 18.0 + shift, y / 18.0) * 0.6 + 0.4 * choice < patch.large:
            kind = _LARGE
        if patch.tumour != NO_TUMOUR and _is_tumour_land(patch, lattice, x, y, centre, heading, front, shift):
            near = max(abs(x - centre), abs(y - centre)) < half + 4
            if patch.pattern != SCATTERED and not (patch.tumour == TUMOUR_IN_RING and near):
                share *= patch.infiltrate
        room = 0.95 * patch.large_radius if kind == _LARGE else 2.2
        if chance < share * tissue and _is_free(owner, x, y, room):
            _draw_benign_cell(patch, stream, lattice, layers, owner, x, y, kind, slant)


@_compiled
def _draw_blood(patch, stream, layers, owner):
    """Red cells: small discs with a paler middle, in loose clusters."""
    size = owner.shape[0]
    count = int(patch.blood * size * size / 1000.0)
    middle_x, middle_y = size * _uniform(stream), size * _uniform(stream)
    for _ in range(count):
        x, y = middle_x + 17.0 * _normal(stream), middle_y + 17.0 * _normal(stream)
        radius = 3.0 + 0.4 * _uniform(stream)
        if not _is_free(owner, x, y, 1.5):
            continue
        for row in range(max(0, int(y - 4)), min(size, int(y + 4) + 2)):
            for column in range(max(0, int(x - 4)), min(size, int(x + 4) + 2)):
                distance = np.sqrt((column - x) ** 2 + (row - y) ** 2)
                cover = _ramp(radius - distance, -0.6, 0.6)
                amount = cover * np.float32(0.34 + 0.16 * distance / radius)
                layers[_BLOOD, row, column] = max(layers[_BLOOD, row, column], amount)
                layers[_E, row, column] *= 1 - np.float32(0.4) * cover


@_compiled
def _band(x, y, size, heading, offset, breadth, softness):
    """1 inside a straight band across the patch, 0 outside."""
    away = abs((x - 0.5 * size) * np.cos(heading) + (y - 0.5 * size) * np.sin(heading) - offset)
    return np.float32(1) - _ramp(away, breadth - softness, breadth)


@_compiled
def _thicken(patch, stream, planes):
    """Turn the plane of thickness from noise into a factor around 1, doubled and more along a fold."""
    size = planes.shape[1]
    heading, offset = 6.2831853 * _uniform(stream), 0.5 * (_uniform(stream) - 0.5) * size
    breadth = 5.0 + 7.0 * _uniform(stream)
    for y in range(size):
        for x in range(size):
            factor = np.float32(0.85) + np.float32(0.3) * planes[_THICKNESS, y, x]
            if patch.fold > 0:
                wave = 10.0 * planes[_WARP, y, x]
                factor *= 1 + patch.fold * _band(x + wave, y, size, heading, offset, breadth, 3.0)
            planes[_THICKNESS, y, x] = factor


@_compiled
def _transmit(patch, planes, layers, stains, haemoglobin, transmittances, light):
    """Beer-Lambert: amounts of dye to transmitted light."""
    size = light.shape[1]
    haematoxylin, eosin = patch.haematoxylin_intensity, patch.eosin_intensity
    top = np.float32(_OPAQUE)
    for channel in range(3):
        of_h, of_e, of_blood = haematoxylin * stains[0, channel], eosin * stains[1, channel], haemoglobin[channel]
        for y in range(size):
            for x in range(size):
                dye = layers[_H, y, x] * of_h + layers[_E, y, x] * of_e + layers[_BLOOD, y, x] * of_blood
                dye = min(max(dye * planes[_THICKNESS, y, x], np.float32(0)), top)
                light[channel, y, x] = transmittances[np.int32(dye * _PER_DENSITY + np.float32(0.5))]


@_compiled
def _smear_ink(patch, stream, ink, light):
    """Lay a band of pen ink on the cover glass, through the middle of the patch."""
    size = light.shape[1]
    heading, breadth = 6.2831853 * _uniform(stream), 16.0 + 0.3 * size * _uniform(stream)
    for y in range(size):
        for x in range(size):
            amount = patch.ink * _band(x, y, size, heading, 0.0, breadth, 4.0)
            for channel in range(3):
                light[channel, y, x] *= 10.0 ** (-amount * ink[channel])


@_compiled
def _point_spread(sigma, sharpening):
    """Half of a symmetric kernel that sums to 1: Gaussian optics, then the scanner's unsharp mask."""
    wide = np.sqrt(sigma * sigma + 1.0)
    reach = int(2.6 * (wide if sharpening > 0 else sigma)) + 1
    weights, narrow_sum, wide_sum = np.empty((2, reach + 1)), 0.0, 0.0
    for i in range(reach + 1):
        weights[0, i], weights[1, i] = np.exp(-0.5 * (i / sigma) ** 2), np.exp(-0.5 * (i / wide) ** 2)
        narrow_sum += weights[0, i] * (1 if i == 0 else 2)
        wide_sum += weights[1, i] * (1 if i == 0 else 2)
    return ((1 + sharpening) * weights[0] / narrow_sum - sharpening * weights[1] / wide_sum).astype(np.float32)


@_compiled
def _blur(light, spare, kernel):
    """Separable convolution, edges repeated."""
    size = light.shape[1]
    padded = np.empty(size + 2 * kernel.size, dtype=np.float32)
    pad = kernel.size
    for channel in range(3):
        for y in range(size):
            padded[:pad] = light[channel, y, 0]
            padded[pad : pad + size] = light[channel, y]
            padded[pad + size :] = light[channel, y, size - 1]
            for x in range(size):
                spare[y, x] = kernel[0] * padded[pad + x]
            for i in range(1, kernel.size):
                for x in range(size):
                    spare[y, x] += kernel[i] * (padded[pad + x - i] + padded[pad + x + i])
        for y in range(size):
            for x in range(size):
                light[channel, y, x] = kernel[0] * spare[y, x]
            for i in range(1, kernel.size):
                above, below = max(y - i, 0), min(y + i, size - 1)
                for x in range(size):
                    light[channel, y, x] += kernel[i] * (spare[above, x] + spare[below, x])


@_compiled
def _read_out(patch, stream, light, matrix, white, response, read_noise, image):
    """Store what the scanner sees: mixed channels, gamma, white point, noise, eight bits."""
    size = light.shape[1]
    for y in range(size):
        for x in range(size):
            for channel in range(3):
                value = np.float32(0)
                for other in range(3):
                    value += matrix[channel, other] * light[other, y, x]
                level = response[int(min(max(value, np.float32(0)), np.float32(1)) * _STEPS)]
                if value > 1:  # overshoot of the unsharp mask beside dark nuclei
                    level = np.float32(value)
                noise = np.float32(read_noise * (0.4 + 0.6 * level) * _normal(stream))
                image[y, x, channel] = np.uint8(min(max(white[channel] * level + noise + 0.5, 0.0), 255.0))


@_compiled
def _draw_patch(patch, stream, periods, lattice, planes, layers, owner):
    """Fill the layers of dye and the map of which kind of nucleus owns a pixel."""
    owner[:] = 0
    _fill_lattice(stream, lattice)
    _fill_planes(stream, lattice, periods, planes)
    slant, heading = 3.14159265 * _uniform(stream), 6.2831853 * _uniform(stream)
    front, shift = -12.0 + 22.0 * _uniform(stream), _LATTICE * _uniform(stream)
    _draw_ground(patch, stream, lattice, planes, layers, slant)
    if patch.fat > 0:
        _draw_fat(patch, stream, planes, layers)
    if patch.tumour != NO_TUMOUR:
        _draw_tumour(patch, stream, lattice, layers, owner, heading, front, shift)
    _draw_cells(patch, stream, lattice, layers, owner, slant, heading, front, shift)
    if patch.blood > 0:
        _draw_blood(patch, stream, layers, owner)


@_compiled
def _draw(
    patches,
    stains,
    periods,
    inks,
    haemoglobin,
    transmittances,
    matrices,
    whites,
    responses,
    noises,
    sharpening,
    images,
    masks,
):
    size = images.shape[1]
    lattice = np.empty((_LATTICE, _LATTICE), dtype=np.float32)
    layers = np.empty((5, size, size), dtype=np.float32)
    planes = np.empty((periods.size, size, size), dtype=np.float32)
    light = np.empty((3, size, size), dtype=np.float32)
    spare = np.empty((size, size), dtype=np.float32)
    owner = np.zeros((size, size), dtype=np.uint8)
    stream = np.empty(1, dtype=np.uint64)
    for i in range(patches.size):
        patch = patches[i]
        stream[0] = patch.key
        if patch.override == AS_DRAWN:
            _draw_patch(patch, stream, periods, lattice, planes, layers, owner)
            _thicken(patch, stream, planes)
            _transmit(patch, planes, layers, stains[i], haemoglobin, transmittances, light)
            if patch.ink > 0:
                _smear_ink(patch, stream, inks[patch.ink_colour], light)
        else:
            owner[:] = 0
            light[:] = 1 if patch.override == BLANK else 0
        kernel = _point_spread(patch.focus, sharpening[patch.scanner])
        _blur(light, spare, kernel)
        _read_out(
            patch, stream, light, matrices[patch.scanner], whites[patch.scanner], responses[patch.scanner],
            noises[patch.scanner], images[i],
        )  # fmt: skip
        for y in range(size):
            for x in range(size):
                masks[i, y, x] = owner[y, x] == _TUMOUR


def draw(patches: np.ndarray, stains: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw patches, each from its record alone.

    Parameters
    ----------
    patches : ndarray of shape (m,), dtype PATCH
    stains : ndarray of shape (m, 2, 3), dtype float32
        Unit vectors of optical density for haematoxylin and eosin in red, green, blue.
    size : int
        Height and width in pixels.

    Returns
    -------
    images : ndarray of shape (m, size, size, 3), dtype uint8
    masks : ndarray of shape (m, size, size), dtype bool
        Pixels at least half covered by a tumour nucleus.
    """
    images = np.empty((len(patches), size, size, 3), dtype=np.uint8)
    masks = np.empty((len(patches), size, size), dtype=np.bool_)
    _draw(
        patches, stains, PERIODS, INKS, HAEMOGLOBIN, TRANSMITTANCES, MATRICES, WHITES, RESPONSES, NOISES, SHARPENING,
        images, masks,
    )  # fmt: skip
    return images, masks
