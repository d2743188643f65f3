"""A table of slides that every head learns from in seconds."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def slides():
    """600 rows of 12 slides: one informative column, one constant, the rest noise. Each slide has an offset."""
    rng = np.random.default_rng(3)
    groups = np.repeat([f"s{i}" for i in range(12)], 50)
    y = rng.integers(0, 2, 600)
    X = rng.normal(size=(600, 8)) + np.repeat(rng.normal(size=(12, 1)), 50, axis=0)
    X[:, 0] += 2 * y
    X[:, 7] = 3.25
    X = X.astype(np.float32)
    X.setflags(write=False)
    return X, y, groups
