"""Whole slides through OpenSlide: how large they are, at which resolutions they are stored, and regions as RGB."""

from __future__ import annotations

import math
import os
import re
import shutil
import stat
import tempfile
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.slides.generic_tiff import VENDOR, check_generic_tiff
from histoblend.data.storage.arrays import stamp

#: What OpenSlide 4 reads.
FORMATS = (
    "Aperio (.svs, .tif), DICOM (.dcm), Hamamatsu (.ndpi, .vms, .vmu), Leica (.scn), MIRAX (.mrxs), Philips (.tiff), "
    "Sakura (.svslide), Trestle (.tif), Ventana (.bif, .tif), Zeiss (.czi) and tiled TIFF, pyramidal or not (.tif)"
)

#: Properties that say how many micrometres a pixel measures.
MPP = ("openslide.mpp-x", "openslide.mpp-y")

#: Properties that say which part of level 0 was scanned, in pixels: left, top, width, height.
BOUNDS = ("openslide.bounds-x", "openslide.bounds-y", "openslide.bounds-width", "openslide.bounds-height")

#: Micrometres that a pixel of a slide can measure; what scanners write lies between 0.1 and 4.
LEAST_MPP, MOST_MPP = 0.02, 50.0
#: Width over height of a pixel beyond which pictures would be visibly squeezed.
MOST_SQUEEZED = 1.1
#: Side of the largest slide, µm: a glass of 26 × 76 mm, or one of twice that size, is far below.
MOST_EXTENT = 400_000.0

#: Bytes of decoded tiles that OpenSlide keeps, for regions whose borders cut through them: those of a dozen regions.
_CACHE = 128_000_000

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"RIFF")


@dataclass(frozen=True)
class Level:
    """One of the resolutions that a slide is stored at.

    Attributes
    ----------
    width, height : int
        Pixels.
    downsample : float
        Level-0 pixels a pixel, along either side.
    """

    width: int
    height: int
    downsample: float


@dataclass(frozen=True)
class Bounds:
    """The part of level 0 that was scanned, in its pixels. QuPath opens this part only and counts from its corner.

    Attributes
    ----------
    x, y : int
        Left upper corner.
    width, height : int
    """

    x: int
    y: int
    width: int
    height: int


class Slide:
    """An open whole slide. Threads may read at the same time.

    Parameters
    ----------
    path : Path
    mpp : float
        Micrometres a pixel of level 0, where the slide does not say or says it wrongly; 0 to believe the slide.

    Attributes
    ----------
    path : Path
    levels : tuple of Level
        From the finest to the coarsest.
    spacing : tuple of float
        Micrometres a pixel of level 0, across and down.
    properties : dict from str to str
        As OpenSlide tells them.
    stamp : str
        Changes when the file does.
    reads : list of tuple
        Every region that was read: level, and left, top, width, height in its pixels.

    Raises
    ------
    InputError
        It is no slide that OpenSlide reads or shows right, it is damaged, or nobody says how large a pixel is.
    """

    def __init__(self, path: Path, *, mpp: float = 0.0) -> None:
        _check_file(path)
        self.path, self.stamp = path, stamp(path, path.name)
        self._lock = threading.Lock()
        self._handle = _open(path)
        self.properties: dict[str, str] = dict(self._handle.properties)
        if self.properties.get("openslide.vendor") == VENDOR:
            check_generic_tiff(path)
        sizes, scales = self._handle.level_dimensions, self._handle.level_downsamples
        self.levels = tuple(Level(width, height, scale) for (width, height), scale in zip(sizes, scales, strict=True))
        self.spacing = given_spacing(path, mpp) if mpp else stored_spacing(path, self.properties)
        self._check_size()
        self.reads: list[tuple[int, int, int, int, int]] = []

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of level 0 in pixels."""
        return self.levels[0].width, self.levels[0].height

    @property
    def bounds(self) -> Bounds | None:
        """The scanned part of level 0; see :func:`stored_bounds`."""
        return stored_bounds(self.properties, self.size)

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height in micrometres."""
        return self.size[0] * self.spacing[0], self.size[1] * self.spacing[1]

    def level_for(self, spacing: float, tolerance: float = 0.0) -> int:
        """Choose the coarsest level that is as fine as a wanted resolution; the finest one where none is.

        Parameters
        ----------
        spacing : float
            Wanted micrometres a pixel.
        tolerance : float
            Share by which a level may be coarser and still count as this fine.
        """
        finest = min(self.spacing)
        fine = [
            number
            for number, level in enumerate(self.levels)
            if finest * level.downsample <= spacing * (1 + tolerance) + 1e-9
        ]
        return max(fine, key=lambda number: self.levels[number].downsample, default=0)

    def read(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """Pixels of a region that lies within a level.

        Parameters
        ----------
        level : int
        left, top, width, height : int
            In pixels of the level.

        Returns
        -------
        ndarray of shape (height, width, 3), dtype uint8
            RGB; what the slide leaves transparent, since nothing was scanned there, lies over white.

        Raises
        ------
        InputError
            The region cannot be decoded. Other regions still can.
        """
        import openslide

        with self._lock:
            handle = self._handle
            self.reads.append((level, left, top, width, height))
        scale = self.levels[level].downsample
        try:
            region = handle.read_region((round(left * scale), round(top * scale)), level, (width, height))
        except (openslide.OpenSlideError, MemoryError, ValueError) as error:
            self._reopen(handle)
            raise InputError(
                f"{self.path}: {width} × {height} px of level {level} at ({left}, {top}) cannot be decoded ({error}). "
                "Get the slide again."
            ) from error
        return over_white(np.asarray(region))

    def _reopen(self, failed: Any) -> None:
        """Open the file again: after an error a handle of OpenSlide refuses everything."""
        with self._lock:
            if self._handle is failed:
                self._handle = _open(self.path)

    def _check_size(self) -> None:
        if not all(level.width > 0 and level.height > 0 and level.downsample >= 1 for level in self.levels):
            raise InputError(f"{self.path}: expected levels of at least one pixel; got {self.levels}. {_AGAIN}")
        if max(self.extent) > MOST_EXTENT:
            raise InputError(
                f"{self.path}: expected at most {MOST_EXTENT / 1000:.0f} mm of slide; got {self.size[0]} × "
                f"{self.size[1]} px of {self.spacing[0]:g} µm, {max(self.extent) / 1000:,.0f} mm. Give MPP=… (--mpp) "
                "where the slide says it wrongly, or get the slide again."
            )


_AGAIN = "Get the slide again."


def over_white(region: np.ndarray) -> np.ndarray:
    """Lay an RGBA picture over white.

    Parameters
    ----------
    region : ndarray of shape (height, width, 4), dtype uint8
        With colours that were not multiplied by their opacity.

    Returns
    -------
    ndarray of shape (height, width, 3), dtype uint8
    """
    colours, opacity = region[..., :3], region[..., 3:]
    if opacity.min(initial=255) == 255:
        return np.ascontiguousarray(colours)
    wide = opacity.astype(np.uint16)
    return ((colours * wide + 255 * (255 - wide) + 127) // 255).astype(np.uint8)


def given_spacing(path: Path, mpp: float) -> tuple[float, float]:
    """Resolution that the user gives, across and down.

    Raises
    ------
    InputError
        No scanner makes it.
    """
    if not LEAST_MPP <= mpp <= MOST_MPP:
        raise InputError(
            f"{path}: MPP (--mpp) must be the micrometres that a pixel measures, {LEAST_MPP} to {MOST_MPP:g}; "
            f"got {mpp}. A scan at 20× has about 0.5, one at 40× about 0.25."
        )
    return mpp, mpp


def stored_spacing(path: Path, properties: Mapping[str, str]) -> tuple[float, float]:
    """Resolution that the slide tells, across and down, in micrometres a pixel.

    Raises
    ------
    InputError
        It tells none, nonsense, or a very different one across and down.
    """
    found = {name: properties[name] for name in MPP if name in properties}
    if len(found) < len(MPP):
        power = properties.get("openslide.objective-power")
        hint = f" (it says that the objective was {power}×)" if power else ""
        raise InputError(
            f"{path}: the slide does not say how large a pixel is{hint}; looked for {' and '.join(MPP)}. "
            "Give MPP=… (--mpp) in µm: a scan at 20× has about 0.5, one at 40× about 0.25."
        )
    across, down = (_number(text) for text in found.values())
    told = ", ".join(f"{name} = {text[:40]}" for name, text in found.items())
    if not all(LEAST_MPP <= value <= MOST_MPP for value in (across, down)):
        raise InputError(
            f"{path}: expected pixels of {LEAST_MPP} to {MOST_MPP:g} µm; got {told}. Give the true size: MPP=… (--mpp)."
        )
    if max(across, down) / min(across, down) > MOST_SQUEEZED:
        raise InputError(
            f"{path}: expected pixels about as wide as high; got {told}. Give the true size: MPP=… (--mpp)."
        )
    return across, down


def stored_bounds(properties: Mapping[str, str], size: tuple[int, int]) -> Bounds | None:
    """The scanned part of level 0, as MIRAX, Leica SCN and some other slides tell it.

    QuPath counts from the corner of this part, and from that of level 0 where no part is told. A position must have
    both numbers. OpenSlide writes all four properties or none; where only the size is missing, the part ends with the
    slide.

    Parameters
    ----------
    properties : mapping from str to str
    size : tuple of int
        Width and height of level 0.

    Returns
    -------
    Bounds or None
        None where the slide tells none, or something that cannot be: numbers that are not whole, a size below 1, or a
        corner outside the slide.
    """
    x, y = (_whole(properties.get(name)) for name in BOUNDS[:2])
    if x is None or y is None or not (0 <= x < size[0] and 0 <= y < size[1]):
        return None
    width, height = (
        _whole(properties[name]) if name in properties else whole - corner
        for name, whole, corner in zip(BOUNDS[2:], size, (x, y), strict=True)
    )
    if width is None or height is None or width < 1 or height < 1:
        return None
    return Bounds(x, y, width, height)


def told_bounds(properties: Mapping[str, str]) -> str:
    """What the slide tells of its bounds, in words for a message; empty where it tells nothing."""
    return ", ".join(f"{name} = {properties[name][:40]}" for name in BOUNDS if name in properties)


def _whole(text: str | None) -> int | None:
    """A whole number of at most nine digits; None for anything else."""
    return int(text) if text is not None and re.fullmatch(r"[+-]?[0-9]{1,9}", text) else None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0


def _check_file(path: Path) -> None:
    """Refuse what would hang or puzzle OpenSlide."""
    try:
        kind = os.stat(path).st_mode
    except OSError as error:
        raise InputError(f"{path}: expected a whole slide; got: {error.strerror}. Give SLIDE=….") from error
    if stat.S_ISDIR(kind):
        raise InputError(
            f"{path}: expected the file of a whole slide; got a folder. Give the .mrxs file beside the folder of a "
            "MIRAX slide, or one .dcm file in that of a DICOM slide."
        )
    if not stat.S_ISREG(kind):
        raise InputError(f"{path}: expected the file of a whole slide; got a pipe or a device. Give SLIDE=….")


def _open(path: Path) -> Any:
    """A handle of OpenSlide, which knows MIRAX slides by the ending ``.mrxs`` in lower case only."""
    if path.suffix.lower() != ".mrxs" or path.suffix == ".mrxs":
        return _open_named(path, path)
    lower = path.with_suffix(".mrxs")
    if lower.exists() and lower.samefile(path):  # on Windows and macOS
        return _open_named(lower, path)
    alias = Path(tempfile.mkdtemp(), f"{path.stem}.mrxs")
    try:
        alias.symlink_to(path.resolve())
        alias.with_suffix("").symlink_to(path.resolve().with_suffix(""))
        handle = _open_named(alias, path)
    except BaseException:
        shutil.rmtree(alias.parent, ignore_errors=True)
        raise
    weakref.finalize(handle, shutil.rmtree, alias.parent, ignore_errors=True)
    return handle


def _open_named(readable: Path, path: Path) -> Any:
    """Open a slide under one name, and speak of it under another."""
    import openslide

    try:
        handle = openslide.OpenSlide(readable)
        handle.set_cache(openslide.OpenSlideCache(_CACHE))
        return handle
    except openslide.OpenSlideUnsupportedFormatError:
        raise InputError(f"{path}: {_unsupported(path)}") from None
    except (openslide.OpenSlideError, OSError, ValueError) as error:
        raise InputError(f"{path}: the slide is damaged ({error}). {_AGAIN}") from error


def _unsupported(path: Path) -> str:
    """Say why OpenSlide does not take a file for a slide."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        return f"cannot be read ({error.strerror})."
    if start.startswith(_PICTURES):
        return "expected a whole slide; got a picture. Patches are for `make predict`."
    if start.startswith(_TIFF):
        return (
            "OpenSlide takes this TIFF for no whole slide: it is cut off or damaged, or holds strips or one flat "
            f"picture where tiles are needed (`vips tiffsave in.tif out.tif --tile --pyramid` makes them). It reads "
            f"{FORMATS}."
        )
    return f"expected a whole slide; OpenSlide knows no format like it. It reads {FORMATS}."
