"""Blocks of rows of a spread table."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from histoblend.models.table_blocks import blocks_of


@given(st.lists(st.integers(0, 99), unique=True), st.lists(st.integers(1, 99), unique=True))
def test_blocks_contain_each_row_once(rows, cuts):
    rows, edges = np.array(sorted(rows), int), [0, *sorted(cuts), 100]
    local = blocks_of(rows, edges)
    assert len(local) == len(edges) - 1
    joined = np.concatenate([start + inside for start, inside in zip(edges[:-1], local, strict=True)])
    np.testing.assert_array_equal(joined, rows)
    for inside, low, high in zip(local, edges[:-1], edges[1:], strict=True):
        assert ((inside >= 0) & (inside < high - low)).all()
