"""The page docs/features.md is up to date and describes every column."""

from histoblend.features.handcrafted import families
from histoblend.features.handcrafted.catalogue import catalogue
from tests import ROOT


def test_docs_features_is_up_to_date():
    page = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
    assert page == catalogue(), "run: python -m histoblend.features.handcrafted.catalogue docs/features.md"


def test_every_column_has_a_row_with_name_unit_and_range():
    lines = catalogue().splitlines()
    assert "| `nuclei_area-spread_absorbed_whole` | spread of nuclear area, whole patch | px² | 0 or more |" in lines
    assert "| `colour_skew_red_whole` | skewness of red level, whole patch | none | unbounded |" in lines
    assert (
        "| `stain_ratio_both_contrast` | haematoxylin share (patch's vectors), centre minus outside | none | −2 to 2 |"
        in lines
    )
    rows = [line.split("`")[1] for line in lines if line.startswith("| `") and line.count(" | ") == 3]
    assert rows == [column.name for column in families.columns()]


def test_definitions_name_one_column_for_each_statistic_and_reference():
    lines = catalogue().splitlines()
    examples = [line.split("`")[1] for line in lines if line.startswith("| `") and line.count(" | ") == 2]
    assert "cooccurrence_contrast-d1-mean_grey_whole" in examples
    assert not any("-d3-" in name or "_r2-" in name or "-s2" in name for name in examples)
    definitions = {column.reference for column in families.columns()}
    assert all(any(line.endswith(f"| {reference} |") for line in lines) for reference in definitions)
