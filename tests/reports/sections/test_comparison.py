"""The page that compares runs: its words, the inputs it refuses, and names that look like markup."""

import os
import shutil

import pandas as pd
import pytest

from histoblend.data.errors import InputError
from histoblend.reports.evaluation.ladder import ladder
from histoblend.reports.evaluation.pairing import RunResults
from histoblend.reports.page.page import write_page
from histoblend.reports.sections.comparison import changed, comparison_sections
from histoblend.reports.words import model_words
from tests.reports.cohorts import make_predictions, model_names
from tests.reports.conftest import STARTED_MS
from tests.reports.evaluation.test_pairing import another
from tests.reports.test_report import NASTY

CHROMIUM = shutil.which("chromium")


def results(name, predictions, **settings):
    steps = ladder(predictions, model_names(predictions), draws=20)
    return RunResults(name, predictions, steps, settings, {"commit": name})


@pytest.fixture(scope="module")
def predictions():
    return make_predictions(1, slides=10, test_slides=5, per_slide=20, rungs=("prevalence", "colour", "both"))


@pytest.fixture(scope="module")
def three(predictions):
    """Two runs that can be paired, and one of other patches. The second has an ensemble and a name like markup."""
    more = another(predictions)
    more["prob_ensemble"] = more[["prob_logistic_both", "prob_xgboost_both"]].mean(axis=1)
    other = make_predictions(9, slides=8, test_slides=4, per_slide=20, rungs=("prevalence", "both"))
    settings = {"seed": 0, "heads.heads": "logistic, xgboost"}
    return [
        results("a", predictions, **settings),
        results(NASTY, more, **settings, **{"ensemble.draws": NASTY}),
        results("c", other, **(settings | {"seed": 1})),
    ]


@pytest.fixture(scope="module")
def page(three, tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("compared"), "Runs", comparison_sections(three, draws=100))


def test_every_pair_of_runs_has_a_sentence(three):
    verdict = comparison_sections(three, draws=100)[0].content
    assert len(verdict["reached"]) == len(verdict["pairs"]) == 3
    assert "the ensemble" in verdict["reached"][1]
    patches = (three[0].predictions.split == "train").sum()
    assert f"{patches:,} common patches of 10 slides" in verdict["pairs"][0]
    best = model_words(three[0].ladder.query("split == 'oof'").sort_values("auc").model.iloc[-1])
    assert verdict["pairs"][0].startswith(f"{NASTY} compared with a: the ensemble against {best}. AUC: ")
    assert verdict["pairs"][1] == "c compared with a: not paired because they have no patch in common."


def test_page_shows_all_runs_in_one_table(three, page):
    ladders = pd.read_csv(page.parent / "ladders.csv")
    assert ladders.run.nunique() == 3
    sections = {section.name: section for section in comparison_sections(three, draws=100)}
    row = next(row for row in sections["ladders"].content["rows"] if row["model"] == "ensemble")
    assert [cell is None for cell in row["cells"]] == [True, False, True]
    assert len(sections["ladders"].charts["ladders"].variants) == 8
    paired = pd.read_csv(page.parent / "paired.csv")
    assert set(zip(paired["first"], paired["second"], strict=True)) == {("a", NASTY)}


def test_every_section_begins_with_its_finding(three):
    findings = {section.name: section.finding for section in comparison_sections(three, draws=100)}
    best = max((run.ladder[run.ladder.split == "oof"].auc.max(), run.name) for run in three)
    assert findings["comparison"].startswith(f"“{best[1]}” has the highest out-of-fold AUC, {best[0]:.3f} (")
    # Of prevalence, colour (2), both (2) and ensemble, all runs have prevalence and both.
    assert findings["ladders"] == "3 of 6 models are in every run."
    assert findings["settings"] == "Different settings: 2. Differences in data, code, versions and machine: 1."
    rows = next(s for s in comparison_sections(three, draws=100) if s.name == "paired").content["rows"]
    clear = sum(round(row["auc_low"], 3) > 0 or round(row["auc_high"], 3) < 0 for row in rows)
    assert findings["paired"] == (f"{clear} of {len(rows)} differences in AUC have a 95 % interval that excludes 0.")


def test_changed_keys_are_listed(page):
    table = pd.read_csv(page.parent / "differences-settings.csv", dtype=str)
    assert table.key.tolist() == ["ensemble.draws", "seed"]
    assert table.set_index("key").loc["seed"].tolist() == ["0", "0", "1"]
    assert changed([{"a": 1}, {"a": 1}]).empty


def test_without_any_pair_the_page_says_so(three, tmp_path):
    text = write_page(tmp_path, "Runs", comparison_sections([three[0], three[2]])).read_text(encoding="utf-8")
    assert "No two of these runs can be compared patch by patch" in text
    assert "paired-table" not in text


@pytest.mark.parametrize("count", [1, 8])
def test_too_few_or_too_many_runs_are_refused(three, count):
    runs = [RunResults(f"run {i}", three[0].predictions, three[0].ladder) for i in range(count)]
    with pytest.raises(InputError, match="RUNS must name 2 to 7 different runs"):
        comparison_sections(runs)
    with pytest.raises(InputError, match="different"):
        comparison_sections([three[0], three[0]])


def test_names_are_escaped(page):
    text = page.read_text(encoding="utf-8")
    assert NASTY not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium")
def test_the_page_works_in_a_browser(page):
    from playwright.sync_api import expect, sync_playwright

    problems = []
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, env=dict(os.environ))
        window = browser.new_page(viewport={"width": 375, "height": 700})
        window.on("console", lambda message: problems.append(message.text))
        window.on("pageerror", lambda error: problems.append(str(error)))
        window.on("request", lambda request: request.url.startswith("file:") or problems.append(request.url))
        window.goto(page.as_uri())
        expect(window.locator(".plot:not(.js-plotly-plot)")).to_have_count(0, timeout=STARTED_MS)
        assert window.evaluate("document.documentElement.scrollWidth") == 375
        forest = window.locator("figure[data-figure=ladders]")
        forest.locator("select").select_option(label="Brier score (lower is better), test slides")
        assert forest.locator(".xtitle").text_content() == "Brier score"
        assert NASTY in forest.locator(".legend").text_content()
        button = window.locator("#paired-table th button").filter(has_text="AUC")
        button.click()
        values = window.locator("#paired-table tbody tr td.gain").evaluate_all(
            "cells => cells.map(cell => Number(cell.dataset.value))"
        )
        assert values == sorted(values, reverse=True)
        assert window.locator("img").count() == 0
        browser.close()
    assert problems == []
