"""Reject generic tiled TIFFs whose tags OpenSlide does not follow, because it would return wrong pixels."""

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

#: OpenSlide's vendor name for a tiled TIFF in no scanner vendor's format.
VENDOR = "generic-tiff"

#: Values of tag 338 for opacity: with premultiplied colours, and with plain colours.
_OPACITY = (1, 2)
_REDUCED = 1


def check_generic_tiff(path: Path) -> None:
    """Check that OpenSlide interprets the tags of every level correctly.

    Raises
    ------
    InputError
        If the slide is rotated or mirrored, or OpenSlide would misread its samples.
    """
    import tifffile

    logger = logging.getLogger("tifffile")  # its warnings about damaged tags do not name the file
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    try:
        with path.open("rb") as file, tifffile.TiffFile(file) as tiff:
            reason = next(filter(None, (_refusal(tags, file) for tags in _levels(tiff))), "")
    except Exception as error:  # damaged tags make tifffile fail in many ways, with no common class
        message = str(error).partition("\n")[0]
        raise InputError(f"{path}: the TIFF tags cannot be read ({message}). Download the slide again.") from error
    if reason:
        raise InputError(
            f"{path}: OpenSlide would read wrong pixels from this TIFF: {reason}. Save it again upright, as a tiled "
            "TIFF of 8-bit RGB."
        )


def _levels(tiff: Any) -> Iterator[dict[int, Any]]:
    """Yield the tags of the pages that OpenSlide uses as levels."""
    for number, page in enumerate(tiff.pages):
        if page.is_tiled and (number == 0 or page.subfiletype & _REDUCED):
            yield {tag.code: _plain(tag.value) for tag in page.tags}


def _plain(value: Any) -> Any:
    """Return a tag's value in Pillow's form: plain numbers, text as bytes, and tuples of these."""
    if isinstance(value, np.ndarray):
        return tuple(value.ravel().tolist())
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    if isinstance(value, int):
        return int(value)
    return value.encode() if isinstance(value, str) else value


def _refusal(tags: Mapping[int, Any], file: BinaryIO) -> str:
    """Return why OpenSlide would read other pixels than the tags describe; empty if it would not."""
    orientation = tags.get(ORIENTATION, 1)
    if orientation not in (0, 1):  # 0 is not a valid orientation, but some programs write it
        return f"expected orientation 1 (upright) in tag 274, got {orientation}"
    # All JPEG decoders, including OpenSlide's, use their own range and coefficients and ignore the predictor.
    ignored = {COEFFICIENTS, REFERENCE} | ({PREDICTOR} if tags.get(COMPRESSION) == JPEG else set())
    checked = {tag: value for tag, value in tags.items() if tag not in ignored}
    # Tiles outside the scanned area may have no data.
    checked[TILES] = next(filter(None, _as_tuple(tags.get(TILES, ()))), 0)
    return pixel_refusal(checked, file) or _openslide_refusal(checked)


def _openslide_refusal(tags: Mapping[int, Any]) -> str:
    """Return why OpenSlide misreads a kind of TIFF that is read correctly as a patch; empty if it does not."""
    extra, photometric = _as_tuple(tags.get(EXTRA, ())), tags[PHOTOMETRIC]
    if extra and not (photometric == RGB and len(extra) == 1 and extra[0] in _OPACITY):
        return f"expected no extra sample, or opacity with RGB (tag 338), got {', '.join(map(str, extra))}"
    if photometric != RGB and 16 in _as_tuple(tags.get(BITS, 1)):
        return "expected 16 bits per sample only with RGB, got 16-bit grey"
    return ""


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
