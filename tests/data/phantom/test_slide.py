"""The phantom slide is reproducible, has tumour in the disc and glass around the tissue, and its levels agree."""

import numpy as np
import pytest

from histoblend.data.errors import InputError
from histoblend.data.phantom.slide import SPACING, GroundTruth, write_phantom_slide
from histoblend.data.slides.plane import area_mean
from histoblend.data.slides.slide import Slide


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "a.tif"
    return path, write_phantom_slide(path, width=1300, height=1100, seed=4)


def test_openslide_reads_it_with_its_resolution_and_truth(drawn):
    path, truth = drawn
    with Slide(path) as slide:
        assert slide.size == (1300, 1100)
        assert slide.spacing == pytest.approx((SPACING, SPACING))
        assert GroundTruth.of(slide.properties) == truth
        fine = slide.read(0, 0, 0, 1300, 1100)
        coarse = slide.read(1, 0, 0, 325, 275)
    np.testing.assert_array_equal(coarse, area_mean(fine, (4, 4), (275, 325)))
    assert [entry.name for entry in path.parent.iterdir()] == ["a.tif"]


def test_disc_tissue_and_glass_look_different(drawn):
    path, truth = drawn
    with Slide(path) as slide:
        pixels = slide.read(0, 0, 0, 1300, 1100).astype(float)
    y, x = np.indices(pixels.shape[:2])
    tissue, disc = truth.tissue(x, y), truth.disc(x, y)
    assert 0.05 < disc.mean() < tissue.mean() < 0.8
    assert pixels[~tissue].mean() > 220
    assert pixels[tissue].mean() < 190
    # Tumour nuclei are paler than lymphocytes, so there are fewer very dark pixels.
    dark = pixels.max(axis=2) < 80
    assert dark[disc & tissue].mean() < 0.9 * dark[tissue & ~disc].mean()


def test_the_seed_determines_the_slide(drawn, tmp_path):
    path, truth = drawn
    assert write_phantom_slide(tmp_path / "a.tif", width=1300, height=1100, seed=4) == truth
    assert (tmp_path / "a.tif").read_bytes() == path.read_bytes()
    other = write_phantom_slide(tmp_path / "b.tif", width=1300, height=1100, seed=5)
    assert other != truth


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"kind": "x"}', '{"kind": "histoblend phantom slide"}', "[" * 9999])
def test_other_slides_have_no_ground_truth(text):
    assert GroundTruth.of({"tiff.ImageDescription": text}) is None


def test_sizes_out_of_range_are_rejected(tmp_path):
    with pytest.raises(InputError, match="width must be 1024 to 100000 pixels; got 5"):
        write_phantom_slide(tmp_path / "a.tif", width=5)
    assert not list(tmp_path.iterdir())
