"""Calibration: each kind against an independent fit, the choice, thresholds by hand, and correction for prevalence."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize
from scipy.special import expit, logit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss

from histoblend.data.errors import InputError
from histoblend.models.calibration import (
    CALIBRATORS,
    EXPLANATION_LIMIT,
    Calibrator,
    choose_calibrator,
    fit_calibrator,
    fit_log_loss,
    log_odds,
    odds_groups,
    operating_points,
    shift_prevalence,
    soft_targets,
    youden_threshold,
)
from histoblend.models.file_checks import read_as
from tests.oracles.metrics import resampled_slides


class Scores(ClassifierMixin, BaseEstimator):
    """A model whose decision function is its only column."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X):
        return np.asarray(X)[:, 0]

    def predict(self, X):
        return (self.decision_function(X) > 0).astype(int)


def overconfident(n=600, slides=30, seed=0, sharp=3.0):
    """Scores whose log-odds are `sharp` times too large, with labels, slides and parts of slides."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(0, 1.5, n)
    labels = (rng.random(n) < expit(odds)).astype(int)
    slide = np.arange(n) * slides // n
    return expit(sharp * odds), labels, slide, [np.flatnonzero(slide % 5 == part) for part in range(5)]


def test_platt_is_scikit_learns_sigmoid_on_log_odds():
    score, labels, *_ = overconfident()
    odds = logit(score)[:, None]
    theirs = CalibratedClassifierCV(FrozenEstimator(Scores().fit(odds, labels)), method="sigmoid").fit(odds, labels)
    sigmoid = theirs.calibrated_classifiers_[0].calibrators[0]
    # scikit-learn cross-fits even here, but with a frozen model every fold sees all rows.
    numbers = fit_calibrator("platt", score, labels).numbers
    assert (numbers["slope"][0], numbers["intercept"][0]) == pytest.approx((-sigmoid.a_, -sigmoid.b_), abs=1e-3)
    assert numbers["slope"][0] == pytest.approx(1 / 3, abs=0.1)


def test_isotonic_is_scikit_learns():
    score, labels, *_ = overconfident()
    expected = IsotonicRegression(out_of_bounds="clip").fit(score, labels).predict(score)
    calibrated = fit_calibrator("isotonic", score, labels).predict(score)
    np.testing.assert_allclose(calibrated, expected.clip(1 / 602, 1 - 1 / 602), atol=1e-12)


def plain_loss(odds, labels):
    """Log loss against Platt's targets, row by row."""
    positive = int(labels.sum())
    high, low = (positive + 1) / (positive + 2), 1 / (len(labels) - positive + 2)
    losses = []
    for odd, label in zip(odds, labels, strict=True):
        p, t = expit(odd), high if label else low
        losses.append(-t * np.log(p) - (1 - t) * np.log(1 - p))
    return np.mean(losses)


@pytest.mark.parametrize(
    ("kind", "columns", "bounds"),
    [
        ("temperature", lambda p: [logit(p)], [(0, None)]),
        ("beta", lambda p: [np.log(p), -np.log(1 - p), np.ones_like(p)], [(0, None), (0, None), (None, None)]),
    ],
)
def test_another_optimiser_finds_the_same_parameters(kind, columns, bounds):
    score, labels, *_ = overconfident(n=150)
    table = np.column_stack(columns(score))
    expected = minimize(lambda w: plain_loss(table @ w, labels), np.ones(len(bounds)), bounds=bounds, method="SLSQP")
    numbers = [values[0] for values in fit_calibrator(kind, score, labels).numbers.values()]
    assert numbers == pytest.approx(expected.x.tolist(), abs=2e-3)


@pytest.mark.parametrize("kind", ["temperature", "platt", "beta"])
def test_groups_of_nearly_equal_log_odds_are_enough_for_a_fit(monkeypatch, kind):
    score, labels, *_ = overconfident(n=5000)
    probability = fit_calibrator(kind, score, labels).predict(score)
    monkeypatch.setattr("histoblend.models.calibration.MOST_UNGROUPED", 4999)
    grouped = fit_calibrator(kind, score, labels).predict(score)
    np.testing.assert_allclose(grouped, probability, atol=1e-5)
    assert (grouped != probability).any()


def test_rows_of_a_group_have_one_label_and_log_odds_within_a_hundredth():
    labels, odds = np.array([1, 0, 1, 0, 1]), np.array([0.5, 0.501, 0.504, -3.0, 0.51])
    assert odds_groups(labels, odds).tolist() == [2, 1, 2, 0, 3]


def test_log_odds_are_limited():
    ends = np.array([0.0, 0.5, 1.0])
    assert log_odds(ends) == pytest.approx([-13.8155, 0, 13.8155], abs=1e-4)
    assert log_odds(ends, EXPLANATION_LIMIT) == pytest.approx([-27.631, 0, 27.631], abs=1e-3)


def test_a_penalty_is_added_to_the_loss():
    score, labels, *_ = overconfident(n=150)
    table, penalty = np.column_stack([logit(score), np.ones(150)]), np.array([[0.3, 0.1], [0.1, 0.2]])
    weights = fit_log_loss(table, labels, lower=[-np.inf] * 2, penalty=penalty)
    slope = approx_fprime(weights, lambda w: plain_loss(table @ w, labels) + w @ penalty @ w / 2, 1e-6)
    assert slope == pytest.approx([0, 0], abs=1e-5)
    assert abs(weights[0]) > 0.1


def test_soft_targets_by_hand():
    assert soft_targets(np.array([1, 1, 1, 0])) == pytest.approx([4 / 5, 4 / 5, 4 / 5, 1 / 3])


@pytest.mark.parametrize("kind", CALIBRATORS)
def test_every_kind_keeps_the_order_and_survives_json(kind):
    score, labels, *_ = overconfident()
    calibrator = fit_calibrator(kind, score, labels)
    grid = np.linspace(0, 1, 201)
    probability = calibrator.predict(grid)
    assert (np.diff(probability) >= 0).all()
    assert ((probability >= 0) & (probability <= 1)).all()
    again = read_as(Calibrator, json.loads(json.dumps(asdict(calibrator))), "calibrator")
    np.testing.assert_array_equal(again.predict(grid), probability)


@pytest.mark.parametrize("kind", CALIBRATORS)
def test_scores_that_separate_the_classes_stay_finite(kind):
    score = np.array([0.0, 0.1, 0.2, 0.8, 0.9, 1.0])
    probability = fit_calibrator(kind, score, np.array([0, 0, 0, 1, 1, 1])).predict(score)
    assert np.isfinite(probability).all()
    assert kind == "none" or (probability.min() > 0 and probability.max() < 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kind": "pickle", "numbers": {}}, "calibrator must be one of none, temperature, platt, beta, isotonic"),
        ("platt", "calibrator: "),
        ({"kind": "platt", "numbers": {"slope": [1]}}, "must have the numbers"),
        ({"kind": "platt", "numbers": {"slope": [1, 2], "intercept": [0, 1]}}, "one number for each"),
        ({"kind": "platt", "numbers": {"slope": ["a"], "intercept": [0]}}, r"numbers.slope.0: .*number"),
        (
            {"kind": "platt", "numbers": {"slope": [float("nan")], "intercept": [0]}},
            r"slope.0: .*finite number",
        ),
        ({"kind": "isotonic", "numbers": {"from": [0, 1], "to": [0]}}, "must have the numbers"),
        ({"kind": "isotonic", "numbers": {"from": [1, 0], "to": [0, 1]}}, "must increase"),
        ({"kind": "none", "numbers": {"slope": [1]}}, "must have the numbers"),
    ],
)
def test_a_broken_file_is_refused(content, message):
    with pytest.raises(InputError, match=message):
        read_as(Calibrator, content, "calibrator")


@pytest.mark.parametrize(
    ("sharp", "shift", "expected"),
    [(3.0, 0.0, "temperature"), (2.0, 1.5, "platt"), (1.0, 0.0, "none")],
    ids=["overconfident", "and too high", "calibrated"],
)
def test_the_simplest_calibrator_within_a_standard_error_of_the_best_is_chosen(sharp, shift, expected):
    """All numbers of the comparison are worked out again by repeating the rows of the drawn slides."""
    score, labels, slide, parts = overconfident(sharp=sharp)
    score = expit(logit(score) + shift)
    choice = choose_calibrator(score, labels, slide, parts, draws=60, seed=3)
    drawn = [
        np.concatenate([np.flatnonzero(slide == unit) for unit in draw]) for draw in resampled_slides(slide, 60, 3)
    ]
    cross_fitted, means = {}, {}
    for kind in CALIBRATORS:
        cross_fitted[kind] = np.empty(len(score))
        for part in parts:
            rest = np.setdiff1d(np.arange(len(score)), part)
            cross_fitted[kind][part] = fit_calibrator(kind, score[rest], labels[rest]).predict(score[part])
        losses = -np.log(np.where(labels == 1, cross_fitted[kind], 1 - cross_fitted[kind]))
        means[kind] = np.array([losses[rows].mean() for rows in (slice(None), *drawn)])
    gains = {kind: means["none"] - mean for kind, mean in means.items()}
    low = {kind: np.percentile(gain[1:], 2.5) for kind, gain in gains.items()}
    better = [kind for kind in CALIBRATORS if low[kind] > 0]
    best = min(better, key=lambda kind: means[kind][0], default="none")
    behind = {kind: means[kind] - means[best] for kind in better}
    chosen = next((kind for kind in better if behind[kind][0] <= behind[kind][1:].std(ddof=1)), "none")
    assert chosen == choice.calibrator.kind == expected
    assert choice.calibrator == fit_calibrator(expected, score, labels)
    np.testing.assert_allclose(choice.probability, cross_fitted[expected])
    for row, kind in zip(choice.compared, CALIBRATORS, strict=True):
        assert (row["calibrator"], row["chosen"]) == (kind, kind == expected)
        assert row["log_loss"] == pytest.approx(means[kind][0])
        assert row["brier"] == pytest.approx(brier_score_loss(labels, cross_fitted[kind]))
        assert row["gain"] == pytest.approx(gains[kind][0])
        assert (row["gain_low"], row["gain_high"]) == pytest.approx(np.percentile(gains[kind][1:], [2.5, 97.5]))


def test_a_part_is_calibrated_by_the_others():
    score, labels, slide, parts = overconfident(n=1500)
    first = choose_calibrator(score, labels, slide, parts)
    flipped = labels.copy()
    flipped[parts[2][::9]] = 1 - flipped[parts[2][::9]]
    second = choose_calibrator(score, flipped, slide, parts)
    assert first.compared == choose_calibrator(score, labels, slide, parts, draws=1000, seed=0).compared
    assert first.calibrator.kind == second.calibrator.kind == "temperature"
    np.testing.assert_array_equal(first.probability[parts[2]], second.probability[parts[2]])
    assert (first.probability[parts[0]] != second.probability[parts[0]]).any()


def test_operating_points_by_hand():
    # 20 positives at 0.50, 0.51 ... 0.69; 20 negatives at 0.405, 0.415 ... 0.595.
    positive, negative = 0.50 + 0.01 * np.arange(20), 0.405 + 0.01 * np.arange(20)
    labels = np.repeat([1, 0], 20)
    points = operating_points(labels, np.append(positive, negative))
    assert points["sensitivity-0.95"] == pytest.approx(0.51)  # 19 of 20 are at or above it
    assert points["specificity-0.95"] == pytest.approx(0.59)  # one negative, 0.595, is above it
    # At 0.50: TP 20, FP 10, F1 = 40 / 50. At 0.51: 38 / (20 + 19 + 9) = 0.792. At 0.59: 22 / (20 + 11 + 1).
    assert points["best-f1"] == pytest.approx(0.50)
    assert points["youden"] == youden_threshold(labels, np.append(positive, negative))


@pytest.mark.parametrize(
    ("labels", "scores", "expected"),
    [
        ([0, 0, 1, 1], [0.1, 0.3, 0.6, 0.9], 0.6),
        ([0, 1, 0, 1, 1], [0.1, 0.2, 0.5, 0.6, 0.7], 0.6),  # J: .7 -> 1/3, .6 -> 2/3, .5 -> 1/6, .2 -> 1/2
        ([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1], 0.9),  # .9 and .7 both reach 1/2
        ([1, 1, 0, 0], [0.1, 0.2, 0.6, 0.9], 0.5),
        ([1, 0, 1, 0], [0.3, 0.3, 0.3, 0.3], 0.5),
    ],
    ids=["separable", "by hand", "tie: highest", "worse than chance", "constant"],
)
def test_youden_threshold(labels, scores, expected):
    assert youden_threshold(np.array(labels), np.array(scores)) == expected


def test_a_threshold_above_all_scores_if_none_is_specific_enough():
    points = operating_points(np.array([0, 0, 1]), np.array([0.7, 0.7, 0.7]))
    assert points["specificity-0.95"] > 0.7
    assert points["sensitivity-0.95"] == 0.7


def test_prevalence_shift_by_hand():
    # Odds are 1 at a prevalence of one half; if tumour is nine times rarer than normal tissue, they are 1/9.
    assert shift_prevalence(np.array([0.5]), 0.5, 0.1) == pytest.approx([0.1])
    # A probability equal to the prevalence, 0.4, carries no information, so it becomes 0.5 at a prevalence of one half.
    assert shift_prevalence(np.array([0.4, 0.0, 1.0]), 0.4, 0.5) == pytest.approx([0.5, 0, 1])
    shifted = shift_prevalence(np.linspace(0, 1, 11), 0.4, 0.7)
    assert shift_prevalence(shifted, 0.7, 0.4) == pytest.approx(np.linspace(0, 1, 11))
    with pytest.raises(InputError, match="prevalence must be above 0 and below 1; got 1"):
        shift_prevalence(np.array([0.5]), 0.4, 1)
