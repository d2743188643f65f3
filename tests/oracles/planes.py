"""Grey values, stain amounts and regions of a patch, for the slow reference implementations."""

import numpy as np
from skimage.color import rgb2gray, rgb2hed


def centre_of(plane):
    top, left = (plane.shape[0] - 32) // 2, (plane.shape[1] - 32) // 2
    return plane[top : top + 32, left : left + 32]


def regions(plane):
    return {"whole": plane, "centre": centre_of(plane)}


def ring_of(plane):
    outside = np.ones(plane.shape[:2], bool)
    centre_of(outside)[:] = False
    return plane[outside] if outside.any() else plane.reshape(-1, *plane.shape[2:])


def grey(patch):
    # ties of the integer weights are rounded up; the small number lifts ties that floats put just below
    return np.floor(rgb2gray(patch) * 255 + 0.5 + 1e-9).astype(np.uint8)


def stain_plane(patch, number, scale):
    return np.floor(np.minimum(rgb2hed(patch)[:, :, number] / scale * 255 + 0.5, 255)).astype(np.uint8)


def planes(patch, *names):
    makers = {
        "grey": lambda: grey(patch),
        "absorbed": lambda: 255 - patch[:, :, 0],
        "haematoxylin": lambda: stain_plane(patch, 0, 0.25),
        "eosin": lambda: stain_plane(patch, 1, 0.15),
    }
    return {name: makers[name]() for name in names}
