"""Heat maps: areas computed by hand, colours on both sides of the threshold, and the position of the overlay."""

import numpy as np
import pytest

from histoblend.reports.heatmap.heat import ABOVE, AT, BELOW, colours, overlay
from tests.reports.heat_maps import make_heat


def test_areas_are_cut_off_at_the_edge():
    areas = make_heat().areas()
    whole = (32 * 0.972 / 1000) ** 2
    np.testing.assert_allclose(areas[0, 0], whole)
    np.testing.assert_allclose(areas[0, -1], whole / 2)
    np.testing.assert_allclose(areas[-1, -1], whole / 4)
    np.testing.assert_allclose(areas.sum(), 176 * 144 * (0.972 / 1000) ** 2)


def test_corners_are_clipped_to_the_slide():
    heat = make_heat()
    assert heat.on_slide(np.array([[0, 0], [1, 2], [6, 5]])).tolist() == [[0, 0], [64, 128], [352, 288]]


def test_colours_change_at_the_threshold():
    rgb = colours(np.array([0.0, 0.15, 0.3, 0.65, 1.0, np.nan]), 0.3)
    middle = [[(a + b) / 2 for a, b in zip(one, AT, strict=True)] for one in (BELOW, ABOVE)]
    np.testing.assert_allclose(rgb[[0, 2, 4, 5]], [BELOW, AT, ABOVE, AT])
    np.testing.assert_allclose(rgb[[1, 3]], middle, atol=0.5)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_extreme_thresholds_have_colours(threshold):
    assert colours(np.linspace(0, 1, 5), threshold).shape == (5, 3)


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_overlay_is_aligned_with_the_cells(factor):
    heat = make_heat()
    shape = (-(-heat.plane[1] // factor), -(-heat.plane[0] // factor))
    picture = overlay(np.full((*shape, 3), 255, np.uint8), factor, heat)
    y, x = np.indices(shape)
    rows, columns = (y * factor + factor // 2) // 32, (x * factor + factor // 2) // 32
    predicted = np.isfinite(heat.values)[rows, columns]
    assert (picture[~predicted] == 255).all()
    assert (picture[predicted] < 255).any(axis=-1).all()
    red = picture[..., 0].astype(int) > picture[..., 2]
    np.testing.assert_array_equal(red[predicted], (heat.values > 0.5)[rows, columns][predicted])
