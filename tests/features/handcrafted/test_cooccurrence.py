"""The cooccurrence family equals slow reference implementations that use standard libraries."""

import numpy as np
import pytest

from histoblend.features.handcrafted.cooccurrence import LEVELS, PROPERTIES
from tests.features.oracle_cases import BATCHES, assert_equals_oracle


@pytest.mark.parametrize("make", BATCHES)
def test_equals_oracle(make):
    assert_equals_oracle(make(), "cooccurrence")


def test_documented_ranges_are_what_sixteen_levels_allow():
    """The largest entropy of a distribution is the logarithm of the number of its values."""
    furthest = LEVELS - 1
    shares = dict.fromkeys(["homogeneity", "asm", "energy"], (0, 1))
    entropies = {"entropy": LEVELS**2, "sum-entropy": 2 * LEVELS - 1, "difference-entropy": LEVELS}
    expected = {"contrast": (0, furthest**2), "dissimilarity": (0, furthest), **shares, "correlation": (-1, 1)}
    expected |= {name: (0, np.log(values)) for name, values in entropies.items()}
    said = {row.name: (row.low, row.high) for row in PROPERTIES}
    # Skewness has no limit that 16 levels set; only its sign is free.
    low, high = said.pop("sum-skew")
    assert low == -high < 0
    assert said == {name: pytest.approx(ends, abs=1e-4) for name, ends in expected.items()}
