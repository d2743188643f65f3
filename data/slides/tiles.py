"""Patches of a slide's tissue, cut from blocks that are read once and released as early as possible."""

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
    """Cells that tile a plane. A patch is centred on each cell.

    Attributes
    ----------
    width, height : int
        Size of the plane in pixels.
    size : int
        Side of a patch in pixels.
    stride : int
        Side of a cell in pixels. At 32, the side of a patch's labelled centre, the centres tile the plane.
    """

    width: int
    height: int
    size: int
    stride: int

    @property
    def columns(self) -> int:
        """Number of cells per row; the last may extend beyond the plane."""
        return -(-self.width // self.stride)

    @property
    def rows(self) -> int:
        """Number of cells per column; the last may extend beyond the plane."""
        return -(-self.height // self.stride)

    @property
    def centre(self) -> int:
        """Side of the labelled square in the centre of a patch."""
        return min(CENTRE, self.size)

    def corner(self, cell: np.ndarray, side: int) -> np.ndarray:
        """Return the left or upper edge of squares centred on cells, in pixels, rounded down."""
        return cell * self.stride + (self.stride - side) // 2


def choose_cells(grid: Grid, tissue: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells whose patch centre touches tissue.

    Parameters
    ----------
    grid : Grid
    tissue : ndarray of shape (height, width), dtype bool
        Tissue mask; one of its pixels covers ``factor`` × ``factor`` plane pixels.
    factor : int

    Returns
    -------
    rows, columns : ndarray of int
    """
    sums = np.zeros((tissue.shape[0] + 1, tissue.shape[1] + 1), np.int64)
    sums[1:, 1:] = tissue.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)

    def bounds(cells: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        first = grid.corner(np.arange(cells), grid.centre)
        return (first // factor).clip(0, length), (-(-(first + grid.centre) // factor)).clip(0, length)

    top, bottom = bounds(grid.rows, tissue.shape[0])
    left, right = bounds(grid.columns, tissue.shape[1])
    counts = (
        sums[np.ix_(bottom, right)] - sums[np.ix_(top, right)] - sums[np.ix_(bottom, left)] + sums[np.ix_(top, left)]
    )
    rows, columns = np.nonzero(counts)
    return rows, columns


class TileSource:
    """Source of patches centred on cells, see :class:`data.patches.Source`.

    Rows are in the order of blocks, so that about two rows of blocks at most are in memory. Each block is read when the
    first patch needs it and released after the last one. Pixels beyond the slide's edge are white.

    Parameters
    ----------
    plane : Plane
    grid : Grid
    rows, columns : ndarray of int
        Cells, in any order.
    slide : str
        Name of the slide, the same for all patches.
    read_block : callable, optional
        Reads a block, given its row and column. By default, the plane reads it.

    Attributes
    ----------
    table : DataFrame
        ``patch_id``, ``slide``, and ``row`` and ``column`` of the cell.
    size : int
    expected : int
        Number of rows that will be read.
    most_held : int
        Maximum number of blocks in memory at the same time.
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
        # First and last block row, and first and last block column, of each patch.
        self._spans = np.stack(
            [
                (edge // block).clip(0, most)
                for start, most in ((self._top, last[0]), (self._left, last[1]))
                for edge in (start, start + grid.size - 1)
            ],
            axis=1,
        )
        self._lock = threading.Lock()
        self._blocks: dict[tuple[int, int], Future[np.ndarray | str]] = {}
        self.most_held = 0
        self.expect([(0, len(self.table))])

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Declare the rows that will be read, once each: blocks are kept only for these rows."""
        self._remaining_uses = np.zeros((self.plane.rows, self.plane.columns), np.int64)
        self.expected = 0
        for start, stop in ranges:
            self.expected += stop - start
            np.add.at(self._remaining_uses, self._blocks_of(start, stop), 1)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, Mapping[int, str]]:
        """Cut the patches of rows ``start`` to ``stop``. The method is thread-safe."""
        down, across = self._blocks_of(start, stop)
        blocks = {
            position: self._block(*position)
            for position in dict.fromkeys(zip(down.tolist(), across.tolist(), strict=True))
        }
        pixels = np.full((stop - start, self.size, self.size, 3), 255, np.uint8)
        reasons: dict[int, str] = {}
        for number in range(start, stop):
            first_row, last_row, first_column, last_column = self._spans[number].tolist()
            for position in (
                (row, column)
                for row in range(first_row, last_row + 1)
                for column in range(first_column, last_column + 1)
            ):
                block = blocks[position]
                if isinstance(block, str):
                    reasons[number - start] = block
                else:
                    self._paste(pixels[number - start], number, block, position)
        self._release(down, across)
        return pixels, reasons

    def _paste(self, patch: np.ndarray, number: int, block: np.ndarray, position: tuple[int, int]) -> None:
        """Copy the overlap of a block and a patch into the patch."""
        y = position[0] * self.plane.block - int(self._top[number])
        x = position[1] * self.plane.block - int(self._left[number])
        part = block[max(-y, 0) : max(self.size - y, 0), max(-x, 0) : max(self.size - x, 0)]
        patch[max(y, 0) : max(y, 0) + part.shape[0], max(x, 0) : max(x, 0) + part.shape[1]] = part

    def _blocks_of(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and columns of the blocks that patches touch, one entry per patch and block."""
        spans = self._spans[start:stop]
        down, across = [], []
        for row in range(int((spans[:, 1] - spans[:, 0]).max(initial=0)) + 1):
            for column in range(int((spans[:, 3] - spans[:, 2]).max(initial=0)) + 1):
                inside = (spans[:, 0] + row <= spans[:, 1]) & (spans[:, 2] + column <= spans[:, 3])
                down.append(spans[inside, 0] + row)
                across.append(spans[inside, 2] + column)
        return np.concatenate(down), np.concatenate(across)

    def _block(self, row: int, column: int) -> np.ndarray | str:
        """Return a block, or the reason why it cannot be read. The first caller reads it, and the others wait."""
        with self._lock:
            is_first = (row, column) not in self._blocks
            if is_first:
                self._blocks[row, column] = Future()
                self.most_held = max(self.most_held, len(self._blocks))
            result = self._blocks[row, column]
        if is_first:
            try:
                result.set_result(self._read_block(row, column))
            except InputError as error:
                result.set_result(str(error))
            except BaseException as error:
                result.set_exception(error)
        return result.result()

    def _release(self, down: np.ndarray, across: np.ndarray) -> None:
        with self._lock:
            np.subtract.at(self._remaining_uses, (down, across), 1)
            for position in dict.fromkeys(zip(down.tolist(), across.tolist(), strict=True)):
                if self._remaining_uses[position] <= 0:
                    self._blocks.pop(position, None)
