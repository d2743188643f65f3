"""Image files of any kind: decoded by the stated rules, or refused with a reason, and never a hang or a crash."""

import os
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histoblend.data.sources.images import MAX_PIXELS, read_image, tame_pillow

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
def test_lossless_formats_come_back_bit_for_bit(tmp_path, name, options):
    Image.fromarray(RGB).save(tmp_path / name, **options)
    reason, out = read(tmp_path / name)
    assert reason == ""
    np.testing.assert_array_equal(out, RGB)


def test_jpeg_is_read_as_pillow_reads_it(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.jpg", quality=90)
    np.testing.assert_array_equal(read(tmp_path / "a.jpg")[1], np.asarray(Image.open(tmp_path / "a.jpg")))


def test_the_content_decides_and_not_the_name(tmp_path):
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


def test_transparency_lies_over_white(tmp_path):
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


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_is_applied(tmp_path, suffix):
    image = Image.fromarray(np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((16, 16), np.uint8)))
    exif = Image.Exif()
    exif[274] = 6  # shown turned by a quarter clockwise
    image.convert("RGB").save(tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    reason, out = read(tmp_path / f"a.{suffix}")
    assert reason == ""
    assert np.abs(out[8::16, 8::16, 0].astype(int) - [[160, 0], [240, 80]]).max() <= 3


def test_another_size_follows_the_rule(tmp_path):
    ramp = np.zeros((40, 64, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(64), np.arange(40)[:, None]
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[0] == "expected 32 × 32 pixels, got 64 × 40"
    reason, out = read(tmp_path / "a.png", resize="crop")
    assert reason == ""
    np.testing.assert_array_equal(out, ramp[4:36, 16:48])
    assert read(tmp_path / "a.png", size=48, resize="crop")[0] == (
        "expected at least 48 × 48 pixels to cut the patch from, got 64 × 40"
    )
    # The middle 40 × 40 is halved: a pixel is the mean of a neighbourhood around 12.5, 14.5 … (edges are blunted).
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
        (lambda p: (p / "a.png").symlink_to(p / "gone"), "No such file or directory"),
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
def test_only_rgb_where_nothing_may_be_converted(tmp_path, mode, reason):
    save(tmp_path / "a.tif", mode)
    assert reason in read(tmp_path / "a.tif", size=96, convert=False)[0]
    assert read(tmp_path / "a.tif", size=96)[0] == ""


@pytest.mark.parametrize(("name", "options"), [("a.png", {}), ("a.tif", {}), ("a.webp", {"lossless": True})])
def test_animations_and_pages_are_refused_by_name(tmp_path, name, options):
    pages(tmp_path / name, **options)
    assert read(tmp_path / name)[0] == "expected one image, got a file of 2 (an animation or several pages)"


def test_huge_dimensions_are_refused_before_anything_is_allocated(tmp_path):
    tame_pillow()
    side = int(MAX_PIXELS**0.5) + 1
    for width, reason in [(side, f"expected at most {MAX_PIXELS} pixels"), (10_000, "too many"), (60_000, "too many")]:
        # A PNG that says so in its header and holds next to nothing.
        content = bytearray(save(tmp_path / "a.png", "L", (1, 1)).read_bytes())
        content[16:24] = width.to_bytes(4, "big") * 2
        content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
        (tmp_path / "a.png").write_bytes(content)
        assert reason in read(tmp_path / "a.png", resize="resize")[0]


def test_a_file_cut_anywhere_is_never_taken_for_whole(tmp_path):
    for suffix in ("tif", "png", "bmp", "jpg"):
        whole = Image.fromarray(RGB)
        whole.save(tmp_path / f"whole.{suffix}")
        content = (tmp_path / f"whole.{suffix}").read_bytes()
        last = len(content) - (20 if suffix in {"png", "jpg"} else 0)  # what follows the last pixel may be missing
        for length in range(0, last, len(content) // 60):
            (tmp_path / "cut").write_bytes(content[:length])
            assert read(tmp_path / "cut")[0], f"{suffix} cut at {length} of {len(content)} bytes"


@pytest.mark.parametrize("suffix", ["tif", "png", "jpg", "webp", "bmp"])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
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
