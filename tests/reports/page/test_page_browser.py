"""The frame of the page in a real browser: contents, skip link, saved tables, collapsed rows, late charts and print."""

import pytest

from histoblend.reports.page.html import TEMPLATES
from tests.reports.conftest import CHROMIUM

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
]
PHONE = {"width": 375, "height": 700}


def links(page, *, visible=True):
    """Text of the links in the contents."""
    every = page.locator("nav.contents a").all()
    return [link.text_content() for link in every if not visible or link.is_visible()]


def current(page):
    return page.locator("nav.contents a[aria-current]").all_text_contents()


def test_first_stop_of_the_keyboard_skips_to_the_content(visit):
    page = visit()
    page.keyboard.press("Tab")
    skip = page.locator(":focus")
    assert skip.text_content() == "Skip to the content"
    assert skip.bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_contents_stay_beside_the_text_and_mark_where_the_reader_is(visit):
    from playwright.sync_api import expect

    page = visit(reduced_motion="reduce")
    titles = page.locator("main h2:not(aside h2)").all_text_contents()
    assert len(titles) >= 8
    nav = page.get_by_role("navigation", name="Contents")
    assert page.locator("nav.contents .toggle").is_hidden()
    assert current(page) == ["Verdict"]
    assert "ROC curves" not in links(page)
    page.locator("nav.contents a", has_text="Ladder").click()
    page.locator("nav.contents a", has_text="ROC curves").click()
    expect(page.locator("nav.contents a[aria-current]")).to_have_text("ROC curves")
    assert {"ROC curves", "Ladder"} <= set(links(page))
    box = nav.bounding_box()
    assert box["y"] == 0
    assert box["x"] + box["width"] <= page.locator("main").bounding_box()["x"]


def test_search_filters_sections_and_headings(visit):
    page = visit()
    sections = page.locator("#contents-list > ol > li > a").all_text_contents()
    search = page.get_by_role("searchbox", name="Search sections and headings")
    search.fill("roc curv")
    assert links(page) == ["Ladder", "ROC curves"]
    assert page.locator("nav.contents [role=status]").text_content() == "1 match"
    search.press("Enter")
    assert page.url.endswith("#ranking")
    search.fill("no such heading")
    assert links(page) == []
    assert page.locator("nav.contents [role=status]").text_content() == "0 matches"
    search.press("Escape")
    assert set(sections) <= set(links(page))


def test_on_a_phone_the_contents_fold_into_a_bar(visit):
    from playwright.sync_api import expect

    page = visit(viewport=PHONE, reduced_motion="reduce")
    toggle = page.get_by_role("button", name="Contents")
    assert links(page) == []
    assert toggle.get_attribute("aria-expanded") == "false"
    toggle.focus()
    page.keyboard.press("Enter")
    assert toggle.get_attribute("aria-expanded") == "true"
    assert len(links(page)) >= 8
    # The list covers the text instead of pushing it down, so that the reader's place stays the same.
    assert page.locator("nav.contents").bounding_box()["height"] < 60
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    page.locator("nav.contents a", has_text="How it was made").click()
    assert links(page) == []
    expect(toggle).to_have_text("Contents: How it was made")
    assert page.locator("nav.contents").bounding_box()["y"] == 0
    # The bar does not cover the heading.
    assert page.locator("#made").bounding_box()["y"] >= page.locator("nav.contents").bounding_box()["height"]


def test_a_link_to_a_part_opens_details_around_it_and_shows_it_below_the_bar(visit):
    page = visit(anchor="#within-slides", viewport=PHONE)
    assert page.locator("#within-slides").is_visible()
    assert 40 <= page.locator("#within-slides").bounding_box()["y"] <= 80


def test_small_tables_are_saved_from_the_page(visit, reports):
    page = visit()
    folder = reports["plain"].parent
    names = page.locator("button[data-file]").evaluate_all("buttons => buttons.map(button => button.dataset.file)")
    assert {"ladder.csv", "tripod.csv", "slides.csv"} <= set(names)
    assert "roc.csv" not in names  # too large
    assert "roc.csv (beside the page)" in page.locator("#ladder .files").inner_text()
    for name in ("ladder.csv", "tripod.csv"):
        with page.expect_download() as saving:
            page.get_by_role("button", name=f"Save {name}").click()
        assert saving.value.suggested_filename == name
        with open(saving.value.path(), "rb") as saved:
            assert saved.read() == (folder / name).read_bytes()


def fill_first_table(page, rows):
    """Put rows of a name and a number into the first table of the Data section, and run the tables' script again."""
    page.evaluate(
        """rows => {
          document.querySelector("#data table tbody").innerHTML =
            rows.map(([name, value]) => `<tr><th scope="row">${name}</th><td class="n">${value}</td></tr>`).join("");
        }""",
        rows,
    )
    page.evaluate(f"() => {{ {(TEMPLATES / 'tables.js').read_text(encoding='utf-8')} }}")
    return page.locator("#data table").first.locator("tbody tr")


def test_rows_of_zeros_are_collapsed(visit):
    page = visit()
    plain = "0</td><td>0.7 inconclusive"  # a number beside words
    rows = fill_first_table(page, [["a", "0.12"], ["b", "0.000"], ["c", "–"], ["d", "0 %"], ["e", plain]])
    assert [row.is_visible() for row in rows.all()] == [True, False, False, False, True]
    page.get_by_role("button", name="Show 3 rows of zeros").focus()
    page.keyboard.press("Enter")
    assert all(row.is_visible() for row in rows.all())
    assert page.get_by_role("button", name="Hide 3 rows of zeros").get_attribute("aria-expanded") == "true"


def test_long_tables_show_their_first_rows_in_the_order_of_the_reader(visit):
    page = visit()
    # Rows 0 and 1 are zeros, which do not count among the first ten.
    rows = fill_first_table(page, [[str(number), "0" if number < 2 else "1"] for number in range(20)])
    assert [row.is_visible() for row in rows.all()] == [False] * 2 + [True] * 10 + [False] * 8
    page.get_by_role("button", name="Show all 18 rows").click()
    assert [row.is_visible() for row in rows.all()] == [False] * 2 + [True] * 18
    page.get_by_role("button", name="Show 10 rows").click()
    assert sum(row.is_visible() for row in rows.all()) == 10


def test_a_few_zeros_or_rows_stay(visit):
    page = visit()
    rows = fill_first_table(page, [["a", "1"], ["b", "0"], *([str(number), "2"] for number in range(13))])
    assert all(row.is_visible() for row in rows.all())


def test_columns_of_the_ladder_are_added_on_demand(visit):
    page = visit(viewport={"width": 1300, "height": 900})
    scroll = page.locator("#ladder-table").locator("xpath=..")
    assert scroll.evaluate("box => box.scrollWidth - box.clientWidth") == 0
    table = page.locator("#ladder-table")
    assert table.get_by_text("All handcrafted features").first.is_visible()
    assert table.locator("[data-group=brier]").first.is_hidden()
    page.locator("details.columns summary").click()
    box = page.get_by_role("checkbox", name="Brier score")
    box.check()
    cells = table.locator("[data-group=brier]")
    assert all(cell.is_visible() for cell in cells.all())
    box.uncheck()
    assert table.locator("[data-group=brier]").first.is_hidden()


def test_at_most_6000_words_are_visible_at_first(visit, reports):
    page = visit()
    # Text nodes that are displayed; innerText would add the closed options of selection boxes.
    words = page.evaluate(
        """() => {
          const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
          let count = 0;
          while (walker.nextNode()) {
            const { parentElement, data } = walker.currentNode;
            if (data.trim() && parentElement.checkVisibility()) count += data.trim().split(/\\s+/).length;
          }
          return count;
        }"""
    )
    assert 1000 < words <= 6000
    assert reports["plain"].stat().st_size <= 5.5e6


def test_paper_has_every_chart_and_no_controls(visit):
    page = visit(color_scheme="dark")
    closed = page.locator("details:not([open])").count()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for selector in ("nav", ".skip", "button[data-file]", "details.columns", ".choice"):
        assert page.locator(selector).first.is_hidden()
    # 660 pixels fit between the margins of A4 and of US letter paper.
    plots = page.locator(".plot .main-svg:first-child")
    widths = plots.evaluate_all("plots => plots.map(plot => plot.getBoundingClientRect().width)")
    assert widths == pytest.approx([660] * plots.count(), abs=2)
    assert page.locator("details:not([open])").count() == closed > 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")


def test_of_many_charts_those_below_are_drawn_later_but_before_printing(browser, reports, tmp_path):
    text = reports["plain"].read_text(encoding="utf-8")
    start = text.index('<figure class="chart" data-figure="roc"')
    end = text.index("</figure>", start) + len("</figure>")
    many = tmp_path / "many.html"
    many.write_text(text[:end] + 9 * text[start:end] + text[end:], encoding="utf-8")
    page = browser.new_page()
    page.add_init_script("window.requestIdleCallback = (callback) => { window.drawNext = callback; };")
    page.goto(many.as_uri())
    drawn, late = page.locator(".plot.js-plotly-plot"), page.locator(".plot:not(.js-plotly-plot)")
    assert drawn.count() < 5
    count, last = late.count(), page.locator("figure[data-figure=roc] .plot").last
    # Its space is kept, so that nothing moves when it appears.
    before = last.bounding_box()["height"]
    assert before > 100
    page.evaluate("window.drawNext()")
    assert late.count() == count - 1
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert late.count() == 0
    assert last.bounding_box()["height"] == pytest.approx(before, abs=2)
    page.close()
