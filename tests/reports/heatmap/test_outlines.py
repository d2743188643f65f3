"""Outlines: filled again they give the very mask, and every ring is simple, closed and turned the right way."""

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from histoblend.reports.heatmap.outlines import signed_area, trace


def inside(ring, x, y):
    """Points inside a ring, by counting the sides that a ray to the left crosses."""
    crossings = np.zeros(x.shape, int)
    for (x0, y0), (x1, y1) in pairwise(ring):
        if x0 == x1:
            crossings += (min(y0, y1) < y) & (y < max(y0, y1)) & (x0 < x)
    return crossings % 2 == 1


def filled(pieces, shape):
    """Numbers of the pieces that cells lie in, by their middles."""
    y, x = np.indices(shape) + 0.5
    found = np.zeros(shape, int)
    for piece in pieces:
        own = inside(piece.exterior, x, y)
        for hole in piece.holes:
            own &= ~inside(hole, x, y)
        assert not found[own].any()
        found[own] = piece.number
    return found


@settings(deadline=None, max_examples=200)
@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_outlines_filled_again_give_the_mask(mask):
    labels, pieces = trace(mask)
    np.testing.assert_array_equal(labels > 0, mask)
    np.testing.assert_array_equal(filled(pieces, mask.shape), labels)
    for piece in pieces:
        rings = [piece.exterior, *piece.holes]
        assert signed_area(piece.exterior) > 0
        assert all(signed_area(hole) < 0 for hole in piece.holes)
        assert sum(map(signed_area, rings)) == (labels == piece.number).sum()
        for ring in rings:
            assert (ring[0] == ring[-1]).all()
            assert len(set(map(tuple, ring[:-1].tolist()))) == len(ring) - 1
            steps = np.diff(np.concatenate([ring, ring[1:2]]), axis=0)
            # every side runs along one axis, and the next one along the other
            assert ((steps == 0).sum(axis=1) == 1).all()
            assert ((steps[:-1] == 0) != (steps[1:] == 0)).all()


def test_one_cell_by_hand():
    _, [piece] = trace(np.array([[False, False], [False, True]]))
    assert piece.exterior.tolist() == [[1, 1], [2, 1], [2, 2], [1, 2], [1, 1]]


def test_corners_do_not_join_cells_but_join_the_ring_around_a_hole():
    _, pieces = trace(np.eye(2, dtype=bool))
    assert [len(piece.exterior) for piece in pieces] == [5, 5]
    # A ring of cells that is closed only over a corner: a hole that touches the outer ring there.
    ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], bool)
    _, [piece] = trace(ring)
    assert [signed_area(hole) for hole in piece.holes] == [-1]
    assert signed_area(piece.exterior) == 8


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 9))
def test_a_large_mask_is_traced_in_a_moment(seed):
    mask = np.random.default_rng(seed).random((200, 200)) < 0.5
    labels, pieces = trace(mask)
    assert sum(signed_area(ring) for piece in pieces for ring in (piece.exterior, *piece.holes)) == mask.sum()
    assert labels.max() == len(pieces)


def test_nothing_has_no_outline():
    assert trace(np.zeros((3, 4), bool))[1] == []
