"""Measures agree with values calculated by hand, are always finite and depend on one patch only."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from histoblend.data.audit.measures import MEASURES, measure


def measure_one(patch):
    return measure(patch[None]).table().iloc[0]


def plain(*colour, size=48):
    return np.full((size, size, 3), colour, np.uint8)


def test_a_grey_patch():
    row = measure_one(plain(100, 120, 140))
    assert row["brightness"] == pytest.approx(120)
    assert row[["red", "green", "blue"]].tolist() == [100, 120, 140]
    assert (row["contrast"], row["detail"], row["clipped"], row["dark"], row["ink"]) == (0, 0, 0, 0, 0)
    assert row["tissue"] == 1
    density = np.log10(256) - np.log10(np.array([101, 121, 141]))
    np.testing.assert_allclose(row[["nuclei_red", "nuclei_blue"]], (density / density.sum())[[0, 2]], atol=1e-3)


def test_half_dark_half_light():
    patch = plain(230, 230, 230)
    patch[:, :24] = 50
    patch[0, :12] = 255
    row = measure_one(patch)
    assert row["tissue"] == 0.5
    assert row["dark"] == (8 * 16 - 4) / 16**2  # the bright pixels are in four blocks
    assert row["clipped"] == pytest.approx(12 / 48**2)
    # A square of 5 × 5 blocks has 12 × 12 positions. Those in the first 4 columns are dark throughout, except in the
    # rows of the bright pixels.
    assert row["ink"] == pytest.approx(4 / 12, abs=0.04)
    # One step from 50 to 230: 1 of 15 differences between the finer blocks, 1 of 7 between the coarser blocks.
    assert row["sharpness"] == pytest.approx(7 / 15, abs=0.02)
    assert row["detail"] == pytest.approx(180**2 / 7, rel=0.02)


def test_sharpness_of_noise_is_4():
    noise = np.random.default_rng(0).normal(150, 20, (480, 480, 1)).clip(0, 255).astype(np.uint8).repeat(3, axis=2)
    # The average of four blocks has a quarter of the variance.
    assert measure_one(noise)["sharpness"] == pytest.approx(4, rel=0.08)


@given(arrays(np.uint8, (2, 32, 35, 3)))
@settings(max_examples=40)
def test_measures_are_finite_and_do_not_depend_on_other_patches(patches):
    both, alone = measure(patches), measure(patches[1:])
    assert np.isfinite(both.values).all()
    assert both.values.shape == (2, len(MEASURES))
    np.testing.assert_array_equal(both.values[1:], alone.values)
    np.testing.assert_array_equal(both.vectors[1:], alone.vectors)
    assert both.bits[1] == alone.bits[0]


@pytest.mark.parametrize("turns", [1, 2, 3])
@given(seed=st.integers(0, 50))
@settings(max_examples=5)
def test_measures_do_not_depend_on_orientation(turns, seed):
    patch = np.random.default_rng(seed).integers(0, 256, (36, 36, 3), dtype=np.uint8)
    shape_only = [name for name in MEASURES if not name.startswith(("nuclei", "fibres", "red", "green", "blue"))]
    one, other = measure_one(patch)[shape_only], measure_one(np.rot90(patch, turns).copy())[shape_only]
    np.testing.assert_allclose(one.astype(float), other.astype(float), rtol=1e-4, atol=1e-4)
