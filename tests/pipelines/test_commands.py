"""Whole runs on small data: stable outputs, reuse, determinism, no test label in training, and bad input."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from histoblend.data.errors import InputError
from histoblend.models.bundle import open_bundle
from histoblend.models.heads.registry import load_head
from histoblend.pipelines import __main__ as command_line
from histoblend.pipelines.commands import baseline, begin, explain, generalise, one_step, report
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import ENSEMBLE_ONLY, plan_run
from histoblend.pipelines.results import feature_sets, patches_of
from histoblend.pipelines.steps.report_inputs import learning_view
from histoblend.pipelines.tables import FeatureSets
from tests import ROOT
from tests.golden.recompute import recompute
from tests.pipelines.fits import opened

SMALL = ["data.n=240", "data.slides=16", "split.folds=2", "report.draws=200", "report.repeats=2", "data.difficulty=0.2"]
SMALL += ["embeddings.backbone=efficientnet-lite0", "embeddings.size=96", "embeddings.stages=1"]  # the fastest
FAMILIES = ("colour", "stain")  # few, because most fits of a run are those of single families
SMALL += [f"features.families={list(FAMILIES)}", "final.refit=train"]


def phantom_run(root, *settings, name="small"):
    config = load_config(ROOT / "configs" / "phantom.toml", [*SMALL, f"name={name}", *settings])
    return plan_run(config, root)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished baseline run on a small phantom."""
    run = phantom_run(tmp_path_factory.mktemp("runs"), "engine.workers=1")
    baseline(run)
    return run


def test_the_stable_outputs_exist(finished):
    predictions = pd.read_parquet(finished.folder / "predictions.parquet")
    models = [
        f"{head}_{rung}"
        for rung in (*FAMILIES, "handcrafted", "embeddings", "both", "context")
        for head in ("logistic", "xgboost")
    ]
    models += [f"logistic_{rung}" for rung in ("in-slide", "embeddings-context", "both-context", "both-normalised")]
    assert list(predictions) == [
        "patch_id", "slide", "split", "fold", "label", "prob_prevalence", *(f"prob_{model}" for model in models)
    ]  # fmt: skip
    probabilities = predictions.filter(like="prob_").to_numpy()
    assert len(predictions) == 240
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    steps = pd.read_csv(finished.folder / "ladder.csv")
    assert len(steps) == 2 * (1 + len(models))
    assert (finished.folder / "7-report" / "report.html").stat().st_size > 100_000


def test_the_ladder_agrees_with_scikit_learn_on_the_predictions(finished):
    predictions = pd.read_parquet(finished.folder / "predictions.parquet")
    steps = pd.read_csv(finished.folder / "ladder.csv")
    for row in steps.itertuples():
        part = predictions[predictions["split"] == {"oof": "train", "test": "test"}[row.split]]
        assert row.auc == pytest.approx(roc_auc_score(part["label"], part[f"prob_{row.model}"]))
        assert row.auc_low <= row.auc <= row.auc_high
        assert row.patches == len(part)


def test_an_independent_script_recomputes_the_reports_numbers(finished):
    recomputed = recompute(pd.read_parquet(finished.folder / "predictions.parquet"), finished.folder / "7-report")
    assert recomputed.faults == []
    assert recomputed.compared > 2000
    card = (finished.folder / "bundle" / "MODEL_CARD.md").read_text(encoding="utf-8")
    text = (finished.folder / "7-report" / "report.html").read_text(encoding="utf-8")
    assert card.splitlines()[2].partition("commit ")[2].partition(".")[0] in text
    for name in ("pixels.npy", "values.npy", "predictions.parquet"):
        assert name in set(pd.read_csv(finished.folder / "7-report" / "artefacts.csv").file)


def test_the_bundle_reproduces_the_test_predictions(finished):
    bundle = open_bundle(finished.folder / "bundle")
    index = bundle.index
    predictions = pd.read_parquet(finished.folder / "predictions.parquet")
    test = (predictions["split"] == "test").to_numpy()
    sets = feature_sets(finished)
    for model, entry in index["models"].items():
        values, columns = sets[entry["columns"]]
        assert columns == index["columns"][entry["columns"]]
        probability = bundle.head(model).predict_proba(values[test])[:, 1]
        np.testing.assert_allclose(probability, predictions.loc[test, f"prob_{model}"], atol=1e-12)


def test_a_second_run_reuses_every_step_and_says_so(finished, capsys):
    before = (finished.folder / "predictions.parquet").read_bytes()
    again = plan_run(finished.config, finished.root)
    baseline(again)
    output = capsys.readouterr().out
    for step in ("prepare", "features", "embeddings", "heads", "report"):
        assert f"{step}: up to date (240 rows, " in output
    last = output.rstrip().splitlines()[-1]
    assert last.startswith("Best: ")
    assert last.endswith(f"test slides; report: {finished.folder / '7-report' / 'report.html'}")
    assert (finished.folder / "predictions.parquet").read_bytes() == before


def test_generalise_adds_learning_curves_without_test_slides(finished, monkeypatch):
    run = phantom_run(finished.root, "engine.workers=2")
    monkeypatch.setattr("histoblend.pipelines.commands.finish", begin)
    generalise(run)
    assert not run.has("cnn")
    step = run.step("learning")
    curve = pd.read_csv(step.folder / "learning-curve.csv")
    assert {"colour", "handcrafted", "embeddings"} <= set(curve["set"])
    table = patches_of(run).table
    assert curve["slides"].max() < table.loc[table["split"] == "train", "slide"].nunique()
    judged = set(pd.read_csv(step.folder / "slide-calibration.csv", dtype={"slide": str})["slide"])
    assert not judged & set(table.loc[table["split"] == "test", "slide"])
    assert learning_view(run) is not None
    # A later `report` keeps the curves; `baseline` leaves them out.
    report(run)
    assert run.has("learning")
    run.leave_out(ENSEMBLE_ONLY)
    assert learning_view(run) is None


def test_another_configuration_is_refused(finished):
    run = phantom_run(finished.root, "split.folds=4")
    with pytest.raises(InputError, match=r"split\.folds was 2, is now 4"):
        one_step(run, "prepare")


def test_every_manifest_records_its_origin(finished):
    for step in ("1-patches", "2-features", "3-embeddings", "4-heads", "7-report"):
        manifest = json.loads((finished.folder / step / "manifest.json").read_text())
        assert manifest["rows"] == 240
        assert {"config", "inputs", "libraries", "commit", "seed", "seconds", "peak_mb"} <= manifest.keys()
    assert manifest["inputs"].keys() == {"analysis/sections", "analysis/figures"}
    manifest = json.loads((finished.folder / "analysis" / "sections" / "manifest.json").read_text())
    analyses = {"ladder", "importances", "attributions", "leakage", "shortcuts", "stain", "bundle"}
    steps = {"1-patches", "2-features", "3-embeddings", "4-heads", *(f"analysis/{name}" for name in analyses)}
    assert manifest["inputs"].keys() == steps | {"configuration"}


def test_the_report_is_rebuilt_if_a_shown_setting_changes():
    one, two, same = (
        plan_run(load_config(ROOT / "configs" / "phantom.toml", given), ROOT)
        for given in (["cnn.epochs=3"], ["cnn.epochs=4"], ["cnn.epochs=3", "engine.workers=1", "track=mlflow"])
    )
    key = one.plan["sections"].inputs
    assert key(one) != key(two)
    assert key(one) == key(same)


def test_the_built_in_importances_of_every_fit_are_stored(finished):
    stored = pd.read_parquet(finished.step("heads").folder / "fitted.parquet")
    assert list(stored) == ["model", "fold", "measure", "feature", "value"]
    assert stored["value"].dtype == np.float32
    for model, part in stored.groupby("model"):
        assert set(part["fold"]) == {-1, 0, 1}
        assert set(part["measure"]) == ({"gain", "cover"} if model.startswith("xgboost") else {"coefficient"})
        sums = part.groupby(["fold", "measure"])["value"].sum()
        assert model.startswith("logistic") or np.allclose(sums, 1, atol=1e-4)
        refit = load_head(finished.step("heads").folder / model).column_measures()
        last = part[part["fold"] == -1]
        for measure, values in refit.items():
            np.testing.assert_allclose(last[last["measure"] == measure]["value"], values, rtol=1e-6)


def test_neither_test_labels_nor_workers_nor_shards_change_a_bit(finished, tmp_path):
    """Flipped held-out labels do not change out-of-fold predictions, test predictions or thresholds of a whole run.

    Neither do another folder, two threads and small shards, so the second run has these as well. That processes change
    nothing is tested in test_heads.py, test_extract.py and test_cluster.py.
    """
    from histoblend.pipelines.steps.heads import fit_heads
    from histoblend.reports.evaluation.ladder import ladder

    for step, workers in {"prepare": 2, "features": 1, "embeddings": 2}.items():
        run = phantom_run(tmp_path, f"engine.workers={workers}", "features.shard=50", "embeddings.shard=70")
        name = f"{run.step(step).folder.name}/{'pixels' if step == 'prepare' else 'values'}.npy"
        assert (run.folder / name).read_bytes() == (finished.folder / name).read_bytes(), name
    before = pd.read_parquet(finished.folder / "predictions.parquet")
    table = patches_of(run).table
    test = (table["split"] == "test").to_numpy()
    flipped = SimpleNamespace(table=table.assign(label=np.where(test, 1 - table["label"], table["label"])))
    folder = tmp_path / "flipped"
    folder.mkdir()
    fit_heads(run.config, flipped, *opened(feature_sets(finished)), folder, run.screen)
    after = pd.read_parquet(folder / "predictions.parquet")
    models = [name for name in before if name.startswith("prob_")]
    pd.testing.assert_frame_equal(before[models], after[models], check_exact=True)
    assert (before["label"] != after["label"]).sum() == test.sum()
    # Refits without a theme or region, and built-in importances, do not depend on the held-out slides either.
    for name in ("dropped.parquet", "fitted.parquet"):
        first, second = (pd.read_parquet(each / name) for each in (finished.step("heads").folder, folder))
        pd.testing.assert_frame_equal(first, second, check_exact=True)
    thresholds = [
        ladder(part, [name.removeprefix("prob_") for name in models], draws=100).query("split == 'oof'")["threshold"]
        for part in (before, after)
    ]
    assert thresholds[0].tolist() == thresholds[1].tolist()


def kaggle(root, folder, *settings):
    config = load_config(
        ROOT / "configs" / "kaggle.toml", ["split.folds=3", f"data.path='{folder}'", "name=k", *settings]
    )
    return plan_run(config, root)


def test_a_truncated_file_is_set_aside_named_and_counted(kaggle_folder, tmp_path, capsys):
    folder = kaggle_folder()
    victim = next((folder / "train").glob("0005*"))
    victim.write_bytes(victim.read_bytes()[:5000])
    run = kaggle(tmp_path, folder)
    folder = one_step(run, "prepare")
    set_aside = pd.read_csv(folder / "set_aside.csv")
    assert set_aside["patch_id"].tolist() == [victim.stem]
    assert "not readable" in set_aside["reason"].iloc[0]
    assert len(patches_of(run).table) == 59
    assert "1 patches were set aside" in capsys.readouterr().out


def test_strict_makes_an_unreadable_patch_fatal(kaggle_folder, tmp_path):
    folder = kaggle_folder()
    next((folder / "train").glob("0005*")).write_bytes(b"")
    with pytest.raises(InputError, match=r"0005.*not an image that can be read .*Fix the file or run without --strict"):
        one_step(kaggle(tmp_path, folder, "data.strict=true"), "prepare")


def test_without_a_slide_map_there_is_a_warning(kaggle_folder, tmp_path, capsys):
    folder = kaggle_folder()
    (folder / "patch_id_wsi.csv").unlink()
    one_step(kaggle(tmp_path, folder), "prepare")
    assert "every score below is optimistic" in capsys.readouterr().out


def test_slide_context_needs_slides_and_never_compares_unmapped_patches(tmp_path):
    values = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    names = ["colour_mean_red_whole", "colour_mean_red_centre"]
    np.save(tmp_path / "values.npy", values)
    (tmp_path / "columns.json").write_text(json.dumps(names))
    config = load_config(ROOT / "configs" / "phantom.toml", ["heads.features=['handcrafted', 'context']"])
    folders = {"features": tmp_path}
    unknown = pd.Series([pd.NA] * 60, dtype="string")
    assert list(FeatureSets(config, folders, unknown)) == ["handcrafted"]
    partly = pd.Series(["a"] * 30 + ["(unmapped)"] * 30, dtype="string")
    context, columns = FeatureSets(config, folders, partly)["context"]
    assert columns[2:] == ["colour_mean-in-slide_red_whole", "colour_mean-in-slide_red_centre"]
    np.testing.assert_array_equal(context[:, :2], values)
    np.testing.assert_array_equal(context[30:, 2:], values[30:])
    assert np.abs(np.median(context[:30, 2:], axis=0)).max() < 1e-6


def test_changed_images_are_detected(kaggle_folder, tmp_path, capsys):
    folder = kaggle_folder()
    one_step(kaggle(tmp_path, folder), "prepare")
    victim = next((folder / "train").glob("0005*"))
    victim.write_bytes(next((folder / "train").glob("0007*")).read_bytes())
    one_step(kaggle(tmp_path, folder), "prepare")
    assert "prepare: rebuilding, its input changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nowhere.toml"], "error: nowhere.toml: expected a TOML file; it does not exist"),
        (["--set", "split.fold=3"], "did you mean 'split.folds'?"),
        (["--set", "features.families=['colur']"], "colour"),
        (["--data", "/nowhere"], "which reads no folder. Use a configuration that reads one, such as CONFIG=kaggle"),
        (["--config", "kaggle", "--data", "README.md"], "expected the folder of the data set; got a file"),
        (["--set", "embeddings.backbone=efficientnet-lite9"], "efficientnet-lite0"),
        (["--set", "features.families=['nuclei']"], "features.families leaves that family out"),
        (["--set", "data.slides=6"], "need at least 9 slides; got 6"),
        (["--set", "heads.heads=['xgboost','xgboost']"], "must not contain a name twice"),
        (["--runs", "/proc/nowhere"], "error: /proc/nowhere"),
        (["--config", "configs/kaggle.toml"], "error: data.path must name the folder of a kaggle data set"),
        (
            ["--config", "configs/kaggle.toml", "--data", "/nowhere"],
            "error: /nowhere: expected the folder of the data set",
        ),
    ],
)
def test_an_expected_error_is_one_line_and_status_2(arguments, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["histoblend", "features", "--runs", str(tmp_path), *arguments])
    monkeypatch.setattr(command_line, "stop_on_signals", lambda: None)
    monkeypatch.setattr(command_line, "_silence_libraries", lambda: None)
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    said = capfd.readouterr().err
    assert ended.value.code == 2
    assert message in said
    assert "Traceback" not in said
    assert said.count("\n") == 1


def test_a_column_is_explained_with_a_picture(finished, capsys):
    path = explain(finished, "colour_mean_red_whole")
    assert path.stat().st_size > 1000
    assert "colour_mean_red_whole" in capsys.readouterr().out
    with pytest.raises(InputError, match="Did you mean 'colour_mean_red_whole'"):
        explain(finished, "colour_mean_red_hole")


def test_a_column_is_explained_by_its_plain_name_or_by_words_that_only_it_has(tmp_path, capsys):
    settings = ["data.n=60", "data.slides=12", "features.families=['colour','stain','nuclei']", "engine.workers=1"]
    run = phantom_run(tmp_path, *settings)
    explain(run, "Spread of nuclear area, whole patch")
    assert capsys.readouterr().out.splitlines()[-8:-6] == [
        "spread of nuclear area, whole patch (unit: px²)",
        "nuclei_area-spread_absorbed_whole",
    ]
    path = explain(run, "stain separation")
    assert path.name == "explain-stain_angle_both_whole.png"
    capsys.readouterr()
    with pytest.raises(InputError, match="'nucleus size' matches the 28 above"):
        explain(run, "nucleus size")
    assert "  nuclei_area-mean_absorbed_whole: mean nuclear area, whole patch" in capsys.readouterr().out.splitlines()


def test_help_needs_no_heavy_import():
    words = [sys.executable, "-m", "histoblend.pipelines", "baseline", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0
    for option in ("--config", "--set", "--data", "--run", "--missing", "--strict", "--rebuild"):
        assert option in done.stdout
    heavy = "{'keras', 'tensorflow', 'xgboost', 'sklearn', 'pandas', 'numpy'}"
    code = f"import sys, histoblend.pipelines.__main__; print(sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert loaded.stdout.strip() == "[]"
