import numpy as np
import pytest

from histoblend.models.inspection.new_slides import calibration_error, recalibration_gains, slide_calibration


def slides_of(shift, seed=0, slides=12, each=150):
    """Labels, probabilities and slides: the log-odds of each slide are too high or too low by about ``shift``."""
    rng = np.random.default_rng(seed)
    slide = np.repeat([f"s{i:02d}" for i in range(slides)], each).astype(object)
    odds = 2 * rng.normal(size=slides * each)
    labels = (rng.random(len(odds)) < 1 / (1 + np.exp(-odds))).astype(int)
    wrong = np.repeat(shift * rng.choice([-1, 1], slides), each)
    return labels, 1 / (1 + np.exp(-(odds + wrong))), slide


def test_the_calibration_error_is_the_mean_gap_of_bins():
    labels = np.array([0] * 10 + [1] * 10)
    assert calibration_error(labels, labels.astype(float)) == 0
    # Two bins of ten patches: 0.2 against 0 and 0.7 against 1.
    assert calibration_error(labels, np.array([0.2] * 10 + [0.7] * 10)) == pytest.approx(0.25)


def test_the_error_of_a_calibrated_model_is_its_value_by_chance():
    table = slide_calibration(*slides_of(0.0), seed=0)
    assert table.error.mean() == pytest.approx(table.chance.mean(), rel=0.2)
    shifted = slide_calibration(*slides_of(2.0), seed=0)
    assert shifted.error.mean() > 2 * shifted.chance.mean()
    assert shifted.bias.abs().mean() > 0.15


def test_recalibration_helps_on_shifted_slides_and_costs_on_calibrated_ones():
    shifted = recalibration_gains(*slides_of(2.0), draws=200, seed=0)
    assert (shifted.high < 0).all(), shifted
    assert set(shifted.labelled) == {20, 50, 100}
    calibrated = recalibration_gains(*slides_of(0.0), draws=200, seed=0)
    assert (calibrated.change > 0).all(), calibrated
    # Fewer numbers are fitted by a shift, so it costs less.
    mean = calibrated.groupby(["labelled", "way"]).change.mean()
    assert mean[20, "shift"] < mean[20, "platt"]


def test_slides_without_enough_patches_do_not_count():
    labels, scores, slides = slides_of(1.0, each=60)
    assert set(recalibration_gains(labels, scores, slides, draws=50, seed=0).labelled) == {20}
    assert slide_calibration(labels[:10], scores[:10], slides[:10], seed=0).empty


def test_slides_with_one_label_are_also_shown_apart():
    labels, scores, slides = slides_of(1.0)
    labels[slides == "s00"] = 1
    table = recalibration_gains(labels, scores, slides, draws=50, seed=0).set_index(["judged", "labelled", "way"])
    assert table.slides["all", 20, "shift"] == 12
    assert table.slides["mixed", 20, "shift"] == 11
