"""Reliability, Brier score decomposition and operating points, by hand and against repeated rows."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from histoblend.models.calibration import POINTS, log_odds
from histoblend.reports.evaluation.calibration import (
    assign_bins,
    calibration_tables,
    decompose,
    operating_table,
    out_of_fold_thresholds,
    recalibrate,
    recalibration_table,
)
from tests.oracles.metrics import resampled_slides
from tests.reports.cohorts import make_predictions


def test_murphys_decomposition_by_hand():
    # 0.2 for four patches, one of them positive, and 0.8 for four positive patches. Prevalence 5/8.
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    probability = np.repeat([0.2, 0.8], 4)
    parts = decompose(labels, probability, np.repeat([0, 1], 4))
    assert parts["reliability"] == pytest.approx((0.05**2 + 0.2**2) / 2)
    assert parts["resolution"] == pytest.approx(((1 / 4 - 5 / 8) ** 2 + (1 - 5 / 8) ** 2) / 2)
    assert parts["uncertainty"] == pytest.approx(5 / 8 * 3 / 8)
    assert parts["ece"] == pytest.approx((0.05 + 0.2) / 2)
    assert parts["brier"] == pytest.approx((3 * 0.04 + 0.64 + 4 * 0.04) / 8)
    assert parts["brier"] == pytest.approx(parts["reliability"] - parts["resolution"] + parts["uncertainty"])


def test_bins_have_equal_numbers_and_ties_share_a_bin():
    probability = np.random.default_rng(0).permutation(np.linspace(0, 1, 100))
    assert np.bincount(assign_bins(probability)).tolist() == [10] * 10
    tied = np.repeat([0.1, 0.5, 0.9], [50, 3, 47])
    bins = assign_bins(tied)
    assert [len(np.unique(bins[tied == value])) for value in (0.1, 0.5, 0.9)] == [1, 1, 1]
    assert bins.max() + 1 == len(np.unique(bins))
    assert assign_bins(np.full(20, 0.4)).tolist() == [0] * 20


@pytest.fixture(scope="module")
def predictions():
    return make_predictions(3, slides=8, test_slides=4, per_slide=30, rungs=("embeddings",), heads=("logistic",))


def test_bands_agree_with_repeated_rows(predictions):
    model = "logistic_embeddings"
    table, parts = calibration_tables(predictions, [model], draws=30, seed=2)
    part = predictions[predictions.split == "train"].reset_index(drop=True)
    groups, probability = pd.factorize(part.slide)[0], part[f"prob_{model}"].to_numpy()
    bins, labels = assign_bins(probability), part.label.to_numpy()
    shares, briers, errors = [], [], []
    for drawn in resampled_slides(groups, 30, 2):
        rows = np.concatenate([np.flatnonzero(groups == slide) for slide in drawn])
        frame = pd.DataFrame({"bin": bins[rows], "label": labels[rows], "p": probability[rows]})
        means = frame.groupby("bin").agg(label=("label", "mean"), p=("p", "mean"), n=("p", "size"))
        shares.append(means.label.reindex(range(10)).to_numpy())
        briers.append(np.mean((frame.label - frame.p) ** 2))
        errors.append(np.average(np.abs(means.label - means.p), weights=means.n))
    oof = table[table.split == "oof"]
    assert oof.patches.sum() == len(part)
    np.testing.assert_allclose(oof.share_low, np.nanquantile(shares, 0.025, axis=0))
    np.testing.assert_allclose(oof.share_high, np.nanquantile(shares, 0.975, axis=0))
    measures = parts[parts.split == "oof"].set_index("measure")
    assert measures.loc["brier", ["low", "high"]].tolist() == pytest.approx(
        np.quantile(briers, [0.025, 0.975]).tolist()
    )
    assert measures.loc["ece", ["low", "high"]].tolist() == pytest.approx(np.quantile(errors, [0.025, 0.975]).tolist())


def test_operating_points_use_the_given_thresholds(predictions):
    cuts = pd.DataFrame(dict.fromkeys(POINTS, 0.5), index=predictions.index)
    cuts.loc[predictions.split == "test", "youden"] = 2.0
    table = operating_table(predictions, cuts, "logistic_embeddings", dict.fromkeys(POINTS, 0.5), draws=50)
    part = predictions[predictions.split == "train"]
    called = part.prob_logistic_embeddings >= 0.5
    row = table[(table.point == "best-f1") & (table.split == "oof")].iloc[0]
    assert row.sensitivity == pytest.approx(called[part.label == 1].mean())
    assert row.specificity == pytest.approx(1 - called[part.label == 0].mean())
    assert row.precision == pytest.approx(part.label[called].mean())
    assert row.negative_value == pytest.approx(1 - part.label[~called].mean())
    assert row.accuracy == pytest.approx((called == (part.label == 1)).mean())
    assert row.sensitivity_low <= row.sensitivity <= row.sensitivity_high
    nothing = table[(table.point == "youden") & (table.split == "test")].iloc[0]
    assert (nothing.sensitivity, nothing.specificity) == (0, 1)
    assert np.isnan(nothing.precision)
    assert np.isnan(nothing.precision_low)


def test_patches_without_a_prediction_are_left_out(predictions):
    gaps = predictions.assign(prob_cnn=predictions.prob_logistic_embeddings.where(predictions.fold != 1))
    table, _ = calibration_tables(gaps, ["cnn"], draws=20)
    assert table.patches[table.split == "oof"].sum() == ((gaps.split == "train") & (gaps.fold != 1)).sum()


def test_models_with_different_gaps_are_evaluated_separately(predictions):
    gaps = predictions.assign(prob_cnn=predictions.prob_logistic_embeddings.where(predictions.fold != 1))
    both = calibration_tables(gaps, ["cnn", "logistic_embeddings"], draws=20, seed=1)
    for model in ("cnn", "logistic_embeddings"):
        for joint, alone in zip(both, calibration_tables(gaps, [model], draws=20, seed=1), strict=True):
            pd.testing.assert_frame_equal(joint[joint.model == model].reset_index(drop=True), alone)


def test_a_fold_gets_the_thresholds_of_the_other_folds(predictions):
    model = "logistic_embeddings"
    cuts, thresholds = out_of_fold_thresholds(predictions, model)
    train = predictions.split == "train"
    rest = predictions[train & (predictions.fold != 2)]
    positive = np.sort(rest[f"prob_{model}"][rest.label == 1])[::-1]
    # The highest threshold with a sensitivity of 95 % is the score of the last positive needed.
    needed = positive[int(np.ceil(0.95 * len(positive))) - 1]
    assert set(cuts["sensitivity-0.95"][predictions.fold == 2]) == {needed}
    assert set(cuts["youden"][~train]) == {thresholds["youden"]}
    changed = predictions.assign(**{f"prob_{model}": predictions[f"prob_{model}"].where(predictions.fold != 2, 0.5)})
    again, _ = out_of_fold_thresholds(changed, model)
    pd.testing.assert_frame_equal(again[predictions.fold == 2], cuts[predictions.fold == 2])


def test_threshold_is_one_half_if_the_other_folds_lack_a_class():
    frame = pd.DataFrame(
        {"split": "train", "fold": [0, 0, 1, 1], "label": [0, 0, 0, 1], "prob_cnn": [0.1, 0.2, 0.3, 0.9]}
    )
    cuts, thresholds = out_of_fold_thresholds(frame, "cnn")
    assert cuts["youden"].tolist() == [0.9, 0.9, 0.5, 0.5]
    assert thresholds["youden"] == 0.9


def by_regression(labels, odds):
    """Slope and intercept by scikit-learn, and the intercept at slope 1 by the root of the mean residual."""
    fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(odds[:, None], labels)
    shift = brentq(lambda shift: np.mean(labels - expit(odds + shift)), -10, 10, xtol=1e-12)
    return [fitted.coef_[0, 0], fitted.intercept_[0], shift]


def test_slope_and_intercept_agree_with_logistic_regression_on_repeated_rows(predictions):
    model = "logistic_embeddings"
    table = recalibration_table(predictions, model, draws=20, seed=4)
    assert table.measure.tolist() == 2 * ["slope", "intercept", "in_the_large"]
    for split, name in (("train", "oof"), ("test", "test")):
        part = predictions[predictions.split == split].reset_index(drop=True)
        labels, odds = part.label.to_numpy(), log_odds(part[f"prob_{model}"].to_numpy())
        rows = table[table.split == name]
        np.testing.assert_allclose(rows.value, by_regression(labels, odds), atol=1e-4)
        groups = pd.factorize(part.slide)[0]
        drawn = []
        for slides in resampled_slides(groups, 20, 4):
            repeated = np.concatenate([np.flatnonzero(groups == slide) for slide in slides])
            drawn.append(by_regression(labels[repeated], odds[repeated]))
        np.testing.assert_allclose(rows.low, np.quantile(drawn, 0.025, axis=0), atol=1e-3)
        np.testing.assert_allclose(rows.high, np.quantile(drawn, 0.975, axis=0), atol=1e-3)


def test_slope_of_doubled_log_odds_is_a_half():
    # Probabilities 1/4 and 3/4 are observed; odds of 1/9 and 9 were predicted: the log-odds are twice too extreme.
    labels = np.array([1, 0, 0, 0, 1, 1, 1, 0.0])
    odds = np.repeat([-1, 1], 4) * np.log(9)
    np.testing.assert_allclose(recalibrate(labels, odds, np.ones(8)), [0.5, 0, 0], atol=1e-9)
    # Log-odds that are log 2 too high everywhere need that much less.
    np.testing.assert_allclose(
        recalibrate(labels, odds / 2 + np.log(2), np.ones(8)), [1, -np.log(2), -np.log(2)], atol=1e-9
    )


@pytest.mark.parametrize(
    ("labels", "odds", "missing"),
    [
        ([0, 0, 0, 0], [-2, -1, 1, 2], [True, True, True]),
        ([0, 0, 1, 1], [-2, -1, 1, 2], [True, True, False]),
        ([0, 1, 0, 1], [1, 1, 1, 1], [True, True, False]),
    ],
    ids=["one class", "separated", "one score"],
)
def test_a_slope_without_a_maximum_is_missing(labels, odds, missing):
    result = recalibrate(np.array(labels, float), np.array(odds, float), np.ones(4))
    assert np.isnan(result).tolist() == missing


def test_even_precision_gives_ppv_and_npv_at_any_prevalence(predictions):
    cuts = pd.DataFrame(dict.fromkeys(POINTS, 0.5), index=predictions.index)
    table = operating_table(predictions, cuts, "logistic_embeddings", dict.fromkeys(POINTS, 0.5), draws=50)
    for row in table.to_dict("records"):
        part = predictions[predictions.split == ("train" if row["split"] == "oof" else "test")]
        share = part.label.mean()
        # Odds of a positive among predicted positives: even odds times the odds of the prevalence.
        odds = row["even_precision"] / (1 - row["even_precision"]) * share / (1 - share)
        assert odds / (1 + odds) == pytest.approx(row["precision"])
        odds = row["even_negative_value"] / (1 - row["even_negative_value"]) * (1 - share) / share
        assert odds / (1 + odds) == pytest.approx(row["negative_value"])
        assert row["even_precision_low"] <= row["even_precision"] <= row["even_precision_high"]
