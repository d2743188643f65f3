"""Words of models: every model has words, short ones are unique, and none is a code name."""

import pytest

from histoblend.features.handcrafted.families import FAMILIES
from histoblend.models.names import RUNGS, RUNGS_WITHOUT_HEAD, SINGLE_FAMILIES
from histoblend.reports.words import FAMILY_WORDS, RUNG_WORDS, SHORT_RUNG_WORDS, model_words, short_model_words

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
