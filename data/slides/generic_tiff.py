"""Tiled TIFFs of no vendor: refused where OpenSlide does not follow their tags and would show wrong pixels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.tiff_tags import (
    BITS,
    COEFFICIENTS,
    COMPRESSION,
    EXTRA,
    JPEG,
    ORIENTATION,
    PHOTOMETRIC,
    PREDICTOR,
    REFERENCE,
    RGB,
    TILES,
    pixel_refusal,
)

#: What OpenSlide calls the maker of a tiled TIFF that no scanner's maker has a format for.
VENDOR = "generic-tiff"

#: Values of tag 338 for opacity: colours multiplied by it, and colours as they are.
_OPACITY = (1, 2)
_REDUCED = 1


def check_generic_tiff(path: Path) -> None:
    """Check that the tags of every level say what OpenSlide will show.

    Raises
    ------
    InputError
        They do not: the slide is turned or mirrored, or its samples are of a kind that OpenSlide takes for another.
    """
    import tifffile

    logger = logging.getLogger("tifffile")  # its remarks on damaged tags name no file
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    try:
        with path.open("rb") as file, tifffile.TiffFile(file) as tiff:
            reason = next(filter(None, (_refusal(tags, file) for tags in _levels(tiff))), "")
    except Exception as error:  # damaged tags make tifffile fail in many ways, with no common class
        words = str(error).partition("\n")[0]
        raise InputError(f"{path}: the TIFF's tags cannot be read ({words}). Get the slide again.") from error
    if reason:
        raise InputError(
            f"{path}: OpenSlide would show wrong pixels of this TIFF: {reason}. Save it again upright, as a tiled TIFF "
            "of 8-bit RGB."
        )


def _levels(tiff: Any) -> Iterator[dict[int, Any]]:
    """Tags of the pages that OpenSlide takes for levels."""
    for number, page in enumerate(tiff.pages):
        if page.is_tiled and (number == 0 or page.subfiletype & _REDUCED):
            yield {tag.code: _plain(tag.value) for tag in page.tags}


def _plain(value: Any) -> Any:
    """A tag's value as Pillow gives it: plain numbers, text as bytes, and tuples of them."""
    if isinstance(value, np.ndarray):
        return tuple(value.ravel().tolist())
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, int):
        return int(value)
    return value.encode() if isinstance(value, str) else value


def _refusal(tags: Mapping[int, Any], file: BinaryIO) -> str:
    """Say why OpenSlide would show other pixels than the tags tell; empty where it would not."""
    orientation = tags.get(ORIENTATION, 1)
    if orientation not in (0, 1):  # 0 is no orientation; some programs write it
        return f"expected orientation 1 (upright) in tag 274, got {orientation}"
    # Every decoder of JPEG, OpenSlide's too, has its own range and coefficients, and undoes no predictor.
    passed_over = {COEFFICIENTS, REFERENCE} | ({PREDICTOR} if tags.get(COMPRESSION) == JPEG else set())
    checked = {tag: value for tag, value in tags.items() if tag not in passed_over}
    # Tiles where nothing was scanned may have no data.
    checked[TILES] = next(filter(None, _several(tags.get(TILES, ()))), 0)
    return pixel_refusal(checked, file) or _wrong_in_openslide(checked)


def _wrong_in_openslide(tags: Mapping[int, Any]) -> str:
    """Kinds that are read right from patches, but that OpenSlide takes for others."""
    extra, photometric = _several(tags.get(EXTRA, ())), tags[PHOTOMETRIC]
    if extra and not (photometric == RGB and len(extra) == 1 and extra[0] in _OPACITY):
        return f"expected no extra sample, or opacity beside RGB (tag 338), got {', '.join(map(str, extra))}"
    if photometric != RGB and 16 in _several(tags.get(BITS, 1)):
        return "expected 16 bits per sample with RGB only, got them with grey"
    return ""


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
