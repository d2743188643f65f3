"""Planes average over areas, read non-overlapping regions, and keep pixels unchanged if scales agree."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoblend.data.errors import InputError
from histoblend.data.slides.plane import Plane, area_mean
from histoblend.data.slides.slide import Slide
from tests.data.slide_files import Bare, most_reads, write_tiff


def naive_mean(pixels, scale, shape, first):
    """Compute the area average from the weight of every input pixel for every output pixel."""

    def weights(count, length, step, start):
        matrix = np.zeros((count, length))
        for index in range(count):
            left, right = start + index * step, start + (index + 1) * step
            for each in range(length):
                matrix[index, each] = max(0.0, min(right, each + 1) - max(left, each))
        return matrix / matrix.sum(axis=1, keepdims=True)

    down = weights(shape[0], pixels.shape[0], scale[1], first[1])
    across = weights(shape[1], pixels.shape[1], scale[0], first[0])
    return np.einsum("ih,jw,hwc->ijc", down, across, pixels.astype(float))


@given(
    st.integers(0, 9),
    st.floats(0.6, 6),
    st.floats(0.6, 6),
    st.floats(-0.5, 0.5),
    st.floats(-0.5, 0.5),
)
def test_area_mean_is_the_mean_over_the_area(seed, across, down, left, top):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (rng.integers(8, 30), rng.integers(8, 30), 3), dtype=np.uint8)
    shape = (int((pixels.shape[0] - top) / down), int((pixels.shape[1] - left) / across))
    values = area_mean(pixels, (across, down), shape, (left, top))
    np.testing.assert_allclose(values, naive_mean(pixels, (across, down), shape, (left, top)), atol=0.502)


def test_white_stays_white_and_black_black():
    for value in (0, 255):
        flat = np.full((37, 41, 3), value, np.uint8)
        assert (area_mean(flat, (1.947, 2.31), (15, 20), (0.3, -0.4)) == value).all()


@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.floats(0.2, 2.0),
    st.sampled_from([0.25, 0.5, 0.972, 2.0, 7.776]),
    st.sampled_from([0, 32, 96, 224]),
)
def test_regions_of_blocks_cover_the_level_once(width, height, mpp, wanted, patch):
    slide = Bare((width, height), spacing=(mpp, mpp * 1.02))
    if mpp > 2 * wanted:
        with pytest.raises(InputError, match="expected at most"):
            Plane(slide, wanted, patch=patch)
        return
    plane = Plane(slide, wanted, patch=patch)
    for axis, blocks in ((0, plane.columns), (1, plane.rows)):
        regions = [plane.region(*((0, number) if axis == 0 else (number, 0))) for number in range(blocks)]
        ends = [(region[axis], region[axis] + region[axis + 2]) for region in regions]
        assert ends[0][0] == 0
        assert ends[-1][1] == (width, height)[axis]
        assert all(before[1] == after[0] for before, after in itertools.pairwise(ends))
        assert all(end > start for start, end in ends)
    last = plane.shape(plane.rows - 1, plane.columns - 1)
    assert min(last) >= 1
    # The plane is as large as the slide, within one pixel.
    assert abs(plane.width * plane.spacing[0] - slide.extent[0]) <= max(plane.spacing[0], mpp)
    assert abs(plane.height * plane.spacing[1] - slide.extent[1]) <= max(plane.spacing[1], mpp * 1.02)
    assert plane.block >= patch


def test_every_pixel_is_read_once_and_averaged_in_the_right_position():
    slide = Bare((1800, 1300), (900, 650), spacing=(0.3, 0.3))
    plane = Plane(slide, 0.972, patch=96)
    assert plane.level == 1
    whole = np.concatenate(
        [np.concatenate([plane.read(row, column) for column in range(plane.columns)], 1) for row in range(plane.rows)]
    )
    assert whole.shape == (plane.height, plane.width, 3)
    assert most_reads(slide) == {0: 0, 1: 1}
    source = Bare((1800, 1300), (900, 650)).read(1, 0, 0, 900, 650)
    expected = naive_mean(source[:200, :200], plane.scale, (100, 100), (0, 0))
    np.testing.assert_allclose(whole[:100, :100], expected, atol=0.51)


@pytest.mark.parametrize(("mpp", "same"), [(0.972, True), (0.9765, True), (0.9675, True), (0.98, False), (0.95, False)])
def test_pixels_are_unchanged_if_patches_differ_by_less_than_half_a_pixel(mpp, same):
    # 96 px at 0.972 and at mpp differ by |96 · 0.972 / mpp − 96| px
    plane = Plane(Bare((3000, 2000), spacing=(mpp, mpp)), 0.972, patch=96)
    assert (plane.scale == (1.0, 1.0)) is same
    assert plane.spacing == (pytest.approx((mpp, mpp)) if same else pytest.approx((0.972, 0.972)))


def test_a_slide_at_the_requested_resolution_is_unchanged(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (700, 1100, 3), dtype=np.uint8)
    with Slide(write_tiff(tmp_path / "a.tif", noise)) as slide:
        plane = Plane(slide, 0.972, patch=96)
        np.testing.assert_array_equal(plane.read(1, 2), noise[512:, 1024:])


def test_regions_stay_small_if_no_level_is_close():
    slide = Bare((100_000, 80_000), spacing=(0.25, 0.25))
    plane = Plane(slide, 8.0)
    assert max(plane.region(0, 0)[2:]) <= 4096
