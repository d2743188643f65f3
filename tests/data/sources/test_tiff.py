"""Fast reading of uncompressed TIFFs: equal to Pillow, and used only if the tags allow it."""

import io
import os
import struct
import warnings

import numpy as np
import pytest
import tifffile
from PIL import Image

from histoblend.data.sources import tiff
from histoblend.data.sources.images import read_image
from histoblend.data.sources.tiff import PatchReader, uncompressed_layout

SIZE = 24
PIXELS = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def written(**options):
    """A TIFF as tifffile writes it."""
    file = io.BytesIO()
    tifffile.imwrite(file, PIXELS, **({"photometric": "rgb"} | options))
    return file.getvalue()


def change(content, tag, value):
    """Overwrite the inline value of a tag in a little-endian TIFF."""
    content = bytearray(content)
    (first,) = struct.unpack_from("<I", content, 4)
    (number,) = struct.unpack_from("<H", content, first)
    entries = {
        struct.unpack_from("<H", content, first + 2 + 12 * row)[0]: first + 2 + 12 * row for row in range(number)
    }
    struct.pack_into("<I", content, entries[tag] + 8, value)
    return bytes(content)


def empty(content, tag):
    """Set the number of a tag's values to 0."""
    position = content.index(struct.pack("<H", tag), struct.unpack_from("<I", content, 4)[0])
    return content[: position + 4] + bytes(4) + content[position + 8 :]


@pytest.fixture
def general(monkeypatch):
    """Names of the files that the general decoder read."""
    seen = []
    plain = tiff.read_image
    monkeypatch.setattr(
        tiff, "read_image", lambda path, out, **rest: seen.append(path.name) or plain(path, out, **rest)
    )
    return seen


PLAIN = {
    "little-endian": {},
    "big-endian": {"byteorder": ">"},
    "many strips": {"rowsperstrip": 5},
    "a description": {"description": "x" * 500},
    "Kaggle's own": {"metadata": {"shape": [SIZE, SIZE, 3]}, "datetime": True, "software": "tifffile.py"},
}


@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN)
def test_plain_files_need_no_general_decoder(tmp_path, general, options):
    for name in "ab":
        (tmp_path / f"{name}.tif").write_bytes(written(**options))
    pixels, reasons = PatchReader(tmp_path, SIZE).read(["a.tif", "b.tif"])
    assert (reasons, general) == ({}, [])
    np.testing.assert_array_equal(pixels, np.stack([PIXELS, PIXELS]))
    np.testing.assert_array_equal(pixels[0], np.asarray(Image.open(tmp_path / "a.tif")))


OTHER_LAYOUTS = {
    "deflate": written(compression="zlib"),
    "planes": written(planarconfig="separate"),
    "tiles": written(tile=(16, 16)),
    "two pages": written() + b"",
    "big tiff": written(bigtiff=True),
    "turned": written(extratags=[(274, 3, 1, 6, True)]),
    "unknown tag": written(extratags=[(532, 3, 1, 6, True)]),
    "inverted": change(written(), 262, 0),
    "another width": change(written(), 256, SIZE - 1),
    "wrong length": change(written(), 279, SIZE * SIZE * 3 - 1),
    "pixels beyond the end": change(written(), 273, 4000),
    "pixels over the tags": change(written(), 273, 100),
    "no rows in a strip": change(written(rowsperstrip=5), 278, 0),
    "an empty tag of rows": empty(written(), 278),
    "no strips": empty(empty(written(), 273), 279),
}


@pytest.mark.parametrize("content", OTHER_LAYOUTS.values(), ids=OTHER_LAYOUTS)
def test_everything_else_goes_to_the_general_decoder(tmp_path, general, content):
    if content == written():
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            writer.write(PIXELS, photometric="rgb")
            writer.write(PIXELS, photometric="rgb")
        content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content)
    # Read after a plain file, whose layout must not be assumed for this one.
    (tmp_path / "plain.tif").write_bytes(written())
    pixels, reasons = PatchReader(tmp_path, SIZE).read(["plain.tif", "a.tif"])
    assert general == ["a.tif"]
    if 1 not in reasons:
        np.testing.assert_array_equal(pixels[1], np.asarray(Image.open(tmp_path / "a.tif").convert("RGB")))


def test_a_cut_or_damaged_file_is_never_misread(tmp_path):
    whole = written()
    reader = PatchReader(tmp_path, SIZE)
    (tmp_path / "plain.tif").write_bytes(whole)
    for length in range(len(whole)):
        if length % 37 == 0 or length > len(whole) - 3:
            (tmp_path / "cut.tif").write_bytes(whole[:length])
            assert list(reader.read(["plain.tif", "cut.tif"])[1]) == [1], f"cut at {length} of {len(whole)} bytes"
    expected = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    for position in range(uncompressed_layout(whole, SIZE).start):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        (tmp_path / "damaged.tif").write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out, reasons = reader.read(["plain.tif", "damaged.tif"])
            reason = read_image(tmp_path / "damaged.tif", expected[1])
        # Pillow also fails on a damaged date, although the pixels are readable.
        if 1 not in reasons:
            np.testing.assert_array_equal(out[1], PIXELS if reason else expected[1], err_msg=f"byte {position}")


def test_other_entries_get_a_reason_and_never_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "folder.tif").mkdir()
    (tmp_path / "loop.tif").symlink_to("loop.tif")
    (tmp_path / "plain.tif").write_bytes(written())
    names = ["plain.tif", "pipe.tif", "folder.tif", "loop.tif", "missing.tif", "plain.tif"]
    pixels, reasons = PatchReader(tmp_path, SIZE).read(names)
    assert list(reasons) == [1, 2, 3, 4]
    np.testing.assert_array_equal(pixels[5], PIXELS)


def test_without_scattered_reading_the_result_is_the_same(tmp_path, monkeypatch, general):
    (tmp_path / "a.tif").write_bytes(written())
    monkeypatch.setattr(tiff, "SCATTERS", False)
    pixels, reasons = PatchReader(tmp_path, SIZE).read(["a.tif"])
    assert (reasons, general) == ({}, ["a.tif"])
    np.testing.assert_array_equal(pixels[0], PIXELS)


def test_the_real_sample_is_read_as_pillow_reads_it(sample, general):
    names = sorted(os.listdir(sample / "train"))[:200]
    pixels, reasons = PatchReader(sample / "train", 96, convert=False).read(names)
    assert (reasons, general) == ({}, [])
    for row, name in enumerate(names):
        np.testing.assert_array_equal(pixels[row], np.asarray(Image.open(sample / "train" / name)))
