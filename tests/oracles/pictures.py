"""Test images: tissue-like, extreme and unusual ones, and the real sample if available."""

import numpy as np
from skimage.color import hed2rgb
from skimage.draw import ellipse

from tests import ROOT

SAMPLE = ROOT / "../shared/data/pcam-sample/train"


def tissue(seed, height=96, width=96, nuclei=18):
    """Ellipses of haematoxylin, like nuclei, on uneven eosin, with noise; uint8 RGB."""
    rng = np.random.default_rng(seed)
    hed = np.zeros((height, width, 3))
    hed[:, :, 0] = 0.02
    hed[:, :, 1] = 0.04 + 0.02 * np.sin(np.arange(width) / rng.uniform(3, 9))
    for _ in range(nuclei):
        rows, columns = ellipse(
            rng.uniform(0, height), rng.uniform(0, width), *rng.uniform(2, 7, 2), (height, width), rng.uniform(0, np.pi)
        )
        hed[rows, columns, 0] = rng.uniform(0.08, 0.2)
    rgb = hed2rgb(hed) + rng.normal(0, 0.02, (height, width, 3))
    return np.clip(rgb * 255, 0, 255).astype(np.uint8)


def extremes(height=96, width=96):
    """Extreme images by name; uint8 RGB."""
    rng = np.random.default_rng(7)
    rows, columns = np.indices((height, width))
    black = np.zeros((height, width, 3), np.uint8)
    white = np.full_like(black, 255)
    speck = white.copy()
    speck[height // 2, width // 2] = (80, 20, 120)
    board = np.where(((rows + columns) % 2)[:, :, None], np.uint8(255), np.uint8(0)) * np.ones(3, np.uint8)
    return {
        "black": black,
        "white": white,
        "grey": np.full_like(black, 117),
        "violet": np.full_like(black, (120, 40, 160)),
        "one odd pixel": speck,
        "checkerboard": board,
        "red and cyan": np.where(((rows // 8 + columns // 8) % 2)[:, :, None], (255, 0, 0), (0, 255, 255)).astype(
            np.uint8
        ),
        "halves": np.where((columns < width // 2)[:, :, None], (230, 200, 220), (110, 60, 150)).astype(np.uint8),
        "noise": rng.integers(0, 256, black.shape, dtype=np.uint8),
        "grey noise": np.repeat(rng.integers(0, 256, (height, width, 1), dtype=np.uint8), 3, axis=2),
        "saturated noise": rng.choice(np.array([0, 255], np.uint8), black.shape),
        "ramp": np.stack([rows * 255 // height, columns * 255 // width, rows * 0 + 90], axis=2).astype(np.uint8),
    }


def real(count):
    """Return `count` evenly spaced patches of the real sample, or None if the sample is missing."""
    paths = sorted(SAMPLE.glob("*.tif"))
    if not paths:
        return None
    from PIL import Image

    return np.stack([np.asarray(Image.open(path)) for path in paths[:: len(paths) // count][:count]])
