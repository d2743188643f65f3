"""A table written by rows and read by columns: same values from memory and file, and no file left behind."""

import numpy as np
import pytest

import histoblend.pipelines.predict.shards
from histoblend.pipelines.predict.shards import Columns


@pytest.mark.parametrize("most", [0, 10**9], ids=["file", "memory"])
def test_columns_have_the_values_of_the_rows(tmp_path, monkeypatch, most):
    monkeypatch.setattr(histoblend.pipelines.predict.shards, "MAX_IN_MEMORY", most)
    table = np.random.default_rng(0).normal(size=(103, 11)).astype(np.float32)
    with Columns(103, tmp_path) as columns:
        for start in range(0, 103, 20):
            columns.add(table[start : start + 20])
        np.testing.assert_array_equal(columns.take(np.array([10, 0, 3])), table[:, [10, 0, 3]])
        np.testing.assert_array_equal(columns.take(np.arange(11)), table)
    assert not list(tmp_path.iterdir())


def test_taking_columns_before_rows_is_an_error(tmp_path):
    with Columns(3, tmp_path) as columns, pytest.raises(ValueError, match="got none"):
        columns.take(np.arange(2))
