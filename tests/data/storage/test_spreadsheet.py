"""Tables for spreadsheets: no name becomes a formula or splits a row, and every name is restored."""

import csv
import io
import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoblend.data.storage.spreadsheet import escape, read_written, unescape, write_csv

NAMES = ["=cmd()", "+1", "-1", "@a", "\tb", "\rc", "a=1", "'=1", "NA", "007", "x\ry", "a,b\n", 'quote"s', "emoji 🔬"]
NAMES += [
    "a;=1",
    "\n=1",
    "\nb",
    "＝1",
    "﹣1",
    " =1",
    "\ufeff@a",
    "a|+1",
    'a;"=1"',
    "a\n'=1",
    "x;\t;-",
    "a;b",
    "'",
    "a;'=1",
]
#: What programs separate cells by, depending on the country and on a user's choice.
SEPARATORS = (",", ";", "\t", "|")


def test_names_that_begin_a_formula_are_text():
    assert [escape(name) for name in ("=1", "+1", "-1", "@a", "\tb", "a=1", "'a", "'=1")] == [
        "'=1", "'+1", "'-1", "'@a", "'\tb", "a=1", "'a", "''=1"
    ]  # fmt: skip
    assert [escape(name) for name in ("a;=1", "a; '＝1", "\nb", "|@", "a;b - c, -d", "O'Brien")] == [
        "a;'=1", "a;' '＝1", "'\nb", "|'@", "a;b - c, -d", "O'Brien"
    ]  # fmt: skip


@given(st.text() | st.text("=+-@＝－﹦;|\t\r\n'\" ,a1\ufeff"))
def test_every_name_is_restored(name):
    assert unescape(escape(name)) == name


@given(st.lists(st.text("=+-@＝＋－＠﹦−;|\t\r\n'\" ,a1\ufeff"), min_size=2, max_size=2))
def test_no_cell_begins_a_formula_whatever_separates_cells(names):
    file = io.BytesIO()
    write_csv(pd.DataFrame([names], columns=["first", "second"]), file)
    for separator in SEPARATORS:
        for row in csv.reader(io.StringIO(file.getvalue().decode(), newline=""), delimiter=separator):
            for cell in row:
                assert separator != "," or not cell.startswith(("\t", "\r", "\n"))
                shown = unicodedata.normalize("NFKC", cell.strip(' "\ufeff\t\r\n'))
                assert not shown.startswith(("=", "+", "-", "@", "−"))


def test_names_of_columns_are_restored(tmp_path):
    table = pd.DataFrame({name: ["a;=1"] for name in NAMES})
    write_csv(table, tmp_path / "t.csv")
    pd.testing.assert_frame_equal(read_written(tmp_path / "t.csv", NAMES), table, check_dtype=False)


@pytest.mark.parametrize("dtype", ["str", "object", "string"])
def test_a_table_is_restored(tmp_path, dtype):
    table = pd.DataFrame({"name": pd.Series(NAMES, dtype=dtype), "value": np.linspace(-1, 1, len(NAMES))})
    write_csv(table, tmp_path / "t.csv")
    again = read_written(tmp_path / "t.csv", ("name",))
    assert again["name"].tolist() == NAMES
    assert again["value"].tolist() == table["value"].tolist()


def test_missing_values_numbers_and_booleans_do_not_change(tmp_path):
    table = pd.DataFrame({"slide": ["S1", None], "value": [-0.5, np.nan], "kept": [True, False], "=x": [1, 2]})
    table["mixed"] = pd.Series([0, None], dtype=object)
    write_csv(table, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes() == b"slide,value,kept,'=x,mixed\nS1,-0.5,True,1,0\n,,False,2,\n"
    assert read_written(tmp_path / "t.csv", ("slide",))["slide"].isna().tolist() == [False, True]


def test_a_category_of_names_is_escaped(tmp_path):
    write_csv(pd.DataFrame({"slide": pd.Categorical(["=a", "b", "=a"])}), tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "slide\n'=a\nb\n'=a\n"
