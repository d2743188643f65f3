"""Read whole slides with OpenSlide: sizes, resolutions and regions as RGB."""

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

#: Formats that OpenSlide 4 reads.
FORMATS = (
    "Aperio (.svs, .tif), DICOM (.dcm), Hamamatsu (.ndpi, .vms, .vmu), Leica (.scn), MIRAX (.mrxs), Philips (.tiff), "
    "Sakura (.svslide), Trestle (.tif), Ventana (.bif, .tif), Zeiss (.czi) and tiled TIFF, pyramidal or not (.tif)"
)

#: Properties with the pixel size in micrometres.
MPP = ("openslide.mpp-x", "openslide.mpp-y")

#: Properties with the scanned part of level 0, in pixels: left, top, width, height.
BOUNDS = ("openslide.bounds-x", "openslide.bounds-y", "openslide.bounds-width", "openslide.bounds-height")

#: Accepted pixel sizes in micrometres. Scanners write values between 0.1 and 4.
MIN_MPP, MAX_MPP = 0.02, 50.0
#: Maximum ratio of the sides of a pixel; beyond it, images would be visibly distorted.
MAX_ASPECT = 1.1
#: Maximum side of a slide in µm, far above a glass slide of 26 × 76 mm or one of twice that size.
MAX_EXTENT = 400_000.0

#: Size in bytes of OpenSlide's cache of decoded tiles, for tiles shared by neighbouring regions: about 12 regions.
_CACHE = 128_000_000

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"RIFF")


@dataclass(frozen=True)
class Level:
    """One resolution level of a slide.

    Attributes
    ----------
    width, height : int
        Size in pixels.
    downsample : float
        Level-0 pixels per pixel, along both axes.
    """

    width: int
    height: int
    downsample: float


@dataclass(frozen=True)
class Bounds:
    """The scanned part of level 0, in pixels. QuPath opens only this part and counts from its corner.

    Attributes
    ----------
    x, y : int
        Upper left corner.
    width, height : int
        Size.
    """

    x: int
    y: int
    width: int
    height: int


class Slide:
    """An open whole slide. Reading is thread-safe.

    Parameters
    ----------
    path : Path
    mpp : float
        Micrometres per level-0 pixel, if the slide's own value is missing or wrong; 0 uses the slide's own value.

    Attributes
    ----------
    path : Path
    levels : tuple of Level
        From the finest to the coarsest.
    spacing : tuple of float
        Micrometres per level-0 pixel, horizontally and vertically.
    properties : dict from str to str
        Properties reported by OpenSlide.
    stamp : str
        Fingerprint that changes when the file changes.
    reads : list of tuple
        All regions read so far: level, and left, top, width, height in pixels of that level.

    Raises
    ------
    InputError
        If OpenSlide cannot read the file correctly, the file is damaged, or the pixel size is unknown.
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
        """Return the coarsest level that has at least the requested resolution, or else the finest level.

        Parameters
        ----------
        spacing : float
            Requested micrometres per pixel.
        tolerance : float
            Fraction by which a level may be coarser than requested.
        """
        finest = min(self.spacing)
        fine = [
            number
            for number, level in enumerate(self.levels)
            if finest * level.downsample <= spacing * (1 + tolerance) + 1e-9
        ]
        return max(fine, key=lambda number: self.levels[number].downsample, default=0)

    def read(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        """Read a region of a level.

        Parameters
        ----------
        level : int
        left, top, width, height : int
            Region in pixels of the level; it must be inside the level.

        Returns
        -------
        ndarray of shape (height, width, 3), dtype uint8
            RGB. Transparent areas, which were not scanned, are white.

        Raises
        ------
        InputError
            If the region cannot be decoded. Other regions can still be read.
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
                "Download the slide again."
            ) from error
        return over_white(np.asarray(region))

    def _reopen(self, failed: Any) -> None:
        """Reopen the file: after an error, an OpenSlide handle rejects every call."""
        with self._lock:
            if self._handle is failed:
                self._handle = _open(self.path)

    def _check_size(self) -> None:
        if not all(level.width > 0 and level.height > 0 and level.downsample >= 1 for level in self.levels):
            raise InputError(f"{self.path}: expected levels of at least one pixel; got {self.levels}. {_AGAIN}")
        if max(self.extent) > MAX_EXTENT:
            raise InputError(
                f"{self.path}: expected a slide of at most {MAX_EXTENT / 1000:.0f} mm; got {self.size[0]} × "
                f"{self.size[1]} px of {self.spacing[0]:g} µm, {max(self.extent) / 1000:,.0f} mm. Give the true pixel "
                "size: MPP=… (--mpp), or download the slide again."
            )


_AGAIN = "Download the slide again."


def over_white(region: np.ndarray) -> np.ndarray:
    """Blend an RGBA image over white.

    Parameters
    ----------
    region : ndarray of shape (height, width, 4), dtype uint8
        Colours are not premultiplied.

    Returns
    -------
    ndarray of shape (height, width, 3), dtype uint8
    """
    colours, opacity = region[..., :3], region[..., 3:]
    if opacity.min(initial=255) == 255:
        return np.ascontiguousarray(colours)
    alpha = opacity.astype(np.uint16)
    return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def given_spacing(path: Path, mpp: float) -> tuple[float, float]:
    """Return the pixel size given by the user, horizontally and vertically.

    Raises
    ------
    InputError
        If the value is outside the range of scanners.
    """
    if not MIN_MPP <= mpp <= MAX_MPP:
        raise InputError(
            f"{path}: MPP (--mpp) must be the pixel size in µm, {MIN_MPP} to {MAX_MPP:g}; "
            f"got {mpp}. A scan at 20× has about 0.5, one at 40× about 0.25."
        )
    return mpp, mpp


def stored_spacing(path: Path, properties: Mapping[str, str]) -> tuple[float, float]:
    """Return the pixel size that the slide states, horizontally and vertically, in micrometres.

    Raises
    ------
    InputError
        If it is missing, invalid, or very different horizontally and vertically.
    """
    values = {name: properties[name] for name in MPP if name in properties}
    if len(values) < len(MPP):
        power = properties.get("openslide.objective-power")
        hint = f" (its objective was {power}×)" if power else ""
        raise InputError(
            f"{path}: the slide does not state its pixel size{hint}; expected {' and '.join(MPP)}. "
            "Give MPP=… (--mpp) in µm: a scan at 20× has about 0.5, one at 40× about 0.25."
        )
    across, down = (_parse_number(text) for text in values.values())
    stated = ", ".join(f"{name} = {text[:40]}" for name, text in values.items())
    if not all(MIN_MPP <= value <= MAX_MPP for value in (across, down)):
        raise InputError(
            f"{path}: expected pixels of {MIN_MPP} to {MAX_MPP:g} µm; got {stated}. Give the true size: MPP=… (--mpp)."
        )
    if max(across, down) / min(across, down) > MAX_ASPECT:
        raise InputError(f"{path}: expected nearly square pixels; got {stated}. Give the true size: MPP=… (--mpp).")
    return across, down


def stored_bounds(properties: Mapping[str, str], size: tuple[int, int]) -> Bounds | None:
    """Return the scanned part of level 0, as stated by MIRAX, Leica SCN and some other slides.

    QuPath counts from the corner of this part, or from that of level 0 if no part is stated. Both coordinates of the
    corner are required. OpenSlide writes all four properties or none. If only the size is missing, the part extends to
    the edge of the slide.

    Parameters
    ----------
    properties : mapping from str to str
    size : tuple of int
        Width and height of level 0.

    Returns
    -------
    Bounds or None
        None if the slide states no bounds or impossible ones: numbers that are not integers, a size below 1, or a
        corner outside the slide.
    """
    x, y = (_parse_integer(properties.get(name)) for name in BOUNDS[:2])
    if x is None or y is None or not (0 <= x < size[0] and 0 <= y < size[1]):
        return None
    width, height = (
        _parse_integer(properties[name]) if name in properties else length - corner
        for name, length, corner in zip(BOUNDS[2:], size, (x, y), strict=True)
    )
    if width is None or height is None or width < 1 or height < 1:
        return None
    return Bounds(x, y, width, height)


def stated_bounds(properties: Mapping[str, str]) -> str:
    """Return the stated bounds as text for a message; empty if the slide states none."""
    return ", ".join(f"{name} = {properties[name][:40]}" for name in BOUNDS if name in properties)


def _parse_integer(text: str | None) -> int | None:
    """Return an integer of at most nine digits; None for any other text."""
    return int(text) if text is not None and re.fullmatch(r"[+-]?[0-9]{1,9}", text) else None


def _parse_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0


def _check_file(path: Path) -> None:
    """Reject paths that OpenSlide would hang on or report badly."""
    try:
        kind = os.stat(path).st_mode
    except OSError as error:
        raise InputError(f"{path}: expected a whole slide; got: {error.strerror}. Give SLIDE=….") from error
    if stat.S_ISDIR(kind):
        raise InputError(
            f"{path}: expected the file of a whole slide; got a folder. For MIRAX, give the .mrxs file next to the "
            "folder; for DICOM, give one .dcm file in the folder."
        )
    if not stat.S_ISREG(kind):
        raise InputError(f"{path}: expected the file of a whole slide; got a pipe or a device. Give SLIDE=….")


def _open(path: Path) -> Any:
    """Open a slide. OpenSlide recognises MIRAX slides only by a lower-case ``.mrxs`` extension."""
    if path.suffix.lower() != ".mrxs" or path.suffix == ".mrxs":
        return _open_named(path, path)
    lower = path.with_suffix(".mrxs")
    if lower.exists() and lower.samefile(path):  # on Windows and macOS
        return _open_named(lower, path)
    link = Path(tempfile.mkdtemp(), f"{path.stem}.mrxs")
    try:
        link.symlink_to(path.resolve())
        link.with_suffix("").symlink_to(path.resolve().with_suffix(""))
        handle = _open_named(link, path)
    except BaseException:
        shutil.rmtree(link.parent, ignore_errors=True)
        raise
    weakref.finalize(handle, shutil.rmtree, link.parent, ignore_errors=True)
    return handle


def _open_named(readable: Path, path: Path) -> Any:
    """Open the file at ``readable``, and name ``path`` in messages."""
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
    """Return why OpenSlide does not recognise a file as a slide."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        return f"cannot be read ({error.strerror})."
    if start.startswith(_IMAGES):
        return "expected a whole slide; got an image. For patches, use `make predict`."
    if start.startswith(_TIFF):
        return (
            "OpenSlide does not recognise this TIFF as a whole slide: it is truncated or damaged, or it is not tiled "
            f"(`vips tiffsave in.tif out.tif --tile --pyramid` makes a tiled one). OpenSlide reads {FORMATS}."
        )
    return f"expected a whole slide; OpenSlide does not recognise the format. It reads {FORMATS}."
