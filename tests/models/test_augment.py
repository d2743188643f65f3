"""Stain augmentation and stain normalisation."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.color import hed_from_rgb, rgb_from_hed

from histoblend.models.augment import jitter_stains, normalise_stains


def levels(densities: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(256 * np.exp(-densities) - 1), 0, 255).astype(np.uint8)


def density(patches: np.ndarray) -> np.ndarray:
    """Optical density of each pixel, (n, pixels, 3)."""
    return -np.log((patches.reshape(len(patches), -1, 3) + 1.0) / 256)


def stained(seed: int, count: int = 4) -> np.ndarray:
    """Patches of two stains, (count, 32, 32, 3) uint8; their pixels have all mixtures of the two stains."""
    rng = np.random.default_rng(seed)
    amounts = rng.dirichlet((0.4, 0.4), (count, 32, 32)) * rng.uniform(1.0, 1.6, (count, 32, 32, 1))
    return levels(amounts @ np.array([[0.65, 0.70, 0.29], [0.25, 0.93, 0.27]]))


def test_strength_0_changes_nothing() -> None:
    patches = stained(0)
    np.testing.assert_array_equal(jitter_stains(patches, 0.0, view=0, seed=0), patches)


def test_a_patch_is_altered_in_the_same_way_in_any_batch() -> None:
    patches = stained(0)
    together = jitter_stains(patches, 0.2, view=3, seed=1)
    alone = np.concatenate([jitter_stains(patch[None], 0.2, view=3, seed=1) for patch in patches[::-1]])[::-1]
    np.testing.assert_array_equal(together, alone)
    assert (together != patches).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(("view", "seed"), [(1, 0), (0, 1)])
def test_another_view_or_seed_alters_differently(view: int, seed: int) -> None:
    patches = stained(0)
    first = jitter_stains(patches, 0.2, view=0, seed=0)
    assert (jitter_stains(patches, 0.2, view=view, seed=seed) != first).any()


def test_jitter_is_affine_in_each_stain_and_uses_the_whole_range() -> None:
    """Scale and shift of each stain are estimated from the patches before and after; stain matrices of scikit-image."""
    rng = np.random.default_rng(0)
    patches = rng.integers(40, 216, (40, 24, 24, 3)).astype(np.uint8)
    patches[:, 0, 0], patches[:, 0, 1] = 0, 255
    altered, gains, shifts = jitter_stains(patches, 0.3, view=0, seed=0), [], []
    for before, after in zip(density(patches), density(altered), strict=True):
        inside = (after > 0.05).all(axis=1) & (after < 2).all(axis=1) & (before < 2).all(axis=1)
        affine = np.linalg.lstsq(np.column_stack([before, np.ones(len(before))])[inside], after[inside], rcond=None)[0]
        mixing = rgb_from_hed @ affine[:3] @ hed_from_rgb
        np.testing.assert_allclose(mixing, np.diag(np.diag(mixing)), atol=0.01)
        gains.append(np.diag(mixing))
        shifts.append(affine[3] @ hed_from_rgb)
        expected = np.clip(256 * np.exp(-(before @ affine[:3] + affine[3])) - 1, 0, 255)
        assert np.abs(expected - (256 * np.exp(-after) - 1)).max() < 3  # black and white included
    # 120 uniform values in ±0.3 come closer than 0.02 to both ends.
    for values in (np.array(gains) - 1, np.array(shifts)):
        assert (values.min(), values.max()) == pytest.approx((-0.3, 0.3), abs=0.02)


def test_a_tiny_strength_keeps_every_level() -> None:
    patch = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 16, 16, 3)
    np.testing.assert_array_equal(jitter_stains(patch, 1e-9, view=0, seed=0), patch)


def test_strength_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strength must be between 0 and 1; got 2"):
        jitter_stains(stained(0), 2.0, view=0, seed=0)


#: Haematoxylin and eosin of two scanners.
SCANNERS = [[[0.65, 0.70, 0.20], [0.25, 0.93, 0.27]], [[0.80, 0.52, 0.22], [0.30, 0.75, 0.59]]]


@pytest.mark.parametrize(("least", "most"), [(0.92, 0.99), (1.1, 1.6), (1.1, 3.2)])
@pytest.mark.parametrize("pair", SCANNERS)
def test_each_stain_gets_its_reference_colour_and_amount(pair: list[list[float]], least: float, most: float) -> None:
    pair = np.array(pair) / np.linalg.norm(pair, axis=1, keepdims=True)
    # 20 pixels, less than 1 % of the stained, are beyond haematoxylin; 57, more than 1 %, are pure eosin. So the 1st
    # and 99th percentiles of the angles are pure haematoxylin and pure eosin.
    shares = np.repeat([[1, 0], [0.1, 0.9], [0, 1], [1.15, -0.15]], [1700, 1800, 57, 20], axis=0)
    amounts = shares * np.random.default_rng(0).uniform(least, most, len(shares))[:, None]
    glass = np.tile([[0.0, 0.05, 0.14], [0.1, 0.5, 0.1], [0.3, 0.1, 0.1]], (173, 1))
    patch = levels(np.concatenate([amounts @ pair, glass])).reshape(1, 64, 64, 3)
    normalised = density(normalise_stains(patch))[0][: len(amounts)]
    scaled = amounts / np.percentile(np.concatenate([amounts, np.zeros((len(glass), 2))]), 99, axis=0)
    expected = scaled @ [np.multiply(1.9705, [0.5626, 0.7201, 0.4062]), np.multiply(1.0308, [0.2159, 0.8012, 0.5581])]
    assert np.abs(normalised - expected).max() < 0.05


@pytest.mark.parametrize("level", [0, 255])
def test_a_patch_without_two_stains_is_unchanged(level: int) -> None:
    patches = np.full((1, 32, 32, 3), level, np.uint8)
    np.testing.assert_array_equal(normalise_stains(patches), patches)


@pytest.mark.parametrize("count", [63, 64])
def test_stains_are_estimated_from_64_stained_pixels_or_more(count: int) -> None:
    patch = stained(0, 1).reshape(-1, 3)
    patch[count:] = 255
    patch = patch.reshape(1, 32, 32, 3)
    assert (normalise_stains(patch) != patch).any() == (count == 64)


@pytest.mark.parametrize("background", [(0.0, 0.0, 0.0), (0.1, 0.0, 0.0)], ids=["white", "a negative amount of eosin"])
def test_jitter_does_not_change_patches_with_little_tissue(background: tuple[float, float, float]) -> None:
    patch = np.broadcast_to(levels(np.array(background)), (1, 96, 96, 3)).copy()
    patch[0, :8, :9] = stained(0, 1)[0, :8, :9]  # 72 pixels, under 1 %
    np.testing.assert_array_equal(normalise_stains(patch), patch)
