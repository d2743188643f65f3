"""The copy of plotly.js that pages contain: its version, its traces and its licence."""

import json
import re

import pytest
from plotly.offline import get_plotlyjs_version

from histoblend.reports.page.html import PLOTLY, TEMPLATES, plotly_script
from histoblend.reports.report import build_sections
from tests.reports.cohorts import make_inputs


def trace_types(value):
    """Types of all traces in figures that are nested in lists and dictionaries."""
    if isinstance(value, dict):
        traces = value.get("data", []) if "layout" in value else []
        return {trace.get("type", "scatter") for trace in traces}.union(*map(trace_types, value.values()))
    return set().union(*map(trace_types, value)) if isinstance(value, (list, tuple)) else set()


def test_plotly_has_the_version_of_the_python_package():
    # The Python package checks figures in tests. After its update, update the vendored file too: see CONTRIBUTING.md.
    version = re.search(r"plotly\.js \(cartesian - minified\) v([\d.]+)", plotly_script()[:200])
    assert version is not None
    assert version[1] == get_plotlyjs_version()
    assert "MIT License" in (PLOTLY.parent / "plotly-LICENSE.txt").read_text(encoding="utf-8")


def test_plotly_cannot_end_its_own_script_element():
    assert "</script" not in plotly_script().lower()


@pytest.mark.parametrize("where", ["python", "scripts"])
def test_plotly_has_every_trace_type_in_use(where):
    if where == "python":
        charts = [chart for section in build_sections(make_inputs(0)) for chart in section.charts.values()]
        used = trace_types([figure for chart in charts for _, figure in chart.variants])
    else:
        texts = [path.read_text(encoding="utf-8") for path in TEMPLATES.glob("*.js")]
        # A quoted type followed by a trace's mode; buttons and error bars have types as well.
        used = {kind for text in texts for kind in re.findall(r'type: "(\w+)", mode:', text)}
    assert used
    for kind in used:
        # How a trace module registers itself, in minified code.
        assert re.search(rf'moduleType:"trace",name:{json.dumps(kind)}[,}}]', plotly_script()), kind
