"""Patches of a slide's tissue, cut out of blocks that are read once and kept no longer than they are needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.patches import CENTRE
from histoblend.data.slides.plane import Plane


@dataclass(frozen=True)
class Grid:
    """Cells that tile a plane; in the middle of each stands a patch.

    Attributes
    ----------
    width, height : int
        Of the plane, in pixels.
    size : int
        Side of a patch in pixels.
    stride : int
        Side of a cell in pixels. At 32, the side of the centre that a patch's label speaks of, centres tile the plane.
    """

    width: int
    height: int
    size: int
    stride: int

    @property
    def columns(self) -> int:
        """Cells across; the last may reach beyond the plane."""
        return -(-self.width // self.stride)

    @property
    def rows(self) -> int:
        """Cells down; the last may reach beyond the plane."""
        return -(-self.height // self.stride)

    @property
    def centre(self) -> int:
        """Side of the square in a patch's middle that its label speaks of."""
        return min(CENTRE, self.size)

    def corner(self, cell: np.ndarray, side: int) -> np.ndarray:
        """Left or upper edge of a square in the middle of cells, in pixels; half pixels are cut off."""
        return cell * self.stride + (self.stride - side) // 2


def choose_cells(grid: Grid, tissue: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells whose patch's centre touches tissue.

    Parameters
    ----------
    grid : Grid
    tissue : ndarray of shape (height, width), dtype bool
        A pixel of it covers ``factor`` × ``factor`` of the plane's.
    factor : int

    Returns
    -------
    rows, columns : ndarray of int
    """
    sums = np.zeros((tissue.shape[0] + 1, tissue.shape[1] + 1), np.int64)
    sums[1:, 1:] = tissue.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)

    def ends(cells: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        first = grid.corner(np.arange(cells), grid.centre)
        return (first // factor).clip(0, length), (-(-(first + grid.centre) // factor)).clip(0, length)

    top, bottom = ends(grid.rows, tissue.shape[0])
    left, right = ends(grid.columns, tissue.shape[1])
    counts = (
        sums[np.ix_(bottom, right)] - sums[np.ix_(top, right)] - sums[np.ix_(bottom, left)] + sums[np.ix_(top, left)]
    )
    rows, columns = np.nonzero(counts)
    return rows, columns


class TileSource:
    """Patches in the middle of cells, as a source of patches: see :class:`data.patches.Source`.

    Rows stand in the order of blocks, so that at most about two rows of blocks are in memory. Each block is read when
    the first patch needs it and dropped after the last one. What of a patch lies beyond the slide's edge is white.

    Parameters
    ----------
    plane : Plane
    grid : Grid
    rows, columns : ndarray of int
        Cells, in any order.
    slide : str
        Name of the slide, the same for all patches.
    read_block : callable, optional
        What reads a block by row and column of blocks; else the plane does.

    Attributes
    ----------
    table : DataFrame
        ``patch_id``, ``slide``, and ``row`` and ``column`` of the cell.
    size : int
    expected : int
        Rows that are going to be read.
    most_held : int
        Blocks that were in memory at the same time, at most.
    """

    def __init__(
        self,
        plane: Plane,
        grid: Grid,
        rows: np.ndarray,
        columns: np.ndarray,
        *,
        slide: str = "slide",
        read_block: Callable[[int, int], np.ndarray] | None = None,
    ) -> None:
        self.plane, self.grid, self.size = plane, grid, grid.size
        self._read_block = read_block or plane.read
        block, last = plane.block, (plane.rows - 1, plane.columns - 1)
        top, left = grid.corner(rows, grid.size), grid.corner(columns, grid.size)
        order = np.lexsort((columns, rows, (left // block).clip(0, last[1]), (top // block).clip(0, last[0])))
        rows, columns, self._top, self._left = rows[order], columns[order], top[order], left[order]
        names = [f"{row}-{column}" for row, column in zip(rows.tolist(), columns.tolist(), strict=True)]
        self.table = pd.DataFrame({"patch_id": names, "slide": slide, "row": rows, "column": columns})
        # First and last block that a patch touches, down and across.
        self._spans = np.stack(
            [
                (edge // block).clip(0, most)
                for start, most in ((self._top, last[0]), (self._left, last[1]))
                for edge in (start, start + grid.size - 1)
            ],
            axis=1,
        )
        self._lock = threading.Lock()
        self._held: dict[tuple[int, int], Future[np.ndarray | str]] = {}
        self.most_held = 0
        self.expect([(0, len(self.table))])

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Say which rows are going to be read, each once, so that blocks are kept for these and for no others."""
        self._uses = np.zeros((self.plane.rows, self.plane.columns), np.int64)
        self.expected = 0
        for start, stop in ranges:
            self.expected += stop - start
            np.add.at(self._uses, self._touched(start, stop), 1)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Cut the patches of rows ``start`` to ``stop``; threads may call this at the same time."""
        down, across = self._touched(start, stop)
        blocks = {
            place: self._block(*place) for place in dict.fromkeys(zip(down.tolist(), across.tolist(), strict=True))
        }
        pixels = np.full((stop - start, self.size, self.size, 3), 255, np.uint8)
        reasons: dict[int, str] = {}
        for number in range(start, stop):
            first_row, last_row, first_column, last_column = self._spans[number].tolist()
            for place in (
                (row, column)
                for row in range(first_row, last_row + 1)
                for column in range(first_column, last_column + 1)
            ):
                found = blocks[place]
                if isinstance(found, str):
                    reasons[number - start] = found
                else:
                    self._paste(pixels[number - start], number, found, place)
        self._release(down, across)
        return pixels, reasons

    def _paste(self, patch: np.ndarray, number: int, block: np.ndarray, place: tuple[int, int]) -> None:
        """Copy what a patch and a block have in common."""
        y = place[0] * self.plane.block - int(self._top[number])
        x = place[1] * self.plane.block - int(self._left[number])
        part = block[max(-y, 0) : max(self.size - y, 0), max(-x, 0) : max(self.size - x, 0)]
        patch[max(y, 0) : max(y, 0) + part.shape[0], max(x, 0) : max(x, 0) + part.shape[1]] = part

    def _touched(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Blocks that patches touch, as often as patches do: their rows and columns."""
        spans = self._spans[start:stop]
        down, across = [], []
        for row in range(int((spans[:, 1] - spans[:, 0]).max(initial=0)) + 1):
            for column in range(int((spans[:, 3] - spans[:, 2]).max(initial=0)) + 1):
                inside = (spans[:, 0] + row <= spans[:, 1]) & (spans[:, 2] + column <= spans[:, 3])
                down.append(spans[inside, 0] + row)
                across.append(spans[inside, 2] + column)
        return np.concatenate(down), np.concatenate(across)

    def _block(self, row: int, column: int) -> np.ndarray | str:
        """A block, or the reason why it cannot be read; whoever asks first reads it, and the others wait."""
        with self._lock:
            mine = (row, column) not in self._held
            if mine:
                self._held[row, column] = Future()
                self.most_held = max(self.most_held, len(self._held))
            place = self._held[row, column]
        if mine:
            try:
                place.set_result(self._read_block(row, column))
            except InputError as error:
                place.set_result(str(error))
            except BaseException as error:
                place.set_exception(error)
        return place.result()

    def _release(self, down: np.ndarray, across: np.ndarray) -> None:
        with self._lock:
            np.subtract.at(self._uses, (down, across), 1)
            for place in dict.fromkeys(zip(down.tolist(), across.tolist(), strict=True)):
                if self._uses[place] <= 0:
                    self._held.pop(place, None)
