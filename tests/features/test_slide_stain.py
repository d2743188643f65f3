"""Stain normalisation by slide: effect on densities, independence of other slides, and slides with little tissue."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from histoblend.features.slide_stain import (
    REFERENCE,
    NormalisedPixels,
    normalise_by_slide,
    normalised_name,
    stain_sums,
    stains_of,
)

SIDE = 24
RNG = np.random.default_rng(0)


def patches(count: int, mean: tuple[float, float, float], spread: float = 0.1, seed: int = 0) -> np.ndarray:
    """Return patches full of tissue with a given mean density per channel."""
    density = np.random.default_rng(seed).normal(mean, spread, (count, SIDE, SIDE, 3)).clip(0.16, 2)
    return np.clip(np.rint(256 * 10**-density - 1), 0, 255).astype(np.uint8)


def moments(pixels: np.ndarray) -> np.ndarray:
    """Return mean and standard deviation of the density per channel over all pixels, (2, 3)."""
    density = -np.log10((pixels.reshape(-1, 3).astype(float) + 1) / 256)
    return np.stack([density.mean(axis=0), density.std(axis=0)])


def normalised(pixels: np.ndarray, slides: list[str | None]) -> np.ndarray:
    stains = stains_of(stain_sums(pixels), np.array(slides, dtype=object), SIDE * SIDE)
    return normalise_by_slide(pixels, stains)


def test_sums_equal_those_of_a_plain_loop() -> None:
    pixels = RNG.integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
    sums = stain_sums(pixels)
    density = np.rint(-10_000 * np.log10((pixels.astype(float) + 1) / 256))
    for patch, row in zip(density.reshape(5, -1, 3), sums, strict=True):
        tissue = patch[(patch > 1500).all(axis=1)]
        assert row.tolist() == [len(tissue), *tissue.sum(axis=0), *(tissue**2).sum(axis=0)]


def test_slides_of_any_stain_are_normalised_to_the_reference() -> None:
    pixels = np.concatenate([patches(20, (0.5, 0.4, 0.3)), patches(20, (0.3, 0.8, 0.5), 0.15, seed=1)])
    out = normalised(pixels, ["pale"] * 20 + ["strong"] * 20)
    for slide in (out[:20], out[20:]):
        np.testing.assert_allclose(moments(slide), REFERENCE, atol=0.02)


def test_a_dark_patch_in_a_pale_slide_stays_darker() -> None:
    dark, pale = patches(1, (0.9, 0.9, 0.9)), patches(30, (0.4, 0.4, 0.4), seed=1)
    out = normalised(np.concatenate([dark, pale]), ["one"] * 31)
    assert (moments(out[:1])[0] > moments(out[1:])[0] + 0.3).all()


def test_result_does_not_depend_on_order_or_batch_size() -> None:
    pixels = np.concatenate([patches(20, (0.5, 0.4, 0.3)), patches(6, (0.3, 0.8, 0.5), seed=1), patches(2, (1, 1, 1))])
    slides = ["large"] * 20 + ["small"] * 6 + [None] * 2
    whole = normalised(pixels, slides)
    order = RNG.permutation(len(pixels))
    np.testing.assert_array_equal(normalised(pixels[order], [slides[row] for row in order]), whole[order])
    lazy = NormalisedPixels(pixels, stains_of(stain_sums(pixels), np.array(slides, dtype=object), SIDE * SIDE))
    assert (lazy.shape, lazy.dtype) == (pixels.shape, np.uint8)
    for row in range(len(pixels)):
        np.testing.assert_array_equal(lazy[row : row + 1][0], whole[row])


def test_a_slide_does_not_depend_on_other_slides() -> None:
    first, second, other = patches(20, (0.5, 0.4, 0.3)), patches(20, (0.3, 0.8, 0.5)), patches(20, (1.0, 0.3, 0.9))
    slides = ["a"] * 20 + ["b"] * 20
    np.testing.assert_array_equal(
        normalised(np.concatenate([first, second]), slides)[:20],
        normalised(np.concatenate([first, other]), slides)[:20],
    )


def test_trust_depends_on_tissue_not_on_the_number_of_patches() -> None:
    tissue, glass = patches(20, (0.5, 0.4, 0.3)), np.full((40, SIDE, SIDE, 3), 250, np.uint8)

    def stains_of_first(pixels: np.ndarray) -> np.ndarray:
        return stains_of(stain_sums(pixels), np.array(["s"] * len(pixels), dtype=object), SIDE * SIDE)[0]

    np.testing.assert_array_equal(stains_of_first(tissue[:4]), REFERENCE)
    np.testing.assert_array_equal(stains_of_first(glass), REFERENCE)
    np.testing.assert_allclose(stains_of_first(tissue)[0], (0.5, 0.4, 0.3), atol=0.01)
    half = stains_of_first(tissue[:10])
    np.testing.assert_allclose(half[0], (REFERENCE[0] + (0.5, 0.4, 0.3)) / 2, atol=0.01)
    np.testing.assert_array_equal(stains_of_first(np.concatenate([tissue[:10], glass])), half)


def test_unknown_slides_and_glass_are_unchanged() -> None:
    glass = np.full((2, SIDE, SIDE, 3), 250, np.uint8)
    np.testing.assert_array_equal(normalised(glass, [None, "s"]), glass)
    levels = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 16, 16, 3)
    np.testing.assert_array_equal(normalise_by_slide(levels, REFERENCE[None]), levels)
    pale = patches(20, (0.6, 0.9, 0.7))
    pale[:, :4] = 255
    assert (normalised(pale, ["s"] * 20)[:, :4] == 255).all()


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 128, 254, 255]))
def test_any_pixels_are_accepted(seed: int, level: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    pixels[rng.random(20) < 0.7] = level
    slides = rng.choice(np.array(["a", "b", None], dtype=object), 20)
    out = normalise_by_slide(pixels, stains_of(stain_sums(pixels), slides, 256))
    assert (out.shape, out.dtype) == (pixels.shape, np.uint8)
    # Darker stays darker: the mapping of levels is monotonic.
    ramp = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 16, 16, 3)
    tables = normalise_by_slide(ramp, stains_of(stain_sums(pixels), slides, 256)[:1]).reshape(256, 3).astype(int)
    assert (np.diff(tables, axis=0) >= 0).all()


def test_column_names_say_normalised() -> None:
    assert normalised_name("colour_mean_red_whole") == "colour_mean-normalised_red_whole"
