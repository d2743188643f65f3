"""The page's charts as SVG and PNG files for papers and presentations, drawn by Matplotlib from the same figures."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoblend.data.workers import count_workers
from histoblend.reports.page.section import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_PX = 900
HEIGHT_PX = 450
#: Screen pixels per inch, and dots per inch of the PNG.
PX = 100
PNG_DPI = 200
INK = "#1c2126"

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
#: Style of all images. The SVG keeps text as text and does not depend on when or how often it is drawn.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "histoblend",
    "font.size": 9,
    "axes.edgecolor": "#59626b",
}


def write_static_figures(folder: Path, sections: Sequence[Section], *, workers: int = 1) -> list[Path]:
    """Draw every chart of the page as ``<section>-<chart>[-<variant>].svg`` and ``.png``.

    Parameters
    ----------
    folder : Path
        Created if missing.
    sections : sequence of Section
    workers : int
        Number of processes, -1 for one per core.

    Returns
    -------
    list of Path
        Paths of the images, two per variant.

    Raises
    ------
    ValueError
        A figure contains something that :func:`draw` does not support.
    """
    from joblib import Parallel, delayed

    folder.mkdir(parents=True, exist_ok=True)
    tasks: list[tuple[dict[str, Any], Path]] = []
    for section in sections:
        for name, chart in section.charts.items():
            for number, (words, figure) in enumerate(chart.variants, 1):
                suffix = f"-{number}-{_file_name(words)}" if len(chart.variants) > 1 else ""
                tasks.append((figure, folder / f"{section.name}-{name}{suffix}"))
    # One batch per worker, not one per figure: starting Matplotlib in a process takes longer than drawing a figure.
    workers = count_workers(workers)
    batches = [tasks[start::workers] for start in range(workers)]
    Parallel(n_jobs=workers)(delayed(_draw_all)(batch) for batch in batches if batch)
    return [stem.with_name(f"{stem.name}.{suffix}") for _, stem in tasks for suffix in ("svg", "png")]


def draw(figure: Mapping[str, Any], stem: Path) -> None:
    """Draw one Plotly figure into ``<stem>.svg`` and ``<stem>.png``.

    Parameters
    ----------
    figure : mapping
        ``{"data": [...], "layout": {...}}`` with traces of type scatter, bar or heatmap.
    stem : Path

    Raises
    ------
    ValueError
        A trace or shape has another type.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layout = figure["layout"]
    with matplotlib.rc_context(_STYLE):
        size = (WIDTH_PX / PX, layout.get("height", HEIGHT_PX) / PX)
        picture = Figure(figsize=size, dpi=PX, layout="constrained", facecolor="white")
        FigureCanvasAgg(picture)
        axes = picture.add_subplot()
        ticks: dict[str, list[str]] = {}
        for trace in figure["data"]:
            _TRACES[_check_kind(trace.get("type", "scatter"), _TRACES, "trace")](axes, trace, ticks)
        for shape in layout.get("shapes", ()):
            _shape(axes, shape)
        for note in layout.get("annotations", ()):
            _note(axes, note)
        _axis(axes, "x", layout.get("xaxis", {}), ticks)
        _axis(axes, "y", layout.get("yaxis", {}), ticks)
        _legend(axes, layout)
        picture.savefig(stem.with_name(f"{stem.name}.svg"), metadata={"Date": None, "Creator": None})
        picture.savefig(stem.with_name(f"{stem.name}.png"), dpi=PNG_DPI, metadata={"Software": None})


def _draw_all(tasks: Iterable[tuple[dict[str, Any], Path]]) -> None:
    for figure, stem in tasks:
        draw(figure, stem)


def _file_name(words: str) -> str:
    """Turn text into a part of a file name: short, with letters and digits only."""
    return re.sub(r"[^a-z0-9]+", "-", html.unescape(words).lower()).strip("-")[:40].strip("-")


def _check_kind(kind: str, supported: Mapping[str, Any], what: str) -> str:
    if kind not in supported:
        raise ValueError(
            f"a {what} must be one of {sorted(supported)}; got {kind!r}. Add it to reports/page/static_figures.py."
        )
    return kind


def _plain_text(text: object) -> str:
    """Convert Plotly's text, which uses some HTML, to plain text."""
    return html.unescape(re.sub(r"<br ?/?>", "\n", str(text)).replace("<b>", "").replace("</b>", ""))


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
    label = _plain_text(trace["name"]) if trace.get("showlegend", True) and trace.get("name") else "_"
    if "fill" in trace:
        _fill(axes, trace, x, y, opacity)
    if "lines" in mode:
        style = _DASHES[_check_kind(line.get("dash", "solid"), _DASHES, "dash")]
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
                _plain_text(text),
                (x[i], y[i]),
                textcoords="offset points",
                xytext=(0, 4),
                ha="center",
                parse_math=False,
            )


def _fill(axes: Axes, trace: Mapping[str, Any], x: np.ndarray, y: np.ndarray, opacity: float) -> None:
    """Fill a closed band, or the area down to zero or to the previous trace."""
    colour = _colour(trace.get("fillcolor", trace.get("line", {}).get("color", INK)))
    kind = _check_kind(trace["fill"], {"toself": 0, "tozeroy": 0, "tonexty": 0}, "fill")
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
        shape = _SYMBOLS[_check_kind(symbol.removesuffix("-open"), _SYMBOLS, "marker")]
        style: dict[str, Any] = {"s": sizes[inside] ** 2, "marker": shape, "alpha": marker.get("opacity", opacity)}
        if several and len(colours) and not isinstance(colours[0], str):
            style |= {"c": np.asarray(colours, float)[inside], "cmap": _colour_map(marker.get("colorscale"))}
            style |= {"vmin": marker.get("cmin"), "vmax": marker.get("cmax"), "linewidths": 0}
        else:
            selected = [colour for colour, used in zip(colours, inside, strict=True) if used] if several else colours
            style |= {"facecolors": "none", "edgecolors": selected} if hollow else {"color": selected}
            style["linewidths"] = 1.2 if hollow or shape in "x|" else 0
        axes.scatter(x[inside], y[inside], label=label, zorder=3, **style)
        label = "_"


def _bar(axes: Axes, trace: Mapping[str, Any], ticks: dict[str, list[str]]) -> None:
    horizontal = trace.get("orientation", "v") == "h"
    categories, lengths = (trace["y"], trace["x"]) if horizontal else (trace["x"], trace["y"])
    positions = _values(categories, "y" if horizontal else "x", ticks)
    size = _values(lengths, "", ticks)
    base = trace.get("base", 0)
    start = _values(base, "", ticks) if not isinstance(base, int | float) else np.full(len(size), float(base))
    colour = trace.get("marker", {}).get("color", INK)
    width = trace.get("width", 0.8)
    label = _plain_text(trace["name"]) if trace.get("showlegend", True) and trace.get("name") else "_"
    if horizontal:
        axes.barh(positions, size, height=width, left=start, color=colour, label=label)
    else:
        axes.bar(positions, size, width=width, bottom=start, color=colour, label=label)
    error = trace.get("error_x" if horizontal else "error_y")
    if error:
        x, y = (size + start, positions) if horizontal else (positions, size + start)
        _errors(axes, "x" if horizontal else "y", x, y, error, ticks)


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
    if trace.get("showscale", True) and axes.figure is not None:
        title = trace.get("colorbar", {}).get("title", {})
        axes.figure.colorbar(colours, ax=axes, label=_plain_text(title.get("text", "")))


_TRACES: dict[str, Callable[[Axes, Mapping[str, Any], dict[str, list[str]]], None]] = {
    "scatter": _scatter,
    # The same points, which a browser draws with the GPU.
    "scattergl": _scatter,
    "bar": _bar,
    "heatmap": _heatmap,
}


def _shape(axes: Axes, shape: Mapping[str, Any]) -> None:
    """Draw a line or a rectangle, in data coordinates or (``paper``) as a fraction of the axes."""
    from matplotlib.patches import Rectangle
    from matplotlib.transforms import blended_transform_factory

    kind = _check_kind(shape["type"], {"line": 0, "rect": 0}, "shape")
    x_transform, y_transform = (
        axes.transAxes if shape.get(f"{axis}ref", axis) == "paper" else axes.transData for axis in ("x", "y")
    )
    transform = blended_transform_factory(x_transform, y_transform)
    x, y = (shape["x0"], shape["x1"]), (shape["y0"], shape["y1"])
    line = shape.get("line", {})
    if kind == "line":
        style = _DASHES[_check_kind(line.get("dash", "solid"), _DASHES, "dash")]
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


def _note(axes: Axes, note: Mapping[str, Any]) -> None:
    """Draw text at a position."""
    from matplotlib.transforms import blended_transform_factory

    x_transform, y_transform = (
        axes.transAxes if note.get(f"{axis}ref", axis) == "paper" else axes.transData for axis in ("x", "y")
    )
    axes.text(
        note["x"],
        note["y"],
        _plain_text(note["text"]),
        transform=blended_transform_factory(x_transform, y_transform),
        ha={"auto": "center"}.get(note.get("xanchor", "auto"), note.get("xanchor", "center")),
        va={"auto": "center", "middle": "center"}.get(note.get("yanchor", "auto"), note.get("yanchor", "center")),
        fontsize=8,
        color="#59626b",
        parse_math=False,
    )


def _axis(axes: Axes, name: str, options: Mapping[str, Any], ticks: Mapping[str, list[str]]) -> None:
    """Set title, range, ticks and direction of an axis."""
    axis = axes.xaxis if name == "x" else axes.yaxis
    if title := options.get("title"):
        text = title if isinstance(title, str) else title.get("text", "")
        axis.set_label_text(_plain_text(text), parse_math=False)
    if options.get("type") == "log":
        getattr(axes, f"set_{name}scale")("log")
    positions, names = options.get("tickvals"), options.get("ticktext")
    if name in ticks:
        positions, names = list(range(len(ticks[name]))), ticks[name]
    if options.get("showticklabels") is False or options.get("visible") is False:
        axis.set_ticks([])
    elif positions is not None:
        labels = [_plain_text(text) for text in names] if names is not None else None
        axis.set_ticks(positions, labels, parse_math=False) if labels else axis.set_ticks(positions)
        if labels and name == "x" and sum(map(len, labels)) > 90:
            axis.set_tick_params(rotation=45)
    elif str(options.get("tickformat", "")).endswith("%"):
        from matplotlib.ticker import PercentFormatter

        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if limits := options.get("range"):
        ends = [10.0**end for end in limits] if options.get("type") == "log" else limits
        getattr(axes, f"set_{name}lim")(*ends)
    elif options.get("autorange") == "reversed":
        axis.set_inverted(True)
    if options.get("showgrid", True) and name not in ticks:
        axis.grid(True, color="#e4e7ea", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend(axes: Axes, layout: Mapping[str, Any]) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if not handles or not layout.get("showlegend", True) or axes.figure is None:
        return
    legend = axes.figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)


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
