"""Findings of the Importances section in sentences, most of all those that a reader may not expect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from histoblend.models.inspection.importance import GROUPS
from histoblend.models.inspection.importance_evidence import trust_checks
from histoblend.models.inspection.importance_stability import agreement
from histoblend.models.inspection.shapley import SLIDE_MEAN
from histoblend.reports.evaluation.explorer import ExplorerView, board_columns
from histoblend.reports.page.section import records
from histoblend.reports.sections.feature_words import family_words, feature_name
from histoblend.reports.sections.importance_board import cluster_names
from histoblend.reports.words import model_words, signed

#: Drops in AUC, and words for all measures.
DROPS = ("permutation", "dropped")
MEASURE_WORDS = {"permutation": "permutation", "dropped": "refitting", "gain": "gain", "cover": "cover"}
MEASURE_WORDS |= {"coefficient": "coefficients", "shap": "SHAP"}
#: Share of the separation from which a family is named in the finding, and most families that are named.
NAMED_SHARE, NAMED = 0.05, 3
#: Rank correlation of permutation importance with another measure below which the order of columns is mostly chance.
CHANCE = 0.2


def order_notes(importances: pd.DataFrame) -> dict[str, str]:
    """Say for each model how far its order of single columns can be trusted; the entry "" is for other models.

    Other measures than permutation come from the same fitted model, so they agree even where the order is chance.
    """
    compared = agreement(importances, pd.DataFrame(columns=GROUPS))
    pairs = compared[
        (compared.level == "feature") & ((compared["first"] == "permutation") | (compared["second"] == "permutation"))
    ]
    notes, seen = {}, []
    for model in dict.fromkeys(pairs.model):
        rows = records(pairs[pairs.model == model])
        shap = [row for row in rows if "shap" in (row["first"], row["second"])] or rows
        correlation = float(shap[0]["correlation"])
        other = shap[0]["second"] if shap[0]["first"] == "permutation" else shap[0]["first"]
        numbers = (
            f"the rank correlation between the drop in AUC and {MEASURE_WORDS[other]} is {two_digits(correlation)}"
        )
        if correlation < CHANCE:
            notes[model] = f"The order of single columns is mostly chance: {numbers}. Read families and clusters first."
            seen.append(f"{two_digits(correlation)} for {model_words(model)}")
        else:
            notes[model] = f"Of single columns, {numbers}."
    if seen:
        notes[""] = (
            "The order of single columns is mostly chance. Where columns were shuffled one by one, rank correlations "
            f"between the drop in AUC and another measure are near 0: {', '.join(seen)}. Read families and clusters "
            "first."
        )
    return notes


def centre_findings(groups: pd.DataFrame) -> list[str]:
    """Say what the centre's columns are worth, although the centre decides the label."""
    part = groups[(groups.kind == "region") & (groups.group == "centre") & groups.measure.isin(DROPS)]
    parts = []
    for model in list(dict.fromkeys(part.model)):
        rows = {row["measure"]: row for row in records(part[part.model == model])}
        if not set(DROPS) <= set(rows):
            continue
        shuffled, dropped = (rows[name] for name in DROPS)
        parts.append(
            f"in {model_words(model)}, shuffling its {shuffled['columns']} columns changes the AUC by "
            f"{_change(shuffled)}, and refitting without them by {_change(dropped)}"
        )
    if not parts:
        return []
    end = "Columns of the whole patch include the centre and can replace its columns."
    return [f"The centre 32 × 32 decides the label, but {'; '.join(parts)}. {end}"]


def _change(row: Mapping[str, Any]) -> str:
    value = f"{signed(-row['value'])} (95 % CI {signed(-row['high'])} to {signed(-row['low'])}"
    includes_0 = round(row["low"], 3) <= 0 <= round(row["high"], 3)
    return f"{value}{', inconclusive' if includes_0 else ''})"


def two_digits(value: float) -> str:
    """Return a number with two digits and the minus character."""
    return f"{value:.2f}".replace("-", "−")


def finding(view: ExplorerView, order_is_chance: bool) -> str:
    """Say what the best explained model relies on."""
    part = view.evidence[view.evidence.model == view.best]
    families = part[part.kind == "family"].sort_values("separation", ascending=False, kind="stable")
    total = float(families.separation.sum())
    if not total > 0:
        return ""
    shares = families.separation / total
    named = [
        f"{family_words(str(family))} ({share:.0%})".replace("%", " %")
        for family, share in zip(families.unit, shares, strict=True)
        if share >= NAMED_SHARE
    ][:NAMED]
    largest = float(part[part.kind == "column"].separation.max()) / total
    words = model_words(view.best)
    text = f"What separates tumour from other patches in {words} is mainly {_listed(named)}"
    text += f"; no single column adds more than {max(largest, 0.001):.1%}".replace("%", " %")
    return text + (", and the order of single columns is mostly chance." if order_is_chance else ".")


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def plain_findings(view: ExplorerView) -> list[str]:
    """Findings on the best explained model that a reader may not expect."""
    part = view.evidence[view.evidence.model == view.best]
    columns = part[part.kind == "column"]
    if columns.empty:
        return []
    sizes = {name: len(names) for names in cluster_names(view, view.best).values() for name in names}
    checks = trust_checks(columns, sizes)
    high = int((checks.trust == "high").sum())
    words = model_words(view.best)
    findings = [
        f"Of {len(columns):,} single columns in {words}, {high:,} pass all three checks of trust, and "
        f"{int(checks.separates.sum()):,} have an interval above 0."
    ]
    families = part[part.kind == "family"]
    mean = families[families.unit == SLIDE_MEAN]
    if len(mean):
        row, total = mean.iloc[0], float(families.separation.sum())
        share = f"{row.separation / total:.0%}".replace("%", " %") if total > 0 else "–"
        findings.append(
            f"{share} of the separation ({signed(row.separation)} log-odds, 95 % CI {signed(row.low)} to "
            f"{signed(row.high)}) comes from the mean score of the slide and not from the patch itself."
        )
    leading = board_columns(view.evidence, view.best, 1)
    if len(leading):
        row = leading.iloc[0]
        findings.append(
            f"The leading single column ({feature_name(str(row.unit))}) adds {signed(row.separation)} log-odds between "
            f"tumour and other patches (95 % CI {signed(row.low)} to {signed(row.high)})."
        )
    return findings
