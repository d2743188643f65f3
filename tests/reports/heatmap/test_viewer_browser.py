"""The viewer in a real browser: positions, values under the pointer, and no network requests."""

import json
import shutil

import numpy as np
import pytest

from histoblend.reports.heatmap.files import regions
from histoblend.reports.heatmap.heat import colours
from histoblend.reports.heatmap.viewer import LISTED, packed, write_viewer
from tests.reports.heat_maps import VALUES, make_heat, make_summary

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
]
NASTY = "<img src=x onerror=alert(1)>\"' & </script><script>alert(2)</script>"


def test_probabilities_can_be_read_back_from_their_picture():
    red, green, blue = np.moveaxis(packed(VALUES).astype(int), 2, 0)
    np.testing.assert_array_equal(blue == 255, np.isfinite(VALUES))
    np.testing.assert_allclose((256 * red + green) / 65535, np.nan_to_num(VALUES), atol=0.5 / 65535)


def picture():
    """The made-up slide, one pixel per two pixels of the plane: white with a black frame."""
    pixels = np.full((72, 88, 3), 255, np.uint8)
    pixels[[0, -1]] = pixels[:, [0, -1]] = 0
    return pixels


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("viewers")
    heat = make_heat()
    many = make_heat(np.where(np.indices((20, 20)).sum(axis=0) % 2 == 0, 0.9, 0.1).astype(np.float32))
    none = make_heat(np.full((4, 5), np.nan, np.float32))
    nasty = make_summary(model=NASTY, point=NASTY, auc=None, regions_unread=2, tiles_unread=3, phantom_dice=0.91)
    nasty["slide"] = nasty["slide"] | {"name": NASTY, "vendor": NASTY}
    nasty["bundle"] = {"run": NASTY, "source": NASTY, "made": NASTY, "digest": NASTY}
    strange = make_summary(model="cnn", slide_context=False, flags={"blank": 0.0, "out-of-distribution": 0.5})
    zero = make_summary(tiles=0, regions=0, flags=dict.fromkeys(["blank", "out-of-distribution"], 0.0))
    for name, shown, summary in (
        ("plain", heat, make_summary()), ("nasty", heat, nasty), ("many", many, make_summary()),
        ("none", none, zero), ("strange", heat, strange),
    ):  # fmt: skip
        write_viewer(folder / f"{name}.html", shown, picture(), 2, regions(shown)[1], summary)
    return folder


def is_problem(message):
    """Whether a log message is a problem. Reading the canvas in a test also logs a warning, which is not."""
    return message.type != "log" and "willReadFrequently" not in message.text


@pytest.fixture
def visit(browser, pages):
    """Open a viewer. After the test, check that no error was logged and no request left the page."""
    contexts, problems = [], []

    def opened(name="plain", **options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if is_problem(message) else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append("dialog"), dialog.dismiss()))
        page.on(
            "request",
            lambda request: request.url.startswith(("file:", "data:", "blob:")) or problems.append(request.url),
        )
        page.goto((pages / f"{name}.html").as_uri())
        page.wait_for_selector("#view[data-ready]")
        settle(page)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def settle(page):
    """Wait until pending frames are drawn."""
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def view_position(page):
    """Level-0 position of the upper left corner, and the scale."""
    return json.loads(page.locator("#view").get_attribute("data-place"))


def escape_controls(page, x, y):
    """Screen position of a level-0 pixel."""
    left, top, scale = view_position(page)
    box = page.locator("#view").bounding_box()
    return box["x"] + (x - left) * scale, box["y"] + (y - top) * scale


def pixel(page, x, y):
    """Displayed colour at a level-0 pixel."""
    left, top, scale = view_position(page)
    return page.evaluate(
        "([x, y]) => { const view = document.getElementById('view'), ratio = devicePixelRatio;"
        " return [...view.getContext('2d').getImageData(x * ratio, y * ratio, 1, 1).data].slice(0, 3); }",
        [(x - left) * scale, (y - top) * scale],
    )


def set_range(page, name, value):
    page.evaluate(
        "([name, value]) => { const range = document.getElementById(name); range.value = value;"
        " range.dispatchEvent(new Event('input')); }",
        [name, value],
    )
    settle(page)


@pytest.mark.parametrize("ratio", [1, 2])
def test_cells_are_aligned_with_the_slide_and_read_under_the_pointer(visit, ratio):
    page = visit(device_scale_factor=ratio, viewport={"width": 1200, "height": 1300})
    set_range(page, "opacity", 100)
    page.locator("#outlines").uncheck()
    settle(page)
    expected = colours(VALUES, 0.5)
    page.locator(".zoom").evaluate("zoom => zoom.remove()")  # it covers some cells
    for row, column in np.ndindex(VALUES.shape):
        x, y = min(64 * column + 20, 350), min(64 * row + 20, 286)
        page.mouse.move(*escape_controls(page, x, y))
        said = page.locator("#readout").text_content()
        if np.isnan(VALUES[row, column]):
            assert said.startswith("no prediction")
        else:
            assert said.startswith(f"probability {VALUES[row, column]:.3f} ")
            np.testing.assert_allclose(pixel(page, x, y), expected[row, column], atol=1)
    page.mouse.move(*escape_controls(page, -3, 20))
    assert page.locator("#readout").text_content() == "outside the slide"


def test_the_whole_slide_is_shown_first_and_ends_with_its_picture(visit):
    page = visit()
    set_range(page, "opacity", 0)
    page.locator("#outlines").uncheck()
    settle(page)
    # The frame of the picture is four level-0 pixels wide; the cell inside is white.
    for x, y in ((1, 100), (350, 100), (100, 1), (100, 286)):
        assert max(pixel(page, x, y)) < 140
    assert min(pixel(page, 60, 60)) > 250
    box = page.locator("#view").bounding_box()
    for x, y in ((0, 0), (352, 288)):
        across, down = escape_controls(page, x, y)
        assert box["x"] < across < box["x"] + box["width"]
        assert box["y"] < down < box["y"] + box["height"]


def test_the_scale_bar_has_the_stated_length(visit):
    page = visit()
    for _ in range(3):
        micrometres = float(page.locator("#bar").get_attribute("data-um"))
        width = page.locator("#bar i").bounding_box()["width"]
        assert width / view_position(page)[2] * 0.486 == pytest.approx(micrometres, rel=0.02)
        assert f"{micrometres:g} µm" == page.locator("#bar span").text_content()
        page.get_by_role("button", name="Zoom in").click()
        settle(page)


def test_the_wheel_zooms_about_the_pointer_and_dragging_moves(visit):
    page = visit()
    x, y = escape_controls(page, 100, 80)
    page.mouse.move(x, y)
    before = view_position(page)[2]
    page.mouse.wheel(0, -400)
    settle(page)
    assert view_position(page)[2] > 1.3 * before
    # the browser rounds the position of the wheel event
    assert escape_controls(page, 100, 80) == pytest.approx((x, y), abs=1)
    x, y = escape_controls(page, 100, 80)
    page.mouse.down()
    page.mouse.move(x + 60, y - 30, steps=4)
    page.mouse.up()
    settle(page)
    assert escape_controls(page, 100, 80) == pytest.approx((x + 60, y - 30), abs=1.5)


def test_two_fingers_zoom(visit):
    page = visit(has_touch=True)
    before = view_position(page)[2]
    page.evaluate(
        """() => {
          const view = document.getElementById("view"), box = view.getBoundingClientRect();
          view.setPointerCapture = () => {};
          const send = (kind, id, x, y) => view.dispatchEvent(
            new PointerEvent(kind, { pointerId: id, pointerType: "touch", clientX: box.x + x, clientY: box.y + y }));
          send("pointerdown", 1, 200, 200); send("pointerdown", 2, 300, 200);
          send("pointermove", 1, 150, 200); send("pointermove", 2, 350, 200);
          send("pointerup", 1, 150, 200); send("pointerup", 2, 350, 200);
        }"""
    )
    settle(page)
    assert view_position(page)[2] == pytest.approx(2 * before, rel=0.01)


def test_keys_move_zoom_and_show_all(visit):
    page = visit()
    start = view_position(page)
    page.locator("#view").focus()
    for key in ("+", "+", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    settle(page)
    x, y, scale = view_position(page)
    assert scale > 2 * start[2]
    assert x > start[0]
    assert y > start[1]
    assert page.locator("#readout").text_content().startswith(("probability", "no prediction"))
    page.keyboard.press("0")
    settle(page)
    assert view_position(page) == pytest.approx(start)
    page.keyboard.press("-")
    settle(page)
    assert view_position(page)[2] < start[2]


def test_the_threshold_redraws_and_counts(visit):
    page = visit()
    # Cells are 31.104 µm wide; those in the last column and row are half as wide or high.
    area = np.outer([1, 1, 1, 1, 0.5], [1, 1, 1, 1, 1, 0.5]) * 0.031104**2
    known = area[np.isfinite(VALUES)].sum()
    for limit in (0.5, 0.85, 0.0, 1.0):
        set_range(page, "threshold", limit)
        positive = area[np.nan_to_num(VALUES, nan=-1) >= np.float32(limit)].sum()
        words = f"{positive:.3f} of {known:.3f} mm² ({100 * positive / known:.1f} %) reach it."
        assert page.locator("#share").text_content() == words
        assert page.locator("#threshold-value").text_content() == f"{limit:.3f}"
    page.get_by_role("button", name="Reset to 0.500").click()
    assert page.locator("#threshold-value").text_content() == "0.500"


def test_outlines_follow_the_cells(visit):
    page = visit()
    set_range(page, "opacity", 0)
    # Between the cells of 0.9 and 0.2 in the second row, but not between two cells of 0.9.
    assert pixel(page, 64, 96) == pytest.approx([122, 46, 0], abs=40)
    assert min(pixel(page, 32, 64)) > 250
    page.locator("#outlines").uncheck()
    settle(page)
    assert min(pixel(page, 64, 96)) > 250


def test_a_region_can_be_selected(visit):
    page = visit()
    button = page.get_by_role("button", name="Region 2")
    button.focus()
    page.keyboard.press("Enter")
    settle(page)
    left, top, right, bottom = map(float, button.get_attribute("data-box").split())
    x, y, scale = view_position(page)
    width, height = page.locator("#view").evaluate("view => [view.clientWidth, view.clientHeight]")
    assert ((left + right) / 2 - x) * scale == pytest.approx(width / 2, abs=1)
    assert ((top + bottom) / 2 - y) * scale == pytest.approx(height / 2, abs=1)
    assert button.get_attribute("aria-current") == "true"


def test_many_regions_are_listed_in_part(visit):
    page = visit("many")
    assert page.locator(".regions button").count() == LISTED
    assert page.get_by_text("150 smaller regions are in regions.geojson.").is_visible()


def test_a_slide_without_tissue_says_so(visit):
    page = visit("none")
    assert "No tissue was found" in page.locator(".lead").text_content()
    assert page.locator(".regions").count() == 0
    assert page.locator("#share").text_content().startswith("Nothing was predicted")


def test_reasons_for_caution_are_shown(visit):
    said = visit().locator(".warnings").text_content()
    for words in (
        "Not for diagnosis",
        "lymph nodes of breast cancer",
        "40 % of the tiles are unlike",
        "do not trust",
    ):
        assert words in said


def test_the_headline_has_one_pair_of_areas_and_their_share(visit):
    said = " ".join(visit().locator(".lead").text_content().split())
    assert said == "0.012 of 0.024 mm² (50.0 %) predicted positive, in 4 regions (the largest: 0.009 mm²)."


def test_no_share_is_stated_if_most_tiles_are_unlike_the_training_patches(visit):
    lead = visit("strange").locator(".lead").text_content()
    assert "50 % of the tiles are unlike all patches" in lead
    assert "no share of" in lead
    assert "mm²" not in lead


def test_the_viewer_says_whether_patches_are_compared(visit):
    words = {"plain": "compares each patch with the other patches", "strange": "predicts each patch by itself"}
    for name, expected in words.items():
        assert expected in visit(name).locator(".warnings").text_content()
    model = visit("plain").locator("tr", has_text="Model").text_content()
    assert "logistic regression on handcrafted features with slide context (logistic_context)" in model


def test_names_that_look_like_markup_show_as_text(visit):
    page = visit("nasty")
    assert page.locator("h1").text_content() == f"Heat map of {NASTY}"
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("script:not([type])").count() == 1
    assert "3 tiles are in areas of the slide that cannot be read" in page.locator(".warnings").text_content()
    assert "Dice overlap of 0.910" in page.locator(".lead").text_content()


@pytest.mark.parametrize("name", ["plain", "nasty", "many", "none"])
def test_nothing_is_wider_than_a_phone(visit, name):
    page = visit(name, viewport={"width": 375, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    assert page.locator("#stage").bounding_box()["width"] > 300


def test_the_slide_stays_in_the_middle_when_the_window_changes(visit):
    page = visit()
    page.set_viewport_size({"width": 700, "height": 800})
    settle(page)
    box = page.locator("#view").bounding_box()
    x, y = escape_controls(page, 176, 144)
    assert (x, y) == pytest.approx((box["x"] + box["width"] / 2, box["y"] + box["height"] / 2), abs=2)


def test_every_control_has_a_name(visit):
    page = visit()
    for element in page.locator("button, input, canvas[tabindex]").all():
        name = element.evaluate(
            "e => e.ariaLabel || e.textContent.trim() || [...(e.labels ?? [])].map(label => label.textContent).join()"
        )
        assert name.strip()


def test_dark_scheme_is_dark(visit):
    page = visit(color_scheme="dark")
    red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(red, green, blue) < 60
    red, green, blue = page.evaluate(
        "getComputedStyle(document.getElementById('bar')).color.match(/\\d+/g).map(Number)"
    )
    assert min(red, green, blue) > 180
