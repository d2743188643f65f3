"""The feature explorer in a real browser."""

import os
import shutil

import pytest

from histoblend.features.handcrafted import families
from histoblend.reports.page.page import write_page
from histoblend.reports.sections.importances import importances_section
from tests.reports.cohorts import make_importances, make_patches, make_predictions, make_view

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
]

NASTY = "<b>x</b><img src=x onerror=alert(1)>"
SENTENCES = {column.name: column.sentence for column in families.columns()}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, env=dict(os.environ))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    predictions = make_predictions(0, slides=10, test_slides=3, per_slide=20)
    predictions["slide"] = predictions.slide + NASTY
    importances = make_importances(predictions)
    view = make_view(predictions, importances, make_patches(predictions))
    section = importances_section(importances, SENTENCES, view)
    return write_page(tmp_path_factory.mktemp("explorer"), "Explorer", [section]), view


@pytest.fixture
def visit(browser, report):
    """Open the page. After the test, the page must have logged no error and sent no request."""
    contexts, problems = [], []

    def opened(**options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith(("file:", "data:", "blob:")) or problems.append(request.url),
        )
        page.goto(report[0].as_uri())
        page.wait_for_function("[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))")
        page.locator("#explorer-model").select_option(label="XGBoost on all handcrafted features")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def _names(page):
    return page.locator("#explorer-table tbody button.feature").evaluate_all("all => all.map(e => e.dataset.feature)")


def test_features_are_searched_filtered_and_unfolded(visit):
    page = visit()
    assert len(_names(page)) == 15
    page.locator("#explorer button.all").click()
    total = _names(page)
    assert len(total) > 15
    page.locator("#explorer-find").fill("nuclei")
    found = _names(page)
    assert 0 < len(found) < len(total)
    assert all("nucle" in f"{name} {SENTENCES[name]}".lower() for name in found)
    page.locator("#explorer-region").select_option("centre")
    narrowed = _names(page)
    assert narrowed == [name for name in found if name.endswith("_centre")] != []
    assert page.locator("#explorer .count").text_content() == f"{len(narrowed)} of {len(total)}"
    page.locator("#explorer-find").fill("")
    page.locator("#explorer-region").select_option("")
    page.locator("#explorer-family").select_option("lbp")
    page.locator("#explorer-channel").select_option("grey")
    assert _names(page)
    assert all(name.startswith("lbp_") and "_grey_" in name for name in _names(page))


def test_columns_sort_both_ways_by_keyboard(visit):
    page = visit()
    button = page.locator("#explorer-table th button", has_text="Gain")
    button.focus()
    page.keyboard.press("Enter")
    cells = page.locator("#explorer-table tbody tr td:last-child")
    falling = [float(text) for text in cells.all_text_contents()]
    assert falling == sorted(falling, reverse=True)
    assert button.locator("xpath=..").get_attribute("aria-sort") == "descending"
    button.click()
    rising = [float(text) for text in cells.all_text_contents()]
    assert rising == sorted(rising)
    assert rising[0] < falling[-1]


@pytest.mark.parametrize("act", ["hover", "focus"])
def test_pointing_or_moving_to_a_name_shows_its_description(visit, act):
    page = visit()
    button = page.locator("#explorer-table button.feature").nth(1)
    tip = page.locator("#explorer-tip")
    assert tip.is_hidden()
    getattr(button, act)()
    assert tip.text_content() == SENTENCES[button.get_attribute("data-feature")]
    assert tip.is_visible()
    assert button.get_attribute("aria-describedby") == "explorer-tip"
    page.keyboard.press("Escape")
    assert tip.is_hidden()


@pytest.mark.parametrize("how", ["click", "Enter"])
def test_a_feature_opens_with_three_patches_and_a_curve(visit, report, how):
    page, view = visit(), report[1]
    button = page.locator("#explorer-table button.feature").nth(0)
    name = button.get_attribute("data-feature")
    if how == "click":
        button.click()
    else:
        button.focus()
        page.keyboard.press("Enter")
    panel = page.locator("#explorer-panel")
    assert panel.is_visible()
    assert panel.locator("h4").text_content() == name
    assert SENTENCES[name] in panel.text_content()
    assert panel.locator("img").count() == panel.locator(".box").count() == 3
    assert panel.locator("img").evaluate_all("all => all.every(e => e.complete && e.naturalWidth === 96)")
    rows = view.examples[view.examples.feature == name]
    assert panel.locator("figcaption code").all_text_contents() == rows.patch_id.tolist()
    # Names of slides that look like markup are shown as text.
    assert NASTY in panel.locator("figcaption").first.text_content()
    assert panel.locator("b").count() == 0
    panel.locator(".plot .main-svg").first.wait_for()
    assert panel.locator(".scatterlayer .trace").count() == 2
    assert panel.locator(".scatterlayer .trace .point").count() == len(view.bins[view.bins.feature == name])
    assert name in panel.locator(".plot").get_attribute("aria-label")
    page.keyboard.press("Escape")
    assert panel.is_hidden()
    assert page.evaluate("document.activeElement.dataset.feature") == name


def test_other_features_open_without_pictures(visit):
    page = visit()
    button = page.locator("#explorer-table button.feature").nth(10)
    button.click()
    panel = page.locator("#explorer-panel")
    assert SENTENCES[button.get_attribute("data-feature")] in panel.text_content()
    assert panel.locator("img").count() == 0
    assert panel.locator(".curve").is_hidden()


def test_embeddings_are_one_row_of_a_model_that_has_them(visit):
    page = visit()
    page.locator("#explorer-model").select_option(label="XGBoost on handcrafted features and embeddings together")
    assert _names(page)[0] == "embedding"
    page.locator("#explorer-table button.feature").first.click()
    assert "20 columns of pretrained networks" in page.locator("#explorer-panel").text_content()


def test_the_picture_follows_the_chosen_waterfall(visit, report):
    page, view = visit(), report[1]
    shown = page.locator(".cases .gallery li:visible code")
    assert shown.all_text_contents() == [view.cases.patch_id[0]]
    page.locator("figure[data-figure=waterfall] select").select_option("2")
    assert shown.all_text_contents() == [view.cases.patch_id[2]]
    page.emulate_media(media="print")
    assert shown.count() == len(view.cases)


def test_an_open_panel_fits_a_phone(visit):
    page = visit(viewport={"width": 375, "height": 700})
    page.locator("#explorer-table button.feature").first.click()
    page.locator("#explorer-table button.feature").nth(3).hover()
    page.locator("#explorer-panel .plot .main-svg").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_printed_features_have_no_controls(visit):
    page = visit()
    assert page.locator("#explorer-find").is_visible()
    page.emulate_media(media="print")
    assert page.locator("#explorer-find").is_hidden()
    assert page.locator("#explorer-table").is_visible()
