"""Charts of the Calibration section. Every chart names its model and split."""

from __future__ import annotations

from typing import Any

import pandas as pd

from histoblend.reports.evaluation.decisions import DEFAULT_POINT, DecisionsView
from histoblend.reports.page import figures
from histoblend.reports.page.section import Chart, records
from histoblend.reports.words import percent, span

SPLIT_WORDS = {"oof": "out-of-fold", "test": "test slides"}
_POINT_MARKS = {
    "sensitivity-0.95": ("sensitivity 95 %", figures.ORANGE, "triangle-up"),
    "specificity-0.95": ("specificity 95 %", figures.GREEN, "square"),
    "best-f1": ("best F1", figures.PURPLE, "diamond"),
    "youden": ("Youden (default)", figures.VERMILLION, "star"),
}


def decision_charts(view: DecisionsView, useful: str) -> dict[str, Chart]:
    """Charts by name; each variant shows one split, except reliability, which marks both splits.

    Parameters
    ----------
    view : DecisionsView
    useful : str
        At which thresholds the model is useful, for readers who cannot see the decision curve.
    """
    name = figures.short_name(view.model)
    models = list(dict.fromkeys(view.reliability.model))
    ordered = [view.model, *(model for model in reversed(models) if model != view.model)]
    reliability = []
    for model in ordered:
        part = view.reliability[view.reliability.model == model]
        splits = " and ".join(words for split, words in SPLIT_WORDS.items() if (part.split == split).any())
        reliability.append((f"{figures.short_name(model)}, {splits}", figures.reliability(part)))
    curves = [
        (f"{name} and the best head of each rung, {SPLIT_WORDS[split]}", figures.decision_curve(part, view.model))
        for split, part in _by_split(view.curve)
    ]
    recall = [
        (f"{name}, {SPLIT_WORDS[split]}", precision_recall(part, view, split))
        for split, part in _by_split(view.precision_recall)
    ]
    scores = [
        (f"{name}, {SPLIT_WORDS[split]}", histogram(part, _threshold(view)))
        for split, part in _by_split(view.histogram)
    ]
    charts = {
        "reliability": Chart(
            "Share of positives by predicted probability, out-of-fold and on test slides; see reliability.csv.",
            reliability,
        ),
        "precision-recall": Chart(f"Precision by recall of {name}. {_average_words(view)}", recall),
        "scores": Chart(
            f"Histogram of the scores of {name}, positives above the axis, negatives below; score-histogram.csv.",
            scores,
        ),
        "decision-curve": Chart(f"Net benefit by threshold probability. {useful}", curves),
    }
    return {name: chart for name, chart in charts.items() if chart.variants}


def _by_split(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(split, table[table.split == split]) for split in SPLIT_WORDS if (table.split == split).any()]


def _threshold(view: DecisionsView) -> float:
    return float(view.operating[view.operating.point == DEFAULT_POINT].threshold.iloc[0])


def _average_words(view: DecisionsView) -> str:
    parts = [f"{row['words']} {_average(row)}" for row in _averages(view).values()]
    return f"Average precision: {'; '.join(parts)}. precision-recall.csv has the curve."


def _averages(view: DecisionsView) -> dict[str, dict[str, Any]]:
    rows = records(view.average_precision)
    return {row["split"]: {**row, "words": SPLIT_WORDS[row["split"]]} for row in rows}


def _average(row: dict[str, Any]) -> str:
    interval = "" if pd.isna(row["low"]) else f" ({span(row['low'], row['high'])})"
    return f"{row['value']:.3f}{interval}"


def precision_recall(curve: pd.DataFrame, view: DecisionsView, split: str) -> dict[str, Any]:
    """Draw precision against recall on one split, the operating points, and the precision of random scores."""
    _, colour, _ = figures.SPLIT_MARKS[split]
    average = _averages(view)[split]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"average precision {_average(average)}",
            "x": figures.numbers(curve.recall, 4),
            "y": figures.numbers(curve.precision, 4),
            "customdata": figures.numbers(curve.threshold, 3),
            "line": {"color": colour, "width": 2},
            "hovertemplate": "threshold %{customdata:.3f}<br>recall %{x:.3f}<br>precision %{y:.3f}<extra></extra>",
        }
    ]
    points = view.operating[(view.operating.split == split) & view.operating.precision.notna()]
    for row in points.to_dict("records"):
        words, shade, symbol = _POINT_MARKS[row["point"]]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": words,
                "x": [round(row["sensitivity"], 4)],
                "y": [round(row["precision"], 4)],
                "marker": {"color": shade, "symbol": symbol, "size": 11},
                "hovertemplate": f"{words}<br>recall %{{x:.3f}}<br>precision %{{y:.3f}}<extra></extra>",
            }
        )
    chance = round(float(curve.precision.iloc[0]), 4)  # all patches called positive
    axis = {"range": [-0.02, 1.02], "zeroline": False, "automargin": True}
    line = {"color": figures.INK, "dash": "dot", "width": 1}
    frame = figures.layout(
        xaxis={**axis, "title": {"text": "recall (sensitivity)", "standoff": 8}},
        yaxis={**axis, "title": {"text": "precision (PPV)", "standoff": 8}},
        height=460,
        shapes=[{"type": "line", "x0": 0, "x1": 1, "y0": chance, "y1": chance, "line": line}],
    )
    return {"data": data, "layout": frame}


def histogram(table: pd.DataFrame, threshold: float) -> dict[str, Any]:
    """Draw the share of each class by score on one split: positives upwards, negatives downwards."""
    data = []
    highest = 0.0
    for column, colour, sign in (("positives", figures.VERMILLION, 1), ("negatives", figures.BLUE, -1)):
        total = int(table[column].sum())
        share = table[column].to_numpy() / max(total, 1)
        highest = max(highest, float(share.max()))
        data.append(
            {
                "type": "bar",
                "name": f"{column}, {total:,} patches",
                "x": figures.numbers((table.low + table.high) / 2, 4),
                "y": figures.numbers(sign * share, 5),
                "width": 0.9 / len(table),
                "marker": {"color": colour},
                "text": [
                    f"score {row['low']:.2f} to {row['high']:.2f}<br>{row[column]:,} {column}, {percent(part, 1)}"
                    for row, part in zip(table.to_dict("records"), share, strict=True)
                ],
                "hoverinfo": "text",
                "textposition": "none",
            }
        )
    step = next(step for step in (0.05, 0.1, 0.2, 0.25) if highest <= 4 * step or step == 0.25)
    ticks = [round(step * number, 2) for number in range(-4, 5)]
    frame = figures.layout(
        xaxis={"range": [0, 1], "title": {"text": "score", "standoff": 8}, "zeroline": False, "automargin": True},
        yaxis={
            "title": {"text": "share of the class", "standoff": 8},
            "range": [-1.08 * max(highest, 0.01), 1.08 * max(highest, 0.01)],
            "tickvals": ticks,
            "ticktext": [percent(abs(tick)) for tick in ticks],
            "automargin": True,
        },
        barmode="overlay",
        height=380,
        shapes=[figures.rule(threshold)],
    )
    return {"data": data, "layout": frame}
