"""The feature explorer in a real browser."""

import shutil

import pytest

from histoblend.features.handcrafted import families
from histoblend.features.handcrafted.plain_names import plain_name, synonyms, unit
from histoblend.reports.page.page import write_page
from histoblend.reports.sections.importances import importances_section
from tests.reports.cohorts import make_groups, make_importances, make_patches, make_predictions, make_view

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
]

NASTY = "<b>x</b><img src=x onerror=alert(1)>"
#: Rows of the table that are shown at first.
FOLDED = 10
SENTENCES = {column.name: column.sentence for column in families.columns()}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    predictions = make_predictions(0, slides=10, test_slides=3, per_slide=20)
    predictions["slide"] = predictions.slide + NASTY
    importances = make_importances(predictions)
    view = make_view(predictions, importances, make_patches(predictions))
    groups = make_groups(importances)
    section = importances_section(importances, SENTENCES, view, groups, shown=[view.traced.patch_id[0]])
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
        page.set_default_timeout(8000)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def _names(page):
    return page.locator("#explorer-table tbody button.feature").evaluate_all("all => all.map(e => e.dataset.feature)")


def test_features_are_searched_filtered_and_unfolded(visit):
    page = visit()
    assert len(_names(page)) == FOLDED
    page.locator("#explorer button.all").click()
    total = _names(page)
    assert len(total) > FOLDED
    page.locator("#explorer-find").fill("nuclei")
    found = _names(page)
    assert 0 < len(found) < len(total)
    assert all("nucle" in f"{name} {plain_name(name)} {SENTENCES[name]} {synonyms(name)}".lower() for name in found)
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
    assert panel.locator("h4").text_content() == plain_name(name)
    assert panel.locator(".code code").text_content() == name
    # Directly below its row.
    assert page.locator(f"tr[data-row='{name}'] + tr #explorer-panel").count() == 1
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
    assert plain_name(name) in panel.locator(".plot").get_attribute("aria-label")
    page.keyboard.press("Escape")
    assert panel.is_hidden()
    assert page.evaluate("document.activeElement.dataset.feature") == name


def test_other_features_open_without_pictures(visit):
    page = visit()
    page.locator("#explorer button.all").click()
    button = page.locator("#explorer-table button.feature").nth(10)
    button.click()
    panel = page.locator("#explorer-panel")
    assert SENTENCES[button.get_attribute("data-feature")] in panel.text_content()
    assert panel.locator("img").count() == 0
    assert panel.locator(".curve").is_hidden()


@pytest.mark.parametrize("query", ["nucleus size", "size of the nuclei", "px²"])
def test_other_words_find_columns(visit, query):
    page = visit()
    page.locator("#explorer-find").fill(query)
    found = _names(page)
    assert found
    assert len(found) < FOLDED
    for name in found:
        text = f"{name} {plain_name(name)} {unit(name)} {SENTENCES[name]} {synonyms(name)}".lower()
        assert all(term in text for term in query.split())


def test_one_selector_drives_the_whole_section(visit):
    page = visit()
    chooser = page.locator("#importance-model")
    assert chooser.locator("option").first.text_content() == "XGBoost on all handcrafted features (best)"
    total = page.locator(".waterfall tr.end td.n").last.text_content()
    leading = page.locator("#board-columns .number").first.text_content()
    other = "logistic regression on handcrafted features and embeddings together"
    chooser.select_option(label=other)
    assert _names(page)[0] == "embedding"
    page.locator("#explorer-table button.feature").first.click()
    assert "20 columns of pretrained networks" in page.locator("#explorer-panel").text_content()
    assert page.locator(".waterfall tr.end td.n").last.text_content() != total
    assert page.locator("#board-columns .number").first.text_content() != leading
    assert other in page.locator(".waterfall caption").text_content()
    assert page.locator("figure[data-figure=beeswarm] .whose").text_content() == f"{other}. "
    shown = page.locator("figure[data-figure=beeswarm] select")
    assert shown.is_hidden()
    assert shown.evaluate("e => e.selectedOptions[0].text") == other
    chooser.select_option(index=0)
    assert page.locator(".waterfall tr.end td.n").last.text_content() == total


def test_the_board_comes_first_and_matches_the_evidence(visit, report):
    page, view = visit(), report[1]
    assert page.locator("#importances :is(h3, h4)").all_text_contents()[:4] == [
        "What separates tumour from other patches",
        "Families",
        "Clusters of correlated columns",
        "Ten leading single columns",
    ]
    rows = view.evidence[(view.evidence.model == view.best) & (view.evidence.kind == "column")]
    names = page.locator("#board-columns > li").evaluate_all("all => all.map(e => e.dataset.feature)")
    assert names == rows.sort_values("separation", ascending=False).unit.tolist()
    row = page.locator("#board-columns > li").first
    assert row.locator(".feature").text_content() == plain_name(names[0])
    assert row.locator("code").text_content() == names[0]
    assert row.locator(".thumbnail img").evaluate_all("all => all.map(e => e.alt)") == [
        f"Patch where {plain_name(names[0])} is {word}" for word in ("low", "high")
    ]
    assert row.locator(".trust strong").text_content() in {f"Trust: {level}" for level in ("high", "medium", "low")}
    assert page.locator("#importance-board .rules li").count() == 3
    cluster = page.locator("#board-clusters details").first
    cluster.locator("summary").click()
    members = view.clusters[view.clusters.model == view.best].members.iloc[0].split()
    assert cluster.locator("li").all_text_contents() == [plain_name(name) for name in members]


def test_a_row_of_the_board_opens_in_place(visit):
    page = visit()
    row = page.locator("#board-columns > li").nth(2)
    row.locator("button.feature").focus()
    page.keyboard.press("Enter")
    panel = row.locator("#explorer-panel")
    assert panel.is_visible()
    assert page.evaluate("document.activeElement.id") == "explorer-name"
    assert row.locator("button.feature").get_attribute("aria-expanded") == "true"
    # The same panel moves to the row that is opened next.
    page.locator("#explorer-table button.feature").first.click()
    assert panel.count() == 0
    assert row.locator("button.feature").get_attribute("aria-expanded") == "false"
    page.locator("#importance-model").select_option(index=1)
    assert page.locator("#explorer-panel").is_hidden()


def test_waterfalls_open_by_keyboard_and_add_up(visit, report):
    page, view = visit(), report[1]
    values = page.locator(".waterfall tr[data-level='0'] td.n").all_text_contents()
    numbers = [float(text.replace("−", "-")) for text in values]
    attribution = view.attributions[view.best]
    assert sum(numbers) == pytest.approx(attribution.shares[view.cases.place[0]].sum(), abs=0.01)
    sizes = [abs(number) for number in numbers]
    assert sizes == sorted(sizes, reverse=True)
    below = page.locator(".waterfall tr[data-level='1']:visible")
    assert below.count() == 0
    button = page.locator(".waterfall button.unfold").first
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    assert below.count() > 0
    button.click()
    assert below.count() == 0


def test_a_shown_patch_is_explained_in_a_dialog(visit, report):
    page, view = visit(), report[1]
    explained = {*view.explained.patch_id, view.traced.patch_id[0]}
    buttons = page.locator("#explorer-panel button.explain")
    for row in page.locator("#board-columns button.feature").all():
        row.click()
        for caption in page.locator("#explorer-panel figcaption").all():
            expected = caption.locator("code").text_content() in explained
            assert caption.locator("button.explain").count() == expected
        if buttons.count():
            break
    buttons.first.click()
    dialog = page.locator("dialog.explain")
    assert dialog.is_visible()
    assert dialog.locator(".waterfall tr.end").count() == 2
    assert dialog.locator(".picture img").count() == 1
    page.keyboard.press("Escape")
    assert dialog.is_hidden()
    # Escape closed the dialog only.
    assert page.locator("#explorer-panel").is_visible()


def test_the_picture_follows_the_chosen_waterfall(visit, report):
    page, view = visit(), report[1]
    shown = page.locator(".cases .gallery li:visible code")
    assert shown.all_text_contents() == [view.cases.patch_id[0]]
    page.locator("#importance-case").select_option(index=2)
    assert shown.all_text_contents() == [view.cases.patch_id[2]]
    page.emulate_media(media="print")
    assert shown.count() == len(view.cases)


def test_an_open_panel_fits_a_phone(visit):
    page = visit(viewport={"width": 375, "height": 700})
    page.locator("#explorer-table button.feature").first.click()
    page.locator("#explorer-table button.feature").nth(3).hover()
    page.locator("#explorer-panel .plot .main-svg").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    assert page.locator("#explorer-panel").evaluate("e => e.getBoundingClientRect().right") <= 375
    page.locator("#board-columns button.feature").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_printed_features_have_no_controls(visit):
    page = visit()
    assert page.locator("#explorer-find").is_visible()
    page.emulate_media(media="print")
    assert page.locator("#explorer-find").is_hidden()
    assert page.locator("#explorer-table").is_visible()
