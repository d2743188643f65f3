"""The page's charts as PDF, SVG and PNG files for papers and slides, drawn by Matplotlib from the same figures."""

from __future__ import annotations

import atexit
import functools
import html
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from histoblend.data.workers import count_workers
from histoblend.reports.page.section import Chart, Section
from histoblend.reports.page.static_traces import (
    PX,
    RELATIVE,
    draw_note,
    draw_shape,
    draw_trace,
    full_text,
    plain_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_PX = 900
HEIGHT_PX = 450
PNG_DPI = 300
SUFFIXES = ("pdf", "svg", "png")
FONT = "DejaVu Sans"
#: Latin and Greek letters, punctuation, and mathematical signs. Others are taken from the whole font.
_CHARACTERS = [*range(0x20, 0x250), *range(0x370, 0x400), *range(0x2000, 0x2300)]
#: Tables of a font for ligatures and the like, which the charts do not use.
_LAYOUT_TABLES = ["GSUB", "GPOS", "GDEF", "kern", "MATH", "FFTM"]
#: Characters of a title and of a row's name per line, and entries of a legend below the chart; longer ones are at its
#: side.
TITLE_WIDTH, TITLE_WIDTH_BESIDE, NAME_WIDTH, MOST_BELOW = 96, 56, 40, 6

#: Title of each chart. ``{}`` is the text of the variant: a model, a score or a split. A figure's ``layout.meta.title``
#: takes precedence. Other charts are titled by their text alternative.
TITLES = {
    ("verdict", "answer"): "Best model of each rung, out of fold and on test slides",
    ("ladder", "forest"): "All models, out of fold and on test slides: {}",
    ("ladder", "roc"): "ROC curves of the main models, {}",
    ("importances", "groups"): "Importance of themes and regions: {}; drops on test slides, shares over folds",
    ("importances", "families"): "Importance of families of features: {}; drops on test slides, shares over folds",
    ("importances", "beeswarm"): "Contributions of features on test slides: {}",
    ("stain", "shifts"): "All models under altered stains, test slides: {}",
    ("stain", "stain_groups"): "All models in two groups of stain, out of fold and on test slides: {}",
    ("generalise", "shortcuts"): "Models on sets of columns, out of fold: {}",
    ("generalise", "learning-curves"): "Learning curves of models, out of fold: {}",
    ("generalise", "new-slides"): "Models on new slides, out of fold: {}",
    ("errors", "slides"): "{}; each slide",
    ("cnn", "learning"): "Fine-tuned network while it was trained: {}",
    ("decisions", "reliability"): "Calibration, out of fold and on test slides: {}",
    ("decisions", "decision-curve"): "Net benefit of all models, {}",
    ("ensemble", "errors"): "Members of the ensemble, out of fold: {}",
    ("ladders", "ladders"): "Models of each run: {}",
    ("paired", "paired"): "Paired differences between runs, {}",
}
#: Splits in the text of a variant.
SPLITS = {"out-of-fold": "out of fold", "test": "test slides"}

#: Style of all images. The SVG keeps text as text, the PDF embeds fonts, and neither depends on when it is drawn.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "histoblend",
    "pdf.fonttype": 42,
    "font.size": 9,
    "axes.edgecolor": "#59626b",
}
_METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}


def write_static_figures(folder: Path, sections: Sequence[Section], *, workers: int = 1) -> list[Path]:
    """Draw every chart of the page as ``<section>-<chart>[-<variant>].pdf``, ``.svg`` and ``.png``.

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
        Paths of the images, three per variant.

    Raises
    ------
    ValueError
        A figure contains something that :func:`draw` does not support.
    """
    from joblib import Parallel, delayed

    folder.mkdir(parents=True, exist_ok=True)
    tasks: list[tuple[dict[str, Any], Path, str]] = []
    for section in sections:
        for name, chart in section.charts.items():
            for number, (words, figure) in enumerate(chart.variants, 1):
                suffix = f"-{number}-{_file_name(words)}" if len(chart.variants) > 1 else ""
                stem = folder / f"{section.name}-{name}{suffix}"
                tasks.append((figure, stem, title_of(section, name, chart, words, figure)))
    # One batch per worker, not one per figure: starting Matplotlib in a process takes longer than drawing a figure.
    workers = count_workers(workers)
    batches = [tasks[start::workers] for start in range(workers)]
    Parallel(n_jobs=workers)(delayed(_draw_all)(batch) for batch in batches if batch)
    return [stem.with_name(f"{stem.name}.{suffix}") for _, stem, _ in tasks for suffix in SUFFIXES]


def title_of(section: Section, name: str, chart: Chart, words: str, figure: Mapping[str, Any]) -> str:
    """Title of a chart's variant: what it shows, of which model, on which split."""
    if title := figure["layout"].get("meta", {}).get("title"):
        return plain_text(title)
    variant = SPLITS.get(words, full_text(words)).replace("out-of-fold", "out of fold")
    if (section.name, name) in TITLES:
        title = TITLES[section.name, name].format(variant)
        return title[0].upper() + title[1:]
    first = re.split(r"[.;:] ", plain_text(chart.alt).rstrip("."))[0] or section.title
    return f"{first}: {variant}" if len(chart.variants) > 1 else first


def draw(figure: Mapping[str, Any], stem: Path, title: str = "") -> None:
    """Draw one Plotly figure into ``<stem>.pdf``, ``<stem>.svg`` and ``<stem>.png``.

    Parameters
    ----------
    figure : mapping
        ``{"data": [...], "layout": {...}}`` with traces of type scatter, bar or heatmap.
    stem : Path
    title : str

    Raises
    ------
    ValueError
        A trace or shape has another type.
    """
    import matplotlib

    with matplotlib.rc_context({**_STYLE, "font.family": [_small_font(), "sans-serif"]}):
        picture = picture_of(figure, title)
        # The arrangement takes longer than drawing, and is the same for all formats.
        picture.draw_without_rendering()
        picture.set_layout_engine("none")
        for suffix in SUFFIXES:
            path = stem.with_name(f"{stem.name}.{suffix}")
            picture.savefig(path, metadata=_METADATA[suffix], dpi=PNG_DPI if suffix == "png" else PX)


@functools.cache
def _small_font() -> str:
    """Make a copy of the font with the usual characters only, for this process, and return its name.

    A PDF embeds the characters that it uses. Selecting them from the whole font took a third of the time of all charts.
    """
    import matplotlib
    from fontTools import subset
    from matplotlib import font_manager

    options = subset.Options(layout_features=[], notdef_outline=True, drop_tables=_LAYOUT_TABLES, name_IDs=["*"])
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("DejaVuSans", "DejaVuSans-Bold"):
        source = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
        path = Path(folder, source.name)
        with subset.load_font(source, options) as font:
            subsetter = subset.Subsetter(options)
            subsetter.populate(unicodes=_CHARACTERS)
            subsetter.subset(font)
            for record in font["name"].names:
                record.string = str(record).replace("DejaVu", "Histoblend")
            font.save(path)
        font_manager.fontManager.addfont(path)
    return FONT.replace("DejaVu", "Histoblend")


def picture_of(figure: Mapping[str, Any], title: str = "") -> Figure:
    """Draw one Plotly figure with Matplotlib, its panels below each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Images have no legend to click on.
    figure = {**figure, "data": [trace for trace in figure["data"] if trace.get("visible") != "legendonly"]}
    layout = figure["layout"]
    entries = sum(bool(trace.get("name")) and trace.get("showlegend", True) for trace in figure["data"])
    below = entries <= MOST_BELOW or not layout.get("showlegend", True)
    titles = wrap(title, TITLE_WIDTH if below else TITLE_WIDTH_BESIDE)
    height = layout.get("height", HEIGHT_PX) + 18 * len(titles) + _room_for_names(figure["data"])
    picture = Figure(figsize=(WIDTH_PX / PX, height / PX), dpi=PX, layout="constrained", facecolor="white")
    FigureCanvasAgg(picture)
    panels = _panels(layout)
    shares = [end - start for start, end in (_domain(layout, y) for _, y in panels)]
    all_axes = picture.subplots(len(panels), 1, squeeze=False, height_ratios=shares)[:, 0]
    for axes, (x, y) in zip(all_axes, panels, strict=True):
        _draw_panel(axes, figure, x, y)
    _legend(picture, all_axes, layout, below)
    if titles:
        picture.suptitle("\n".join(titles), x=0.01, ha="left", fontsize=10, fontweight="bold", parse_math=False)
    return picture


def _room_for_names(traces: Iterable[Mapping[str, Any]]) -> int:
    """Height in pixels that the names of a map's rows and columns need, beyond the one line that Plotly allows."""
    maps = [trace for trace in traces if trace.get("type") == "heatmap"]
    lines = [full_text(name, NAME_WIDTH).count("\n") + 1 for trace in maps for name in trace["y"]]
    return 12 * sum(lines) + 60 if lines and max(lines) > 1 else 0


def _panels(layout: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of axes such as ("x2", "y2"), from the top down."""
    names = [name.replace("axis", "") for name in layout if re.fullmatch(r"yaxis\d*", name)] or ["y"]
    names.sort(key=lambda y: -_domain(layout, y)[0])
    return [(layout.get(y.replace("y", "yaxis"), {}).get("anchor", "x").removesuffix("1"), y) for y in names]


def _domain(layout: Mapping[str, Any], y: str) -> tuple[float, float]:
    start, end = layout.get(y.replace("y", "yaxis"), {}).get("domain", (0.0, 1.0))
    return float(start), float(end)


def _draw_panel(axes: Axes, figure: Mapping[str, Any], x: str, y: str) -> None:
    """Draw the traces, shapes and notes of one pair of axes."""
    layout = figure["layout"]
    ticks: dict[str, list[str]] = {}
    for trace in figure["data"]:
        if trace.get("yaxis", "y") in (y, f"{y}1"):
            draw_trace(axes, trace, ticks)
    for kind, draw_one in (("shapes", draw_shape), ("annotations", draw_note)):
        for part in layout.get(kind, ()):
            if _belongs(part, x, y):
                draw_one(axes, part)
    x_options, y_options = (layout.get(name[0] + "axis" + name[1:], {}) for name in (x, y))
    _axis(axes, "x", x_options, ticks)
    _axis(axes, "y", y_options, ticks)
    ranges = [options.get("range") or (0, 0) for options in (x_options, y_options)]
    # Both axes are shares from 0 to 1, as of ROC curves.
    if all(abs(low) < 0.05 and abs(high - 1) < 0.05 for low, high in ranges):
        axes.set_aspect("equal", adjustable="box")


def _belongs(part: Mapping[str, Any], x: str, y: str) -> bool:
    """Whether a shape or note is drawn in a panel: in that of its axes, otherwise in every panel."""
    refs = [(part.get(f"{name[0]}ref", name[0]), name) for name in (x, y)]
    return all(ref in (*RELATIVE, name, f"{name}1") for ref, name in refs)


def _draw_all(tasks: Iterable[tuple[dict[str, Any], Path, str]]) -> None:
    for figure, stem, title in tasks:
        draw(figure, stem, title)


def _file_name(words: str) -> str:
    """Turn text into a part of a file name: short, with letters and digits only."""
    return re.sub(r"[^a-z0-9]+", "-", html.unescape(words).lower()).strip("-")[:40].strip("-")


def _axis(axes: Axes, name: str, options: Mapping[str, Any], ticks: Mapping[str, list[str]]) -> None:
    """Set title, range, ticks and direction of an axis."""
    axis = axes.xaxis if name == "x" else axes.yaxis
    if title := options.get("title"):
        text = title if isinstance(title, str) else title.get("text", "")
        axis.set_label_text(plain_text(text), parse_math=False)
    if options.get("type") == "log":
        getattr(axes, f"set_{name}scale")("log")
    positions, names = options.get("tickvals"), options.get("ticktext")
    if name in ticks:
        positions, names = list(range(len(ticks[name]))), ticks[name]
    if options.get("visible") is False:
        axes.spines["bottom" if name == "x" else "left"].set_visible(False)
    if options.get("showticklabels") is False or options.get("visible") is False:
        axis.set_ticks([])
    elif positions is not None:
        labels = [full_text(text, NAME_WIDTH) for text in names] if names is not None else None
        axis.set_ticks(positions, labels, parse_math=False) if labels else axis.set_ticks(positions)
        if labels and name == "x" and sum(map(len, labels)) > 90:
            axis.set_ticks(positions, labels, rotation=35, ha="right", rotation_mode="anchor", parse_math=False)
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


def _legend(picture: Figure, all_axes: Iterable[Axes], layout: Mapping[str, Any], below: bool) -> None:
    """One legend for all panels: below if it is short, otherwise at the side."""
    entries: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries or not layout.get("showlegend", True):
        return
    legend = picture.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower left" if below else "outside right upper",
        ncols=3 if below else 1,
        frameon=False,
        fontsize=8 if below else 7,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    # A long legend needs more height than the chart.
    needed = legend.get_window_extent().height / PX + 0.2
    picture.set_figheight(max(needed, picture.get_figheight()))
