"""The stain family equals slow reference implementations that use standard libraries."""

import numpy as np
import pytest

from histoblend.features.handcrafted import families
from tests.features.oracle_cases import BATCHES, assert_equals_oracle

NAMES = [column.name for column in families.columns(["stain"])]


@pytest.mark.parametrize("make", BATCHES)
def test_equals_oracle(make):
    assert_equals_oracle(make(), "stain")


def test_known_stains_are_recovered():
    rng = np.random.default_rng(0)
    vectors = np.array([[0.65, 0.70, 0.29], [0.20, 0.95, 0.24]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    # each stain is pure in half of the pixels, so the 1 % and 99 % quantiles of the angle are the stains
    amounts = np.zeros((96, 96, 2))
    amounts[:48, :, 0], amounts[48:, :, 1] = rng.uniform(0.4, 0.9, (2, 48, 96))
    patch = np.round(256 * 10 ** -(amounts @ vectors) - 1).clip(0, 255).astype(np.uint8)
    values = dict(zip(NAMES, families.compute(patch[None], ["stain"])[0], strict=True))
    for stain, vector in zip(("haematoxylin", "eosin"), vectors, strict=True):
        parts = [values[f"stain_{part}_{stain}_whole"] for part in ("red", "green", "blue")]
        np.testing.assert_allclose(parts, vector, atol=0.02)
        assert values[f"stain_mean_{stain}_whole"] == pytest.approx(0.325, abs=0.01)
    assert values["stain_fallback_both_whole"] == 0
    assert values["stain_ratio_both_whole"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (120, 40, 160)])
def test_white_black_and_single_stain_patches_use_the_fallback(colour):
    values = families.compute(np.full((1, 96, 96, 3), colour, np.uint8), ["stain"])[0]
    assert np.isfinite(values).all()
    assert values[NAMES.index("stain_fallback_both_whole")] == 1
