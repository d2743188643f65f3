"""Numbers of workers, by joblib's rule."""

import numpy as np
import pytest

from histoblend.data.errors import InputError
from histoblend.data.workers import count_workers


@pytest.mark.parametrize(
    ("workers", "expected"), [(1, 1), (7, 7), (np.int64(3), 3), (-1, 4), (-2, 3), (-4, 1), (-5, 1), (-99, 1)]
)
def test_negative_numbers_count_down_from_the_number_of_cores(monkeypatch, workers, expected):
    monkeypatch.setattr("joblib.cpu_count", lambda: 4)
    counted = count_workers(workers)
    assert (counted, type(counted)) == (expected, int)


@pytest.mark.parametrize("workers", [0, 1.5, "2", None, True])
def test_anything_else_is_refused(workers):
    with pytest.raises(InputError, match=r"^workers must be a positive number, or -1 for one per core .*; got .*\.$"):
        count_workers(workers)
