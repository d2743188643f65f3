"""TIFF tags that describe pixels, and the kinds of TIFF that are refused because Pillow would show them wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, BinaryIO

WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANES = 256, 257, 258, 259, 262, 277, 284
STRIPS, ROWS, STRIP_BYTES, TILE_WIDTH, TILE_LENGTH, TILES, TILE_BYTES = 273, 278, 279, 322, 323, 324, 325
ORIENTATION, PREDICTOR, COLOURS, EXTRA, FORM = 274, 317, 320, 338, 339
COEFFICIENTS, REFERENCE, XMP, DEPTH = 529, 532, 700, 32997

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6

#: Number of samples per pixel, without extra ones, and the bits that a sample may have.
KINDS = {
    WHITE_IS_ZERO: (1, (1, 2, 4, 8, 16)),
    BLACK_IS_ZERO: (1, (1, 2, 4, 8, 16)),
    RGB: (3, (8, 16)),
    PALETTE: (1, (1, 2, 4, 8)),
    YCBCR: (3, (8,)),
}
NAMES = {5: "CMYK", 8: "CIELab", 9: "ICCLab", 32803: "a colour filter array", 32844: "LogL", 32845: "LogLuv"}

UNCOMPRESSED, JPEG = 1, 7
COMPRESSIONS = {
    UNCOMPRESSED: "none", 2: "CCITT RLE", 3: "CCITT group 3", 4: "CCITT group 4", 5: "LZW", JPEG: "JPEG", 8: "deflate",
    32773: "PackBits", 32946: "deflate", 34925: "LZMA", 50000: "Zstandard",
}  # fmt: skip
#: Compressions that may be combined with a predictor; with others, readers disagree on whether it applies.
PREDICTED = (5, 8, 32946, 34925, 50000)

#: Conversion of YCbCr to RGB in every JPEG: weights of red, green and blue, and the values of black and white.
LUMA = (0.299, 0.587, 0.114)
FULL_RANGE = (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)

#: Number of bytes at the start of a JPEG stream that are searched for markers.
JPEG_HEAD = 4096


def tiff_refusal(tags: Mapping[int, Any], file: BinaryIO) -> str:
    """Say why Pillow might not show the pixels as the tags describe them.

    Parameters
    ----------
    tags : mapping from int to int or tuple
        Tags of the only directory, as Pillow reads them.
    file : file
        The whole file; its position does not change.

    Returns
    -------
    str
        Empty if the pixels can be trusted.

    References
    ----------
    Adobe (1992), TIFF Revision 6.0.
    """
    compression = _first(tags, COMPRESSION, UNCOMPRESSED)
    if compression not in COMPRESSIONS:
        return f"expected a TIFF compressed by {', '.join(dict.fromkeys(COMPRESSIONS.values()))}, got {compression}"
    return pixel_refusal(tags, file) or _missing_data(tags)


def pixel_refusal(tags: Mapping[int, Any], file: BinaryIO) -> str:
    """Say why no reader can be trusted to show the pixels as described, not even one that can decompress them.

    Parameters
    ----------
    tags : mapping from int to int or tuple
    file : file
        The whole file; its position does not change.

    Returns
    -------
    str
        Empty if the pixels can be trusted.
    """
    photometric, compression = _first(tags, PHOTOMETRIC, None), _first(tags, COMPRESSION, UNCOMPRESSED)
    if photometric not in KINDS:
        got = "none" if photometric is None else NAMES.get(photometric, photometric)
        return f"expected grey, RGB, palette or YCbCr as photometric interpretation, got {got}"
    predictor = _first(tags, PREDICTOR, 1)
    if predictor not in (1, 2) or (predictor == 2 and compression not in PREDICTED):
        name = COMPRESSIONS.get(compression, compression)
        return f"expected no predictor or a horizontal one, got {predictor} with {name}"
    if set(_values(tags, FORM, 1)) != {1}:
        return f"expected samples that are unsigned integers, got sample format {_values(tags, FORM, 1)}"
    if _first(tags, DEPTH, 1) != 1:
        return f"expected a two-dimensional image, got one of depth {tags[DEPTH]}"
    if ORIENTATION not in tags and re.search(rb'tiff:Orientation(="|>)[2-8]', _first(tags, XMP, b"")):
        return "expected the orientation in tag 274, got it only in the XMP of tag 700"
    return _wrong_samples(tags, photometric) or _wrong_colours(tags, photometric, file)


def in_planes(tags: Mapping[int, Any]) -> bool:
    """Whether each sample is stored in a separate plane."""
    return _first(tags, PLANES, 1) == 2


def _wrong_samples(tags: Mapping[int, Any], photometric: int) -> str:
    basic, depths = KINDS[photometric]
    samples, extra, bits = _first(tags, SAMPLES, 1), _values(tags, EXTRA), _values(tags, BITS, 1)
    if samples != basic + len(extra):
        return (
            f"expected {basic} samples per pixel and a description of each extra one (tag 338), got {samples} samples "
            f"and {len(extra)} descriptions"
        )
    if len(set(bits)) != 1 or bits[0] not in depths:
        return f"expected {' or '.join(map(str, depths))} bits per sample, got {', '.join(map(str, bits))}"
    planes = _first(tags, PLANES, 1)
    if planes not in (1, 2):
        return f"expected a planar configuration of 1 or 2, got {planes}"
    if planes == 2 and basic == 1 and any(extra):
        return "expected interleaved samples, got transparency in a separate plane beside a single sample"
    return ""


def _wrong_colours(tags: Mapping[int, Any], photometric: int, file: BinaryIO) -> str:
    compression = _first(tags, COMPRESSION, UNCOMPRESSED)
    if photometric == PALETTE:
        colours, entries = _values(tags, COLOURS), 3 * 2 ** _first(tags, BITS, 1)
        if len(colours) != entries:
            return f"expected a palette of {entries} values, got {len(colours)}"
        if 0 < max(colours) < 256:
            return "expected a palette of 16-bit values, got only values below 256"
    if photometric == YCBCR:
        if compression != JPEG or in_planes(tags):
            return "expected YCbCr only with JPEG compression and interleaved samples"
        conversion = _values(tags, COEFFICIENTS, LUMA), _values(tags, REFERENCE, FULL_RANGE)
        if not all(map(_close, conversion, (LUMA, FULL_RANGE))):
            return "expected YCbCr with JPEG's range and coefficients, got others (tags 529 and 532)"
    if compression == JPEG and photometric in (RGB, YCBCR) and not in_planes(tags):
        in_stream = _jpeg_colours(file, _first(tags, STRIPS, None) or _first(tags, TILES, 0))
        if in_stream not in (None, photometric):
            tag_name, stream_name = ("RGB", "YCbCr") if photometric == RGB else ("YCbCr", "RGB")
            return f"expected tags and JPEG stream to agree, got {tag_name} and {stream_name}"
    return ""


def _close(values: tuple[Any, ...], expected: tuple[float, ...]) -> bool:
    return len(values) == len(expected) and all(abs(a - b) < 0.01 for a, b in zip(values, expected, strict=True))


def _jpeg_colours(file: BinaryIO, offset: int) -> int | None:
    """Return RGB or YCbCr, as the markers of a JPEG stream say; None without such a marker."""
    position = file.tell()
    file.seek(offset)
    head = file.read(JPEG_HEAD).partition(b"\xff\xda")[0]
    file.seek(position)
    adobe = head.find(b"\xff\xee\x00\x0eAdobe")
    if adobe >= 0:
        return RGB if head[adobe + 15 : adobe + 16] == b"\0" else YCBCR
    return YCBCR if head.startswith(b"\xff\xd8\xff\xe0") and head[6:11] == b"JFIF\0" else None


def _missing_data(tags: Mapping[int, Any]) -> str:
    """Refuse strips or tiles without data, for which Pillow shows nothing or the file's header."""
    width, length = _first(tags, WIDTH, 0), _first(tags, LENGTH, 0)
    tiled = STRIPS not in tags
    across = _first(tags, TILE_WIDTH, 0) if tiled else width
    down = _first(tags, TILE_LENGTH, 0) if tiled else _first(tags, ROWS, length)
    if not (across and down):
        return f"expected strips or tiles of at least one pixel, got {across} × {down}"
    parts = -(-width // across) * -(-length // down) * (_first(tags, SAMPLES, 1) if in_planes(tags) else 1)
    offsets, counts = _values(tags, TILES if tiled else STRIPS), _values(tags, TILE_BYTES if tiled else STRIP_BYTES)
    if len(offsets) < parts or 0 in offsets[:parts] or 0 in counts[:parts]:
        stored = min(sum(map(bool, offsets)), sum(map(bool, counts)))
        return f"expected {parts} strips or tiles with data, got {stored}"
    return ""


def _values(tags: Mapping[int, Any], tag: int, default: Any = ()) -> tuple[Any, ...]:
    if tag not in tags:  # ten times faster than catching the KeyError of Pillow's mapping
        return default if isinstance(default, tuple) else (default,)
    value = tags[tag]
    return value if isinstance(value, tuple) else (value,)


def _first(tags: Mapping[int, Any], tag: int, default: Any) -> Any:
    if tag not in tags:
        return default
    value = tags[tag]
    if isinstance(value, tuple):
        return value[0] if value else default
    return value
