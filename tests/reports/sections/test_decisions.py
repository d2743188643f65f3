"""The Calibration section: numbers, words, and the slider compared with Python."""

import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from histoblend.models.calibration import POINTS, shift_prevalence
from histoblend.reports.evaluation.decisions import decide
from histoblend.reports.evaluation.ladder import ladder
from histoblend.reports.evaluation.net_benefit import useful_range
from histoblend.reports.page.page import write_page
from histoblend.reports.sections.decisions import consequences, decisions_section
from tests.reports.cohorts import make_predictions, model_names

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def predictions():
    return make_predictions(2, slides=12, test_slides=4, per_slide=20, rungs=("prevalence", "colour", "both", "cnn"))


@pytest.fixture(scope="module")
def view(predictions):
    return decide(predictions, ladder(predictions, model_names(predictions), draws=50), draws=200)


@pytest.fixture(scope="module")
def page(view, tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("decisions"), "Decisions", [decisions_section(view)])


def test_a_run_without_an_ensemble_has_the_section(view, predictions):
    steps = ladder(predictions, model_names(predictions), draws=50)
    oof = steps[steps.split == "oof"].set_index("model").auc
    assert view.model == oof.idxmax()
    section = decisions_section(view)
    assert section.charts["reliability"].variants[0][0] == {
        "logistic_both": "all features · logistic", "xgboost_both": "all features · XGBoost",
        "cnn": "fine-tuned network",
    }[view.model]  # fmt: skip
    assert len(section.charts["reliability"].variants) == len(oof)
    assert set(section.tables) == {"reliability", "calibration", "decision-curve", "operating-points"}
    assert set(view.operating.point) == set(POINTS)
    assert view.prevalence == predictions.label[predictions.split == "train"].mean()


def test_the_ensembles_own_thresholds_are_used(predictions):
    made = predictions.assign(prob_ensemble=predictions.prob_cnn)
    steps = ladder(made, model_names(made), draws=50)
    cuts = pd.DataFrame(dict.fromkeys(POINTS, 0.25), index=made.index)
    calibrators = pd.DataFrame(
        {
            "calibrator": ["none"], "log_loss": 0.4, "brier": 0.1,
            "gain": 0.0, "gain_low": 0.0, "gain_high": 0.0, "chosen": True,
        }
    )  # fmt: skip
    view = decide(made, steps, chosen=(cuts, dict.fromkeys(POINTS, 0.25)), calibrators=calibrators, draws=50)
    assert view.model == "ensemble"
    train = made[made.split == "train"]
    called = train.prob_ensemble >= 0.25
    row = view.operating[(view.operating.split == "oof") & (view.operating.point == "youden")].iloc[0]
    assert row.sensitivity == pytest.approx(called[train.label == 1].mean())
    assert "ensemble-calibrators" in decisions_section(view).tables


def test_without_a_view_the_section_says_so():
    assert decisions_section(None).content is None


def test_consequences_by_hand():
    # Sensitivity 90 %, specificity 80 %, prevalence 10 %: 90 TP, 180 FP and 10 FN in 1,000 patches.
    results = consequences({"threshold": 0.5, "sensitivity": 0.9, "specificity": 0.8}, 0.5, 0.1)
    assert results["alarms"] == pytest.approx(270)
    assert results["false_alarms"] == pytest.approx(180)
    assert results["missed"] == pytest.approx(10)
    assert results["at_precision"] == pytest.approx(1 / 3)
    assert results["at_negative_value"] == pytest.approx(720 / 730)
    assert results["shifted"] == pytest.approx(0.1)  # even odds times 1/9


def test_consequences_at_the_samples_own_prevalence_are_the_measured_ones(view):
    oof = view.operating[view.operating.split == "oof"]
    for row in oof.to_dict("records"):
        results = consequences(row, view.prevalence, view.prevalence)
        assert results["at_precision"] == pytest.approx(row["precision"])
        assert results["at_negative_value"] == pytest.approx(row["negative_value"])
        assert results["shifted"] == pytest.approx(row["threshold"])


def test_a_point_that_calls_nothing_positive_has_no_ppv():
    results = consequences({"threshold": 1.0, "sensitivity": 0.0, "specificity": 1.0}, 0.5, 0.2)
    assert np.isnan(results["at_precision"])
    assert results["at_negative_value"] == pytest.approx(0.8)


def test_the_page_holds_the_table_without_script(page, view):
    text = page.read_text(encoding="utf-8")
    table = text[text.index('id="prevalence-table"') :]
    first = view.operating.iloc[0]
    expected = consequences(first, view.prevalence, view.prevalence)
    value = re.search(r'data-name="missed" data-value="([^"]+)"', table)
    assert float(value.group(1)) == pytest.approx(expected["missed"])
    assert '<div class="prevalence" hidden>' in text
    assert "label shift" in text


def test_words_name_the_useful_thresholds(view):
    ranges = useful_range(view.curve, view.model)
    words = decisions_section(view).content["useful"]
    assert ranges
    assert f"{ranges[0][0]:.2f}" in words
    useless = decisions_section(type(view)(**{**vars(view), "curve": view.curve.assign(gain_low=-0.1)})).content[
        "useful"
    ]
    assert useless.startswith("At no threshold")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium")
def test_the_slider_computes_what_python_does(page, view):
    from playwright.sync_api import sync_playwright

    problems = []
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, env=dict(os.environ))
        window = browser.new_page(viewport={"width": 375, "height": 700})
        window.on("console", lambda message: problems.append(message.text))
        window.on("pageerror", lambda error: problems.append(str(error)))
        window.goto(page.as_uri())
        _check(window, view, view.prevalence)
        window.get_by_label("Share of positives, per cent").nth(1).fill("2.5")
        _check(window, view, 0.025)
        assert window.locator("#prevalence-range").input_value() == "2.5"
        window.locator("#prevalence-range").focus()
        window.keyboard.press("ArrowRight")
        _check(window, view, 0.026)
        window.keyboard.press("End")
        _check(window, view, 0.999)
        window.locator("#prevalence-number").fill("")  # incomplete: nothing changes
        _check(window, view, 0.999)
        window.get_by_role("button", name="as in training").click()
        _check(window, view, view.prevalence)
        assert window.evaluate("document.documentElement.scrollWidth") == 375
        browser.close()
    assert problems == []


def _check(window, view, share):
    """Compare the table on the page with Bayes' rule and the corrected probabilities in Python."""
    names = ("shifted", "at_precision", "at_negative_value", "alarms", "false_alarms", "missed")
    rows = window.locator("#prevalence-table tbody tr").evaluate_all(
        "rows => rows.map(row => Object.fromEntries([...row.querySelectorAll('td[data-name]')]"
        ".map(cell => [cell.dataset.name, cell.dataset.value])))"
    )
    assert len(rows) == len(view.operating)
    for cells, point in zip(rows, view.operating.to_dict("records"), strict=True):
        positives, negatives = 1000 * share, 1000 * (1 - share)
        tp, fp = point["sensitivity"] * positives, (1 - point["specificity"]) * negatives
        tn, fn = point["specificity"] * negatives, (1 - point["sensitivity"]) * positives
        expected = [
            float(shift_prevalence(np.array([point["threshold"]]), view.prevalence, share)[0]),
            tp / (tp + fp) if tp + fp else np.nan,
            tn / (tn + fn) if tn + fn else np.nan,
            tp + fp,
            fp,
            fn,
        ]
        values = [float(cells[name]) if cells[name] else np.nan for name in names]
        np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-9)
    assert f"{100 * share:.1f} %" == window.locator("#prevalence-words").text_content()


def test_the_sections_data_is_json(view):
    json.dumps(decisions_section(view).data, allow_nan=False)
