"""Figures as Plotly dictionaries without a theme: the page's style sheet colours them for light or dark mode."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histoblend.models.heads.registry import HEADS
from histoblend.models.names import RUNGS, split_model_name
from histoblend.reports.words import short_model_words, span

Figure = dict[str, Any]

#: Okabe & Ito's colours. Grey means no model. The page's script lightens the blue in dark mode.
INK = "#808080"
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
#: Further colours that are as easy to distinguish.
BROWN, OLIVE, INDIGO, WINE = "#8C510A", "#999933", "#8879D6", "#A8325E"
MOSS, PLUM, TEAL, SLATE = "#5B7F2B", "#9B4FB5", "#128A8F", "#5D7391"
_COLOURS = (
    INK, SKY, GREEN, ORANGE, VERMILLION, PURPLE, OLIVE, INDIGO, WINE, MOSS, PLUM, TEAL, BROWN, SLATE, BLUE,
)  # fmt: skip
RUNG_COLOURS = dict(zip(RUNGS, _COLOURS, strict=True))
#: Dashes and symbols of the first four heads. Other heads get dotted lines and circles.
HEAD_DASHES = dict(zip(HEADS, ("solid", "dash", "dashdot", "longdash"), strict=False))
HEAD_SYMBOLS = dict(zip(HEADS, ("circle", "diamond-open", "square-open", "triangle-up-open"), strict=False))
RUNG_DASHES = {"cnn": "solid", "ensemble": "solid"}
Marks = Mapping[str, tuple[str, str, str]]
SPLIT_MARKS: Marks = {"oof": ("out-of-fold", BLUE, "circle"), "test": ("test slides", VERMILLION, "diamond-open")}
#: Strategies without a model, in a decision curve.
WITHOUT_MODEL = {"treat-all": ("all positive", "dash"), "treat-none": ("none positive", "dot")}
#: Text of the selection box, and shorter text that fits under an axis on a phone.
METRIC_WORDS = {
    "auc": ("area under the ROC curve", "AUC"),
    "auc_within": ("AUC within slides", "AUC within slides"),
    "average_precision": ("average precision", "average precision"),
    "brier": ("Brier score (lower is better)", "Brier score"),
    "accuracy": ("accuracy at the chosen threshold", "accuracy"),
}

#: With fewer patches of the rarer class than this, the AUC within a slide is mostly luck.
FEW_PATCHES = 5


def plain(text: object) -> str:
    """Escape text for Plotly, which interprets a subset of HTML in every label."""
    # Plotly would look for MathJax between two dollar signs.
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("$", "&#36;")


def shorten(text: object, most: int = 18) -> str:
    """Escape a name for an axis, without its middle if it is long, to leave space for the figure on a phone."""
    name = str(text)
    half = (most - 1) // 2
    return plain(name if len(name) <= most else f"{name[:half]}…{name[-half:]}")


def short_name(model: str) -> str:
    """Return a model's name as figures and tables show it, such as ``handcrafted · XGBoost``."""
    return short_model_words(model)


def row_name(model: str) -> str:
    """Return a model's name in two lines if it is long, to leave space for the figure on a phone."""
    name = short_name(model)
    return name.replace(" + ", "<br>+ ") if " + " in name else name.replace(" · ", "<br>")


def forest(ladder: pd.DataFrame, metric: str, *, by: str = "split", marks: Marks = SPLIT_MARKS) -> Figure:
    """Draw each model's metric with its 95 % interval, by default out-of-fold above test; `marks` sets the groups."""
    models = list(dict.fromkeys(ladder.model))
    rows_of = {model: len(models) - 1 - i for i, model in enumerate(models)}
    data = []
    for index, (name, (words, colour, symbol)) in enumerate(marks.items()):
        part = ladder[(ladder[by] == name) & ladder[metric].notna()]
        if part.empty:
            continue
        shift = 0.14 - 0.28 * index
        rows = part.to_dict("records")
        data.append(
            points(
                words,
                colour,
                symbol,
                part[metric],
                part[f"{metric}_low"],
                part[f"{metric}_high"],
                [rows_of[row["model"]] + shift for row in rows],
                [f"{short_name(row['model'])}, {words}<br>{row[metric]:.3f}{_interval(row, metric)}" for row in rows],
            )
        )
    frame = rows_layout([row_name(model) for model in models], METRIC_WORDS[metric][1])
    if metric in ("auc", "auc_within"):
        frame["shapes"] = [rule(0.5)]
    return {"data": data, "layout": frame}


def _interval(row: Mapping[Any, Any], metric: str) -> str:
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    return "" if pd.isna(low) else f" ({span(low, high)})"


def roc(curves: pd.DataFrame, split: str, shown: Collection[str]) -> Figure:
    """Draw the ROC curves of all models on one split. The legend switches on those that are not `shown` at first."""
    data: list[Figure] = []
    part = curves[curves.split == split]
    for model in sorted(dict.fromkeys(part.model), key=lambda model: model not in shown):
        rung, head = split_model_name(model)
        curve = part[part.model == model]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": short_name(model),
                "visible": True if model in shown else "legendonly",
                "x": numbers(curve.false_positive_rate, 4),
                "y": numbers(curve.true_positive_rate, 4),
                "line": {
                    "color": RUNG_COLOURS[rung],
                    "width": 2,
                    "dash": HEAD_DASHES.get(str(head), RUNG_DASHES.get(rung, "dot")),
                },
                "hovertemplate": f"{short_name(model)}<br>sensitivity %{{y:.3f}}<br>1 − specificity %{{x:.3f}}"
                "<extra></extra>",
            }
        )
    axis = {"range": [-0.01, 1.01], "tickvals": [0, 0.25, 0.5, 0.75, 1], "zeroline": False, "automargin": True}
    frame = layout(
        xaxis={**axis, "title": {"text": "1 − specificity", "standoff": 8}},
        yaxis={**axis, "title": {"text": "sensitivity", "standoff": 8}},
        height=400 + 12 * len(data),  # the legend is above the curves
        uirevision="switched",  # curves stay switched on when another split is chosen
        shapes=[
            {"type": "line", "x0": 0, "x1": 1, "y0": 0, "y1": 1, "line": {"color": INK, "dash": "dot", "width": 1}}
        ],
    )
    return {"data": data, "layout": frame}


def reliability(table: pd.DataFrame) -> Figure:
    """Draw the share of positives against the mean probability of each bin, with bands, and the diagonal."""
    data: list[Figure] = []
    for split, (words, colour, symbol) in SPLIT_MARKS.items():
        part = table[table.split == split]
        if part.empty:
            continue
        x, low, high = (numbers(part[name], 4) for name in ("probability", "share_low", "share_high"))
        band = {"x": x + x[::-1], "y": high + low[::-1], "fill": "toself", "fillcolor": colour, "opacity": 0.15}
        data.append({"type": "scatter", "mode": "none", "hoverinfo": "skip", "showlegend": False, **band})
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": words,
                "x": x,
                "y": numbers(part.share, 4),
                "text": [
                    f"{words}<br>predicted {row['probability']:.3f}, observed {row['share']:.3f} "
                    f"({span(row['share_low'], row['share_high'])})<br>{row['patches']} patches"
                    for row in part.to_dict("records")
                ],
                "hoverinfo": "text",
                "line": {"color": colour, "width": 2},
                "marker": {"color": colour, "symbol": symbol, "size": 8},
            }
        )
    diagonal = {"type": "line", "x0": 0, "x1": 1, "y0": 0, "y1": 1, "line": {"color": INK, "dash": "dot", "width": 1}}
    axis = {"range": [-0.02, 1.02], "zeroline": False, "automargin": True}
    frame = layout(
        xaxis={**axis, "title": {"text": "mean probability", "standoff": 8}},
        yaxis={**axis, "title": {"text": "share of positives", "standoff": 8}},
        height=460,
        shapes=[diagonal],
    )
    return {"data": data, "layout": frame}


def decision_curve(curve: pd.DataFrame, best: str) -> Figure:
    """Draw net benefit against threshold probability: the best model with its band, other models and no model."""
    data: list[Figure] = []
    band = curve[curve.model == best]
    x, low, high = (numbers(band[name], 4) for name in ("threshold", "low", "high"))
    edges = {
        "x": x + x[::-1],
        "y": high + low[::-1],
        "fill": "toself",
        "fillcolor": _rung_colour(best),
        "opacity": 0.15,
    }
    data.append({"type": "scatter", "mode": "none", "hoverinfo": "skip", "showlegend": False, **edges})
    for model in dict.fromkeys(curve.model):
        part = curve[curve.model == model]
        words = WITHOUT_MODEL[model][0] if model in WITHOUT_MODEL else short_name(model)
        rung, head = (None, None) if model in WITHOUT_MODEL else split_model_name(model)
        dash = WITHOUT_MODEL[model][1] if rung is None else HEAD_DASHES.get(str(head), RUNG_DASHES.get(rung, "dot"))
        line = {
            "color": INK if rung is None else _rung_colour(model),
            "dash": dash,
            "width": 3 if model == best else 1.5,
        }
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": words,
                "x": numbers(part.threshold, 2),
                "y": numbers(part.net_benefit, 4),
                "line": line,
                "hovertemplate": f"{words}<br>threshold %{{x:.2f}}<br>net benefit %{{y:.3f}}<extra></extra>",
            }
        )
    top = float(curve.net_benefit.max())
    frame = layout(
        xaxis={
            "range": [0, 1],
            "title": {"text": "threshold probability", "standoff": 8},
            "zeroline": False,
            "automargin": True,
        },
        # The net benefit of "all positive" falls without limit, so the axis ends a little below zero.
        yaxis={
            "range": [-0.15 * top, 1.1 * top],
            "title": {"text": "net benefit", "standoff": 8},
            "zeroline": False,
            "automargin": True,
        },
        height=460,
    )
    return {"data": data, "layout": frame}


def _rung_colour(model: str) -> str:
    return RUNG_COLOURS[split_model_name(model)[0]]


def error_map(errors: pd.DataFrame) -> Figure:
    """Draw the correlation between the errors of each pair of members as a heat map."""
    names = list(dict.fromkeys(errors["first"]))
    table = errors.pivot(index="first", columns="second", values="correlation").loc[names, names]
    labels = [short_name(name) for name in names]
    trace = {
        "type": "heatmap",
        "x": labels,
        "y": labels,
        "z": [numbers(row, 3) for row in table.to_numpy()],
        "zmin": 0,
        "zmax": 1,
        # Pale: independent errors. Dark: common errors.
        "colorscale": [[0, "#F7F4EC"], [1, VERMILLION]],
        "hovertemplate": "%{y} and %{x}<br>correlation of errors %{z:.2f}<extra></extra>",
        # Above the map, because at its side it would take too much width on a phone.
        "colorbar": {
            "title": {"text": "correlation", "side": "top"},
            "orientation": "h",
            "thickness": 10,
            "y": 1.01,
            "yanchor": "bottom",
            "x": 0,
            "xanchor": "left",
            "len": 0.6,
        },
    }
    frame = layout(
        xaxis={"tickangle": -45, "automargin": True},
        yaxis={"autorange": "reversed", "automargin": True},
        height=200 + 26 * len(names),
    )
    return {"data": [trace], "layout": frame}


def slide_strip(slides: pd.DataFrame, *, by: str = "split", marks: Marks = SPLIT_MARKS) -> Figure:
    """Draw the AUC within each slide with both classes: one row per model, one dot per slide."""
    models = list(dict.fromkeys(slides.model))
    rows_of = {model: len(models) - 1 - i for i, model in enumerate(models)}
    data: list[Figure] = []
    mixed = slides[slides.auc.notna()]
    for index, (name, (words, colour, symbol)) in enumerate(marks.items()):
        part = mixed[mixed[by] == name]
        if part.empty:
            continue
        rows = part.to_dict("records")
        shift = 0.14 - 0.28 * index
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": words,
                "x": numbers(part.auc, 4),
                "y": [rows_of[row["model"]] + shift for row in rows],
                "text": [
                    f"slide {plain(row['slide'])}, {short_name(row['model'])}<br>AUC {row['auc']:.3f}, "
                    f"{row['patches']} patches, {row['prevalence']:.0%} positive"
                    for row in rows
                ],
                "hoverinfo": "text",
                "marker": {
                    "color": colour,
                    "symbol": symbol,
                    "size": [9 if row["rarer"] >= FEW_PATCHES else 5 for row in rows],
                    "opacity": 0.8,
                    "line": {"width": 1.5, "color": colour},
                },
            }
        )
    frame = rows_layout([row_name(model) for model in models], "AUC within a slide")
    frame["shapes"] = [rule(0.5)]
    frame["xaxis"]["range"] = [min(0.45, float(mixed.auc.min()) - 0.03) if len(mixed) else 0, 1.02]
    return {"data": data, "layout": frame}


def points(
    name: str,
    colour: str,
    symbol: str,
    value: pd.Series,
    low: pd.Series,
    high: pd.Series,
    y: Sequence[float],
    text: list[str],
) -> Figure:
    """Return one trace of dots with intervals."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": numbers(value, 5),
        "y": list(y),
        "text": text,
        "hoverinfo": "text",
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": numbers(high - value, 5),
            "arrayminus": numbers(value - low, 5),
            "color": colour,
            "thickness": 1.6,
            "width": 0,
        },
        "marker": {"color": colour, "symbol": symbol, "size": 9, "line": {"width": 2, "color": colour}},
    }


def rows_layout(labels: list[str], title: str, per_row: int = 44) -> Figure:
    """Return the common layout with horizontal rows, labelled from top to bottom."""
    return layout(
        yaxis={
            "tickvals": list(range(len(labels) - 1, -1, -1)),
            "ticktext": labels,
            "range": [-0.6, len(labels) - 0.4],
            "zeroline": False,
            "automargin": True,
            "ticklabelstandoff": 6,
        },
        xaxis={"title": {"text": title, "standoff": 8}, "zeroline": False, "automargin": True},
        height=110 + per_row * len(labels),
    )


def layout(**parts: Any) -> Figure:
    """Return the common layout of a figure; `parts` extend or change it."""
    return {
        "margin": {"l": 8, "r": 12, "t": 8, "b": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "showlegend": True,
        "font": {"size": 13, "family": "system-ui, sans-serif"},
        "dragmode": False,
        **parts,
    }


def rule(x: float) -> Figure:
    """Draw a dotted vertical line across the plot."""
    line = {"color": INK, "dash": "dot", "width": 1}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line, "layer": "below"}


def numbers(values: pd.Series | np.ndarray, digits: int) -> list[float | None]:
    """Round values. Missing ones become None, because JSON has no NaN."""
    rounded = np.round(np.asarray(values, dtype=np.float64), digits)
    return [float(value) if np.isfinite(value) else None for value in rounded]
