"""The board and the findings: numbers and words match the evidence."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from histoblend.models.inspection.ensemble_shapley import Blending
from histoblend.models.inspection.importance import GROUPS, fitted_importance
from histoblend.reports.sections.importance_board import about, board
from histoblend.reports.sections.importance_findings import centre_findings, finding, order_notes, plain_findings
from tests.reports.cohorts import make_importances, make_patches, make_predictions, make_view

NAMES = [f"nuclei_{name}_grey_centre" for name in ("count", "fraction", "contrast", "threshold")]


@pytest.fixture(scope="module")
def view():
    predictions = make_predictions(0, slides=10, test_slides=3, per_slide=20)
    importances = make_importances(predictions)
    return make_view(predictions, importances, make_patches(predictions))


def test_the_board_lists_families_clusters_and_columns_by_separation(view):
    content = board(view, view.best)
    rows = view.evidence[view.evidence.model == view.best].set_index(["kind", "unit"])
    for name, count, value, low, high in content["families"]:
        row = rows.loc["family", name]
        assert count == row["columns"]
        assert [value, low, high] == pytest.approx(row[["separation", "low", "high"]].tolist(), rel=1e-3)
    assert content["total"] == pytest.approx(sum(row[2] for row in content["families"]), rel=1e-2)
    ((leader, count, *_, members),) = content["clusters"]
    assert (leader, count) == (members[0], 2)
    values = [row[1] for row in content["columns"]]
    assert values == sorted(values, reverse=True)
    assert len(values) == 6
    for name, _, low, high, direction, first, last, ranked, trust, reasons in content["columns"]:
        assert ranked == 6
        assert 1 <= first <= last <= 6
        assert direction in (-1, 0, 1)
        assert (trust == "high") == (reasons == [])
        assert ("95 % interval includes\xa00" in reasons) == (round(low, 3) <= 0 <= high)
        assert ("shares credit with 1 correlated column" in reasons) == (name in members)


def test_the_ensemble_says_how_it_is_explained():
    blend = Blending(["logistic_both", "cnn"], [0.25, 0.5], [0.0, 0.125], 0.1, True)
    text = about("ensemble", blend)
    weights = "all features · logistic × 0.25; fine-tuned network × 0.50."
    assert weights in text
    assert "through its members: each contribution is the member’s weight times the member’s contribution" in text
    assert "mean log-odds over the patch’s slide: fine-tuned network × 0.12. Calibration is included." in text
    assert "Shapley values of the trees" in about("xgboost_both", None)
    assert "coefficient" in about("logistic_both", blend)


def test_the_finding_names_families_and_the_largest_column(view):
    rows = [("family", "nuclei", 3.0), ("family", "colour", 0.9), ("family", "stain", 0.1), ("column", NAMES[0], 0.4)]
    evidence = pd.DataFrame(rows, columns=["kind", "unit", "separation"]).assign(model="cnn", low=0.1, high=1.0)
    changed = replace(view, evidence=evidence, best="cnn")
    assert finding(changed, True) == (
        "What separates tumour from other patches in the fine-tuned network is mainly nuclei (75 %) and colour (22 %); "
        "no single column adds more than 10.0 %, and the order of single columns is mostly chance."
    )
    assert finding(replace(changed, evidence=evidence.assign(separation=0.0)), False) == ""


def test_plain_findings_count_what_passes(view):
    text = plain_findings(view)[0]
    assert text.startswith("Of 6 single columns in XGBoost on all handcrafted features, ")


def measured(permutation, shap):
    table = fitted_importance(np.array(shap), NAMES, measure="shap", model="xgboost_handcrafted")
    return pd.concat([table, table.assign(measure="permutation", value=permutation)], ignore_index=True)


def test_an_order_that_is_mostly_chance_is_said_so():
    # Ranks 1 2 3 4 and 3 1 4 2: the rank correlation is 0.
    notes = order_notes(measured([1.0, 2.0, 3.0, 4.0], [3.0, 1.0, 4.0, 2.0]))
    assert notes["xgboost_handcrafted"] == (
        "The order of single columns is mostly chance: the rank correlation between the drop in AUC and SHAP is 0.00. "
        "Read families and clusters first."
    )
    assert "0.00 for XGBoost on all handcrafted features" in notes[""]
    agreeing = order_notes(measured([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 3.0]))
    text = "Of single columns, the rank correlation between the drop in AUC and SHAP is 0.80."
    assert agreeing == {"xgboost_handcrafted": text}


def test_the_worth_of_the_centre_is_stated_with_its_uncertainty():
    rows = [
        ("logistic_handcrafted", "permutation", "region", "centre", 220, 0.013, 0.001, 0.002, 0.03),
        ("logistic_handcrafted", "dropped", "region", "centre", 220, -0.0002, 0.001, -0.01, 0.02),
    ]
    (text,) = centre_findings(pd.DataFrame(rows, columns=GROUPS))
    assert text == (
        "The centre 32 × 32 decides the label, but in logistic regression on all handcrafted features, shuffling its "
        "220 columns changes the AUC by −0.013 (95 % CI −0.030 to −0.002), and refitting without them by 0.000 (95 % "
        "CI −0.020 to +0.010, inconclusive). Columns of the whole patch include the centre and can replace its columns."
    )
    assert centre_findings(pd.DataFrame(rows[:1], columns=GROUPS)) == []
