"""Whole slides: pixels and resolutions as they were written, and one clear line for files that are no slides."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from histoblend.data.errors import InputError
from histoblend.data.slides.slide import Bounds, Slide, given_spacing, over_white, stored_bounds, stored_spacing
from tests import ROOT
from tests.data.slide_files import Bare, write_scn, write_tiff

SLIDES = ROOT.parent / "shared" / "data" / "slides"


def real(name):
    path = SLIDES / name
    if not path.is_file():
        pytest.skip("the real slides are not next to the checkout")
    return path


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)


def test_pixels_and_resolution_are_read_back(tmp_path, noise):
    with Slide(write_tiff(tmp_path / "a.tif", noise, mpp=0.25, steps=(4,))) as slide:
        assert slide.size == (900, 700)
        assert slide.spacing == pytest.approx((0.25, 0.25))
        assert slide.extent == pytest.approx((225, 175))
        assert [(level.width, level.height, level.downsample) for level in slide.levels] == [
            (900, 700, 1),
            (225, 175, 4),
        ]
        np.testing.assert_array_equal(slide.read(0, 13, 101, 300, 200), noise[101:301, 13:313])
        np.testing.assert_array_equal(slide.read(1, 3, 5, 40, 30), noise[::4, ::4][5:35, 3:43])
        assert slide.reads == [(0, 13, 101, 300, 200), (1, 3, 5, 40, 30)]


def test_the_coarsest_level_with_enough_resolution_is_chosen():
    slide = Bare((8000, 8000), (2000, 2000), (500, 500), spacing=(0.25, 0.25))
    chosen = {wanted: slide.level_for(wanted) for wanted in (0.1, 0.25, 0.972, 1.0, 3.9, 4.0, 100)}
    assert chosen == {0.1: 0, 0.25: 0, 0.972: 0, 1.0: 1, 3.9: 1, 4.0: 2, 100: 2}
    assert slide.level_for(0.998, 0.005) == 1


def test_unscanned_areas_are_white():
    region = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [100, 0, 255, 128]]], np.uint8)
    # half opaque: 100 · 128/255 + 255 · 127/255 = 177.2
    np.testing.assert_array_equal(over_white(region), [[[10, 20, 30], [255, 255, 255], [177, 127, 255]]])


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        (
            {},
            r"does not state its pixel size; expected openslide.mpp-x and openslide.mpp-y. Give MPP=… \(--mpp\)",
        ),
        ({"openslide.mpp-x": "0.5", "openslide.objective-power": "20"}, r"its objective was 20×.*expected"),
        ({"openslide.mpp-x": "0.5", "openslide.mpp-y": "nonsense"}, "expected pixels of 0.02 to 50 µm; got"),
        ({"openslide.mpp-x": "nan", "openslide.mpp-y": "nan"}, "expected pixels of 0.02 to 50 µm; got"),
        ({"openslide.mpp-x": "-1", "openslide.mpp-y": "-1"}, "expected pixels of 0.02 to 50 µm; got"),
        ({"openslide.mpp-x": "1e9", "openslide.mpp-y": "1e9"}, "expected pixels of 0.02 to 50 µm; got"),
        ({"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.25"}, "nearly square pixels; got .*mpp-x = 0.5.* Give"),
    ],
)
def test_unusable_resolutions_are_rejected(properties, message):
    with pytest.raises(InputError, match=message):
        stored_spacing(Path("x.svs"), properties)


def test_the_scanned_part_of_a_leica_slide_is_read(tmp_path, noise):
    with Slide(write_scn(tmp_path / "a.scn", noise, corner=(1000, 1500), size=(2500, 3000))) as slide:
        assert slide.size == (2500, 3000)
        assert slide.bounds == Bounds(1000, 1500, 900, 700)
        np.testing.assert_array_equal(slide.read(0, 1013, 1601, 300, 200), noise[101:301, 13:313])
        assert (slide.read(0, 0, 0, 100, 100) == 255).all()
    with Slide(write_tiff(tmp_path / "b.tif", noise)) as slide:
        assert slide.bounds is None


@pytest.mark.parametrize(
    ("stated", "bounds"),
    [
        ({"x": "10", "y": "20", "width": "30", "height": "40"}, Bounds(10, 20, 30, 40)),
        ({"x": "0", "y": "0", "width": "100", "height": "200"}, Bounds(0, 0, 100, 200)),
        ({"x": "10", "y": "20", "width": "500", "height": "40"}, Bounds(10, 20, 500, 40)),
        ({"x": "10", "y": "20"}, Bounds(10, 20, 90, 180)),
        ({}, None),
        ({"x": "10"}, None),
        ({"y": "20"}, None),
        ({"width": "30", "height": "40"}, None),
        ({"x": "10.5", "y": "20", "width": "30", "height": "40"}, None),
        ({"x": "1e1", "y": "20", "width": "30", "height": "40"}, None),
        ({"x": "", "y": "20", "width": "30", "height": "40"}, None),
        ({"x": "left", "y": "20", "width": "30", "height": "40"}, None),
        ({"x": "9" * 30, "y": "20", "width": "30", "height": "40"}, None),
        ({"x": "-1", "y": "20", "width": "30", "height": "40"}, None),
        ({"x": "100", "y": "20", "width": "30", "height": "40"}, None),
        ({"x": "10", "y": "200", "width": "30", "height": "40"}, None),
        ({"x": "10", "y": "20", "width": "0", "height": "40"}, None),
        ({"x": "10", "y": "20", "width": "30", "height": "nan"}, None),
    ],
    ids=lambda value: ",".join(f"{name}={text[:5]}" for name, text in value.items()) if isinstance(value, dict) else "",
)
def test_bounds_are_integers_with_their_corner_on_the_slide(stated, bounds):
    assert stored_bounds({f"openslide.bounds-{name}": text for name, text in stated.items()}, (100, 200)) == bounds


@pytest.mark.parametrize("mpp", [-0.5, 1e-9, 1e6, float("nan"), float("inf")])
def test_a_given_resolution_must_be_in_the_range_of_scanners(mpp):
    with pytest.raises(InputError, match=r"MPP \(--mpp\) must be the pixel size"):
        given_spacing(Path("x.svs"), mpp)


def test_a_given_resolution_takes_precedence(tmp_path, noise):
    with Slide(write_tiff(tmp_path / "a.tif", noise, mpp=0.25), mpp=0.5) as slide:
        assert slide.spacing == (0.5, 0.5)
    with pytest.raises(InputError, match="does not state its pixel size"):
        Slide(write_tiff(tmp_path / "b.tif", noise, mpp=0))


def write_bad(path, kind, noise):
    """Write a file that is not a slide and return its path."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "flat":
        tifffile.imwrite(path, noise, photometric="rgb")
    elif kind == "picture":
        Image.fromarray(noise).save(path, format="PNG")
    elif kind == "cut":
        content = write_tiff(path, noise).read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif kind != "missing":
        path.write_bytes({"empty": b"", "text": b"no slide\n" * 50, "random": noise.tobytes()}[kind])
    return path


BAD = {
    "missing": "expected a whole slide; got: No such file",
    "folder": "expected the file of a whole slide; got a folder. For MIRAX, give the .mrxs file",
    "pipe": "got a pipe or a device",
    "empty": "OpenSlide does not recognise the format. It reads Aperio",
    "text": "OpenSlide does not recognise the format. It reads Aperio",
    "random": "OpenSlide does not recognise the format. It reads Aperio",
    "picture": "expected a whole slide; got an image. For patches, use `make predict`",
    "flat": "it is not tiled",
    "cut": "truncated or damaged|the slide is damaged",
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("suffix", [".svs", ".tif"])
def test_a_file_that_is_not_a_slide_gives_one_line(tmp_path, noise, kind, suffix):
    with pytest.raises(InputError, match=BAD[kind]) as caught:
        Slide(write_bad(tmp_path / f"a{suffix}", kind, noise))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.mrxs", "a.MRXS", "a.Mrxs"])
def test_a_mirax_slide_is_recognised_by_its_extension_in_any_case(tmp_path, monkeypatch, name):
    """No real slide is small enough. OpenSlide's message shows that it looked into the folder of a MIRAX slide."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / name).write_bytes(b"x" * 100)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "Slidedat.ini").write_text("[GENERAL]\n")
    with pytest.raises(InputError, match=f"{name}: the slide is damaged .*SLIDE_ID"):
        Slide(tmp_path / name)
    assert not list((tmp_path / "temporary").iterdir())


def test_a_slide_with_an_impossible_size_is_rejected(tmp_path, noise):
    path = write_tiff(tmp_path / "a.tif", noise)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags
        fields = [(tags[name].valueoffset, tags[name].dtype) for name in ("ImageWidth", "ImageLength")]
    for offset, kind in fields:
        # as large as the field can store
        struct.pack_into("<H" if kind == 3 else "<I", content, offset, 0xFFFF if kind == 3 else 2_000_000_000)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"at most 400 mm|truncated or damaged|is damaged"):
        Slide(path, mpp=40.0)


def test_a_damaged_tile_is_reported_and_the_others_are_still_read(tmp_path, noise):
    path = write_tiff(tmp_path / "a.tif", noise)
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[offset : offset + 64] = bytes(64)
    path.write_bytes(content)
    with Slide(path) as slide:
        for _ in range(2):
            with pytest.raises(InputError, match=r"100 × 100 px of level 0 at \(0, 0\) cannot be decoded"):
                slide.read(0, 0, 0, 100, 100)
            np.testing.assert_array_equal(slide.read(0, 300, 300, 200, 100), noise[300:400, 300:500])


def test_real_slides():
    with Slide(real("cmu-1-small-region.svs")) as slide:
        assert (slide.size, slide.spacing) == ((2220, 2967), (0.499, 0.499))
        glass = slide.read(0, 2000, 200, 100, 100)
        assert glass.min() > 200
    with pytest.raises(InputError, match=r"Give MPP=… \(--mpp\)"):
        Slide(real("tcga-cr-7395-01a-01-ts1.svs"))
    with Slide(real("tcga-cr-7395-01a-01-ts1.svs"), mpp=0.25) as slide:
        assert slide.level_for(0.972) == 1


@pytest.mark.parametrize("share", [0.001, 0.3, 0.97])
def test_a_truncated_real_slide_gives_one_line(tmp_path, share):
    content = real("cmu-1-small-region.svs").read_bytes()
    (tmp_path / "a.svs").write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"a\.svs: "):
        Slide(tmp_path / "a.svs")
