from dataclasses import replace

import pandas as pd
import pytest

from histoblend.models.names import PLAIN_MEMBERS, SLIDE_MEMBERS
from histoblend.reports.evaluation.ladder import ladder
from histoblend.reports.page.page import write_page
from histoblend.reports.sections.ensemble import EnsembleView, ensemble_finding, ensemble_section
from histoblend.reports.within_slides import between_words
from histoblend.reports.words import signed
from tests.reports.cohorts import make_predictions, model_names

GAIN = {"over": "logistic_context", "auc": 0.94, "auc_low": 0.92, "auc_high": 0.96, "single_auc": 0.93, "gain": 0.01}
GAIN |= {"gain_low": 0.0, "gain_high": 0.02, "verdict": "no evidence that it helps", "patches": 900, "slides": 29}


def make_view() -> EnsembleView:
    """An ensemble of two members that gains a little."""
    members = ["logistic_context", "cnn"]
    return EnsembleView(
        members=pd.DataFrame({"member": members, "weight_slide_mean": 0.5}),
        combiners=pd.DataFrame({"combiner": ["stack"]}),
        errors=pd.DataFrame(
            [(one, two, 1.0) for one in members for two in members], columns=["first", "second", "correlation"]
        ),
        choices=pd.DataFrame({"fold": [0], "combiner": ["stack"], "calibrator": ["none"]}),
        gains=pd.DataFrame([GAIN, GAIN]),
        combiner="stack",
        calibrator="none",
        without_slides=None,
        left_out=0,
    )


@pytest.mark.parametrize("known", [True, False], ids=["slides", "no slides"])
def test_gain_within_and_between_slides_is_given_if_slides_are_known(known):
    rungs = ("prevalence", "context", "cnn", "ensemble")
    predictions = make_predictions(1, slides=8, per_slide=20, rungs=rungs, heads=("logistic",), slide_map=known)
    steps = ladder(predictions, model_names(predictions), draws=50)
    content = ensemble_section(make_view(), steps).content
    row = steps[(steps.model == "ensemble") & (steps.split == "oof")].iloc[0]
    assert content["words"] == (
        "Nested out-of-fold AUC 0.940 (0.920 to 0.960) on 900 patches, compared with 0.930 for its best member, "
        "logistic regression on handcrafted features with slide context. Difference: +0.010 (0.000 to +0.020), "
        "inconclusive (95 % CI includes 0)."
    )
    words = content["by_pairs"]
    assert (f"Difference within slides: {signed(row.gain_within)} (" in words) == known
    assert (f"Difference between slides: {signed(row.gain_between)} (" in words) == known
    assert words.endswith(between_words(steps)) == known


@pytest.mark.parametrize(
    ("low", "words"),
    [
        (0.004, "+0.010 (95 % CI +0.004 to +0.020)"),
        (0.0003, "+0.010 (0.000 to +0.020), inconclusive (95 % CI includes 0)"),
    ],
)
def test_finding_gives_each_split_and_calls_no_doubtful_difference_a_gain(low, words):
    steps = pd.DataFrame(
        [
            {"model": "ensemble", "split": "oof", "below": "logistic_context"},
            {"model": "ensemble", "split": "test", "below": "logistic_context"},
        ]
    ).assign(gain=-0.0002, gain_low=-0.03, gain_high=0.02)
    finding = ensemble_finding(pd.DataFrame([GAIN | {"gain_low": low}, GAIN]), steps)
    assert finding == (
        "Compared with its best member, logistic regression on handcrafted features with slide context, the ensemble "
        f"changes the AUC out-of-fold by {words}; on the test slides by 0.000 (−0.030 to +0.020), inconclusive "
        "(95 % CI includes 0)."
    )
    other = steps.assign(below="cnn")
    assert "test slides" not in ensemble_finding(pd.DataFrame([GAIN, GAIN]), other)


def test_members_table_says_what_each_adds_to_the_same_auc(tmp_path):
    members = pd.DataFrame(
        {
            "member": ["logistic_context", "cnn"], "weight": 0.5, "weight_slide_mean": 0.5, "log_loss": 0.3,
            "auc": 0.9, "auc_low": 0.8, "auc_high": 0.95, "without": [0.948, 0.93], "value": [-0.004, 0.014],
            "value_low": [-0.01, 0.005], "value_high": [0.002, 0.02],
        }
    )  # fmt: skip
    combiners = pd.DataFrame([{"combiner": "stack", "chosen": True, "auc": 0.9, "auc_low": 0.8, "auc_high": 0.95}])
    combiners = combiners.assign(auc_behind=0.0, auc_spread=0.0, log_loss=0.3, log_loss_behind=0.0, log_loss_spread=0.0)
    predictions = make_predictions(1, slides=8, per_slide=20, rungs=("prevalence", "cnn", "ensemble"))
    section = ensemble_section(
        replace(make_view(), members=members, combiners=combiners),
        ladder(predictions, model_names(predictions), draws=20),
    )
    text = write_page(tmp_path, "Ensemble", [section]).read_text(encoding="utf-8")
    assert "With all members, the AUC is 0.944" in text
    assert "−0.004<small>−0.010 to +0.002<br>inconclusive</small>" in text
    assert "<b>+0.014</b><small>+0.005 to +0.020</small>" in text


@pytest.mark.parametrize(
    ("members", "default"),
    [(SLIDE_MEMBERS, True), (PLAIN_MEMBERS, True), (("logistic_both", "logistic_colour"), False)],
)
def test_page_says_that_default_members_were_chosen_on_some_slides(members, default):
    table = pd.DataFrame({"member": members, "weight_slide_mean": 0.5})
    text = " ".join(replace(make_view(), members=table).doubts())
    assert ("were chosen on 36 PatchCamelyon slides" in text) is default
