"""Whether models rely on stain, as a section."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd

from histoblend.models.inspection.importance import sum_by_family
from histoblend.models.inspection.stain import FEWEST_SLIDES, OWN_FAMILY, SPOKEN_STRENGTH, TELLS, StainGroups, StainView
from histoblend.models.names import ALONE, BESIDE, split_model_name
from histoblend.reports.page import figures
from histoblend.reports.page.figures import (
    BLUE,
    BROWN,
    GREEN,
    HEAD_DASHES,
    HEAD_SYMBOLS,
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
from histoblend.reports.page.section import Chart, Section, records
from histoblend.reports.words import model_words, signed, span

#: Models that a sentence names at most.
MOST_NAMED = 3

NAME, TITLE, NAV = "stain", "Does it rely on stain?", "Stain"


def stain_section(view: StainView | None, importances: pd.DataFrame, best: str) -> Section:
    """Show what shifted stains do to every model, groups of slides by stain, and which families tell them apart.

    Parameters
    ----------
    view : StainView or None
        None where nothing was looked at.
    importances : DataFrame
        From :mod:`models.inspection.importance`; may be empty.
    best : str
        The model that sentences speak of first.

    Returns
    -------
    Section
    """
    no_groups = (
        f"Groups of slides are not known: it takes the “stain” family of features and {FEWEST_SLIDES} slides or more."
    )
    if view is None or (view.groups is None and view.shifted is None):
        absent = " ".join(text for text in (no_groups, view.absent if view is not None else "") if text)
        return Section(NAME, TITLE, None, absent=absent, nav=NAV)
    charts: dict[str, Chart] = {}
    tables: dict[str, pd.DataFrame] = {}
    content: dict[str, Any] = {"best": best, "no_groups": no_groups, "absent": view.absent, "trained": view.trained}
    content |= {"groups": None, "shifts": None, "families": None}
    if view.shifted is not None:
        content["shifts"] = _shifts(view.shifted, best)
        charts |= _shift_charts(view.shifted)
        tables["stain-shifts"] = view.shifted
    if view.groups is not None and view.scores is not None and view.slides is not None:
        content["groups"] = _groups(view.groups, view.scores, best)
        charts["stain_groups"] = _group_chart(view.scores, view.slides)
        tables |= {"stain-groups": view.scores, "stain-slides": view.slides}
    if view.groups is not None and view.families is not None:
        content["families"] = {
            "words": family_words(view.families, importances, view.groups.confounded),
            "rows": view.families.to_dict("records"),
            "own": OWN_FAMILY,
        }
        tables["stain-families"] = view.families
    return Section(NAME, TITLE, content, charts=charts, tables=tables, nav=NAV)


def shift_words(curves: pd.DataFrame, best: str, strength: float = SPOKEN_STRENGTH) -> str:
    """Say what shifted stains do to the best model, and which others lose most.

    Parameters
    ----------
    curves : DataFrame
        From :func:`models.inspection.stain.shift_curves`.
    best : str
    strength : float
        One of the strengths.
    """
    shifted = curves[curves.alteration == "shift"]
    text = _altered_words(shifted[shifted.strength == strength], best, f"are scaled and shifted by up to {strength:g}")
    worst = min(_of_rungs(shifted[shifted.strength == shifted.strength.max()]), key=lambda row: row["change"])
    if worst["change"] >= 0:
        return f"{text} At {worst['strength']:g}, no model loses anything."
    return f"{text} At {worst['strength']:g}, {model_words(worst['model'])} loses most, {_loss(worst)}."


def restain_words(curves: pd.DataFrame, best: str) -> str:
    """Say what becomes of models when each slide is given the other group's stain; empty where that was not done.

    Parameters
    ----------
    curves : DataFrame
        From :func:`models.inspection.stain.shift_curves`.
    best : str
    """
    part = curves[curves.alteration == "restain"]
    return _altered_words(part, best, "are exchanged for those of the other group of slides") if len(part) else ""


def _altered_words(part: pd.DataFrame, best: str, done: str) -> str:
    rows = _of_rungs(part)
    mine = next((row for row in rows if row["model"] == best), None)
    text = f"Where stains {done}, "
    if mine is not None:
        text += (
            f"{model_words(best)} {_change(mine)}; its probabilities move by {mine['moved']:.2f} on average, and "
            f"{100 * mine['turned']:.0f} % of the patches change the side of the threshold. "
        )
    losers = sorted((row for row in rows if row["change_high"] < 0), key=lambda row: row["change"])
    none, some = "No model is shown to lose more than chance.", "More than chance is lost by"
    if mine is None:
        none, some = none[0].lower() + none[1:], some[0].lower() + some[1:]
    if not losers:
        return text + none
    worst = [f"{model_words(row['model'])}, {_loss(row)}" for row in losers[:MOST_NAMED]]
    more = f"; and {len(losers) - MOST_NAMED} more" if len(losers) > MOST_NAMED else ""
    return f"{text}{some} {'; '.join(worst)}{more}."


def _of_rungs(curves: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of the ladder's models, families alone left out."""
    return records(curves[~curves.model.map(_is_alone)])


def family_words(families: pd.DataFrame, importances: pd.DataFrame, confounded: bool) -> str:
    """Say which families tell the stain groups apart, and which of those a model leans on most.

    Parameters
    ----------
    families : DataFrame
        From :func:`models.inspection.stain.stain_families`.
    importances : DataFrame
        From :mod:`models.inspection.importance`; may be empty.
    confounded : bool
        Whether stain goes with the label.
    """
    others = families[families.family != OWN_FAMILY]
    tell = others[(others.auc >= TELLS) & (others.low > 0.5)]
    if tell.empty:
        return (
            "On slides that it was not fitted on, no family of features tells the two groups apart with an AUC of "
            f"{TELLS:g} or more, but for “{OWN_FAMILY}”, which they are made from."
        )
    named = ", ".join(f"{row['family']} ({row['auc']:.2f})" for row in records(tell))
    text = f"On slides that they were not fitted on, these families tell the two groups apart (AUC): {named}."
    leading = _leading(importances)
    suspects = {model: row for model, row in leading.items() if row["family"] in (*tell.family, OWN_FAMILY)}
    if not leading:
        return text
    if not suspects:
        return f"{text} None of them is what a model loses most by when it is shuffled."
    ranked = sorted(suspects.items(), key=lambda item: -item[1]["value"])
    leans = "; ".join(
        f"{model_words(model)} loses {row['value']:.3f} of AUC when {row['family']} is shuffled"
        for model, row in ranked[:MOST_NAMED]
    )
    more = f"; and {len(ranked) - MOST_NAMED} more" if len(ranked) > MOST_NAMED else ""
    text += f" A model that leans on them may read the stain, which makes these suspicious: {leans}{more}."
    if confounded:
        return text + " Stain goes with the label here, so the doubt is serious."
    return text + (
        " Stain does not go with the label on these slides, so the scores are not shown to come from it; where the two "
        "go together, they could."
    )


def group_words(scores: pd.DataFrame, best: str) -> str:
    """Say how a model ranks patches within each stain group; empty where neither holds both classes."""
    known = [row for row in records(scores[scores.model == best]) if not pd.isna(row["auc"])]
    if not known:
        return ""
    parts = [f"{row['auc']:.3f}{_within(row['auc_low'], row['auc_high'])} within group {row['group']}" for row in known]
    words = model_words(best)
    return f"{words[0].upper() + words[1:]} reaches an AUC of {' and '.join(parts)}."


def _within(low: float, high: float) -> str:
    return "" if pd.isna(low) else f" ({span(low, high)})"


def _change(row: dict[str, Any]) -> str:
    """What becomes of a model's AUC, in words."""
    if pd.isna(row["change_low"]):
        return f"goes from an AUC of {row['auc'] - row['change']:.3f} to {row['auc']:.3f}"
    if row["change_high"] < 0:
        return f"loses {_loss(row)} of its AUC"
    if row["change_low"] > 0:
        return f"gains {row['change']:.3f} ({span(row['change_low'], row['change_high'])}) of AUC"
    ends = f"{signed(row['change_low'])} to {signed(row['change_high'])}"
    return f"keeps its AUC ({signed(row['change'])}, {ends}: no more than chance)"


def _loss(row: dict[str, Any]) -> str:
    if pd.isna(row["change_low"]):
        return f"{-row['change']:.3f}"
    low, high = (signed(-row[name]).removeprefix("+") for name in ("change_high", "change_low"))
    return f"{-row['change']:.3f} ({low} to {high})"


def _leading(importances: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The family that each model loses most by when it is shuffled, where the interval lies above zero."""
    if not len(importances):
        return {}
    sums = sum_by_family(importances)
    sums = sums[(sums.measure == "permutation") & (sums.low > 0)]
    return {row["model"]: row for row in records(sums.sort_values("value").drop_duplicates("model", keep="last"))}


def _shifts(curves: pd.DataFrame, best: str) -> dict[str, Any]:
    """Words, and a row a model: what it reaches on patches as they are, and its change in each alteration."""
    rows = []
    for model in dict.fromkeys(curves.model):
        whole, *changes = records(curves[curves.model == model])
        rows.append({"model": model, "whole": whole, "changes": changes})
    return {
        "words": shift_words(curves, best),
        "restained": restain_words(curves, best),
        "heads": [alteration_words(row["alteration"], row["strength"]) for row in rows[0]["changes"]],
        "rows": rows,
        "patches": int(curves.patches.iloc[0]),
        "slides": int(curves.slides.iloc[0]),
        # As many slides as patches: no slide is known, and each patch stands for itself.
        "known": bool(curves.slides.iloc[0] < curves.patches.iloc[0]),
        "beside": any(split_model_name(model)[0] in (*BESIDE, "ensemble") for model in curves.model),
    }


def _is_alone(model: str) -> bool:
    return split_model_name(model)[0] in ALONE


def _shift_charts(curves: pd.DataFrame) -> dict[str, Chart]:
    alone = curves.model.map(_is_alone)
    variants = [(words, stain_shifts(curves[~alone], name)) for name, (words, _) in SHIFT_WORDS.items()]
    if alone.any():
        variants += [
            (f"{SHIFT_WORDS[name][0]}, families alone", stain_shifts(curves[alone], name)) for name in ("change", "auc")
        ]
    alt = "Every model's score as stains are shifted further, and exchanged; the table below holds the same numbers."
    return {"shifts": Chart(alt, variants)}


def _groups(groups: StainGroups, scores: pd.DataFrame, best: str) -> dict[str, Any]:
    """Words, the groups, and a row a model with its AUC within each."""
    first = scores[scores.model == scores.model.iloc[0]]
    rows = []
    for model in dict.fromkeys(scores.model):
        part = scores[scores.model == model].set_index("group")
        rows.append({"model": model, "cells": [part.loc[name].to_dict() for name in ("A", "B")]})
    return {
        "words": groups.words(),
        "best": group_words(scores, best),
        "sizes": first.to_dict("records"),
        "rows": rows,
    }


def _group_chart(scores: pd.DataFrame, slides: pd.DataFrame) -> Chart:
    marks: dict[str, Any] = {"by": "group", "marks": GROUP_MARKS}
    variants = [("AUC within each group", figures.forest(scores, "auc", **marks))]
    if slides.auc.notna().any():
        variants.append(("AUC within each slide", figures.slide_strip(slides, **marks)))
    return Chart("AUC of every model within the two stain groups; the table below holds the same numbers.", variants)


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
            "marker": {"color": colour, "symbol": HEAD_SYMBOLS.get(str(head), "circle"), "size": 7},
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
