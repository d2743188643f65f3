"""Error rates of flagged and other patches, computed by hand."""

import numpy as np
import pandas as pd
import pytest

from histoblend.reports.evaluation.flags import FEWEST_SLIDES, flag_errors, flag_words


@pytest.fixture
def table():
    """Six slides of four patches. The first of each is blurred and wrong in five slides. One other patch is wrong."""
    slide = np.repeat([f"S{i}" for i in range(6)], 4)
    first = np.arange(24) % 4 == 0
    label = (np.arange(24) % 2).astype(int)
    wrong = first & (slide != "S5")
    wrong[6] = True
    score = np.where(wrong, 1 - label, label) * 0.8 + 0.1
    predictions = pd.DataFrame(
        {"patch_id": [f"p{i}" for i in range(24)], "slide": slide, "split": "train", "label": label, "prob_cnn": score}
    )
    flags = pd.DataFrame({"patch_id": predictions.patch_id, "pen": np.arange(24) < 2, "blurred": first, "black": False})
    return predictions, flags


def test_rates_and_difference_by_hand(table):
    predictions, flags = table
    # A dropped patch has flags but no prediction, and patches may be in any order.
    dropped = pd.DataFrame({"patch_id": ["dropped"], "pen": [True], "blurred": [True], "black": [True]})
    mixed = pd.concat([dropped, flags]).sample(frac=1, random_state=0)
    errors = flag_errors(predictions, mixed, {"cnn": 0.5}, draws=500).set_index("flag")
    assert errors.index.tolist() == ["pen", "blurred"]  # no evaluated patch is black
    row = errors.loc["blurred"]
    assert (row.patches, row.slides, row.errors) == (6, 6, 5)
    assert row.rate_flagged == pytest.approx(5 / 6)
    assert row.rate_others == pytest.approx(1 / 18)
    assert row.difference == pytest.approx(5 / 6 - 1 / 18)
    assert 0 < row.low < row.difference < row.high <= 1
    row = errors.loc["pen"]
    assert (row.patches, row.slides, row.errors) == (2, 1, 1)
    assert np.isnan(row.low)
    assert np.isnan(row.high)


def test_interval_agrees_with_resampled_slides(table):
    predictions, flags = table
    row = flag_errors(predictions, flags, {"cnn": 0.5}, draws=4000).set_index("flag").loc["blurred"]
    rng = np.random.default_rng(9)
    drawn = []
    parts = [part for _, part in predictions.assign(blurred=flags.blurred).groupby("slide")]
    for _ in range(2000):
        some = pd.concat([parts[i] for i in rng.integers(0, 6, 6)])
        wrong = (some.prob_cnn >= 0.5) != (some.label == 1)
        drawn.append(wrong[some.blurred].mean() - wrong[~some.blurred].mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (row.low, row.high) == pytest.approx((low, high), abs=0.06)


def test_models_have_their_own_threshold_and_gaps(table):
    predictions, flags = table
    predictions = predictions.assign(prob_ensemble=predictions.prob_cnn.where(predictions.slide != "S0"))
    errors = flag_errors(predictions, flags, {"cnn": 0.05, "ensemble": 0.5}, draws=50)
    # At 0.05 all patches count as positive, so half of them are wrong.
    cnn = errors[(errors.model == "cnn") & (errors.flag == "blurred")].iloc[0]
    assert cnn.rate_flagged == 1.0
    assert cnn.rate_others == pytest.approx(6 / 18)
    ensemble = errors[(errors.model == "ensemble") & (errors.flag == "blurred")].iloc[0]
    assert (ensemble.patches, ensemble.errors) == (5, 4)
    assert "pen" not in set(errors.flag[errors.model == "ensemble"])  # both pen patches are in S0


def test_words_name_clear_differences(table):
    predictions, flags = table
    (text,) = flag_words(flag_errors(predictions, flags, {"cnn": 0.5}, draws=500), "cnn")
    assert text.startswith(
        "Out-of-fold: Patches flagged “blurred” are misclassified more often than others: 83 % against"
    )
    assert f"fewer than {FEWEST_SLIDES} slides, too few to compare: pen (1 of 2 wrong)." in text
    none = flags.assign(pen=False, blurred=False)
    assert flag_words(flag_errors(predictions, none, {"cnn": 0.5}), "cnn")[0].startswith("No predicted patch")


def test_words_call_other_differences_inconclusive(table):
    predictions, flags = table
    chance = flags.assign(pen=False, blurred=np.arange(24) % 4 == 2)  # one of six wrong, against 5 of 18
    errors = flag_errors(predictions, chance, {"cnn": 0.5}, draws=500)
    assert flag_words(errors, "cnn") == ["Out-of-fold: Inconclusive (95 % CI includes 0): blurred."]
    # An interval that is printed as 0.000 to +0.400 includes 0.
    errors = errors.assign(difference=0.2, low=0.0004, high=0.4)
    assert flag_words(errors, "cnn") == ["Out-of-fold: Inconclusive (95 % CI includes 0): blurred."]


def test_patches_without_slides_are_resampled_individually(table):
    predictions, flags = table
    errors = flag_errors(predictions.assign(slide=None), flags, {"cnn": 0.5}, draws=300)
    assert errors.set_index("flag").slides["blurred"] == 0
    assert errors.set_index("flag").low["blurred"] > 0
    assert "slides" not in flag_words(errors, "cnn")[0]


def test_splits_stay_apart_and_a_row_can_have_its_own_threshold(table):
    predictions, flags = table
    predictions = predictions.assign(split=np.where(predictions.slide < "S3", "train", "test"))
    cuts = np.where(predictions.slide == "S4", 0.95, 0.5)  # nothing in slide S4 is called positive
    errors = flag_errors(predictions, flags, {"cnn": cuts}, draws=50).set_index(["flag", "split"])
    # Blurred patches are negatives; those of S0 to S3 are called positive, those of S4 and S5 are not.
    assert errors.errors["blurred", "oof"] == 3
    assert errors.errors["blurred", "test"] == 1
    assert errors.patches["blurred", "oof"] == errors.patches["blurred", "test"] == 3
    assert ("pen", "test") not in errors.index
    assert [text.partition(":")[0] for text in flag_words(errors.reset_index(), "cnn")] == [
        "Out-of-fold",
        "Test slides",
    ]
