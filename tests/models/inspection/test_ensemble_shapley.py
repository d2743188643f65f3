"""The contributions of an ensemble add up to the log-odds that the stored ensemble predicts."""

import numpy as np
import pytest
from scipy.special import expit, logit

from histoblend.models.calibration import POINTS, Calibrator
from histoblend.models.combiners import Combiner
from histoblend.models.ensemble import Ensemble
from histoblend.models.inspection.ensemble_shapley import blending, combine_shares, network_shares
from histoblend.models.inspection.shapley import NETWORK, SLIDE_MEAN, ShapleyValues

A, B = "nuclei_area_grey_whole", "colour_mean_red_whole"
MEMBERS = ("logistic_both", "logistic_in-slide", "cnn")


def stored(combiner, calibrator, slide_means):
    return Ensemble(MEMBERS, slide_means, combiner, calibrator, dict.fromkeys(POINTS, 0.5), 0.4)


@pytest.fixture
def members():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20, 2)).astype(np.float32)
    with_embedding = np.column_stack([values, np.full(20, np.nan, np.float32)])
    first = ShapleyValues([A, B, "embedding"], rng.normal(size=(20, 3)), with_embedding, 0.3)
    second = ShapleyValues([B], rng.normal(size=(20, 1)), values[:, 1:], -0.2)
    return {"logistic_both": first, "logistic_in-slide": second, "cnn": network_shares(rng.uniform(size=20), 0.7)}


@pytest.mark.parametrize(
    "calibrator",
    [
        Calibrator(),
        Calibrator("temperature", {"slope": (0.6,)}),
        Calibrator("platt", {"slope": (2.0,), "intercept": (-0.4,)}),
    ],
    ids=["none", "temperature", "platt"],
)
def test_contributions_add_up_to_the_ensembles_log_odds(members, calibrator):
    # In-slide columns are relative, so their slide mean is no input.
    ensemble = stored(Combiner("weights", (0.5, 0.1, 0.9, 0.3, 0.2), 0.25), calibrator, slide_means=True)
    probabilities = np.column_stack([expit(members[name].log_odds) for name in MEMBERS])
    means = np.random.default_rng(1).uniform(0.1, 0.9, size=(20, 3))
    blend = blending(ensemble)
    assert blend.calibrated
    assert blend.mean_weights[1] == 0
    total = combine_shares(blend, members, means, logit(means).mean(axis=0))
    np.testing.assert_allclose(total.log_odds, logit(ensemble.predict(probabilities, means)), rtol=1e-9)
    assert total.features == [A, B, "embedding", NETWORK, SLIDE_MEAN]
    # A column of two members is added up, each with its member's weight.
    both, in_slide = members["logistic_both"], members["logistic_in-slide"]
    expected = blend.weights[0] * both.shares[:, 1] + blend.weights[1] * in_slide.shares[:, 0]
    np.testing.assert_allclose(total.shares[:, 1], expected)
    np.testing.assert_array_equal(total.values[:, 1], in_slide.values[:, 0])


def test_other_calibrators_leave_the_sum_uncalibrated(members):
    combiner = Combiner("mean", (1 / 3,) * 3)
    ensemble = stored(combiner, Calibrator("isotonic", {"from": (0.0, 1.0), "to": (0.1, 0.9)}), slide_means=False)
    blend = blending(ensemble)
    assert not blend.calibrated
    total = combine_shares(blend, members, None, None)
    probabilities = np.column_stack([expit(members[name].log_odds) for name in MEMBERS])
    np.testing.assert_allclose(expit(total.log_odds), combiner.predict(probabilities))
    assert SLIDE_MEAN not in total.features


def test_ranks_cannot_be_explained():
    knots = ((0.1, 0.9),) * 3
    ensemble = stored(Combiner("rank", (1 / 3,) * 3, knots=knots, ranks=knots), Calibrator(), slide_means=False)
    assert blending(ensemble) is None
