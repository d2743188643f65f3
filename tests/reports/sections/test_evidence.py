import numpy as np
import pandas as pd
import pytest

from histoblend.data.splits import UNMAPPED
from histoblend.reports.sections.evidence import count_tumour_slides
from tests.reports.sections.steps import CLEAR_STEPS, STEPS, evidence, row


def test_the_best_model_has_the_highest_out_of_fold_auc():
    found = evidence()
    assert (found.best["model"], found.below["model"], found.test["auc"]) == (
        "xgboost_embeddings",
        "xgboost_handcrafted",
        0.75,
    )
    assert len(found.steps) == 4  # without prevalence


def test_evidence_needs_a_model():
    with pytest.raises(ValueError, match="at least one model besides 'prevalence'"):
        evidence(STEPS[:1])


@pytest.mark.parametrize(
    ("gain", "word"), [(0.021, "clear"), (0.02, "borderline"), (0.001, "borderline"), (0.0, "none"), (-0.1, "none")]
)
def test_one_word_says_what_the_interval_of_the_gain_shows(gain, word):
    steps = [STEPS[0], STEPS[1], row("xgboost_handcrafted", auc=0.9, below="xgboost_colour", gain=gain)]
    assert evidence(steps).gain == word


def test_a_gain_over_prevalence_is_no_gain():
    assert evidence(STEPS[:2]).gain == ""


@pytest.mark.parametrize(("auc", "side"), [(0.75, "below"), (0.81, ""), (0.91, ""), (0.92, "above")])
def test_side_of_the_test_auc(auc, side):
    assert evidence([*STEPS[:5], row("xgboost_embeddings", "test", auc=auc)]).test_side == side


@pytest.mark.parametrize(
    ("slides", "tumour", "words"),
    [
        (7, 3, "there are only 7 test slides, 3 with tumour"),
        (7, None, "there are only 7 test slides"),
        (20, 4, "only 4 of 20 test slides contain tumour"),
        (10, 5, None),
        (20, None, None),
    ],
)
def test_few_slides_and_few_slides_with_tumour(slides, tumour, words):
    steps = [*CLEAR_STEPS[:4], row("xgboost_embeddings", "test", slides=slides)]
    counted = {} if tumour is None else {"oof": 20, "test": tumour}
    assert evidence(steps, tumour_slides=counted).few() == ([] if words is None else [("test", words)])
    assert evidence(steps, tumour_slides=counted, slide_map=False).few() == []


def test_slides_with_tumour_are_counted_by_split_among_scored_patches():
    predictions = pd.DataFrame(
        [
            ("a", "train", 1, 0.5),
            ("a", "train", 0, 0.5),
            ("b", "train", 0, 0.5),
            ("c", "train", 1, np.nan),  # the network has no prediction for it
            ("d", "test", 1, 0.5),
            ("d", "test", 1, 0.5),
            ("e", "test", 0, 0.5),
            (UNMAPPED, "test", 1, 0.5),  # not one slide
        ],
        columns=["slide", "split", "label", "prob_cnn"],
    )
    assert count_tumour_slides(predictions, "cnn") == {"oof": 1, "test": 1}
    inferred = predictions.assign(slide="(inferred " + predictions.slide + ")")
    assert count_tumour_slides(inferred, "cnn") == {"oof": 1, "test": 2}
    assert count_tumour_slides(predictions.assign(slide=None), "cnn") == {}
