"""Generated image files with every kind of fault, and words of the message for each."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

SIZE = 96
#: Truncated files fail with different messages, which all contain this word.
CUT = "not"

#: Bytes of a file name that is not UTF-8, so no table can contain it.
NO_UTF8 = b"\xff\xfe.png"

#: Kind of fault by the first word of a file's name. The table of docs/reliability.md lists these kinds.
KINDS = {
    "cut": "truncated at each 1 % of its length",
    "random": "random bytes",
    "magic": "the first bytes of a format, then random bytes",
    "wrong": "the first bytes of a format, then zeros",
    "bomb": "huge dimensions in a tiny file",
    "packed": "huge dimensions in a tiny file",
    "cyclic": "circular TIFF directories, or a chain of 200,000",
    "chain": "circular TIFF directories, or a chain of 200,000",
    "scans": "a JPEG with 50,000 passes",
    "one": "1 × 1 pixels",
    "cmyk": "CMYK",
    "float": "floating-point pixels",
    "grey": "grey in Kaggle's layout",
    "animated": "an animation or several pages",
    "several": "an animation or several pages",
    "webp": "an animation or several pages",
    "gif": "an unsupported format",
    "empty": "an empty file",
    "pipe": "a named pipe (FIFO)",
    "loop": "circular links",
    "round": "circular links",
    "there": "circular links",
    "dead": "a dead link",
    "folder": "a folder named like an image",
    "locked": "no permission to read",
    "icc": "an ICC profile",
    "turned": "rotated by EXIF",
    "wide": "16 bits per pixel",
}


def kind_of(name: str) -> str:
    """Kind of fault of a file of this module, from its name."""
    start = name.rpartition("/")[2].replace(".", "-").partition("-")[0]
    return KINDS.get(start, "a name with a newline, quotes, emoji, comma, formula or bytes that are not UTF-8")


def noise(seed: int) -> Image.Image:
    """A picture of noise, different for each seed."""
    return Image.fromarray(np.random.default_rng(seed).integers(60, 220, (SIZE, SIZE, 3), dtype=np.uint8))


def content(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header declares side × side pixels."""
    whole = bytearray(content(Image.new("L", (1, 1)), "PNG"))
    whole[16:24] = struct.pack(">II", side, side)
    whole[29:33] = zlib.crc32(bytes(whole[12:29])).to_bytes(4, "big")
    return bytes(whole)


def packed_bomb(side: int) -> bytes:
    """A TIFF that declares side × side pixels in one strip, which contains only 1,000 bytes."""
    strip = zlib.compress(bytes(1000))
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)]
    tags += [(273, 4, 1, 200), (277, 3, 1, 1), (278, 4, 1, side), (279, 4, 1, len(strip))]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return (head + bytes(4)).ljust(200, b"\0") + strip


def pages(form: str) -> bytes:
    return content(noise(1), form, save_all=True, append_images=[noise(2), noise(3)])


def many_scans(number: int) -> bytes:
    """A progressive JPEG that repeats its last pass, which has few bytes, many times."""
    whole = content(Image.new("L", (SIZE, SIZE)), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xc4", 0, whole.rindex(b"\xff\xda")) : -2]
    return whole[:-2] + last * number + b"\xff\xd9"


def chain(pages: int, *, cyclic: bool) -> bytes:
    """A TIFF whose directories form a chain, each with the size and offset of an image; a cyclic chain never ends."""
    first, each = 8, 2 + 3 * 12 + 4
    body = []
    for number in range(pages):
        following = first + (number + 1) % pages * each if cyclic or number + 1 < pages else 0
        tags = (256, 4, 1, SIZE, 257, 4, 1, SIZE, 273, 4, 1, first)
        body.append(struct.pack("<HHHIIHHIIHHIII", 3, *tags, following))
    return struct.pack("<2sHI", b"II", 42, first) + b"".join(body)


def bad_images(suffixes: tuple[str, ...] = (".tif", ".png", ".jpg")) -> dict[str, tuple[bytes, str]]:
    """Files that are not valid patches: content and words of the reason, by name."""
    forms = {".tif": "TIFF", ".png": "PNG", ".jpg": "JPEG"}
    rng = np.random.default_rng(0)
    files = {}
    for suffix in suffixes:
        whole = content(noise(4), forms[suffix])
        files |= {f"cut-{part:02d}{suffix}": (whole[: len(whole) * part // 100], CUT) for part in range(100)}
    last = suffixes[0]
    files |= {f"random-{number}{last}": (rng.bytes(3000), "not an image that can be read") for number in range(5)}
    magic = {
        "tiff": b"II*\0",
        "png": b"\x89PNG\r\n\x1a\n",
        "jpeg": b"\xff\xd8\xff\xe0",
        "webp": b"RIFF\0\0\1\0WEBPVP8 ",
    }
    files |= {f"magic-{name}{last}": (start + rng.bytes(3000), "not") for name, start in magic.items()}
    files |= {f"wrong-{name}{last}": (start + b"\0" * 9, "not") for name, start in magic.items()}
    files |= {
        f"bomb-12{last}": (bomb(12_000), "too many pixels"),
        f"bomb-60{last}": (bomb(60_000), "too many pixels"),
        f"bomb-4{last}": (bomb(4_097), "pixels, got 4097 × 4097"),
        f"packed{last}": (packed_bomb(40_000), "too many pixels"),
        f"cyclic-1{last}": (chain(1, cyclic=True), "expected"),
        f"cyclic-9{last}": (chain(9, cyclic=True), "expected one image, got a file of 9"),
        f"chain{last}": (chain(200_000, cyclic=False), "expected one image, got a file of 100 or more"),
        f"scans{last}": (many_scans(50_000), "expected at most 100 passes"),
        f"one{last}": (content(Image.new("RGB", (1, 1)), "TIFF"), "expected 96 × 96 pixels, got 1 × 1"),
        f"cmyk{last}": (content(noise(5).convert("CMYK"), "TIFF"), "got mode CMYK"),
        f"cmyk-jpeg{last}": (content(noise(5).convert("CMYK"), "JPEG"), "got mode CMYK"),
        f"float{last}": (content(noise(5).convert("F"), "TIFF"), "got mode F"),
        f"animated{last}": (pages("PNG"), "expected one image, got a file of 3"),
        f"several{last}": (pages("TIFF"), "expected one image, got a file of 3"),
        f"webp{last}": (pages("WEBP"), "expected one image, got a file of 3"),
        f"gif{last}": (pages("GIF"), "not an image that can be read"),
        f"empty{last}": (b"", "not an image that can be read"),
    }
    return files


def odd_but_good() -> dict[str, tuple[bytes, np.ndarray]]:
    """Unusual files that are valid patches: content and expected pixels, by name."""
    plain = np.asarray(noise(6))
    wide = np.random.default_rng(7).integers(0, 65536, (SIZE, SIZE), dtype=np.uint16)
    exif = Image.Exif()
    exif[274] = 6  # rotated by 90° clockwise when shown
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    files = {
        "icc.png": (content(noise(6), "PNG", icc_profile=profile), plain),
        "turned.tif": (content(noise(8), "TIFF", exif=exif), np.rot90(np.asarray(noise(8)), -1)),
        "wide.png": (content(Image.fromarray(wide), "PNG"), np.stack([wide >> 8] * 3, axis=2)),
    }
    for number, name in enumerate(("new\nline", "return\rname", "quote\"s'", "emoji 🔬", "=cmd()", "-x", "a,b", "NA")):
        picture = noise(20 + number)
        files[f"{name}.png"] = (content(picture, "PNG"), np.asarray(picture))
    return files


def no_files(folder: Path, suffix: str) -> dict[str, str]:
    """Create entries that look like files by name but are not; return words of the message for each."""
    os.mkfifo(folder / f"pipe{suffix}")
    (folder / f"loop{suffix}").symlink_to(f"loop{suffix}")
    (folder / f"round{suffix}").symlink_to(f"there{suffix}")
    (folder / f"there{suffix}").symlink_to(f"round{suffix}")
    (folder / f"dead{suffix}").symlink_to("nowhere")
    (folder / f"folder{suffix}").mkdir()
    return dict.fromkeys((f"{name}{suffix}" for name in ("pipe", "loop", "round", "there", "dead", "folder")), "")
