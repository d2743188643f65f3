"""A synthetic whole slide with known ground truth: phantom tissue with a disc of tumour, as a pyramidal tiled TIFF.

It shows that heat maps work and how accurate they are. Its scores have no medical meaning.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.phantom.drawing import draw
from histoblend.data.phantom.patch_record import BLANK, SHEET, TUMOUR_IN_CENTRE
from histoblend.data.phantom.patches import plan_pieces
from histoblend.data.slides.plane import area_mean
from histoblend.data.storage.atomic import write_atomically

#: Micrometres per pixel, as in PCam.
SPACING = 0.972
#: Side in pixels of a piece, which is drawn in one call, and of the file's tiles.
PIECE, TILE = 1024, 256
#: Factor by which each level of the pyramid is coarser than the previous one.
STEP = 4
#: Minimum and maximum side of a slide, in pixels.
MIN_SIDE, MAX_SIDE = 1024, 100_000

_KIND = "histoblend phantom slide"


@dataclass(frozen=True)
class GroundTruth:
    """Ground truth of a phantom slide, in pixels of level 0.

    Attributes
    ----------
    width, height : int
    x, y, radius : float
        Centre and radius of the disc of tumour.
    phases : tuple of float
        Phases of the two waves in the outline of the tissue.
    """

    width: int
    height: int
    x: float
    y: float
    radius: float
    phases: tuple[float, float]

    def disc(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return whether points are in the disc."""
        return np.asarray((x - self.x) ** 2 + (y - self.y) ** 2 <= self.radius**2)

    def tissue(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return whether points are in the tissue, a wavy oval in the centre of the slide."""
        across, down = (x - self.width / 2) / (0.42 * self.width), (y - self.height / 2) / (0.42 * self.height)
        angle = np.arctan2(down, across)
        edge = 1 + 0.07 * np.sin(3 * angle + self.phases[0]) + 0.04 * np.sin(7 * angle + self.phases[1])
        return np.asarray(across**2 + down**2 <= edge**2)

    @classmethod
    def of(cls, properties: Mapping[str, str]) -> GroundTruth | None:
        """Read the ground truth from a slide's properties; None if it is not a phantom slide."""
        try:
            description = json.loads(properties.get("tiff.ImageDescription", ""))
            if description.pop("kind") != _KIND:
                return None
            return cls(**description | {"phases": tuple(map(float, description["phases"]))})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None


def write_phantom_slide(
    path: Path,
    *,
    width: int = 4096,
    height: int = 3072,
    seed: int = 0,
    difficulty: float = 0.3,
    share: float | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> GroundTruth:
    """Draw a slide row by row and write it atomically.

    Parameters
    ----------
    path : Path
        TIFF file. An existing file is replaced.
    width, height : int
        Size in pixels of ``SPACING`` micrometres.
    seed : int
        Non-negative. The same arguments give the same pixels.
    difficulty : float
        See :func:`data.phantom.patches.phantom`, whose default is harder: at 0.5, many large benign cells look like
        tumour, and the heat map is speckled.
    share : float, optional
        Share of the tissue's oval that the disc covers, more than 0 and less than 1; the disc is then central. By
        default, the disc is near the centre, and its radius is about a quarter of the slide's shorter side.
    progress : callable
        Called with the number of pieces just drawn.

    Returns
    -------
    GroundTruth

    Raises
    ------
    InputError
        If an argument is out of range.
    """
    for name, side in (("width", width), ("height", height)):
        if not MIN_SIDE <= side <= MAX_SIDE:
            raise InputError(f"{name} must be {MIN_SIDE} to {MAX_SIDE} pixels; got {side}.")
    if share is not None and not 0 < share < 1:
        raise InputError(f"share must be between 0 and 1; got {share}.")
    truth = _plan_truth(width, height, seed, share)
    shapes = [(height, width)]
    while max(shapes[-1]) > 1024:
        shapes.append((-(-shapes[-1][0] // STEP), -(-shapes[-1][1] // STEP)))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        # Coarser levels are computed while the finest is written, and are kept in files until then.
        coarse: list[np.ndarray] = [
            np.lib.format.open_memmap(Path(folder, f"{number}.npy"), "w+", np.uint8, (*shape, 3))
            for number, shape in enumerate(shapes[1:])
        ]
        rows = _drawn_rows(truth, seed, difficulty, coarse, progress)
        write_atomically(path, lambda file: _write(file, rows, shapes, coarse, truth))
        coarse.clear()  # Windows cannot delete a memory-mapped file
    return truth


def pieces(width: int, height: int) -> tuple[int, int]:
    """Return the numbers of rows and columns of pieces."""
    return -(-height // PIECE), -(-width // PIECE)


def _plan_truth(width: int, height: int, seed: int, share: float | None) -> GroundTruth:
    rng = np.random.default_rng([seed, 11])
    radius = 0.24 * min(width, height)
    x, y = width * rng.uniform(0.42, 0.58), height * rng.uniform(0.45, 0.55)
    if share is not None:
        radius, x, y = 0.42 * float(np.sqrt(share * width * height)), width / 2, height / 2
    first, second = rng.uniform(0, 2 * np.pi, 2)
    return GroundTruth(width, height, float(x), float(y), radius, (float(first), float(second)))


def _drawn_rows(
    truth: GroundTruth, seed: int, difficulty: float, coarse: Sequence[np.ndarray], progress: Callable[[int], None]
) -> Iterator[np.ndarray]:
    """Yield rows of pieces, (up to PIECE, width, 3), after averaging each into the coarser levels."""
    down, across = pieces(truth.width, truth.height)
    benign, stains = plan_pieces(down * across, seed=seed, difficulty=difficulty)
    for row in range(down):
        line = np.empty((min(PIECE, truth.height - row * PIECE), truth.width, 3), np.uint8)
        for column in range(across):
            number = slice(row * across + column, row * across + column + 1)
            piece = _draw_piece(truth, benign[number], stains[number], row, column)
            part = line[:, column * PIECE : (column + 1) * PIECE]
            part[:] = piece[: part.shape[0], : part.shape[1]]
            progress(1)
        _add_coarse(line, row, coarse)
        # Yield after everything else: the writer may not resume the generator after the last row.
        yield line


def _add_coarse(line: np.ndarray, row: int, coarse: Sequence[np.ndarray]) -> None:
    """Average a row of pieces into every coarser level."""
    for power, level in enumerate(coarse, start=1):
        line = area_mean(line, (STEP, STEP), (-(-line.shape[0] // STEP), level.shape[1]))
        top = row * PIECE // STEP**power
        level[top : top + len(line)] = line


def _draw_piece(truth: GroundTruth, benign: np.ndarray, stains: np.ndarray, row: int, column: int) -> np.ndarray:
    """Draw one piece: glass, benign tissue and tumour on the same background, each in its region."""
    y, x = np.indices((PIECE, PIECE)) + np.array([row * PIECE, column * PIECE])[:, None, None]
    tissue, disc = truth.tissue(x, y), truth.disc(x, y)
    glass, tumour = benign.copy(), benign.copy()
    glass["override"] = BLANK
    tumour["tumour"], tumour["pattern"] = TUMOUR_IN_CENTRE, SHEET
    out = np.empty((PIECE, PIECE, 3), np.uint8)
    for record, mask in ((glass, ~tissue), (benign, tissue & ~disc), (tumour, tissue & disc)):
        if mask.any():
            out[mask] = draw(record, stains, PIECE)[0][0][mask]
    return out


def _write(
    file: Any,
    rows: Iterator[np.ndarray],
    shapes: list[tuple[int, int]],
    coarse: Sequence[np.ndarray],
    truth: GroundTruth,
) -> None:
    import tifffile

    description = json.dumps({"kind": _KIND, **asdict(truth)})
    with tifffile.TiffWriter(file, bigtiff=True) as writer:
        for number, shape in enumerate(shapes):
            lines = rows if number == 0 else (coarse[number - 1][at : at + TILE] for at in range(0, shape[0], TILE))
            side = SPACING * STEP**number
            writer.write(
                _tiles(lines),
                shape=(*shape, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="zlib",
                compressionargs={"level": 1},
                subfiletype=1 if number else 0,
                description=None if number else description,
                metadata=None,
                resolution=(1e4 / side, 1e4 / side),
                resolutionunit="CENTIMETER",
            )


def _tiles(lines: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Cut rows into tiles, padded with white at the edges."""
    for line in lines:
        for top in range(0, line.shape[0], TILE):
            for left in range(0, line.shape[1], TILE):
                part = line[top : top + TILE, left : left + TILE]
                if part.shape[:2] == (TILE, TILE):
                    yield np.ascontiguousarray(part)
                else:
                    tile = np.full((TILE, TILE, 3), 255, np.uint8)
                    tile[: part.shape[0], : part.shape[1]] = part
                    yield tile
