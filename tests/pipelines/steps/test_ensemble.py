"""Step 6 on synthetic predictions: its files, no leak of test labels, and its section of the report."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit
from sklearn.metrics import roc_auc_score

from histoblend.data.errors import InputError
from histoblend.models.calibration import POINTS
from histoblend.models.ensemble import Ensemble
from histoblend.models.slide_means import slide_means
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import STEPS
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.steps.ensemble import choose_members, combine, member_names, verdict
from histoblend.pipelines.steps.ladder import judge_decisions
from histoblend.pipelines.steps.report_inputs import ensemble_view
from histoblend.reports.evaluation.ladder import ladder
from histoblend.reports.sections.ensemble import gain_words
from tests import ROOT
from tests.pipelines.stub_run import StubRun
from tests.reports.cohorts import make_inputs, make_predictions, model_names
from tests.reports.written_report import write_report

RUNGS = ("prevalence", "colour", "embeddings", "context", "nuclei")
MEMBERS = ["logistic_colour", "logistic_embeddings", "logistic_context"]
(STEP,) = (step for step in STEPS if step.name == "ensemble")
CONFIG = load_config(
    ROOT / "configs" / "phantom.toml",
    ["ensemble.combiners=['mean','weights']", "ensemble.draws=200", "report.draws=100"],
)


def cohort(**changes):
    return make_predictions(7, slides=12, test_slides=4, per_slide=20, rungs=RUNGS, heads=("logistic",), **changes)


def run_step(predictions, folder):
    folder.mkdir()
    return combine(
        CONFIG, predictions[["patch_id", "slide", "split", "fold", "label"]], predictions, MEMBERS, folder, Screen()
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Predictions, the step's folder and its outcome."""
    predictions, folder = cohort(), tmp_path_factory.mktemp("run") / "6-ensemble"
    return predictions, folder, run_step(predictions, folder)


def test_members_are_all_models_except_prevalence_and_single_families():
    predictions = cohort().assign(prob_cnn=0.5)
    assert member_names(predictions, ("nuclei",)) == [*MEMBERS, "cnn"]


def test_the_step_writes_predictions_ensembles_and_thresholds(finished):
    predictions, folder, outcome = finished
    assert outcome.rows == len(predictions)
    assert outcome.notes["members"] == MEMBERS
    written = pd.read_parquet(folder / "predictions.parquet")
    assert list(written) == ["patch_id", "prob_ensemble"]
    assert written["patch_id"].tolist() == predictions["patch_id"].tolist()
    content = json.loads((folder / "ensemble.json").read_text())
    ensemble = Ensemble.from_dict(content["slides"])
    test = (predictions["split"] == "test").to_numpy()
    columns = predictions[[f"prob_{member}" for member in MEMBERS]].to_numpy()
    means = slide_means(columns, predictions["slide"].to_numpy(dtype=object))
    whole = ensemble.predict(columns, means)
    np.testing.assert_array_equal(written["prob_ensemble"][test], whole[test])
    # Training patches are predicted by fits without their fold, so they differ.
    assert (written["prob_ensemble"][~test] != whole[~test]).any()
    assert (content["heat-map"]["members"], content["heat-map"]["slide_means"]) == (MEMBERS, False)
    assert content["no-slides"]["members"] == MEMBERS[:2]
    assert content["no-slides"]["combiner"]["kind"] == "mean"
    cuts = pd.read_parquet(folder / "thresholds.parquet")
    assert (cuts.loc[test, list(POINTS)] == pd.Series(ensemble.thresholds)[list(POINTS)]).all(axis=None)
    assert cuts.loc[~test].groupby(predictions["fold"][~test])["youden"].nunique().max() == 1


def test_the_tables_agree_with_the_predictions(finished):
    predictions, folder, _ = finished
    train = (predictions["split"] == "train").to_numpy()
    labels = predictions["label"][train]
    nested = pd.read_parquet(folder / "predictions.parquet")["prob_ensemble"][train]
    gains = pd.read_csv(folder / "gains.csv")
    best = max(MEMBERS, key=lambda member: roc_auc_score(labels, predictions[f"prob_{member}"][train]))
    assert gains["over"].tolist() == [best, "best of the other folds"]
    gain = roc_auc_score(labels, nested) - roc_auc_score(labels, predictions[f"prob_{best}"][train])
    assert gains["gain"][0] == pytest.approx(gain)
    assert gains["gain_low"][0] <= gain <= gains["gain_high"][0]
    members = pd.read_csv(folder / "members.csv").set_index("member")
    assert members["auc"][best] == pytest.approx(roc_auc_score(labels, predictions[f"prob_{best}"][train]))
    combiners = pd.read_csv(folder / "combiners.csv").set_index("combiner")
    columns = predictions[[f"prob_{member}" for member in MEMBERS]][train].to_numpy()
    means = slide_means(columns, predictions["slide"][train].to_numpy(dtype=object))
    inputs = logit(np.concatenate([columns, means], axis=1))
    assert combiners["auc"]["mean"] == pytest.approx(roc_auc_score(labels, inputs.mean(axis=1)))
    assert combiners["auc"]["chosen anew in each fold"] == pytest.approx(roc_auc_score(labels, nested))
    assert combiners["chosen"].sum() == 1
    # Weights of no ensemble are fitted on the fold that they are scored on.
    scores = pd.read_csv(folder / "ensembles.csv").set_index("ensemble")
    assert list(scores.index) == ["slides", "heat-map", "no-slides"]
    assert scores["auc"]["slides"] == pytest.approx(roc_auc_score(labels, nested))
    assert scores["auc"]["no-slides"] == pytest.approx(roc_auc_score(labels, logit(columns[:, :2]).mean(axis=1)))
    assert scores["auc"].between(scores["auc_low"], scores["auc_high"]).all()


def test_flipped_test_labels_change_nothing(finished, tmp_path):
    predictions, folder, _ = finished
    flipped = predictions.assign(
        label=np.where(predictions["split"] == "test", 1 - predictions["label"], predictions["label"])
    )
    run_step(flipped, tmp_path / "flipped")
    for path in folder.iterdir():
        assert (tmp_path / "flipped" / path.name).read_bytes() == path.read_bytes(), path.name


def test_patches_without_a_members_prediction_are_left_out_and_counted(finished, tmp_path, capsys):
    predictions, *_ = finished
    gaps = predictions.assign(
        prob_logistic_context=predictions["prob_logistic_context"].where(predictions["fold"] != 1)
    )
    outcome = run_step(gaps, tmp_path / "gaps")
    missing = int((predictions["fold"] == 1).sum())
    assert outcome.notes["left_out"] == missing
    assert f"{missing} training patches lack a member's prediction" in capsys.readouterr().out
    written = pd.read_parquet(tmp_path / "gaps" / "predictions.parquet")["prob_ensemble"]
    assert (written.isna() == (predictions["fold"] == 1)).all()


def test_a_single_class_among_predicted_patches_is_refused(tmp_path):
    predictions = cohort()
    gaps = predictions["prob_logistic_context"].where((predictions["fold"] == 1) & (predictions["label"] == 0))
    with pytest.raises(InputError, match=r"both classes.*cnn\.folds"):
        run_step(predictions.assign(prob_logistic_context=gaps), tmp_path / "gaps")


def test_without_slides_there_is_one_ensemble(tmp_path):
    predictions = cohort().assign(slide=None)
    folder = tmp_path / "one"
    folder.mkdir()
    table = predictions[["patch_id", "slide", "split", "fold", "label"]]
    combine(CONFIG, table, predictions, MEMBERS[:2], folder, Screen())
    content = json.loads((folder / "ensemble.json").read_text())
    assert (content["heat-map"], content["no-slides"]) == (None, None)
    assert pd.read_csv(folder / "ensembles.csv")["ensemble"].tolist() == ["slides"]
    assert not content["slides"]["slide_means"]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.001, 0.02, "helps"),
        (-0.01, 0.02, "no evidence that it helps"),
        (-0.02, -0.001, "hurts"),
        (0.0, 0.1, "no evidence that it helps"),
    ],
)
def test_the_verdict_follows_from_the_interval(low, high, words):
    assert verdict(low, high) == words


def test_the_step_depends_on_its_settings():
    assert STEP.settings(CONFIG)["combiners"] == ("mean", "weights")


def test_the_report_shows_the_ensemble_or_says_that_it_did_not_run(finished, tmp_path):
    predictions, folder, outcome = finished
    merged = predictions.merge(pd.read_parquet(folder / "predictions.parquet"), on="patch_id")
    run = StubRun(CONFIG, {"ensemble": (folder, {"notes": outcome.notes})})
    view = ensemble_view(run)
    inputs = make_inputs(7, slides=12, test_slides=4, per_slide=20, rungs=RUNGS, heads=("logistic",))
    steps = ladder(merged, model_names(merged), draws=100)
    decisions = judge_decisions(run, merged, steps)
    inputs = replace(inputs, predictions=merged, ladder=steps, ensemble=view, decisions=decisions)
    text = write_report(tmp_path / "with", inputs).read_text(encoding="utf-8")
    assert gain_words(view.gains) in text.replace("&#39;", "'")
    rows = inputs.ladder[inputs.ladder.rung == "ensemble"]
    assert rows.below.tolist() == [view.gains["over"][0]] * 2
    # The ladder and the step's own table show the same gain.
    assert rows.gain.iloc[0] == pytest.approx(view.gains["gain"][0])
    table = text[text.index('id="operating-table"') :]
    assert table[: table.index("</table>")].count("<tr ") == 2 * len(POINTS)
    for name in ("ensemble-members", "ensemble-errors", "reliability", "calibration", "operating-points"):
        assert len(pd.read_csv(tmp_path / "with" / f"{name}.csv"))
    plain = write_report(tmp_path / "without", replace(inputs, ensemble=None)).read_text(encoding="utf-8")
    assert "This run has no ensemble (step 6)" in plain
    assert "members-table" not in plain


def test_folds_that_split_slides_exclude_slide_means(tmp_path):
    """If folds split slides, a mean over a slide would leak labels of the fold from the slide's other patches."""
    predictions = cohort()
    train = predictions["split"] == "train"
    divided = predictions.assign(fold=np.where(train, np.arange(len(predictions)) % 3, -1))
    run_step(divided, tmp_path / "divided")
    content = json.loads((tmp_path / "divided" / "ensemble.json").read_text())
    assert not content["slides"]["slide_means"]


def test_members_are_the_configured_ones_or_the_default_ones_or_all():
    models = ["logistic_colour", "logistic_both", "xgboost_embeddings", "logistic_both-normalised", "logistic_in-slide"]
    assert choose_members(models, (), slides=True) == ["logistic_both-normalised", "logistic_in-slide"]
    assert choose_members(models, (), slides=False) == ["logistic_both", "xgboost_embeddings"]
    assert choose_members(models[:1] + models[3:], (), slides=False) == ["logistic_colour"]
    named = ("logistic_colour", "logistic_in-slide")
    assert choose_members(models, named, slides=True) == list(named)
    assert choose_members(models, named, slides=False) == ["logistic_colour"]
    with pytest.raises(InputError, match=r"ensemble\.members must be fitted models \(logistic_colour, .*got 'cnn'"):
        choose_members(models, ("cnn",), slides=True)
