import re

import numpy as np
import pytest
from PIL import Image

from histoblend.reports.page.section import Chart, Section
from histoblend.reports.page.static_figures import WIDTH_PX, draw, write_static_figures
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


def test_every_chart_of_a_report_is_drawn_as_svg_and_png(tmp_path):
    sections = build_sections(make_inputs(0, slides=10, per_slide=20))
    paths = write_static_figures(tmp_path, sections)
    variants = [figure for section in sections for chart in section.charts.values() for _, figure in chart.variants]
    assert len(paths) == len(set(paths)) == 2 * len(variants)
    heights = sorted(figure["layout"]["height"] for figure in variants)
    sizes = [np.asarray(Image.open(path)).shape[:2] for path in paths if path.suffix == ".png"]
    assert {width for _, width in sizes} == {2 * WIDTH_PX}
    assert sorted(height // 2 for height, _ in sizes) == heights
    assert all(path.read_text("utf-8").lstrip().startswith("<?xml") for path in paths if path.suffix == ".svg")


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
    # a disc of 12 screen pixels, at two dots per pixel
    assert middle[2] == pytest.approx(np.pi * 12**2, rel=0.15)


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


def test_the_same_figure_gives_the_same_files(tmp_path):
    trace = {"type": "scatter", "mode": "lines+markers", "x": [0, 1, 2], "y": [1, 3, 2], "name": "one"}
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        drawn(tmp_path / name, trace, showlegend=True)
        files.append([(tmp_path / name / f"picture.{suffix}").read_bytes() for suffix in ("svg", "png")])
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
    assert names == ["s-c-1-one-two.svg", "s-c-1-one-two.png", "s-c-2-b.svg", "s-c-2-b.png", "s-d.svg", "s-d.png"]
