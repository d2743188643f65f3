from types import SimpleNamespace

import pandas as pd
import pytest

from histoblend.pipelines.steps.patches import split_warnings
from histoblend.reports.sections.cautions import Caution, cautions, pretraining_warnings
from tests.reports.sections.steps import CLEAR_STEPS, STEPS, evidence, row, stain_groups

RATES = {
    "oof": {"sensitivity": 0.88, "sensitivity_low": 0.80, "specificity": 0.90, "specificity_low": 0.852},
    "test": {"sensitivity": 0.56, "specificity": 0.85},
}


@pytest.mark.parametrize(
    ("known", "headline", "expected"),
    [
        ({"tumour_slides": {"test": 3}}, "Only 7 test slides, 3 with tumour", True),
        ({}, "training slides", False),
        ({}, "The test AUC is below the out-of-fold interval", True),
        ({}, "synthetic", False),
        ({"phantom": True}, "The patches are synthetic", True),
        ({"slide_map": False}, "Every score here is optimistic: no slide is known", True),
        ({"inferred": True}, "Every score here is optimistic: slides are inferred", True),
        ({}, "optimistic:", False),
        ({"slide_aucs": (0.61, 0.99)}, "Slides differ: AUC from 0.61 to 0.99 within single slides", True),
        ({}, "The best of 4 models was chosen by this out-of-fold AUC", True),
        ({"stain": stain_groups(0.0002)}, "Stain and label are confounded", True),
        ({"stain": stain_groups(0.4)}, "Stain and label", False),
        ({"doubts_on_ensemble": ("It is an ensemble. Really.",)}, "It is an ensemble", False),
        ({"rates": RATES}, "Sensitivity is 0.88 out of fold but 0.56 on the test set", True),
        ({"rates": RATES}, "Specificity is", False),
        ({"rates": {"oof": RATES["oof"]}}, "Sensitivity is", False),
    ],
)
def test_reasons_for_caution(known, headline, expected):
    assert any(headline in caution.headline for caution in cautions(evidence(**known))) is expected


def test_reasons_without_a_test_set_and_with_an_ensemble():
    steps = [row("logistic_context"), row("ensemble", auc=0.9, below="logistic_context", gain=0.01)]
    found = cautions(evidence(steps, doubts_on_ensemble=("It is nested. So it is hard.",)))
    assert Caution("It is nested", "So it is hard.") in found
    assert "No test set was held out" in [caution.headline for caution in found]
    only = [row("logistic_context", gain=0.1)]
    assert "needs many patches of each slide" in cautions(evidence(only))[1].headline


def test_the_most_important_reason_is_first_and_every_headline_is_one_line():
    known = {"phantom": True, "stain": stain_groups(0.0002), "slide_aucs": (0.6, 0.9)}
    warnings = (
        "5 patches have no slide in the map. They are kept",
        "split.groups is 'patch': so every score below is optimistic",
    )
    found = cautions(evidence(STEPS, warnings=warnings, **known))
    serious = [caution.serious for caution in found]
    assert serious == sorted(serious, reverse=True)
    assert sum(serious) == 3
    assert found[0].headline == "Split.groups is 'patch'"
    assert found[-1] == Caution("5 patches have no slide in the map", "They are kept")
    assert all(len(caution.headline) <= 75 and "\n" not in caution.headline for caution in found)


@pytest.mark.parametrize(
    ("slide", "known"),
    [(None, {"slide_map": False}), ("(inferred 01)", {"inferred": True}), ("a", {})],
    ids=["unknown", "inferred", "few"],
)
def test_a_warning_about_the_split_is_not_repeated(slide, known):
    table = pd.DataFrame({"slide": [slide], "group": ["a"], "split": ["test"]})
    warnings = split_warnings(table, {"set_aside": 2})
    assert len(warnings) == (2 if slide is None else 2 + (slide != "a"))
    alone = cautions(evidence(STEPS, data_shown=True, **known))
    assert cautions(evidence(STEPS, data_shown=True, warnings=warnings, **known)) == alone


def test_patches_that_were_set_aside_are_a_caution_if_no_data_card_counts_them():
    warning = "2 patches were set aside; 1-patches/set_aside.csv lists each with its reason"
    assert cautions(evidence(CLEAR_STEPS, warnings=(warning,)))[-1] == Caution(
        "2 patches were set aside", "1-patches/set_aside.csv lists each with its reason"
    )


def test_networks_that_know_the_test_slides_are_named(monkeypatch):
    rows = {"seen": True, "unseen": False, "unknown": None}
    monkeypatch.setattr(
        "histoblend.reports.sections.cautions.find_backbone", lambda name: SimpleNamespace(camelyon=rows[name])
    )
    seen, unknown = (
        next(
            one for one in cautions(evidence(STEPS, warnings=pretraining_warnings(list(rows)))) if word in one.headline
        )
        for word in ("seen was", "unknown may")
    )
    assert (seen.headline, seen.serious) == ("The network seen was pretrained on CAMELYON", True)
    assert "scores on them are not a test" in seen.detail
    assert (unknown.headline, unknown.serious) == ("The network unknown may have been pretrained on CAMELYON", False)
    assert not pretraining_warnings(["unseen"])
    (file,) = pretraining_warnings(["onnx:folder/own.onnx"])
    assert file.startswith("The file own.onnx does not say whether its network was pretrained on CAMELYON.")
