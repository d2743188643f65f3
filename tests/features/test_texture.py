"""The texture families equal scikit-image's and SciPy's answers."""

import pytest

from tests.features.oracle_cases import BATCHES, assert_equals_oracle


@pytest.mark.parametrize("family", ["cooccurrence", "lbp", "gradient"])
@pytest.mark.parametrize("make", BATCHES)
def test_equals_oracle(make, family):
    assert_equals_oracle(make(), family)
