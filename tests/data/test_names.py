"""Names: what is removed, and which different names are reported as look-alikes."""

import pandas as pd
import pytest

from histoblend.data.names import clean_name, clean_names, describe_look_alikes, look_alikes


@pytest.mark.parametrize(
    "name",
    [
        "G31", " G31", "G31 ", "G31\t", "\nG31\r", "G31\u00a0", "G31\u202f", "G31\u3000", "G31\u2028", "\ufeffG31",
        "G\u200b31", "G3\u200d1", "G31\u2060", "G\u00ad31", "\u200eG31\u200f", "G31\u2800", "G31\u3164", "G31\ufe0f",
        "G31\U000e0101", "G31\x00", "\x1fG31", "G31\u180e", "G31\u180b",
    ],
)  # fmt: skip
def test_invisible_characters_are_removed(name):
    assert clean_name(name) == "G31"


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("Brust  links\u00a02", "Brust links 2"),
        ("Prob\u0065\u0301", "Prob\u00e9"),
        ("e\u200d\u0301", "\u00e9"),
        ("a\u3164b", "a b"),
        ("", ""),
        (" \u200b\t", ""),
        ("007", "007"),
        ("G31.svs", "G31.svs"),
        ("x\udcff ", "x\udcff"),
    ],
)
def test_names_that_look_the_same_become_equal(name, cleaned):
    assert clean_name(name) == cleaned
    assert clean_name(cleaned) == cleaned


def test_missing_names_stay_missing():
    assert clean_names(pd.Series([" a", None])).isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ("G31", "g31"),
        ("G31", "G31.svs"),
        ("G31", "G31.TIF"),
        ("G31.mrxs", "G31.tiff"),
        ("G31", "G31.ome.tif"),
        ("3", "3.0"),
        ("03", "3"),
        ("G03", "G3"),
        ("03", "3.00"),
        ("G-31", "G_31"),
        ("G 31", "G\u201331"),
        ("\uff27\uff13\uff11", "G31"),
        ("G31", "'G31"),
        ("G31", '="G31"'),
        ("G31", "\u201cG31\u201d"),
        ("G31", "D:\\slides\\G31.svs"),
        ("G31.mrxs", "slides/G31"),
        ("G31", "slides/G31/"),
        ("G31", "G31."),
        ("G31", "G31.sdpc"),
        ("G31", "G31.tif.gz"),
        ("G31", "G-31"),
        ("slide_007", "Slide7"),
        ("C31", "\u042131"),
        ("H1", "\u03971"),
        ("100000", "1E+05"),
        ("123000000000", "1.23E+11"),
        ("3", "3,0"),
        ("3", "+3"),
        ("3", "3."),
    ],
)
def test_look_alikes_are_pairs(first, other):
    assert look_alikes([first, other, first, "unlike"]) == [tuple(sorted((first, other)))]


@pytest.mark.parametrize(
    "names",
    [
        ("G3", "G30"),
        ("1_11", "11_1"),
        ("1.05", "1.5"),
        ("G31", "G31.1"),
        ("0", "00x"),
        ("a/1", "b/1"),
        ("1E+05", "1E+06"),
        ("a-1-11", "a-11-1"),
        ("3,5", "3"),
        ("1e999", "1e998"),
        ("\u0413", "G"),
        ("1" * 40, "1" * 39 + "2"),
    ],
)
def test_different_names_are_no_pairs(names):
    assert look_alikes(names) == []
    assert describe_look_alikes(names, "slide") == ""


def test_a_warning_names_the_pairs_and_counts_the_others():
    assert describe_look_alikes(["G1", "g1", "3", "3.0"], "slide") == (
        "some slide names differ only by case, file ending, folder, quotes, zeros, separators or alphabet: "
        "'3' and '3.0', 'G1' and 'g1'"
    )
    assert describe_look_alikes([f"{letter}{n}" for n in range(7) for letter in "Gg"], "class").endswith(
        " and 2 more pairs"
    )
