"""Predict a folder: the run's own probabilities for any batch size; unreadable files are listed and skipped."""

import inspect
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import histoblend.features.handcrafted.slide_context
import histoblend.features.networks.embeddings
import histoblend.features.networks.engines
import histoblend.models.predictor
import histoblend.pipelines.predict.shards
from histoblend.data.errors import InputError
from histoblend.data.storage.parts import Parts
from histoblend.models.bundle import open_bundle
from histoblend.models.calibration import POINTS, operating_points
from histoblend.models.names import needs_slides
from histoblend.models.predictor import open_predictor
from histoblend.pipelines.commands import baseline
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import plan_run
from histoblend.pipelines.predict.folder import predict_folder
from histoblend.pipelines.predict.shards import Options
from histoblend.pipelines.results import feature_tables, patches_of
from histoblend.pipelines.runtime.screen import Screen
from tests import ROOT
from tests.data.slide_files import write_tiff
from tests.pipelines.predict.bundles import Mean, with_more
from tests.pipelines.predict.small_installation import (
    link_packages,
    predict_everything,
    run_with,
)
from tests.pipelines.stub_run import StubRun

SMALL = ["data.n=200", "data.slides=10", "split.folds=2", "report.draws=100", "report.repeats=1", "data.difficulty=0.2"]
SMALL += ["embeddings.backbone=efficientnet-lite0", "embeddings.size=96", "embeddings.stages=1", "name=small"]
SMALL += ["features.families=['colour','stain']", "engine.workers=1"]
SMALL += ["heads.features=['colour','handcrafted','embeddings','context','both-normalised']"]
# What the bundle predicts is compared with the run's own predictions.
SMALL += ["final.refit=train"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished baseline on a small phantom."""
    run = plan_run(load_config(ROOT / "configs" / "phantom.toml", SMALL), tmp_path_factory.mktemp("runs"))
    baseline(run)
    return run


@pytest.fixture(scope="module")
def held_out(run, tmp_path_factory):
    """Test patches of the run as files, their slides as CSV, and what the run predicts for them."""
    folder = tmp_path_factory.mktemp("patches")
    predictions = pd.read_parquet(run.folder / "predictions.parquet")
    test = np.flatnonzero(predictions["split"] == "test")
    for number, row in enumerate(test):
        subfolder = folder / "in" / f"part{number % 3}"
        subfolder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(patches_of(run).pixels[row]).save(subfolder / f"{predictions['patch_id'][row]}.png")
    table = predictions.iloc[test].set_index("patch_id")
    table["slide"].rename_axis("id").to_csv(folder / "slides.csv")
    return SimpleNamespace(files=folder / "in", slides=folder / "slides.csv", table=table)


def predict(run, held_out, out, *, slides=False, explain=(), files=None, **options):
    status = predict_folder(
        run.folder / "bundle",
        files or held_out.files,
        out,
        options=Options(**options),
        slides=held_out.slides if slides else None,
        explain=explain,
        screen=Screen(),
    )
    return status, pd.read_csv(out, dtype={"id": str}, keep_default_na=False).set_index("id")


@pytest.mark.parametrize(
    "model",
    ["logistic_colour", "xgboost_handcrafted", "logistic_embeddings", "logistic_context", "logistic_both-normalised"],
)
def test_files_and_bundle_give_the_probabilities_of_the_run(run, held_out, tmp_path, model):
    status, table = predict(run, held_out, tmp_path / "out.csv", slides=True, model=model)
    assert status == 0
    assert set(table.index) == set(held_out.table.index)
    expected = held_out.table.loc[table.index, f"prob_{model}"]
    np.testing.assert_allclose(table["probability"], expected, atol=1e-9, rtol=0)
    ladder = pd.read_csv(run.folder / "ladder.csv")
    threshold = ladder[(ladder["model"] == model) & (ladder["split"] == "oof")]["threshold"].iloc[0]
    assert table["label"].tolist() == (expected >= threshold).astype(int).tolist()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("model", ["", "logistic_handcrafted", "logistic_context", "logistic_both-normalised"])
def test_results_do_not_depend_on_batches_or_workers(run, held_out, tmp_path, model):
    given = {"model": model, "slides": needs_slides(model)}
    _, first = predict(run, held_out, tmp_path / "a.csv", **given)
    for options in ({"shard": 1}, {"shard": 7, "workers": 2}, {"shard": 512, "workers": 2}):
        _, second = predict(run, held_out, tmp_path / "b.csv", **given, **options)
        pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_a_large_slide_is_compared_through_a_file_with_equal_results(run, held_out, tmp_path, monkeypatch):
    options = {"model": "logistic_both-normalised", "slides": True}
    _, first = predict(run, held_out, tmp_path / "a.csv", **options)
    monkeypatch.setattr(histoblend.pipelines.predict.shards, "MAX_IN_MEMORY", 0)
    monkeypatch.setattr(histoblend.features.handcrafted.slide_context, "_MAX_VALUES", 1)
    _, second = predict(run, held_out, tmp_path / "b.csv", **options, shard=7)
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_the_bundle_states_the_pixel_size_of_its_patches(run):
    assert open_bundle(run.folder / "bundle").index["patch"]["mpp"] == 0.972


def test_without_slides_a_model_that_needs_none_is_used_and_reported(run, held_out, tmp_path, capsys):
    models = open_bundle(run.folder / "bundle").index["models"]
    best = max((name for name in models if not needs_slides(name)), key=lambda name: models[name]["auc"])
    _, table = predict(run, held_out, tmp_path / "out.csv")
    np.testing.assert_allclose(table["probability"], held_out.table.loc[table.index, f"prob_{best}"], atol=1e-9)
    with pytest.raises(InputError, match=r"compares a patch with the rest of its slide.*Give SLIDES"):
        predict(run, held_out, tmp_path / "out.csv", model="xgboost_context")
    with pytest.raises(InputError, match=r"the model must be one of .*got 'svm'"):
        predict(run, held_out, tmp_path / "out.csv", model="svm")
    with pytest.raises(InputError, match=r"the operating point must be one of .*, best-f1, youden; got 'best'"):
        predict(run, held_out, tmp_path / "out.csv", point="best")


def test_fast_is_the_cheapest_model_near_the_best(run, held_out, tmp_path, capsys):
    index = open_bundle(run.folder / "bundle").index
    costs, scores = index["costs"], {name: entry["auc"] for name, entry in index["models"].items()}
    assert set(costs) == set(scores)
    # A model costs at least the tables that it needs, and every model the columns of the out-of-distribution flag.
    assert 0 < costs["logistic_handcrafted"] < costs["logistic_context"] < costs["logistic_both-normalised"]
    assert costs["logistic_handcrafted"] < costs["logistic_embeddings"]
    near = [name for name, auc in scores.items() if auc >= max(scores.values()) - 0.005]
    chosen = min(near, key=costs.get)
    _, fast = predict(run, held_out, tmp_path / "fast.csv", slides=True, model="fast")
    assert f"MODEL=fast chose {chosen}, {costs[chosen]:.1f} core-ms per patch" in " ".join(
        capsys.readouterr().out.split()
    )
    _, named = predict(run, held_out, tmp_path / "named.csv", slides=True, model=chosen)
    pd.testing.assert_frame_equal(fast, named)


@pytest.fixture
def blended(run, tmp_path, monkeypatch):
    """A bundle with a minimal ensemble and network."""
    stored = {
        "slides": {"members": ["logistic_colour", "logistic_context", "cnn"], "thresholds": {"youden": 0.4}},
        "no-slides": {"members": ["logistic_colour", "cnn"], "thresholds": {"youden": 0.6}},
    }
    monkeypatch.setattr("histoblend.models.ensemble.Ensemble", Mean)
    bundle = with_more(run.folder / "bundle", tmp_path / "run" / "bundle", stored)
    return SimpleNamespace(folder=bundle.parent)


@pytest.mark.parametrize(("slides", "threshold"), [(True, 0.4), (False, 0.6)])
def test_an_ensemble_blends_its_members(run, blended, held_out, tmp_path, slides, threshold):
    _, table = predict(blended, held_out, tmp_path / "out.csv", slides=slides)
    rows = patches_of(run).table.set_index("patch_id").index.get_indexer(table.index)
    red = patches_of(run).pixels[rows][..., 0].mean(axis=(1, 2))
    members = [held_out.table.loc[table.index, "prob_logistic_colour"], 1 / (1 + np.exp((180 - red) / 10))]
    members += [held_out.table.loc[table.index, "prob_logistic_context"]] if slides else []
    expected = np.mean(members, axis=0)
    np.testing.assert_allclose(table["probability"], expected, atol=1e-6)
    assert table["label"].tolist() == (table["probability"] >= threshold).astype(int).tolist()


def test_an_explanation_adds_up(run, blended, held_out, tmp_path, capsys):
    name = held_out.table.index[3]
    _, table = predict(blended, held_out, tmp_path / "out.csv", slides=True, explain=[name])
    explanation = json.loads((tmp_path / f"explain-{name}.json").read_text())
    assert explanation["probability"] == pytest.approx(table.loc[name, "probability"])
    assert explanation["slide_context"]
    assert explanation["members"]["logistic_handcrafted"] == pytest.approx(
        held_out.table.loc[name, "prob_logistic_handcrafted"]
    )
    assert explanation["members"]["logistic_context"] == pytest.approx(
        held_out.table.loc[name, "prob_logistic_context"]
    )
    assert set(explanation["columns"]) == {
        f"{head}_{part}" for head in ("logistic", "xgboost") for part in ("colour", "handcrafted")
    }
    first = explanation["columns"]["logistic_handcrafted"][0]
    assert first["what"]
    assert abs(first["log_odds"]) >= abs(explanation["columns"]["logistic_handcrafted"][1]["log_odds"])
    assert explanation["saliency"]["model"] == "cnn"
    assert np.shape(explanation["saliency"]["log_odds"]) == (8, 8)
    with Image.open(tmp_path / f"explain-{name}.png") as picture:
        assert picture.size == (2 * 96 * 4 + 8, 96 * 4)
    assert "log odds by" in capsys.readouterr().out


def test_prevalence_rescales_probabilities_and_keeps_labels(run, held_out, tmp_path, capsys):
    _, before = predict(run, held_out, tmp_path / "a.csv", model="logistic_colour")
    assert "rescaled" not in capsys.readouterr().out
    _, after = predict(run, held_out, tmp_path / "b.csv", model="logistic_colour", prevalence=0.9)
    prevalence = patches_of(run).table.query("split == 'train'")["label"].mean()
    said = f"rescaled from {100 * prevalence:.3g} % positives, as in training, to 90 % (PREVALENCE); labels do not"
    assert capsys.readouterr().out.count(said) == 1
    assert (after["probability"] > before["probability"]).all()
    assert after["label"].tolist() == before["label"].tolist()
    with pytest.raises(InputError, match=r"must be between 0 and 1; got 1\.5"):
        predict(run, held_out, tmp_path / "b.csv", prevalence=1.5)


def test_every_model_has_the_operating_points_of_the_report_from_training_slides(run, held_out, tmp_path):
    models = open_bundle(run.folder / "bundle").index["models"]
    train = pd.read_parquet(run.folder / "predictions.parquet").query("split == 'train'")
    listed = pd.read_csv(run.folder / "7-report" / "operating-points.csv")
    ladder = pd.read_csv(run.folder / "ladder.csv").query("split == 'oof'").set_index("model")
    for model, entry in models.items():
        assert entry["thresholds"] == operating_points(train["label"].to_numpy(), train[f"prob_{model}"].to_numpy())
        assert set(entry["thresholds"]) == set(listed["point"]) == set(POINTS)
        assert entry["thresholds"]["youden"] == pytest.approx(ladder.loc[model, "threshold"])
    expected = held_out.table["prob_logistic_colour"]
    for point, threshold in models["logistic_colour"]["thresholds"].items():
        _, table = predict(run, held_out, tmp_path / "out.csv", model="logistic_colour", point=point)
        assert table["label"].tolist() == (expected[table.index] >= threshold).astype(int).tolist()


@pytest.fixture
def odd(run, tmp_path):
    """A folder with every kind of problem."""
    folder = tmp_path / "odd"
    (folder / "deep" / "er").mkdir(parents=True)
    patch = Image.fromarray(patches_of(run).pixels[0])
    patch.save(folder / "good.tif")
    patch.save(folder / "=cmd.png")
    patch.save(folder / "twin.png")
    patch.save(folder / "deep" / "er" / "twin.tif")
    Image.fromarray(np.full((96, 96, 3), 250, np.uint8)).save(folder / "glass.png")
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    (folder / "cut.tif").write_bytes((folder / "good.tif").read_bytes()[:9000])
    (folder / "text.tif").write_text("no image")
    (folder / "notes.txt").write_text("beside the images")
    patch.resize((64, 64)).save(folder / "small.png")
    return folder


def test_unreadable_files_are_listed_and_the_rest_predicted(run, held_out, odd, tmp_path, capsys):
    status, table = predict(run, held_out, tmp_path / "out.csv", files=odd)
    assert status == 3
    assert set(table.index) == {"good", "'=cmd", "twin.png", "deep/er/twin.tif", "glass", "noise"}
    assert table["probability"].loc[["good", "'=cmd", "twin.png", "deep/er/twin.tif"]].nunique() == 1
    assert "blank" in table["flags"]["glass"].split()
    assert "out-of-distribution" in table["flags"]["noise"].split()
    skipped = pd.read_csv(tmp_path / "out.csv.skipped.csv").set_index("file")["reason"]
    assert set(skipped.index) == {"cut.tif", "text.tif", "small.png"}
    assert skipped["small.png"] == "expected 96 × 96 pixels, got 64 × 64"
    said = capsys.readouterr().out
    assert "3 files were skipped" in said
    assert "2 share a name with another and are identified by their path" in said
    for name in ("cut.tif", "text.tif", "small.png"):
        (odd / name).unlink()
    status, _ = predict(run, held_out, tmp_path / "out.csv", files=odd)
    assert status == 0
    assert not (tmp_path / "out.csv.skipped.csv").exists()


def test_earlier_results_among_the_images_are_not_predicted(run, held_out, tmp_path, capsys):
    """The second call finds the table, explanations, bundle and run of the first; none counts as skipped."""
    folder = tmp_path / "in"
    shutil.copytree(held_out.files, folder)
    shutil.copytree(run.folder / "bundle", folder / "deep" / "bundle")
    shutil.copytree(run.folder / "7-report", folder / "runs" / "small" / "7-report")
    for name in ("part0/.DS_Store", "part0/._a.png", "part1/Thumbs.db", ".ipynb_checkpoints/a.png", "deep/desktop.ini"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("left behind")
    out = folder / "part0" / "out.csv"
    status, first = predict(run, held_out, tmp_path / "out.csv", files=folder, explain=[held_out.table.index[0]])
    assert (status, len(first)) == (0, len(held_out.table))
    for path in tmp_path.glob("explain-*"):
        shutil.copy(path, folder / "part1")
    for _ in range(2):
        status, again = predict(run, held_out, out, files=folder)
        assert status == 0
        pd.testing.assert_frame_equal(again, first, check_exact=True)
    said = capsys.readouterr().out
    for words in ("deep/bundle, a bundle", "7-report, results of a step", ".png, a result of predict"):
        assert words in said
    assert "out.csv, a result" not in said


def test_a_folder_without_readable_images_gives_an_empty_table(run, held_out, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (224, 224)).save(tmp_path / "in" / name)
    for model in ("logistic_colour", "xgboost_handcrafted"):
        status, table = predict(run, held_out, tmp_path / "out.csv", files=tmp_path / "in", model=model)
        assert (status, len(table)) == (3, 0)
    assert "the bundle takes patches of 96 × 96 pixels" in capsys.readouterr().out


def test_shards_without_a_readable_patch_do_not_change_others(run, held_out, odd, tmp_path):
    given = {"files": odd, "model": "logistic_handcrafted"}
    _, first = predict(run, held_out, tmp_path / "a.csv", **given)
    _, second = predict(run, held_out, tmp_path / "b.csv", **given, shard=1)
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_an_interrupted_prediction_resumes(run, held_out, tmp_path, monkeypatch):
    _, whole = predict(run, held_out, tmp_path / "whole.csv", shard=4)
    calls = []
    real = histoblend.models.predictor.Predictor.__call__

    def counted(self, pixels, stains=None):
        calls.append(len(pixels))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, pixels, stains)

    monkeypatch.setattr(histoblend.models.predictor.Predictor, "__call__", counted)
    out = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        predict(run, held_out, out, shard=4)
    assert not out.exists()
    work = tmp_path / ".out.csv.work"
    parts = sorted(work.glob("*-*.npz"))
    assert len(parts) == 3
    parts[1].write_bytes(parts[1].read_bytes()[:100])
    _, again = predict(run, held_out, out, shard=4)
    # Two of the three finished shards are kept; the damaged one is made again.
    assert sum(calls[4:]) == len(whole) - 8
    pd.testing.assert_frame_equal(again, whole, check_exact=True)
    assert not work.exists()


def test_old_shards_are_not_used_for_other_files(run, held_out, tmp_path):
    out = tmp_path / "out.csv"
    work = tmp_path / ".out.csv.work"
    Parts(work, {"files": "before"}).keep("left", {"a": 1})
    assert "left" in Parts(work, {"files": "before"})
    predict(run, held_out, out)
    assert not work.exists()


def test_slides_of_too_few_patches_are_predicted_without_context(run, blended, held_out, tmp_path, capsys):
    slides = pd.read_csv(held_out.slides)
    slides["slide"] = [
        ("Tiny", "tiny", "tiny\u00a0")[row] if row < 3 else name for row, name in enumerate(slides["slide"])
    ]
    slides.to_csv(tmp_path / "slides.csv", index=False)
    held = SimpleNamespace(files=held_out.files, slides=tmp_path / "slides.csv")
    _, some = predict(blended, held, tmp_path / "a.csv", slides=True)
    _, none = predict(blended, held, tmp_path / "b.csv")
    few = slides["id"][:3]
    pd.testing.assert_frame_equal(some.loc[few], none.loc[few], check_exact=True)
    assert (some["probability"] != none["probability"]).sum() == len(some) - 3
    said = capsys.readouterr().out
    assert "3 patches are in slides of 4 patches or fewer" in said
    assert "'Tiny' and 'tiny'" in said
    slides.assign(id="x" + slides["id"]).to_csv(tmp_path / "slides.csv", index=False)
    with pytest.raises(InputError, match="it lists none of"):
        predict(run, held, tmp_path / "a.csv", slides=True)


def test_the_outlier_reference_uses_training_slides_only(run):
    from histoblend.pipelines.steps.model_set import _store_outliers

    test = (patches_of(run).table["split"] == "test").to_numpy()
    folder = feature_tables(run)["features"].folder
    values = np.load(folder / "values.npy")
    changed = np.where(test[:, None], 1e3, values).astype(np.float32)
    references = []
    for number, table in enumerate((values, changed, np.where(test[:, None], values, values + 1))):
        table_folder = run.folder / f"table{number}"
        table_folder.mkdir()
        np.save(table_folder / "values.npy", table)
        (table_folder / "columns.json").write_text((folder / "columns.json").read_text())
        held = StubRun(run.config, {"features": table_folder}, patches=patches_of(run))
        _store_outliers(held, table_folder / "outliers")
        references.append({path.name: path.read_bytes() for path in (table_folder / "outliers").iterdir()})
    assert references[0] == references[1]
    assert references[0] != references[2]


def test_a_small_installation_predicts_the_same(run, held_out, tmp_path):
    """requirements-predict.txt is enough for every kind of model."""
    members = ["xgboost_handcrafted", "logistic_embeddings", "cnn"]
    ensemble = {
        "members": members,
        "slide_means": False,
        "combiner": {"kind": "mean", "weights": [1 / 3] * 3, "intercept": 0.0},
        "calibrator": {"kind": "none", "numbers": {}},
        "thresholds": dict.fromkeys(POINTS, 0.5),
        "prevalence": 0.4,
    }
    with_slides = ensemble | {"members": ["logistic_both-normalised", *members[1:]]}
    stored = {"slides": with_slides, "heat-map": ensemble, "no-slides": ensemble}
    bundle = with_more(run.folder / "bundle", tmp_path / "bundle", stored, keras_file=True)
    images, folders = tmp_path / "images", [tmp_path / "all", tmp_path / "small"]
    for folder in (images, *folders, tmp_path / "packages"):
        folder.mkdir()
    for path in sorted(held_out.files.rglob("*.png"))[:16]:
        shutil.copy(path, images)
    glass = np.full((480, 480, 3), 255, np.uint8)
    glass[100:400, 80:380] = np.random.default_rng(0).normal([170, 90, 160], 30, (300, 300, 3)).clip(0, 255)
    places = [bundle, images, write_tiff(tmp_path / "slide.tif", glass)]
    predict_everything(*map(str, (*places, folders[0])))
    code = f"{inspect.getsource(predict_everything)}\nimport sys\npredict_everything(*sys.argv[1:])"
    done = run_with(link_packages(tmp_path / "packages"), "-W", "ignore", "-c", code, *places, folders[1])
    assert done.returncode == 0, done.stderr
    assert "by the ensemble" in done.stdout
    assert len(pd.read_csv(folders[0] / "map" / "tiles.csv")) > 9
    for name in ("predictions.csv", "in-memory.csv", "map/tiles.csv", "map/regions.geojson"):
        assert (folders[1] / name).read_bytes() == (folders[0] / name).read_bytes(), name


def test_the_bundle_contains_the_network(run, held_out, monkeypatch):
    """Neither weights nor an export are needed to predict."""

    for module in (histoblend.features.networks.embeddings, histoblend.features.networks.engines):
        monkeypatch.setattr(module, "export_onnx", None)
    bundle = open_bundle(run.folder / "bundle")
    with open_predictor(bundle, ["logistic_embeddings"]) as predictor:
        values = predictor(np.asarray(patches_of(run).pixels[:3]))
    expected = np.load(feature_tables(run)["embeddings"][0] / "values.npy")[:3]
    np.testing.assert_array_equal(values.table[:, -expected.shape[1] :], expected)


def test_the_card_states_data_scores_and_limits(run):
    card = (run.folder / "bundle" / "MODEL_CARD.md").read_text()
    for words in (
        "| training |",
        "| held out |",
        "logistic_context | held-out slides",
        "of no use on tissue",
        "MODEL=fast",
    ):
        assert words in card
