import pandas as pd
import pytest

from histoblend.models.inspection.stain import StainGroups
from histoblend.reports.evaluation.ladder import ladder
from histoblend.reports.sections.verdict import judge
from histoblend.reports.words import model_words, signed
from tests.reports.cohorts import make_predictions, model_names


def _row(model, split="oof", auc=0.8, below=None, gain=None, slides=30, **more):
    rung = model.split("_")[-1]
    low, high = (None, None) if gain is None else (gain - 0.02, gain + 0.02)
    row = {"rung": rung, "model": model, "split": split, "patches": 900, "slides": slides, "below": below}
    row |= {"auc": auc, "auc_low": auc - 0.05, "auc_high": auc + 0.05, "gain": gain, "gain_low": low, "gain_high": high}
    return row | more


STEPS = [
    _row("prevalence", auc=0.45),
    _row("xgboost_colour", auc=0.80, below="prevalence", gain=0.35),
    _row("xgboost_handcrafted", auc=0.85, below="xgboost_colour", gain=0.05),
    _row("xgboost_embeddings", auc=0.86, below="xgboost_handcrafted", gain=0.01),
    _row("xgboost_both", auc=0.83, below="xgboost_embeddings", gain=-0.03),
    _row("xgboost_embeddings", "test", auc=0.75, below="xgboost_handcrafted", gain=0.0, slides=7),
]


def test_words_for_models_and_differences():
    assert model_words("logistic_both") == "logistic regression on handcrafted features and embeddings together"
    assert model_words("prevalence") == "prevalence"
    assert [signed(value) for value in (0.0123, -0.5, -0.0001)] == ["+0.012", "−0.500", "0.000"]


def test_verdict_sorts_steps_by_their_intervals():
    verdict = judge(pd.DataFrame(STEPS), slide_map=True)
    assert verdict.best == "xgboost_embeddings"
    assert "0.860 (95 % CI 0.810 to 0.910) on 30 slides" in verdict.reached
    assert (
        "On the 7 test slides, which were not used for any choice, its AUC is 0.750 (0.700 to 0.800)" in verdict.reached
    )
    improved, inconclusive, lowered = verdict.helped
    assert improved.startswith("Improved the AUC (95 % CI of the gain above 0)")
    assert "all handcrafted features over colour (XGBoost +0.050, +0.030 to +0.070)" in improved
    assert "prevalence" not in improved
    assert inconclusive.startswith("Inconclusive (95 % CI includes 0)")
    assert "embeddings over all handcrafted features (XGBoost +0.010, −0.010 to +0.030)" in inconclusive
    assert lowered.startswith("Lowered the AUC")


@pytest.mark.parametrize(
    ("arguments", "words", "expected"),
    [
        ({"slide_map": True}, "test set has only 7 slides", True),
        ({"slide_map": True}, "Out-of-fold predictions cover only", False),
        ({"slide_map": True}, "test AUC is below the out-of-fold interval: the test slides are harder", True),
        ({"slide_map": True}, "phantom", False),
        ({"slide_map": True, "phantom": True}, "say nothing about medicine", True),
        ({"slide_map": False}, "Every score here is optimistic", True),
        ({"slide_map": True}, "score here is optimistic", False),
        ({"slide_map": True, "slide_aucs": (0.61, 0.99)}, "from 0.61 to 0.99", True),
        ({"slide_map": True}, "best of 4 models", True),
    ],
)
def test_verdict_names_reasons_for_caution(arguments, words, expected):
    verdict = judge(pd.DataFrame(STEPS), **arguments)
    assert any(words in reason for reason in verdict.distrust) is expected


def test_verdict_needs_a_model():
    with pytest.raises(ValueError, match="at least one model besides 'prevalence'"):
        judge(pd.DataFrame(STEPS[:1]), slide_map=True)


def test_verdict_without_a_test_set_or_second_rung():
    predictions = make_predictions(0, test_slides=0, rungs=("prevalence", "colour"))
    verdict = judge(ladder(predictions, model_names(predictions), draws=50), slide_map=True)
    assert "No test set was held out." in verdict.reached
    assert verdict.helped == ("Each head has only one rung, so there are no steps to compare.",)


def test_verdict_gives_the_auc_within_slides_where_slides_are_known():
    within = {"auc_within": 0.9, "auc_within_low": 0.85, "auc_within_high": 0.95}
    alone = {"auc_within": 0.7, "auc_within_low": None, "auc_within_high": None}
    steps = [*STEPS[:3], STEPS[3] | within, STEPS[5] | alone]
    reached = judge(pd.DataFrame(steps), slide_map=True).reached
    assert reached.endswith("its AUC is 0.900 (0.850 to 0.950) out of fold and 0.700 on the test slides.")
    missing = [step | dict.fromkeys(within) for step in STEPS]
    assert "Within slides" not in judge(pd.DataFrame(missing), slide_map=False).reached


@pytest.mark.parametrize(("p", "expected"), [(0.0002, True), (0.4, False)])
def test_verdict_warns_if_stain_is_associated_with_the_label(p, expected):
    slides = pd.DataFrame(
        {"slide": list("abcdefgh"), "group": list("AAAABBBB"), "prevalence": [0.9] * 4 + [0.1] * 4, "patches": 5}
    )
    verdict = judge(pd.DataFrame(STEPS), slide_map=True, stain=StainGroups(slides, 0.8, p))
    assert any("90 % and 10 % positives per slide (P < 0.001)" in reason for reason in verdict.distrust) is expected
