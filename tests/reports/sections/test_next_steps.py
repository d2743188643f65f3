import pytest

from histoblend.reports.sections.next_steps import next_steps
from tests.reports.sections.steps import CLEAR_STEPS, STEPS, evidence, row, stain_groups

ENOUGH = {"oof": 20, "test": 15}
FALLING = {
    "oof": {"sensitivity": 0.9, "sensitivity_low": 0.8, "specificity": 0.9, "specificity_low": 0.8},
    "test": {"sensitivity": 0.6, "specificity": 0.9},
}


def actions(found):
    return [step.action for step in next_steps(found)]


@pytest.mark.parametrize(
    ("steps", "known", "action", "link"),
    [
        (CLEAR_STEPS, {"phantom": True}, "Run it on your own patches", "docs/data.md"),
        (CLEAR_STEPS, {"slide_map": False}, "Give the slide of each patch (data.slide_map)", "docs/data.md"),
        (CLEAR_STEPS, {"inferred": True}, "Give the slide of each patch (data.slide_map)", "docs/data.md"),
        (CLEAR_STEPS, {"stain": stain_groups(0.0002)}, "Compare the scores within each stain group", "stain"),
        (CLEAR_STEPS, {"tumour_slides": {"test": 3}}, "Collect more slides with tumour", "data"),
        (STEPS, {}, "Collect more slides with tumour", "data"),
        (CLEAR_STEPS[:4], {}, "Hold out test slides (split.test_share)", "docs/data.md"),
        (STEPS, {}, "Look at the slides with the most errors", "errors"),
        (CLEAR_STEPS, {"rates": FALLING}, "Choose a threshold on slides like yours", "decisions"),
        (STEPS, {}, "Use the simpler model: XGBoost on all handcrafted features", "ladder"),
        (CLEAR_STEPS, {"slide_context": True}, "Predict all patches of a slide together", "docs/predict.md"),
    ],
)
def test_an_action_follows_from_a_result(steps, known, action, link):
    found = {step.action: step.section or step.document for step in next_steps(evidence(steps, **known))}
    assert found[action] == link


def test_a_threshold_is_advised_once_if_both_rates_fall():
    both = FALLING | {"test": {"sensitivity": 0.6, "specificity": 0.6}}
    found = actions(evidence(CLEAR_STEPS, rates=both, tumour_slides=ENOUGH))
    assert found.count("Choose a threshold on slides like yours") == 1


def test_a_good_result_asks_for_nothing_but_a_look_at_errors_and_thresholds():
    found = next_steps(evidence(CLEAR_STEPS, tumour_slides=ENOUGH))
    assert [step.section for step in found] == ["errors", "decisions"]


def test_there_are_two_to_four_actions_the_most_important_first():
    everything = evidence(STEPS, phantom=True, inferred=True, stain=stain_groups(0.0002), slide_context=True)
    assert actions(everything) == [
        "Run it on your own patches",
        "Give the slide of each patch (data.slide_map)",
        "Compare the scores within each stain group",
        "Look at the slides with the most errors",
    ]
    assert len(actions(evidence(CLEAR_STEPS, slide_context=True))) == 2


@pytest.mark.parametrize(("below", "best", "expected"), [(20.0, 30.0, True), (30.0, 20.0, False)])
def test_a_simpler_model_is_suggested_only_if_it_is_cheaper(below, best, expected):
    costs = {"xgboost_handcrafted": below, "xgboost_embeddings": best}
    steps = [step | {"seconds_per_1000": costs.get(step["model"], 1.0)} for step in STEPS]
    assert any(action.startswith("Use the simpler model") for action in actions(evidence(steps))) is expected


def test_reasons_are_clauses():
    steps = [*CLEAR_STEPS[:4], row("xgboost_embeddings", "test", auc=0.8, slides=7)]
    reasons = [step.reason for step in next_steps(evidence(steps, tumour_slides={"test": 3}))]
    assert reasons[0] == "there are only 7 test slides, 3 with tumour"
