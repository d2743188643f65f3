"""The report in a real browser: Debian's chromium, driven by Playwright."""

import itertools

import pytest

from tests.reports.conftest import CHROMIUM
from tests.reports.test_report import NASTY

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
]


def _column(page, selector, number):
    cells = page.locator(f"{selector} tbody tr > :nth-child({number})")
    return cells.evaluate_all("cells => cells.map(cell => cell.dataset.value)")


def test_every_figure_is_drawn_and_has_a_text_alternative(visit):
    page = visit()
    plots = page.locator(".plot")
    assert plots.count() == page.locator("figure[data-figure]").count() == 11
    assert page.locator(".plot .scatterlayer .trace").count() >= 4
    assert all(plots.evaluate_all("plots => plots.map(plot => plot.getAttribute('aria-label').length > 40)"))


def test_the_answer_fits_the_first_screen_of_a_desktop(visit):
    page = visit(viewport={"width": 1300, "height": 900})
    assert page.locator(".answer-data").evaluate("line => line.getBoundingClientRect().bottom") <= 900
    plot, scores = page.locator(".answer-plot").bounding_box(), page.locator(".answer-scores").bounding_box()
    assert plot["x"] > scores["x"] + scores["width"]


def test_the_answer_is_stacked_on_a_phone_with_actions_before_details(visit):
    page = visit(viewport={"width": 375, "height": 700})
    order = (".answer-scores", ".answer-next", ".answer-cautions", ".answer-plot", ".answer-data")
    boxes = [page.locator(name).bounding_box() for name in order]
    assert all(upper["y"] + upper["height"] <= lower["y"] for upper, lower in itertools.pairwise(boxes))
    assert {box["x"] for box in boxes} == {boxes[0]["x"]}


def test_a_reason_for_caution_opens_by_keyboard_and_an_action_leads_to_its_section(visit):
    page = visit()
    reason = page.locator(".answer-cautions details").first
    assert reason.locator("p").is_hidden()
    reason.locator("summary").focus()
    page.keyboard.press("Enter")
    assert reason.locator("p").is_visible()
    links = page.locator(".answer-next a")
    assert links.count() >= 1
    for link in links.all():
        assert page.locator(link.get_attribute("href")).count() == 1


def test_ladder_sorts_both_ways_by_keyboard_with_missing_last(visit):
    page = visit()
    before = _column(page, "#ladder-table", 1)
    gains = page.locator("#ladder-table tbody td[data-group=gain]:nth-child(6)")
    gains.evaluate_all("cells => cells.slice(3, 5).forEach(cell => { cell.dataset.value = ''; })")
    button = page.get_by_role("button", name="Gain in AUC, out-of-fold")
    button.focus()
    page.keyboard.press("Enter")
    falling = _column(page, "#ladder-table", 6)
    numbers = [float(value) for value in falling if value]
    assert numbers == sorted(numbers, reverse=True)
    assert falling[-2:] == ["", ""]
    assert button.locator("xpath=..").get_attribute("aria-sort") == "descending"
    button.click()
    rising = _column(page, "#ladder-table", 6)
    assert [float(value) for value in rising if value] == sorted(numbers)
    assert rising[-2:] == ["", ""]
    costs = page.get_by_role("button", name="Core-seconds per 1,000 patches")
    costs.click()
    assert button.locator("xpath=..").get_attribute("aria-sort") == "none"
    column = page.locator("#ladder-table tbody td[data-group=seconds_per_1000]")
    seconds = [float(value) for value in column.evaluate_all("cells => cells.map(cell => cell.dataset.value)")]
    assert seconds == sorted(seconds, reverse=True)
    page.locator("#ladder-table th button").first.click()
    assert _column(page, "#ladder-table", 1) == before


def test_choosing_a_metric_redraws_the_forest(visit):
    page = visit()
    page.get_by_text("Chart of every model with its interval").click()
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
    page.get_by_text("Chart of slides, worst first").click()
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
        for selector, property_ in [
            ("p", "color"),
            ("small", "color"),
            (".xtitle", "fill"),
            (".answer .word", "color"),
        ]:
            text = luminance(page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{property_}"))
            contrast = (max(text, paper) + 0.05) / (min(text, paper) + 0.05)
            assert contrast >= 4.5, (scheme, selector, contrast)
