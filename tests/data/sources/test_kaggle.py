"""Kaggle's layout: what is read, and the errors for invalid input."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoblend.data.errors import InputError
from histoblend.data.patches import write_pixels
from histoblend.data.sources.folder import FolderSource
from histoblend.data.sources.kaggle import KaggleSource, content
from histoblend.data.splits import UNMAPPED


def rewrite(path, change):
    table = pd.read_csv(path, dtype=str)
    change(table).to_csv(path, index=False)


def test_pixels_labels_and_slides_are_read_as_written(kaggle_folder):
    folder = kaggle_folder(n=20, slides=4)
    source = KaggleSource(folder)
    pixels, reasons = source.read(5, 9)
    assert reasons == {}
    for row, patch_id in enumerate(source.table["patch_id"].iloc[5:9]):
        np.testing.assert_array_equal(pixels[row], np.asarray(Image.open(folder / "train" / f"{patch_id}.tif")))
    labels = pd.read_csv(folder / "train_labels.csv").set_index("id")["label"]
    slides = pd.read_csv(folder / "patch_id_wsi.csv").set_index("id")["wsi"]
    assert source.table["label"].tolist() == labels[source.table["patch_id"]].tolist()
    assert source.table["slide"].tolist() == slides[source.table["patch_id"]].tolist()


def test_without_a_slide_map_no_slide_is_known(kaggle_folder):
    folder = kaggle_folder()
    assert KaggleSource(folder).notes == {}
    (folder / "patch_id_wsi.csv").rename(folder / "patch_id_wsi.tsv")
    source = KaggleSource(folder)
    assert source.table["slide"].isna().all()
    (said,) = source.notes["unused"]
    assert said.startswith("patch_id_wsi.tsv was not read. If it is meant as patch_id_wsi.csv, save it")


def test_patches_not_in_the_map_share_one_group(kaggle_folder):
    folder = kaggle_folder(n=20)
    rewrite(folder / "patch_id_wsi.csv", lambda table: table.iloc[3:])
    slides = KaggleSource(folder).table["slide"]
    assert (slides == UNMAPPED).sum() == 3
    assert slides.notna().all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "train").rename(f / "elsewhere"), "train: expected a folder of .tif patches"),
        (lambda f: (f / "train_labels.csv").unlink(), r"train_labels.csv: expected a CSV file .* does not exist"),
        (lambda f: (f / "train_labels.csv").write_bytes(b"\xff\xfe\x00\x01"), "expected a CSV file .* id,label"),
        (lambda f: (f / "train_labels.csv").write_text(""), "expected a CSV file with columns id,label"),
        (
            lambda f: rewrite(f / "train_labels.csv", lambda t: t.rename(columns={"label": "tumor"})),
            "expected columns id,label; got id,tumor. Rename or add label",
        ),
        (
            lambda f: rewrite(f / "train_labels.csv", lambda t: t.assign(label=["2", *t["label"][1:]])),
            "labels must be 0 or 1; got '2'",
        ),
        (
            lambda f: rewrite(f / "train_labels.csv", lambda t: pd.concat([t, t[:1]])),
            "ids must be unique; got '0000",
        ),
        (
            lambda f: rewrite(f / "train_labels.csv", lambda t: t[2:]),
            r"2 images have no label \(first: '0000.*tif'\). Remove them or pass --missing=skip",
        ),
        (
            lambda f: next((f / "train").glob("0003*")).unlink(),
            r"1 ids have no image under train/ \(first: '0003",
        ),
        (
            lambda f: rewrite(f / "patch_id_wsi.csv", lambda t: pd.concat([t, t[:1].assign(wsi="other")])),
            "a patch must have one slide; got two for id '0000",
        ),
        (
            lambda f: rewrite(f / "patch_id_wsi.csv", lambda t: t.rename(columns={"wsi": "x"})),
            r"expected columns id,slide; got id,x. Rename or add slide \(or wsi, slide_id",
        ),
    ],
    ids=[
        "no folder", "no labels", "labels not text", "labels empty", "no label column", "label 2", "id twice",
        "image without label", "id without image", "two slides", "no wsi column",
    ],
)  # fmt: skip
def test_wrong_input_is_named(kaggle_folder, spoil, message):
    folder = kaggle_folder(n=20)
    spoil(folder)
    with pytest.raises(InputError, match=message):
        KaggleSource(folder)


def test_missing_skip_keeps_labelled_images_and_lists_the_others(kaggle_folder):
    folder = kaggle_folder(n=20)
    rewrite(folder / "train_labels.csv", lambda table: table[2:])
    removed = next((folder / "train").glob("0007*"))
    removed.unlink()
    source = KaggleSource(folder, missing="skip")
    assert len(source.table) == 17
    assert len(source.skipped) == 3
    assert source.skipped[removed.stem] == "no image under train/"


def test_an_image_that_is_not_plain_rgb_is_set_aside(kaggle_folder):
    folder = kaggle_folder(n=20)
    Image.new("L", (96, 96)).save(next((folder / "train").glob("0005*")))
    (victim,) = (folder / "train").glob("0007*")
    victim.unlink()
    victim.mkdir()
    pixels, reasons = KaggleSource(folder).read(0, 20)
    assert reasons == {5: "expected an RGB image, got mode L", 7: "not readable as an image (Is a directory)"}
    assert len(pixels) == 20


def test_patches_without_labels_are_a_separate_source(kaggle_folder):
    folder = kaggle_folder(n=20)
    assert KaggleSource(folder).unlabelled is None
    shutil.copytree(folder / "train", folder / "test")
    (folder / "test" / "._0000.tif").write_bytes(b"left by macOS")
    rest = KaggleSource(folder).unlabelled
    assert list(rest.table) == ["patch_id", "slide"]
    assert rest.table["patch_id"].tolist() == sorted(path.stem for path in (folder / "train").iterdir())
    assert rest.table["slide"].isna().all()
    np.testing.assert_array_equal(rest.read(3, 9)[0], KaggleSource(folder).read(3, 9)[0])


def rename_some(folder):
    """Give some files of a folder other endings, and move some into folders; return their ids in order."""
    names = sorted(path.name for path in folder.iterdir())
    for name, other in zip(names, ["x.TIF", "x.tiff", "x.Tiff", "sub/x.tif", "sub/er/x.TIFF", "x.png"], strict=False):
        target = folder / other.replace("x.", f"{name[:-4]}.")
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(target)
    picture = next(folder.glob("*.png"))
    Image.open(picture).save(picture, format="PNG")
    return [name[:-4] for name in names]


def test_images_of_other_endings_and_in_folders_are_read(kaggle_folder):
    folder = kaggle_folder(n=20)
    shutil.copytree(folder / "train", folder / "test")
    expected = KaggleSource(folder)
    plain = expected.read(0, 20)[0]
    for part in ("train", "test"):
        ids = rename_some(folder / part)
    (folder / "test" / ".ipynb_checkpoints").mkdir()
    shutil.copy(next((folder / "test").glob("*.tif")), folder / "test" / ".ipynb_checkpoints")
    source = KaggleSource(folder)
    for either in (source, source.unlabelled):
        assert either.table["patch_id"].tolist() == ids
        pixels, reasons = either.read(0, 20)
        assert reasons == {}
        np.testing.assert_array_equal(pixels, plain)
    pd.testing.assert_frame_equal(source.table, expected.table)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("other", ["x.png", "x.TIF", "sub/x.tif"])
def test_two_images_with_one_id_are_refused(kaggle_folder, part, other):
    folder = kaggle_folder(n=20)
    if part == "test":
        shutil.copytree(folder / "train", folder / "test")
    first = min((folder / part).iterdir())
    second = folder / part / other.replace("x", first.stem)
    second.parent.mkdir(exist_ok=True)
    shutil.copy(first, second)
    names = {first.name, other.replace("x", first.stem)}
    with pytest.raises(InputError, match=f"{part}: expected one image per id") as caught:
        KaggleSource(folder)
    assert all(repr(name) in str(caught.value) for name in names)


def test_an_id_of_the_sample_submission_without_an_image_is_refused(kaggle_folder):
    folder = kaggle_folder(n=20)
    shutil.copytree(folder / "train", folder / "test")
    ids = sorted(path.stem for path in (folder / "test").iterdir())
    listed = pd.DataFrame({" Id": [ids[0] + ".tif", *ids[1:-1], "x", "y"], "Label": 0})
    listed.to_csv(folder / "Sample_Submission.CSV", index=False)
    with pytest.raises(InputError, match=r"2 ids have no image under test/ \(first: 'x', 'y'; .*pass --missing=skip"):
        KaggleSource(folder)
    rest = KaggleSource(folder, missing="skip").unlabelled
    assert rest.table["patch_id"].tolist() == ids
    assert rest.skipped == {"x": "no image under test/", "y": "no image under test/"}
    assert rest.unlisted == ids[-1:]


def test_a_sample_submission_without_any_image_is_refused(kaggle_folder):
    folder = kaggle_folder(n=20)
    (folder / "sample_submission.csv").write_text("id,label\nx,0\n")
    with pytest.raises(InputError, match=r"1 ids have no image under test/ \(first: 'x'.*which makes no submission"):
        KaggleSource(folder)
    assert KaggleSource(folder, missing="skip").unlabelled is None


@pytest.mark.parametrize("ending", [".GIF", ".jp2", ".jfif", ".tif.gz"])
def test_a_test_image_with_another_ending_is_refused(kaggle_folder, ending):
    folder = kaggle_folder(n=20)
    shutil.copytree(folder / "train", folder / "test")
    (folder / "test" / f"x{ending}").write_bytes(b"")
    (folder / "test" / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=rf"test: expected images .*got 1 with other endings \(first: 'x{ending}'\)"):
        KaggleSource(folder)
    rest = KaggleSource(folder, missing="skip").unlabelled
    assert len(rest.table) == 20
    assert rest.skipped == {f"x{ending}": "no image under test/"}


def test_names_of_files_and_folders_match_in_any_case(kaggle_folder):
    folder = kaggle_folder(n=20)
    expected = KaggleSource(folder).table
    for name, other in (
        ("train", "Train"), ("train_labels.csv", "Train_Labels.CSV"), ("patch_id_wsi.csv", "PATCH_ID_WSI.csv")
    ):  # fmt: skip
        (folder / name).rename(folder / other)
    source = KaggleSource(folder)
    pd.testing.assert_frame_equal(source.table, expected)
    assert source.read(0, 20)[1] == {}


def test_the_content_changes_with_a_file_in_a_subfolder(kaggle_folder):
    folder = kaggle_folder(n=20)
    before = list(content(folder))
    assert len(before) == 20
    (folder / "train" / "sub").mkdir()
    shutil.copy(next((folder / "train").glob("0001*")), folder / "train" / "sub" / "new.TIF")
    assert len(list(content(folder))) == 21
    (folder / "train" / ".DS_Store").write_text("")
    assert len(list(content(folder))) == 21


def test_a_wrong_folder_or_configuration_suggests_the_right_one(kaggle_folder):
    folder = kaggle_folder(n=20)
    with pytest.raises(InputError, match=rf"it does not exist. Give the folder .*: {folder}.$"):
        KaggleSource(folder.parent)
    with pytest.raises(InputError, match=r"This is Kaggle's layout: use CONFIG=kaggle"):
        FolderSource(folder)


def test_advice_for_another_size(kaggle_folder, tmp_path):
    folder = kaggle_folder(n=20, size=224)
    with pytest.raises(InputError, match=r"got 224 × 224\). Give --set data.size=224 .*for patches of that size.$"):
        write_pixels(KaggleSource(folder), tmp_path)
    assert KaggleSource(folder, size=224).read(0, 20)[1] == {}


def test_a_name_that_is_not_utf8_is_listed(kaggle_folder):
    folder = kaggle_folder(n=20)
    shutil.copytree(folder / "train", folder / "test")
    for part in ("train", "test"):
        image = next((folder / part).glob("0007*")).read_bytes()
        with open(os.fsencode(folder / part) + b"/a\xff.tif", "wb") as file:
            file.write(image)
    with pytest.raises(InputError, match=r"1 images have no label \(first: 'a.udcff.tif'\)"):
        KaggleSource(folder)
    source = KaggleSource(folder, missing="skip")
    assert source.skipped == {r"a\xff": "no label in train_labels.csv"}
    assert source.unlabelled.skipped == {r"a\xff": "its name is not UTF-8: rename it"}
    assert len(source.unlabelled.table) == 20


def test_another_slide_map_is_given_by_name_or_path(kaggle_folder, tmp_path):
    folder = kaggle_folder(n=20)
    (folder / "patch_id_wsi.csv").rename(tmp_path / "map.csv")
    table = pd.read_csv(tmp_path / "map.csv", dtype=str)
    expected = table.sort_values("id")["wsi"].tolist()
    table.assign(id="train/" + table["id"] + ".TIF").rename(columns={"id": "File", "wsi": " Slide_ID"}).to_csv(
        folder / "other.csv", index=False
    )
    for slide_map in ("other.csv", str(tmp_path / "map.csv")):
        assert KaggleSource(folder, slide_map=slide_map).table["slide"].tolist() == expected
    assert KaggleSource(folder).table["slide"].isna().all()
    with pytest.raises(InputError, match=r"nowhere\.csv: expected a CSV file with columns id,slide; it does not"):
        KaggleSource(folder, slide_map="nowhere.csv")


def test_tables_as_a_spreadsheet_leaves_them_are_read(kaggle_folder):
    folder = kaggle_folder(n=20, slides=4)
    expected = KaggleSource(folder).table
    labels, slides = (pd.read_csv(folder / name, dtype=str) for name in ("train_labels.csv", "patch_id_wsi.csv"))
    labels["id"] = "train\\" + labels["id"] + ".TIF "
    labels["label"] = labels["label"].map({"0": "0.0", "1": "TRUE"})
    labels.columns = ["Id", "LABEL"]
    labels.to_csv(folder / "train_labels.csv", sep=";", index=False)
    slides["wsi"] = [name + ("\u00a0", "")[row % 2] for row, name in enumerate(slides["wsi"])]
    slides.to_csv(folder / "patch_id_wsi.csv", sep="\t", index=False, encoding="utf-16")
    pd.testing.assert_frame_equal(KaggleSource(folder).table, expected)


def test_an_image_keeps_its_file_name_if_the_table_spells_it_differently(kaggle_folder):
    folder = kaggle_folder(n=20)
    first = min((folder / "train").iterdir())
    real = "Pru\u0308fung\u200b "
    pixels = np.asarray(Image.open(first))
    first.rename(folder / "train" / f"{real}.tif")
    for name in ("train_labels.csv", "patch_id_wsi.csv"):
        rewrite(folder / name, lambda table: table.assign(id=table["id"].replace(first.stem, "Pr\u00fcfung")))
    source = KaggleSource(folder)
    row = source.table["patch_id"].tolist().index(real)
    assert source.table["slide"].notna().all()
    np.testing.assert_array_equal(source.read(row, row + 1)[0][0], pixels)


def test_two_rows_for_one_image_are_refused(kaggle_folder):
    folder = kaggle_folder(n=20)
    rewrite(folder / "train_labels.csv", lambda t: pd.concat([t, t[:1].assign(id=t["id"] + ".tif")]))
    with pytest.raises(InputError, match=r"a patch must have one row; got '0000\w+' and '0000\w+\.tif' for the same"):
        KaggleSource(folder)


def test_the_real_sample(sample):
    source = KaggleSource(sample)
    assert len(source.table) == 2965
    assert source.table["slide"].nunique() == 36
    assert source.table["label"].sum() == 1147
    assert len(source.unlabelled.table) == 300
