"""Names of features in slide context or of stain-normalised patches, and of features that are taken together."""

import pytest

from histoblend.features.handcrafted import families
from histoblend.features.handcrafted.plain_names import plain_name
from histoblend.reports.sections.feature_words import (
    FAMILY_COLOURS,
    feature_name,
    feature_sentence,
    feature_synonyms,
    feature_unit,
    how_compared,
    measured_column,
)

AREA = "nuclei_area-mean_absorbed_whole"


@pytest.mark.parametrize(
    ("feature", "compared"),
    [
        (AREA, 0),
        ("nuclei_area-mean-normalised_absorbed_whole", 1),
        ("nuclei_area-mean-in-slide_absorbed_whole", 2),
        ("nuclei_area-mean-normalised-in-slide_absorbed_whole", 3),
    ],
)
def test_columns_are_named_after_the_measured_one(feature, compared):
    assert measured_column(feature) == AREA
    assert how_compared(feature) == compared
    assert feature_sentence(feature, {AREA: "Mean area."}) == "Mean area."
    assert "nuclear area" in feature_name(feature)
    assert ("stains normalised" in feature_name(feature)) == bool(compared & 1)
    assert feature_unit(feature) == ("slide SDs" if compared & 2 else "px²")


def test_nucleus_size_is_another_word_for_nuclear_area():
    words = ", ".join(feature_synonyms(AREA))
    assert "nucleus size" in words


def test_every_family_has_a_colour_and_words():
    assert {family.name for family in families.FAMILIES} <= set(FAMILY_COLOURS)
    assert feature_name("lbp") == "local binary patterns"
    assert feature_name("network") == "the fine-tuned network"
    assert feature_unit("network") == ""
    assert feature_sentence("slide-mean", {}).startswith("The members’ mean")
    assert feature_name(AREA) == plain_name(AREA)
