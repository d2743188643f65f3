"""The gabor family equals slow reference implementations that use standard libraries."""

import pytest

from tests.features.oracle_cases import BATCHES, assert_equals_oracle


@pytest.mark.parametrize("make", BATCHES)
def test_equals_oracle(make):
    assert_equals_oracle(make(), "gabor")
