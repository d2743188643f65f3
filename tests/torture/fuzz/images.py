"""Fuzzes both readers of image files, with every rule for other sizes."""

import io
import tempfile
from pathlib import Path

import numpy as np

from tests.torture.fuzz.driver import instrumented, main

with instrumented():
    from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

    from histoblend.data.sources.images import read_image, tame_pillow
    from histoblend.data.sources.tiff import PatchReader

PLUGINS = (BmpImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)
SIZE = 16
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-files-"))


def saved(mode: str, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    values = np.arange(SIZE * SIZE * 4, dtype=np.uint8)
    image = Image.frombytes("RGBA", (SIZE, SIZE), values.tobytes()).convert(mode)
    image.save(file, form, **options)
    return file.getvalue()


def seeds() -> list[bytes]:
    exif = Image.Exif()
    exif[274] = 6
    turned = [saved("RGB", form, exif=exif) for form in ("PNG", "JPEG", "TIFF", "WEBP")]
    many = [Image.new("RGB", (SIZE, SIZE), (number, 0, 0)) for number in (1, 2)]
    several = [saved("RGB", form, save_all=True, append_images=many) for form in ("PNG", "TIFF", "WEBP")]
    packed = [saved("RGB", "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")]
    plain = [saved(mode, form) for mode in ("RGB", "L", "P", "1") for form in ("PNG", "TIFF", "BMP")]
    return [*plain, *turned, *several, *packed, saved("RGBA", "PNG"), saved("CMYK", "JPEG"), saved("CMYK", "TIFF")]


def read(content: bytes) -> None:
    tame_pillow()
    (FOLDER / "image").write_bytes(content)
    for resize in ("refuse", "resize", "crop"):
        reason = read_image(FOLDER / "image", np.zeros((SIZE, SIZE, 3), np.uint8), resize=resize)
        assert isinstance(reason, str)
    pixels, reasons = PatchReader(FOLDER, SIZE, convert=False).read(["image"])
    assert pixels.shape == (1, SIZE, SIZE, 3)
    assert set(reasons) <= {0}


if __name__ == "__main__":
    main("tests.torture.fuzz.images", read, seeds)
