import os
import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from histoblend.models.heads.registry import HEADS
from histoblend.models.names import SINGLE_FAMILIES
from histoblend.reports.page import figures
from histoblend.reports.page.section import Chart, Section
from histoblend.reports.page.static_figures import SUFFIXES, WIDTH_PX, draw, picture_of, title_of, write_static_figures
from histoblend.reports.page.static_traces import full_text, number_text
from histoblend.reports.report import build_sections
from tests.reports.cohorts import make_inputs

FRAME = {"xaxis": {"range": [0, 4]}, "yaxis": {"range": [0, 4]}, "height": 400, "showlegend": False}


def drawn(folder, trace, **layout):
    """Draw one trace. Return its RGB picture of shape (height, width, 3) and the text of its SVG."""
    draw({"data": [trace], "layout": FRAME | layout}, folder / "picture")
    return np.asarray(Image.open(folder / "picture.png").convert("RGB")), (folder / "picture.svg").read_text("utf-8")


def centre_of(picture, colour):
    """Centre of the pixels of a colour, as fractions of width and height from the lower left, and their number."""
    rows, columns = np.nonzero((np.abs(picture.astype(int) - colour) < 30).all(axis=2))
    return columns.mean() / picture.shape[1], 1 - rows.mean() / picture.shape[0], len(rows)


@pytest.fixture(scope="module")
def sections():
    return build_sections(make_inputs(0, slides=10, per_slide=20))


def charts_of(sections):
    """Section, name, chart, text and figure of every variant."""
    for section in sections:
        for name, chart in section.charts.items():
            for words, figure in chart.variants:
                yield section, name, chart, words, figure


def test_every_chart_of_a_report_is_written_in_three_formats(tmp_path, sections):
    few = [section for section in sections if section.name in ("ladder", "ensemble")]
    variants = sum(len(chart.variants) for section in few for chart in section.charts.values())
    paths = write_static_figures(tmp_path, few)
    assert len(paths) == len(set(paths)) == 3 * variants
    for path in paths:
        content = path.read_bytes()
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.width == 3 * WIDTH_PX
                assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        else:
            assert content.startswith(b"<?xml" if path.suffix == ".svg" else b"%PDF")


def test_nothing_is_cut_off_and_no_name_is_shortened(sections):
    """All text of every chart is inside its picture, and no legend covers the title."""
    for section, name, chart, words, figure in charts_of(sections):
        picture = picture_of(figure, title_of(section, name, chart, words, figure))
        picture.draw_without_rendering()
        texts = [text for text in picture.findobj(Text) if text.get_text().strip() and text.get_visible()]
        texts = [text for text in texts if not is_beyond_its_axis(text)]
        for text in texts:
            box = text.get_window_extent()
            where = f"{section.name}-{name}, {words}: {text.get_text()!r}"
            assert -1 <= box.x0 <= box.x1 <= picture.bbox.x1 + 1, where
            assert -1 <= box.y0 <= box.y1 <= picture.bbox.y1 + 1, where
            assert " · " not in text.get_text(), where
        for legend in picture.legends:
            assert not legend.get_window_extent().overlaps(picture._suptitle.get_window_extent()), (section.name, name)


def is_beyond_its_axis(text):
    """Whether a text is the label of a tick outside the range of its axis, which Matplotlib does not draw."""
    for axes in text.figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if text in (tick.label1, tick.label2):
                    return not low <= tick.get_loc() <= high
    return False


def test_every_title_names_split_and_model(sections):
    titles = [title_of(*chart) for chart in charts_of(sections)]
    for title in titles:
        assert re.search(r"out of fold|test slide|while it was trained|of a test", title), title
        assert re.search(r"[Mm]odels?\b|[Ee]nsemble|network|regression|XGBoost|prevalence", title), title
    assert len(set(titles)) == len(titles)


def test_axes_from_0_to_1_are_square_and_others_are_not(sections):
    roc = next(figure for section, name, *_, figure in charts_of(sections) if (section.name, name) == ("ladder", "roc"))
    shares = {"range": [-0.02, 1.02]}
    for figure, square in (
        (roc, True),
        ({"data": [], "layout": {"xaxis": shares, "yaxis": shares}}, True),
        ({"data": [], "layout": FRAME}, False),
    ):
        picture = picture_of(figure, "title")
        picture.draw_without_rendering()
        box = picture.axes[0].get_window_extent()
        assert bool(abs(box.width - box.height) < 1) is square
        assert box.width > 250


def test_values_are_written_beyond_the_ends_of_bars():
    trace = {"type": "bar", "orientation": "h", "y": [0, 1, 2], "x": [2, -1.5, 0.1234], "base": [0, 2, 0.5]}
    picture = picture_of({"data": [trace], "layout": {}})
    texts = {text.get_text(): text.xy for text in picture.axes[0].texts}
    assert texts == {"2": (2, 0), "−1.5": (0.5, 1), "0.123": (pytest.approx(0.6234), 2)}
    error = {"array": [0.5], "arrayminus": [0.2]}
    picture = picture_of(
        {"data": [{"type": "bar", "x": ["a"], "y": [2], "error_y": error, "text": ["two"]}], "layout": {}}
    )
    assert [(text.get_text(), text.xy) for text in picture.axes[0].texts] == [("two", (0, 2.5))]


def test_maps_and_coloured_points_have_a_colour_bar():
    bar = {"title": {"text": "percentile"}, "tickvals": [0, 100]}
    marker = {"color": [0, 100], "cmin": 0, "cmax": 100, "showscale": True, "colorbar": bar}
    points = {"type": "scatter", "mode": "markers", "x": [0, 1], "y": [0, 1], "marker": marker}
    heat = {"type": "heatmap", "x": ["a", "b"], "y": ["c"], "z": [[0.25, None]], "colorbar": bar}
    for trace in (points, heat):
        picture = picture_of({"data": [trace], "layout": {}})
        assert picture.axes[1].get_ylabel() == "percentile"
    assert [text.get_text() for text in picture.axes[0].texts] == ["0.25", ""]


def test_panels_are_drawn_apart():
    data = [
        {"x": [1, 2], "y": [0, 1], "mode": "markers", "xaxis": "x1", "yaxis": "y1"},
        {"x": [8, 9], "y": [0, 1], "mode": "markers", "xaxis": "x2", "yaxis": "y2"},
    ]
    layout = {
        "xaxis": {"title": {"text": "upper"}, "anchor": "y1"}, "yaxis": {"domain": [0.6, 1], "anchor": "x1"},
        "xaxis2": {"title": {"text": "lower"}, "anchor": "y2"}, "yaxis2": {"domain": [0, 0.4], "anchor": "x2"},
        "shapes": [{"type": "line", "x0": 8, "x1": 8, "y0": 0, "y1": 1, "xref": "x2", "yref": "y2"}],
    }  # fmt: skip
    upper, lower = picture_of({"data": data, "layout": layout}).axes
    assert [upper.get_xlabel(), lower.get_xlabel()] == ["upper", "lower"]
    assert upper.get_position().y0 > lower.get_position().y1
    assert upper.get_xlim()[1] < 3
    assert lower.get_xlim()[0] > 7
    assert (len(upper.lines), len(lower.lines)) == (0, 1)


def test_models_have_full_names():
    assert full_text("all features · XGBoost") == "XGBoost on handcrafted features and embeddings together"
    assert full_text("local binary patterns · logistic: sensitivity") == (
        "logistic regression on local binary patterns features: sensitivity"
    )
    assert full_text("ensemble") == "ensemble"
    assert full_text("a &lt;slide&gt;<br>b") == "a <slide>\nb"
    assert full_text("all features · XGBoost", 30) == "XGBoost on handcrafted\nfeatures and embeddings\ntogether"
    for head in HEADS:
        for family in SINGLE_FAMILIES:
            assert " · " not in full_text(figures.short_name(f"{head}_{family}"))


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "0.123"), (-0.5, "−0.500"), (12.345, "12.3"), (1234.5, "1,234"), (float("nan"), "")]
)
def test_numbers_on_bars(value, text):
    assert number_text(value) == text


def test_points_are_drawn_at_their_values(tmp_path):
    trace = {"type": "scatter", "mode": "markers", "y": [3], "marker": {"color": "#0072B2", "size": 12}}
    centres = []
    for x in (1, 2, 3):
        picture, _ = drawn(tmp_path, trace | {"x": [x]})
        centres.append(centre_of(picture, (0, 114, 178)))
    left, middle, right = centres
    assert left[1] == pytest.approx(middle[1], abs=0.002)
    assert middle[1] > 0.6
    assert middle[0] - left[0] == pytest.approx(right[0] - middle[0], abs=0.002)
    assert middle[0] - left[0] > 0.15
    # a disc of 12 screen pixels, at three dots per pixel
    assert middle[2] == pytest.approx(np.pi * 18**2, rel=0.15)


def test_missing_numbers_leave_a_gap(tmp_path):
    trace = {"type": "scatter", "mode": "lines", "line": {"color": "#D55E00"}, "y": [2, 2, 2, 2, 2]}
    whole, _ = drawn(tmp_path, trace | {"x": [0, 1, 2, 3, 4]})
    gap, _ = drawn(tmp_path, trace | {"x": [0, 1, None, 3, 4]})
    assert centre_of(gap, (213, 94, 0))[2] == pytest.approx(centre_of(whole, (213, 94, 0))[2] / 2, rel=0.1)


def test_bars_start_at_their_base(tmp_path):
    trace = {"type": "bar", "orientation": "h", "y": [2], "x": [1], "marker": {"color": "#009E73"}}
    zero, _ = drawn(tmp_path, trace)
    moved, _ = drawn(tmp_path, trace | {"base": [2]})
    assert centre_of(moved, (0, 158, 115))[0] - centre_of(zero, (0, 158, 115))[0] > 0.3
    assert centre_of(moved, (0, 158, 115))[2] == pytest.approx(centre_of(zero, (0, 158, 115))[2], rel=0.02)


def test_heatmap_keeps_its_rows_and_can_be_reversed(tmp_path):
    trace = {"type": "heatmap", "x": ["a", "b"], "y": ["c", "d"], "z": [[1, 0], [0, 0]], "zmin": 0, "zmax": 1}
    trace |= {"colorscale": [[0, "#ffffff"], [1, "#D55E00"]], "showscale": False}
    for reversed_, upper in ((False, False), (True, True)):
        axis = {"autorange": "reversed"} if reversed_ else {}
        picture, _ = drawn(tmp_path, trace, xaxis={}, yaxis=axis)
        x, y, _ = centre_of(picture, (213, 94, 0))
        assert x < 0.5
        assert bool(y > 0.5) is upper


def test_text_is_drawn_literally(tmp_path):
    trace = {"type": "scatter", "mode": "lines", "x": [0, 4], "y": [1, 2], "name": "5 $ &lt;img&gt; _x_ $<br>more"}
    ticks = {"tickvals": [1], "ticktext": ["slide &lt;b&gt; $1^2$"], "range": [0, 4], "title": {"text": "a &amp; b"}}
    _, text = drawn(tmp_path, trace, yaxis=ticks, showlegend=True)
    visible = re.sub(r"<[^>]+>", "", text)
    for expected in ("slide &lt;b&gt; $1^2$", "a &amp; b", "5 $ &lt;img&gt; _x_ $"):
        assert expected in visible


def test_rare_characters_come_from_the_whole_font(tmp_path):
    draw(
        {"data": [{"type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1]}], "layout": {}},
        tmp_path / "a",
        "β → ✓",
    )
    fonts = set(re.findall(rb"/BaseFont /[A-Z]{6}\+([\w-]+)", (tmp_path / "a.pdf").read_bytes()))
    assert fonts == {b"HistoblendSans", b"HistoblendSans-Bold", b"DejaVuSans-Bold"}


def test_the_same_figure_gives_the_same_files(tmp_path):
    code = (
        "import sys, pathlib; from histoblend.reports.page.static_figures import draw; "
        "trace = dict(type='scatter', mode='lines+markers', x=[0, 1, 2], y=[1, 3, 2], name='one'); "
        "draw({'data': [trace], 'layout': {'showlegend': True}}, pathlib.Path(sys.argv[1]), 'A title')"
    )
    files = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, str(tmp_path / seed)]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": seed})
        files.append([(tmp_path / f"{seed}.{suffix}").read_bytes() for suffix in SUFFIXES])
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        ({"type": "pie"}, "a trace must be one of .*; got 'pie'"),
        (
            {"x": [0], "y": [0], "mode": "markers", "marker": {"symbol": "hexagram"}},
            "a marker must be one of .*; got 'hexagram'",
        ),
        ({"x": [0], "y": [0], "line": {"dash": "5px"}}, "a dash must be one of .*; got '5px'"),
    ],
)
def test_unsupported_figures_are_refused(tmp_path, trace, message):
    with pytest.raises(ValueError, match=message):
        drawn(tmp_path, trace)


def test_variants_are_named_after_their_text(tmp_path):
    figure = {"data": [], "layout": FRAME}
    section = Section(
        "s", "S", {}, charts={"c": Chart("", [("One / two", figure), ("<b>", figure)]), "d": Chart("", [("x", figure)])}
    )
    names = [path.name for path in write_static_figures(tmp_path, [section])]
    assert names == [f"{stem}.{suffix}" for stem in ("s-c-1-one-two", "s-c-2-b", "s-d") for suffix in SUFFIXES]
