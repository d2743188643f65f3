"""Words of models and numbers: unique, no code names, no signed zeros, no gain or loss whose interval includes 0."""

import pytest

from histoblend.features.handcrafted.families import FAMILIES
from histoblend.models.names import RUNGS, RUNGS_WITHOUT_HEAD, SINGLE_FAMILIES
from histoblend.reports.words import (
    FAMILY_WORDS,
    INCONCLUSIVE,
    RUNG_WORDS,
    SHORT_RUNG_WORDS,
    decimal,
    difference,
    direction,
    model_words,
    percent,
    percent_span,
    short_model_words,
    signed,
    signed_span,
    span,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "plain", "with_sign"),
    [
        (0.0, "0.000", "0.000"),
        (-0.0, "0.000", "0.000"),
        (-0.0004, "0.000", "0.000"),
        (0.0004, "0.000", "0.000"),
        (-0.0006, "−0.001", "−0.001"),
        (0.0306, "0.031", "+0.031"),
        (-12.5, "−12.500", "−12.500"),
    ],
)
def test_numbers_that_round_to_zero_have_no_sign(value, plain, with_sign):
    assert decimal(value) == plain
    assert signed(value) == with_sign


def test_intervals_and_shares():
    assert span(-0.0001, 0.153) == "0.000 to 0.153"
    assert signed_span(-0.01, 0.0002) == "−0.010 to 0.000"
    assert signed_span(-0.04, 0.012, 2) == "−0.04 to +0.01"
    assert percent(0.256) == "26 %"
    assert percent(-0.0001, 1) == "0.0 %"
    assert percent_span(0.21, 0.3054) == "21 to 31 %"


@pytest.mark.parametrize(
    ("low", "high", "side"),
    [
        (0.004, 0.022, 1),
        (0.0004, 0.026, 0),  # printed as 0.000 to +0.026
        (-0.153, -0.0003, 0),
        (-0.02, -0.001, -1),
        (-0.01, 0.01, 0),
        (0.0, 0.0, 0),
        (NAN, NAN, None),
    ],
)
def test_an_interval_is_judged_as_it_is_printed(low, high, side):
    assert direction(low, high) == side


def test_an_interval_can_be_compared_with_another_value():
    assert direction(0.8, 0.99, null=1) == -1
    assert direction(0.8, 0.9996, null=1) == 0
    assert direction(0.8, 0.9996, null=1, digits=4) == -1


def test_a_difference_whose_interval_includes_zero_is_inconclusive():
    assert difference(0.011, 0.004, 0.022) == "+0.011 (95 % CI +0.004 to +0.022)"
    assert difference(0.086, 0.0, 0.153) == f"+0.086 (0.000 to +0.153), {INCONCLUSIVE}"
    assert difference(-0.0002, -0.01, 0.01) == f"0.000 (−0.010 to +0.010), {INCONCLUSIVE}"
    assert difference(-0.02, -0.05, -0.004) == "−0.020 (95 % CI −0.050 to −0.004)"
    assert difference(-0.02, NAN, NAN) == "−0.020"


MODELS = [rung if rung in RUNGS_WITHOUT_HEAD else f"logistic_{rung}" for rung in (*RUNGS, *SINGLE_FAMILIES)]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("cnn", "fine-tuned network"),
        ("xgboost_both", "all features · XGBoost"),
        ("logistic_in-slide", "relative to slide · logistic"),
        ("logistic_both-normalised", "all normalised features + context · logistic"),
        ("logistic_lbp", "local binary patterns · logistic"),
    ],
)
def test_short_words(model, words):
    assert short_model_words(model) == words


def test_every_rung_and_family_has_words():
    assert set(RUNG_WORDS) == set(SHORT_RUNG_WORDS) == set(RUNGS)
    assert {family.name for family in FAMILIES} <= set(FAMILY_WORDS)


def test_words_of_models_are_unique_and_no_code_names():
    for words in (model_words, short_model_words):
        names = [words(model) for model in MODELS]
        assert len(set(names)) == len(names)
        assert not any("_" in name or "-slide" in name or "-context" in name or "cnn" in name for name in names)
    assert max(map(len, map(short_model_words, MODELS))) <= 45
