"""TIFFs of every kind: converted to RGB from the pixels that tifffile reads, or set aside."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from histoblend.data.sources.images import read_image
from histoblend.data.sources.tiff import PatchReader
from tests.oracles.tiff_files import (
    BLACK_IS_ZERO,
    CMYK,
    DEFLATE,
    JPEG,
    LAB,
    LZMA,
    LZW,
    OLD_DEFLATE,
    PACKBITS,
    PALETTE,
    RAW,
    RGB,
    WEBP,
    WHITE_IS_ZERO,
    YCBCR,
    ZSTD,
    shown,
    stored_samples,
    tiff_file,
    turned,
)  # fmt: skip

HEIGHT, WIDTH = 20, 24

#: Photometric interpretation, samples before extra ones, and what the extra ones are.
KINDS = {
    "white is zero": (WHITE_IS_ZERO, 1, ()),
    "black is zero": (BLACK_IS_ZERO, 1, ()),
    "RGB": (RGB, 3, ()),
    "palette": (PALETTE, 1, ()),
    "CMYK": (CMYK, 4, ()),
    "YCbCr": (YCBCR, 3, ()),
    "Lab": (LAB, 3, ()),
    "white is zero, alpha": (WHITE_IS_ZERO, 1, (2,)),
    "white is zero, extra": (WHITE_IS_ZERO, 1, (0,)),
    "black is zero, extra": (BLACK_IS_ZERO, 1, (0,)),
    "black is zero, multiplied by alpha": (BLACK_IS_ZERO, 1, (1,)),
    "black is zero, alpha": (BLACK_IS_ZERO, 1, (2,)),
    "RGB, extra": (RGB, 3, (0,)),
    "RGB multiplied by alpha": (RGB, 3, (1,)),
    "RGB, alpha": (RGB, 3, (2,)),
    "RGB, two extra": (RGB, 3, (0, 0)),
    "RGB, extra, alpha": (RGB, 3, (0, 2)),
    "RGB, alpha, extra": (RGB, 3, (2, 0)),
    "RGB, two alphas": (RGB, 3, (2, 2)),
    "palette, extra": (PALETTE, 1, (0,)),
    "palette, alpha": (PALETTE, 1, (2,)),
}
#: Bits and sample formats: unsigned and signed integers, floats, undefined.
SAMPLES = (
    *((bits, 1) for bits in (1, 2, 4, 8, 12, 16, 32)),
    (8, 2), (16, 2), (32, 2), (16, 3), (32, 3), (64, 3), (8, 4), (16, 4),
)  # fmt: skip
COMPRESSIONS = (
    (RAW, 1), (LZW, 1), (LZW, 2), (LZW, 3), (DEFLATE, 1), (DEFLATE, 2), (DEFLATE, 3), (PACKBITS, 1), (OLD_DEFLATE, 1),
    (OLD_DEFLATE, 2), (LZMA, 1), (LZMA, 2), (ZSTD, 1), (ZSTD, 2), (ZSTD, 3),
)  # fmt: skip
LAYOUTS = ({}, {"rows": 7}, {"tile": 16})

#: Kinds that must be read with any planes, byte order, compression, layout and orientation. Pillow cannot read
#: big-endian 16-bit grey with white at zero.
READ = {("RGB", 8), ("RGB", 16), ("RGB, alpha", 16), *itertools.product(("black is zero",), (1, 2, 4, 8, 16))}
READ |= {*itertools.product(("white is zero", "palette"), (1, 2, 4, 8)), ("RGB, alpha", 8)}


def samples_of(kind, bits, form=1, seed=0):
    """Noise; multiplied by alpha if the kind has premultiplied alpha."""
    _, basic, extra = KINDS[kind]
    rng = np.random.default_rng(seed)
    shape = (HEIGHT, WIDTH, basic + len(extra))
    if form == 3:
        return rng.random(shape).astype(f"f{bits // 8}")
    samples = rng.integers(-(2 ** (bits - 1)) if form == 2 else 0, 2 ** (bits - (form == 2)), shape)
    if 1 in extra:
        samples[..., :basic] = samples[..., :basic] * samples[..., basic:] // (2**bits - 1)
    return samples


def written(kind, bits, form=1, *, samples=None, tags=None, **options):
    photometric, _, extra = KINDS[kind]
    more = {338: extra} if extra else {}
    if photometric == PALETTE and bits <= 12:
        more[320] = tuple(np.random.default_rng(1).integers(0, 65536, 3 * 2**bits).tolist())
    if form == 4:
        more[339] = 4
    samples = samples_of(kind, bits, form) if samples is None else samples
    return tiff_file(samples, bits, photometric, form=1 if form == 4 else form, **options, tags=more | (tags or {}))


def read(path, content, shape=(HEIGHT, WIDTH), **options):
    path.write_bytes(content)
    out = np.full((*shape, 3), 7, np.uint8)
    return read_image(path, out, **options), out


def judge(path, content, orientation=1, **options):
    """Empty if the pixels equal the reference; otherwise "set aside" or the largest difference."""
    shape = (WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH)
    reason, out = read(path, content, shape, **options)
    if reason:
        return "set aside"
    expected = shown(content)
    # Premultiplied colours are rounded twice.
    allowed = 0 if (expected % 1 == 0).all() else 1.01
    difference = np.abs(out - expected).max()
    return "" if difference <= allowed else f"off by {difference:g}"


def combinations_of(kind):
    """Files of a kind in every combination of samples, planes, byte order and layout; the rest is random.

    Kinds of samples that we never read come in one layout each.
    """
    rng = np.random.default_rng(0)
    for (bits, form), planar, order, layout in itertools.product(SAMPLES, (1, 2), "<>", LAYOUTS):
        if (form != 1 or bits in (12, 32)) and layout != LAYOUTS[rng.integers(3)]:
            continue
        possible = [
            (compression, predictor)
            for compression, predictor in COMPRESSIONS
            if predictor == 1 or (predictor == 2 and bits % 8 == 0 and form != 3) or (predictor == 3 and form == 3)
        ]
        compression, predictor = possible[rng.integers(len(possible))]
        fill, orientation = 1 + (rng.random() < 0.2), int(rng.integers(1, 9))
        way = {"planar": planar, "order": order, "compression": compression, "predictor": predictor, "fill": fill}
        content = written(kind, bits, form, **way, **layout, tags={274: orientation} if orientation > 1 else {})
        yield bits, form, content, orientation, way | layout | {"orientation": orientation}


@pytest.mark.parametrize("kind", KINDS)
def test_every_combination_is_read_as_tifffile_reads_it_or_set_aside(tmp_path, kind):
    wrong = []
    for bits, form, content, orientation, way in combinations_of(kind):
        verdict = judge(tmp_path / "a.tif", content, orientation)
        needed = form == 1 and (kind, bits) in READ and way["fill"] == 1
        if verdict not in ("", "set aside") or (needed and verdict):
            wrong.append((bits, form, way, verdict))
        if not verdict:
            assert judge(tmp_path / "a.tif", content, orientation, convert=False) in ("", "set aside")
    assert wrong == []


@pytest.mark.parametrize(("kind", "bits"), [("RGB", 8), ("RGB", 16), ("black is zero", 16), ("white is zero", 8)])
def test_every_compression_is_read_in_every_layout(tmp_path, kind, bits):
    samples = samples_of(kind, bits)
    for (compression, predictor), planar, order, layout in itertools.product(COMPRESSIONS, (1, 2), "<>", LAYOUTS):
        if predictor < 3:
            way = {"planar": planar, "order": order, "compression": compression, "predictor": predictor}
            content = written(kind, bits, **way, **layout)
            np.testing.assert_array_equal(
                stored_samples(content), samples
            )  # the reference agrees with what was written
            assert judge(tmp_path / "a.tif", content) == "", (way, layout)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("order", "<>")
def test_16_bit_planes_without_compression_are_read(tmp_path, order, layout):
    samples = samples_of("RGB", 16)
    reason, out = read(tmp_path / "a.tif", written("RGB", 16, planar=2, order=order, **layout))
    assert reason == ""
    np.testing.assert_array_equal(out, samples >> 8)


def test_16_bit_grey_with_white_at_zero_is_inverted(tmp_path):
    samples = samples_of("white is zero", 16)
    reason, out = read(tmp_path / "a.tif", written("white is zero", 16))
    assert reason == ""
    np.testing.assert_array_equal(out, np.repeat(255 - (samples >> 8), 3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("planar", [1, 2])
def test_orientation_is_applied_once(tmp_path, orientation, planar):
    samples = samples_of("RGB", 16)
    expected = turned(samples >> 8, orientation)
    reason, out = read(
        tmp_path / "a.tif", written("RGB", 16, planar=planar, tags={274: orientation}), expected.shape[:2]
    )
    assert reason == ""
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("compression", ["tiff_ccitt", "group3", "group4"])
def test_fax_compressions_are_read(tmp_path, compression):
    bits = np.random.default_rng(0).random((HEIGHT, WIDTH)) > 0.5
    file = io.BytesIO()
    Image.fromarray(bits).save(file, "TIFF", compression=compression)
    reason, out = read(tmp_path / "a.tif", file.getvalue())
    assert reason == ""
    np.testing.assert_array_equal(out, np.repeat(bits[..., None] * 255, 3, axis=2))


# Blocks of one colour, because a JPEG of noise loses the colours.
BLOCKS = np.kron(np.random.default_rng(0).integers(0, 256, (5, 6, 3)), np.ones((4, 4, 1), int)).astype(np.uint8)


@pytest.mark.parametrize("layout", [{}, {"tile": 16}], ids=str)
@pytest.mark.parametrize("subsampling", ["444", "422", "420"])
@pytest.mark.parametrize(
    ("photometric", "stream"),
    [(YCBCR, "YCBCR"), (RGB, "RGB"), (RGB, "YCBCR"), (YCBCR, "RGB"), (BLACK_IS_ZERO, "L"), (WHITE_IS_ZERO, "L")],
)
def test_jpeg_in_tiff_is_read_if_stream_and_tags_agree(tmp_path, photometric, stream, subsampling, layout):
    samples = BLOCKS[..., :1] if stream == "L" else BLOCKS
    jpeg = {} if stream == "L" else {"colorspace": "RGB", "outcolorspace": stream, "subsampling": subsampling}
    tags = {530: {"444": (1, 1), "422": (2, 1), "420": (2, 2)}[subsampling]} if photometric == YCBCR else {}
    content = tiff_file(samples, 8, photometric, compression=JPEG, jpeg=jpeg, tags=tags, **layout)
    agree = stream == "L" or (photometric == YCBCR) == (stream == "YCBCR")
    reason, _ = read(tmp_path / "a.tif", content)
    assert (reason == "") == agree
    assert agree or "expected tags and JPEG stream to agree" in reason
    if agree:
        assert judge(tmp_path / "a.tif", content) == ""


def plain(**options):
    return written("RGB", 8, **options)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
NO_DATA = WIDTH * 7 * 3
SMALL_COLOURS = tuple(np.random.default_rng(0).integers(0, 256, 768).tolist())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (written("black is zero", 8, tags={262: None}), "photometric interpretation, got none"),
        (written("CMYK", 8), "got mode CMYK"),
        (written("YCbCr", 8), "got mode YCbCr"),
        (plain(tags={700: XMP}), "expected the orientation in tag 274"),
        (written("black is zero", 8, 2), "expected samples that are unsigned integers, got sample format (2,)"),
        (written("black is zero", 12), "expected 1 or 2 or 4 or 8 or 16 bits per sample, got 12"),
        (tiff_file(samples_of("RGB, alpha", 8), 8, RGB), "got 4 samples and 0 descriptions"),
        (written("black is zero, alpha", 8, planar=2, compression=LZW), "got transparency in a separate plane"),
        (written("YCbCr", 8, compression=LZW, tags={530: (1, 1)}), "expected YCbCr only with JPEG"),
        (written("palette", 8, tags={320: SMALL_COLOURS}), "expected a palette of 16-bit values"),
        (written("palette", 8, tags={320: SMALL_COLOURS[:300]}), "expected a palette of 768 values, got 300"),
        (plain(tags={317: 2}), "expected no predictor or a horizontal one, got 2 with none"),
        (plain(compression=PACKBITS, tags={317: 2}), "got 2 with PackBits"),
        (plain(compression=LZW, tags={317: 34892}), "got 34892 with LZW"),
        (plain(compression=WEBP), "got 50001"),
        (plain(tags={32997: 2}), "expected a two-dimensional image, got one of depth 2"),
        (plain(tags={284: 3}), "expected a planar configuration of 1 or 2, got 3"),
        (plain(rows=7, tags={273: (8, 0, 0), 279: (NO_DATA, 0, 0)}), "expected 3 strips or tiles with data, got 1"),
        (plain(rows=7, tags={273: (8,), 279: (NO_DATA,)}), "expected 3 strips or tiles with data, got 1"),
        (plain(planar=2, tags={273: (8, 488), 279: (480, 480)}), "expected 3 strips or tiles with data, got 2"),
        (written("RGB", 32), "a damaged TIFF, or one with samples that Pillow"),
    ],
    ids=[
        "no photometric", "CMYK", "uncompressed YCbCr", "XMP", "signed", "12 bits", "a sample of no meaning",
        "plane of alpha", "YCbCr with LZW",
        "8-bit palette", "short palette", "predictor alone", "predictor with PackBits", "unknown predictor", "WebP",
        "depth", "planes", "empty strips", "missing strips", "missing plane", "32 bits",
    ],
)  # fmt: skip
def test_files_that_pillow_would_show_wrong_are_set_aside(tmp_path, content, reason):
    assert reason in read(tmp_path / "a.tif", content)[0]
    assert read(tmp_path / "a.tif", content, convert=False)[0]


@pytest.mark.parametrize(("tag", "value"), [(529, (299, 587, 114)), (532, (16, 235, 128, 240, 128, 240))])
def test_ycbcr_of_another_range_is_set_aside(tmp_path, tag, value):
    content = tiff_file(BLOCKS, 8, YCBCR, compression=JPEG, jpeg={"subsampling": "444"}, tags={530: (1, 1), tag: value})
    assert "expected YCbCr with JPEG's range" in read(tmp_path / "a.tif", content)[0]


def test_the_reader_of_many_files_agrees_on_every_kind(tmp_path):
    """The fast path without Pillow reads only plain RGB; the layout of one file is not assumed for the next."""
    size = HEIGHT
    contents = [
        written(kind, bits, samples=samples_of(kind, bits)[:, :size], planar=planar, order=order, fill=fill, **layout)
        for kind, bits, planar, order, fill, layout in itertools.product(
            ("RGB", "RGB, extra", "black is zero", "white is zero", "palette"), (8, 16), (1, 2), "<>", (1, 2), LAYOUTS
        )
        if (kind, bits) != ("palette", 16)
    ]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.tif").write_bytes(content)
    for convert in (True, False):
        pixels, reasons = PatchReader(tmp_path, size, convert=convert).read([f"{n}.tif" for n in range(len(contents))])
        assert 0 < len(reasons) < len(contents)
        for number in set(range(len(contents))) - set(reasons):
            np.testing.assert_array_equal(pixels[number], shown(contents[number]))
