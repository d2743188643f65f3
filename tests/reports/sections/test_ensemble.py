from dataclasses import replace

import pandas as pd
import pytest

from histoblend.models.names import PLAIN_MEMBERS, SLIDE_MEMBERS
from histoblend.reports.evaluation.ladder import ladder
from histoblend.reports.sections.ensemble import EnsembleView, ensemble_section
from histoblend.reports.within_slides import BETWEEN_SLIDES
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
    words = ensemble_section(make_view(), steps).content["words"]
    row = steps[(steps.model == "ensemble") & (steps.split == "oof")].iloc[0]
    assert words.startswith("Nested out-of-fold AUC 0.940")
    assert (f"Within slides it gains {signed(row.gain_within)} (" in words) == known
    assert (f"between slides {signed(row.gain_between)} (" in words) == known
    assert words.endswith(BETWEEN_SLIDES) == known


@pytest.mark.parametrize(
    ("members", "default"),
    [(SLIDE_MEMBERS, True), (PLAIN_MEMBERS, True), (("logistic_both", "logistic_colour"), False)],
)
def test_page_says_that_default_members_were_chosen_on_some_slides(members, default):
    table = pd.DataFrame({"member": members, "weight_slide_mean": 0.5})
    text = " ".join(replace(make_view(), members=table).doubts())
    assert ("were chosen on 36 PatchCamelyon slides" in text) is default
