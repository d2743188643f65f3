"""Names in tables are matched with files."""

import pytest

from histoblend.data.errors import InputError
from histoblend.data.sources.file_names import FileNames, clean_path

NFD, NFC = "Pru\u0308fung", "Pr\u00fcfung"


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        (["a"], "a", "a"),
        (["a"], "a.tif", "a"),
        (["a"], "a.TIFF", "a"),
        (["a"], "train/a.Png", "a"),
        (["a"], "C:\\data\\train\\a.tif", "a"),
        (["n/1.png", "t/1.png"], "t\\1.PNG", "t/1.png"),
        (["n/1.png", "t/1.png"], "./t//1", "t/1.png"),
        (["n/1.png", "t/1.png"], "data/n/1.png", "n/1.png"),
        (["n/1.png", "t/2.png"], "2", "t/2.png"),
        (["n/1.png", "n/1.tif"], "n/1.tif", "n/1.tif"),
        (["1.png", "n/1.png"], "1", "1.png"),
        ([f"{NFD}/a.tif"], f"{NFC}/a.tif", f"{NFD}/a.tif"),
        ([f"{NFC}.tif"], NFD, f"{NFC}.tif"),
        (["a .tif"], "a", "a .tif"),
        (["a\u200b.tif"], "a.tif", "a\u200b.tif"),
        (["x.y"], "x.y.tif", "x.y"),
        (["n/1.png"], "t/1.png", None),
        (["n/1.png"], "11", None),
        (["ab.png"], "b.png", None),
        ([], "a", None),
    ],
)
def test_a_name_is_matched_with_its_file(files, name, expected):
    assert FileNames(files, "t.csv").find(name) == expected


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["n/1.png", "t/1.png"], "1"),
        (["1.png", "1.tif"], "1"),
        (["1.TIF", "1.tif"], "1.Tif"),
        (["n/1.png", "t/1.tif"], "1"),
    ],
)
def test_a_name_that_fits_several_files_is_refused(files, name):
    with pytest.raises(InputError, match=f"t.csv: '{name}' fits both '{files[0]}' and '{files[1]}'"):
        FileNames(files, "t.csv").find(name)


@pytest.mark.parametrize("other", [f"{NFC}.tif", f"{NFD} .tif", f"{NFC}\u200b.tif", f"\u00a0{NFD}.tif"])
def test_files_whose_names_look_the_same_are_refused(other):
    with pytest.raises(InputError, match=r"t\.csv: cannot tell the files") as error:
        FileNames([f"{NFD}.tif", other], "t.csv")
    assert repr(f"{NFD}.tif") in str(error.value)
    assert repr(other) in str(error.value)


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [
        ("a/b.tif", "a/b.tif"),
        ("./a//b", "a/b"),
        ("a\\b", "a/b"),
        (" a / b .TIF ", "a/b.TIF"),
        ("a/./b", "a/b"),
        ("", ""),
    ],
)
def test_parts_of_a_path_are_cleaned_one_by_one(path, cleaned):
    assert clean_path(path) == cleaned
