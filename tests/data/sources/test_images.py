"""Image files of any kind are decoded by the documented rules, or refused with a reason; never a hang or a crash."""

import io
import itertools
import os
import struct
import warnings
import zlib

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histoblend.data.sources.images import MAX_PIXELS, read_image, tame_pillow
from tests.oracles import png_files
from tests.oracles.bmp_files import bmp_file
from tests.oracles.tiff_files import turned

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (32, 32), dtype=np.uint8)
WIDE = RNG.integers(0, 65536, (32, 32), dtype=np.uint16)


def read(path, size=32, **options):
    out = np.full((size, size, 3), 7, np.uint8)
    return read_image(path, out, **options), out


def save(path, mode="RGB", size=(96, 96), **options):
    Image.new(mode, size).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.tif", {}),
        ("b.tif", {"compression": "tiff_lzw"}),
        ("c.tif", {"compression": "tiff_deflate"}),
        ("a.bmp", {}),
        ("a.webp", {"lossless": True}),
    ],
)
def test_lossless_formats_are_read_bit_for_bit(tmp_path, name, options):
    Image.fromarray(RGB).save(tmp_path / name, **options)
    reason, out = read(tmp_path / name)
    assert reason == ""
    np.testing.assert_array_equal(out, RGB)


def test_jpeg_is_read_as_pillow_reads_it(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.jpg", quality=90)
    np.testing.assert_array_equal(read(tmp_path / "a.jpg")[1], np.asarray(Image.open(tmp_path / "a.jpg")))


def test_the_format_is_taken_from_the_content_not_the_name(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(read(tmp_path / "a.jpg")[1], RGB)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_is_repeated_and_16_bits_keep_their_high_byte(tmp_path, suffix):
    Image.fromarray(GREY).save(tmp_path / f"a.{suffix}")
    Image.fromarray(WIDE).save(tmp_path / f"b.{suffix}")
    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}")[1], np.stack([GREY] * 3, axis=2))
    np.testing.assert_array_equal(read(tmp_path / f"b.{suffix}")[1], np.stack([WIDE // 256] * 3, axis=2))


def test_16_bit_colour_keeps_its_high_byte(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    wide = RNG.integers(0, 65536, (32, 32, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", wide, photometric="rgb")
    np.testing.assert_array_equal(read(tmp_path / "a.tif")[1], wide // 256)
    assert read(tmp_path / "a.tif", convert=False)[0] == "expected an RGB image, got mode RGB, 16 bits"


def test_transparency_is_shown_on_white(tmp_path):
    image = Image.new("RGBA", (32, 32), (200, 100, 0, 0))
    image.putpixel((1, 0), (200, 100, 0, 255))
    image.putpixel((2, 0), (200, 100, 0, 51))  # a fifth: 255 - (255 - value) / 5
    image.save(tmp_path / "a.png")
    reason, out = read(tmp_path / "a.png")
    assert reason == ""
    assert out[0, :3].tolist() == [[255, 255, 255], [200, 100, 0], [244, 224, 204]]


def test_a_palette_is_looked_up_with_its_transparent_entry(tmp_path):
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.png", transparency=0)
    assert read(tmp_path / "a.png")[1][0, :2].tolist() == [[255, 255, 255], [10, 20, 30]]


def exif_of(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(RGB).save(tmp_path / f"plain.{suffix}", **options)
    Image.fromarray(RGB).save(tmp_path / f"a.{suffix}", exif=exif_of(orientation), **options)
    reason, out = read(tmp_path / f"a.{suffix}")
    assert reason == ""
    np.testing.assert_array_equal(out, turned(np.asarray(Image.open(tmp_path / f"plain.{suffix}")), orientation))


def test_exif_after_a_pngs_pixels_is_applied(tmp_path):
    exif = exif_of(6).tobytes()[len(b"Exif\0\0") :]
    (tmp_path / "a.png").write_bytes(png_files.png_file(RGB, 8, png_files.RGB, exif=exif, exif_last=True))
    reason, out = read(tmp_path / "a.png")
    assert reason == ""
    np.testing.assert_array_equal(out, turned(RGB, 6))


PNG_KINDS = {
    "grey": (png_files.GREY, 1, (1, 2, 4, 8, 16)),
    "RGB": (png_files.RGB, 3, (8, 16)),
    "palette": (png_files.PALETTE, 1, (1, 2, 4, 8)),
    "grey, alpha": (png_files.GREY_ALPHA, 2, (8, 16)),
    "RGB, alpha": (png_files.RGB_ALPHA, 4, (8, 16)),
}


def png(name, bits, interlaced, with_transparency):
    """A PNG and its expected pixels; with a transparent value, other values differ from it by one bit."""
    kind, count, _ = PNG_KINDS[name]
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 2**bits, (32, 32, count))
    palette = rng.integers(0, 256, (2**bits, 3)) if name == "palette" else None
    transparent = None
    if with_transparency and name == "palette":
        transparent = rng.integers(0, 256, 2**bits - 1, dtype=np.uint8).tobytes()
    elif with_transparency:
        samples[::2] = samples[0, 0]
        samples[4] ^= 1
        transparent = struct.pack(f">{count}H", *samples[0, 0])
    content = png_files.png_file(samples, bits, kind, interlaced=interlaced, palette=palette, transparent=transparent)
    return content, png_files.shown(samples, bits, kind, palette, transparent)


@pytest.mark.parametrize("interlaced", [False, True], ids=["rows", "interlaced"])
@pytest.mark.parametrize(
    ("name", "bits", "with_transparency"),
    [
        (name, bits, with_transparency)
        for name, kind in PNG_KINDS.items()
        for bits in kind[2]
        for with_transparency in ([False] if "alpha" in name else [False, True])
    ],
)
def test_every_png_is_read_as_its_standard_says_or_set_aside(tmp_path, name, bits, with_transparency, interlaced):
    content, expected = png(name, bits, interlaced, with_transparency)
    (tmp_path / "a.png").write_bytes(content)
    reason, out = read(tmp_path / "a.png")
    # Pillow compares a transparent value with samples that it has already converted to 8 bits.
    set_aside = with_transparency and name in ("grey", "RGB") and bits in (2, 4, 16)
    assert bool(reason) == set_aside
    assert reason.endswith(f"with a transparent value of {bits} bits" if set_aside else "")
    if not set_aside:
        assert np.abs(out - expected).max() <= 0.5  # transparency is rounded
    assert (read(tmp_path / "a.png", convert=False)[0] == "") == (name == "RGB" and bits == 8 and not with_transparency)


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411"])
@pytest.mark.parametrize("stored", ["YCBCR", "RGB"])
def test_jpegs_colours_are_read_as_another_decoder_reads_them(tmp_path, stored, subsampling):
    content = imagecodecs.jpeg8_encode(RGB, colorspace="RGB", outcolorspace=stored, subsampling=subsampling)
    (tmp_path / "a.jpg").write_bytes(content)
    for convert in (True, False):
        reason, out = read(tmp_path / "a.jpg", convert=convert)
        assert reason == ""
        np.testing.assert_array_equal(out, imagecodecs.jpeg8_decode(content))


def test_a_grey_jpeg_is_repeated(tmp_path):
    (tmp_path / "a.jpg").write_bytes(content := imagecodecs.jpeg8_encode(GREY))
    np.testing.assert_array_equal(
        read(tmp_path / "a.jpg")[1], np.stack([imagecodecs.jpeg8_decode(content)] * 3, axis=2)
    )
    assert read(tmp_path / "a.jpg", convert=False)[0] == "expected an RGB image, got mode L"


@pytest.mark.parametrize("stored", ["CMYK", "YCCK"])
def test_jpegs_of_four_colours_are_set_aside(tmp_path, stored):
    inks = np.concatenate([RGB, RGB[..., :1]], axis=2)
    (tmp_path / "a.jpg").write_bytes(imagecodecs.jpeg8_encode(inks, colorspace="CMYK", outcolorspace=stored))
    file = io.BytesIO()
    Image.fromarray(inks, "CMYK").save(file, "JPEG")  # Adobe's: inverted
    for content in ((tmp_path / "a.jpg").read_bytes(), file.getvalue()):
        (tmp_path / "a.jpg").write_bytes(content)
        assert "got mode CMYK" in read(tmp_path / "a.jpg")[0]
        assert "got mode CMYK" in read(tmp_path / "a.jpg", convert=False)[0]


@pytest.mark.parametrize("alpha", [False, True], ids=["opaque", "alpha"])
@pytest.mark.parametrize("lossless", [False, True], ids=["lossy", "lossless"])
def test_webp_is_read_as_another_decoder_reads_it(tmp_path, lossless, alpha):
    samples = np.concatenate([RGB, GREY[..., None]], axis=2) if alpha else RGB
    content = imagecodecs.webp_encode(samples, lossless=lossless, level=80)
    (tmp_path / "a.webp").write_bytes(content)
    decoded = imagecodecs.webp_decode(content).astype(float)
    opacity = decoded[..., 3:] / 255 if alpha else 1.0
    reason, out = read(tmp_path / "a.webp")
    assert reason == ""
    assert np.abs(out - (decoded[..., :3] * opacity + 255 * (1 - opacity))).max() <= 0.5
    assert bool(read(tmp_path / "a.webp", convert=False)[0]) == alpha


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_bmps_palette_is_looked_up(tmp_path, bits):
    indices = RNG.integers(0, 2**bits, (32, 32))
    palette = RNG.integers(0, 256, (2**bits, 3), dtype=np.uint8)
    for down, colours in itertools.product((True, False), (palette, np.repeat(palette[::-1, :1], 3, axis=1))):
        (tmp_path / "a.bmp").write_bytes(bmp_file(indices, bits, palette=colours, down=down))
        reason, out = read(tmp_path / "a.bmp")
        assert reason == ""
        np.testing.assert_array_equal(out, colours[indices])


BMP_MASKS = {  # bits per pixel, masks of red, green, blue and alpha
    "24 bits": (24, ()),
    "32 bits, last byte unused": (32, ()),
    "32 bits": (32, (0xFF0000, 0xFF00, 0xFF, 0)),
    "32 bits, alpha": (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
    "32 bits, alpha, red first": (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)),
    "32 bits, ten per colour": (32, (0x3FF00000, 0xFFC00, 0x3FF, 0)),
    "16 bits": (16, ()),
    "16 bits, more green": (16, (0xF800, 0x7E0, 0x1F, 0)),
    "16 bits, four per colour": (16, (0xF00, 0xF0, 0xF, 0)),
}


@pytest.mark.parametrize("down", [False, True], ids=["upwards", "downwards"])
@pytest.mark.parametrize("name", BMP_MASKS)
def test_every_bmp_is_read_as_its_masks_say_or_set_aside(tmp_path, name, down):
    bits, masks = BMP_MASKS[name]
    default = (0x7C00, 0x3E0, 0x1F, 0) if bits == 16 else (0xFF0000, 0xFF00, 0xFF, 0)
    pixels = RNG.integers(0, 2**bits, (32, 32))
    lowest = [mask & -mask for mask in (masks or default)[:3]]
    shares = [(pixels & mask) // low / (mask // low) for mask, low in zip(masks or default, lowest, strict=False)]
    alpha = (pixels >> 24 & 255) / 255 if masks and masks[3] else np.ones((32, 32))
    expected = 255 * (np.stack(shares, axis=2) * alpha[..., None] + 1 - alpha[..., None])
    (tmp_path / "a.bmp").write_bytes(bmp_file(pixels, bits, masks=masks, down=down))
    reason, out = read(tmp_path / "a.bmp")
    assert bool(reason) == (name in ("32 bits, ten per colour", "16 bits, four per colour"))
    if not reason:
        assert np.abs(out - expected).max() < 1
    assert (read(tmp_path / "a.bmp", convert=False)[0] == "") == (bits > 16 and "alpha" not in name and not reason)


def test_another_size_follows_the_rule(tmp_path):
    ramp = np.zeros((40, 64, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(64), np.arange(40)[:, None]
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[0] == "expected 32 × 32 pixels, got 64 × 40"
    reason, out = read(tmp_path / "a.png", resize="crop")
    assert reason == ""
    np.testing.assert_array_equal(out, ramp[4:36, 16:48])
    assert read(tmp_path / "a.png", size=48, resize="crop")[0] == (
        "expected at least 48 × 48 pixels to crop, got 64 × 40"
    )
    # The middle 40 × 40 is halved: a pixel is the mean of a neighbourhood around 12.5, 14.5 … (edges are smoothed).
    reason, out = read(tmp_path / "a.png", size=20, resize="resize")
    assert reason == ""
    assert np.abs(out[10, 2:18, 0] - (12.5 + 2 * np.arange(2, 18))).max() <= 0.5
    assert np.abs(out[2:18, 10, 1] - (0.5 + 2 * np.arange(2, 18))).max() <= 0.5


def pages(path, **options):
    frames = [Image.fromarray(np.full((32, 32, 3), value, np.uint8)) for value in (0, 255)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: save(p / "a.tif", size=(95, 96)), "expected 96 × 96 pixels, got 95 × 96"),
        (lambda p: save(p / "a.tif", "CMYK"), "expected RGB, grey, palette or transparency, got mode CMYK"),
        (lambda p: save(p / "a.jpg", "CMYK"), "got mode CMYK"),
        (lambda p: save(p / "a.tif", "F"), "got mode F"),
        (lambda p: save(p / "a.tif", "I"), "got mode I"),
        (lambda p: save(p / "a.tif", "LAB"), "got mode LAB"),
        (lambda p: save(p / "a.gif", "P"), "not an image that can be read (PNG, JPEG, TIFF, WEBP, BMP)"),
        (lambda p: (p / "a.tif").write_bytes(b"not an image"), "not an image that can be read"),
        (lambda p: (p / "a.tif").write_bytes(b""), "not an image that can be read"),
        (lambda p: (p / "a.tif").write_bytes(save(p / "b.tif").read_bytes()[:9000]), "not readable as an image"),
        (lambda p: (p / "a.png").mkdir(), "not readable as an image (Is a directory)"),
        (lambda p: os.mkfifo(p / "a.png"), "not a file but a pipe"),
        (lambda p: (p / "a.png").symlink_to(p / "a.png"), "Too many levels of symbolic links"),
        (lambda p: (p / "a.png").symlink_to(p / "missing"), "No such file or directory"),
    ],
    ids=[
        "size", "cmyk tiff", "cmyk jpeg", "float", "32 bits", "lab", "gif", "text", "empty", "truncated", "folder",
        "pipe", "link to itself", "dead link",
    ],
)  # fmt: skip
def test_an_unusable_file_gives_a_reason(tmp_path, make, reason):
    make(tmp_path)
    (path,) = tmp_path.glob("a.*")
    assert reason in read(path, size=96)[0]


@pytest.mark.parametrize(
    ("mode", "reason"), [("L", "got mode L"), ("RGBA", "got mode RGBA"), ("1", "got mode 1"), ("RGB", "")]
)
def test_without_conversion_only_rgb_is_read(tmp_path, mode, reason):
    save(tmp_path / "a.tif", mode)
    assert reason in read(tmp_path / "a.tif", size=96, convert=False)[0]
    assert read(tmp_path / "a.tif", size=96)[0] == ""


@pytest.mark.parametrize(("name", "options"), [("a.png", {}), ("a.tif", {}), ("a.webp", {"lossless": True})])
def test_animations_and_several_pages_are_refused(tmp_path, name, options):
    pages(tmp_path / name, **options)
    assert read(tmp_path / name)[0] == "expected one image, got a file of 2 (an animation or several pages)"


def test_huge_dimensions_are_refused_before_anything_is_allocated(tmp_path):
    tame_pillow()
    side = int(MAX_PIXELS**0.5) + 1
    for width, reason in [(side, f"expected at most {MAX_PIXELS} pixels"), (10_000, "too many"), (60_000, "too many")]:
        # A tiny PNG whose header states these dimensions.
        content = bytearray(save(tmp_path / "a.png", "L", (1, 1)).read_bytes())
        content[16:24] = width.to_bytes(4, "big") * 2
        content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
        (tmp_path / "a.png").write_bytes(content)
        assert reason in read(tmp_path / "a.png", resize="resize")[0]


def test_a_truncated_file_is_never_accepted(tmp_path):
    for suffix in ("tif", "png", "bmp", "jpg"):
        whole = Image.fromarray(RGB)
        whole.save(tmp_path / f"whole.{suffix}")
        content = (tmp_path / f"whole.{suffix}").read_bytes()
        last = len(content) - (20 if suffix in {"png", "jpg"} else 0)  # data after the last pixel may be missing
        for length in range(0, last, len(content) // 60):
            (tmp_path / "cut").write_bytes(content[:length])
            assert read(tmp_path / "cut")[0], f"{suffix} cut at {length} of {len(content)} bytes"


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg", "webp", "bmp"])
@given(data=st.data())
@settings(max_examples=25)
def test_a_damaged_file_is_decoded_or_refused(tmp_path_factory, suffix, data):
    folder = tmp_path_factory.mktemp("damaged")
    Image.fromarray(RGB).save(folder / f"whole.{suffix}")
    content = bytearray((folder / f"whole.{suffix}").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(len(content), 400) - 1))] = data.draw(st.integers(0, 255))
    (folder / "damaged").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reason, _ = read(folder / "damaged")
    assert isinstance(reason, str)


def test_a_progressive_jpeg_is_read_as_pillow_reads_it(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.jpg", progressive=True)
    reason, out = read(tmp_path / "a.jpg")
    assert reason == ""
    np.testing.assert_array_equal(out, np.asarray(Image.open(tmp_path / "a.jpg")))
