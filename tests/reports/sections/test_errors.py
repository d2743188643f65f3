"""The Errors section: which patches it shows, and with which details."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from histoblend.reports.evaluation.ladder import ladder
from histoblend.reports.evaluation.slides import score_slides
from histoblend.reports.page.page import write_page
from histoblend.reports.sections.errors import (
    EACH_SLIDE,
    GALLERY_SIZE,
    MAX_BY_SLIDE,
    best_of_rungs,
    choose_errors,
    errors_section,
    model_thresholds,
)
from tests.reports.cohorts import make_patches, make_predictions, model_names

NASTY = "<img src=x onerror=alert(1)>"
RUNGS = ("prevalence", "colour", "both", "cnn")


@pytest.fixture(scope="module")
def cohort():
    predictions = make_predictions(1, slides=14, test_slides=4, per_slide=25, rungs=RUNGS)
    table = ladder(predictions, model_names(predictions), draws=100)
    flags = pd.DataFrame({"patch_id": predictions.patch_id, "blurred": predictions.index % 9 == 0, "pen_marks": False})
    flags.loc[flags.index % 7 == 0, "pen_marks"] = True
    return predictions, table, flags


@pytest.fixture(scope="module")
def section(cohort):
    predictions, table, flags = cohort
    slides = score_slides(predictions, ["cnn", "xgboost_both", "logistic_colour", "xgboost_colour", "logistic_both"])
    return errors_section(predictions, slides, table, "cnn", make_patches(predictions), flags, draws=100)


def test_worst_errors_come_first_with_at_most_two_per_slide(cohort):
    predictions, _, _ = cohort
    shown = choose_errors(predictions, "cnn", 0.4)
    scores = predictions.set_index("patch_id").prob_cnn
    wrong = predictions[(predictions.prob_cnn >= 0.4) != (predictions.label == 1)]
    positives = shown[shown.group == "false-positives"]
    assert len(positives) == GALLERY_SIZE
    assert positives.score.is_monotonic_decreasing
    assert set(positives.label) == {0}
    assert positives.score.iloc[0] == wrong.prob_cnn[wrong.label == 0].max()
    negatives = shown[shown.group == "false-negatives"]
    assert negatives.score.is_monotonic_increasing
    assert negatives.score.iloc[0] == wrong.prob_cnn[wrong.label == 1].min()
    assert set(negatives.label) == {1}
    border = shown[shown.group == "borderline"]
    logit = np.log(scores / (1 - scores)) - np.log(0.4 / 0.6)
    assert border.patch_id.iloc[0] == logit.abs().idxmin()
    assert set(border.wrong) <= {True, False}
    for _, part in shown[shown.group != "slide"].groupby("group"):
        assert part.slide.value_counts().max() <= 2
    assert shown[shown.group != "borderline"].wrong.all()


def test_slides_with_the_most_errors_come_first_each_with_its_worst():
    # Slide a errs three times, b once, c never.
    table = pd.DataFrame(
        {
            "patch_id": list("pqrstu"),
            "slide": ["b", "a", "a", "a", "c", "a"],
            "split": "train",
            "label": [0, 0, 1, 0, 1, 0],
            "prob_cnn": [0.9, 0.7, 0.01, 0.6, 0.8, 0.1],
        }
    )
    shown = choose_errors(table, "cnn", 0.5)
    by_slide = shown[shown.group == "slide"]
    # Distance to the threshold in log-odds: r 4.6, q 0.85, s 0.41.
    assert by_slide.patch_id.tolist() == ["r", "q", "s", "p"]


def test_pictures_are_limited_and_each_slide_gets_one_before_any_gets_two():
    predictions = make_predictions(2, slides=110, test_slides=20, per_slide=20, rungs=("prevalence", "colour"))
    shown = choose_errors(predictions, "xgboost_colour", 0.5)
    by_slide = shown[shown.group == "slide"]
    assert len(by_slide) == MAX_BY_SLIDE
    assert by_slide.slide.is_unique
    few = choose_errors(predictions[predictions.slide.isin(["S00", "S01", "S02"])], "xgboost_colour", 0.5)
    assert few[few.group == "slide"].slide.value_counts().max() == EACH_SLIDE


def test_without_slides_the_most_extreme_errors_are_shown():
    predictions = make_predictions(1, slide_map=False, rungs=("prevalence", "both"))
    shown = choose_errors(predictions, "xgboost_both", 0.5)
    expected = predictions.prob_xgboost_both[predictions.label == 0].nlargest(8).tolist()
    assert shown[shown.group == "false-positives"].score.tolist() == expected
    assert "slide" not in set(shown.group)


def test_models_to_choose_from_are_the_best_of_their_rungs(cohort):
    _, table, _ = cohort
    models = best_of_rungs(table, "cnn")
    assert models[0] == "cnn"
    oof = table[(table.split == "oof") & (table.rung == "both")]
    assert models[1] == oof.loc[oof.auc.idxmax(), "model"]
    assert len(models) == 3
    thresholds = model_thresholds(table, "cnn")
    assert next(iter(thresholds)) == "cnn"
    assert "prevalence" not in thresholds
    assert thresholds["xgboost_both"] == table.threshold[table.model == "xgboost_both"].iloc[0]


def test_cards_show_the_flags_of_the_audit(cohort, section):
    predictions, table, flags = cohort
    cards = [card for gallery in section.content["galleries"] for card in gallery["cards"]]
    flags_of = flags.set_index("patch_id")
    assert cards
    for card in cards:
        expected = [name.replace("_", " ") for name in ("blurred", "pen_marks") if flags_of.loc[card["patch_id"], name]]
        assert card["flags"] == expected
    assert any(card["flags"] for card in cards)
    counts = section.content["counts"]
    cut = table.threshold[table.model == "cnn"].iloc[0]
    assert counts["false_positives"] == ((predictions.prob_cnn >= cut) & (predictions.label == 0)).sum()
    assert counts["positives"] == predictions.label.sum()


def test_variants_say_which_model_and_metric(section):
    words = [words for words, _ in section.charts["slides"].variants]
    assert words[0] == "fine-tuned network: AUC (one class: share correct)"
    assert len(words) == 9
    assert "fine-tuned network: specificity" in words
    assert set(section.tables["slides-intervals"].model) == {
        "cnn",
        "xgboost_both",
        "logistic_both",
        "xgboost_colour",
        "logistic_colour",
    }
    assert set(section.tables["errors-by-flag"].flag) == {"blurred", "pen_marks"}


def test_page_says_what_is_missing_and_escapes_names(cohort, tmp_path):
    predictions, table, _ = cohort
    named = predictions.assign(slide=predictions.slide + NASTY, patch_id=predictions.patch_id + NASTY)
    slides = score_slides(named, ["cnn"])
    section = errors_section(named, slides, table, "cnn", make_patches(named), None)
    text = write_page(tmp_path, "Errors", [section]).read_text(encoding="utf-8")
    assert "This report has no audit of single patches." in text
    assert NASTY not in text
    bare = named.assign(slide=None)
    section = errors_section(bare, score_slides(bare, ["cnn"]), table, "cnn", make_patches(bare), None)
    text = write_page(tmp_path, "Errors", [section]).read_text(encoding="utf-8")
    assert "No slide is known" in text
    assert "by-slide" not in text[text.index("<main>") : text.index("<script>", text.index("</main>"))]


def test_pictures_stay_within_their_size_limit(section, tmp_path):
    text = write_page(tmp_path, "Errors", [section]).read_text(encoding="utf-8")
    pictures = re.findall(r'src="(data:image/jpeg;base64,[^"]+)"', text)
    assert len(pictures) <= 3 * GALLERY_SIZE + MAX_BY_SLIDE
    assert sum(map(len, pictures)) < 0.7e6
    json.loads(re.search(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)[1])


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium: apt-get install chromium")
def test_choosing_a_slide_shows_only_its_errors(section, tmp_path):
    from playwright.sync_api import sync_playwright

    page_file = write_page(tmp_path, "Errors", [section])
    problems = []
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        page = browser.new_page(viewport={"width": 375, "height": 700})
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(page_file.as_uri())
        block = page.locator(".by-slide")
        cards = block.locator("li")
        total = cards.count()
        names = section.content["slide_names"]
        assert block.locator("li:visible").count() == total == len(section.content["by_slide"])
        block.locator("select").select_option(label=names[1])
        shown = block.locator("li:visible")
        assert 1 <= shown.count() <= EACH_SLIDE
        assert all(f"slide {names[1]} " in text for text in shown.all_text_contents())
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert block.locator("li:visible").count() == total
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert block.locator("li:visible").count() < total
        # The forest plot of slides has a separate menu.
        figure = page.locator("figure[data-figure=slides]")
        before = figure.locator(".scatterlayer .point").count()
        figure.locator("select").select_option(label="fine-tuned network: sensitivity")
        assert 0 < figure.locator(".scatterlayer .point").count() != before
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        browser.close()
    assert problems == []
