"""A synthetic whole slide with known truth: phantom tissue with a planted disc of tumour, as pyramidal tiled TIFF.

It shows that heat maps work and how well they find what is there; its scores say nothing about medicine.
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
from histoblend.data.storage.atomic import write_whole

#: Micrometres a pixel, as in PCam.
SPACING = 0.972
#: Side of what is drawn at a time, in pixels, and of the file's tiles.
PIECE, TILE = 1024, 256
#: Each level of the pyramid is this many times coarser than the one before.
STEP = 4
#: Widest and smallest slide, in pixels.
LEAST_SIDE, MOST_SIDE = 1024, 100_000

_KIND = "histoblend phantom slide"


@dataclass(frozen=True)
class Truth:
    """What a phantom slide shows where, in pixels of level 0.

    Attributes
    ----------
    width, height : int
    x, y, radius : float
        Of the disc of tumour.
    phases : tuple of float
        Of the waves in the outline of the tissue.
    """

    width: int
    height: int
    x: float
    y: float
    radius: float
    phases: tuple[float, float]

    def disc(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether places lie in the disc."""
        return np.asarray((x - self.x) ** 2 + (y - self.y) ** 2 <= self.radius**2)

    def tissue(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether places lie in the tissue: a wavy oval in the middle of the slide."""
        across, down = (x - self.width / 2) / (0.42 * self.width), (y - self.height / 2) / (0.42 * self.height)
        angle = np.arctan2(down, across)
        edge = 1 + 0.07 * np.sin(3 * angle + self.phases[0]) + 0.04 * np.sin(7 * angle + self.phases[1])
        return np.asarray(across**2 + down**2 <= edge**2)

    @classmethod
    def of(cls, properties: Mapping[str, str]) -> Truth | None:
        """Read the truth out of a slide's properties; None where it is no phantom."""
        try:
            said = json.loads(properties.get("tiff.ImageDescription", ""))
            if said.pop("kind") != _KIND:
                return None
            return cls(**said | {"phases": tuple(map(float, said["phases"]))})
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
) -> Truth:
    """Draw a slide a row of pieces at a time, and write it whole or not at all.

    Parameters
    ----------
    path : Path
        TIFF file; replaced where it exists.
    width, height : int
        Pixels of ``SPACING`` micrometres.
    seed : int
        Not negative. The same arguments give the same pixels.
    difficulty : float
        See :func:`data.phantom.patches.phantom`, whose patches are harder by default: at 0.5 many large benign cells
        look like tumour, and a map of single patches is speckled all over.
    share : float, optional
        Of the tissue's oval that the disc takes, more than 0 and less than 1, and then in its middle. By default a
        radius of about a quarter of the slide's shorter side, near the middle.
    progress : callable
        Takes the number of pieces just drawn.

    Returns
    -------
    Truth

    Raises
    ------
    InputError
        An argument is out of range.
    """
    for name, side in (("width", width), ("height", height)):
        if not LEAST_SIDE <= side <= MOST_SIDE:
            raise InputError(f"{name} must be {LEAST_SIDE} to {MOST_SIDE} pixels; got {side}.")
    if share is not None and not 0 < share < 1:
        raise InputError(f"share must lie between 0 and 1; got {share}.")
    truth = _plan_truth(width, height, seed, share)
    shapes = [(height, width)]
    while max(shapes[-1]) > 1024:
        shapes.append((-(-shapes[-1][0] // STEP), -(-shapes[-1][1] // STEP)))
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        # Coarser levels come about while the finest is written, and wait in files.
        coarse: list[np.ndarray] = [
            np.lib.format.open_memmap(Path(folder, f"{number}.npy"), "w+", np.uint8, (*shape, 3))
            for number, shape in enumerate(shapes[1:])
        ]
        rows = _drawn_rows(truth, seed, difficulty, coarse, progress)
        write_whole(path, lambda file: _write(file, rows, shapes, coarse, truth))
        coarse.clear()  # Windows removes no file that is mapped
    return truth


def pieces(width: int, height: int) -> tuple[int, int]:
    """Rows and columns of what is drawn at a time."""
    return -(-height // PIECE), -(-width // PIECE)


def _plan_truth(width: int, height: int, seed: int, share: float | None) -> Truth:
    rng = np.random.default_rng([seed, 11])
    radius = 0.24 * min(width, height)
    x, y = width * rng.uniform(0.42, 0.58), height * rng.uniform(0.45, 0.55)
    if share is not None:
        radius, x, y = 0.42 * float(np.sqrt(share * width * height)), width / 2, height / 2
    first, second = rng.uniform(0, 2 * np.pi, 2)
    return Truth(width, height, float(x), float(y), radius, (float(first), float(second)))


def _drawn_rows(
    truth: Truth, seed: int, difficulty: float, coarse: Sequence[np.ndarray], progress: Callable[[int], None]
) -> Iterator[np.ndarray]:
    """Rows of pieces, (up to PIECE, width, 3); each is averaged into the coarser levels on its way."""
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
        # Last of all: whoever takes what is yielded asks for no more than the file holds.
        yield line


def _add_coarse(line: np.ndarray, row: int, coarse: Sequence[np.ndarray]) -> None:
    """Average a row of pieces into every coarser level."""
    for power, level in enumerate(coarse, start=1):
        line = area_mean(line, (STEP, STEP), (-(-line.shape[0] // STEP), level.shape[1]))
        top = row * PIECE // STEP**power
        level[top : top + len(line)] = line


def _draw_piece(truth: Truth, benign: np.ndarray, stains: np.ndarray, row: int, column: int) -> np.ndarray:
    """One piece: glass, benign tissue and tumour with the same ground, each where it belongs."""
    y, x = np.indices((PIECE, PIECE)) + np.array([row * PIECE, column * PIECE])[:, None, None]
    tissue, disc = truth.tissue(x, y), truth.disc(x, y)
    glass, tumour = benign.copy(), benign.copy()
    glass["override"] = BLANK
    tumour["tumour"], tumour["pattern"] = TUMOUR_IN_CENTRE, SHEET
    out = np.empty((PIECE, PIECE, 3), np.uint8)
    for record, place in ((glass, ~tissue), (benign, tissue & ~disc), (tumour, tissue & disc)):
        if place.any():
            out[place] = draw(record, stains, PIECE)[0][0][place]
    return out


def _write(
    file: Any, rows: Iterator[np.ndarray], shapes: list[tuple[int, int]], coarse: Sequence[np.ndarray], truth: Truth
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
    """Cut lines into tiles, those at the edges filled up with white."""
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
