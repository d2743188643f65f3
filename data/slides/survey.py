"""Survey of a whole slide before prediction: an overview image and a tissue mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.slides.plane import Plane, area_mean
from histoblend.data.slides.tissue import MIN_THRESHOLD, SPACING, chroma, find_tissue
from histoblend.data.storage.parts import Parts

#: Maximum side of the overview image, in pixels.
MAX_PICTURE = 4096

SURVEY = "survey"


@dataclass(frozen=True)
class Survey:
    """Overview image and tissue mask of a slide.

    Attributes
    ----------
    picture : ndarray of shape (height, width, 3), dtype uint8
        Overview image of the slide; unreadable blocks are white.
    factor : int
        Pixels of the plane, from which patches are cut, per pixel of the picture.
    tissue : ndarray of shape (height, width), dtype bool
    tissue_factor : int
        Pixels of that plane per pixel of ``tissue``.
    unread : int
        Number of blocks that could not be read.
    """

    picture: np.ndarray
    factor: int
    tissue: np.ndarray
    tissue_factor: int
    unread: int


class CachedBlocks:
    """Blocks of a plane that are read once and cached on disk until they are needed again.

    Parameters
    ----------
    plane : Plane
    parts : Parts
        Storage for this plane only.
    """

    def __init__(self, plane: Plane, parts: Parts) -> None:
        self.plane, self.parts = plane, parts

    def read(self, row: int, column: int) -> np.ndarray:
        """Return a block from the cache, or else from the slide."""
        part = self.parts.find(_block_name(row, column))
        return self.plane.read(row, column) if part is None else part["pixels"]

    def keep(self, row: int, column: int, pixels: np.ndarray) -> None:
        """Cache a block, unless it is cached already."""
        if (name := _block_name(row, column)) not in self.parts:
            self.parts.keep(name, {"pixels": pixels})

    def drop(self, row: int, column: int) -> None:
        """Remove a block from the cache, if it is there."""
        self.parts.drop(_block_name(row, column))


def _block_name(row: int, column: int) -> str:
    return f"block-{row:05d}-{column:05d}"


def picture_factor(plane: Plane) -> int:
    """Return the plane pixels per picture pixel: the smallest power of two that makes the picture small enough."""
    return 2 ** max(0, math.ceil(math.log2(max(plane.width, plane.height) / MAX_PICTURE)))


def survey_plane(plane: Plane) -> Plane:
    """Return the plane that a survey reads: one that uses a coarser level, or else the plane itself."""
    factor = picture_factor(plane)
    coarse = Plane(plane.slide, (plane.spacing[0] * factor, plane.spacing[1] * factor)) if factor > 1 else plane
    return plane if coarse.level == plane.level else coarse


def survey(plane: Plane, parts: Parts, progress: Callable[[int], None]) -> Survey:
    """Survey a slide, or load the survey stored by an earlier call.

    No region is read twice, including later reads of patches: if the plane itself is read, blocks near possible tissue
    are cached, see :class:`CachedBlocks`.

    Parameters
    ----------
    plane : Plane
        Plane that patches are cut from.
    parts : Parts
        Storage for this plane only.
    progress : callable
        Called with the number of blocks just read.

    Raises
    ------
    InputError
        If no block of the slide can be read.
    """
    stored = parts.find(SURVEY)
    if stored is not None:
        numbers = {name: int(stored[name]) for name in ("factor", "tissue_factor", "unread")}
        return Survey(picture=stored["picture"], tissue=stored["tissue"], **numbers)
    factor = picture_factor(plane)
    source = survey_plane(plane)
    kept = CachedBlocks(plane, parts) if source is plane else None
    # Pixels read per pixel of the picture.
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
        target = picture[top : top + shape[0], left : left + shape[1]]
        target[:] = small[: target.shape[0], : target.shape[1]]
    if unread == source.rows * source.columns:
        raise InputError(reason)
    tissue, tissue_factor = _detect_tissue(picture, factor, plane.spacing[0])
    result = Survey(picture, factor, tissue, tissue_factor, unread)
    parts.keep(SURVEY, vars(result))
    return result


def _detect_tissue(picture: np.ndarray, factor: int, spacing: float) -> tuple[np.ndarray, int]:
    """Detect tissue at about ``SPACING``, or at the picture's resolution if that is lower."""
    exponent = max(0, round(math.log2(SPACING / (spacing * factor))))
    step = 2**exponent
    if step > 1:
        picture = area_mean(picture, (step, step), (-(-picture.shape[0] // step), -(-picture.shape[1] // step)))
    return find_tissue(picture, spacing * factor * step), factor * step


def _blocks(source: Plane, kept: CachedBlocks | None) -> Iterator[tuple[int, int, np.ndarray | str]]:
    """Yield every block, or the reason why it cannot be read; cache the blocks that a patch with tissue may need."""
    may_be_tissue = np.zeros((source.rows + 2, source.columns + 2), bool)
    for row in range(source.rows):
        for column in range(source.columns):
            try:
                pixels = kept.read(row, column) if kept else source.read(row, column)
            except InputError as error:
                yield row, column, str(error)
                continue
            if kept:
                may_be_tissue[row + 1, column + 1] = _may_contain_tissue(pixels)
                kept.keep(row, column, pixels)
            yield row, column, pixels
        if kept:
            _drop_row(kept, may_be_tissue, row - 1)
    if kept:
        _drop_row(kept, may_be_tissue, source.rows - 1)


def _drop_row(kept: CachedBlocks, may_be_tissue: np.ndarray, row: int) -> None:
    """Drop the blocks of a row that are not near possible tissue: no patch needs them."""
    for column in range(may_be_tissue.shape[1] - 2 if row >= 0 else 0):
        if not may_be_tissue[row : row + 3, column : column + 3].any():
            kept.drop(row, column)


def _may_contain_tissue(pixels: np.ndarray) -> bool:
    """Return whether a block may contain tissue, tested on 4 × 4 pixel means, at twice the resolution of detection."""
    shape = (-(-pixels.shape[0] // 4), -(-pixels.shape[1] // 4))
    return bool((chroma(area_mean(pixels, (4.0, 4.0), shape)) >= MIN_THRESHOLD / 2).any())
