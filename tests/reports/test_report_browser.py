"""The report in a real browser: Debian's chromium, driven by Playwright."""

import os
import shutil

import pytest

from tests.reports.cohorts import make_inputs
from tests.reports.test_report import NASTY, nasty_inputs
from tests.reports.written_report import write_report

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, env=dict(os.environ))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return {
        "plain": write_report(tmp_path_factory.mktemp("plain"), make_inputs(0, slides=12, per_slide=20)),
        "nasty": write_report(tmp_path_factory.mktemp("nasty"), nasty_inputs()),
    }


@pytest.fixture
def visit(browser, reports):
    """Open a report. After the test, check that no error was logged and no request left the page."""
    contexts, problems = [], []

    def opened(name="plain", **options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append("dialog"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: request.url.startswith(("file:", "data:", "blob:")) or problems.append(request.url),
        )
        page.goto(reports[name].as_uri())
        page.wait_for_function("[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def _column(page, selector, number):
    cells = page.locator(f"{selector} tbody tr > :nth-child({number})")
    return cells.evaluate_all("cells => cells.map(cell => cell.dataset.value)")


def test_every_figure_is_drawn_and_has_a_text_alternative(visit):
    page = visit()
    plots = page.locator(".plot")
    assert plots.count() == page.locator("figure[data-figure]").count() == 7
    assert page.locator(".plot .scatterlayer .trace").count() >= 4
    assert all(plots.evaluate_all("plots => plots.map(plot => plot.getAttribute('aria-label').length > 40)"))


def test_ladder_sorts_both_ways_by_keyboard_with_missing_last(visit):
    page = visit()
    before = _column(page, "#ladder-table", 1)
    button = page.get_by_role("button", name="Gain over the rung below")
    button.focus()
    page.keyboard.press("Enter")
    falling = _column(page, "#ladder-table", 5)
    numbers = [float(value) for value in falling if value]
    assert numbers == sorted(numbers, reverse=True)
    assert falling[-2:] == ["", ""]
    assert button.locator("xpath=..").get_attribute("aria-sort") == "descending"
    button.click()
    rising = _column(page, "#ladder-table", 5)
    assert [float(value) for value in rising if value] == sorted(numbers)
    assert rising[-2:] == ["", ""]
    page.locator("#ladder-table th button").first.click()
    assert _column(page, "#ladder-table", 1) == before


def test_choosing_a_metric_redraws_the_forest(visit):
    page = visit()
    forest = page.locator("figure[data-figure=forest]")
    assert forest.locator(".xtitle").text_content() == "AUC"
    forest.locator("select").select_option(label="Brier score (lower is better)")
    assert forest.locator(".xtitle").text_content() == "Brier score"


def test_choosing_a_model_redraws_its_groups(visit):
    page = visit()
    figure = page.locator("figure[data-figure=groups]")
    assert figure.locator(".xtitle").text_content() == "drop in AUC on held-out slides"
    assert figure.locator(".x2title").text_content() == "share of the total"
    before = figure.locator(".legend").text_content()
    assert "share of absolute coefficients" not in before or "share of gain" not in before
    options = figure.locator("option").all_text_contents()
    other = next(words for words in options if words.startswith("XGBoost" if "coefficients" in before else "logistic"))
    page.locator("#importance-model").select_option(label=other)
    assert figure.locator(".legend").text_content() != before


def test_clusters_can_be_sorted_and_opened(visit):
    page = visit()
    page.locator("#importances details.long > summary").click()
    table = page.locator("#cluster-table")
    table.get_by_role("button", name="Drop in AUC, XGBoost").click()
    drops = [float(value) for value in _column(page, "#cluster-table", 3)]
    assert drops == sorted(drops, reverse=True)
    first = table.locator("details").first
    assert first.locator("small").is_hidden()
    first.locator("summary").focus()
    page.keyboard.press("Enter")
    assert first.locator("small").is_visible()


def test_hovering_a_slide_shows_its_name_as_text(visit):
    page = visit("nasty")
    plot = page.locator("figure[data-figure=slides] .plot")
    plot.scroll_into_view_if_needed()
    point = plot.locator(".scatterlayer .points path").last.bounding_box()
    page.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
    page.wait_for_selector(".hoverlayer .hovertext")
    assert NASTY in page.locator(".hoverlayer .hovertext").first.text_content()


def test_names_that_look_like_markup_show_as_text(visit):
    page = visit("nasty")
    assert page.locator("h1").text_content() == NASTY
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("script:not([type])").count() == 2
    assert NASTY in page.locator(".gallery figcaption").first.text_content()
    assert NASTY in page.locator("figure[data-figure=families] .yaxislayer-above").first.text_content()
    assert NASTY in page.locator("#leanings").text_content()


@pytest.mark.parametrize("name", ["plain", "nasty"])
def test_nothing_is_wider_than_a_phone(visit, name):
    page = visit(name, viewport={"width": 375, "height": 700})
    for details in page.locator("details").all():
        details.evaluate("element => { element.open = true; }")
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_dark_scheme_is_dark_and_keeps_its_text_readable(visit):
    def luminance(colour):
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for scheme in ("dark", "light"):
        page = visit(color_scheme=scheme)
        paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert (paper < 0.1) is (scheme == "dark")
        for selector, property_ in [("p", "color"), ("small", "color"), (".xtitle", "fill"), (".warnings h2", "color")]:
            text = luminance(page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{property_}"))
            contrast = (max(text, paper) + 0.05) / (min(text, paper) + 0.05)
            assert contrast >= 4.5, (scheme, selector, contrast)


def test_printed_pages_contain_every_table_and_no_controls(visit):
    page = visit(color_scheme="dark")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav").is_hidden()
    closed = page.locator("details:not([open])")
    assert closed.count() == page.locator("td details, th details").count() > 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0
