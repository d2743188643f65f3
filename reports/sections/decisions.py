"""How far probabilities can be believed, and what decisions by them are worth, as a section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from histoblend.models.calibration import WANTED, shift_prevalence
from histoblend.reports.evaluation.decisions import DecisionsView
from histoblend.reports.evaluation.net_benefit import useful_range
from histoblend.reports.page import figures
from histoblend.reports.page.section import Chart, Section, records
from histoblend.reports.sections.ensemble import CALIBRATOR_WORDS
from histoblend.reports.words import model_words

POINT_WORDS = {
    "sensitivity-0.95": f"sensitivity {WANTED:.0%}".replace("%", " %"),
    "specificity-0.95": f"specificity {WANTED:.0%}".replace("%", " %"),
    "best-f1": "best F1",
    "youden": "sensitivity + specificity (Youden)",
}
SPLIT_WORDS = {"oof": "out-of-fold", "test": "test slides"}

#: Patches that consequences are counted on.
PER = 1000


def decisions_section(view: DecisionsView | None) -> Section:
    """Show how far probabilities are shares, what deciding by them is worth, and what thresholds come to."""
    title, nav = "Calibration and decisions", "Calibration"
    if view is None:
        return Section(
            "decisions", title, None, absent="Predictions with labels and two rungs would fill this section.", nav=nav
        )
    tables = {
        "reliability": view.reliability,
        "calibration": view.decomposition,
        "decision-curve": view.curve,
        "operating-points": view.operating,
    }
    if view.calibrators is not None:
        tables["ensemble-calibrators"] = view.calibrators
    content = {
        "best": model_words(view.model),
        "model": view.model,
        "parts": _parts(view),
        "useful": _useful_words(view),
        "calibrators": _calibrators(view.calibrators),
        "operating": [{**row, "words": POINT_WORDS[row["point"]]} for row in records(view.operating)],
        "prevalence": view.prevalence,
        "consequences": [
            {**row, **consequences(row, view.prevalence, view.prevalence)} for row in records(view.operating)
        ],
        "per": PER,
        "point_words": POINT_WORDS,
    }
    return Section("decisions", title, content, charts=_charts(view), tables=tables, data=_data(view), nav=nav)


def consequences(row: Mapping[str, Any], old: float, new: float) -> dict[str, float]:
    """What an operating point comes to at another prevalence, if positives and negatives look as they do here.

    The page's script does the same with the same numbers.

    Parameters
    ----------
    row : mapping
        ``sensitivity, specificity, threshold``.
    old, new : float
        Share of positives where the model was fitted, and where it is used; above 0 and below 1.

    Returns
    -------
    dict from str to float
        ``shifted``: the same threshold on probabilities that speak of `new`; ``at_precision`` and
        ``at_negative_value``, missing where nothing is called so; ``alarms, missed, false_alarms``: patches in
        :data:`PER`.
    """
    found, wrong = row["sensitivity"] * new, (1 - row["specificity"]) * (1 - new)
    missed, left = (1 - row["sensitivity"]) * new, row["specificity"] * (1 - new)
    return {
        # A threshold may lie a rounding error above 1, where nothing is called positive.
        "shifted": float(shift_prevalence(np.array([row["threshold"]]), old, new)[0]),
        "at_precision": found / (found + wrong) if found + wrong > 0 else np.nan,
        "at_negative_value": left / (left + missed) if left + missed > 0 else np.nan,
        "alarms": PER * (found + wrong),
        "missed": PER * missed,
        "false_alarms": PER * wrong,
    }


def _data(view: DecisionsView) -> dict[str, Any]:
    """What the slider computes with; missing rates as null."""
    kept = ("point", "split", "threshold", "sensitivity", "specificity")
    rows = [
        {name: None if isinstance(row[name], float) and np.isnan(row[name]) else row[name] for name in kept}
        for row in records(view.operating)
    ]
    return {"prevalence": view.prevalence, "per": PER, "points": rows}


def _parts(view: DecisionsView) -> list[dict[str, Any]]:
    """A row a model and split, the highest rung first, with each part of the Brier score and its interval."""
    rows = []
    for model in reversed(list(dict.fromkeys(view.decomposition.model))):
        found = view.decomposition[view.decomposition.model == model]
        for split in dict.fromkeys(found.split):
            measures = {str(row["measure"]): row for row in records(found[found.split == split])}
            rows.append({"model": model, "split": split, "measures": measures})
    return rows


def _calibrators(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    if table is None:
        return []
    return records(table.assign(words=table.calibrator.map(CALIBRATOR_WORDS)))


def _charts(view: DecisionsView) -> dict[str, Chart]:
    """Reliability of each model, the one that is decided by first, and decision curves of each split."""
    models = list(dict.fromkeys(view.reliability.model))
    ordered = [view.model, *(model for model in reversed(models) if model != view.model)]
    reliability = [
        (figures.short_name(model), figures.reliability(view.reliability[view.reliability.model == model]))
        for model in ordered
    ]
    curves = [
        (SPLIT_WORDS[split], figures.decision_curve(view.curve[view.curve.split == split], view.model))
        for split in dict.fromkeys(view.curve.split)
    ]
    alt = "Share of positives against probability, out-of-fold and on test slides; see reliability.csv."
    return {
        "reliability": Chart(alt, reliability),
        "decision-curve": Chart(f"Net benefit against threshold probability. {_useful_words(view)}", curves),
    }


def _useful_words(view: DecisionsView) -> str:
    """Say for which thresholds deciding by the model is better than to call all or none positive."""
    runs = useful_range(view.curve, view.model)
    name = model_words(view.model)
    if not runs:
        return (
            f"At no threshold is deciding by {name} shown to be better than calling every patch positive or none "
            "(out-of-fold)."
        )
    listed = [f"{low:.2f} to {high:.2f}" if high > low else f"{low:.2f}" for low, high in runs]
    ranges = listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"
    return (
        f"Deciding by {name} is better than calling every patch positive or none at threshold probabilities of "
        f"{ranges} (out-of-fold; the 95 % interval of the gain lies above zero)."
    )
