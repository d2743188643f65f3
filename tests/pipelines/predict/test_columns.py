"""Rows in, columns out, the same from memory and from a file, and nothing left behind."""

import numpy as np
import pytest

import histoblend.pipelines.predict.shards
from histoblend.pipelines.predict.shards import Columns


@pytest.mark.parametrize("room", [0, 10**9], ids=["file", "memory"])
def test_columns_come_out_as_rows_went_in(tmp_path, monkeypatch, room):
    monkeypatch.setattr(histoblend.pipelines.predict.shards, "MOST_IN_MEMORY", room)
    table = np.random.default_rng(0).normal(size=(103, 11)).astype(np.float32)
    with Columns(103, tmp_path) as columns:
        for start in range(0, 103, 20):
            columns.add(table[start : start + 20])
        np.testing.assert_array_equal(columns.take(np.array([10, 0, 3])), table[:, [10, 0, 3]])
        np.testing.assert_array_equal(columns.take(np.arange(11)), table)
    assert not list(tmp_path.iterdir())


def test_nothing_to_take_is_an_error(tmp_path):
    with Columns(3, tmp_path) as columns, pytest.raises(ValueError, match="none was"):
        columns.take(np.arange(2))
