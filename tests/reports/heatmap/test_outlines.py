"""Outlines: filled again they give the mask, and every ring is simple, closed and correctly oriented."""

from itertools import pairwise

import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from histoblend.reports.heatmap.files import outlines


def signed_area(ring):
    """Area inside a closed ring by the shoelace formula; positive where x turns towards y."""
    x, y = np.asarray(ring, float).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def inside(ring, x, y):
    """Which points are inside a ring, by counting the sides that a ray to the left crosses."""
    crossings = np.zeros(x.shape, int)
    for (x0, y0), (x1, y1) in pairwise(ring):
        if x0 == x1:
            crossings += (min(y0, y1) < y) & (y < max(y0, y1)) & (x0 < x)
    return crossings % 2 == 1


def rings_of(polygon):
    return [shapely.get_coordinates(ring) for ring in (polygon.exterior, *polygon.interiors)]


def filled(polygons, shape):
    """Number of the polygon that holds each cell's centre."""
    y, x = np.indices(shape) + 0.5
    labels = np.zeros(shape, int)
    for number, polygon in enumerate(polygons, start=1):
        exterior, *holes = rings_of(polygon)
        own = inside(exterior, x, y)
        for hole in holes:
            own &= ~inside(hole, x, y)
        assert not labels[own].any()
        labels[own] = number
    return labels


@settings(max_examples=200)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_outlines_filled_again_give_the_mask(mask):
    labels, polygons = outlines(mask)
    np.testing.assert_array_equal(labels > 0, mask)
    np.testing.assert_array_equal(filled(polygons, mask.shape), labels)
    for number, polygon in enumerate(polygons, start=1):
        exterior, *holes = rings_of(polygon)
        assert signed_area(exterior) > 0
        assert all(signed_area(hole) < 0 for hole in holes)
        assert sum(map(signed_area, (exterior, *holes))) == (labels == number).sum()
        for ring in (exterior, *holes):
            assert (ring[0] == ring[-1]).all()
            assert len(set(map(tuple, ring[:-1].tolist()))) == len(ring) - 1
            steps = np.diff(np.concatenate([ring, ring[1:2]]), axis=0)
            # Sides run along the axes, and consecutive sides along different ones.
            assert ((steps == 0).sum(axis=1) == 1).all()
            assert ((steps[:-1] == 0) != (steps[1:] == 0)).all()


def test_outline_of_one_cell():
    _, [polygon] = outlines(np.array([[False, False], [False, True]]))
    assert [*polygon.exterior.coords] == [(1, 1), (2, 1), (2, 2), (1, 2), (1, 1)]


def test_cells_that_share_a_corner_are_two_regions():
    _, polygons = outlines(np.eye(2, dtype=bool))
    assert [len(polygon.exterior.coords) for polygon in polygons] == [5, 5]


def test_hole_may_touch_the_outer_ring_in_a_corner():
    ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
    _, [polygon] = outlines(ring)
    exterior, *holes = rings_of(polygon)
    assert [signed_area(hole) for hole in holes] == [-1]
    assert signed_area(exterior) == 8


@settings(max_examples=5)
@given(st.integers(0, 9))
def test_large_masks(seed):
    mask = np.random.default_rng(seed).random((200, 200)) < 0.5
    labels, polygons = outlines(mask)
    assert sum(polygon.area for polygon in polygons) == mask.sum()
    assert labels.max() == len(polygons)


def test_empty_mask_has_no_outline():
    assert outlines(np.zeros((3, 4), bool))[1] == []
