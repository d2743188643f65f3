# mypy: allow-untyped-defs
# (Numba infers the types of the kernels; only draw() is called from Python)
"""Draw one haematoxylin and eosin patch of a lymph node from a record of parameters: the kernels of the phantom.

Tissue is drawn as amounts of dye, converted to transmitted light by the Beer-Lambert law, blurred by the optics and
digitised by one of two scanners. One pixel is about one micrometre, as in PCam. Each patch has its own splitmix64
random stream, so its pixels do not depend on other patches, the drawing order or the number of threads.

References
----------
Ruifrok & Johnston (2001), Anal Quant Cytol Histol 23(4):291-299 (stain vectors).
"""

import numpy as np

from histoblend.data.phantom.cells import TUMOUR, draw_blood, draw_cells, draw_tumour
from histoblend.data.phantom.noise import LATTICE, PERIODS, compiled, fill_lattice, fill_planes, uniform
from histoblend.data.phantom.optics import (
    HAEMOGLOBIN,
    INKS,
    MATRICES,
    NOISES,
    RESPONSES,
    SHARPENING,
    TRANSMITTANCES,
    WHITES,
    blur,
    draw_ink,
    point_spread,
    read_out,
    transmit,
    vary_thickness,
)
from histoblend.data.phantom.patch_record import AS_DRAWN, BLANK, NO_TUMOUR
from histoblend.data.phantom.tissue import draw_fat, draw_ground


@compiled
def _draw_patch(patch, stream, periods, lattice, planes, layers, owner):
    """Fill the dye layers and the owner map, which stores the kind of nucleus at each pixel."""
    owner[:] = 0
    fill_lattice(stream, lattice)
    fill_planes(stream, lattice, periods, planes)
    slant, heading = 3.14159265 * uniform(stream), 6.2831853 * uniform(stream)
    front, shift = -12.0 + 22.0 * uniform(stream), LATTICE * uniform(stream)
    draw_ground(patch, stream, lattice, planes, layers, slant)
    if patch.fat > 0:
        draw_fat(patch, stream, planes, layers)
    if patch.tumour != NO_TUMOUR:
        draw_tumour(patch, stream, lattice, layers, owner, heading, front, shift)
    draw_cells(patch, stream, lattice, layers, owner, slant, heading, front, shift)
    if patch.blood > 0:
        draw_blood(patch, stream, layers, owner)


@compiled
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
    lattice = np.empty((LATTICE, LATTICE), dtype=np.float32)
    layers = np.empty((5, size, size), dtype=np.float32)
    planes = np.empty((periods.size, size, size), dtype=np.float32)
    light = np.empty((3, size, size), dtype=np.float32)
    buffer = np.empty((size, size), dtype=np.float32)
    owner = np.zeros((size, size), dtype=np.uint8)
    stream = np.empty(1, dtype=np.uint64)
    for i in range(patches.size):
        patch = patches[i]
        stream[0] = patch.key
        if patch.override == AS_DRAWN:
            _draw_patch(patch, stream, periods, lattice, planes, layers, owner)
            vary_thickness(patch, stream, planes)
            transmit(patch, planes, layers, stains[i], haemoglobin, transmittances, light)
            if patch.ink > 0:
                draw_ink(patch, stream, inks[patch.ink_colour], light)
        else:
            owner[:] = 0
            light[:] = 1 if patch.override == BLANK else 0
        kernel = point_spread(patch.focus, sharpening[patch.scanner])
        blur(light, buffer, kernel)
        read_out(
            patch, stream, light, matrices[patch.scanner], whites[patch.scanner], responses[patch.scanner],
            noises[patch.scanner], images[i],
        )  # fmt: skip
        for y in range(size):
            for x in range(size):
                masks[i, y, x] = owner[y, x] == TUMOUR


def draw(patches: np.ndarray, stains: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw patches, each only from its own record.

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
        Pixels that are at least half covered by a tumour nucleus.
    """
    images = np.empty((len(patches), size, size, 3), dtype=np.uint8)
    masks = np.empty((len(patches), size, size), dtype=np.bool_)
    _draw(
        patches, stains, PERIODS, INKS, HAEMOGLOBIN, TRANSMITTANCES, MATRICES, WHITES, RESPONSES, NOISES, SHARPENING,
        images, masks,
    )  # fmt: skip
    return images, masks
