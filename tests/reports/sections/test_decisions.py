"""The Calibration section: numbers, words, and the slider compared with Python."""

import json
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from histoblend.models.calibration import POINTS, shift_prevalence
from histoblend.reports.evaluation.decisions import decide
from histoblend.reports.evaluation.ladder import ladder
from histoblend.reports.evaluation.net_benefit import useful_range
from histoblend.reports.page.page import write_page
from histoblend.reports.sections.decisions import consequences, decisions_finding, decisions_section
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
    name = {
        "logistic_both": "all features · logistic", "xgboost_both": "all features · XGBoost",
        "cnn": "fine-tuned network",
    }[view.model]  # fmt: skip
    assert section.charts["reliability"].variants[0][0] == f"{name}, out-of-fold and test slides"
    assert len(section.charts["reliability"].variants) == len(oof)
    for chart in ("precision-recall", "scores"):
        titles = [words for words, _ in section.charts[chart].variants]
        assert titles == [f"{name}, out-of-fold", f"{name}, test slides"]
    assert set(section.tables) == {
        "reliability", "calibration", "recalibration", "precision-recall", "score-histogram", "decision-curve",
        "operating-points",
    }  # fmt: skip
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
    row = {"threshold": 0.5, "sensitivity": 0.9, "specificity": 0.8}
    # If half were positive, PPV would be 0.9 / 1.1 and NPV 0.8 / 0.9.
    row |= {"even_precision_low": 0.9 / 1.1, "even_precision_high": 1.0, "even_negative_value_low": 0.8 / 0.9}
    results = consequences(row, 0.5, 0.1)
    assert results["true_positives"] == pytest.approx(90)
    assert results["true_negatives"] == pytest.approx(720)
    assert results["called_positive"] == pytest.approx(270)
    assert results["false_positives"] == pytest.approx(180)
    assert results["false_negatives"] == pytest.approx(10)
    assert [results["ppv"], results["ppv_low"]] == pytest.approx([1 / 3, 1 / 3])
    assert results["ppv_high"] == 1
    assert [results["npv"], results["npv_low"]] == pytest.approx([720 / 730, 720 / 730])
    assert np.isnan(results["npv_high"])
    assert results["shifted"] == pytest.approx(0.1)  # even odds times 1/9


def test_consequences_at_the_samples_own_prevalence_are_the_measured_ones(view):
    oof = view.operating[view.operating.split == "oof"]
    for row in oof.to_dict("records"):
        results = consequences(row, view.prevalence, view.prevalence)
        assert results["ppv"] == pytest.approx(row["precision"])
        assert results["npv"] == pytest.approx(row["negative_value"])
        assert results["ppv_low"] <= results["ppv"] <= results["ppv_high"]
        assert results["shifted"] == pytest.approx(row["threshold"])


def test_a_point_that_calls_nothing_positive_has_no_ppv():
    results = consequences({"threshold": 1.0, "sensitivity": 0.0, "specificity": 1.0}, 0.5, 0.2)
    assert np.isnan(results["ppv"])
    assert results["npv"] == pytest.approx(0.8)


def test_the_page_holds_the_table_without_script(page, view):
    text = page.read_text(encoding="utf-8")
    table = text[text.index('id="prevalence-table"') :]
    first = view.operating.iloc[0]
    expected = consequences(first, view.prevalence, view.prevalence)
    value = re.search(r'data-name="false_negatives" data-digits="1" data-value="([^"]+)"', table)
    assert float(value.group(1)) == pytest.approx(expected["false_negatives"])
    assert '<div class="prevalence" hidden>' in text
    assert "label shift" in text
    main = re.sub("<script.*?</script>", "", text[text.index("<main>") : text.index("</main>")], flags=re.DOTALL)
    assert not re.search(r"[−-]0\.0+[^0-9]", main)  # a number that rounds to zero has no sign


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
        window.locator("#point").select_option(label="sensitivity 95 %")
        _check(window, view, view.prevalence, "sensitivity-0.95")
        window.locator("#prevalence-number").fill("10")
        _check(window, view, 0.1, "sensitivity-0.95")
        # A chart in closed details is fitted to the window when they open.
        window.get_by_text("Net benefit by threshold probability").click()
        window.wait_for_function(
            "document.querySelector('figure[data-figure=decision-curve] .main-svg').clientWidth > 300"
        )
        assert window.evaluate("document.documentElement.scrollWidth") == 375
        browser.close()
    assert problems == []


def _check(window, view, share, point="youden"):
    """Compare the tables on the page with Bayes' rule and the corrected probabilities in Python."""
    read = (
        "tables => tables.map(table => Object.fromEntries([...table.querySelectorAll('[data-name]')]"
        ".map(cell => [cell.dataset.name, cell.dataset.value])))"
    )
    rows = window.locator("#prevalence-table tbody tr").evaluate_all(read)
    matrices = window.locator(".matrix").evaluate_all(read)
    expected = [_expected(row, view.prevalence, share) for row in view.operating.to_dict("records")]
    chosen = [
        _expected(row, view.prevalence, share)
        for row in view.operating[view.operating.point == point].to_dict("records")
    ]
    assert len(chosen) == 2
    for tables, numbers in ((rows, expected), (matrices, chosen)):
        for cells, values in zip(tables, numbers, strict=True):
            names = list(cells)
            shown = [float(cells[name]) if cells[name] else np.nan for name in names]
            np.testing.assert_allclose(shown, [values[name] for name in names], rtol=1e-9, atol=1e-9)
    assert set(window.locator(".share").all_text_contents()) == {f"{100 * share:.1f} %"}


def _expected(point, prevalence, share):
    """Numbers in 1,000 patches, and rates, at a share of positives."""
    positives, negatives = 1000 * share, 1000 * (1 - share)
    tp, fp = point["sensitivity"] * positives, (1 - point["specificity"]) * negatives
    tn, fn = point["specificity"] * negatives, (1 - point["sensitivity"]) * positives
    return {
        "shifted": float(shift_prevalence(np.array([point["threshold"]]), prevalence, share)[0]),
        "ppv": tp / (tp + fp) if tp + fp else np.nan,
        "npv": tn / (tn + fn) if tn + fn else np.nan,
        "called_positive": tp + fp,
        "true_positives": tp,
        "false_positives": fp,
        "true_negatives": tn,
        "false_negatives": fn,
        "sensitivity": point["sensitivity"],
        "specificity": point["specificity"],
    }


def test_the_sections_data_is_json(view):
    json.dumps(decisions_section(view).data, allow_nan=False)


def test_finding_states_both_splits_and_judges_the_slope_by_its_interval(view):
    finding = decisions_section(view).finding
    rows = view.operating[view.operating.point == "youden"].set_index("split")
    oof, test = rows.loc["oof"], rows.loc["test"]
    assert (
        f"a sensitivity of {100 * oof.sensitivity:.0f} % and a specificity of {100 * oof.specificity:.0f} % "
        f"out-of-fold, and {100 * test.sensitivity:.0f} % and {100 * test.specificity:.0f} % on the test slides"
    ) in finding
    for low, high, shows in (
        (0.7, 0.9, "0.85 (95 % CI 0.70 to 0.90; probabilities too extreme)"),
        (0.7, 0.998, "0.85 (95 % CI 0.70 to 1.00, includes the ideal 1)"),
        (1.1, 1.4, "0.85 (95 % CI 1.10 to 1.40; probabilities too moderate)"),
        (np.nan, np.nan, "0.85"),
    ):
        table = view.recalibration.assign(value=0.85, low=low, high=high)
        assert decisions_finding(replace(view, recalibration=table)).endswith(
            f"its calibration slope is {shows} out-of-fold and {shows} on the test slides."
        )


def test_recalibration_table_says_what_each_interval_shows(view):
    table = view.recalibration.assign(value=-0.5, low=-0.8, high=-0.002)
    rows = decisions_section(replace(view, recalibration=table)).content["recalibration"]
    assert [cell["split"] for cell in rows[0]["cells"]] == ["oof", "test"]
    assert {row["measure"]: row["cells"][0]["shows"] for row in rows} == {
        "slope": "probabilities too extreme",
        "intercept": "95 % CI includes the ideal 0",  # printed as 0.00
        "in_the_large": "95 % CI includes the ideal 0",
    }
    assert rows[1]["cells"][0]["interval"] == "−0.80 to 0.00"


def test_charts_keep_the_splits_apart(view):
    charts = decisions_section(view).charts
    for split, (_, figure) in zip(("oof", "test"), charts["precision-recall"].variants, strict=True):
        rows = view.operating[view.operating.split == split]
        marks = [trace for trace in figure["data"] if trace["mode"] == "markers"]
        assert [trace["y"][0] for trace in marks] == pytest.approx(rows.precision.tolist(), abs=1e-4)
    for split, (_, figure) in zip(("oof", "test"), charts["scores"].variants, strict=True):
        part = view.histogram[view.histogram.split == split]
        positives, negatives = figure["data"]
        assert sum(positives["y"]) == pytest.approx(1, abs=1e-3)
        assert sum(negatives["y"]) == pytest.approx(-1, abs=1e-3)
        assert positives["name"] == f"positives, {part.positives.sum():,} patches"
