"""Compare a feature family with its oracle on all kinds of images; shared by the tests of the families."""

from functools import cache, partial

import numpy as np
import pytest

from histoblend.data.phantom.patches import phantom
from histoblend.features.handcrafted import families
from tests.oracles import handcrafted, pictures

SIZES = [(32, 32), (33, 47), (96, 96), (224, 200)]
#: Side and number of phantom patches. The oracles are slow on large patches.
PHANTOMS = {32: 4, 65: 4, 96: 4, 224: 1}


def _extremes(height, width):
    patches = [*pictures.extremes(height, width).values(), pictures.tissue(9, height, width)]
    return np.stack(patches[:: 6 if height > 200 else 1])


def _real():
    patches = pictures.real(6)
    if patches is None:
        pytest.skip("the real sample is not available")
    return patches


@cache
def _phantom(size, count):
    """Return every other patch, which includes both scanners and both labels."""
    patches = phantom(2 * count, slides=2, seed=11, size=size).render(0, 2 * count)
    return patches[::2]


BATCHES = [
    pytest.param(lambda: np.stack([pictures.tissue(seed) for seed in range(4)]), id="tissue"),
    pytest.param(_real, id="real"),
    *(pytest.param(partial(_phantom, *item), id=f"phantom-{item[0]}") for item in PHANTOMS.items()),
    *(pytest.param(partial(_extremes, *size), id=f"extremes-{size[0]}x{size[1]}") for size in SIZES),
]


def assert_equals_oracle(patches, family, rtol=1e-6, atol=1e-9):
    columns = families.family_named(family).columns
    values = families.compute(patches, [family])
    expected = handcrafted.table(patches, family, [column.name for column in columns])
    # the table is float32, so it can only agree to half of its last digit
    np.testing.assert_allclose(values, expected, rtol=rtol + 2**-24, atol=atol)
    margin = 1e-5 * np.abs(values) + atol  # rounding, such as −2e-16 for a spread of 0
    assert (values + margin >= [column.low for column in columns]).all()
    assert (values - margin <= [column.high for column in columns]).all()
