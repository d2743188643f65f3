"""The Calibration section: results at an operating point, calibration, net benefit, and all operating points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from histoblend.models.calibration import TARGET_RATE, shift_prevalence
from histoblend.reports.evaluation.decisions import DEFAULT_POINT, DecisionsView
from histoblend.reports.evaluation.net_benefit import useful_range
from histoblend.reports.page.section import Section, records
from histoblend.reports.sections.decision_charts import decision_charts
from histoblend.reports.sections.ensemble import CALIBRATOR_WORDS
from histoblend.reports.words import decimal, direction, model_words, percent, signed, signed_span, span

POINT_WORDS = {
    "sensitivity-0.95": f"sensitivity {TARGET_RATE:.0%}".replace("%", " %"),
    "specificity-0.95": f"specificity {TARGET_RATE:.0%}".replace("%", " %"),
    "best-f1": "best F1",
    "youden": "sensitivity + specificity (Youden)",
}
#: Name of each measure of a recalibration, its ideal value, and what it means if it is above or below that.
RECALIBRATION_WORDS = {
    "slope": ("slope", 1.0, "probabilities too moderate", "probabilities too extreme"),
    "intercept": ("intercept, with that slope", 0.0, "above 0", "below 0"),
    "in_the_large": (
        "intercept at slope 1 (in the large)", 0.0,
        "probabilities too low on average", "probabilities too high on average",
    ),
}  # fmt: skip

#: Number of patches for which results are given.
PER = 1000


def decisions_section(view: DecisionsView | None) -> Section:
    """Show the results at an operating point, calibration, net benefit of decisions, and every threshold."""
    title, nav = "Calibration and decisions", "Calibration"
    if view is None:
        absent = "This section needs predictions with labels and at least two rungs."
        return Section("decisions", title, None, absent=absent, nav=nav)
    tables = {
        "reliability": view.reliability,
        "calibration": view.decomposition,
        "recalibration": view.recalibration,
        "precision-recall": view.precision_recall,
        "score-histogram": view.histogram,
        "decision-curve": view.curve,
        "operating-points": view.operating,
    }
    if view.calibrators is not None:
        tables["ensemble-calibrators"] = view.calibrators
    operating = records(view.operating)
    results = [{**row, **consequences(row, view.prevalence, view.prevalence)} for row in operating]
    content = {
        "best": model_words(view.model),
        "default": DEFAULT_POINT,
        "matrices": [row for row in results if row["point"] == DEFAULT_POINT],
        "recalibration": _recalibration_rows(view.recalibration),
        "parts": _calibration_rows(view),
        "useful": _useful_words(view),
        "calibrators": _calibrators(view.calibrators),
        "operating": [{**row, "words": POINT_WORDS[row["point"]]} for row in operating],
        "prevalence": view.prevalence,
        "consequences": results,
        "per": PER,
        "point_words": POINT_WORDS,
    }
    charts = decision_charts(view, _useful_words(view))
    finding = decisions_finding(view)
    return Section(
        "decisions", title, content, charts=charts, tables=tables, data=_data(view), nav=nav, finding=finding
    )


def decisions_finding(view: DecisionsView) -> str:
    """Say how often the model is right at its default operating point, and whether its probabilities are calibrated."""
    rows = [row for row in records(view.operating) if row["point"] == DEFAULT_POINT]
    rates = [
        f"{'a sensitivity of ' if not number else ''}{_rate(row['sensitivity'])} and "
        f"{'a specificity of ' if not number else ''}{_rate(row['specificity'])} {_on(row['split'])}"
        for number, row in enumerate(rows)
    ]
    slopes = view.recalibration[view.recalibration.measure == "slope"]
    found = [f"{_slope_words(row)} {_on(row['split'])}" for row in records(slopes) if not pd.isna(row["value"])]
    text = f"At its default operating point, {model_words(view.model)} has {', and '.join(rates)}"
    return f"{text}; its calibration slope is {' and '.join(found)}." if found else f"{text}."


def _rate(value: float) -> str:
    return "–" if pd.isna(value) else percent(value)


def _on(split: str) -> str:
    return "out-of-fold" if split == "oof" else "on the test slides"


def _slope_words(row: Mapping[str, Any]) -> str:
    side = direction(row["low"], row["high"], null=1.0, digits=2)
    if side is None:
        return decimal(row["value"], 2)
    interval = f"{decimal(row['low'], 2)} to {decimal(row['high'], 2)}"
    if side == 0:
        return f"{decimal(row['value'], 2)} (95 % CI {interval}, includes the ideal 1)"
    _, _, above, below = RECALIBRATION_WORDS["slope"]
    return f"{decimal(row['value'], 2)} (95 % CI {interval}; {above if side > 0 else below})"


def _recalibration_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of the table, one per measure: its name, its ideal value, and a cell per split."""
    rows = []
    for measure, (words, ideal, above, below) in RECALIBRATION_WORDS.items():
        number, between = (decimal, span) if ideal else (signed, signed_span)
        cells = []
        for row in records(table[table.measure == measure]):
            side = direction(row["low"], row["high"], null=ideal, digits=2)
            shows = {None: "", 0: f"95 % CI includes the ideal {ideal:g}", 1: above, -1: below}[side]
            interval = "" if side is None else between(row["low"], row["high"], 2)
            value = "–" if pd.isna(row["value"]) else number(row["value"], 2)
            cells.append({"split": row["split"], "value": value, "interval": interval, "shows": shows})
        rows.append({"measure": measure, "words": words, "ideal": ideal, "cells": cells})
    return rows


def consequences(row: Mapping[str, Any], old: float, new: float) -> dict[str, float]:
    """Compute the results of an operating point at another prevalence, assuming label shift.

    Label shift means that only the share of positives differs: positives and negatives look as they do here. The
    page's script computes the same.

    Parameters
    ----------
    row : mapping
        ``sensitivity, specificity, threshold``, and optionally ``even_precision`` and ``even_negative_value`` with
        ``_low`` and ``_high``.
    old, new : float
        Share of positives where the model was fitted, and where it is used. Above 0 and below 1.

    Returns
    -------
    dict from str to float
        ``shifted``: the threshold on probabilities corrected to `new`. ``true_positives, false_positives,
        false_negatives, true_negatives, called_positive``: numbers in :data:`PER` patches. ``ppv``: NaN if nothing is
        called positive. ``npv``: NaN if nothing is called negative. Both with ``_low`` and ``_high``, NaN if unknown.
    """
    positives, negatives = PER * new, PER * (1 - new)
    true_positives, true_negatives = row["sensitivity"] * positives, row["specificity"] * negatives
    false_positives, false_negatives = negatives - true_negatives, positives - true_positives
    called_positive, called_negative = true_positives + false_positives, true_negatives + false_negatives
    results = {
        # A threshold that calls nothing positive can exceed 1 by a rounding error.
        "shifted": _moved(row["threshold"], new, old),
        "true_positives": true_positives,
        "false_positives": false_positives,
        "false_negatives": false_negatives,
        "true_negatives": true_negatives,
        "called_positive": called_positive,
        "ppv": true_positives / called_positive if called_positive > 0 else np.nan,
        "npv": true_negatives / called_negative if called_negative > 0 else np.nan,
    }
    for end in ("low", "high"):
        results[f"ppv_{end}"] = _moved(row.get(f"even_precision_{end}", np.nan), new)
        results[f"npv_{end}"] = _moved(row.get(f"even_negative_value_{end}", np.nan), 1 - new)
    return results


def _moved(probability: float, new: float, old: float = 0.5) -> float:
    """A probability at another prevalence; NaN stays NaN."""
    return float(shift_prevalence(np.array([probability]), old, new)[0])


def _data(view: DecisionsView) -> dict[str, Any]:
    """Numbers that the slider needs; missing rates are null."""
    rates = ("sensitivity", "specificity", "even_precision", "even_negative_value")
    columns = ("point", "split", "threshold", *(rate + end for rate in rates for end in ("", "_low", "_high")))
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
