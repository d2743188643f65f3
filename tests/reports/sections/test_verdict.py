from dataclasses import replace

import pandas as pd
import pytest

from histoblend.models.names import RUNGS
from histoblend.reports.evaluation.ladder import ladder
from histoblend.reports.sections.cautions import Caution
from histoblend.reports.sections.verdict import RUNG_LABELS, best_of_each_rung, compact_forest, judge, verdict_section
from histoblend.reports.words import RUNG_WORDS, model_words, signed
from tests.reports.cohorts import make_inputs, make_predictions, model_names
from tests.reports.sections.steps import CLEAR_STEPS, STEPS, evidence, row, stain_groups
from tests.reports.written_report import write_report

ENOUGH = {"oof": 20, "test": 15}
LADDER = pd.DataFrame(STEPS)


def test_words_for_models_and_differences():
    assert model_words("logistic_both") == "logistic regression on handcrafted features and embeddings together"
    assert model_words("prevalence") == "prevalence"
    assert [signed(value) for value in (0.0123, -0.5, -0.0001)] == ["+0.012", "−0.500", "0.000"]


def test_every_rung_has_a_label():
    assert set(RUNG_LABELS) == set(RUNGS) - {"prevalence"} == set(RUNG_WORDS) - {"prevalence"}


@pytest.mark.parametrize(
    ("steps", "known", "finding", "trust"),
    [
        (
            CLEAR_STEPS,
            {"tumour_slides": ENOUGH},
            "XGBoost on embeddings is the best model; its gain is clear, and its scores hold for slides like these.",
            "On slides like these",
        ),
        (
            STEPS,
            {},
            "XGBoost on embeddings is the best model; its gain is borderline, and its scores need caution.",
            "With caution",
        ),
        (
            [row("xgboost_colour"), row("ensemble", auc=0.9, below="xgboost_colour", gain=-0.01)],
            {"phantom": True},
            "The ensemble is the best model; it shows no gain, and its scores cannot be trusted yet.",
            "Not yet",
        ),
        (STEPS[:2], {}, "XGBoost on colour is the best model, but its scores need caution.", "With caution"),
        (
            CLEAR_STEPS,
            {"stain": stain_groups(0.0002)},
            "XGBoost on embeddings is the best model; its gain is clear, but its scores cannot be trusted yet.",
            "Not yet",
        ),
    ],
    ids=["clear", "borderline", "none", "single rung", "confounded"],
)
def test_the_finding_answers_in_one_sentence(steps, known, finding, trust):
    verdict = judge(evidence(steps, **known))
    assert (verdict.finding, verdict.trust) == (finding, trust)
    assert verdict.trusted == (trust == "On slides like these")


def test_scores_count_slides_and_slides_with_tumour():
    within = {"auc_within": 0.9, "auc_within_low": 0.85, "auc_within_high": 0.95}
    alone = {"auc_within": 0.7, "auc_within_low": None, "auc_within_high": None}
    steps = [*STEPS[:3], STEPS[3] | within, STEPS[5] | alone]
    oof, test = judge(evidence(steps, tumour_slides={"oof": 12, "test": 3})).scores
    assert oof["auc"] == {"value": "0.860", "interval": "0.810 to 0.910"}
    assert oof["within"] == {"value": "0.900", "interval": "0.850 to 0.950"}
    assert test["within"] == {"value": "0.700", "interval": ""}
    assert (test["name"], test["note"], test["slides"], test["tumour"]) == ("Test slides", "not used in this run", 7, 3)
    unknown = judge(evidence(slide_map=False)).scores
    assert [(score["within"], score["slides"], score["tumour"]) for score in unknown] == [(None, None, None)] * 2
    assert unknown[1]["name"] == "Test patches"


def test_the_gain_has_a_word_an_interval_and_a_rival():
    gain = judge(evidence()).gain
    assert gain["title"] == "Gain over the next simpler model"
    assert gain["word"] == "Borderline"
    assert gain["interval"] == "+0.010 (95 % CI −0.010 to +0.030), inconclusive"
    assert gain["over"] == "all handcrafted (XGBoost)"
    assert gain["test"] == "0.000 (95 % CI −0.020 to +0.020), inconclusive"
    assert judge(evidence(CLEAR_STEPS)).gain["interval"] == "+0.050 (95 % CI +0.030 to +0.070)"
    ensemble = [row("xgboost_colour"), row("ensemble", auc=0.9, below="xgboost_colour", gain=0.1)]
    assert judge(evidence(ensemble)).gain["title"] == "Gain over the best single model"
    assert judge(evidence(STEPS[:2])).gain is None


def test_cost_is_given_beside_that_of_the_simpler_model():
    costs = {"xgboost_handcrafted": (3.21, 700.0), "xgboost_embeddings": (1234.5, 5678.0)}
    steps = [
        step | dict(zip(("seconds_per_1000", "peak_mb"), costs.get(step["model"], (0.0, 0.0)), strict=True))
        for step in STEPS
    ]
    assert judge(evidence(steps)).cost == {"seconds": "1,234", "memory": "5,678 MB", "simpler": "3.2"}
    assert judge(evidence()).cost is None


@pytest.mark.parametrize(("reasons", "shown"), [(0, 0), (5, 5), (6, 6), (7, 5)])
def test_a_single_reason_is_never_hidden(reasons, shown):
    verdict = replace(judge(evidence()), cautions=[Caution("x")] * reasons)
    section = verdict_section(verdict, LADDER, "")
    assert section.content["shown"] == shown


def test_steps_are_sorted_by_their_intervals():
    improved, inconclusive, lowered = judge(evidence()).steps
    assert improved.startswith("Improved the AUC (95 % CI of the gain above 0)")
    assert "all handcrafted features over colour (XGBoost +0.050, +0.030 to +0.070)" in improved
    assert "prevalence" not in improved
    assert inconclusive.startswith("Inconclusive (95 % CI includes 0)")
    assert "embeddings over all handcrafted features (XGBoost +0.010, −0.010 to +0.030)" in inconclusive
    assert lowered.startswith("Lowered the AUC")
    assert judge(evidence(STEPS[:2])).steps == ("Each head has only one rung, so there are no steps to compare.",)


def test_the_forest_has_the_best_model_of_each_rung_the_best_first():
    predictions = make_predictions(0, slides=10, per_slide=20, rungs=("prevalence", "colour", "both", "ensemble"))
    steps = ladder(predictions, model_names(predictions), draws=50)
    best = best_of_each_rung(steps)
    oof = best[best.split == "oof"]
    assert oof.auc.is_monotonic_decreasing
    expected = steps[(steps.split == "oof") & (steps.rung != "prevalence")].groupby("rung").auc.max()
    assert dict(zip(oof.rung, oof.auc, strict=True)) == expected.to_dict()
    figure = compact_forest(best)
    assert figure["layout"]["yaxis"]["ticktext"] == [RUNG_LABELS[rung] for rung in oof.rung]
    assert [len(trace["x"]) for trace in figure["data"]] == [3, 3]
    assert figure["layout"]["shapes"][0]["x0"] == pytest.approx(oof.auc.max(), abs=1e-5)


def test_the_first_screen_never_claims_that_no_choice_touched_the_test_slides(tmp_path):
    inputs = make_inputs(3, slides=12, test_slides=4, per_slide=20, rungs=("prevalence", "colour", "both"))
    text = write_report(tmp_path, inputs).read_text(encoding="utf-8")
    screen = text[text.index('<section id="verdict"') : text.index('<section id="ladder"')]
    assert "not used in this run" in screen
    assert "for any choice, its AUC" not in screen
    test = inputs.predictions[inputs.predictions.split == "test"]
    tumour = test.groupby("slide").label.max().sum()
    patches = f"{len(test):,} patches</small></td>"
    assert f'<td class="n">4<small>{patches}<td class="n">{tumour}</td>' in screen
    assert "−0.000" not in screen
