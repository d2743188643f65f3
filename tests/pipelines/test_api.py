"""The public API: the examples of docs/api.md run, predictions equal those of the command, imports are light."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

import histoblend
from histoblend.data.errors import InputError
from histoblend.data.phantom.patches import phantom
from histoblend.pipelines.commands import baseline
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import plan_run
from histoblend.pipelines.predict.folder import predict_folder
from histoblend.pipelines.predict.shards import Options
from histoblend.pipelines.results import patches_of
from histoblend.pipelines.run import Run
from histoblend.pipelines.runtime.screen import Screen
from tests import ROOT

SMALL = ["data.n=200", "data.slides=10", "split.folds=2", "report.draws=100", "report.repeats=1", "data.difficulty=0.2"]
SMALL += ["embeddings.backbone=efficientnet-lite0", "embeddings.size=64", "embeddings.stages=1", "name=mine"]
SMALL += ["features.families=['colour','stain']", "heads.heads=['logistic']", "final.refit=train"]
SMALL += ["heads.features=['handcrafted','embeddings','both-normalised']", "engine.workers=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run in the subfolder ``runs/mine``."""
    finished = plan_run(load_config(ROOT / "configs" / "phantom.toml", SMALL), tmp_path_factory.mktemp("here") / "runs")
    baseline(finished)
    return finished


@pytest.fixture(scope="module")
def predictor(run: Run) -> histoblend.Predictor:
    return histoblend.Predictor.load(run.folder / "bundle", n_jobs=2)


def test_every_example_of_the_api_page_runs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.root.parent)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    exec("\n".join(blocks), names)  # noqa: S102 - our own page
    assert list(names["features"]) and len(names["held_out"]) > 0  # type: ignore[arg-type, call-overload]  # noqa: PT018
    assert list(names["predictions"]) == ["probability", "label", "flags"]  # type: ignore[call-overload]
    assert set(histoblend.__all__) <= set(re.findall(r"\w+", "\n".join(blocks)))


@pytest.mark.parametrize("model", ["", "logistic_both-normalised"])
def test_predictions_equal_those_of_the_command(run: Run, tmp_path: Path, model: str) -> None:
    table = patches_of(run).table.query("split == 'test'")
    pixels = np.asarray(patches_of(run).pixels[table.index])
    for name, patch in zip(table["patch_id"], pixels, strict=True):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(patch).save(tmp_path / "in" / f"{name}.png")
    table.set_index("patch_id")["slide"].rename_axis("id").to_csv(tmp_path / "slides.csv")
    options = {"slides": tmp_path / "slides.csv", "options": Options(model=model), "screen": Screen()}
    predict_folder(run.folder / "bundle", tmp_path / "in", tmp_path / "out.csv", **options)
    expected = pd.read_csv(tmp_path / "out.csv", dtype={"id": str}, keep_default_na=False).set_index("id")
    predictor = histoblend.Predictor.load(run.folder / "bundle", model=model)
    predictions = predictor.predict(pixels, slides=table["slide"].tolist())
    expected = expected.loc[table["patch_id"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(predictions, expected, check_exact=True)


def test_slides_are_optional_and_change_predictions(run: Run, predictor: histoblend.Predictor) -> None:
    assert predictor.models == ["logistic_handcrafted", "logistic_embeddings", "logistic_both-normalised"]
    table = patches_of(run).table.query("split == 'test'")
    pixels = patches_of(run).pixels[table.index]
    known = predictor.predict(pixels, table["slide"].tolist())
    instead = r"no slides were given \(slides\), so logistic_\w+, which needs none, predicts instead of logistic_both-n"
    for slides in (None, [None] * len(pixels)):
        with pytest.warns(UserWarning, match=instead) as warned:
            unknown = predictor.predict(pixels, slides)
        assert [warning.filename for warning in warned] == [__file__]
    assert roc_auc_score(table["label"], known["probability"]) > 0.7
    assert (known["probability"] != unknown["probability"]).any()
    with pytest.warns(UserWarning, match=instead):
        rare = predictor.predict(pixels, prevalence=0.01)
    assert (rare["probability"] < unknown["probability"]).all()
    assert rare["label"].tolist() == unknown["label"].tolist()


def test_invalid_input_is_refused_with_a_message(run: Run, predictor: histoblend.Predictor) -> None:
    patches = np.zeros((6, 96, 96, 3), np.uint8)
    for wrong in (patches.astype(np.float32), patches[:, :64, :64], patches[0]):
        with pytest.raises(InputError, match=r"patches must be uint8 RGB of shape \(n, 96, 96, 3\); got"):
            predictor.predict(wrong)
    with pytest.raises(InputError, match="slides must have one entry per patch, 6; got 2"):
        predictor.predict(patches, ["a", "b"])
    with pytest.raises(InputError, match="compares a patch with the rest of its slide"):
        histoblend.Predictor.load(run.folder / "bundle", model="logistic_both-normalised").predict(patches)
    with pytest.raises(InputError, match=r"the model must be one of .*got 'svm'"):
        histoblend.Predictor.load(run.folder / "bundle", model="svm")
    with pytest.raises(InputError, match="expected a bundle"):
        histoblend.Predictor.load(run.folder)


def test_small_slides_give_a_warning(predictor: histoblend.Predictor) -> None:
    patches = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
    with pytest.warns(UserWarning, match="8 patches are in slides of fewer than 16 patches"):
        predictor.predict(patches, ["one"] * 8)


def test_tables_of_a_run(run: Run) -> None:
    tables = histoblend.read_run(run.folder)
    assert tables.features().shape[0] == len(tables.predictions) == 200
    assert tables.features().index.tolist() == tables.predictions["patch_id"].tolist()
    assert any(name.startswith("colour_mean") for name in tables.features())
    assert tables.embeddings().shape == (200, 1280)
    assert {"oof", "test"} == set(tables.ladder["split"])
    with pytest.raises(InputError, match=r"expected predictions\.parquet of a finished run; there is none"):
        histoblend.read_run(run.root)


def test_audit_finds_planted_faults() -> None:
    planned = phantom(60, slides=6, seed=0)
    patches = planned.render(0, 60).copy()
    patches[3], patches[7] = patches[5][::-1], patches[6]
    patches[8] = 250
    labels = planned.table["label"].to_numpy().copy()
    labels[7] = 1 - labels[6]
    audited = histoblend.audit(patches, labels, planned.table["slide"].tolist())
    assert audited.loc[[6, 7], "exact_duplicate"].any()
    assert audited.loc[[3, 5], "near_duplicate"].all()
    assert audited.loc[[6, 7], "contradictory"].all()
    assert audited.loc[8, "blank"]
    without_labels = histoblend.audit(patches)
    assert "label" not in without_labels
    assert not without_labels["contradictory"].any()
    with pytest.raises(ValueError, match="labels must have one entry per patch, 60; got 2"):
        histoblend.audit(patches, [0, 1])
    with pytest.raises(ValueError, match="patches must be uint8 RGB"):
        histoblend.audit(patches.astype(float))


def test_importing_the_package_loads_no_library() -> None:
    code = "import sys, histoblend; print(histoblend.__version__, *{'numpy', 'keras', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [histoblend.__version__]
    with pytest.raises(AttributeError, match="module 'histoblend' has no attribute 'Predict'"):
        _ = histoblend.Predict
