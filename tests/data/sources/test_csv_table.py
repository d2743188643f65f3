"""CSV files: separators, encodings, headers, and messages about invalid files."""

import pandas as pd
import pytest

from histoblend.data.errors import InputError
from histoblend.data.sources.csv_table import read_csv


def read(tmp_path, content, columns=("id", "label"), optional=("slide",)):
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_csv(path, columns, optional)


PLAIN = "id,label,slide\na,1,G 31\nb,0,G 32\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", "|"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        "\ufeff" + PLAIN,
        "\n \n" + PLAIN,
        "sep=;\r\n" + PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t").encode("utf-16"),
        b"\xfe\xff" + PLAIN.replace(",", ";").encode("utf-16-be"),
        '"Id";"LABEL";"Slide "\r\n"a";"1";"G 31"\r\n"b";"0";"G 32"\r\n',
        "Image-ID, Label ,WSI\n a, 1 ,G 31\t\nb\u200b,0\u00a0,\u00a0G\u00a032\u00a0\n",
        "File Name;note, or none;label;slide_id\na;x,y;1;G 31\nb;;0;G 32\n",
        PLAIN.replace("1\n", "1,\n").replace("2\n", "2,,,\n"),
        'slide,"label",,"patch\nid"\nG 31,1,,a\nG 32,0,,b\n,,,\n',
    ],
    ids=[
        "commas", "semicolons", "tabs", "bars", "CRLF", "CR", "byte order mark", "blank lines", "sep=", "UTF-16 tabs",
        "UTF-16 BE", "quotes and case", "white space", "another separator in a header", "commas at the end of rows",
        "order, empty columns and rows",
    ],
)  # fmt: skip
def test_every_common_format_gives_the_same_table(tmp_path, content):
    expected = {"id": ["a", "b"], "label": ["1", "0"], "slide": ["G 31", "G 32"]}
    assert read(tmp_path, content).to_dict("list") == expected


def test_rows_are_numbered_as_in_a_spreadsheet(tmp_path):
    assert read(tmp_path, "id;label\na;1\n\n;\nb;0\nc\n").index.tolist() == [2, 5, 6]


def test_a_row_that_ends_early_has_empty_values(tmp_path):
    assert read(tmp_path, "id,label\na\nb,1\n")["label"].tolist() == ["", "1"]


def test_a_table_without_rows_has_its_columns(tmp_path):
    pd.testing.assert_frame_equal(read(tmp_path, "id,label"), pd.DataFrame({"id": [], "label": []}, dtype="str"))


@pytest.mark.parametrize(
    ("header", "taken"),
    [("id,label,name,path", "id"), ("ID,name,label", "ID"), ("label,Path", "Path")],
    ids=["documented", "documented in capitals", "the only one"],
)
def test_the_documented_header_takes_precedence(tmp_path, header, taken):
    names = header.split(",")
    table = read(tmp_path, f"{header}\n{','.join(names)}\n")
    assert table["id"].tolist() == [taken]


def test_a_single_column_needs_no_separator(tmp_path):
    assert read(tmp_path, "wsi\nG1\nG2\n", ("wsi",))["wsi"].tolist() == ["G1", "G2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,label,Label\na,1,0\n", "cannot tell which column is label: 'label' and 'Label'"),
        ("Image,Filename,label\na,b,0\n", "cannot tell which column is id: 'Image' and 'Filename'"),
        ("id,label,wsi,slide\na,1,x,y\n", "cannot tell which column is slide: 'wsi' and 'slide'"),
        ("id,label,label \na,1,0\n", "needs a unique header; got 'label' twice"),
        ("id,label,note,note\u200b\na,1,0,0\n", "needs a unique header; got 'note' twice"),
        ("id,tumor\na,1\n", r"expected columns id,label; got id,tumor. Rename or add label \(or labels, class"),
        (
            "id/label\na/1\n",
            "separated by commas, semicolons, tabs or .*; got a single column: id/label. Check the separator",
        ),
        ("", "got no header"),
        ("id,label\na,1,2\n", "row 2 with 3 values for 2 headers"),
        ("id,label\na,1,,\nb,1,,2\n", "row 3 with 4 values for 2 headers"),
        ("id,label\na,1" + ",2" * 20 + "\n", "rows with too many values for 2 headers"),
        ("id,label\na,1\n\nb,1,2\n", "row 4 with 3 values for 2 headers"),
        ("id,label\n\u00e4,1\n".encode("latin-1"), r"not UTF-8 \(byte 0xe4\). Save it as CSV UTF-8"),
        ("id,label\na,1\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (b"\xff\xfea", "got text that is not UTF-16"),
        ('id,label\n"a,1\n', "EOF inside string"),
    ],
)
def test_invalid_or_ambiguous_files_are_refused(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, content)


def test_a_missing_table_suggests_a_similar_name(tmp_path):
    for name in ("train_label.csv", "train_labels.tsv", "test_labels.csv", "sample_submission.csv"):
        (tmp_path / name).write_text("id,label\na,1\n")
    with pytest.raises(
        InputError, match=r"it does not exist. Did you mean 'train_labels.tsv'\? Save it as train_labels.csv"
    ):
        read_csv(tmp_path / "train_labels.csv", ("id",))
    with pytest.raises(InputError, match=r"it does not exist.$"):
        read_csv(tmp_path / "slides.csv", ("id",))
    with pytest.raises(InputError, match=r"it does not exist.$"):
        read_csv(tmp_path / "nowhere" / "labels.csv", ("id",))
