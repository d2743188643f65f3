"""Generic tiled TIFFs return the written pixels, or are rejected with one line on what OpenSlide would misread."""

import imagecodecs
import numpy as np
import pytest
import tifffile

from histoblend.data.errors import InputError
from histoblend.data.phantom.slide import write_phantom_slide
from histoblend.data.slides.generic_tiff import check_generic_tiff
from histoblend.data.slides.slide import Slide
from tests.oracles.tiff_files import (
    BLACK_IS_ZERO,
    DEFLATE,
    JPEG,
    LAB,
    LZW,
    PACKBITS,
    PALETTE,
    RAW,
    RGB,
    WHITE_IS_ZERO,
    YCBCR,
    shown,
    tiff_file,
)  # fmt: skip

SIDE = 64
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
# Blocks of one colour: a JPEG of noise does not preserve colours.
BLOCKS = np.kron(RNG.integers(0, 256, (4, 4, 3)), np.ones((16, 16, 1), int)).astype(np.uint8)
COLOURS = tuple(RNG.integers(0, 65536, 768).tolist())


def noise(samples, bits=8):
    return RNG.integers(0, 2**bits, (SIDE, SIDE, samples))


def tiled(samples, photometric, bits=8, **options):
    return tiff_file(samples, bits, photometric, tile=32, **{"compression": DEFLATE} | options)


def read(path, content):
    path.write_bytes(content)
    with Slide(path, mpp=0.5) as slide:
        return slide.read(0, 0, 0, *slide.size)


@pytest.mark.parametrize("tag", range(2, 9))
def test_a_rotated_slide_is_rejected(tmp_path, tag):
    with pytest.raises(
        InputError, match=rf"expected orientation 1 \(upright\) in tag 274, got {tag}. Save it again upright"
    ):
        read(tmp_path / "a.tif", tiled(NOISE, RGB, tags={274: tag}))


def test_every_level_is_checked(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for number, tag in enumerate((1, 6)):
            options = {"photometric": "rgb", "compression": "zlib", "metadata": None, "subfiletype": number}
            file.write(NOISE[:: number + 1, :: number + 1], tile=(16, 16), extratags=[(274, 3, 1, tag)], **options)
    with pytest.raises(InputError, match="in tag 274, got 6"):
        Slide(tmp_path / "a.tif", mpp=0.5)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiled(noise(4), RGB, tags={338: 0}), "opacity with RGB (tag 338), got 0"),
        (tiled(noise(4), RGB), "got 4 samples and 0 descriptions"),
        (tiled(noise(5), RGB, tags={338: (0, 2)}), "opacity with RGB (tag 338), got 0, 2"),
        (tiled(noise(2), BLACK_IS_ZERO, tags={338: 2}), "opacity with RGB (tag 338), got 2"),
        (tiled(noise(1), BLACK_IS_ZERO, 16), "expected 16 bits per sample only with RGB"),
        (tiled(noise(3) - 128, RGB, form=2), "unsigned integers, got sample format (2, 2, 2)"),
        (tiled(noise(3), RGB, compression=RAW, tags={317: 2}), "got 2 with none"),
        (tiled(noise(3), RGB, compression=PACKBITS, tags={317: 2}), "got 2 with PackBits"),
        (tiled(noise(3), YCBCR, compression=LZW, tags={530: (1, 1)}), "expected YCbCr only with JPEG"),
        (tiled(noise(3), LAB), "got CIELab"),
        (tiled(BLOCKS, RGB, compression=JPEG, jpeg={"outcolorspace": "YCBCR"}), "got RGB and YCbCr"),
        (
            tiled(BLOCKS, YCBCR, compression=JPEG, jpeg={"outcolorspace": "RGB"}, tags={530: (1, 1)}),
            "got YCbCr and RGB",
        ),
    ],
    ids=[
        "a sample without meaning", "a sample without a tag", "opacity after another", "opacity with grey",
        "16-bit grey", "signed", "predictor alone", "predictor with PackBits", "YCbCr with LZW", "Lab",
        "JPEG of YCbCr as RGB", "JPEG of RGB as YCbCr",
    ],
)  # fmt: skip
def test_what_openslide_would_misread_is_rejected(tmp_path, content, reason):
    with pytest.raises(InputError) as caught:
        read(tmp_path / "a.tif", content)
    assert reason in str(caught.value)
    assert "Save it again upright, as a tiled TIFF of 8-bit RGB." in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        tiled(noise(3), RGB),
        tiled(noise(3), RGB, tags={274: 1}),
        tiled(noise(3), RGB, compression=LZW, predictor=2),
        tiled(noise(3), RGB, planar=2),
        tiled(noise(3, 16), RGB, 16),
        tiled(noise(4), RGB, tags={338: 2}),
        tiled(noise(1), BLACK_IS_ZERO),
        tiled(noise(1), WHITE_IS_ZERO),
        tiled(noise(1), PALETTE, tags={320: COLOURS}),
        tiled(BLOCKS, RGB, compression=JPEG, jpeg={"outcolorspace": "RGB"}),
        tiled(BLOCKS, RGB, compression=JPEG, jpeg={"outcolorspace": "RGB"}, tags={317: 2}),
        tiled(BLOCKS, YCBCR, compression=JPEG, jpeg={"subsampling": "444"}, tags={530: (1, 1)}),
    ],
    ids=[
        "RGB", "upright", "predictor", "planes", "16 bits", "opacity", "grey", "white is zero", "palette",
        "JPEG of RGB", "JPEG with a predictor that is ignored", "JPEG of YCbCr",
    ],
)  # fmt: skip
def test_supported_kinds_are_read(tmp_path, content):
    difference = np.abs(read(tmp_path / "a.tif", content) - shown(content))
    assert difference.max() <= 2  # libtiff multiplies by opacity, in whole numbers, and OpenSlide divides again


def test_pyramids_of_jpeg_with_shared_tables_are_read(tmp_path):
    """As libtiff writes them: tables in tag 347, no colour marker, empty tiles, tags 530 and 532."""
    whole = (255, 1, 128, 1, 128, 1)
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=True) as file:
        for number in range(2):
            pixels = BLOCKS[:: number + 1, :: number + 1]
            streams = [
                imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels[top : top + 16, left : left + 16]), level=95)
                for top in range(0, len(pixels), 16)
                for left in range(0, len(pixels), 16)
            ]
            tables, tiles = zip(*map(shared_tables, streams), strict=True)
            file.write(
                iter([b"", *tiles[1:]]),
                shape=pixels.shape,
                dtype=np.uint8,
                tile=(16, 16),
                photometric="ycbcr",
                compression="jpeg",
                subsampling=(2, 2),
                jpegtables=tables[0],
                extratags=[(532, 5, 6, (0, 1, 255, 1, *whole[2:4], *whole[:2], *whole[4:], *whole[:2]))],
                subfiletype=number,
                metadata=None,
            )
    with Slide(tmp_path / "a.tif", mpp=0.5) as slide:
        assert len(slide.levels) == 2
        assert (slide.read(0, 0, 0, 16, 16) == 255).all()
        difference = np.abs(slide.read(0, 16, 0, 48, 64).astype(int) - BLOCKS[:, 16:])
        assert difference.max() <= 4


def shared_tables(stream):
    """Split a JPEG into a stream of its tables and the rest, without the JFIF marker."""
    tables, rest, position = b"", b"", 2
    while stream[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
        if stream[position + 1] in (0xDB, 0xC4):
            tables += stream[position:end]
        elif not 0xE0 <= stream[position + 1] <= 0xEF:
            rest += stream[position:end]
        position = end
    return b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + rest + stream[position:]


def test_phantom_slides_open(tmp_path):
    write_phantom_slide(tmp_path / "a.tif", width=1024, height=1024)
    with Slide(tmp_path / "a.tif") as slide:
        assert slide.size == (1024, 1024)


def test_unreadable_tags_give_one_line(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiled(NOISE, RGB, tags={322: (32, 32)}))
    with pytest.raises(InputError, match=r"a.tif: the TIFF tags cannot be read \(.*\). Download the slide again.$"):
        check_generic_tiff(tmp_path / "a.tif")
