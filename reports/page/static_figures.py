"""The page's charts as pictures for papers and slides: SVG and PNG files, drawn by Matplotlib from the same figures."""

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
#: Screen pixels an inch, and dots an inch of the PNG.
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
#: Style of all pictures; text stays text in the SVG, and nothing in it depends on when or how often it is drawn.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "histoblend",
    "font.size": 9,
    "axes.edgecolor": "#59626b",
}


def write_prints(folder: Path, sections: Sequence[Section], *, workers: int = 1) -> list[Path]:
    """Draw every chart of the page as ``<section>-<chart>[-<variant>].svg`` and ``.png``.

    Parameters
    ----------
    folder : Path
        Made when missing.
    sections : sequence of Section
    workers : int
        Processes that draw, -1 for one per core.

    Returns
    -------
    list of Path
        Of the pictures, two a variant.

    Raises
    ------
    ValueError
        A figure holds something that :func:`draw` does not know.
    """
    from joblib import Parallel, delayed

    folder.mkdir(parents=True, exist_ok=True)
    tasks: list[tuple[dict[str, Any], Path]] = []
    for section in sections:
        for name, chart in section.charts.items():
            for number, (words, figure) in enumerate(chart.variants, 1):
                part = f"-{number}-{_file_name(words)}" if len(chart.variants) > 1 else ""
                tasks.append((figure, folder / f"{section.name}-{name}{part}"))
    # A few parts, not one a figure: starting Matplotlib in a process takes longer than a figure.
    workers = count_workers(workers)
    parts = [tasks[start::workers] for start in range(workers)]
    Parallel(n_jobs=workers)(delayed(_draw_all)(part) for part in parts if part)
    return [stem.with_name(f"{stem.name}.{suffix}") for _, stem in tasks for suffix in ("svg", "png")]


def draw(figure: Mapping[str, Any], stem: Path) -> None:
    """Draw one Plotly figure into ``<stem>.svg`` and ``<stem>.png``.

    Parameters
    ----------
    figure : mapping
        ``{"data": [...], "layout": {...}}``; traces of type scatter, bar and heatmap.
    stem : Path

    Raises
    ------
    ValueError
        A trace or shape of another type.
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
            _TRACES[_known(trace.get("type", "scatter"), _TRACES, "trace")](axes, trace, ticks)
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
    """Words as a part of a file's name: short, and letters and digits only."""
    return re.sub(r"[^a-z0-9]+", "-", html.unescape(words).lower()).strip("-")[:40].strip("-")


def _known(kind: str, known: Mapping[str, Any], what: str) -> str:
    if kind not in known:
        raise ValueError(
            f"a {what} must be one of {sorted(known)}; got {kind!r}. Teach reports/page/static_figures.py to draw it."
        )
    return kind


def _words(text: object) -> str:
    """Plotly's text, which is a little HTML, as plain text."""
    return html.unescape(re.sub(r"<br ?/?>", "\n", str(text)).replace("<b>", "").replace("</b>", ""))


def _values(values: Sequence[Any], axis: str, ticks: dict[str, list[str]]) -> np.ndarray:
    """Numbers along an axis; names are put where they first came."""
    if any(isinstance(value, str) for value in values):
        names = ticks.setdefault(axis, [])
        names += [name for name in dict.fromkeys(map(str, values)) if name not in names]
        return np.array([names.index(str(value)) for value in values], dtype=float)
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _scatter(axes: Axes, trace: Mapping[str, Any], ticks: dict[str, list[str]]) -> None:
    x, y = _values(trace["x"], "x", ticks), _values(trace["y"], "y", ticks)
    mode = trace.get("mode", "lines")
    line, marker, opacity = trace.get("line", {}), trace.get("marker", {}), trace.get("opacity", 1.0)
    label = _words(trace["name"]) if trace.get("showlegend", True) and trace.get("name") else "_"
    if "fill" in trace:
        _fill(axes, trace, x, y, opacity)
    if "lines" in mode:
        style = _DASHES[_known(line.get("dash", "solid"), _DASHES, "dash")]
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
                _words(text), (x[i], y[i]), textcoords="offset points", xytext=(0, 4), ha="center", parse_math=False
            )


def _fill(axes: Axes, trace: Mapping[str, Any], x: np.ndarray, y: np.ndarray, opacity: float) -> None:
    """Fill a closed band, down to zero, or to the trace before."""
    colour = _colour(trace.get("fillcolor", trace.get("line", {}).get("color", INK)))
    kind = _known(trace["fill"], {"toself": 0, "tozeroy": 0, "tonexty": 0}, "fill")
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
        before = axes.lines[-1]
        axes.fill(
            np.concatenate([x, np.asarray(before.get_xdata(), float)[::-1]]),
            np.concatenate([y, np.asarray(before.get_ydata(), float)[::-1]]),
            label="_",
            **style,
        )


def _errors(
    axes: Axes, axis: str, x: np.ndarray, y: np.ndarray, error: Mapping[str, Any], ticks: dict[str, list[str]]
) -> None:
    """Lines from the lower to the upper end of each interval."""
    high = _values(error["array"], "", ticks)
    low = _values(error["arrayminus"], "", ticks) if "arrayminus" in error else high
    draw_lines = axes.hlines if axis == "x" else axes.vlines
    at, across = (x, y) if axis == "x" else (y, x)
    shown = np.isfinite(at) & np.isfinite(low) & np.isfinite(high)
    colour = error.get("color", INK)
    draw_lines(across[shown], (at - low)[shown], (at + high)[shown], colors=colour, linewidth=1.2, label="_")


def _markers(axes: Axes, x: np.ndarray, y: np.ndarray, marker: Mapping[str, Any], opacity: float, label: str) -> None:
    """Points; Plotly's sizes are diameters in pixels, Matplotlib's areas in points."""
    symbols = marker.get("symbol", "circle")
    # One scatter a symbol: Matplotlib draws one at a time.
    names = np.array([symbols] * len(x) if isinstance(symbols, str) else symbols, dtype=object)
    sizes = np.broadcast_to(np.asarray(marker.get("size", 7), float), len(x)) * 72 / PX
    colours = marker.get("color", INK)
    many = not isinstance(colours, str)
    for symbol in dict.fromkeys(names):
        inside = names == symbol
        hollow = symbol.endswith("-open")
        shape = _SYMBOLS[_known(symbol.removesuffix("-open"), _SYMBOLS, "marker")]
        style: dict[str, Any] = {"s": sizes[inside] ** 2, "marker": shape, "alpha": marker.get("opacity", opacity)}
        if many and len(colours) and not isinstance(colours[0], str):
            style |= {"c": np.asarray(colours, float)[inside], "cmap": _colour_map(marker.get("colorscale"))}
            style |= {"vmin": marker.get("cmin"), "vmax": marker.get("cmax"), "linewidths": 0}
        else:
            chosen = [colour for colour, here in zip(colours, inside, strict=True) if here] if many else colours
            style |= {"facecolors": "none", "edgecolors": chosen} if hollow else {"color": chosen}
            style["linewidths"] = 1.2 if hollow or shape in "x|" else 0
        axes.scatter(x[inside], y[inside], label=label, zorder=3, **style)
        label = "_"


def _bar(axes: Axes, trace: Mapping[str, Any], ticks: dict[str, list[str]]) -> None:
    across = trace.get("orientation", "v") == "h"
    place, length = (trace["y"], trace["x"]) if across else (trace["x"], trace["y"])
    at = _values(place, "y" if across else "x", ticks)
    size = _values(length, "", ticks)
    base = trace.get("base", 0)
    start = _values(base, "", ticks) if not isinstance(base, int | float) else np.full(len(size), float(base))
    colour = trace.get("marker", {}).get("color", INK)
    width = trace.get("width", 0.8)
    label = _words(trace["name"]) if trace.get("showlegend", True) and trace.get("name") else "_"
    if across:
        axes.barh(at, size, height=width, left=start, color=colour, label=label)
    else:
        axes.bar(at, size, width=width, bottom=start, color=colour, label=label)
    error = trace.get("error_x" if across else "error_y")
    if error:
        x, y = (size + start, at) if across else (at, size + start)
        _errors(axes, "x" if across else "y", x, y, error, ticks)


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
        axes.figure.colorbar(colours, ax=axes, label=_words(title.get("text", "")))


_TRACES: dict[str, Callable[[Axes, Mapping[str, Any], dict[str, list[str]]], None]] = {
    "scatter": _scatter,
    # The same points, which a browser draws by its graphics card.
    "scattergl": _scatter,
    "bar": _bar,
    "heatmap": _heatmap,
}


def _shape(axes: Axes, shape: Mapping[str, Any]) -> None:
    """A straight line or a rectangle, in the axes' numbers or (``paper``) in shares of them."""
    from matplotlib.patches import Rectangle
    from matplotlib.transforms import blended_transform_factory

    kind = _known(shape["type"], {"line": 0, "rect": 0}, "shape")
    wide, high = (axes.transAxes if shape.get(f"{axis}ref", axis) == "paper" else axes.transData for axis in ("x", "y"))
    place = blended_transform_factory(wide, high)
    x, y = (shape["x0"], shape["x1"]), (shape["y0"], shape["y1"])
    line = shape.get("line", {})
    if kind == "line":
        style = _DASHES[_known(line.get("dash", "solid"), _DASHES, "dash")]
        axes.plot(
            x, y, transform=place, color=line.get("color", INK), linewidth=0.8, linestyle=style, zorder=1, label="_"
        )
        return
    colour = _colour(shape.get("fillcolor", INK))
    opacity = shape.get("opacity", 1.0)
    box = Rectangle((x[0], y[0]), x[1] - x[0], y[1] - y[0], transform=place, facecolor=colour, alpha=opacity, zorder=0)
    axes.add_patch(box)


def _note(axes: Axes, note: Mapping[str, Any]) -> None:
    """Words at a place."""
    from matplotlib.transforms import blended_transform_factory

    wide, high = (axes.transAxes if note.get(f"{axis}ref", axis) == "paper" else axes.transData for axis in ("x", "y"))
    axes.text(
        note["x"],
        note["y"],
        _words(note["text"]),
        transform=blended_transform_factory(wide, high),
        ha={"auto": "center"}.get(note.get("xanchor", "auto"), note.get("xanchor", "center")),
        va={"auto": "center", "middle": "center"}.get(note.get("yanchor", "auto"), note.get("yanchor", "center")),
        fontsize=8,
        color="#59626b",
        parse_math=False,
    )


def _axis(axes: Axes, name: str, options: Mapping[str, Any], ticks: Mapping[str, list[str]]) -> None:
    """Title, range, ticks and direction of an axis."""
    axis = axes.xaxis if name == "x" else axes.yaxis
    if title := options.get("title"):
        text = title if isinstance(title, str) else title.get("text", "")
        axis.set_label_text(_words(text), parse_math=False)
    if options.get("type") == "log":
        getattr(axes, f"set_{name}scale")("log")
    places, names = options.get("tickvals"), options.get("ticktext")
    if name in ticks:
        places, names = list(range(len(ticks[name]))), ticks[name]
    if options.get("showticklabels") is False or options.get("visible") is False:
        axis.set_ticks([])
    elif places is not None:
        labels = [_words(text) for text in names] if names is not None else None
        axis.set_ticks(places, labels, parse_math=False) if labels else axis.set_ticks(places)
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
    found = axes.figure.legend(handles, labels, loc="outside upper left", ncols=4, frameon=False, fontsize=8)
    for text in found.get_texts():
        text.set_parse_math(False)


def _colour(colour: str) -> tuple[float, ...]:
    """Red, green, blue and, where it is stated, opacity, of ``#rrggbb`` or ``rgba(r, g, b, a)``."""
    if found := re.fullmatch(r"rgba?\(([^)]+)\)", colour):
        parts = [float(part) for part in found[1].split(",")]
        return (*(part / 255 for part in parts[:3]), *parts[3:])
    from matplotlib.colors import to_rgb

    return to_rgb(colour)


def _colour_map(scale: str | Sequence[tuple[float, str]] | None) -> Any:
    """Plotly's colour scale, by name or as stops, as Matplotlib's."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    if scale is None or isinstance(scale, str):
        return colormaps[(scale or "cividis").lower()]
    return LinearSegmentedColormap.from_list("stops", [(place, _colour(colour)) for place, colour in scale])
