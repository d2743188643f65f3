"""One look over a whole slide before anything is predicted: a picture to show, and where there is tissue."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.slides.plane import Plane, area_mean
from histoblend.data.slides.tissue import LEAST, SPACING, chroma, find_tissue
from histoblend.data.storage.parts import Parts

#: Side of the largest picture of a slide that is kept, in pixels.
MOST_PICTURE = 4096

SURVEY = "survey"


@dataclass(frozen=True)
class Survey:
    """What one look over a slide shows.

    Attributes
    ----------
    picture : ndarray of shape (height, width, 3), dtype uint8
        The slide; white where it could not be read.
    factor : int
        Pixels of the plane that patches are cut from, a pixel of the picture.
    tissue : ndarray of shape (height, width), dtype bool
    tissue_factor : int
        Pixels of that plane a pixel of ``tissue``.
    unread : int
        Blocks that could not be read.
    """

    picture: np.ndarray
    factor: int
    tissue: np.ndarray
    tissue_factor: int
    unread: int


class KeptBlocks:
    """Blocks of a plane, read once and kept as parts until they are needed again.

    Parameters
    ----------
    plane : Plane
    parts : Parts
        Of this very plane.
    """

    def __init__(self, plane: Plane, parts: Parts) -> None:
        self.plane, self.parts = plane, parts

    def read(self, row: int, column: int) -> np.ndarray:
        """A block, from its part or else from the slide."""
        part = self.parts.find(_block_name(row, column))
        return self.plane.read(row, column) if part is None else part["pixels"]

    def keep(self, row: int, column: int, pixels: np.ndarray) -> None:
        """Keep a block, unless it is kept already."""
        if (name := _block_name(row, column)) not in self.parts:
            self.parts.keep(name, {"pixels": pixels})

    def drop(self, row: int, column: int) -> None:
        """Remove a block, where it was kept."""
        self.parts.drop(_block_name(row, column))


def _block_name(row: int, column: int) -> str:
    return f"block-{row:05d}-{column:05d}"


def picture_factor(plane: Plane) -> int:
    """Pixels of the plane a pixel of the slide's picture: the least power of two that makes it small enough."""
    return 2 ** max(0, math.ceil(math.log2(max(plane.width, plane.height) / MOST_PICTURE)))


def survey_plane(plane: Plane) -> Plane:
    """What a survey reads: the plane itself where no coarser level would do, else one of lower resolution."""
    factor = picture_factor(plane)
    coarse = Plane(plane.slide, (plane.spacing[0] * factor, plane.spacing[1] * factor)) if factor > 1 else plane
    return plane if coarse.level == plane.level else coarse


def survey(plane: Plane, parts: Parts, progress: Callable[[int], None]) -> Survey:
    """Look over a slide, or open the survey that an earlier call kept among the parts.

    Each region is read at most once, here and later: where the plane itself has to be read, the blocks near
    anything that may be tissue are kept, see :class:`KeptBlocks`.

    Parameters
    ----------
    plane : Plane
        That patches are cut from.
    parts : Parts
        Of this very plane.
    progress : callable
        Takes the number of blocks just read.

    Raises
    ------
    InputError
        Nothing of the slide can be read.
    """
    found = parts.find(SURVEY)
    if found is not None:
        numbers = {name: int(found[name]) for name in ("factor", "tissue_factor", "unread")}
        return Survey(picture=found["picture"], tissue=found["tissue"], **numbers)
    factor = picture_factor(plane)
    source = survey_plane(plane)
    kept = KeptBlocks(plane, parts) if source is plane else None
    # A pixel of the picture covers so many of those that are read.
    step = factor if kept else 1
    picture = np.full((-(-plane.height // factor), -(-plane.width // factor), 3), 255, np.uint8)
    unread, reason = 0, ""
    for row, column, pixels in _blocks(source, kept):
        progress(1)
        if isinstance(pixels, str):
            unread, reason = unread + 1, reason or pixels
            continue
        shape = (-(-pixels.shape[0] // step), -(-pixels.shape[1] // step))
        small = area_mean(pixels, (step, step), shape) if step > 1 else pixels
        top, left = row * source.block // step, column * source.block // step
        place = picture[top : top + shape[0], left : left + shape[1]]
        place[:] = small[: place.shape[0], : place.shape[1]]
    if unread == source.rows * source.columns:
        raise InputError(reason)
    tissue, tissue_factor = _tissue(picture, factor, plane.spacing[0])
    result = Survey(picture, factor, tissue, tissue_factor, unread)
    parts.keep(SURVEY, vars(result))
    return result


def _tissue(picture: np.ndarray, factor: int, spacing: float) -> tuple[np.ndarray, int]:
    """Tissue at about ``SPACING``, or at the picture's own resolution where that is lower."""
    more = max(0, round(math.log2(SPACING / (spacing * factor))))
    step = 2**more
    if step > 1:
        picture = area_mean(picture, (step, step), (-(-picture.shape[0] // step), -(-picture.shape[1] // step)))
    return find_tissue(picture, spacing * factor * step), factor * step


def _blocks(source: Plane, kept: KeptBlocks | None) -> Iterator[tuple[int, int, np.ndarray | str]]:
    """Read every block, or the reason why it cannot be read; keep those that a patch with tissue may need."""
    likely = np.zeros((source.rows + 2, source.columns + 2), bool)
    for row in range(source.rows):
        for column in range(source.columns):
            try:
                pixels = kept.read(row, column) if kept else source.read(row, column)
            except InputError as error:
                yield row, column, str(error)
                continue
            if kept:
                likely[row + 1, column + 1] = _may_hold_tissue(pixels)
                kept.keep(row, column, pixels)
            yield row, column, pixels
        if kept:
            _forget(kept, likely, row - 1)
    if kept:
        _forget(kept, likely, source.rows - 1)


def _forget(kept: KeptBlocks, likely: np.ndarray, row: int) -> None:
    """Drop a row's blocks that neither hold what may be tissue nor stand beside one that does: no patch needs them."""
    for column in range(likely.shape[1] - 2 if row >= 0 else 0):
        if not likely[row : row + 3, column : column + 3].any():
            kept.drop(row, column)


def _may_hold_tissue(pixels: np.ndarray) -> bool:
    """Whether a block has a place of 4 pixels a side, half of what tissue is looked for at, that could be tissue."""
    shape = (-(-pixels.shape[0] // 4), -(-pixels.shape[1] // 4))
    return bool((chroma(area_mean(pixels, (4.0, 4.0), shape)) >= LEAST / 2).any())
