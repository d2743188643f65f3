"""Class folders, alone or inside the parts of an official split."""

from pathlib import Path

import pytest

from histoblend.data.errors import InputError
from histoblend.data.sources.official_split import class_folders

HERE = Path("data")


def rows(files):
    folders = class_folders(HERE, set(files), "labels.csv")
    columns = ["patch_id", "class", "official"] if "official" in folders.table else ["patch_id", "class"]
    return folders.table[columns].to_numpy().tolist(), folders.unlabelled


def test_class_folders_alone_give_no_split():
    assert rows(["b/x.png", "a/deep/y.png"]) == ([["a/deep/y.png", "a"], ["b/x.png", "b"]], set())


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [
        ("train", "val", "test"),
        ("TRAIN", "Validation", "Test"),
        ("training", "dev", "testing"),
        ("train_set", "val-images", "test set"),
        ("Training Data", "Eval", "Testing_Dataset"),
        ("trn", "validate", "Hold-out"),
    ],
)
def test_parts_of_a_split_are_not_classes(train, valid, test):
    names = [f"{train}/a/1.png", f"{train}/b/2.png", f"{valid}/a/3.png", f"{test}/b/4.png"]
    table, unlabelled = rows(names)
    assert sorted(table) == sorted(
        [[names[0], "a", "train"], [names[1], "b", "train"], [names[2], "a", "valid"], [names[3], "b", "test"]]
    )
    assert unlabelled == set()


def test_without_a_test_part_there_is_no_official_split():
    table, _ = rows(["train/a/1.png", "val/b/2.png"])
    assert table == [["train/a/1.png", "a"], ["val/b/2.png", "b"]]


@pytest.mark.parametrize("test", ["test/1.png", "test/images/1.png", "test/unknown/deep/1.png"])
def test_a_test_part_without_class_folders_is_unlabelled(test):
    table, unlabelled = rows(["train/a/1.png", "train/b/2.png", test])
    assert table == [["train/a/1.png", "a"], ["train/b/2.png", "b"]]
    assert unlabelled == {test}


def test_capitals_make_no_new_class():
    assert rows(["train/Tumour/1.png", "train/b/2.png", "test/tumour/3.png"])[0] == [
        ["test/tumour/3.png", "Tumour", "test"],
        ["train/Tumour/1.png", "Tumour", "train"],
        ["train/b/2.png", "b", "train"],
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a/1.png", "2.png"], r"data: expected a folder for each class.*got 1 images beside them \(first: '2.png'\)"),
        (["train/a/1.png", "test/b/2.png", "c/3.png"], r"test/, train/ are parts .* got 'c' beside them"),
        (["control/1.png", "test/2.png"], r"test/ are parts of an official split.* got 'control' beside them"),
        (["train/1.png", "train/a/2.png"], r"train: expected a folder for each class.*first: 'train/1.png'"),
        (["train/a/1.png", "test/a/2.png", "test/3.png"], r"test: expected a folder for each class.*'test/3.png'"),
        (["test/a/1.png", "test/b/2.png"], "expected train/ with a folder for each class; got"),
        (["train/1.png", "test/2.png"], "expected train/ with a folder for each class; got"),
    ],
    ids=["loose", "beside", "class named test", "loose in train", "loose in test", "test alone", "no classes"],
)
def test_a_mixture_of_layouts_is_refused(files, message):
    with pytest.raises(InputError, match=message):
        class_folders(HERE, set(files), "labels.csv")
