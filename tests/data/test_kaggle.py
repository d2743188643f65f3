"""Kaggle's layout: what is read, and what is said of everything that is wrong with it."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.errors import InputError
from data.kaggle import UNMAPPED, KaggleSource, read_patch


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
    (folder / "patch_id_wsi.csv").unlink()
    assert KaggleSource(folder).table["slide"].isna().all()


def test_patches_that_the_map_leaves_out_share_one_group(kaggle_folder):
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
            "expected columns id,wsi; got id,x",
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


def test_missing_skip_keeps_what_has_both_and_says_what_it_left_out(kaggle_folder):
    folder = kaggle_folder(n=20)
    rewrite(folder / "train_labels.csv", lambda table: table[2:])
    gone = next((folder / "train").glob("0007*"))
    gone.unlink()
    source = KaggleSource(folder, missing="skip")
    assert len(source.table) == 17
    assert len(source.skipped) == 3
    assert source.skipped[gone.stem] == "no image under train/"


def save(path, mode="RGB", size=(96, 96)):
    Image.new(mode, size).save(path)
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: save(p, size=(95, 96)), "expected 96 × 96 pixels, got 95 × 96"),
        (lambda p: save(p, mode="L"), "expected an RGB image, got mode L"),
        (lambda p: save(p, mode="RGBA"), "expected an RGB image, got mode RGBA"),
        (lambda p: p.write_bytes(b"not an image"), "not an image that can be read"),
        (lambda p: p.write_bytes(b""), "not an image that can be read"),
        (lambda p: p.write_bytes(save(p).read_bytes()[:9000]), "not readable as an image"),
    ],
    ids=["size", "grey", "alpha", "text", "empty", "truncated"],
)
def test_an_unusable_file_gives_a_reason(tmp_path, make, reason):
    path = tmp_path / "a.tif"
    make(path)
    assert reason in read_patch(path, np.zeros((96, 96, 3), np.uint8))


def test_a_tiff_cut_anywhere_is_never_taken_for_whole(tmp_path):
    whole = save(tmp_path / "whole.tif").read_bytes()
    path = tmp_path / "cut.tif"
    for length in range(0, len(whole), len(whole) // 100):
        path.write_bytes(whole[:length])
        assert read_patch(path, np.zeros((96, 96, 3), np.uint8)), f"cut at {length} of {len(whole)} bytes"


def test_the_real_sample(sample):
    source = KaggleSource(sample)
    assert len(source.table) == 2965
    assert source.table["slide"].nunique() == 36
    assert source.table["label"].sum() == 1147
