"""Charts of the section on generalisation."""

from __future__ import annotations

from typing import Any

import pandas as pd

from histoblend.reports.page import figures
from histoblend.reports.page.figures import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, VERMILLION, Figure, layout, numbers
from histoblend.reports.page.section import Chart, records
from histoblend.reports.words import FAMILY_WORDS, SHORT_RUNG_WORDS, signed, signed_span, span

#: Sources of column sets: words, colour and symbol.
SOURCES = {
    "family": ("families of features", BLUE, "circle"),
    "set": ("sets of columns", VERMILLION, "diamond"),
    "network": ("networks of the embeddings", GREEN, "square"),
    "model": ("outputs of models", PURPLE, "star"),
}
#: Colours and symbols of learning curves, in their order.
CURVE_MARKS = (
    (SKY, "circle"),
    (GREEN, "square"),
    (ORANGE, "diamond"),
    (VERMILLION, "triangle-up"),
    (PURPLE, "x"),
    (BLUE, "star"),
)
#: The fine-tuned network among learning curves, and its mark.
NETWORK, NETWORK_MARK = "cnn", (INK, "circle-open")
WAY_WORDS = {"shift": "shift", "platt": "slope and shift (Platt)"}
JUDGED_WORDS = {"all": "all slides", "mixed": "slides with both labels"}
AXIS_WORDS = {"slides": "training slides", "patches": "labelled patches per slide"}
_MEASURES = {
    "auc": "AUC on new slides",
    "auc_within": "AUC within new slides",
    "worst": "AUC of the worst new slide",
    "log_loss": "log loss on new slides",
    "calibration_error": "calibration error on new slides",
}


def set_words(name: str) -> str:
    """Name of a set of columns in few words; networks keep theirs."""
    return SHORT_RUNG_WORDS.get(name) or FAMILY_WORDS.get(name, name)


def shortcut_chart(shortcuts: pd.DataFrame) -> Chart:
    """AUC against robustness, one point per set of columns, and robustness with intervals, for each kind of group."""
    variants = []
    for kind in dict.fromkeys(shortcuts.kind):
        part = shortcuts[(shortcuts.kind == kind) & shortcuts.robustness.notna()]
        if len(part):
            variants.append((f"AUC against robustness to {kind}s", _robustness_scatter(part, kind)))
            variants.append((f"robustness to {kind}s with intervals", _robustness_rows(part, kind)))
    return Chart("AUC and robustness of every set of columns. The table below has the same numbers.", variants)


def _shortcut_text(row: dict[str, Any], kind: str) -> str:
    return (
        f"{set_words(row['set'])}<br>AUC {row['auc']:.3f} ({span(row['auc_low'], row['auc_high'])})<br>"
        f"robustness {row['robustness']:.2f} ({span(row['robustness_low'], row['robustness_high'], 2)})<br>"
        f"{kind} recognised {row['recognised']:.0%}, by chance {row['chance']:.0%}<br>"
        f"shortcut {signed(row['shortcut'], 2)}"
    )


def _robustness_scatter(part: pd.DataFrame, kind: str) -> Figure:
    ranges = {name: _padded(part[name]) for name in ("auc", "robustness")}
    width, height = (high - low for low, high in ranges.values())
    x, y = (part.auc - ranges["auc"][0]) / width, (part.robustness - ranges["robustness"][0]) / height
    places = dict(zip(part.set, zip(x, y, strict=True), strict=True))
    boxes = [(x - 0.008, y - 0.012, x + 0.008, y + 0.012) for x, y in places.values()]
    data: list[Figure] = []
    for source, (words, colour, symbol) in SOURCES.items():
        rows = records(part[part.source == source])
        if not rows:
            continue
        sides = [_free_side(places[row["set"]], set_words(row["set"]), boxes) for row in rows]
        trace: Figure = {
            "type": "scatter",
            "mode": "markers+text",
            "name": words,
            "x": numbers(pd.Series([row["auc"] for row in rows]), 4),
            "y": numbers(pd.Series([row["robustness"] for row in rows]), 4),
            "text": [
                figures.plain(set_words(row["set"])) if side else "" for row, side in zip(rows, sides, strict=True)
            ],
            "textposition": [side or "top center" for side in sides],
            "textfont": {"size": 11},
            "hovertext": [_shortcut_text(row, kind) for row in rows],
            "hoverinfo": "text",
            "marker": {"color": colour, "symbol": symbol, "size": 9},
            "cliponaxis": False,
        }
        data.append(trace)
    frame = layout(
        xaxis={
            "title": {"text": "AUC of the vote of neighbours on other slides", "standoff": 8},
            "range": list(ranges["auc"]),
            "zeroline": False,
            "automargin": True,
        },
        yaxis={
            "title": {"text": f"robustness index (0.5: label and {kind} equal)", "standoff": 8},
            "range": list(ranges["robustness"]),
            "zeroline": False,
            "automargin": True,
        },
        height=560,
        shapes=[_level(0.5)],
    )
    return {"data": data, "layout": frame}


def _padded(values: pd.Series) -> tuple[float, float]:
    """Range of an axis with space for the labels of points."""
    low, high = float(values.min()), float(values.max())
    space = 0.12 * max(high - low, 0.02)
    return low - space, high + space


def _free_side(place: tuple[float, float], text: str, boxes: list[tuple[float, float, float, float]]) -> str:
    """Side of a point where its label overlaps no other; empty if there is none. Positions are shares of the chart."""
    (x, y), long, tall, gap = place, 0.008 * len(text), 0.034, 0.03
    across = {"center": x - long / 2, "right": x + gap / 2, "left": x - gap / 2 - long}
    along = {"top": y + gap / 2, "bottom": y - gap / 2 - tall, "middle": y - tall / 2}
    sides = {f"{v} {h}": (left, bottom) for v, bottom in along.items() for h, left in across.items()}
    del sides["middle center"]

    for side, (left, bottom) in sides.items():
        box = (left, bottom, left + long, bottom + tall)
        inside = min(box) >= 0 and max(box) <= 1
        if inside and not any(all(box[i] < other[i + 2] and other[i] < box[i + 2] for i in (0, 1)) for other in boxes):
            boxes.append(box)
            return side
    return ""


def _robustness_rows(part: pd.DataFrame, kind: str) -> Figure:
    ordered = part.sort_values("robustness", ascending=False, kind="stable")
    data = []
    for source, (words, colour, symbol) in SOURCES.items():
        mine = ordered[ordered.source == source]
        if len(mine):
            rows = [len(ordered) - 1 - ordered.set.tolist().index(name) for name in mine.set]
            text = [_shortcut_text(row, kind) for row in records(mine)]
            intervals = mine.robustness, mine.robustness_low, mine.robustness_high
            data.append(figures.points(words, colour, symbol, *intervals, rows, text))
    names = [figures.plain(set_words(name)) for name in ordered.set]
    frame = figures.rows_layout(names, f"robustness index (0.5: label and {kind} equal)", per_row=26)
    frame["shapes"] = [figures.rule(0.5)]
    return {"data": data, "layout": frame}


def learning_chart(curve: pd.DataFrame, best: str) -> Chart:
    """Scores against the number of slides and of patches per slide: one line per set, a band for the best set."""
    variants = [
        (f"{words} by number of {AXIS_WORDS[axis]}", _learning_lines(curve, axis, measure, best))
        for axis in AXIS_WORDS
        for measure, words in _MEASURES.items()
        if curve[measure].notna().any()
    ]
    alt = f"{curve.set.nunique()} learning curves. The table below has the same numbers."
    return Chart(alt, variants)


def _learning_lines(curve: pd.DataFrame, axis: str, measure: str, best: str) -> Figure:
    number = "slides" if axis == "slides" else "patches_per_slide"
    part = curve[curve.axis == axis]
    data: list[Figure] = []
    for index, name in enumerate(dict.fromkeys(part.set)):
        colour, symbol = NETWORK_MARK if name == NETWORK else CURVE_MARKS[index % len(CURVE_MARKS)]
        rows = part[part.set == name]
        x = numbers(rows[number], 1)
        if name == best and f"{measure}_low" in rows:
            low, high = numbers(rows[f"{measure}_low"], 4), numbers(rows[f"{measure}_high"], 4)
            band = {"x": x + x[::-1], "y": high + low[::-1], "fill": "toself", "fillcolor": colour, "opacity": 0.12}
            data.append({"type": "scatter", "mode": "none", "hoverinfo": "skip", "showlegend": False, **band})
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": set_words(name),
                "x": x,
                "y": numbers(rows[measure], 4),
                "text": [_point_text(row, measure) for row in records(rows)],
                "hoverinfo": "text",
                "line": {"color": colour, "width": 3 if name == best else 1.5},
                "marker": {"color": colour, "symbol": symbol, "size": 8},
            }
        )
    frame = layout(
        xaxis={"title": {"text": AXIS_WORDS[axis], "standoff": 8}, "zeroline": False, "automargin": True},
        yaxis={"title": {"text": _MEASURES[measure], "standoff": 8}, "zeroline": False, "automargin": True},
        height=480,
    )
    return {"data": data, "layout": frame}


def _point_text(row: dict[str, Any], measure: str) -> str:
    interval = f" ({span(row[f'{measure}_low'], row[f'{measure}_high'])})" if f"{measure}_low" in row else ""
    return (
        f"{set_words(row['set'])}<br>{row['slides']:.0f} slides, {row['patches_per_slide']:.0f} patches each<br>"
        f"{_MEASURES[measure]} {row[measure]:.3f}{interval}"
    )


def new_slide_chart(slides: pd.DataFrame, recalibration: pd.DataFrame) -> Chart:
    """Change of the log loss by recalibration on labelled patches, and the calibration error of each slide."""
    variants = [
        (f"change of log loss by a shift of the log-odds, {words}", _recalibration_points(part))
        for judged, words in JUDGED_WORDS.items()
        if len(part := recalibration[(recalibration.judged == judged) & (recalibration.way == "shift")])
    ]
    variants.append(("calibration error of each slide", _slide_errors(slides)))
    return Chart("Calibration on new slides. The table below has the same numbers.", variants)


def _recalibration_points(part: pd.DataFrame) -> Figure:
    numbers_of = sorted(set(part.labelled))
    models = list(dict.fromkeys(part.model))
    data = []
    for index, model in enumerate(models):
        colour, symbol = CURVE_MARKS[::-1][index % len(CURVE_MARKS)]
        rows = part[part.model == model]
        offset = 0.5 * ((index + 0.5) / len(models) - 0.5)
        name = figures.short_name(model)
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [round(numbers_of.index(labelled) + offset, 3) for labelled in rows.labelled],
                "y": numbers(rows.change, 4),
                "text": [
                    f"{name}<br>{row['labelled']} labelled patches, {row['slides']} slides<br>change of log loss "
                    f"{signed(row['change'])} ({signed_span(row['low'], row['high'])}), before {row['before']:.3f}"
                    for row in records(rows)
                ],
                "hoverinfo": "text",
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": numbers(rows.high - rows.change, 4),
                    "arrayminus": numbers(rows.change - rows.low, 4),
                    "color": colour,
                    "thickness": 1.6,
                    "width": 0,
                },
                "marker": {"color": colour, "symbol": symbol, "size": 9},
            }
        )
    frame = layout(
        xaxis={
            "title": {"text": "labelled patches of the new slide", "standoff": 8},
            "tickvals": list(range(len(numbers_of))),
            "ticktext": [str(number) for number in numbers_of],
            "range": [-0.5, len(numbers_of) - 0.5],
            "zeroline": False,
            "showgrid": False,
            "automargin": True,
        },
        yaxis={
            "title": {"text": "change of log loss (below 0: better)", "standoff": 8},
            "zeroline": False,
            "automargin": True,
        },
        height=460,
        shapes=[_level(0.0)],
    )
    return {"data": data, "layout": frame}


def _slide_errors(slides: pd.DataFrame) -> Figure:
    models = list(dict.fromkeys(slides.model))
    data = []
    for words, column, colour, symbol, shift in (
        ("calibration error", "error", VERMILLION, "circle", 0.14),
        ("by chance, if perfectly calibrated", "chance", BLUE, "diamond-open", -0.14),
    ):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": words,
                "x": numbers(slides[column], 4),
                "y": [len(models) - 1 - models.index(model) + shift for model in slides.model],
                "text": [_slide_text(row) for row in records(slides)],
                "hoverinfo": "text",
                "marker": {"color": colour, "symbol": symbol, "size": 7, "opacity": 0.8},
            }
        )
    names = [figures.row_name(model) for model in models]
    return {"data": data, "layout": figures.rows_layout(names, "calibration error of a slide", per_row=64)}


def _slide_text(row: dict[str, Any]) -> str:
    return (
        f"slide {figures.plain(row['slide'])}, {row['patches']} patches, {row['positives']:.0%} positive<br>error "
        f"{row['error']:.3f}, by chance {row['chance']:.3f}<br>mean probability minus share of positives "
        f"{signed(row['bias'])}"
    )


def _level(y: float) -> Figure:
    """Draw a dotted horizontal line across the plot."""
    line = {"color": INK, "dash": "dot", "width": 1}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line, "layer": "below"}
