"""Slide maps of any make: recognised columns, incomplete ones, and what is said of wrong ones."""

import pandas as pd
import pytest

from histoblend.data.errors import InputError
from histoblend.data.sources.labels import printable, slide_map, slides_of
from histoblend.data.splits import UNMAPPED

IDS = pd.Series(["a", "b", "c"])


@pytest.mark.parametrize(
    "text",
    [
        "id,wsi\na,S1\nb,S1\nc,S2\n",
        "patch_id,other,SLIDE\na,9,S1\nb,9,S1\nc,9,S2\n",
        '\ufeff"Image","Slide_Name"\r\n"c","S2"\r\n"a"," S1 "\r\n"b","S1"\r\n"zzz","S9"\r\n',
        "file,slide\ntrain/a.tif,S1\nb.TIF,S1\nc.tif,S2\nc.tif,S2\n",
    ],
    ids=["published", "other columns", "quotes, byte order mark, spaces", "file names"],
)
def test_columns_and_ids_are_recognised(tmp_path, text):
    (tmp_path / "map.csv").write_text(text, encoding="utf-8")
    assert slides_of(IDS, tmp_path / "map.csv", (".tif",)).tolist() == ["S1", "S1", "S2"]


def test_patches_without_a_slide_share_one_group(tmp_path):
    (tmp_path / "map.csv").write_text("id,wsi\na,S1\nb,\n")
    assert slides_of(IDS, tmp_path / "map.csv").tolist() == ["S1", UNMAPPED, UNMAPPED]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x,y\na,b\n",
            r"expected a column one of ids \(id, patch_id, .*\) and one of slides \(wsi, .*\); got x,y. Rename",
        ),
        ("id,y\na,b\n", r"expected a column one of slides \(wsi, slide, .*\); got id,y"),
        ("", "expected a CSV file with the slide of each patch; got: "),
        ("id,wsi\na,S1,9\nb,S2,9\n", "got rows with more values than the header has names. Mend the header"),
        ("id,wsi\na,S1\na,S2\n", "a patch must have one slide; got two for id 'a'"),
        ("id,wsi\na.tif,S1\nsub/a.tif,S2\n", "a patch must have one slide; got two rows for 'a'"),
        ("id,wsi\nq,S1\n", r"it knows none of 3 \(the first is 'a'; the first of its ids is 'q'\)"),
        ("id,wsi\na,\n", "it knows none of 3 .* it holds no slide"),
    ],
    ids=["no columns", "no slide", "empty", "longer rows", "two slides", "two after all", "other patches", "no slides"],
)
def test_wrong_maps_are_explained(tmp_path, text, message):
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        slides_of(IDS, tmp_path / "map.csv", (".tif",))


def test_a_map_keeps_names_as_they_are_written(tmp_path):
    (tmp_path / "map.csv").write_text("id,wsi\n007,1e5\nNA,null\n")
    assert slide_map(tmp_path / "map.csv").to_dict() == {"007": "1e5", "NA": "null"}


def test_names_that_are_no_text_can_be_shown():
    assert printable("ü\udcff") == "ü\\xff"
