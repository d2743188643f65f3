"""``prepare`` for every kind of data set: written files, reuse, and detection of changes."""

import gzip
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histoblend.data.errors import InputError
from histoblend.data.patches import PatchSet
from histoblend.pipelines.commands import one_step
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import plan_run
from histoblend.pipelines.printed_tables import show_audit
from histoblend.pipelines.results import patches_of
from histoblend.pipelines.steps.patches import open_source
from tests import ROOT


def run_of(kind, root, folder, *settings):
    config = load_config(
        ROOT / "configs" / f"{kind}.toml", [f"data.path='{folder}'", "split.folds=3", "engine.workers=2", *settings]
    )
    return plan_run(config, root)


def manifest(run):
    return json.loads((run.folder / "1-patches" / "manifest.json").read_text())


def test_kaggles_patches_without_labels_are_stored_separately(kaggle_folder, tmp_path, capsys):
    folder = kaggle_folder()
    shutil.copytree(folder / "train", folder / "test")
    next((folder / "test").glob("0003*")).write_bytes(b"")
    run = run_of("kaggle", tmp_path, folder)
    prepared = one_step(run, "prepare")
    rest = PatchSet.open_unlabelled(prepared / "unlabelled")
    assert list(rest.table) == ["patch_id", "slide", "sha256"]
    assert len(rest.table) == len(rest.pixels) == 59
    labelled = patches_of(run).table.set_index("patch_id")["sha256"]
    assert rest.table["sha256"].tolist() == labelled[rest.table["patch_id"]].tolist()
    set_aside = pd.read_csv(prepared / "unlabelled" / "set_aside.csv")
    assert set_aside["patch_id"].str.startswith("0003").tolist() == [True]
    notes = manifest(run)["notes"]
    assert (notes["unlabelled"], notes["unlabelled_set_aside"], notes["set_aside"]) == (60, 1, 0)
    # A changed file under test/ is detected, as under train/.
    shutil.copy(next((folder / "test").glob("0004*")), next((folder / "test").glob("0003*")))
    one_step(run_of("kaggle", tmp_path, folder), "prepare")
    assert "prepare: rebuilding, its input changed" in capsys.readouterr().out


def test_a_slide_map_in_another_folder_is_part_of_the_input(kaggle_folder, tmp_path, capsys):
    folder = kaggle_folder()
    other = tmp_path / "other.csv"
    shutil.move(folder / "patch_id_wsi.csv", other)
    one_step(run_of("kaggle", tmp_path, folder, f"data.slide_map='{other}'"), "prepare")
    table = pd.read_csv(other, dtype=str)
    table.assign(wsi="x" + table["wsi"]).to_csv(other, index=False)
    run = run_of("kaggle", tmp_path, folder, f"data.slide_map='{other}'")
    one_step(run, "prepare")
    assert "its input changed" in capsys.readouterr().out
    assert patches_of(run).table["slide"].str.startswith("xS").all()


def test_centres_travel_with_the_patches_and_one_can_be_the_test_set(kaggle_folder, tmp_path, capsys):
    folder = kaggle_folder()
    slides = [f"S{number}" for number in range(12)]
    centres = pd.DataFrame({"slide": slides, "centre": ["2" if number % 3 == 0 else "1" for number in range(12)]})
    centres.to_csv(folder / "centres.csv", index=False)
    options = ("data.centre_map=centres.csv", "split.test_centre=2")
    run = run_of("kaggle", tmp_path, folder, *options)
    prepared = one_step(run, "prepare")
    table = patches_of(run).table
    expected = table["slide"].map(centres.set_index("slide")["centre"])
    assert table["centre"].tolist() == expected.tolist()
    assert ((table["split"] == "test") == (table["centre"] == "2")).all()
    assert set(table["fold"]) == {-1, 0, 1, 2}
    written = pd.read_csv(prepared / "slides.csv", dtype=str).set_index("slide")["centre"]
    assert written.to_dict() == centres.set_index("slide")["centre"].to_dict()
    show_audit(run)
    assert "centres: 1 (8 slides, 40 patches, 50% positive), 2 (4 slides" in " ".join(capsys.readouterr().out.split())
    other = tmp_path / "other.csv"
    shutil.move(folder / "centres.csv", other)
    run = run_of("kaggle", tmp_path, folder, f"data.centre_map='{other}'")
    run.rebuild = True
    one_step(run, "prepare")
    centres.assign(centre=slides).to_csv(other, index=False)
    run = run_of("kaggle", tmp_path, folder, f"data.centre_map='{other}'")
    one_step(run, "prepare")
    assert "its input changed" in capsys.readouterr().out
    assert patches_of(run).table["centre"].tolist() == patches_of(run).table["slide"].tolist()


def test_the_phantom_names_its_scanners_as_centres_on_request():
    named, plain = (
        open_source(load_config(ROOT / "configs" / "phantom.toml", ["data.n=60", *settings]))
        for settings in (["data.centres=true", "data.confound=0.5"], [])
    )
    assert named.table["centre"].tolist() == named.table["domain"].tolist()
    assert named.table["centre"].nunique() == 2
    assert "centre" not in plain.table


def test_gzipped_pcam_is_prepared_and_reused(tmp_path, capsys):
    folder = tmp_path / "pcam"
    folder.mkdir()
    rng = np.random.default_rng(0)
    expected = []
    for split, n in (("train", 60), ("valid", 20), ("test", 20)):
        stem = folder / f"camelyonpatch_level_2_split_{split}"
        expected.append(rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8))
        for part, values in (("x", expected[-1]), ("y", (np.arange(n, dtype=np.uint8) % 2).reshape(n, 1, 1, 1))):
            with h5py.File(tmp_path / "plain.h5", "w") as file:
                file.create_dataset(part, data=values)
            Path(f"{stem}_{part}.h5.gz").write_bytes(gzip.compress((tmp_path / "plain.h5").read_bytes()))
        pd.DataFrame({"wsi": [f"{split}{row // 5}" for row in range(n)]}).to_csv(f"{stem}_meta.csv")
    run = run_of("pcam", tmp_path, folder, "data.size=32")
    one_step(run, "prepare")
    np.testing.assert_array_equal(patches_of(run).pixels, np.concatenate(expected))
    assert patches_of(run).table["official"].value_counts().to_dict() == {"train": 60, "valid": 20, "test": 20}
    held_out = (patches_of(run).table["split"] == "test").to_numpy()
    np.testing.assert_array_equal(held_out, (patches_of(run).table["official"] == "test").to_numpy(dtype=bool))
    assert manifest(run)["notes"]["source"] == {"official": {"train": 60, "valid": 20, "test": 20}}
    one_step(run_of("pcam", tmp_path, folder, "data.size=32"), "prepare")
    assert "prepare: up to date (100 rows" in capsys.readouterr().out


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    for number in range(60):
        path = folder / ("normal", "tumour", "stroma")[number % 3] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 32, 3), dtype=np.uint8)).save(path)
    return folder


def test_a_folder_of_images_is_prepared_by_the_recorded_rules(pictures, tmp_path, capsys):
    with pytest.raises(InputError, match=r"which of the classes 'normal', 'stroma', 'tumour' are positive"):
        one_step(run_of("folder", tmp_path, pictures, "data.size=32"), "prepare")
    settings = ["data.size=32", "data.resize=crop", "data.positive=['tumour']"]
    run = run_of("folder", tmp_path, pictures, *settings)
    one_step(run, "prepare")
    table = patches_of(run).table
    assert table["label"].tolist() == [int(name.startswith("tumour/")) for name in table["patch_id"]]
    row = table["patch_id"].tolist().index("tumour/01.png")
    whole = np.asarray(Image.open(pictures / "tumour" / "01.png"))
    np.testing.assert_array_equal(patches_of(run).pixels[row], whole[4:36])
    notes = manifest(run)["notes"]["source"]
    assert notes["classes"]["tumour"] == {"label": 1, "patches": 20}
    assert notes["size"] == "32 × 32; the centre is cut out; a smaller image is set aside"
    (pictures / "normal" / "00.png").unlink()
    one_step(run_of("folder", tmp_path, pictures, *settings), "prepare")
    assert "prepare: rebuilding, its input changed" in capsys.readouterr().out


def test_images_of_another_size_are_all_set_aside_with_the_reason(pictures, tmp_path):
    run = run_of("folder", tmp_path, pictures, "data.size=32", "data.positive=['tumour']")
    with pytest.raises(InputError, match=r"none of 60 .* \(first reason: expected 32 × 32 pixels, got 32 × 40"):
        one_step(run, "prepare")


def test_a_test_set_of_one_class_stops_the_run_before_decoding(tmp_path, monkeypatch):
    counts = {"train/normal": 8, "train/tumour": 8, "test/tumour": 3}
    write_images(tmp_path / "data", counts)
    monkeypatch.setattr("histoblend.pipelines.steps.patches.write_pixels", None)
    with pytest.raises(InputError, match="the official test set must hold patches with label 1 and patches with"):
        one_step(run_of("folder", tmp_path, tmp_path / "data", "data.size=32"), "prepare")


def test_two_slides_of_one_label_each_are_refused_by_the_split(tmp_path):
    names = write_images(tmp_path / "data", {"images": 24})
    table = pd.DataFrame({"file": names, "label": [0] * 12 + [1] * 12, "slide": ["a"] * 12 + ["b"] * 12})
    table.to_csv(tmp_path / "data" / "labels.csv", index=False)
    run = run_of("folder", tmp_path, tmp_path / "data", "data.size=32", "split.groups='patch'")
    with pytest.raises(InputError, match=r"must hold slides with label 1 and .* Got 2 slides, 1 with tumour"):
        one_step(run, "prepare")


def write_images(folder, counts):
    """Write the given number of noise images, 32 × 32 pixels, into each folder, and return their paths."""
    rng, names = np.random.default_rng(0), []
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            names.append(f"{name}/{number}.png")
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / names[-1])
    return names
