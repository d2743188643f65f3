"""Models of the bundle: refitted to all labelled patches after all evaluations, or kept as evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from histoblend.data.splits import patch_groups
from histoblend.models.bundle import open_bundle
from histoblend.models.heads.registry import load_head, new_head
from histoblend.pipelines.commands import baseline
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.engine.kept_fits import FitCache
from histoblend.pipelines.plan import plan_run
from histoblend.pipelines.results import feature_sets, patches_of
from histoblend.pipelines.run import Run
from histoblend.pipelines.steps.refit import build
from histoblend.pipelines.tables import FeatureSets
from tests import ROOT

SMALL = ["data.n=160", "data.slides=12", "split.folds=2", "report.draws=100", "report.repeats=1", "name=small"]
SMALL += [
    "engine.workers=1",
    "features.families=['colour','stain']",
    "heads.features=['colour','families','context']",
]


def made(root: Path, *settings: str) -> Run:
    run = plan_run(load_config(ROOT / "configs" / "phantom.toml", [*SMALL, *settings]), root)
    baseline(run)
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return {refit: made(tmp_path_factory.mktemp(refit), f"final.refit={refit}") for refit in ("all", "train")}


def test_heads_in_the_bundle_are_fitted_to_all_labelled_patches(runs: dict[str, Run]) -> None:
    run = runs["all"]
    table = patches_of(run).table
    index = open_bundle(run.folder / "bundle").index
    assert index["learned"] == {"patches": "all", "count": 160, "slides": 12}
    for model in index["models"]:
        head, _, name = model.partition("_")
        values, _ = feature_sets(run)[name]
        expected = new_head(head, 0).fit(values, table["label"].to_numpy(), patch_groups(table))
        stored = load_head(run.folder / "bundle" / "heads" / model)
        np.testing.assert_allclose(stored.predict_proba(values), expected.predict_proba(values), rtol=0, atol=1e-7)
    # Models of single families are for comparison only.
    assert "logistic_stain" not in index["models"]


def test_a_resumed_refit_reads_no_table_whose_fits_are_all_kept(
    runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FitCache, "forget", lambda kept: None)
    first = build(runs["all"], tmp_path)
    stored = {path: path.read_bytes() for path in tmp_path.glob("*/*") if path.is_file()}
    assert any(path.parent.name == "logistic_context" for path in stored)
    monkeypatch.setattr(FeatureSets, "file", None)
    assert build(runs["all"], tmp_path) == first
    assert {path: path.read_bytes() for path in stored} == stored


def test_predictions_and_scores_do_not_depend_on_the_refit(runs: dict[str, Run]) -> None:
    names = ["patch_id", "slide", "split", "fold", "label"]
    first, second = (pd.read_parquet(run.folder / "predictions.parquet") for run in runs.values())
    assert len(first.columns) > len(names)
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    scores = [pd.read_csv(run.folder / "ladder.csv") for run in runs.values()]
    scores = [table.drop(columns=["seconds", "seconds_per_1000", "peak_mb"]) for table in scores]
    pd.testing.assert_frame_equal(*scores, check_exact=True)


def test_without_the_refit_the_bundle_contains_the_evaluated_models(runs: dict[str, Run]) -> None:
    run = runs["train"]
    index = json.loads((run.folder / "bundle" / "bundle.json").read_text())
    assert index["learned"]["patches"] == "train"
    assert index["learned"]["count"] == int((patches_of(run).table["split"] == "train").sum())
    for name in ("logistic_colour", "xgboost_context"):
        for path in (run.step("heads").folder / name).iterdir():
            assert (run.folder / "bundle" / "heads" / name / path.name).read_bytes() == path.read_bytes()
    assert not run.has("refit")


@pytest.mark.parametrize(
    ("refit", "words"),
    [("all", "refitted to all 160 labelled patches of 12 slides"), ("train", "fitted to the training patches only")],
)
def test_card_and_report_name_the_patches_that_the_models_are_fitted_to(
    runs: dict[str, Run], refit: str, words: str
) -> None:
    folder = runs[refit].folder
    assert words in (folder / "bundle" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert words in (folder / "7-report" / "report.html").read_text(encoding="utf-8")


def test_the_terminal_names_the_patches_that_the_models_are_fitted_to(
    runs: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    baseline(plan_run(runs["all"].config, runs["all"].root))
    assert "its models are refitted to all 160 labelled patches" in " ".join(capsys.readouterr().out.split())
