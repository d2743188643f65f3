"""Folders of images: both layouts, classes, sizes, and unusual files."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoblend.data.errors import InputError
from histoblend.data.patches import write_pixels
from histoblend.data.sources.folder import FolderSource, UnlabelledImages, content
from histoblend.data.sources.image_files import NOT_FOLLOWED
from histoblend.data.splits import UNMAPPED

UNUSUAL_NAMES = ['quote"s.png', "new\nline.png", "emoji 🔬.png", "a,b;c'.png", "-x.png", "%s{0}.png", "CAPITAL.PNG"]


def picture(path, value=0, size=(32, 32), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """Three images without and three with tumour, in two folders and several formats."""
    for number, suffix in enumerate(("png", "jpg", "tif", "webp", "bmp", "jpeg")):
        picture(tmp_path / ("normal", "tumour")[number % 2] / f"{number}.{suffix}", 40 * number)
    return tmp_path


def with_labels(folder, rows, columns=("file", "label", "slide")):
    pd.DataFrame(rows, columns=columns[: len(rows[0])]).to_csv(folder / "labels.csv", index=False)


def test_a_folder_for_each_class(folder):
    picture(folder / "tumour" / "deeper" / "down" / "9.png", 99)
    source = FolderSource(folder, size=32)
    assert source.table["patch_id"].tolist() == [
        "normal/0.png", "normal/2.tif", "normal/4.bmp", "tumour/1.jpg", "tumour/3.webp", "tumour/5.jpeg",
        "tumour/deeper/down/9.png",
    ]  # fmt: skip
    assert source.table["label"].tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert source.table["slide"].isna().all()
    assert source.skipped == {}
    pixels, reasons = source.read(1, 7)
    assert reasons == {}
    assert np.abs(pixels[:, 8, 8, 0].astype(int) - [80, 160, 40, 120, 200, 99]).max() <= 2
    assert source.notes["classes"] == {"normal": {"label": 0, "patches": 3}, "tumour": {"label": 1, "patches": 4}}
    assert source.notes["size"] == "32 × 32; an image of another size is set aside"


def test_a_table_of_labels_with_slides(folder):
    with_labels(
        folder,
        [
            ("normal/0.png", "0", "S1"), ("./normal//2.tif", "0", "S1"), ("normal/4.bmp", "1", ""),
            ("tumour/1.jpg", "1", "S2"), ("tumour/3.webp", "1", "S2"), ("tumour/5.jpeg", "0", "S2"),
        ],
    )  # fmt: skip
    table = FolderSource(folder, size=32).table
    assert table["label"].tolist() == [0, 0, 1, 1, 1, 0]
    assert table["slide"].tolist() == ["S1", "S1", UNMAPPED, "S2", "S2", "S2"]


@pytest.mark.parametrize("ending", [" ", "\t", "\u00a0", "\u200b"])
def test_white_space_after_a_name_makes_no_new_slide(folder, ending):
    names = ["normal/0.png", "normal/2.tif", "normal/4.bmp", "tumour/1.jpg", "tumour/3.webp", "tumour/5.jpeg"]
    with_labels(folder, [(name, row % 2, "G31" + ending * (row % 2)) for row, name in enumerate(names)])
    assert FolderSource(folder, size=32).table["slide"].tolist() == ["G31"] * 6


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_saved_by_a_spreadsheet_is_read(folder, separator):
    rows = ["0.PNG;0.0", "normal\\2.TIF;False", "data/normal/4;0", "tumour\\1.jpg;1", "3;TRUE", "5.jpeg; yes"]
    text = "Id;Label\n" + "\n".join(rows[:3] + [row[: row.index(";")] + ";1.0" for row in rows[3:]]).replace(
        "False", "0"
    )
    (folder / "labels.csv").write_text("\ufeff" + text.replace(";", separator) + "\n", encoding="utf-8")
    source = FolderSource(folder, size=32)
    assert source.table["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert source.table["patch_id"].tolist()[0] == "normal/0.png"
    assert source.notes["classes"] == {"0": {"label": 0, "patches": 3}, "1": {"label": 1, "patches": 3}}


def test_an_image_keeps_its_file_name_if_the_table_spells_it_differently(folder):
    picture(folder / "normal" / "u\u0308 .png", 77)
    with_labels(folder, [*ALL, ("normal/\u00fc.png", 0)])
    source = FolderSource(folder, size=32)
    row = source.table["patch_id"].tolist().index("normal/u\u0308 .png")
    assert source.read(row, row + 1)[0].max() == 77


def test_images_whose_names_look_the_same_are_distinguished_or_refused(folder):
    for name in ("\u00fc.png", "u\u0308.png"):
        picture(folder / "normal" / name)
    assert len(FolderSource(folder, size=32).table) == 8
    assert UnlabelledImages(folder, size=32).shared == 2
    with_labels(folder, [*ALL, ("normal/\u00fc.png", 0)])
    with pytest.raises(InputError, match="cannot tell the files"):
        FolderSource(folder, size=32, missing="skip")


def test_a_slide_map_beside_the_folders(folder):
    (folder / "map.csv").write_text("file,slide\nnormal/0.png,S1\ntumour/1.jpg,S2\n")
    slides = FolderSource(folder, size=32, slide_map="Map.CSV").table["slide"]
    assert list(content(folder, slide_map="Map.CSV")) != list(content(folder))
    assert slides.tolist() == ["S1", UNMAPPED, UNMAPPED, "S2", UNMAPPED, UNMAPPED]


@pytest.mark.parametrize(
    ("names", "positive", "expected"),
    [
        (("0", "1"), (), (0, 1)),
        (("Benign", "other"), (), (0, 1)),
        (("other", "TUMOR"), (), (0, 1)),
        (("a", "b"), ("a",), (1, 0)),
        (("normal", "tumour"), ("normal",), (1, 0)),
        (("a", "b", "c"), ("c", "a"), (1, 0, 1)),
        (("a", "b"), (" a\u00a0",), (1, 0)),
        (("0.0", "1.0"), (), (0, 1)),
        (("0", "1"), ("1.0",), (0, 1)),
        (("non-tumour", "Tumour "), (), (0, 1)),
        (("normal", "tumour", "Tumour\u200b", "tumour\u00a0"), (), (0, 1, 1, 1)),
        (("no tumour", "no-tumour", "tumour"), (), (0, 0, 1)),
    ],
)
def test_classes_become_labels(tmp_path, names, positive, expected):
    for name in names:
        picture(tmp_path / name / "0.png")
    table = FolderSource(tmp_path, size=32, positive=positive).table.set_index("patch_id")
    assert tuple(table.loc[f"{name}/0.png", "label"] for name in names) == expected


@pytest.mark.parametrize(
    ("names", "positive", "message"),
    [
        ((), (), "expected two classes .* got none"),
        (("a",), (), "expected two classes .* got 'a'"),
        (("a", "b"), (), r"which of the classes 'a', 'b' are positive. Choose with --set 'data.positive=\[\"b\"\]'"),
        (("tumour", "cancer"), (), "which of the classes"),
        (("normal", "benign"), (), "which of the classes"),
        (("normal", "stroma", "tumour"), (), "which of the classes 'normal', 'stroma', 'tumour' are positive"),
        (("a", "b"), ("c",), "data.positive must name existing classes; got 'c', but the classes are 'a', 'b'"),
        (("a", "b"), ("a", "b"), "data.positive must leave a negative class"),
        (("a", "b", "B"), ("b",), "the classes 'B' and 'b' have similar names, but one is positive"),
    ],
)
def test_unclear_classes_are_refused(tmp_path, names, positive, message):
    for name in names:
        picture(tmp_path / name / "0.png")
    with pytest.raises(InputError, match=message):
        FolderSource(tmp_path, size=32, positive=positive)


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        (
            ("9036/0/a", "9036/1/b", "9037/0/c"),
            r"'0' and '1', look like classes. Make them the outer folders \(0/9036/…\), or",
        ),
        (("train/S1/neg/a", "train/S2/pos/b", "val/S2/neg/c"), "'neg' and 'pos', look like classes"),
        (("images/x/a", "images/y/b"), "got 'images'. If the class folders are inside it, give DATA=.*/images.$"),
        (("data/train/neg/a", "data/test/pos/b"), "got 'data'. If the class folders .* give DATA=.*/data.$"),
        (("tumour/S1/a", "tumour/S2/b"), r"got 'tumour'.$"),
        (("Uninfected/a", "Parasitized/b"), r"data.positive=\[\"Parasitized\"\]"),
        (("without/a", "with/b"), r"data.positive=\[\"with\"\]"),
    ],
)
def test_the_advice_names_a_likely_positive_class(tmp_path, files, advice):
    for name in files:
        picture(tmp_path / f"{name}.png")
    with pytest.raises(InputError, match=advice):
        FolderSource(tmp_path, size=32)


ALL = [
    (f"{('normal', 'tumour')[n % 2]}/{n}.{s}", n % 2)
    for n, s in enumerate(("png", "jpg", "tif", "webp", "bmp", "jpeg"))
]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ALL, ("../../etc/passwd", "1")], r"inside the folder, without '..'; got '../../etc/passwd'"),
        ([*ALL, ("/etc/passwd", "1")], "inside the folder, without '..'; got '/etc/passwd'"),
        ([*ALL, ("C:\\x.png", "1")], "inside the folder"),
        ([*ALL, ("a\\..\\..\\x.png", "1")], "inside the folder"),
        ([*ALL, ("", "1")], "every row needs a name in 'file'; got none in row 8"),
        ([*ALL, ("normal/../normal/0.png", "1")], "inside the folder"),
        ([*ALL, ("normal/./0.png", "1")], "one row; got 'normal/0.png' and 'normal/./0.png'"),
        ([*ALL[1:], ("normal/0.png", "")], r"every row needs a label; got '' in row 7 \(id 'normal/0.png'\)"),
        ([*ALL, ("x.png", "1")], r"1 ids have no image under .* \(first: 'x.png'\). Remove them or pass"),
        (ALL[2:], r"2 images have no label \(first: 'normal/0.png'\)"),
    ],
    ids=[
        "above", "absolute", "drive", "backslashes", "empty", "up and down", "twice", "no label", "no image", "unlisted"
    ],
)  # fmt: skip
def test_invalid_tables_are_refused(folder, rows, message):
    with_labels(folder, rows)
    with pytest.raises(InputError, match=message):
        FolderSource(folder, size=32)


def test_missing_skip_keeps_labelled_images(folder):
    with_labels(folder, [*ALL[1:], ("x.png", 1)])
    source = FolderSource(folder, size=32, missing="skip")
    assert len(source.table) == 5
    assert source.skipped == {"x.png": f"no image under {folder.name}/", "normal/0.png": "no label in labels.csv"}


def test_images_beside_the_class_folders_are_refused(folder):
    picture(folder / "loose.png")
    with pytest.raises(InputError, match=r"got 1 images beside them \(first: 'loose.png'\). Move them"):
        FolderSource(folder, size=32)


@pytest.mark.parametrize("name", UNUSUAL_NAMES)
def test_unusual_names_are_read(folder, name, tmp_path_factory):
    picture(folder / "normal" / name, 77)
    source = FolderSource(folder, size=32)
    target = tmp_path_factory.mktemp("out")
    table, _, _ = write_pixels(source, target)
    table.to_parquet(target / "t.parquet")
    row = pd.read_parquet(target / "t.parquet")["patch_id"].tolist().index(f"normal/{name}")
    assert np.load(target / "pixels.npy")[row, 0, 0, 0] == 77


def test_other_files_are_listed_and_pipes_do_not_block(folder):
    (folder / "tumour" / "x.png").mkdir()
    (folder / "tumour" / "loop.png").symlink_to("loop.png")
    (folder / "tumour" / "round").symlink_to(folder)
    (folder / "tumour" / "notes.txt").write_text("hello")
    (folder / "tumour" / ".hidden.png").write_text("hello")
    os.mkfifo(folder / "normal" / "pipe.png")
    with open(os.fsencode(folder / "normal") + b"/\xff.png", "wb") as file:
        file.write((folder / "normal" / "0.png").read_bytes())
    (folder / "normal" / "broken.png").write_bytes(b"\x89PNG")
    picture(folder / "normal" / "small.png", size=(8, 8))
    (folder / "README").write_text("hello")
    before = list(content(folder))
    source = FolderSource(folder, size=32)
    assert source.skipped == {
        "tumour/x.png": "a folder with the name of an image",
        "tumour/loop.png": "not a file but a pipe, a device or a dead link",
        "tumour/round": NOT_FOLLOWED,
        "tumour/notes.txt": "not an image by its name (.png, .jpg, .jpeg, .tif, .tiff, .webp, .bmp)",
        "normal/pipe.png": "not a file but a pipe, a device or a dead link",
        "normal/\\xff.png": "its name is not UTF-8: rename it",
    }
    reasons = source.read(0, len(source.table))[1]
    assert [source.table["patch_id"][row] for row in reasons] == ["normal/broken.png", "normal/small.png"]
    assert reasons[4] == "expected 32 × 32 pixels, got 8 × 8"
    picture(folder / "normal" / "small.png", size=(9, 9))
    assert list(content(folder)) != before


def test_the_rule_for_other_sizes_is_applied_and_noted(folder):
    picture(folder / "normal" / "wide.png", 50, size=(100, 40))
    for rule, words in (("resize", "bicubic"), ("crop", "the centre is cut out")):
        source = FolderSource(folder, size=32, resize=rule)
        row = source.table["patch_id"].tolist().index("normal/wide.png")
        pixels, reasons = source.read(row, row + 1)
        assert (reasons, pixels.min(), pixels.max()) == ({}, 50, 50)
        assert words in source.notes["size"]


def test_an_official_split_is_read_from_folders(folder):
    for name in ("normal", "tumour"):
        (folder / "Train").mkdir(exist_ok=True)
        (folder / name).rename(folder / "Train" / name)
        picture(folder / "val" / name / "v.png")
        picture(folder / "test" / name / "t.png")
    source = FolderSource(folder, size=32)
    table = source.table.set_index("patch_id")
    assert table["official"].value_counts().to_dict() == {"train": 6, "valid": 2, "test": 2}
    assert table.loc["test/tumour/t.png"].tolist()[::2] == [1, "test"]
    assert source.notes["classes"] == {"normal": {"label": 0, "patches": 5}, "tumour": {"label": 1, "patches": 5}}
    assert source.notes["official"] == {"train": 6, "valid": 2, "test": 2}
    assert source.unlabelled is None


def test_a_split_without_a_test_set_and_plain_class_folders_have_no_official_column(folder):
    assert list(FolderSource(folder, size=32).table) == ["patch_id", "label", "slide"]
    (folder / "train").mkdir()
    for name in ("normal", "tumour"):
        (folder / name).rename(folder / "train" / name)
        picture(folder / "val" / name / "v.png")
    assert list(FolderSource(folder, size=32).table) == ["patch_id", "label", "slide"]


@pytest.mark.parametrize("listed", [False, True], ids=["folders", "labels.csv"])
def test_test_images_without_a_class_are_predicted(folder, listed):
    for name in ("normal", "tumour"):
        (folder / "train").mkdir(exist_ok=True)
        (folder / name).rename(folder / "train" / name)
    for name in ("a.png", "deep/b.TIF", "deep/c.png", "c.png"):
        picture(folder / "test" / name, 50)
    (folder / "test" / "lost.png").symlink_to("nowhere")
    (folder / "test" / "deep" / "notes.txt").write_text("no image")
    if listed:
        with_labels(folder, [(f"train/{name}", label) for name, label in ALL])
    source = FolderSource(folder, size=32)
    assert len(source.table) == 6
    assert list(source.table) == ["patch_id", "label", "slide"]
    assert set(source.skipped) == {"test/deep/notes.txt"}
    rest = source.unlabelled
    assert rest.table["patch_id"].tolist() == ["a", "test/c.png", "b", "test/deep/c.png"]
    assert rest.skipped == {"lost": "not a file but a pipe, a device or a dead link"}
    pixels, reasons = rest.read(0, 4)
    assert (reasons, pixels.min(), pixels.max()) == ({}, 50, 50)


def test_labels_of_test_images_are_used(folder):
    (folder / "tumour").rename(folder / "test")
    with_labels(folder, [(name.replace("tumour", "test"), label) for name, label in ALL])
    source = FolderSource(folder, size=32)
    assert (len(source.table), source.unlabelled) == (6, None)


def test_files_of_notebooks_and_systems_are_neither_classes_nor_patches(folder):
    expected = FolderSource(folder, size=32).table
    before = list(content(folder))
    for name in (".ipynb_checkpoints", "normal/.ipynb_checkpoints", "__MACOSX", "tumour/@eaDir"):
        picture(folder / name / "0.png")
    for name in ("Thumbs.db", "normal/desktop.ini", "tumour/.DS_Store", "tumour/._1.jpg"):
        (folder / name).write_text("")
    source = FolderSource(folder, size=32)
    pd.testing.assert_frame_equal(source.table, expected)
    assert source.skipped == {}
    assert list(content(folder)) == before


def test_a_run_in_the_data_folder_is_ignored(folder):
    before = list(content(folder))
    picture(folder / "runs" / "mine" / "7-report" / "figures" / "roc.png")
    manifest = dict.fromkeys(("step", "config", "seed", "inputs", "rows", "files", "notes"), 0)
    (folder / "runs" / "mine" / "7-report" / "manifest.json").write_text(json.dumps(manifest))
    source = FolderSource(folder, size=32)
    assert len(source.table) == 6
    assert list(content(folder)) == before


def test_linked_class_folders_are_followed_or_refused(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (folder / "tumour").rename(other / "tumour")
    (folder / "tumour").symlink_to(other / "tumour")
    source = FolderSource(folder, size=32)
    assert source.table["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert source.read(0, 6)[1] == {}
    assert len(list(content(folder))) == 6
    (folder / "tumour").unlink()
    (folder / "tumour").symlink_to(folder / "normal")
    with pytest.raises(InputError, match=r"expected two classes .*'tumour' is a link to a parent .*not followed"):
        FolderSource(folder, size=32)


def test_labels_are_found_in_any_case(folder):
    with_labels(folder, [(name, 1 - label) for name, label in ALL])
    (folder / "labels.csv").rename(folder / "Labels.CSV")
    assert FolderSource(folder, size=32).table["label"].tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("size", "others", "advice"),
    [
        ((64, 64), 0, "Give --set data.size=64 .*for patches of that size, or give --set data.resize=resize"),
        ((64, 48), 0, "Give --set data.resize=resize to scale all images"),
        ((16, 16), 0, "Give --set data.resize=resize to scale all images"),
        ((64, 64), 9, "Check the data folder"),
    ],
    ids=["square", "oblong", "too small for data.size", "mostly other reasons"],
)
def test_advice_for_another_size(tmp_path, size, others, advice):
    for name in ("normal", "tumour"):
        picture(tmp_path / "data" / name / "0.png", size=size)
    for number in range(others):
        (tmp_path / "data" / "normal" / f"x{number}.png").write_text("no image")
    with pytest.raises(InputError, match=f"none of .* could be read .*{advice}"):
        write_pixels(FolderSource(tmp_path / "data", size=32), tmp_path)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected a folder with a folder for each class"):
        FolderSource(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["labels.tsv", "Labels.TXT", "labels.xlsx", "label.csv", "labels.csv.gz"])
@pytest.mark.parametrize("images", ["images", "."])
def test_a_table_with_a_similar_name_is_suggested(tmp_path, name, images):
    for number in range(2):
        picture(tmp_path / images / f"{number}.png")
    (tmp_path / name).write_text("file\tlabel\n0.png\t0\n1.png\t1\n")
    (tmp_path / "notes.csv").write_text("a\n")
    with pytest.raises(InputError, match=rf"labels.csv.* Did you mean '{name}'\? Save it as labels.csv \(commas, semi"):
        FolderSource(tmp_path, size=32)


@pytest.mark.parametrize("name", ["labels.tsv", "Labels.TXT", "labels.xlsx", "label.csv", "slides.csv", "readme.txt"])
def test_a_table_with_a_similar_name_beside_class_folders_is_named(folder, name):
    (folder / name).write_text("file\tlabel\n")
    unused = FolderSource(folder, size=32).notes.get("unused", [])
    expected = (
        f"{name} was not read. If it is meant as labels.csv, save it under that name (commas, semicolons or tabs)"
    )
    assert unused == ([expected] if name.lower().startswith("label") else [])


@pytest.mark.parametrize("header", ["split", "Split", "subset"])
@pytest.mark.parametrize(
    ("words", "official"),
    [
        (["train", "Training set", "val", "valid", "test", "Hold-out"], ["train"] * 2 + ["valid"] * 2 + ["test"] * 2),
        (["train", "train", "val", "", "test", "test"], None),
        (["0", "1", "2", "0", "1", "2"], None),
        (["train", "train", "val", "val", "val", "val"], None),
        ([""] * 6, []),
    ],
    ids=["official", "one missing", "folds", "no test", "empty"],
)
def test_a_column_of_splits_is_used_or_named(folder, header, words, official):
    names = ["normal/0.png", "tumour/1.jpg", "normal/2.tif", "tumour/3.webp", "normal/4.bmp", "tumour/5.jpeg"]
    rows = [(name, row % 2, split) for row, (name, split) in enumerate(zip(names, words, strict=True))]
    with_labels(folder, rows, ("file", "label", header))
    source = FolderSource(folder, size=32)
    table = source.table.set_index("patch_id")
    assert table.get("official", pd.Series(dtype=str)).reindex(names).dropna().tolist() == (official or [])
    unused = source.notes.get("unused", [])
    assert len(unused) == (official is None)
    assert all("labels.csv: its split was not used" in line and repr(words[0]) in line for line in unused)


def test_tables_with_other_names_are_not_suggested(tmp_path):
    picture(tmp_path / "0.png")
    for name in ("slides.csv", "readme.txt", "labels.md", "._labels.csv"):
        (tmp_path / name).write_text("a\n")
    with pytest.raises(InputError, match=r"add labels.csv.$"):
        FolderSource(tmp_path, size=32)
