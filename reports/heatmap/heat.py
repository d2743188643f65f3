"""The heat map of a slide: probabilities in cells, their positions on the slide and their colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Colours below, at and above the threshold: Okabe & Ito's blue and vermilion, which colour-blind readers can
#: distinguish and which differ from the stains.
BELOW, AT, ABOVE = (0, 114, 178), (240, 240, 240), (213, 94, 0)
OPACITY = 0.55

#: Share of out-of-distribution tiles from which a heat map must not be trusted, and from which not even a share of
#: positive tissue is stated.
DOUBTFUL, UNRELIABLE = 0.2, 0.5


@dataclass(frozen=True)
class HeatMap:
    """Probabilities of a slide's cells.

    Attributes
    ----------
    values : ndarray of shape (rows, columns), dtype float32
        Probability; NaN without a prediction.
    positive : ndarray of shape (rows, columns), dtype bool
        Whether a cell's patch is labelled positive.
    threshold : float
        Smallest probability that is labelled positive.
    stride : int
        Side of a cell in pixels of the plane, the resolution that patches were cut at.
    plane : tuple of int
        Width and height of the plane in pixels. Cells at the right and lower edge may extend beyond it.
    spacing : tuple of float
        Micrometres per pixel of the plane, horizontally and vertically.
    to_slide : tuple of float
        Level-0 pixels of the slide per pixel of the plane, horizontally and vertically.
    slide : tuple of int
        Width and height of level 0 in pixels.
    origin : tuple of int
        Level-0 position that QuPath calls (0, 0): the corner of the slide's bounds, if it has bounds.
    """

    values: np.ndarray
    positive: np.ndarray
    threshold: float
    stride: int
    plane: tuple[int, int]
    spacing: tuple[float, float]
    to_slide: tuple[float, float]
    slide: tuple[int, int]
    origin: tuple[int, int] = (0, 0)

    @property
    def cell(self) -> tuple[float, float]:
        """Width and height of a cell in level-0 pixels."""
        return self.stride * self.to_slide[0], self.stride * self.to_slide[1]

    def on_slide(self, corners: np.ndarray) -> np.ndarray:
        """Convert corners of cells, (n, 2) as (x, y), to level-0 pixels, clipped to the slide."""
        return np.minimum(corners * np.array(self.cell), np.array(self.slide, dtype=np.float64))

    def areas(self) -> np.ndarray:
        """Area of each cell within the slide in mm², ndarray of shape (rows, columns)."""
        sides = []
        for axis, count in ((0, self.values.shape[1]), (1, self.values.shape[0])):
            ends = np.minimum(np.arange(count + 1) * self.stride, self.plane[axis])
            sides.append(np.diff(ends) * self.spacing[axis] / 1000)
        return np.outer(sides[1], sides[0])


def colours(values: np.ndarray, threshold: float) -> np.ndarray:
    """Colours of probabilities, from blue through pale grey at the threshold to vermilion.

    Parameters
    ----------
    values : ndarray of any shape, 0 to 1
        NaN gives pale grey.
    threshold : float

    Returns
    -------
    ndarray of the same shape with an axis of 3 (RGB) added, dtype uint8
    """
    low = np.clip(values / max(threshold, 1e-9), 0, 1)[..., None]
    high = np.clip((values - threshold) / max(1 - threshold, 1e-9), 0, 1)[..., None]
    below, at, above = (np.array(colour, np.float64) for colour in (BELOW, AT, ABOVE))
    mixed = np.where(high > 0, at + high * (above - at), below + low * (at - below))
    return np.rint(np.nan_to_num(mixed, nan=240.0)).astype(np.uint8)


def overlay(picture: np.ndarray, factor: int, heat: HeatMap) -> np.ndarray:
    """Draw a heat map over the picture of the slide.

    Parameters
    ----------
    picture : ndarray of shape (height, width, 3), dtype uint8
    factor : int
        Pixels of the plane per pixel of the picture.
    heat : HeatMap

    Returns
    -------
    ndarray of shape (height, width, 3), dtype uint8
    """
    result = picture.copy()
    cell_colours = colours(heat.values, heat.threshold)
    predicted = np.isfinite(heat.values)
    rows, columns = (((np.arange(side) + 0.5) * factor // heat.stride).astype(int) for side in picture.shape[:2])
    rows, columns = rows.clip(max=heat.values.shape[0] - 1), columns.clip(max=heat.values.shape[1] - 1)
    weight = round(256 * OPACITY)
    for start in range(0, len(rows), 256):
        cells = np.ix_(rows[start : start + 256], columns)
        strip = result[start : start + 256]
        mixed = (strip * np.uint16(256 - weight) + cell_colours[cells] * np.uint16(weight)) >> 8
        strip[:] = np.where(predicted[cells][..., None], mixed, strip)
    return result
