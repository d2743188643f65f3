"""Explanations: correct text and values, and pictures that mark what is measured."""

import numpy as np
import pytest

from histoblend.features.handcrafted import families
from histoblend.features.handcrafted.explain import explain
from tests.oracles import pictures

GREEN, YELLOW = (0, 230, 80), (255, 220, 0)


def pixels_of(image, colour):
    return (image == np.array(colour)).all(axis=2)


@pytest.fixture(scope="module")
def patches():
    return np.stack([pictures.tissue(seed) for seed in range(2)])


def test_text_contains_the_description_and_the_values(patches):
    text, _ = explain("colour_mean_red_whole", patches)
    assert "Mean of red, whole patch." in text
    assert "range: 0 to 1" in text
    first, second = (patches[..., 0] / 255).mean(axis=(1, 2))
    assert f"values: {first:.4g}, {second:.4g}" in text


@pytest.mark.parametrize("family", [family.name for family in families.FAMILIES])
def test_every_family_has_a_picture(patches, family):
    for column in families.columns([family])[:: max(1, len(families.columns([family])) // 3)]:
        _, image = explain(column.name, patches)
        assert image.shape == (3 * 96 + 8, 2 * 96 + 4, 3)
        assert image.dtype == np.uint8
        assert pixels_of(image, YELLOW).any() == (families.parse_column(column.name).region != "whole")


def test_a_single_dark_nucleus_is_outlined():
    patch = np.full((96, 96, 3), 240, np.uint8)
    patch[40:52, 60:72] = (70, 30, 120)
    _, image = explain("nuclei_area-mean_absorbed_whole", patch[None])
    rows, columns = np.nonzero(pixels_of(image, GREEN))
    # the third picture starts at row 200; smoothing may move the border of the square
    assert (rows.min() - 200, rows.max() - 200, columns.min(), columns.max()) == pytest.approx((40, 51, 60, 71), abs=2)


def test_a_white_patch_has_no_marks():
    _, image = explain("gradient_blob-count-s1_grey_whole", np.full((1, 40, 50, 3), 255, np.uint8))
    assert not pixels_of(image, GREEN).any()


def test_an_unknown_column_raises_and_names_the_nearest(patches):
    with pytest.raises(ValueError, match=r"Did you mean .*colour_mean_red_whole"):
        explain("color_mean_red_whole", patches)


def test_an_empty_batch_is_rejected(patches):
    with pytest.raises(ValueError, match="at least one example"):
        explain("colour_mean_red_whole", patches[:0])
