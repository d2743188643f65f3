"""Figures of altered stains and of slides in groups by stain."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd

from histoblend.models.names import ALONE, split_model_name
from histoblend.reports.figures import (
    BLUE,
    BROWN,
    GREEN,
    HEAD_DASHES,
    INK,
    ORANGE,
    PURPLE,
    RUNG_COLOURS,
    SKY,
    VERMILLION,
    Figure,
    Marks,
    layout,
    numbers,
    short_name,
)
from histoblend.reports.verdict import signed, span

GROUP_MARKS: Marks = {"A": ("stain group A", BLUE, "circle"), "B": ("stain group B", VERMILLION, "diamond-open")}
#: Families of handcrafted features alone.
FAMILY_COLOURS = dict(
    zip(ALONE, itertools.cycle((VERMILLION, GREEN, ORANGE, BLUE, PURPLE, BROWN, SKY, INK)), strict=False)
)
#: What is shown of altered stains: the chooser's words, and the axis'.
SHIFT_WORDS = {
    "change": ("change of AUC against the patches as they are", "change of AUC"),
    "auc": ("AUC on held-out slides", "AUC"),
    "moved": ("mean absolute change of probability", "mean change of probability"),
    "turned": ("share of patches that change the side of the threshold", "share that changes side"),
}


def stain_shifts(curves: pd.DataFrame, measure: str) -> Figure:
    """Draw what altered stains do: a line a model over the strengths, with intervals where there are any.

    Parameters
    ----------
    curves : DataFrame
        From :func:`models.inspection.stain.shift_curves`.
    measure : {"auc", "change", "moved", "turned"}
    """
    models = list(dict.fromkeys(curves.model))
    names = [alteration_words(*row) for row in curves[["alteration", "strength"]].drop_duplicates().to_numpy()]
    data: list[Figure] = []
    for number, model in enumerate(models):
        rung, head = split_model_name(model)
        colour = FAMILY_COLOURS[rung] if rung in FAMILY_COLOURS else RUNG_COLOURS[rung]
        part = curves[curves.model == model]
        # Strengths are names, not a scale: models stand side by side at each, so that intervals can be told apart.
        aside = 0.56 * ((number + 0.5) / len(models) - 0.5)
        trace: Figure = {
            "type": "scatter",
            "mode": "lines+markers",
            "name": short_name(model),
            "x": [round(place + aside, 4) for place in range(len(names))],
            "y": numbers(part[measure], 5),
            "text": [f"{short_name(model)}, {_shift_text(row)}" for row in part.to_dict("records")],
            "hoverinfo": "text",
            "line": {"color": colour, "width": 1.5, "dash": HEAD_DASHES.get(str(head), "solid")},
            "marker": {"color": colour, "symbol": "diamond-open" if head == "xgboost" else "circle", "size": 7},
        }
        if f"{measure}_low" in part:
            trace["error_y"] = {
                "type": "data",
                "symmetric": False,
                "array": numbers(part[f"{measure}_high"] - part[measure], 5),
                "arrayminus": numbers(part[measure] - part[f"{measure}_low"], 5),
                "color": colour,
                "thickness": 1,
                "width": 0,
            }
        data.append(_parted(trace, part.alteration.tolist()))
    axis = {"zeroline": False, "automargin": True}
    frame = layout(
        xaxis={
            **axis,
            "tickvals": list(range(len(names))),
            "ticktext": names,
            "range": [-0.5, len(names) - 0.5],
            "showgrid": False,
            "title": {"text": "stains scaled and shifted by up to ±, or exchanged", "standoff": 8},
        },
        yaxis={**axis, "title": {"text": SHIFT_WORDS[measure][1], "standoff": 8}},
        height=560,
    )
    if measure == "turned":
        frame["yaxis"]["tickformat"] = ".0%"
    return {"data": data, "layout": frame}


def _parted(trace: Figure, alterations: list[str]) -> Figure:
    """Leave a gap in the line where another alteration begins: exchanged stains are no farther step on the way."""
    if alterations[-1] != alterations[0]:
        place = next(number for number, name in enumerate(alterations) if name != alterations[0])
        for values in (trace["x"], trace["y"], trace["text"]):
            values.insert(place, None)
        for values in (trace["error_y"]["array"], trace["error_y"]["arrayminus"]) if "error_y" in trace else ():
            values.insert(place, None)
    return trace


def alteration_words(alteration: str, strength: float) -> str:
    """What was done to the stains, in a word or two."""
    if strength == 0:
        return "as they are"
    return f"± {strength:g}" if alteration == "shift" else "other group's"


def _shift_text(row: dict[str, Any]) -> str:
    """What is known of a model under one alteration."""
    where = alteration_words(row["alteration"], row["strength"])
    known = not pd.isna(row["auc_low"])
    text = f"{where}<br>AUC {row['auc']:.3f}" + (f" ({span(row['auc_low'], row['auc_high'])})" if known else "")
    if row["strength"] == 0:
        return text
    ends = f" ({signed(row['change_low'])} to {signed(row['change_high'])})" if known else ""
    return (
        f"{text}<br>change {signed(row['change'])}{ends}<br>probabilities move by {row['moved']:.3f}, "
        f"{row['turned']:.1%} change side"
    )
