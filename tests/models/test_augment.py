"""Stain augmentation and stain normalisation."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.color import hed2rgb, rgb2hed

from histoblend.models.augment import REFERENCE_STAINS, jitter_stains, normalise_stains


def stained(seed: int, count: int = 4, vectors: np.ndarray | None = None) -> np.ndarray:
    """Patches of two stains, (count, 32, 32, 3) uint8; their pixels have all mixtures of the two stains."""
    rng = np.random.default_rng(seed)
    pair = np.array([[0.65, 0.70, 0.29], [0.25, 0.93, 0.27]]) if vectors is None else vectors
    amounts = rng.dirichlet((0.4, 0.4), (count, 32, 32)) * rng.uniform(1.0, 1.6, (count, 32, 32, 1))
    return np.clip(np.rint(256 * np.exp(-amounts @ pair) - 1), 0, 255).astype(np.uint8)


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


def test_the_alteration_is_affine_in_each_stain() -> None:
    # Oracle: stain separation by scikit-image. Amounts before and after must be linearly related for each stain.
    patch = hed2rgb(np.random.default_rng(0).uniform((0.02, 0.02, 0.0), (0.1, 0.08, 0.005), (32, 32, 3)))
    levels = np.rint(255 * patch).astype(np.uint8)
    altered = jitter_stains(levels[None], 0.1, view=0, seed=5)[0]
    before, after = rgb2hed(levels), rgb2hed(altered)
    for stain in (0, 1):
        inside = (altered > 3).all(axis=2) & (altered < 252).all(axis=2)
        assert np.corrcoef(before[inside][:, stain], after[inside][:, stain])[0, 1] > 0.98


def test_strength_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"strength must be between 0 and 1; got 2"):
        jitter_stains(stained(0), 2.0, view=0, seed=0)


def test_normalised_patches_have_the_reference_stains() -> None:
    normalised = normalise_stains(stained(0))
    density = -np.log((normalised.reshape(len(normalised), -1, 3) + 1.0) / 256.0)
    for patch in density:
        # Mixtures of the two reference stains are in their plane, so the residual is 0.
        amounts, *_ = np.linalg.lstsq(REFERENCE_STAINS.T, patch.T, rcond=None)
        residual = np.abs(patch.T - REFERENCE_STAINS.T @ amounts)[:, (patch < 4).all(axis=1)]
        assert residual.max() < 0.05
        assert np.percentile(amounts[0], 99) == pytest.approx(1.9705, abs=0.1)


def test_two_scanners_look_alike_after_normalisation() -> None:
    other = np.array([[0.55, 0.75, 0.37], [0.20, 0.90, 0.40]])
    one, two = stained(0), stained(0, vectors=other / np.linalg.norm(other, axis=1, keepdims=True))
    before = np.abs(one.astype(float) - two).mean()
    after = np.abs(normalise_stains(one).astype(float) - normalise_stains(two)).mean()
    assert after < before / 2


@pytest.mark.parametrize("level", [0, 255])
def test_a_patch_without_two_stains_is_unchanged(level: int) -> None:
    patches = np.full((1, 32, 32, 3), level, np.uint8)
    np.testing.assert_array_equal(normalise_stains(patches), patches)
