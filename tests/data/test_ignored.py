"""Files left by systems and editors are recognised by name."""

from pathlib import PurePath

import pytest

from histoblend.data.ignored import ignored, ignored_names, ignored_path


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store", "._a.tif", "Thumbs.db", "THUMBS.DB", "desktop.ini", "Desktop.ini", ".ipynb_checkpoints",
        "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "~$labels.csv", "labels.csv~",
        "Icon\r", "__pycache__", ".~lock.labels.csv#", ".directory", ".nfs000000",
        "a.tif:Zone.Identifier", "Thumbs.db:encryptable", "bundle.json:com.dropbox.attributes", "#labels.csv#",
    ],
)  # fmt: skip
def test_files_of_systems_and_editors_are_ignored(name):
    assert ignored(name)


@pytest.mark.parametrize(
    "name", ["a.tif", "~a.tif", "thumbs", "desktop", "a.DS_Store", "#1.png", "tumour", "Icon", "#", "##", "a:b.tif"]
)
def test_data_is_not_ignored(name):
    assert not ignored(name)


def test_a_path_is_ignored_if_one_of_its_folders_is():
    assert ignored_path(PurePath("a/.ipynb_checkpoints/b.png"))
    assert not ignored_path(PurePath("a/b.png"))
    assert ignored_names("folder", ["a.png", ".DS_Store"]) == [".DS_Store"]
