"""Heat maps: the planted disc is detected, tiles equal `predict`, nothing is read twice, results are complete."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image, ImageDraw

import histoblend.pipelines.predict.slide
from histoblend.data.errors import InputError
from histoblend.data.phantom.slide import GroundTruth, write_phantom_slide
from histoblend.data.slides.slide import Slide
from histoblend.features.slide_stain import stain_sums, stains_of
from histoblend.models.bundle import open_bundle, seal_bundle
from histoblend.models.predictor import Predictor, open_predictor
from histoblend.pipelines.commands import baseline
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import plan_run
from histoblend.pipelines.predict.folder import predict_folder
from histoblend.pipelines.predict.shards import Options
from histoblend.pipelines.predict.slide import Geometry, check_out, heatmap
from histoblend.pipelines.predict.slide_results import FILES, conclude
from histoblend.pipelines.runtime.lock import run_lock
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.tables import context_table
from tests import ROOT
from tests.data.slide_files import most_reads, write_scn, write_tiff
from tests.pipelines.predict.bundles import Mean, with_more
from tests.processes import run_command

SMALL = ["data.n=600", "data.slides=12", "split.folds=2", "report.draws=100", "report.repeats=1", "name=small"]
SMALL += [
    "data.difficulty=0.1",
    "features.families=['colour','cooccurrence']",
    "heads.features=['colour','handcrafted','context','in-slide','context-normalised']",
]
SMALL += ["heads.heads=['logistic']", "engine.workers=1"]
SIDES = {"width": 1500, "height": 1300}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished baseline on a small phantom."""
    run = plan_run(load_config(ROOT / "configs" / "phantom.toml", SMALL), tmp_path_factory.mktemp("runs"))
    baseline(run)
    return run


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A phantom slide with its truth."""
    path = tmp_path_factory.mktemp("slides") / "a b & <c>.tif"
    return SimpleNamespace(path=path, truth=write_phantom_slide(path, **SIDES, seed=6, difficulty=0.1))


@pytest.fixture
def slides(monkeypatch):
    """Every slide that a heat map opens."""
    opened = []

    class Recorded(Slide):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            opened.append(self)

    monkeypatch.setattr(histoblend.pipelines.predict.slide, "Slide", Recorded)
    return opened


def make(run, path, out, geometry=None, **options):
    bundle = run if isinstance(run, Path) else run.folder / "bundle"
    geometry = geometry or Geometry()
    heatmap(bundle, path, out, options=Options(**options), geometry=geometry, screen=Screen())
    summary = json.loads((out / "summary.json").read_text())
    return summary, pd.read_csv(out / "tiles.csv", keep_default_na=False)


@pytest.fixture(scope="module")
def done(run, slide, tmp_path_factory):
    """A heat map by the model that compares with the rest of the slide."""
    out = tmp_path_factory.mktemp("heat") / "map"
    summary, tiles = make(run, slide.path, out, model="logistic_context", workers=2)
    return SimpleNamespace(out=out, summary=summary, tiles=tiles)


def test_the_planted_disc_is_detected(done, slide):
    tiles = done.tiles
    inside = slide.truth.disc(tiles["centre_x"], tiles["centre_y"])
    overlap = 2 * (inside & (tiles["label"] == 1)).sum() / (inside.sum() + tiles["label"].sum())
    assert overlap >= 0.85
    assert done.summary["phantom_dice"] == pytest.approx(overlap, abs=0.02)


def test_all_files_agree(done):
    assert sorted(path.name for path in done.out.iterdir()) == sorted(FILES)
    summary, tiles = done.summary, done.tiles
    values = tifffile.imread(done.out / "probability.ome.tif")
    columns, rows = ((tiles[side] / 32).astype(int) for side in ("centre_x", "centre_y"))
    np.testing.assert_array_equal(values[rows, columns], tiles["probability"].astype(np.float32))
    assert np.isfinite(values).sum() == len(tiles) == summary["tiles"]
    assert (tiles["label"] == (tiles["probability"] >= summary["threshold"])).all()
    assert (tiles["x"] + 48 == tiles["centre_x"]).all()
    np.testing.assert_allclose(tiles["centre_x"] * 0.972, tiles["centre_x_um"], atol=0.01)
    pd.testing.assert_frame_equal(pd.read_parquet(done.out / "tiles.parquet"), tiles, check_dtype=False)
    collection = json.loads((done.out / "regions.geojson").read_text())
    areas = [feature["properties"]["measurements"]["Area mm^2"] for feature in collection["features"]]
    assert len(areas) == summary["regions"]
    assert sum(areas) == pytest.approx(summary["positive_mm2"], rel=1e-3)
    assert max(areas) == pytest.approx(summary["largest_region_mm2"], abs=1e-4)
    assert summary["positive_share"] == pytest.approx(tiles["label"].mean(), abs=0.01)
    assert summary["positive_share"] == pytest.approx(summary["positive_mm2"] / summary["predicted_mm2"], abs=1e-3)
    assert summary["slide_context"]
    assert summary["stride_um"] == pytest.approx([31.104, 31.104])
    assert summary["bundle"]["digest"]
    assert summary["peak_mb"] > 0
    with Image.open(done.out / "overlay.png") as picture:
        assert picture.size == (1500, 1300)


def test_the_overlay_is_no_larger_than_a_screen(run, slide, tmp_path, monkeypatch):
    monkeypatch.setattr("histoblend.pipelines.predict.slide_results.MAX_OVERLAY", 700)
    make(run, slide.path, tmp_path / "map", model="logistic_colour")
    with Image.open(tmp_path / "map" / "overlay.png") as picture:
        assert picture.size == (500, 434)


def test_tissue_area_equals_the_drawn_area(done, slide):
    y, x = np.indices((1300, 1500))
    assert done.summary["tissue_mm2"] == pytest.approx(slide.truth.tissue(x, y).sum() * 0.972e-3**2, rel=0.02)


@pytest.mark.parametrize("mpp", [0.972, 0.5])
def test_tiles_and_patches_get_equal_predictions(run, slide, tmp_path, mpp):
    summary, tiles = make(run, slide.path, tmp_path / "map", Geometry(mpp=mpp), model="logistic_handcrafted", shard=100)
    with Slide(slide.path, mpp=mpp) as opened:
        plane = histoblend.pipelines.predict.slide.Plane(opened, 0.972, patch=96)
        whole = np.pad(np.concatenate(
            [np.concatenate([plane.read(r, c) for c in range(plane.columns)], 1) for r in range(plane.rows)]
        ), [(96, 96), (96, 96), (0, 0)], constant_values=255)  # fmt: skip
    (tmp_path / "in").mkdir()
    chosen = tiles.iloc[:: max(1, len(tiles) // 40)]
    for name in chosen["tile"]:
        row, column = map(int, name.split("-"))
        top, left = row * 32 - 32 + 96, column * 32 - 32 + 96
        Image.fromarray(whole[top : top + 96, left : left + 96]).save(tmp_path / "in" / f"{name}.png")
    out = tmp_path / "out.csv"
    options = Options(model="logistic_handcrafted")
    predict_folder(run.folder / "bundle", tmp_path / "in", out, options=options, screen=Screen())
    expected = pd.read_csv(out, keep_default_na=False).set_index("id").loc[chosen["tile"]]
    for column in ("probability", "label", "flags"):
        assert expected[column].tolist() == chosen[column].tolist()
    assert summary["model"] == "logistic_handcrafted"


def test_slide_context_and_stains_are_those_of_all_tiles_together(run, slide, done, tmp_path):
    with Slide(slide.path) as opened:
        pixels = np.pad(opened.read(0, 0, 0, 1500, 1300), [(96, 96), (96, 96), (0, 0)], constant_values=255)
    cells = [tuple(map(int, name.split("-"))) for name in done.tiles["tile"]]
    patches = np.stack([pixels[32 * r + 64 : 32 * r + 160, 32 * c + 64 : 32 * c + 160] for r, c in cells])
    models = ["logistic_context", "logistic_in-slide", "logistic_context-normalised"]
    with open_predictor(open_bundle(run.folder / "bundle"), models) as predictor:
        stains = stains_of(stain_sums(patches), np.array(["one"] * len(patches), dtype=object), 96 * 96)
        table = predictor(patches, stains).table[:, predictor.compared]
        expected = predictor.with_slide(table)
    np.testing.assert_array_equal(done.tiles["probability"], expected["logistic_context"])
    _, tiles = make(run, slide.path, tmp_path / "map", model="logistic_context-normalised", shard=100)
    np.testing.assert_array_equal(tiles["probability"], expected["logistic_context-normalised"])
    # The same from the table that the heads are fitted on.
    table = table[:, : len(predictor.columns) // 2]
    columns = list(predictor.columns)[: table.shape[1]]
    values, _ = context_table(table, columns, np.array(["one"] * len(table), dtype=object))
    for model, start in (("logistic_context", 0), ("logistic_in-slide", len(columns))):
        head = open_bundle(run.folder / "bundle").head(model)
        np.testing.assert_array_equal(expected[model], head.predict_proba(values[:, start:])[:, 1])


@pytest.mark.parametrize("options", [{"shard": 37, "workers": 2}, {"shard": 10_000}])
def test_results_do_not_depend_on_shards_or_workers(run, slide, done, tmp_path, options):
    _, tiles = make(run, slide.path, tmp_path / "map", model="logistic_context", **options)
    order = ["tile"]
    pd.testing.assert_frame_equal(tiles.sort_values(order), done.tiles.sort_values(order), check_exact=True)


def test_network_and_ensemble_predict_too(run, slide, tmp_path, monkeypatch):
    stored = {
        "slides": {"members": ["logistic_colour", "cnn"], "thresholds": {"youden": 0.4}},
        "heat-map": {"members": ["logistic_context", "cnn"], "thresholds": {"youden": 0.4}},
        "no-slides": None,
    }
    monkeypatch.setattr("histoblend.models.ensemble.Ensemble", Mean)
    bundle = with_more(run.folder / "bundle", tmp_path / "run" / "bundle", stored)
    tiles = {model: make(bundle, slide.path, tmp_path / f"map{model}", model=model)[1] for model in ("", "cnn")}
    single = make(bundle, slide.path, tmp_path / "map", model="logistic_context")[1]
    np.testing.assert_allclose(
        tiles[""]["probability"], (single["probability"] + tiles["cnn"]["probability"]) / 2, atol=1e-9
    )


def test_no_region_is_read_twice(run, slide, slides, tmp_path):
    summary, _ = make(run, slide.path, tmp_path / "one", model="logistic_colour", workers=2)
    assert most_reads(slides[0])[0] == 1
    assert summary["reads"] == len(slides[0].reads) == 9
    assert summary["pixels_read"] == 1500 * 1300


def test_an_interrupted_heat_map_resumes(run, slide, slides, done, tmp_path, monkeypatch):
    calls, out = [], tmp_path / "map"
    original = Predictor.__call__

    def counted(self, pixels, stains=None):
        calls.append(len(pixels))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, pixels, stains)

    monkeypatch.setattr(Predictor, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        make(run, slide.path, out, model="logistic_context", shard=100)
    assert not out.exists()
    summary, tiles = make(run, slide.path, out, model="logistic_context", shard=100)
    assert sum(calls) - calls[3] == len(tiles)
    assert summary["tiles_of_earlier_calls"] == 300
    # The tissue survey and the blocks were kept too.
    assert slides[1].reads == []
    order = ["tile"]
    pd.testing.assert_frame_equal(tiles.sort_values(order), done.tiles.sort_values(order), check_exact=True)
    work = out.with_name(".map.work")
    assert not work.exists()


def test_files_of_the_operating_system_among_results_are_ignored(tmp_path):
    for name in (".DS_Store", "._viewer.html", "Thumbs.db", "desktop.ini", "summary.json"):
        (tmp_path / name).write_text("")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    check_out(tmp_path)
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(InputError, match=r"it also contains 'thesis.docx'"):
        check_out(tmp_path)


def test_only_a_folder_of_results_is_replaced(run, slide, tmp_path):
    out = tmp_path / "map"
    make(run, slide.path, out, model="logistic_colour")
    before = (out / "summary.json").stat().st_ino
    make(run, slide.path, out, model="logistic_colour", point="youden")
    assert (out / "summary.json").stat().st_ino != before
    (out / "thesis.docx").write_text("years of work")
    with pytest.raises(InputError, match=r"it also contains 'thesis.docx'. Choose another OUT"):
        make(run, slide.path, out)
    with pytest.raises(InputError, match="expected a folder for the results; got a file"):
        make(run, slide.path, out / "thesis.docx")
    # Killed between two renames: the old results are restored and then replaced by the new ones.
    (out / "thesis.docx").unlink()
    out.rename(out.with_name("map.old"))
    with pytest.raises(InputError, match="STRIDE"):
        make(run, slide.path, out, Geometry(stride=-1))
    make(run, slide.path, out, model="logistic_colour")
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["map"]


@pytest.mark.parametrize("stride", [16, 50, 96])
def test_another_stride_makes_other_cells(run, slide, done, tmp_path, stride):
    summary, tiles = make(run, slide.path, tmp_path / "map", Geometry(stride=stride), model="logistic_context")
    assert summary["stride_px"] == stride
    assert len(tiles) == pytest.approx(len(done.tiles) * (32 / stride) ** 2, rel=0.25)
    assert summary["phantom_dice"] > 0.75


@pytest.mark.parametrize("stride", [-1, 97, 10**9])
def test_a_stride_out_of_range_is_explained(run, slide, tmp_path, stride):
    with pytest.raises(InputError, match=rf"STRIDE \(--stride\) must be 1 to 96 px.*got {stride}"):
        make(run, slide.path, tmp_path / "map", Geometry(stride=stride))
    assert not list(tmp_path.iterdir())


def test_a_stride_of_too_many_cells_is_explained(run, slide, tmp_path, monkeypatch):
    monkeypatch.setattr(histoblend.pipelines.predict.slide, "MAX_CELLS", 1000)
    with pytest.raises(InputError, match=r"divides the slide into 1,927 cells; expected at most 1,000. Give a larger"):
        make(run, slide.path, tmp_path / "map")
    monkeypatch.setattr(histoblend.pipelines.predict.slide, "MAX_CELLS", 10_000)
    monkeypatch.setattr(histoblend.pipelines.predict.slide, "MAX_TILES", 10)
    with pytest.raises(InputError, match=r"patches; expected at most 10. Give a larger STRIDE"):
        make(run, slide.path, tmp_path / "map")


@pytest.mark.parametrize("mpp", [0, None, "wide"])
def test_a_bundle_without_a_resolution_asks_for_it(run, slide, tmp_path, mpp):
    bundle = tmp_path / "bundle"
    shutil.copytree(run.folder / "bundle", bundle)
    index = json.loads((bundle / "bundle.json").read_text())
    index["patch"]["mpp"] = mpp
    if mpp is None:
        del index["patch"]["mpp"]
    (bundle / "bundle.json").unlink()
    seal_bundle(bundle, {name: value for name, value in index.items() if name not in ("files", "digest", "format")})
    with pytest.raises(InputError, match=r"Give PATCH_MPP=… \(--patch-mpp\)"):
        make(bundle, slide.path, tmp_path / "map")
    summary, _ = make(bundle, slide.path, tmp_path / "map", Geometry(patch_mpp=0.972), model="logistic_colour")
    assert summary["patch_um_per_pixel"] == pytest.approx([0.972, 0.972])
    with pytest.raises(InputError, match=r"must be 0.02 to 50 µm; got -1"):
        make(bundle, slide.path, tmp_path / "map", Geometry(patch_mpp=-1))


def test_regions_of_a_slide_with_bounds_are_on_the_tissue_that_qupath_shows(run, slide, tmp_path):
    with Slide(slide.path) as plain:
        pixels = plain.read(0, 0, 0, 1500, 1300)
    path = write_scn(tmp_path / "leica.scn", pixels, corner=(1000, 1500), size=(2600, 2900))
    summary, tiles = make(run, path, tmp_path / "map", model="logistic_handcrafted")
    assert summary["slide"]["bounds"] == {"x": 1000, "y": 1500, "width": 1500, "height": 1300}
    # The table counts from the corner of the slide, as OpenSlide does.
    inside = slide.truth.tissue(tiles["centre_x"] - 1000, tiles["centre_y"] - 1500)
    assert inside.mean() > 0.9
    collection = json.loads((tmp_path / "map" / "regions.geojson").read_text())
    shown, moved = (on_tissue(collection, slide.truth, shift) for shift in ((0, 0), (1000, 1500)))
    assert shown > 0.9
    assert moved < 0.2


def on_tissue(collection, truth, shift):
    """Share of the regions' area that is tissue where QuPath draws it; ``shift`` is added to every corner."""
    area = Image.new("1", (4000, 4000))
    for feature in collection["features"]:
        exterior, *holes = feature["geometry"]["coordinates"]
        for ring, fill in ((exterior, 1), *((hole, 0) for hole in holes)):
            ImageDraw.Draw(area).polygon([(x + shift[0], y + shift[1]) for x, y in ring], fill=fill)
    y, x = np.nonzero(np.asarray(area))
    return truth.tissue(x, y).mean()


def test_unusable_bounds_are_reported_and_ignored(run, slide, done, tmp_path, monkeypatch, capsys):
    class WithBounds(Slide):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.properties |= {"openslide.bounds-x": "1000.5", "openslide.bounds-y": "7"}

    monkeypatch.setattr(histoblend.pipelines.predict.slide, "Slide", WithBounds)
    summary, _ = make(run, slide.path, tmp_path / "map", model="logistic_context")
    assert summary["slide"]["bounds"] is None
    assert "bounds that cannot be used (openslide.bounds-x = 1000.5, openslide.bounds-y = 7)" in capsys.readouterr().out
    name = "regions.geojson"
    assert (tmp_path / "map" / name).read_bytes() == (done.out / name).read_bytes()


def test_the_terminal_states_no_share_if_most_tiles_are_unlike_the_training_patches(done, tmp_path, capsys):
    for outliers, stated in ((0.19, True), (0.49, True), (0.5, False)):
        conclude(done.summary | {"flags": {"out-of-distribution": outliers}}, tmp_path, Screen())
        said = capsys.readouterr().out
        assert ("predicted positive" in said) is stated
        assert ("no share of positive tissue is stated" in said) is not stated
        assert ("unlike all patches" in said) is (outliers >= 0.2)


def test_a_slide_without_tissue_gives_empty_results(run, tmp_path, capsys):
    path = write_tiff(tmp_path / "glass.tif", np.full((900, 1000, 3), 245, np.uint8))
    summary, tiles = make(run, path, tmp_path / "map")
    assert (summary["tiles"], summary["tissue_mm2"], summary["regions"], len(tiles)) == (0, 0, 0, 0)
    assert np.isnan(tifffile.imread(tmp_path / "map" / "probability.ome.tif")).all()
    assert "no tissue was found" in capsys.readouterr().out


def test_a_speck_of_few_tiles_is_predicted_without_slide_context(run, tmp_path):
    pixels = np.full((600, 600, 3), 245, np.uint8)
    with Slide(write_phantom_slide_once(tmp_path)) as whole:
        pixels[290:410, 290:410] = whole.read(0, 500, 500, 120, 120)
    path = write_tiff(tmp_path / "speck.tif", pixels)
    geometry = Geometry(stride=96)
    summary, tiles = make(run, path, tmp_path / "map", geometry)
    assert 0 < len(tiles) <= 4
    assert summary["model"] != "logistic_context"
    with pytest.raises(
        InputError, match=r"compares a patch with the rest of its slide, but this slide has only \d patches"
    ):
        make(run, path, tmp_path / "map", geometry, model="logistic_context")


def write_phantom_slide_once(folder):
    write_phantom_slide(folder / "whole.tif", width=1024, height=1024, seed=5)
    return folder / "whole.tif"


def test_unreadable_regions_are_left_out_and_counted(run, slide, tmp_path, monkeypatch, capsys):
    class Torn(Slide):
        def read(self, level, left, top, width, height):
            if (left, top) == (512, 512):
                raise InputError("torn")
            return super().read(level, left, top, width, height)

    monkeypatch.setattr(histoblend.pipelines.predict.slide, "Slide", Torn)
    summary, tiles = make(run, slide.path, tmp_path / "map", model="logistic_colour")
    assert summary["regions_unread"] == 1
    assert summary["tiles_unread"] > 0
    assert not ((tiles["x"] < 1024) & (tiles["x"] > 416) & (tiles["y"] < 1024) & (tiles["y"] > 416)).any()
    said = capsys.readouterr().out
    assert "1 regions of the slide cannot be read" in said
    assert "tiles are in regions that cannot be read" in said


def test_a_real_slide_of_another_tissue(run, tmp_path):
    path = ROOT.parent / "shared" / "data" / "slides" / "cmu-1-small-region.svs"
    if not path.is_file():
        pytest.skip("the real slides are not beside the checkout")
    summary, tiles = make(run, path, tmp_path / "map", model="logistic_colour")
    assert summary["tissue_mm2"] == pytest.approx(0.56, abs=0.06)
    assert summary["patch_um_per_pixel"] == pytest.approx([0.972, 0.972])
    assert summary["pixels_read"] == 2220 * 2967
    # The glass to the right of the tissue is not predicted.
    assert (tiles["centre_x"] < 2000).all()


def test_the_command_line_draws_a_slide_and_predicts_it(run, tmp_path):
    path = tmp_path / "drawn.tif"
    drawn = run_command("slide", "--out", path, "--width", 1100, "--height", 1024, "--seed", 3)
    assert drawn.returncode == 0, drawn.stderr
    assert "a synthetic slide of 1100 × 1024 px at 0.972 µm per pixel" in drawn.stdout
    bundle = run.folder / "bundle"
    predicted = run_command(
        "heatmap", "--bundle", bundle, "--slide", path, "--out", tmp_path / "map", "--model", "logistic_colour"
    )
    assert predicted.returncode == 0, predicted.stderr
    summary = json.loads((tmp_path / "map" / "summary.json").read_text())
    assert not summary["slide_context"]
    areas = f"{summary['positive_mm2']:.3f} of {summary['predicted_mm2']:.3f} mm² ({summary['positive_share']:.1%})"
    assert areas in predicted.stdout
    assert "Dice overlap" in predicted.stdout
    assert (tmp_path / "map" / "viewer.html").is_file()
    with Slide(path) as slide:
        assert GroundTruth.of(slide.properties)
    failed = run_command("heatmap", "--bundle", bundle, "--slide", tmp_path / "map" / "overlay.png")
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.strip().count("\n") == 0
    assert "got an image" in failed.stderr


def test_a_second_heat_map_in_the_same_folder_is_refused(run, slide, tmp_path):
    with run_lock(tmp_path / ".map.work", print), pytest.raises(InputError, match="choose another folder \\(OUT=…"):
        make(run, slide.path, tmp_path / "map")
