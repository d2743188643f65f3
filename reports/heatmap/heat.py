"""A slide's heat map: probabilities in cells, where these lie on the slide, and the colours that they are shown in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Colours below, at and above the threshold (Okabe & Ito's blue and vermilion): told apart by every kind of eye, and
#: neither of them is a stain's.
BELOW, AT, ABOVE = (0, 114, 178), (240, 240, 240), (213, 94, 0)
OPACITY = 0.55


@dataclass(frozen=True)
class HeatMap:
    """Probabilities of a slide's cells.

    Attributes
    ----------
    values : ndarray of shape (rows, columns), dtype float32
        Probability; NaN where nothing was predicted.
    positive : ndarray of shape (rows, columns), dtype bool
        Whether a cell's patch is labelled positive.
    threshold : float
        Probability from which on it is.
    stride : int
        Side of a cell in pixels of the plane that patches were cut from.
    plane : tuple of int
        Width and height of that plane in pixels; cells at the right and lower edge may reach beyond it.
    spacing : tuple of float
        Micrometres a pixel of the plane, across and down.
    to_slide : tuple of float
        Level-0 pixels of the slide a pixel of the plane, across and down.
    slide : tuple of int
        Width and height of level 0 in pixels.
    origin : tuple of int
        Place on level 0 that QuPath calls (0, 0): the corner of the scanned part where the slide tells one.
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
        """Corners of cells, (n, 2) as (x, y), in level-0 pixels; cells that reach beyond the slide are cut off."""
        return np.minimum(corners * np.array(self.cell), np.array(self.slide, dtype=np.float64))

    def areas(self) -> np.ndarray:
        """Area of each cell within the slide, mm², ndarray of shape (rows, columns)."""
        sides = []
        for axis, count in ((0, self.values.shape[1]), (1, self.values.shape[0])):
            ends = np.minimum(np.arange(count + 1) * self.stride, self.plane[axis])
            sides.append(np.diff(ends) * self.spacing[axis] / 1000)
        return np.outer(sides[1], sides[0])


def colours(values: np.ndarray, threshold: float) -> np.ndarray:
    """Colour of probabilities, from blue over pale grey at the threshold to vermilion.

    Parameters
    ----------
    values : ndarray of any shape, 0 to 1
        NaN gives pale grey.
    threshold : float

    Returns
    -------
    ndarray of the same shape with three colours, dtype uint8
    """
    low = np.clip(values / max(threshold, 1e-9), 0, 1)[..., None]
    high = np.clip((values - threshold) / max(1 - threshold, 1e-9), 0, 1)[..., None]
    below, at, above = (np.array(colour, np.float64) for colour in (BELOW, AT, ABOVE))
    mixed = np.where(high > 0, at + high * (above - at), below + low * (at - below))
    return np.rint(np.nan_to_num(mixed, nan=240.0)).astype(np.uint8)


def overlay(picture: np.ndarray, factor: int, heat: HeatMap) -> np.ndarray:
    """Lay a heat map over the slide's picture.

    Parameters
    ----------
    picture : ndarray of shape (height, width, 3), dtype uint8
    factor : int
        Pixels of the plane a pixel of the picture.
    heat : HeatMap

    Returns
    -------
    ndarray of shape (height, width, 3), dtype uint8
    """
    shown = picture.copy()
    painted = colours(heat.values, heat.threshold)
    predicted = np.isfinite(heat.values)
    rows, columns = (((np.arange(side) + 0.5) * factor // heat.stride).astype(int) for side in picture.shape[:2])
    rows, columns = rows.clip(max=heat.values.shape[0] - 1), columns.clip(max=heat.values.shape[1] - 1)
    weight = round(256 * OPACITY)
    for start in range(0, len(rows), 256):
        place = np.ix_(rows[start : start + 256], columns)
        part = shown[start : start + 256]
        mixed = (part * np.uint16(256 - weight) + painted[place] * np.uint16(weight)) >> 8
        part[:] = np.where(predicted[place][..., None], mixed, part)
    return shown
