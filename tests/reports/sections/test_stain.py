"""What the section says: words out of numbers that were put in."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from histoblend.models.inspection.importance import COLUMNS
from histoblend.models.inspection.stain import StainGroups, StainView
from histoblend.reports.sections.stain import family_words, group_words, restain_words, shift_words, stain_section
from tests.reports.cohorts import make_predictions, make_stain

NAN = float("nan")


def curves(rows):
    """(model, strength, auc, change, low, high, moved, turned) as a table of curves."""
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


def test_losses_are_named_worst_first_and_families_alone_are_not():
    said = shift_words(CURVES, "cnn")
    assert said == (
        "Where stains are scaled and shifted by up to 0.1, the fine-tuned network loses 0.020 (0.004 to 0.050) of "
        "its AUC; its probabilities move by 0.03 on average, and 2 % of the patches change the side of the threshold. "
        "More than chance is lost by XGBoost on colour, 0.100 (0.030 to 0.200); the fine-tuned network, 0.020 (0.004 "
        "to 0.050). At 0.2, XGBoost on colour loses most, 0.200 (0.100 to 0.300)."
    )


def test_no_loss_is_said_to_be_none():
    steady = CURVES.assign(change=0.0, change_low=-0.01, change_high=0.01)
    said = shift_words(steady, "cnn")
    assert "keeps its AUC (0.000, −0.010 to +0.010: no more than chance)" in said
    assert "No model is shown to lose more than chance." in said
    assert said.endswith("At 0.2, no model loses anything.")


def test_without_intervals_nothing_is_called_chance():
    said = shift_words(CURVES.assign(change_low=NAN, change_high=NAN), "cnn")
    assert "goes from an AUC of 0.900 to 0.880" in said
    assert "No model is shown to lose" in said


def test_an_exchange_of_stains_is_said_where_there_was_one():
    assert restain_words(CURVES, "cnn") == ""
    exchanged = CURVES[CURVES.strength == 0.2].assign(alteration="restain", strength=1.0)
    said = restain_words(pd.concat([CURVES, exchanged]), "cnn")
    assert said == (
        "Where stains are exchanged for those of the other group of slides, the fine-tuned network keeps its AUC "
        "(−0.050, −0.100 to +0.010: no more than chance); its probabilities move by 0.10 on average, and 10 % of the "
        "patches change the side of the threshold. More than chance is lost by XGBoost on colour, 0.200 (0.100 to "
        "0.300)."
    )
    # What was done to stains in one way is not said of the other.
    assert shift_words(pd.concat([CURVES, exchanged]), "cnn") == shift_words(CURVES, "cnn")
    said = restain_words(exchanged, "logistic_nuclei")
    assert said.startswith(
        "Where stains are exchanged for those of the other group of slides, more than chance is lost by"
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


@pytest.mark.parametrize(("confounded", "end"), [(True, "so the doubt is serious."), (False, "they could.")])
def test_a_family_that_knows_the_stain_and_leads_is_suspicious(confounded, end):
    said = family_words(
        families(stain=0.99, colour=0.95, nuclei=0.6),
        shuffled("xgboost_handcrafted", colour=0.08, nuclei=0.02),
        confounded,
    )
    assert "tell the two groups apart (AUC): colour (0.95)." in said
    assert "XGBoost on all handcrafted features loses 0.080 of AUC when colour is shuffled" in said
    assert said.endswith(end)


def test_a_family_that_leads_and_does_not_know_the_stain_is_not():
    importances = shuffled("xgboost_handcrafted", colour=0.01, nuclei=0.09)
    said = family_words(families(stain=0.99, colour=0.95, nuclei=0.6), importances, False)
    assert said.endswith("None of them is what a model loses most by when it is shuffled.")
    said = family_words(families(stain=0.99, colour=0.7, nuclei=0.6), importances, False)
    assert "no family of features tells the two groups apart with an AUC of 0.8 or more" in said


def test_an_importance_that_may_be_chance_leads_nothing():
    importances = shuffled("xgboost_handcrafted", colour=0.08).assign(low=-0.01)
    said = family_words(families(colour=0.95), importances, True)
    assert "suspicious" not in said


def test_scores_within_groups_are_said():
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
        "The fine-tuned network reaches an AUC of 0.900 (0.850 to 0.950) within group A and 0.800 within group B."
    )
    assert group_words(scores.assign(model="xgboost_both"), "xgboost_both").startswith("XGBoost on")
    assert group_words(scores.assign(auc=NAN), "cnn") == ""


def test_nothing_was_looked_at():
    section = stain_section(None, pd.DataFrame(), "cnn")
    assert section.content is None
    assert "8 slides or more" in section.absent
    section = stain_section(StainView(absent="Only one slide was held out."), pd.DataFrame(), "cnn")
    assert section.absent.endswith("Only one slide was held out.")


def test_the_section_shows_every_model_everywhere():
    predictions = make_predictions(2, slides=10, test_slides=4, rungs=("prevalence", "colour", "nuclei", "cnn"))
    view = make_stain(predictions)
    section = stain_section(view, pd.DataFrame(), "cnn")
    models = ["logistic_colour", "xgboost_colour", "cnn"]
    assert [row["model"] for row in section.content["groups"]["rows"]] == models
    assert {row["model"] for row in section.content["shifts"]["rows"]} == {*models, "logistic_nuclei", "xgboost_nuclei"}
    names = [[trace["name"] for trace in figure["data"]] for _, figure in section.charts["shifts"].variants]
    assert names[0] == ["colour · logistic", "colour · xgboost", "cnn"]
    assert names[-1] == ["nuclei · logistic", "nuclei · xgboost"]
    first = section.charts["shifts"].variants[0][1]["data"]
    part = view.shifted[view.shifted.model == "logistic_colour"]
    assert first[0]["y"][-2] is None  # no line leads from shifted stains to exchanged ones
    np.testing.assert_allclose([value for value in first[0]["y"] if value is not None], part.change, atol=1e-5)
    assert set(section.tables) == {"stain-shifts", "stain-groups", "stain-slides", "stain-families"}


def test_parts_that_are_missing_leave_the_others():
    view = make_stain(make_predictions(2, slides=10, test_slides=4, rungs=("prevalence", "colour")))
    section = stain_section(replace(view, groups=None), pd.DataFrame(), "logistic_colour")
    assert section.content["groups"] is None
    assert section.content["shifts"] is not None
    section = stain_section(replace(view, shifted=None, absent="One class."), pd.DataFrame(), "logistic_colour")
    assert section.content["absent"] == "One class."
    assert section.content["groups"] is not None


def test_confounded_slides_are_called_so():
    table = pd.DataFrame(
        {"slide": list("abcdef"), "group": list("AAABBB"), "prevalence": [1, 1, 1, 0, 0, 0], "patches": 9}
    )
    view = make_stain(make_predictions(2, slides=10, test_slides=4, rungs=("prevalence", "colour")))
    section = stain_section(replace(view, groups=StainGroups(table, 1.0, 0.0001)), pd.DataFrame(), "logistic_colour")
    assert section.content["groups"]["words"].startswith("Stain and label are confounded.")
