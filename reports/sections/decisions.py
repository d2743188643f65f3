"""The Calibration section: reliability of probabilities, net benefit, and operating points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from histoblend.models.calibration import TARGET_RATE, shift_prevalence
from histoblend.reports.evaluation.decisions import DecisionsView
from histoblend.reports.evaluation.net_benefit import useful_range
from histoblend.reports.page import figures
from histoblend.reports.page.section import Chart, Section, records
from histoblend.reports.sections.ensemble import CALIBRATOR_WORDS
from histoblend.reports.words import model_words

POINT_WORDS = {
    "sensitivity-0.95": f"sensitivity {TARGET_RATE:.0%}".replace("%", " %"),
    "specificity-0.95": f"specificity {TARGET_RATE:.0%}".replace("%", " %"),
    "best-f1": "best F1",
    "youden": "sensitivity + specificity (Youden)",
}
SPLIT_WORDS = {"oof": "out-of-fold", "test": "test slides"}

#: Number of patches for which consequences are given.
PER = 1000


def decisions_section(view: DecisionsView | None) -> Section:
    """Show calibration, net benefit of decisions, and the results of each threshold."""
    title, nav = "Calibration and decisions", "Calibration"
    if view is None:
        absent = "This section needs predictions with labels and at least two rungs."
        return Section("decisions", title, None, absent=absent, nav=nav)
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
        "parts": _calibration_rows(view),
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
    """Compute the results of an operating point at another prevalence, assuming label shift.

    Label shift means that only the share of positives differs: positives and negatives look as they do here. The
    page's script computes the same.

    Parameters
    ----------
    row : mapping
        ``sensitivity, specificity, threshold``.
    old, new : float
        Share of positives where the model was fitted, and where it is used. Above 0 and below 1.

    Returns
    -------
    dict from str to float
        ``shifted``: the threshold on probabilities corrected to `new`. ``at_precision``: PPV, NaN if nothing is
        called positive. ``at_negative_value``: NPV, NaN if nothing is called negative. ``alarms, missed,
        false_alarms``: number of predicted positives, false negatives and false positives in :data:`PER` patches.
    """
    true_positives, false_positives = row["sensitivity"] * new, (1 - row["specificity"]) * (1 - new)
    false_negatives, true_negatives = (1 - row["sensitivity"]) * new, row["specificity"] * (1 - new)
    called_positive, called_negative = true_positives + false_positives, true_negatives + false_negatives
    return {
        # A threshold that calls nothing positive can exceed 1 by a rounding error.
        "shifted": float(shift_prevalence(np.array([row["threshold"]]), old, new)[0]),
        "at_precision": true_positives / called_positive if called_positive > 0 else np.nan,
        "at_negative_value": true_negatives / called_negative if called_negative > 0 else np.nan,
        "alarms": PER * called_positive,
        "missed": PER * false_negatives,
        "false_alarms": PER * false_positives,
    }


def _data(view: DecisionsView) -> dict[str, Any]:
    """Numbers that the slider needs; missing rates are null."""
    columns = ("point", "split", "threshold", "sensitivity", "specificity")
    rows = [
        {name: None if isinstance(row[name], float) and np.isnan(row[name]) else row[name] for name in columns}
        for row in records(view.operating)
    ]
    return {"prevalence": view.prevalence, "per": PER, "points": rows}


def _calibration_rows(view: DecisionsView) -> list[dict[str, Any]]:
    """One row per model and split, highest rung first, with each part of the Brier score and its interval."""
    rows = []
    for model in reversed(list(dict.fromkeys(view.decomposition.model))):
        of_model = view.decomposition[view.decomposition.model == model]
        for split in dict.fromkeys(of_model.split):
            measures = {str(row["measure"]): row for row in records(of_model[of_model.split == split])}
            rows.append({"model": model, "split": split, "measures": measures})
    return rows


def _calibrators(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    if table is None:
        return []
    return records(table.assign(words=table.calibrator.map(CALIBRATOR_WORDS)))


def _charts(view: DecisionsView) -> dict[str, Chart]:
    """Reliability of each model, starting with the one used for decisions, and decision curves of each split."""
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
    alt = "Share of positives by predicted probability, out-of-fold and on test slides; see reliability.csv."
    return {
        "reliability": Chart(alt, reliability),
        "decision-curve": Chart(f"Net benefit by threshold probability. {_useful_words(view)}", curves),
    }


def _useful_words(view: DecisionsView) -> str:
    """Say at which thresholds the model is better than calling all patches positive or none."""
    ranges = useful_range(view.curve, view.model)
    name = model_words(view.model)
    if not ranges:
        return (
            f"At no threshold probability is {name} shown to be better than calling every patch positive or none "
            "(out-of-fold; the 95 % CI of the gain is nowhere above 0)."
        )
    listed = [f"{low:.2f} to {high:.2f}" if high > low else f"{low:.2f}" for low, high in ranges]
    words = listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"
    return (
        f"At threshold probabilities of {words}, {name} is better than calling every patch positive or none "
        "(out-of-fold; the 95 % CI of the gain is above 0)."
    )
