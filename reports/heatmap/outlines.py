"""The outlines of a mask's pieces: rings that run exactly along its cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Piece:
    """Cells that share sides, and what bounds them.

    Attributes
    ----------
    number : int
        In the array of labels.
    exterior : ndarray of shape (n, 2), int
        Corners (x, y) in cells, the first one again at the end. No corner comes twice, none lies on a straight line,
        and the signed area (y downwards as it comes) is positive.
    holes : tuple of ndarray
        The same, with negative areas. A ring may touch another in a corner, never along a side.
    """

    number: int
    exterior: np.ndarray
    holes: tuple[np.ndarray, ...]


def trace(mask: np.ndarray) -> tuple[np.ndarray, list[Piece]]:
    """Find the pieces of a mask and their outlines.

    Parameters
    ----------
    mask : ndarray of shape (rows, columns), dtype bool

    Returns
    -------
    labels : ndarray of shape (rows, columns), int
        Number of the piece that a cell belongs to, from 1; 0 elsewhere. Cells that only share a corner are two pieces.
    pieces : list of Piece
        In the order of their numbers.
    """
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    starts, ends, cells = _edges(labels > 0)
    following = _following(starts, ends, cells)
    width = mask.shape[1] + 1
    rings: dict[int, list[np.ndarray]] = {}
    seen = np.zeros(len(starts), bool)
    for first in range(len(starts)):
        if seen[first]:
            continue
        way, edge = [], first
        while not seen[edge]:
            seen[edge] = True
            way.append(int(starts[edge]))
            edge = int(following[edge])
        number = int(labels.ravel()[cells[first]])
        rings.setdefault(number, []).extend(_corners(loop, width) for loop in _simple(way))
    return labels, [_piece(number, rings[number]) for number in range(1, count + 1)]


def signed_area(ring: np.ndarray) -> float:
    """Area inside a closed ring, (n, 2); positive where x turns towards y."""
    x, y = ring[:, 0].astype(np.float64), ring[:, 1].astype(np.float64)
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def _edges(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sides between a cell of the mask and one outside, with the cell to the right hand: both corners, and the cell."""
    padded = np.pad(mask, 1)
    width = mask.shape[1] + 1
    sides = (
        (padded[:-2, 1:-1], (0, 0), (0, 1)),  # above: from its left corner to the right one
        (padded[1:-1, 2:], (0, 1), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (1, 0)),
        (padded[1:-1, :-2], (1, 0), (0, 0)),
    )
    starts, ends, cells = [], [], []
    for beyond, start, end in sides:
        rows, columns = np.nonzero(mask & ~beyond)
        starts.append((rows + start[0]) * width + columns + start[1])
        ends.append((rows + end[0]) * width + columns + end[1])
        cells.append(rows * mask.shape[1] + columns)
    return np.concatenate(starts), np.concatenate(ends), np.concatenate(cells)


def _following(starts: np.ndarray, ends: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """The side that goes on where one ends; where two do, that of the same cell, since corners join no cells."""
    if not len(starts):
        return np.arange(0)
    order = np.argsort(starts, kind="stable")
    ordered = starts[order]
    first = np.searchsorted(ordered, ends)
    second = np.minimum(first + 1, len(order) - 1)
    one, other = order[first], order[second]
    takes_other = (ordered[second] == ends) & (cells[other] == cells)
    return np.where(takes_other, other, one)


def _simple(way: list[int]) -> list[list[int]]:
    """Divide a closed way at corners that it passes twice into loops that pass each once."""
    if len(set(way)) == len(way):
        return [way]
    loops: list[list[int]] = []
    path: list[int] = []
    place: dict[int, int] = {}
    for corner in way:
        if corner in place:
            cut = place[corner]
            loops.append(path[cut:])
            for gone in path[cut:]:
                del place[gone]
            del path[cut:]
        place[corner] = len(path)
        path.append(corner)
    return [*loops, path]


def _corners(loop: list[int], width: int) -> np.ndarray:
    """Turning points of a loop as closed (x, y)."""
    points = np.array(loop)
    points = np.column_stack([points % width, points // width])
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns = points[(before != after).any(axis=1)]
    return np.concatenate([turns, turns[:1]])


def _piece(number: int, rings: list[np.ndarray]) -> Piece:
    exterior = [ring for ring in rings if signed_area(ring) > 0]
    if len(exterior) != 1:
        raise RuntimeError(f"a piece of cells must have one outer ring; got {len(exterior)}.")
    return Piece(number, exterior[0], tuple(ring for ring in rings if signed_area(ring) < 0))
