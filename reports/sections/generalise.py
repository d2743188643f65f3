"""The section on generalisation: shortcuts in the columns, gains from more labels, and calibration on new slides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from histoblend.models.inspection.label_forecast import MORE_SLIDES
from histoblend.models.inspection.new_slides import LABELLED
from histoblend.models.inspection.shortcuts import SLIDE
from histoblend.reports.page.section import Chart, Section, records
from histoblend.reports.sections import generalise_charts as charts
from histoblend.reports.sections.generalise_charts import NETWORK, set_words
from histoblend.reports.words import difference, direction, model_words, percent, span

NAME, TITLE, NAV = "generalise", "Will it generalise?", "Generalise"

#: Number of labelled patches of a new slide in the text.
REPORTED = 50
#: From this value on, with an interval above 0, resemblance to other slides counts as a shortcut.
SHORTCUT_LIMIT = 0.25
#: Most sets named in a sentence.
MAX_NAMED = 3
#: Slides bring clearly more if their gain is this many times that of as many patches.
CLEARLY = 1.5


@dataclass(frozen=True)
class LearningView:
    """Learning curves, and calibration on new slides.

    Attributes
    ----------
    curve, gains : DataFrame
        ``set`` (of columns; "cnn" for the fine-tuned network) and the columns of
        :class:`models.inspection.label_forecast.Forecast`.
    slides, recalibration : DataFrame
        ``model`` and the columns of :func:`models.inspection.new_slides.slide_calibration` and
        :func:`models.inspection.new_slides.recalibration_gains`.
    """

    curve: pd.DataFrame
    gains: pd.DataFrame
    slides: pd.DataFrame
    recalibration: pd.DataFrame


def generalise_section(
    shortcuts: pd.DataFrame | None, learning: LearningView | None, *, omitted: bool = False
) -> Section:
    """Show whether columns know tumour or slides, and what more slides, patches or labels of a new slide would bring.

    Parameters
    ----------
    shortcuts : DataFrame or None
        ``set, source`` and the columns of :func:`models.inspection.shortcuts.measure_shortcuts`.
    learning : LearningView or None
    omitted : bool
        Whether the command left the learning curve out, so that another command adds it.
    """
    if shortcuts is None and learning is None:
        absent = "Shortcuts and learning curves need training patches of several known slides: set data.slide_map."
        return Section(NAME, TITLE, None, absent=absent, nav=NAV)
    shown: dict[str, Chart] = {}
    tables: dict[str, pd.DataFrame] = {}
    content: dict[str, Any] = {"shortcuts": None, "learning": None, "calibration": None, "more": MORE_SLIDES}
    content["omitted"] = omitted
    if shortcuts is not None:
        content["shortcuts"] = _shortcut_content(shortcuts)
        chart = charts.shortcut_chart(shortcuts)
        shown |= {"shortcuts": chart} if chart.variants else {}
        tables["shortcuts"] = shortcuts
    if learning is not None:
        content["learning"] = _learning_content(learning)
        shown["learning-curves"] = charts.learning_chart(learning.curve, _best_set(learning.curve))
        tables |= {"learning-curve": learning.curve, "label-gains": learning.gains}
        if len(learning.recalibration):
            content["calibration"] = _calibration_content(learning)
            shown["new-slides"] = charts.new_slide_chart(learning.slides, learning.recalibration)
        tables |= {"slide-calibration": learning.slides, "new-slide-recalibration": learning.recalibration}
    finding = label_words(learning)["short"] if learning is not None else shortcut_words(shortcuts)["first"]
    return Section(NAME, TITLE, content, charts=shown, tables=tables, nav=NAV, finding=finding)


def _named(rows: list[dict[str, Any]], measure: str) -> str:
    """Name sets with a measure and its interval; the first few if there are many."""
    parts = [
        f"{set_words(row['set'])} {row[measure]:.2f} ({span(row[f'{measure}_low'], row[f'{measure}_high'], 2)})"
        for row in rows[:MAX_NAMED]
    ]
    return "; ".join(parts) + (f"; and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else "")


def shortcut_words(shortcuts: pd.DataFrame | None, kind: str = SLIDE) -> dict[str, str]:
    """Say which sets of columns group patches by tumour or by slide, which recognise slides, and which offer shortcuts.

    Parameters
    ----------
    shortcuts : DataFrame or None
        As for :func:`generalise_section`.
    kind : str
        Kind of group.

    Returns
    -------
    dict from str to str
        ``first, robustness, recognised, shortcut``; the first is the shortest.
    """
    if shortcuts is None:
        return {"first": "", "robustness": "", "recognised": "", "shortcut": ""}
    part = shortcuts[shortcuts.kind == kind]
    rows = records(part[part.robustness.notna()])
    sides = [direction(row["robustness_low"], row["robustness_high"], null=0.5, digits=2) for row in rows]
    by_label = sorted((row for row, side in zip(rows, sides, strict=True) if side == 1), key=lambda r: -r["robustness"])
    by_group = sorted((row for row, side in zip(rows, sides, strict=True) if side == -1), key=lambda r: r["robustness"])
    parts = []
    if by_label:
        parts.append(f"Label outweighs {kind} among neighbours in: {_named(by_label, 'robustness')}.")
    if by_group:
        parts.append(f"{kind.capitalize()} outweighs label in: {_named(by_group, 'robustness')}.")
    if len(by_label) + len(by_group) < len(rows):
        count = len(rows) - len(by_label) - len(by_group)
        parts.append(f"{count} of {len(rows)} sets are inconclusive (95 % CI includes 0.5).")
    recognised, possible = _recognition_words(part, kind)
    large = sorted(records(part[part.shortcut >= SHORTCUT_LIMIT]), key=lambda row: -row["shortcut"])
    averaged = [row for row in large if row["set"] == "ensemble" and row["shortcut_low"] > 0]
    large = [row for row in large if row["set"] != "ensemble"]
    found = [row for row in large if row["shortcut_low"] > 0]
    if part.margin.isna().all():
        shortcut = first = (
            f"Tumour and {kind} cannot be separated: hardly any {kind} has both labels, so every set of columns that "
            f"recognises the {kind} may offer a shortcut, and none can be ruled out."
        )
    elif found:
        shortcut = (
            "Which slides a patch resembles predicts its label, so a model can score well without seeing tumour. "
            f"Shortcut, in standard deviations: {_named(found, 'shortcut')}."
        )
        first = "Shortcuts exist: slides that look alike have similar shares of positives, above all in " + (
            f"{set_words(found[0]['set'])} ({found[0]['shortcut']:.2f})."
        )
    elif large:
        shortcut = (
            "Whether columns offer a shortcut is inconclusive: positive patches may resemble slides with more "
            f"positives. Shortcut, in standard deviations, each with a 95 % CI that is not above 0: "
            f"{_named(large, 'shortcut')}."
        )
        first = f"Shortcuts are neither shown nor ruled out, above all in {_named(large[:1], 'shortcut')}."
    else:
        shortcut = (
            f"No set of columns offers a shortcut: positive patches do not resemble slides with more positives (all "
            f"below {SHORTCUT_LIMIT:g} standard deviations)."
        )
        first = f"No shortcut is found on these slides.{possible}"
    if averaged:
        shortcut += (
            " The ensemble uses the other patches of a slide on purpose, so its output follows the slide: "
            f"{_named(averaged, 'shortcut')}."
        )
    return {"first": first, "robustness": " ".join(parts), "recognised": recognised, "shortcut": shortcut}


def _recognition_words(part: pd.DataFrame, kind: str) -> tuple[str, str]:
    """Say from which sets groups are recognised, and that a shortcut is possible; empty if it was not measured."""
    measured = sorted(records(part[part.recognised.notna()]), key=lambda row: -row["recognised"])
    if not measured:
        return "", ""
    most, least = measured[0], measured[-1]
    best, chance = percent(most["recognised"]), percent(most["chance"])
    where = f"from {set_words(most['set'])}, {best} of the time"
    if len(measured) > 1:
        where = f"best {where}, and least from {set_words(least['set'])}, {percent(least['recognised'])}"
    return (
        f"The {kind} of a patch is recognised {where} (by chance {chance}).",
        f" {kind.capitalize()}s are recognised up to {best} of the time (by chance {chance}), so one is possible on "
        "others.",
    )


def _shortcut_content(shortcuts: pd.DataFrame) -> dict[str, Any]:
    kinds = list(dict.fromkeys(shortcuts.kind))
    rows = [row | {"words": set_words(row["set"])} for row in records(shortcuts)]
    return {
        "words": [shortcut_words(shortcuts, kind) for kind in kinds],
        "kinds": kinds,
        "rows": rows,
        "patches": int(shortcuts.patches.max()),
        "slides": int(shortcuts.slides.max()),
    }


def _best_set(curve: pd.DataFrame) -> str:
    """Set with the best AUC on all slides."""
    whole = curve.groupby("set").tail(1)
    return str(whole.set.iloc[int(whole.auc.argmax())])


def label_words(learning: LearningView, name: str | None = None) -> dict[str, str]:
    """Say what more slides and more patches would bring, and which to collect.

    Parameters
    ----------
    learning : LearningView
    name : str, optional
        A set of columns, or the network; the best one by default.

    Returns
    -------
    dict from str to str
        ``short``: what to collect, and the gains; ``advice``: a sentence to add.
    """
    name = name or _best_set(learning.curve)
    mine = learning.gains[(learning.gains.set == name) & (learning.gains.metric == "auc")]
    gains = {str(row["axis"]): row for row in records(mine)}
    model = f"the {set_words(name)}" if name == NETWORK else set_words(name)
    changes = f"would change the AUC of {model} on new slides by"
    needed = "A forecast needs four or more sizes on each curve."
    if not gains:
        return {"short": "Too few slides or patches per slide for a forecast.", "advice": needed}
    if "patches" not in gains:
        short = f"{_slides_to_add(gains['slides'])} {changes} {_gain(gains['slides'])}. There are too few patches "
        return {"short": f"{short}per slide to forecast what more patches of them would bring.", "advice": needed}
    if "slides" not in gains:
        short = f"{gains['patches']['patches']:,} more patches of the same slides {changes} {_gain(gains['patches'])}. "
        return {"short": f"{short}There are too few slides to forecast what more slides would bring.", "advice": needed}
    slides, patches = (gains[axis] for axis in ("slides", "patches"))
    helps = [direction(row["low"], row["high"]) == 1 for row in (slides, patches)]
    clearly = [slides["gain"] >= CLEARLY * patches["gain"], patches["gain"] >= CLEARLY * slides["gain"]]
    if helps[0] and (clearly[0] or not helps[1]):
        short, advice = (
            "Collect more slides",
            "More patches of the slides that you have "
            + ("bring less for the same work." if clearly[0] else "are not shown to help."),
        )
    elif helps[1] and (clearly[1] or not helps[0]):
        short, advice = (
            "Label more patches of the slides that you have",
            "As many patches of more slides " + ("bring less." if clearly[1] else "are not shown to help."),
        )
    elif all(helps):
        short, advice = (
            "Label more patches, of any slides",
            "New slides and those that you have bring as much.",
        )
    else:
        short = "More labels are not shown to help"
        advice = "Try other columns or models first, and check the labels."
    short += (
        f": {_slides_to_add(slides)} {changes} {_gain(slides)}, as many more patches of the same slides by "
        f"{_gain(patches)}."
    )
    return {"short": short, "advice": advice}


def _slides_to_add(row: dict[str, Any]) -> str:
    return f"{MORE_SLIDES} more slides (about {row['patches']:,} patches)"


def _gain(row: dict[str, Any]) -> str:
    return difference(row["gain"], row["low"], row["high"])


def _learning_content(learning: LearningView) -> dict[str, Any]:
    rows = []
    for name in dict.fromkeys(learning.curve.set):
        last = learning.curve[learning.curve.set == name].iloc[-1].to_dict()
        mine = learning.gains[(learning.gains.set == name) & (learning.gains.metric == "auc")]
        gains = {row["axis"]: row for row in records(mine)}
        rows.append({"words": set_words(name), "last": last, "gains": gains})
    points = [row | {"words": set_words(row["set"])} for row in records(learning.curve)]
    tuned = NETWORK in set(learning.curve.set)
    other = tuned and _best_set(learning.curve) != NETWORK
    network = label_words(learning, NETWORK)["short"] if other else ""
    return {"words": label_words(learning), "network": network, "tuned": tuned, "rows": rows, "points": points}


def calibration_words(learning: LearningView) -> str:
    """Say how well the first model is calibrated on new slides, and what labels of a new slide change."""
    model = learning.slides.model.iloc[0]
    slides = learning.slides[learning.slides.model == model]
    text = (
        f"On slides that it was not trained on, the calibration error of {model_words(model)} is "
        f"{slides.error.mean():.3f} on average over {len(slides)} slides. With as many patches per slide, a perfectly "
        f"calibrated model would have {slides.chance.mean():.3f}."
    )
    part = learning.recalibration[(learning.recalibration.model == model) & (learning.recalibration.way == "shift")]
    labelled = REPORTED if (part.labelled == REPORTED).any() else part.labelled.min()
    rows = {row["judged"]: row for row in records(part[part.labelled == labelled])}
    if "all" in rows:
        row = rows["all"]
        change = difference(row["change"], row["low"], row["high"])
        text += (
            f" With {labelled} labelled patches of a new slide, a shift of its log-odds changes the log loss on its "
            f"other patches by {change}, from {row['before']:.3f} ({row['slides']} slides)."
        )
    if "mixed" in rows and rows["mixed"]["slides"] < rows["all"]["slides"]:
        row = rows["mixed"]
        text += f" On slides with both labels: {difference(row['change'], row['low'], row['high'])}."
    return text


def _calibration_content(learning: LearningView) -> dict[str, Any]:
    rows = []
    for model in dict.fromkeys(learning.slides.model):
        mean = learning.slides[learning.slides.model == model][["error", "chance"]].mean()
        part = learning.recalibration[learning.recalibration.model == model]
        for judged in dict.fromkeys(part.judged):
            for way in dict.fromkeys(part.way):
                gains = part[(part.judged == judged) & (part.way == way)].set_index("labelled").to_dict("index")
                cells = [gains.get(labelled) for labelled in LABELLED]
                rows.append({"model": model, "judged": judged, "way": way, "cells": cells, **mean.to_dict()})
    return {"words": calibration_words(learning), "rows": rows, "labelled": LABELLED, "ways": charts.WAY_WORDS}
