"""Pairing of two runs on the same patches: joined rows, rejected pairs, and differences against repeated rows."""

import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from histoblend.reports.evaluation.ladder import ladder
from histoblend.reports.evaluation.pairing import BEST, RunResults, best_model, differences, pair
from tests.oracles.metrics import resampled_metrics, resampled_slides
from tests.reports.cohorts import make_predictions, model_names

MODEL = "logistic_both"


def results(name, predictions):
    return RunResults(name, predictions, ladder(predictions, model_names(predictions), draws=20))


def another(predictions, seed=5):
    """The same patches in another order, with different predictions."""
    rng = np.random.default_rng(seed)
    made = predictions.copy()
    for model in model_names(predictions):
        if model != "prevalence":
            made[f"prob_{model}"] = np.clip(made[f"prob_{model}"] + rng.normal(0, 0.15, len(made)), 0.01, 0.99)
    return made.sample(frac=1, random_state=seed)


@pytest.fixture(scope="module")
def predictions():
    return make_predictions(1, slides=10, test_slides=5, per_slide=20, rungs=("prevalence", "both"))


@pytest.fixture(scope="module")
def runs(predictions):
    return results("a", predictions), results("b", another(predictions))


def test_rows_are_joined_by_patch(runs):
    pairing = pair(*runs)
    assert pairing.refused == ""
    assert len(pairing.first) == len(runs[0].predictions)
    assert (pairing.first.patch_id == pairing.second.patch_id).all()
    second = runs[1].predictions.set_index("patch_id")[f"prob_{MODEL}"]
    assert (pairing.second[f"prob_{MODEL}"] == second[pairing.first.patch_id].to_numpy()).all()
    assert not pairing.other_folds


def test_differences_agree_with_repeated_rows(runs):
    table = differences(*runs, pair(*runs), draws=40, seed=3)
    row = table[(table.split == "oof") & (table.model == MODEL)].iloc[0]
    first = runs[0].predictions[runs[0].predictions.split == "train"].reset_index(drop=True)
    second = first[["patch_id"]].merge(runs[1].predictions, on="patch_id", validate="one_to_one")
    labels, groups = first.label.to_numpy(), pd.factorize(first.slide)[0]
    thresholds = [run.ladder.threshold[run.ladder.model == MODEL].iloc[0] for run in runs]
    scores = [table_[f"prob_{MODEL}"].to_numpy() for table_ in (first, second)]
    assert row.auc == pytest.approx(roc_auc_score(labels, scores[1]) - roc_auc_score(labels, scores[0]))
    drawn_metrics = [
        [
            resampled_metrics(labels, score, threshold, groups, drawn)
            for score, threshold in zip(scores, thresholds, strict=True)
        ]
        for drawn in resampled_slides(groups, 40, 3)
    ]
    gains = np.array([np.subtract(two, one) for one, two in drawn_metrics])
    for i, metric in enumerate(("auc", "average_precision", "brier", "accuracy")):
        expected = np.quantile(gains[:, i], [0.025, 0.975])
        assert [row[f"{metric}_low"], row[f"{metric}_high"]] == pytest.approx(expected.tolist())


def test_a_run_does_not_differ_from_itself(runs):
    table = differences(runs[0], runs[0], pair(runs[0], runs[0]), draws=20)
    assert (table[["auc", "auc_low", "auc_high", "brier", "accuracy_high"]] == 0).all(axis=None)
    assert set(table.split) == {"oof", "test"}


def test_each_runs_own_best_is_compared(runs):
    table = differences(*runs, pair(*runs), draws=20)
    best = table[table.model == BEST].iloc[0]
    assert (best.first_model, best.second_model) == (best_model(runs[0].ladder), best_model(runs[1].ladder))
    assert "prevalence" not in set(table.model)


def test_a_run_without_the_ensemble_is_compared_on_common_models(predictions):
    more = predictions.assign(prob_ensemble=predictions[[f"prob_{MODEL}", "prob_xgboost_both"]].mean(axis=1))
    one, two = results("a", predictions), results("b", more)
    table = differences(one, two, pair(one, two), draws=20)
    assert set(table.model) == {BEST, MODEL, "xgboost_both"}
    assert set(table.second_model[table.model == BEST]) == {"ensemble"}


def test_patches_without_a_prediction_in_one_run_are_left_out(predictions):
    one = results("a", predictions.assign(prob_cnn=predictions[f"prob_{MODEL}"]))
    gaps = predictions.assign(prob_cnn=predictions[f"prob_{MODEL}"].where(predictions.fold != 0))
    table = differences(one, results("b", gaps), pair(one, results("b", gaps)), draws=20)
    row = table[(table.model == "cnn") & (table.split == "oof")].iloc[0]
    assert row.patches == ((predictions.split == "train") & (predictions.fold != 0)).sum()
    assert row.auc == 0


def test_only_common_patches_count(predictions):
    one, two = results("a", predictions.iloc[10:]), results("b", predictions.iloc[:-7])
    pairing = pair(one, two)
    assert len(pairing.first) == len(predictions) - 17
    assert pairing.left_out == 17


def test_different_folds_are_reported(predictions):
    refolded = predictions.assign(fold=predictions.fold.replace({0: 1, 1: 0}))
    assert pair(results("a", predictions), results("b", refolded)).other_folds


def with_flipped_labels(table):
    return table.assign(label=table.label.where(table.index > 3, 1 - table.label))


def resplit(table):
    return table.assign(split=table.split.where(table.slide != "S00", "test"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.assign(patch_id="x" + table.patch_id), "they have no patch in common"),
        (with_flipped_labels, "4 common patches have different labels"),
        (lambda table: table.assign(slide=None), "different slides: that of .* is S00 in a and unknown in b"),
        (resplit, "slide S00 is a test slide in b and a training slide in a"),
        (lambda table: pd.concat([table, table.iloc[:1]]), "b contains the patch .* twice"),
    ],
    ids=["other patches", "labels", "slides", "splits", "twice"],
)
def test_runs_that_cannot_be_paired_get_a_reason(predictions, change, words):
    one = results("a", predictions)
    two = RunResults("b", change(predictions), one.ladder)
    pairing = pair(one, two)
    assert len(pairing.first) == 0
    assert re.search(words, pairing.refused)
    assert differences(one, two, pairing).empty


def test_common_patches_of_one_class_have_no_difference(predictions):
    one = results("a", predictions)
    two = RunResults("b", predictions[predictions.label == 1], one.ladder)
    assert differences(one, two, pair(one, two)).empty
