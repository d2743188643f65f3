"""The Errors section: which patches it shows, and with which details."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from histoblend.reports.evaluation.decisions import decide
from histoblend.reports.evaluation.ladder import ladder
from histoblend.reports.evaluation.slides import score_slides
from histoblend.reports.page.page import write_page
from histoblend.reports.sections.data_card import DataCard
from histoblend.reports.sections.errors import (
    EACH_SLIDE,
    GALLERY_SIZE,
    MAX_BY_SLIDE,
    best_of_rungs,
    choose_errors,
    count_errors,
    errors_finding,
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
    card = DataCard(um_per_pixel="0.5")
    return errors_section(predictions, slides, table, "cnn", make_patches(predictions), flags, card=card, draws=100)


@pytest.mark.parametrize("split", ["train", "test"])
def test_worst_errors_of_each_split_come_first_with_at_most_two_per_slide(cohort, split):
    predictions, _, _ = cohort
    shown = choose_errors(predictions, "cnn", 0.4)
    part = predictions[predictions.split == split]
    wrong = part[(part.prob_cnn >= 0.4) != (part.label == 1)]
    shown = shown[shown.split == split]
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
    logit = np.log(part.prob_cnn / (1 - part.prob_cnn)) - np.log(0.4 / 0.6)
    assert border.patch_id.iloc[0] == part.patch_id[logit.abs().idxmin()]
    for _, group in shown[shown.group != "slide"].groupby("group"):
        assert group.slide.value_counts().max() <= 2
    assert shown[shown.group != "borderline"].wrong.all()


def test_each_patch_can_have_its_own_threshold():
    table = pd.DataFrame(
        {"patch_id": list("pqrs"), "slide": list("aabb"), "split": ["train", "train", "train", "test"]}
    ).assign(label=[0, 0, 1, 1], prob_cnn=[0.5, 0.5, 0.3, 0.3])
    cuts = np.array([0.4, 0.6, 0.2, 0.9])
    shown = choose_errors(table, "cnn", cuts)
    assert shown[shown.group == "false-positives"].patch_id.tolist() == ["p"]
    assert shown[shown.group == "false-negatives"].patch_id.tolist() == ["s"]
    oof, test = count_errors(table, "cnn", cuts)
    assert oof == {
        "split": "oof", "patches": 3, "positives": 1, "negatives": 2, "false_positives": 1, "false_negatives": 0,
        "errors": 1, "slides": 2, "half": 1,
    }  # fmt: skip
    assert (test["errors"], test["false_negatives"], test["half"]) == (1, 1, 1)


def test_half_of_the_errors_can_be_on_few_slides():
    # Errors per slide: 5, 2, 2, 1. The first slide has half of the ten.
    slides = ["a"] * 5 + ["b"] * 2 + ["c"] * 2 + ["d"] * 2
    table = pd.DataFrame({"slide": slides, "split": "train", "label": 0, "prob_cnn": [0.9] * 10 + [0.1]})
    (row,) = count_errors(table, "cnn", 0.5)
    assert (row["errors"], row["half"], row["slides"]) == (10, 1, 4)
    assert errors_finding([row], "cnn") == (
        "The fine-tuned network misclassifies 90.9 % of the out-of-fold patches (10 of 11; 0 are missed tumour); 1 of "
        "4 slides have half of the out-of-fold errors."
    )
    (row,) = count_errors(table.assign(slide=None), "cnn", 0.5)
    assert row["half"] == 0
    assert errors_finding([row], "cnn").endswith("(10 of 11; 0 are missed tumour).")


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
    # Distance to the threshold in log-odds: r 4.6, q 0.85, s 0.41 (more than two errors).
    assert by_slide.patch_id.tolist() == ["r", "q", "p"]


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
    part = predictions[predictions.split == "train"]
    expected = part.prob_xgboost_both[part.label == 0].nlargest(GALLERY_SIZE).tolist()
    chosen = shown[(shown.group == "false-positives") & (shown.split == "train")]
    assert chosen.score.tolist() == expected
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
    assert section.content["lengths"] == ["96 px (48 µm)", "32 px (16 µm)"]
    cut = table.threshold[table.model == "cnn"].iloc[0]
    for row, split in zip(section.content["counts"], ("train", "test"), strict=True):
        part = predictions[predictions.split == split]
        assert row["false_positives"] == ((part.prob_cnn >= cut) & (part.label == 0)).sum()
        assert row["positives"] == part.label.sum()
    assert f"that of the ladder, {cut:.3f}" in section.content["threshold"]


def test_errors_are_those_of_the_operating_point_that_the_page_shows(cohort):
    predictions, table, _ = cohort
    view = decide(predictions, table, draws=20)
    section = errors_section(
        predictions, score_slides(predictions, [view.model]), table, view.model, make_patches(predictions), None, view
    )
    operating = view.operating[view.operating.point == "youden"].set_index("split")
    for row in section.content["counts"]:
        accuracy = 1 - row["errors"] / row["patches"]
        assert accuracy == pytest.approx(operating.accuracy[row["split"]])
    assert "default operating point" in section.content["threshold"]


def test_variants_say_which_model_split_and_metric(section):
    words = [words for words, _ in section.charts["slides"].variants]
    assert words[0] == "fine-tuned network, out-of-fold: AUC (one class: share correct)"
    assert words[1] == "fine-tuned network, test slides: AUC (one class: share correct)"
    assert len(words) == 6 + 2 * 2
    assert "fine-tuned network, test slides: specificity" in words
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
    assert len(pictures) <= 6 * GALLERY_SIZE + MAX_BY_SLIDE
    assert sum(map(len, pictures)) < 0.6e6
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
        card = page.locator("#errors .gallery").first.locator("figcaption").first.text_content()
        worst = section.content["galleries"][0]["cards"][0]
        assert f"labelled negative, scored {worst['score']:.3f}" in card
        assert worst["patch_id"] in card
        assert f"slide {worst['slide']} · out-of-fold" in card
        page.get_by_text("Worst errors of single slides").click()
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
        page.get_by_text("Chart of slides, worst first").click()
        figure = page.locator("figure[data-figure=slides]")
        before = figure.locator(".scatterlayer .point").count()
        figure.locator("select").select_option(label="fine-tuned network, out-of-fold: sensitivity")
        assert 0 < figure.locator(".scatterlayer .point").count() != before
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        browser.close()
    assert problems == []
