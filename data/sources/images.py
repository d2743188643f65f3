"""Any image file into an 8-bit RGB patch by stated rules, or the reason why not."""

from __future__ import annotations

import logging
import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

#: Formats that Pillow may try, and what their files are called.
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp")

#: Pixels of the largest image that is decoded: 50 MB as RGB. Larger ones are refused before anything is allocated.
MAX_PIXELS = 4096 * 4096

#: Side of the smallest patch that a configuration takes, in pixels.
LEAST_SIZE = 32

#: A reason of :func:`read_image`: the image's own width and height.
_OTHER_SIZE = re.compile(r"expected (?:at least )?\d+ × \d+ pixels(?: to cut the patch from)?, got (\d+) × (\d+)")

#: Pages of a TIFF that are counted.
MOST_FRAMES = 100

#: Passes over a progressive JPEG; real ones have ten or so.
MOST_SCANS = 100

#: How an image of another size becomes a patch.
RESIZING = {
    "refuse": "an image of another size is set aside",
    "resize": (
        "the largest centred square is cut out and resized with Pillow's bicubic filter, which averages on the way down"
    ),
    "crop": "the centre is cut out; a smaller image is set aside",
}

#: How other kinds of pixels become 8-bit RGB.
CONVERSION = (
    "grey is repeated in three channels, a palette is looked up, transparency lies over white, 16-bit samples keep "
    "their high byte, EXIF orientation is applied; other kinds (CMYK, floating point, animations …) are set aside"
)

#: Pillow's modes that ``CONVERSION`` speaks of.
CONVERTED = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "I;16", "I;16B", "I;16L", "I;16N")


def tame_pillow() -> None:
    """Let Pillow refuse an image of far too many pixels, where it would only warn, and keep its other remarks back.

    :func:`read_image` says of each file what is wrong with it; Pillow's remarks name no file.
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
        Overwritten; arbitrary where the file could not be used.
    resize : {"refuse", "resize", "crop"}
        What to do with an image of another size; see ``RESIZING``.
    convert : bool
        Take the kinds of pixels in ``CONVERSION``; otherwise 8-bit RGB only.

    Returns
    -------
    str
        Why the file could not be used; empty when it could.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        # A pipe would make the opening wait for a writer that never comes.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return "not a file but a pipe or a device"
            with Image.open(file, formats=FORMATS) as image:
                return _refusal(image, out, resize, convert) or _decode(image, out, resize)
    except UnidentifiedImageError:
        return f"not an image that can be read ({', '.join(FORMATS)})"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        return f"too many pixels ({error})"
    except OSError as error:
        return f"not readable as an image ({error.strerror or error})"
    except Exception as error:  # a damaged or hostile file makes Pillow fail in many ways, with no common class
        return f"not readable as an image ({type(error).__name__}: {error})"


def size_remedy(reasons: Iterable[str], *, resizes: bool) -> str:
    """What to do where most files that could not be used have one other size; empty elsewhere.

    Parameters
    ----------
    reasons : iterable of str
        From :func:`read_image`.
    resizes : bool
        Whether the source takes ``data.resize``.
    """
    reasons = list(reasons)
    sizes = Counter(match.groups() for reason in reasons if (match := _OTHER_SIZE.fullmatch(reason)))
    if not sizes or 2 * sizes.total() < len(reasons):
        return ""
    (width, height), count = sizes.most_common(1)[0]
    ways = []
    if width == height and int(width) >= LEAST_SIZE and 2 * count >= len(reasons):
        ways.append(f"give --set data.size={width} (make … SET=data.size={width}) for patches of that size")
    if resizes:
        ways.append("give --set data.resize=resize to scale all images")
    elif not ways:
        ways.append("resize the images, or use CONFIG=folder (--config folder), which takes data.resize=resize")
    sentence = ", or ".join(ways)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _refusal(image: Image.Image, out: np.ndarray, resize: str, convert: bool) -> str:
    """Say what is wrong with an opened image, before its pixels are decoded."""
    width, height = image.size
    expected = (out.shape[1], out.shape[0])
    if width * height > MAX_PIXELS:
        return f"expected at most {MAX_PIXELS} pixels, got {width} × {height}"
    if resize == "refuse" and image.size != expected:
        return f"expected {expected[0]} × {expected[1]} pixels, got {width} × {height}"
    if resize == "crop" and (width < expected[0] or height < expected[1]):
        return f"expected at least {expected[0]} × {expected[1]} pixels to cut the patch from, got {width} × {height}"
    frames = _frames(image)
    if frames != 1:
        more = " or more" if frames == MOST_FRAMES else ""
        return f"expected one image, got a file of {frames}{more} (an animation or several pages)"
    if _scans(image) > MOST_SCANS:
        return f"expected at most {MOST_SCANS} passes over a progressive JPEG, got more"
    kind = _kind(image)
    if not convert and kind != "RGB":
        return f"expected an RGB image, got mode {kind}"
    if convert and kind.removesuffix(", 16 bits") not in CONVERTED:
        return f"expected RGB, grey, palette or transparency, got mode {kind}"
    return ""


def _frames(image: Image.Image) -> int:
    """How many pictures a file holds; a TIFF's are counted up to ``MOST_FRAMES``.

    Pillow finds a TIFF's pages one by one and compares each with all before: a small file of many empty directories
    would keep it for hours.
    """
    if image.format != "TIFF":
        return int(getattr(image, "n_frames", 1))
    count = 1
    while count < MOST_FRAMES:
        try:
            image.seek(count)
        except EOFError:
            break
        count += 1
    image.seek(0)
    return count


def _scans(image: Image.Image) -> int:
    """How many passes a progressive JPEG has, counted to one above ``MOST_SCANS``: one of 60 bytes costs 10 ms."""
    file: Any = getattr(image, "fp", None)
    if image.format != "JPEG" or not image.info.get("progressive") or file is None:
        return 1
    place, count, last = file.tell(), 0, b""
    file.seek(0)
    while count <= MOST_SCANS and (piece := file.read(2**20)):
        count += (last + piece).count(b"\xff\xda")
        last = piece[-1:]
    file.seek(place)
    return count


def _kind(image: Image.Image) -> str:
    """Pillow's mode and, where the file's samples are wider than the mode says, their width.

    Pillow decodes 16-bit colour as its high byte; 12-bit grey it would leave unscaled in a 16-bit mode.
    """
    tile: list[Any] = getattr(image, "tile", [])
    arguments = tile[0].args if tile else ()
    raw = arguments if isinstance(arguments, str) else str(arguments[0]) if arguments else ""
    if raw == "I;12":
        return "I;12"
    if image.mode.startswith("I;16") and "transparency" in image.info:
        return f"{image.mode} with transparency"
    return f"{image.mode}, 16 bits" if "16" in raw and not image.mode.startswith("I") else image.mode


def _decode(image: Image.Image, out: np.ndarray, resize: str) -> str:
    from PIL import Image, ImageOps

    pixels = _as_rgb(ImageOps.exif_transpose(image))
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


def _as_rgb(image: Image.Image) -> Image.Image:
    """As ``CONVERSION`` says."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
