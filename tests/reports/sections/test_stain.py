"""The section on stain: its words for known numbers."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from histoblend.models.inspection.importance import COLUMNS
from histoblend.models.inspection.stain import StainGroups, StainView
from histoblend.reports.sections.stain import (
    family_words,
    group_words,
    restain_words,
    shift_words,
    stain_finding,
    stain_section,
)
from tests.reports.cohorts import make_predictions, make_stain

NAN = float("nan")


def curves(rows):
    """Table of curves from (model, strength, auc, change, low, high, moved, turned)."""
    names = ["model", "strength", "auc", "change", "change_low", "change_high", "moved", "turned"]
    table = pd.DataFrame(rows, columns=names)
    table.insert(1, "alteration", "shift")
    return table.assign(auc_low=table.auc - 0.1, auc_high=table.auc + 0.05, patches=112, slides=7)


CURVES = curves(
    [
        ("cnn", 0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0),
        ("xgboost_colour", 0.0, 0.8, 0.0, 0.0, 0.0, 0.0, 0.0),
        ("logistic_nuclei", 0.0, 0.8, 0.0, 0.0, 0.0, 0.0, 0.0),
        ("cnn", 0.1, 0.88, -0.02, -0.05, -0.004, 0.034, 0.021),
        ("xgboost_colour", 0.1, 0.7, -0.1, -0.2, -0.03, 0.1, 0.2),
        ("logistic_nuclei", 0.1, 0.5, -0.3, -0.4, -0.2, 0.3, 0.3),
        ("cnn", 0.2, 0.85, -0.05, -0.1, 0.01, 0.1, 0.1),
        ("xgboost_colour", 0.2, 0.6, -0.2, -0.3, -0.1, 0.2, 0.3),
        ("logistic_nuclei", 0.2, 0.4, -0.4, -0.5, -0.3, 0.3, 0.3),
    ]
)


def test_losses_are_named_worst_first_without_families_alone():
    words = shift_words(CURVES, "cnn")
    assert words == (
        "When stains are scaled and shifted by up to 0.1, the fine-tuned network changes its AUC by "
        "−0.020 (95 % CI −0.050 to −0.004). "
        "Its probabilities change by 0.03 on average, and the predicted class changes for 2 % of the patches. "
        "Models whose AUC falls, with a 95 % CI below 0: XGBoost on colour, −0.100 (95 % CI −0.200 to −0.030); the "
        "fine-tuned network, −0.020 (95 % CI −0.050 to −0.004). At 0.2, the change of XGBoost on colour is largest, "
        "−0.200 (95 % CI −0.300 to −0.100)."
    )


def test_an_interval_that_includes_zero_is_inconclusive():
    steady = CURVES.assign(change=0.0, change_low=-0.01, change_high=0.01)
    words = shift_words(steady, "cnn")
    assert "changes its AUC by 0.000 (−0.010 to +0.010), inconclusive (95 % CI includes 0)" in words
    assert "No model's AUC falls with a 95 % CI below 0." in words
    assert words.endswith("At 0.2, no model's AUC is lower.")
    # An end that is printed as 0.000 includes 0.
    words = shift_words(CURVES.assign(change=-0.086, change_low=-0.153, change_high=-0.0003), "cnn")
    assert "changes its AUC by −0.086 (−0.153 to 0.000), inconclusive (95 % CI includes 0)" in words
    assert "No model's AUC falls" in words


def test_without_intervals_no_change_is_judged():
    words = shift_words(CURVES.assign(change_low=NAN, change_high=NAN), "cnn")
    assert "has an AUC of 0.880, compared with 0.900 on unaltered patches" in words
    assert "No model's AUC falls" in words


def test_exchanged_stains_are_described_if_there_are_any():
    assert restain_words(CURVES, "cnn") == ""
    exchanged = CURVES[CURVES.strength == 0.2].assign(alteration="restain", strength=1.0)
    words = restain_words(pd.concat([CURVES, exchanged]), "cnn")
    assert words == (
        "When stains are exchanged for those of the other group of slides, the fine-tuned network changes its AUC by "
        "−0.050 (−0.100 to +0.010), inconclusive (95 % CI includes 0). Its probabilities change by 0.10 on average, "
        "and the predicted class changes for 10 % of the patches. Models whose AUC falls, with a 95 % CI below 0: "
        "XGBoost on colour, −0.200 (95 % CI −0.300 to −0.100)."
    )
    # The words on shifted stains ignore exchanged stains.
    assert shift_words(pd.concat([CURVES, exchanged]), "cnn") == shift_words(CURVES, "cnn")
    words = restain_words(exchanged, "logistic_nuclei")
    assert words.startswith(
        "When stains are exchanged for those of the other group of slides, models whose AUC falls, with a 95 % CI "
        "below 0:"
    )


def families(**aucs):
    rows = [(name, 10, auc, auc - 0.05, auc + 0.02, 480, 20) for name, auc in aucs.items()]
    return pd.DataFrame(rows, columns=["family", "columns", "auc", "low", "high", "patches", "slides"])


def shuffled(model, **drops):
    rows = [
        (model, "permutation", None, name, None, None, None, drop, 0.0, drop / 2, 2 * drop)
        for name, drop in drops.items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.mark.parametrize(("confounded", "end"), [(True, "so this suspicion is serious."), (False, "they could.")])
def test_a_leading_family_that_identifies_the_stain_is_suspicious(confounded, end):
    words = family_words(
        families(stain=0.99, colour=0.95, nuclei=0.6),
        shuffled("xgboost_handcrafted", colour=0.08, nuclei=0.02),
        confounded,
    )
    assert "separate the two groups (AUC): colour (0.95)." in words
    assert "handcrafted · XGBoost, −0.080 (95 % CI −0.160 to −0.040) when colour is shuffled" in words
    assert words.endswith(end)


def test_a_leading_family_that_does_not_identify_the_stain_is_not_suspicious():
    importances = shuffled("xgboost_handcrafted", colour=0.01, nuclei=0.09)
    words = family_words(families(stain=0.99, colour=0.95, nuclei=0.6), importances, False)
    assert words.endswith("None of them is the family with the largest permutation importance of a model.")
    words = family_words(families(stain=0.99, colour=0.7, nuclei=0.6), importances, False)
    assert "No family of features separates the two groups with an AUC of 0.8 or more" in words


def test_an_importance_whose_interval_includes_zero_is_not_leading():
    importances = shuffled("xgboost_handcrafted", colour=0.08).assign(low=-0.01)
    words = family_words(families(colour=0.95), importances, True)
    assert "uspicious" not in words


def test_scores_within_groups_are_in_the_words():
    scores = pd.DataFrame(
        {
            "model": ["cnn", "cnn"],
            "group": ["A", "B"],
            "auc": [0.9, 0.8],
            "auc_low": [0.85, NAN],
            "auc_high": [0.95, NAN],
        }
    )
    assert group_words(scores, "cnn") == (
        "The fine-tuned network has an AUC of 0.900 (0.850 to 0.950) within group A and 0.800 within group B."
    )
    assert group_words(scores.assign(model="xgboost_both"), "xgboost_both").startswith("XGBoost on")
    assert group_words(scores.assign(auc=NAN), "cnn") == ""


def test_finding_gives_the_change_on_test_slides_and_the_association_with_the_label():
    table = pd.DataFrame({"slide": list("ab"), "group": list("AB"), "prevalence": [0.2, 0.6], "patches": 9})
    view = StainView(StainGroups(table, 0.4, 0.2), shifted=CURVES)
    assert stain_finding(view, "cnn") == (
        "Stains altered by up to 0.1 change the AUC of the fine-tuned network on the test slides by −0.020 (95 % CI "
        "−0.050 to −0.004); an association of stain with the label is not shown (P = 0.200)."
    )
    doubtful = replace(view, groups=StainGroups(table, 0.6, 0.0001), shifted=None)
    assert stain_finding(doubtful, "cnn") == (
        "Stain and label are confounded (P < 0.001), so a model can score well by recognising the stain."
    )
    steady = replace(view, groups=None, shifted=CURVES.assign(change=0.0002, change_low=-0.01, change_high=0.01))
    assert stain_finding(steady, "cnn").endswith("by 0.000 (−0.010 to +0.010), inconclusive (95 % CI includes 0).")


def test_section_without_an_analysis_says_what_it_needs():
    section = stain_section(None, pd.DataFrame(), "cnn")
    assert section.content is None
    assert "at least 8 slides" in section.absent
    section = stain_section(StainView(absent="Only one slide was held out."), pd.DataFrame(), "cnn")
    assert section.absent.endswith("Only one slide was held out.")


def test_section_shows_every_model_in_tables_and_charts():
    predictions = make_predictions(2, slides=10, test_slides=4, rungs=("prevalence", "colour", "nuclei", "cnn"))
    view = make_stain(predictions)
    section = stain_section(view, pd.DataFrame(), "cnn")
    models = ["logistic_colour", "xgboost_colour", "cnn"]
    assert [row["model"] for row in section.content["groups"]["rows"]] == models
    assert {row["model"] for row in section.content["shifts"]["rows"]} == {*models, "logistic_nuclei", "xgboost_nuclei"}
    names = [[trace["name"] for trace in figure["data"]] for _, figure in section.charts["shifts"].variants]
    assert names[0] == ["colour · logistic", "colour · XGBoost", "fine-tuned network"]
    assert names[-1] == ["nuclei · logistic", "nuclei · XGBoost"]
    first = section.charts["shifts"].variants[0][1]["data"]
    part = view.shifted[view.shifted.model == "logistic_colour"]
    assert first[0]["y"][-2] is None  # no line from shifted to exchanged stains
    np.testing.assert_allclose([value for value in first[0]["y"] if value is not None], part.change, atol=1e-5)
    assert set(section.tables) == {"stain-shifts", "stain-groups", "stain-slides", "stain-families"}


def test_section_is_shown_although_parts_are_missing():
    view = make_stain(make_predictions(2, slides=10, test_slides=4, rungs=("prevalence", "colour")))
    section = stain_section(replace(view, groups=None), pd.DataFrame(), "logistic_colour")
    assert section.content["groups"] is None
    assert section.content["shifts"] is not None
    section = stain_section(replace(view, shifted=None, absent="One class."), pd.DataFrame(), "logistic_colour")
    assert section.content["absent"] == "One class."
    assert section.content["groups"] is not None


def test_confounded_slides_are_reported():
    table = pd.DataFrame(
        {"slide": list("abcdef"), "group": list("AAABBB"), "prevalence": [1, 1, 1, 0, 0, 0], "patches": 9}
    )
    view = make_stain(make_predictions(2, slides=10, test_slides=4, rungs=("prevalence", "colour")))
    section = stain_section(replace(view, groups=StainGroups(table, 1.0, 0.0001)), pd.DataFrame(), "logistic_colour")
    assert section.content["groups"]["words"].startswith("Stain and label are confounded.")
