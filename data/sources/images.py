"""Decode an image file into an 8-bit RGB patch by documented rules, or say why it cannot be used."""

from __future__ import annotations

import logging
import os
import re
import stat
import threading
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from histoblend.data.tiff_tags import BITS, PHOTOMETRIC, WHITE_IS_ZERO, in_planes, tiff_refusal

if TYPE_CHECKING:
    from PIL import Image

#: Formats that Pillow may try, and their file endings.
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")

#: Most pixels of an image that is decoded, 50 MB as RGB. Larger images are refused before memory is allocated.
MAX_PIXELS = 4096 * 4096

#: Side of the smallest patch that the configuration accepts, in pixels.
MIN_SIZE = 32

#: Matches the reason of :func:`read_image` for a wrong size; the groups are the image's width and height.
_OTHER_SIZE = re.compile(r"expected (?:at least )?\d+ × \d+ pixels(?: to crop)?, got (\d+) × (\d+)")

#: Most pages of a TIFF that are counted.
MAX_FRAMES = 100

#: Most passes of a progressive JPEG; real ones have about ten.
MAX_SCANS = 100

#: How an image of another size becomes a patch.
RESIZING = {
    "refuse": "an image of another size is set aside",
    "resize": (
        "the largest centred square is cut out and resized with Pillow's bicubic filter, which averages when shrinking"
    ),
    "crop": "the centre is cut out; a smaller image is set aside",
}

#: How other kinds of pixels become 8-bit RGB.
CONVERSION = (
    "grey is repeated in three channels, palettes are looked up, transparency is shown on white, 16-bit samples keep "
    "their high byte, EXIF orientation is applied; other kinds (CMYK, floating point, animations …) are set aside"
)

#: Number of bytes to read from a PNG or BMP to learn how many bits a sample has.
HEADER_BYTES = 30

# Pillow's switch for libtiff is shared by all threads.
_LIBTIFF = threading.Lock()

#: Pillow's modes that are converted as ``CONVERSION`` describes.
CONVERTED = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "I;16", "I;16B", "I;16L", "I;16N")


def tame_pillow() -> None:
    """Make Pillow refuse images with far too many pixels, instead of warning, and silence its other warnings.

    :func:`read_image` says what is wrong with each file; Pillow's warnings do not name the file.
    """
    from PIL import Image

    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    logger = logging.getLogger("PIL")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def read_image(path: str | Path, out: np.ndarray, *, resize: str = "refuse", convert: bool = True) -> str:
    """Decode one image file into ``out``.

    Parameters
    ----------
    path : str or Path
    out : ndarray of shape (height, width, 3), dtype uint8
        Overwritten; holds arbitrary values if the file could not be used.
    resize : {"refuse", "resize", "crop"}
        What to do with an image of another size; see ``RESIZING``.
    convert : bool
        Accept the kinds of pixels in ``CONVERSION``; otherwise only 8-bit RGB.

    Returns
    -------
    str
        Why the file could not be used; empty on success.
    """
    from PIL import Image, UnidentifiedImageError

    header = b""
    try:
        # Opening a pipe would otherwise wait for a writer forever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return "not a file but a pipe or a device"
            header = file.read(HEADER_BYTES)
            with Image.open(file, formats=FORMATS) as image:
                reason = _refusal(image, file, header, out, resize, convert)
                return reason or _decode(_with_planes(image, file), out, resize)
    except UnidentifiedImageError:
        return _unknown(header)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return f"too many pixels ({error})"
    except OSError as error:
        return f"not readable as an image ({error.strerror or error})"
    except Exception as error:  # damaged or hostile files make Pillow raise many unrelated exceptions
        return f"not readable as an image ({type(error).__name__}: {error})"


def _unknown(header: bytes) -> str:
    """Say what was expected instead of a file that Pillow does not recognise."""
    tiff = header.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))
    kinds = "a damaged TIFF, or one with samples that Pillow cannot read"
    return f"not an image that can be read ({kinds if tiff else ', '.join(FORMATS)})"


def size_remedy(reasons: Iterable[str], *, resizes: bool) -> str:
    """Advice if most unusable files have the same other size; otherwise empty.

    Parameters
    ----------
    reasons : iterable of str
        From :func:`read_image`.
    resizes : bool
        Whether the source supports ``data.resize``.
    """
    reasons = list(reasons)
    sizes = Counter(match.groups() for reason in reasons if (match := _OTHER_SIZE.fullmatch(reason)))
    if not sizes or 2 * sizes.total() < len(reasons):
        return ""
    (width, height), count = sizes.most_common(1)[0]
    options = []
    if width == height and int(width) >= MIN_SIZE and 2 * count >= len(reasons):
        options.append(f"give --set data.size={width} (make … SET=data.size={width}) for patches of that size")
    if resizes:
        options.append("give --set data.resize=resize to scale all images")
    elif not options:
        options.append("resize the images, or use CONFIG=folder (--config folder), which supports data.resize=resize")
    sentence = ", or ".join(options)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _refusal(image: Image.Image, file: BinaryIO, header: bytes, out: np.ndarray, resize: str, convert: bool) -> str:
    """Say why an opened image cannot be used, before its pixels are decoded; empty if it can."""
    width, height = image.size
    expected = (out.shape[1], out.shape[0])
    if width * height > MAX_PIXELS:
        return f"expected at most {MAX_PIXELS} pixels, got {width} × {height}"
    if resize == "refuse" and image.size != expected:
        return f"expected {expected[0]} × {expected[1]} pixels, got {width} × {height}"
    if resize == "crop" and (width < expected[0] or height < expected[1]):
        return f"expected at least {expected[0]} × {expected[1]} pixels to crop, got {width} × {height}"
    frames = _frames(image)
    if frames != 1:
        more = " or more" if frames == MAX_FRAMES else ""
        return f"expected one image, got a file of {frames}{more} (an animation or several pages)"
    if _scans(image) > MAX_SCANS:
        return f"expected at most {MAX_SCANS} passes in a progressive JPEG, got more"
    tags = _tags(image)
    reason = _wrong_kind(image, _bits(image, header), convert)
    return reason or ("" if tags is None else tiff_refusal(tags, file))


def _wrong_kind(image: Image.Image, bits: int, convert: bool) -> str:
    """Say why a kind of pixels cannot be used; ``bits`` is per sample in the file, not in Pillow's mode."""
    kind = image.mode
    if bits != 8 and kind.startswith(("RGB", "LA")):
        kind += f", {bits} bits"
    # In a palette each entry has a transparency. Otherwise one value is transparent, with the file's bits per sample.
    # Pillow compares it with samples that are already converted to 8 bits, which is wrong.
    has_value = "transparency" in image.info and image.mode != "P"
    if has_value:
        kind += f" with a transparent value of {bits} bits"
    if not convert and kind != "RGB":
        return f"expected an RGB image, got mode {kind}"
    if image.mode not in CONVERTED or (has_value and bits not in (1, 8)):
        return f"expected RGB, grey, palette or transparency, got mode {kind}"
    return ""


def _frames(image: Image.Image) -> int:
    """Number of images in a file; for a TIFF counted up to ``MAX_FRAMES``.

    Pillow searches for a TIFF's pages one by one and compares each with all earlier ones. It would take hours for a
    small file of many empty directories.
    """
    if image.format != "TIFF":
        return int(getattr(image, "n_frames", 1))
    count = 1
    while count < MAX_FRAMES:
        try:
            image.seek(count)
        except EOFError:
            break
        count += 1
    image.seek(0)
    return count


def _scans(image: Image.Image) -> int:
    """Number of passes in a progressive JPEG, counted only to just above ``MAX_SCANS``.

    A pass of 60 bytes takes 10 ms to decode.
    """
    file: Any = getattr(image, "fp", None)
    if image.format != "JPEG" or not image.info.get("progressive") or file is None:
        return 1
    position, count, last = file.tell(), 0, b""
    file.seek(0)
    while count <= MAX_SCANS and (piece := file.read(2**20)):
        count += (last + piece).count(b"\xff\xda")
        last = piece[-1:]
    file.seek(position)
    return count


def _tags(image: Image.Image) -> Any:
    """Tags of a TIFF; None for other formats."""
    return getattr(image, "tag_v2", None) if image.format == "TIFF" else None


def _bits(image: Image.Image, header: bytes) -> int:
    """Bits per sample, as stated in the file's header; 8 for formats that have no others."""
    tags = _tags(image)
    if tags is not None:
        return int(tags.get(BITS, (1,))[0])
    if image.format == "PNG":
        return header[24]
    # A BMP with 16 bits per pixel has five or six bits per colour.
    return 5 if image.format == "BMP" and header[28:30] == b"\x10\0" else 8


def _with_planes(image: Image.Image, file: BinaryIO) -> Image.Image:
    """Reopen a TIFF with separate planes for libtiff, which follows the tags.

    Pillow uses its own decoder for uncompressed files and reads planes as 8-bit samples with black at zero.
    """
    from PIL import Image, TiffImagePlugin

    tags = _tags(image)
    if tags is None or not in_planes(tags):
        return image
    with _LIBTIFF:
        before, TiffImagePlugin.READ_LIBTIFF = TiffImagePlugin.READ_LIBTIFF, True
        try:
            return Image.open(file, formats=("TIFF",))
        finally:
            TiffImagePlugin.READ_LIBTIFF = before


def _decode(image: Image.Image, out: np.ndarray, resize: str) -> str:
    from PIL import Image, ImageOps

    tags = _tags(image)
    inverted = tags is not None and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    ImageOps.exif_transpose(image, in_place=True)
    pixels = _as_rgb(image, inverted)
    height, width = out.shape[:2]
    if resize == "resize" and pixels.size != (width, height):
        pixels = ImageOps.fit(pixels, (width, height), Image.Resampling.BICUBIC)
    elif resize == "crop":
        left, top = (pixels.width - width) // 2, (pixels.height - height) // 2
        pixels = pixels.crop((left, top, left + width, top + height))
    if pixels.size != (width, height):
        return f"expected {width} × {height} pixels, got {pixels.width} × {pixels.height}"
    out[:] = np.asarray(pixels)
    return ""


def _as_rgb(image: Image.Image, inverted: bool) -> Image.Image:
    """Convert as ``CONVERSION`` describes; ``inverted`` if zero is white, which Pillow handles only up to 8 bits."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return Image.fromarray(255 - grey if inverted else grey).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
