"""Labels and slide maps: recognised columns, incomplete tables, and errors for invalid ones."""

import pandas as pd
import pytest

from histoblend.data.errors import InputError
from histoblend.data.sources.labels import (
    binary_labels,
    class_name,
    given_slides,
    match_files,
    printable,
    read_labels,
    slide_map,
    slides_of,
)
from histoblend.data.splits import UNMAPPED

IDS = pd.Series(["a", "b", "c"])


@pytest.mark.parametrize(
    "text",
    [
        "id,wsi\na,S1\nb,S1\nc,S2\n",
        "patch_id,other,SLIDE\na,9,S1\nb,9,S1\nc,9,S2\n",
        '\ufeff"Image","Slide_Name"\r\n"c","S2"\r\n"a"," S1 "\r\n"b","S1"\r\n"zzz","S9"\r\n',
        "file,slide\ntrain/a.tif,S1\nb.TIF,S1\nc.tif,S2\nc.tif,S2\n",
        "Id;Slide\na;S1\u00a0\nb\u200b;S1\t\nx\\c.png;S2\n",
    ],
    ids=["published", "other columns", "quotes, byte order mark, spaces", "file names", "invisible characters"],
)
def test_columns_and_ids_are_recognised(tmp_path, text):
    (tmp_path / "map.csv").write_text(text, encoding="utf-8")
    assert slides_of(IDS, tmp_path / "map.csv").tolist() == ["S1", "S1", "S2"]


@pytest.mark.parametrize(
    "missing", ["", "nan", "NA", "#N/A", "NULL", "None", "unknown", "-", "?", "#REF!", "\u00a0NaN"]
)
def test_patches_without_a_slide_share_one_group(tmp_path, missing):
    (tmp_path / "map.csv").write_text(f"id,wsi\na,S1\nb,{missing}\na,{missing}\n", encoding="utf-8")
    assert slides_of(IDS, tmp_path / "map.csv").tolist() == ["S1", UNMAPPED, UNMAPPED]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\na,b\n", r"columns id,slide; got x,y. Rename or add id \(or patch_id, .*\) and slide \(or wsi, .*\)"),
        ("id,y\na,b\n", r"expected columns id,slide; got id,y. Rename or add slide \(or wsi"),
        ("", "expected a CSV file with columns id,slide, .* got no header"),
        ("id,wsi\na,S1,9\nb,S2,9\n", "got row 2 with 3 values for 2 headers. Fix"),
        ("id,wsi\na,S1\na,S2\n", "a patch must have one slide; got two for id 'a'"),
        ("id,wsi\na.tif,S1\nsub/a.tif,S2\n", "one slide; got two rows for 'a': 'a.tif' and 'sub/a.tif'"),
        (
            "id,wsi\nq,S1\n",
            r"it lists none of the 3 patches \(the first patch is 'a'; the first id in the file is 'q'\)",
        ),
        ("id,wsi\na,\n", "it lists none of the 3 patches .* the file names no slide"),
    ],
    ids=[
        "no columns",
        "no slide",
        "empty",
        "longer rows",
        "two slides",
        "two slides under two names",
        "other patches",
        "no slides",
    ],
)
def test_invalid_maps_are_refused(tmp_path, text, message):
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        slides_of(IDS, tmp_path / "map.csv")


def test_names_in_a_map_are_not_converted(tmp_path):
    (tmp_path / "map.csv").write_text("id,wsi\n007,1e5\nNA,true\n")
    assert slide_map(tmp_path / "map.csv").to_dict() == {"007": "1e5", "NA": "true"}


def test_names_that_are_not_utf8_can_be_printed():
    assert printable("ü\udcff") == "ü\\xff"


@pytest.mark.parametrize("ending", [" ", "\t", "\u00a0", "\u200b", "\u3000", "\ufeff"])
def test_white_space_after_a_name_makes_no_new_slide(tmp_path, ending):
    (tmp_path / "map.csv").write_text(f"id,slide\na,G31\nb,G31{ending}\nc,{ending}G31\n", encoding="utf-8")
    assert slides_of(IDS, tmp_path / "map.csv").tolist() == ["G31"] * 3


def test_given_slides_are_missing_for_patches_not_in_the_map(tmp_path):
    (tmp_path / "map.csv").write_text("id,wsi\na,S1\n")
    assert given_slides(IDS, tmp_path / "map.csv").isna().tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("written", "label"),
    [
        (text, label)
        for label, texts in (
            (1, ("1", "1.0", "1.", "1,0", " 1 ", "+1", "True", "TRUE", "yes", "Tumour", "\u00a01\u200b")),
            (1, ("01", "1E+00", "\uff11", "'1", "T", "y", "Cancerous", "metastatic", "Tumor tissue")),
            (0, ("00", "0E+00", "-0", "'0", "F", "N", "non-cancerous", "Not metastatic", "nonmalignant")),
            (0, ("0", "0.0", "0.00", "False", "FALSE", " 0\t", "No", "normal", "non-tumor", "No Tumour")),
        )
        for text in texts
    ],
)
def test_labels_may_be_written_in_many_ways(tmp_path, written, label):
    (tmp_path / "l.csv").write_text(f'Id;Label\na.tif;"{written}"\n', encoding="utf-8")
    labels = binary_labels(read_labels(tmp_path / "l.csv", "id"), tmp_path / "l.csv")
    assert (labels.tolist(), labels.dtype) == ([label], "int8")


@pytest.mark.parametrize("written", ["", " ", "nan", "NaN", "NA", "<NA>", "null", "\u200b"])
def test_a_missing_label_is_refused_with_its_row(tmp_path, written):
    (tmp_path / "l.csv").write_text(f"id,label\na,1\nb,{written}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"every row needs a label; got '.*' in row 3 \(id 'b'\)"):
        read_labels(tmp_path / "l.csv", "id")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a,1\n,0\n", "every row needs a name in 'id'; got none in row 3"),
        ("a,1\na\u00a0,0\n", "ids must be unique; got 'a' in rows 2 and 3, with labels '1' and '0'. Remove a row"),
        ("b,1\na,1\na,1\n", "got 'a' in rows 3 and 4, with label '1'. Remove a row"),
        ("1.2E+11,1\n1.2E+11,0\n", r"got '1.2E\+11' in rows 2 and 3.*A spreadsheet has rounded this number"),
        ("a,1\nb,0.5\n", r"labels must be 0 or 1; got '0.5' for id 'b' \(row 3\)"),
        ("a,1\nb,nano\n", "got 'nano'"),
        ("a,1\nb,1E+05\n", r"got '1E\+05'"),
        ("a,10\nb,2\n", r"got '10' for id 'a' \(row 2\) and 1 more"),
    ],
)
def test_invalid_labels_are_refused(tmp_path, rows, message):
    (tmp_path / "l.csv").write_text("id,label\n" + rows, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        binary_labels(read_labels(tmp_path / "l.csv", "id"), tmp_path / "l.csv")


def test_only_0_and_1_are_cleaned_as_numbers():
    assert [class_name(name) for name in ("1.0", "0,00", "01", "10", "1.5", " grade 1")] == [
        "1", "0", "01", "10", "1.5", "grade 1",
    ]  # fmt: skip


def test_if_no_id_has_an_image_nothing_is_skipped():
    labels = pd.DataFrame({"patch_id": ["x", "y"], "class": ["0", "1"]}, index=[2, 3], dtype="str")
    with pytest.raises(InputError, match=r"labels\.csv: expected ids of images under here/; no id has an image"):
        match_files(labels, {"a.png"}, "skip", csv="labels.csv", folder="here")
