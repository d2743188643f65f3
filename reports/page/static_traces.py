"""Traces, shapes and notes of a Plotly figure, drawn by Matplotlib."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from histoblend.models.heads.registry import HEADS
from histoblend.models.names import RUNGS, RUNGS_WITHOUT_HEAD, SINGLE_FAMILIES
from histoblend.reports.page.figures import row_name, short_name
from histoblend.reports.words import FAMILY_WORDS, RUNG_WORDS, head_words, model_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Screen pixels per inch.
PX = 100
INK = "#1c2126"
#: References of a position that is a share of the panel, not a value on its axis.
RELATIVE = ("paper", "x domain", "y domain")
#: Values are written on the bars of a trace with at most this many bars, and on the cells of a map with at most these.
MOST_BARS, MOST_CELLS = 40, 200

_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3))}
_SYMBOLS = {
    "circle": "o",
    "diamond": "D",
    "square": "s",
    "x": "x",
    "cross": "P",
    "triangle-up": "^",
    "star": "*",
    "line-ns": "|",
}


def check_kind(kind: str, supported: Mapping[str, Any], what: str) -> str:
    """Return the kind of a part of a figure if it is supported.

    Raises
    ------
    ValueError
        It is not.
    """
    if kind not in supported:
        raise ValueError(
            f"a {what} must be one of {sorted(supported)}; got {kind!r}. Add it to reports/page/static_traces.py."
        )
    return kind


def plain_text(text: object) -> str:
    """Convert Plotly's text, which uses some HTML, to plain text."""
    return html.unescape(re.sub(r"<br ?/?>", "\n", str(text)).replace("<b>", "").replace("</b>", ""))


@cache
def _full_names() -> dict[str, str]:
    """Short names of all models, on one line or two, such as ``all features · XGBoost``, and their names in words."""
    words = {model: model_words(model).removeprefix("the ") for model in RUNGS_WITHOUT_HEAD}
    for head in HEADS:
        rungs = {rung: RUNG_WORDS[rung] for rung in RUNGS if rung not in RUNGS_WITHOUT_HEAD}
        families = {family: f"{FAMILY_WORDS[family]} features" for family in SINGLE_FAMILIES}
        words |= {f"{head}_{rung}": f"{head_words(head)} on {text}" for rung, text in (families | rungs).items()}
    return {plain_text(name(model)): text for model, text in words.items() for name in (short_name, row_name)}


def full_text(text: object, width: int = 0) -> str:
    """Plain text, with the short name of a model in words, in lines of at most `width` characters if given."""
    words = plain_text(text)
    begins = [name for name in _full_names() if words.startswith(name) and words[len(name) :][:1] in ("", ",", ":")]
    if begins:
        name = max(begins, key=len)
        words = _full_names()[name] + words[len(name) :]
    return "\n".join(line for part in words.split("\n") for line in wrap(part, width) or [""]) if width else words


def _values(values: Sequence[Any], axis: str, ticks: dict[str, list[str]]) -> np.ndarray:
    """Return the positions of values along an axis. Names get numbers in order of first appearance."""
    if any(isinstance(value, str) for value in values):
        names = ticks.setdefault(axis, [])
        names += [name for name in dict.fromkeys(map(str, values)) if name not in names]
        return np.array([names.index(str(value)) for value in values], dtype=float)
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _scatter(axes: Axes, trace: Mapping[str, Any], ticks: dict[str, list[str]]) -> None:
    x, y = _values(trace["x"], "x", ticks), _values(trace["y"], "y", ticks)
    mode = trace.get("mode", "lines")
    line, marker, opacity = trace.get("line", {}), trace.get("marker", {}), trace.get("opacity", 1.0)
    label = _legend_text(trace)
    if "fill" in trace:
        _fill(axes, trace, x, y, opacity)
    if "lines" in mode:
        style = _DASHES[check_kind(line.get("dash", "solid"), _DASHES, "dash")]
        step = {"hv": "steps-post", "vh": "steps-pre"}.get(line.get("shape", ""), "default")
        axes.plot(
            x,
            y,
            color=line.get("color", INK),
            linewidth=0.8 * line.get("width", 2),
            linestyle=style,
            drawstyle=step,
            alpha=opacity,
            label=label,
        )
        label = "_"
    for axis in ("x", "y"):
        if error := trace.get(f"error_{axis}"):
            _errors(axes, axis, x, y, error, ticks)
    if "markers" in mode:
        _markers(axes, x, y, marker, opacity, label)
    if "text" in mode:
        for i, text in enumerate(trace["text"]):
            axes.annotate(
                plain_text(text),
                (x[i], y[i]),
                textcoords="offset points",
                xytext=(0, 4),
                ha="center",
                parse_math=False,
            )


def _legend_text(trace: Mapping[str, Any]) -> str:
    """Text of a trace in the legend; Matplotlib leaves out those that begin with an underscore."""
    return full_text(trace["name"], 44) if trace.get("showlegend", True) and trace.get("name") else "_"


def _fill(axes: Axes, trace: Mapping[str, Any], x: np.ndarray, y: np.ndarray, opacity: float) -> None:
    """Fill a closed band, or the area down to zero or to the previous trace."""
    colour = _colour(trace.get("fillcolor", trace.get("line", {}).get("color", INK)))
    kind = check_kind(trace["fill"], {"toself": 0, "tozeroy": 0, "tonexty": 0}, "fill")
    style: dict[str, Any] = {
        "facecolor": colour,
        "linewidth": 0,
        "alpha": opacity if opacity < 1 or len(colour) == 4 else 0.2,
    }
    if kind == "toself":
        axes.fill(x, y, label="_", **style)
    elif kind == "tozeroy":
        axes.fill_between(x, y, 0, label="_", **style)
    else:
        previous = axes.lines[-1]
        axes.fill(
            np.concatenate([x, np.asarray(previous.get_xdata(), float)[::-1]]),
            np.concatenate([y, np.asarray(previous.get_ydata(), float)[::-1]]),
            label="_",
            **style,
        )


def _errors(
    axes: Axes, axis: str, x: np.ndarray, y: np.ndarray, error: Mapping[str, Any], ticks: dict[str, list[str]]
) -> None:
    """Draw a line from the lower to the upper end of each interval."""
    high = _values(error["array"], "", ticks)
    low = _values(error["arrayminus"], "", ticks) if "arrayminus" in error else high
    draw_lines = axes.hlines if axis == "x" else axes.vlines
    centre, across = (x, y) if axis == "x" else (y, x)
    finite = np.isfinite(centre) & np.isfinite(low) & np.isfinite(high)
    colour = error.get("color", INK)
    draw_lines(across[finite], (centre - low)[finite], (centre + high)[finite], colors=colour, linewidth=1.2, label="_")


def _markers(axes: Axes, x: np.ndarray, y: np.ndarray, marker: Mapping[str, Any], opacity: float, label: str) -> None:
    """Draw points. Plotly's sizes are diameters in pixels, Matplotlib's are areas in square points."""
    symbols = marker.get("symbol", "circle")
    # One scatter call per symbol, because Matplotlib supports one symbol per call.
    names = np.array([symbols] * len(x) if isinstance(symbols, str) else symbols, dtype=object)
    sizes = np.broadcast_to(np.asarray(marker.get("size", 7), float), len(x)) * 72 / PX
    colours = marker.get("color", INK)
    several = not isinstance(colours, str)
    for symbol in dict.fromkeys(names):
        inside = names == symbol
        hollow = symbol.endswith("-open")
        shape = _SYMBOLS[check_kind(symbol.removesuffix("-open"), _SYMBOLS, "marker")]
        style: dict[str, Any] = {"s": sizes[inside] ** 2, "marker": shape, "alpha": marker.get("opacity", opacity)}
        if several and len(colours) and not isinstance(colours[0], str):
            style |= {"c": np.asarray(colours, float)[inside], "cmap": _colour_map(marker.get("colorscale"))}
            style |= {"vmin": marker.get("cmin"), "vmax": marker.get("cmax"), "linewidths": 0}
        else:
            selected = [colour for colour, used in zip(colours, inside, strict=True) if used] if several else colours
            style |= {"facecolors": "none", "edgecolors": selected} if hollow else {"color": selected}
            style["linewidths"] = 1.2 if hollow or shape in "x|" else 0
        drawn = axes.scatter(x[inside], y[inside], label=label, zorder=3, **style)
        label = "_"
        if marker.get("showscale"):
            _colour_bar(axes, drawn, marker)


def _colour_bar(axes: Axes, drawn: Any, options: Mapping[str, Any]) -> None:
    bar = options.get("colorbar", {})
    title = plain_text(bar.get("title", {}).get("text", ""))
    if axes.figure is not None:
        shown = axes.figure.colorbar(drawn, ax=axes, label=title, ticks=bar.get("tickvals"), aspect=30)
        shown.outline.set_visible(False)


def _bar(axes: Axes, trace: Mapping[str, Any], ticks: dict[str, list[str]]) -> None:
    horizontal = trace.get("orientation", "v") == "h"
    categories, lengths = (trace["y"], trace["x"]) if horizontal else (trace["x"], trace["y"])
    positions = _values(categories, "y" if horizontal else "x", ticks)
    size = _values(lengths, "", ticks)
    base = trace.get("base", 0)
    start = _values(base, "", ticks) if not isinstance(base, int | float) else np.full(len(size), float(base))
    colour = trace.get("marker", {}).get("color", INK)
    width = trace.get("width", 0.8)
    label = _legend_text(trace)
    if horizontal:
        axes.barh(positions, size, height=width, left=start, color=colour, label=label)
    else:
        axes.bar(positions, size, width=width, bottom=start, color=colour, label=label)
    error = trace.get("error_x" if horizontal else "error_y")
    if error:
        x, y = (size + start, positions) if horizontal else (positions, size + start)
        _errors(axes, "x" if horizontal else "y", x, y, error, ticks)
    if len(size) <= MOST_BARS:
        texts = trace.get("text") or [number_text(value) for value in size]
        reach = _values(error["array"], "", ticks) if error else 0
        far = np.where(size < 0, start + size - reach, start + size + reach)
        _bar_values(axes, positions, far, size < 0, texts, horizontal)


def _bar_values(
    axes: Axes, positions: np.ndarray, ends: np.ndarray, below: np.ndarray, texts: Sequence[str], horizontal: bool
) -> None:
    """Write values beyond the ends of bars."""
    for position, end, negative, text in zip(positions, ends, below, texts, strict=True):
        if np.isfinite(end):
            shift = -4 if negative else 4
            axes.annotate(
                plain_text(text),
                (end, position) if horizontal else (position, end),
                textcoords="offset points",
                xytext=(shift, 0) if horizontal else (0, shift),
                ha=("right" if negative else "left") if horizontal else "center",
                va="center" if horizontal else ("top" if negative else "bottom"),
                fontsize=8,
                parse_math=False,
            )
    # Room for the values, unless the figure states its range.
    (axes.set_xmargin if horizontal else axes.set_ymargin)(0.12)
    axes.autoscale_view()


def number_text(value: float) -> str:
    """Three digits, with a true minus sign."""
    text = f"{value:.3f}" if abs(value) < 1 else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if np.isnan(value) else text.replace("-", "−")


def _heatmap(axes: Axes, trace: Mapping[str, Any], ticks: dict[str, list[str]]) -> None:
    x, y = _values(trace["x"], "x", ticks), _values(trace["y"], "y", ticks)
    table = np.array([[np.nan if value is None else value for value in row] for row in trace["z"]], dtype=float)
    colours = axes.pcolormesh(
        x,
        y,
        table,
        cmap=_colour_map(trace.get("colorscale")),
        vmin=trace.get("zmin"),
        vmax=trace.get("zmax"),
        shading="nearest",
        rasterized=table.size > 10_000,
    )
    if trace.get("showscale", True):
        _colour_bar(axes, colours, trace)
    if table.size <= MOST_CELLS:
        dark = np.asarray(colours.cmap(colours.norm(table))) @ (0.299, 0.587, 0.114, 0) < 0.55
        for (row, column), value in np.ndenumerate(table):
            text = "" if np.isnan(value) else f"{value:.2f}".replace("-", "−")
            colour = "white" if dark[row, column] else INK
            axes.text(float(x[column]), float(y[row]), text, ha="center", va="center", fontsize=8, color=colour)


#: How each type of trace is drawn.
_TRACES: dict[str, Callable[[Axes, Mapping[str, Any], dict[str, list[str]]], None]] = {
    "scatter": _scatter,
    # The same points, which a browser draws with the GPU.
    "scattergl": _scatter,
    "bar": _bar,
    "heatmap": _heatmap,
}


def draw_trace(axes: Axes, trace: Mapping[str, Any], ticks: dict[str, list[str]]) -> None:
    """Draw a trace. `ticks` collects the names along each axis."""
    _TRACES[check_kind(trace.get("type", "scatter"), _TRACES, "trace")](axes, trace, ticks)


def draw_shape(axes: Axes, shape: Mapping[str, Any]) -> None:
    """Draw a line or a rectangle, in data coordinates or (``paper``) as a fraction of the axes."""
    from matplotlib.patches import Rectangle
    from matplotlib.transforms import blended_transform_factory

    kind = check_kind(shape["type"], {"line": 0, "rect": 0}, "shape")
    x_transform, y_transform = (
        axes.transAxes if shape.get(f"{axis}ref", axis) in RELATIVE else axes.transData for axis in ("x", "y")
    )
    transform = blended_transform_factory(x_transform, y_transform)
    x, y = (shape["x0"], shape["x1"]), (shape["y0"], shape["y1"])
    line = shape.get("line", {})
    if kind == "line":
        style = _DASHES[check_kind(line.get("dash", "solid"), _DASHES, "dash")]
        axes.plot(
            x, y, transform=transform, color=line.get("color", INK), linewidth=0.8, linestyle=style, zorder=1, label="_"
        )
        return
    colour = _colour(shape.get("fillcolor", INK))
    opacity = shape.get("opacity", 1.0)
    box = Rectangle(
        (x[0], y[0]), x[1] - x[0], y[1] - y[0], transform=transform, facecolor=colour, alpha=opacity, zorder=0
    )
    axes.add_patch(box)


def draw_note(axes: Axes, note: Mapping[str, Any]) -> None:
    """Draw text at a position."""
    from matplotlib.transforms import ScaledTranslation, blended_transform_factory

    x_transform, y_transform = (
        axes.transAxes if note.get(f"{axis}ref", axis) in RELATIVE else axes.transData for axis in ("x", "y")
    )
    # Plotly shifts in pixels, upwards and to the right.
    shift = ScaledTranslation(note.get("xshift", 0) / PX, note.get("yshift", 0) / PX, axes.figure.dpi_scale_trans)
    axes.text(
        note["x"],
        note["y"],
        full_text(note["text"]),
        transform=blended_transform_factory(x_transform, y_transform) + shift,
        ha={"auto": "center"}.get(note.get("xanchor", "auto"), note.get("xanchor", "center")),
        va={"auto": "center", "middle": "center"}.get(note.get("yanchor", "auto"), note.get("yanchor", "center")),
        fontsize=8,
        color="#59626b",
        parse_math=False,
    )


def _colour(colour: str) -> tuple[float, ...]:
    """Parse ``#rrggbb`` or ``rgba(r, g, b, a)`` into red, green, blue and, if given, opacity."""
    if match := re.fullmatch(r"rgba?\(([^)]+)\)", colour):
        parts = [float(part) for part in match[1].split(",")]
        return (*(part / 255 for part in parts[:3]), *parts[3:])
    from matplotlib.colors import to_rgb

    return to_rgb(colour)


def _colour_map(scale: str | Sequence[tuple[float, str]] | None) -> Any:
    """Convert Plotly's colour scale, a name or a list of stops, to Matplotlib's."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    if scale is None or isinstance(scale, str):
        return colormaps[(scale or "cividis").lower()]
    return LinearSegmentedColormap.from_list("stops", [(position, _colour(colour)) for position, colour in scale])
