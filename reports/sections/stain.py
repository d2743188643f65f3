"""The section on stain: altered stains, stain groups of slides, and families that identify the stain."""

from __future__ import annotations

import itertools
from typing import Any

import pandas as pd

from histoblend.models.inspection.importance import sum_by_family
from histoblend.models.inspection.stain import (
    FEWEST_SLIDES,
    OWN_FAMILY,
    P_LIMIT,
    REPORTED_STRENGTH,
    SEPARATES_FROM_AUC,
    StainGroups,
    StainView,
)
from histoblend.models.names import CONTEXT_RUNGS, SINGLE_FAMILIES, split_model_name
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
from histoblend.reports.words import FAMILY_WORDS, difference, direction, model_words, percent, short_model_words, span

#: Most models named in a sentence.
MAX_NAMED = 3

NAME, TITLE, NAV = "stain", "Does it rely on stain?", "Stain"


def stain_section(view: StainView | None, importances: pd.DataFrame, best: str) -> Section:
    """Show the effect of altered stains on every model, stain groups of slides, and families that separate them.

    Parameters
    ----------
    view : StainView or None
        None if the analysis did not run.
    importances : DataFrame
        From :mod:`models.inspection.importance`; may be empty.
    best : str
        Model that sentences name first.

    Returns
    -------
    Section
    """
    no_groups = (
        f"Stain groups of slides are missing. They need the “stain” family of features and at least {FEWEST_SLIDES} "
        "slides."
    )
    if view is None or (view.groups is None and view.shifted is None):
        absent = " ".join(text for text in (no_groups, view.absent if view is not None else "") if text)
        return Section(NAME, TITLE, None, absent=absent, nav=NAV)
    charts: dict[str, Chart] = {}
    tables: dict[str, pd.DataFrame] = {}
    content: dict[str, Any] = {"best": best, "no_groups": no_groups, "absent": view.absent, "trained": view.trained}
    content |= {"groups": None, "shifts": None, "families": None}
    if view.shifted is not None:
        content["shifts"] = _shift_content(view.shifted, best)
        charts |= _shift_charts(view.shifted)
        tables["stain-shifts"] = view.shifted
    if view.groups is not None and view.scores is not None and view.slides is not None:
        content["groups"] = _group_content(view.groups, view.scores, best)
        charts["stain_groups"] = _group_chart(view.scores, view.slides)
        tables |= {"stain-groups": view.scores, "stain-slides": view.slides}
    if view.groups is not None and view.families is not None:
        content["families"] = {
            "words": family_words(view.families, importances, view.groups.confounded),
            "rows": [row | {"words": FAMILY_WORDS[row["family"]]} for row in records(view.families)],
            "own": OWN_FAMILY,
        }
        tables["stain-families"] = view.families
    return Section(NAME, TITLE, content, charts=charts, tables=tables, nav=NAV, finding=stain_finding(view, best))


def stain_finding(view: StainView, best: str) -> str:
    """Say how altered stains change the best model's AUC, and whether stain is associated with the label."""
    parts = []
    if view.shifted is not None:
        rows = view.shifted[(view.shifted.alteration == "shift") & (view.shifted.strength == REPORTED_STRENGTH)]
        for row in records(rows[rows.model == best]):
            change = difference(row["change"], row["change_low"], row["change_high"])
            parts.append(
                f"stains altered by up to {REPORTED_STRENGTH:g} change the AUC of {model_words(best)} on the test "
                f"slides by {change}"
            )
    if view.groups is not None:
        p = view.groups.p
        level = "P < 0.001" if p < 0.001 else f"P = {p:.3f}"
        if view.groups.confounded:
            parts.append(
                f"stain and label are confounded ({level}), so a model can score well by recognising the stain"
            )
        elif p < P_LIMIT:
            parts.append(f"stain is associated with the label ({level}), but too little to cast doubt on the scores")
        else:
            parts.append(f"an association of stain with the label is not shown ({level})")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def shift_words(curves: pd.DataFrame, best: str, strength: float = REPORTED_STRENGTH) -> str:
    """Say how shifted stains change the AUC of the best model, and of which models they lower it.

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
    if round(worst["change"], 3) >= 0:
        return f"{text} At {worst['strength']:g}, no model's AUC is lower."
    return f"{text} At {worst['strength']:g}, the change of {model_words(worst['model'])} is largest, {_change(worst)}."


def restain_words(curves: pd.DataFrame, best: str) -> str:
    """Say how models change when each slide gets the other group's stain; empty if that was not done.

    Parameters
    ----------
    curves : DataFrame
        From :func:`models.inspection.stain.shift_curves`.
    best : str
    """
    part = curves[curves.alteration == "restain"]
    return _altered_words(part, best, "are exchanged for those of the other group of slides") if len(part) else ""


def _altered_words(part: pd.DataFrame, best: str, alteration: str) -> str:
    rows = _of_rungs(part)
    of_best = next((row for row in rows if row["model"] == best), None)
    text = f"When stains {alteration}, "
    if of_best is not None:
        text += (
            f"{model_words(best)} {_change_words(of_best)}. Its probabilities change by {of_best['moved']:.2f} on "
            f"average, and the predicted class changes for {percent(of_best['turned'])} of the patches. "
        )
    losers = sorted(
        (row for row in rows if direction(row["change_low"], row["change_high"]) == -1), key=lambda row: row["change"]
    )
    none, some = "No model's AUC falls with a 95 % CI below 0.", "Models whose AUC falls, with a 95 % CI below 0:"
    if of_best is None:
        none, some = none[0].lower() + none[1:], some[0].lower() + some[1:]
    if not losers:
        return text + none
    worst = [f"{model_words(row['model'])}, {_change(row)}" for row in losers[:MAX_NAMED]]
    more = f"; and {len(losers) - MAX_NAMED} more" if len(losers) > MAX_NAMED else ""
    return f"{text}{some} {'; '.join(worst)}{more}."


def _of_rungs(curves: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of the ladder's models, without families alone."""
    return records(curves[~curves.model.map(_is_alone)])


def family_words(families: pd.DataFrame, importances: pd.DataFrame, confounded: bool) -> str:
    """Say which families separate the stain groups, and which models rely most on one of them.

    Parameters
    ----------
    families : DataFrame
        From :func:`models.inspection.stain.stain_families`.
    importances : DataFrame
        From :mod:`models.inspection.importance`; may be empty.
    confounded : bool
        Whether stain is associated with the label.
    """
    others = families[families.family != OWN_FAMILY]
    separating = others[(others.auc >= SEPARATES_FROM_AUC) & (others.low > 0.5)]
    if separating.empty:
        return (
            f"No family of features separates the two groups with an AUC of {SEPARATES_FROM_AUC:g} or more on slides "
            f"that were not used to fit it, except “{OWN_FAMILY}”, which defines the groups."
        )
    named = ", ".join(f"{FAMILY_WORDS[row['family']]} ({row['auc']:.2f})" for row in records(separating))
    text = f"On slides that were not used to fit them, these families separate the two groups (AUC): {named}."
    leading = _leading_families(importances)
    suspects = {model: row for model, row in leading.items() if row["family"] in (*separating.family, OWN_FAMILY)}
    if not leading:
        return text
    if not suspects:
        return f"{text} None of them is the family with the largest permutation importance of a model."
    ranked = sorted(suspects.items(), key=lambda item: -item[1]["value"])
    drops = "; ".join(
        f"{short_model_words(model)}, {difference(-row['value'], -row['high'], -row['low'])} when "
        f"{FAMILY_WORDS[row['family']]} is shuffled"
        for model, row in ranked[:MAX_NAMED]
    )
    more = f"; and {len(ranked) - MAX_NAMED} more" if len(ranked) > MAX_NAMED else ""
    text += (
        f" A model that relies on such a family may use the stain. Suspicious models by change of AUC: {drops}{more}."
    )
    if confounded:
        return text + " Stain is associated with the label here, so this suspicion is serious."
    return text + (
        " An association of stain with the label is not shown on these slides, and neither is that the scores come "
        "from it. On slides where the two are associated, they could."
    )


def group_words(scores: pd.DataFrame, best: str) -> str:
    """Say how a model ranks patches within each stain group; empty if no group has both classes."""
    known = [row for row in records(scores[scores.model == best]) if not pd.isna(row["auc"])]
    if not known:
        return ""
    parts = [f"{row['auc']:.3f}{_within(row['auc_low'], row['auc_high'])} within group {row['group']}" for row in known]
    words = model_words(best)
    return f"{words[0].upper() + words[1:]} has an AUC of {' and '.join(parts)}."


def _within(low: float, high: float) -> str:
    return "" if pd.isna(low) else f" ({span(low, high)})"


def _change_words(row: dict[str, Any]) -> str:
    """Change of a model's AUC in words."""
    if pd.isna(row["change_low"]):
        return f"has an AUC of {row['auc']:.3f}, compared with {row['auc'] - row['change']:.3f} on unaltered patches"
    return f"changes its AUC by {_change(row)}"


def _change(row: dict[str, Any]) -> str:
    return difference(row["change"], row["change_low"], row["change_high"])


def _leading_families(importances: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Family with the largest drop in AUC when shuffled, for each model; only drops with an interval above zero."""
    if not len(importances):
        return {}
    sums = sum_by_family(importances)
    sums = sums[sums.measure == "permutation"]
    sums = sums[[direction(low, high) == 1 for low, high in zip(sums.low, sums.high, strict=True)]]
    return {row["model"]: row for row in records(sums.sort_values("value").drop_duplicates("model", keep="last"))}


def _shift_content(curves: pd.DataFrame, best: str) -> dict[str, Any]:
    """Sentences, and one row per model: its AUC on unaltered patches and its change for each alteration."""
    rows = []
    for model in dict.fromkeys(curves.model):
        unaltered, *changes = records(curves[curves.model == model])
        rows.append({"model": model, "unaltered": unaltered, "changes": changes})
    return {
        "words": shift_words(curves, best),
        "restained": restain_words(curves, best),
        "heads": [alteration_words(row["alteration"], row["strength"]) for row in rows[0]["changes"]],
        "rows": rows,
        "patches": int(curves.patches.iloc[0]),
        "slides": int(curves.slides.iloc[0]),
        # If slides are unknown, each patch counts as one slide.
        "known": bool(curves.slides.iloc[0] < curves.patches.iloc[0]),
        "beside": any(split_model_name(model)[0] in (*CONTEXT_RUNGS, "ensemble") for model in curves.model),
    }


def _is_alone(model: str) -> bool:
    return split_model_name(model)[0] in SINGLE_FAMILIES


def _shift_charts(curves: pd.DataFrame) -> dict[str, Chart]:
    alone = curves.model.map(_is_alone)
    variants = [(words, stain_shifts(curves[~alone], name)) for name, (words, _) in SHIFT_WORDS.items()]
    if alone.any():
        variants += [
            (SHIFT_WORDS[name][0].replace("all models", "families alone"), stain_shifts(curves[alone], name))
            for name in ("change", "auc")
        ]
    alt = "Every model's score when stains are shifted or exchanged. The table below has the same numbers."
    return {"shifts": Chart(alt, variants)}


def _group_content(groups: StainGroups, scores: pd.DataFrame, best: str) -> dict[str, Any]:
    """Sentences, group sizes, and one row per model with its AUC within each group."""
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
    variants = [
        (
            "all models, out of fold: AUC within each group",
            figures.forest(scores, "auc", **marks),
        )
    ]
    if slides.auc.notna().any():
        variants.append(
            (
                "all models, out of fold: AUC within each slide",
                figures.slide_strip(slides, **marks),
            )
        )
    return Chart("AUC of every model within the two stain groups. The table below has the same numbers.", variants)


GROUP_MARKS: Marks = {"A": ("stain group A", BLUE, "circle"), "B": ("stain group B", VERMILLION, "diamond-open")}
#: Colour of each family of handcrafted features alone.
FAMILY_COLOURS = dict(
    zip(SINGLE_FAMILIES, itertools.cycle((VERMILLION, GREEN, ORANGE, BLUE, PURPLE, BROWN, SKY, INK)), strict=False)
)
#: Measures of the chart of altered stains: name in the menu, title of the axis.
SHIFT_WORDS = {
    "change": ("all models, test slides: change of AUC compared with unaltered patches", "change of AUC"),
    "auc": ("all models, test slides: AUC", "AUC"),
    "moved": (
        "all models, test slides: mean absolute change of probability",
        "mean absolute change of probability",
    ),
    "turned": (
        "all models, test slides: share of patches whose predicted class changes",
        "share with changed class",
    ),
}


def stain_shifts(curves: pd.DataFrame, measure: str) -> Figure:
    """Draw a measure for altered stains: one line per model over the strengths, with intervals if there are any.

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
        # Strengths are categories. Models are drawn side by side at each, so that intervals do not overlap.
        offset = 0.56 * ((number + 0.5) / len(models) - 0.5)
        trace: Figure = {
            "type": "scatter",
            "mode": "lines+markers",
            "name": short_name(model),
            "x": [round(position + offset, 4) for position in range(len(names))],
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
        data.append(_with_gap(trace, part.alteration.tolist()))
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


def _with_gap(trace: Figure, alterations: list[str]) -> Figure:
    """Leave a gap in the line between shifted and exchanged stains, because these are different alterations."""
    if alterations[-1] != alterations[0]:
        index = next(number for number, name in enumerate(alterations) if name != alterations[0])
        for values in (trace["x"], trace["y"], trace["text"]):
            values.insert(index, None)
        for values in (trace["error_y"]["array"], trace["error_y"]["arrayminus"]) if "error_y" in trace else ():
            values.insert(index, None)
    return trace


def alteration_words(alteration: str, strength: float) -> str:
    """Name of an alteration in a word or two."""
    if strength == 0:
        return "unaltered"
    return f"± {strength:g}" if alteration == "shift" else "other group's"


def _shift_text(row: dict[str, Any]) -> str:
    """Hover text of a model under one alteration."""
    name = alteration_words(row["alteration"], row["strength"])
    known = not pd.isna(row["auc_low"])
    text = f"{name}<br>AUC {row['auc']:.3f}" + (f" ({span(row['auc_low'], row['auc_high'])})" if known else "")
    if row["strength"] == 0:
        return text
    return (
        f"{text}<br>change {_change(row)}<br>probabilities change by {row['moved']:.3f}, "
        f"class changes for {row['turned']:.1%}"
    )
