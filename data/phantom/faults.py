"""Faults planted in phantom data: copies, blank, black, blurred and pen-marked patches, and wrong labels."""

import numpy as np
import pandas as pd

from histoblend.data.phantom.optics import INKS
from histoblend.data.phantom.patch_record import BLACK, BLANK, NO_TUMOUR

FAULTS = {
    "duplicate": 0.01,  # the same pixels under another id: half in another slide, 10 % with the other label
    "mirrored": 0.01,  # the same pixels under one of the seven other symmetries of the square
    "near-duplicate": 0.01,  # any of the eight symmetries, with another exposure and new noise
    "blank": 0.01,  # bare glass
    "black": 0.002,
    "blurred": 0.01,  # out of focus: sigma of 2.5 to 4 pixels
    "pen": 0.005,  # a band of blue, green or black ink
    "mislabelled": 0.01,  # the label differs from true_label
}
"""Planted faults and their shares of all patches."""

COPIES = ("duplicate", "mirrored", "near-duplicate")
SHARE_WITHOUT_SLIDE = 0.02
"""Share of patches whose ``slide`` is missing when faults are planted; ``true_slide`` is always known."""


def apply_symmetry(image: np.ndarray, symmetry: int) -> np.ndarray:
    """Apply one of the eight symmetries of the square.

    These are ``symmetry % 4`` quarter turns, followed by a left-right mirror from 4 on.

    Parameters
    ----------
    image : ndarray of shape (size, size, ...)
    symmetry : int, 0..7
    """
    turned = np.rot90(image, symmetry % 4)
    return turned[:, ::-1] if symmetry >= 4 else turned


def plan_faults(
    positive: np.ndarray, rng: np.random.Generator, planted: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the fault, the row of the displayed image and the symmetry of each patch."""
    n = len(positive)
    fault = np.full(n, "", dtype=object)
    originals, symmetry = np.arange(n), np.zeros(n, dtype=np.int8)
    if not planted:
        return fault, originals, symmetry
    free = rng.permutation(n)
    for name, share in FAULTS.items():
        # bare glass and black frames contain no tumour, so they replace negatives
        candidates = free[~positive[free]] if name in ("blank", "black") else free
        # drawn at random: blank patches took negatives from the front, so the front has too many positives
        chosen = rng.choice(candidates, round(share * n), replace=False)
        fault[chosen] = name
        free = free[~np.isin(free, chosen)]
    for name, lowest in zip(COPIES, (0, 1, 0), strict=True):
        copies = np.flatnonzero(fault == name)
        originals[copies], free = free[: len(copies)], free[len(copies) :]
        symmetry[copies] = rng.integers(lowest, 1 if name == "duplicate" else 8, len(copies))
    return fault, originals, symmetry


def apply_faults(patches: np.ndarray, fault: np.ndarray, rng: np.random.Generator) -> None:
    """Modify the records of faulty patches in place."""
    for name, override in (("blank", BLANK), ("black", BLACK)):
        patches["override"][fault == name] = override
        patches["tumour"][fault == name] = NO_TUMOUR
    blurred, pen = fault == "blurred", fault == "pen"
    patches["focus"][blurred] = rng.uniform(2.5, 4.0, blurred.sum())
    patches["ink"][pen] = rng.uniform(0.9, 1.8, pen.sum())
    patches["ink_colour"][pen] = rng.integers(0, len(INKS), pen.sum())


def plant_labels(table: pd.DataFrame, originals: np.ndarray, rng: np.random.Generator, planted: bool) -> None:
    """Plant wrong labels, copies in the slide of their original, and missing slides, in place."""
    if not planted:
        return
    flip = (table["fault"] == "mislabelled").to_numpy(copy=True)
    exact = rng.permutation(np.flatnonzero(table["fault"] == "duplicate"))
    flip[exact[: len(exact) // 10]] = True
    table["label"] = np.where(flip, 1 - table["label"], table["label"]).astype(np.int8)
    copies = rng.permutation(np.flatnonzero(table["duplicate_of"] != ""))
    same_slide = copies[: len(copies) // 2]
    table.loc[same_slide, "slide"] = table["slide"].to_numpy()[originals[same_slide]]
    missing = rng.permutation(len(table))[: round(SHARE_WITHOUT_SLIDE * len(table))]
    table.loc[missing, "slide"] = None


def scan_again(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the same image with another exposure and new noise."""
    exposure = 1 + rng.choice([-1, 1]) * rng.uniform(0.01, 0.04)
    return np.rint(image * exposure + rng.normal(0, 1.5, image.shape)).clip(0, 255).astype(np.uint8)
