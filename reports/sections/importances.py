"""The Importances section: themes, regions, families and clusters, and how well measures and folds agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histoblend.features.handcrafted.column import REGION_WORDS
from histoblend.features.handcrafted.plain_names import plain_name
from histoblend.models.inspection.importance import GroupView, sum_by_family
from histoblend.models.inspection.importance_stability import agreement
from histoblend.reports.evaluation.explorer import ExplorerView
from histoblend.reports.evaluation.ladder import rungs_below
from histoblend.reports.page import figures
from histoblend.reports.page.section import Chart, Section, records
from histoblend.reports.sections.explorer import explore
from histoblend.reports.sections.importance_findings import (
    DROPS,
    MEASURE_WORDS,
    centre_findings,
    finding,
    order_notes,
    plain_findings,
    two_digits,
)
from histoblend.reports.words import model_words

#: Most clusters on the page. The CSV table has all clusters.
CLUSTER_ROWS = 30

#: Kendall's W or rank correlation from which rankings agree, and from which they agree in part.
AGREE, PARTLY = 0.7, 0.4

#: Name, colour and symbol of each measure; drops in AUC first.
MARKS = {
    "permutation": ("permutation (group shuffled)", figures.BLUE, "circle"),
    "dropped": ("refitting (group left out)", figures.VERMILLION, "diamond-open"),
    "gain": ("share of gain", figures.GREEN, "square"),
    "cover": ("share of cover", figures.ORANGE, "triangle-up-open"),
    "coefficient": ("share of absolute coefficients", figures.PURPLE, "square"),
}
INCONCLUSIVE = "inconclusive (95 % CI includes 0)"


def group_content(importances: pd.DataFrame, view: GroupView) -> dict[str, Any]:
    """Content of ``importances_groups.html``.

    Parameters
    ----------
    importances : DataFrame
        Single features, `models.inspection.importance.COLUMNS`.
    view : GroupView

    Returns
    -------
    dict
    """
    compared = agreement(importances, view.groups)
    models = _models(view.groups)
    return {
        "readings": [reading for model in models if (reading := _reading(view.groups, model))],
        "trust": [_trust(view.stability, compared, model) for model in models],
        "doubts": [doubt for model in models if (doubt := _disagreement(view.groups, compared, model))],
        "clusters": _cluster_rows(importances, view),
        "cluster_models": [model_words(model) for model in _clustered(view.groups)],
        "clusters_in_all": len(view.clusters),
        "rho": view.rho,
        "clustered_on": view.clustered_on,
    }


def group_tables(importances: pd.DataFrame, view: GroupView) -> dict[str, pd.DataFrame]:
    """The same numbers as tables, written as CSV files next to the page."""
    return {
        "importance-groups": view.groups,
        "importance-clusters": view.clusters,
        "importance-stability": view.stability,
        "importance-agreement": agreement(importances, view.groups),
    }


def group_charts(view: GroupView) -> dict[str, Chart]:
    """One figure of themes and regions and one of families, with one variant per model."""
    charts = {}
    for name, kinds in {"groups": ("half", "theme", "region"), "families": ("family",)}.items():
        part = view.groups[view.groups.kind.isin(kinds)]
        # The model with the most rows comes first.
        models = sorted(_models(part), key=lambda model: -(part.model == model).sum())
        if models:
            words = "families" if name == "families" else "themes and regions"
            charts[name] = Chart(
                f"Importance of {words} for each model, by every measure. importance-groups.csv has the numbers.",
                [(model_words(model), group_figure(part[part.model == model], kinds)) for model in models],
            )
    return charts


def group_figure(groups: pd.DataFrame, kinds: Sequence[str]) -> figures.Figure:
    """Draw one model's groups: drops in AUC in the upper panel, shares within the fitted model in the lower.

    Parameters
    ----------
    groups : DataFrame
        `models.inspection.importance.GROUPS`, of one model.
    kinds : sequence of str
        Kinds of groups in this order, with a gap between them.

    Returns
    -------
    dict
        A Plotly figure. Lines are 95 % intervals over slides for drops, and one standard deviation over folds for
        shares.
    """
    labels, heights = _row_heights(groups, kinds)
    panels = [[name for name in MARKS if name in DROPS], [name for name in MARKS if name not in DROPS]]
    panels = [present for names in panels if (present := [name for name in names if (groups.measure == name).any()])]
    data = [
        trace
        for number, names in enumerate(panels, start=1)
        for i, name in enumerate(names)
        for trace in [_trace(groups[groups.measure == name], name, heights, 0.36 * (0.5 - (i + 0.5) / len(names)))]
        if trace.update({"xaxis": f"x{number}", "yaxis": f"y{number}"}) is None
    ]
    titles = ["drop in AUC on held-out slides" if names[0] in DROPS else "share of the total" for names in panels]
    return {"data": data, "layout": _panel_layout(labels, heights, titles)}


def _row_heights(groups: pd.DataFrame, kinds: Sequence[str]) -> tuple[list[str], dict[tuple[str, str], int]]:
    """Labels from the top down, with an empty one between kinds, and the height of each (kind, group)."""
    labels: list[str] = []
    rows: dict[tuple[str, str], int] = {}
    for kind in kinds:
        part = groups[groups.kind == kind]
        if part.empty:
            continue
        if labels:
            labels.append("")
        # Sort by the first measure that is present: permutation, if it was computed for the model.
        first = next(name for name in MARKS if (part.measure == name).any())
        order = part[part.measure == first].sort_values("value", ascending=False, kind="stable").group
        for group in dict.fromkeys([*order, *part.group]):
            rows[kind, group] = len(labels)
            labels.append(figures.plain(_group_words(kind, group)))
    return labels, {key: len(labels) - 1 - row for key, row in rows.items()}


def _trace(part: pd.DataFrame, name: str, heights: dict[tuple[str, str], int], shift: float) -> figures.Figure:
    """Dots and lines of one measure."""
    words, colour, symbol = MARKS[name]
    rows = records(part)
    low, high = part.low, part.high
    if name not in DROPS:
        low, high = (part.value - part.spread).clip(lower=0), part.value + part.spread
    return {
        "type": "scatter",
        "mode": "markers",
        "name": words,
        "x": figures.numbers(part.value, 5),
        "y": [heights[row["kind"], row["group"]] + shift for row in rows],
        "text": [
            f"{figures.plain(_group_words(row['kind'], row['group']))}, {row['columns']} columns<br>"
            f"{words}: {_amount(row)}"
            for row in rows
        ],
        "hoverinfo": "text",
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": figures.numbers(high - part.value, 5),
            "arrayminus": figures.numbers(part.value - low, 5),
            "color": colour,
            "thickness": 1.6,
            "width": 0,
        },
        "marker": {"color": colour, "symbol": symbol, "size": 9, "line": {"width": 2, "color": colour}},
    }


def _panel_layout(labels: list[str], heights: dict[tuple[str, str], int], titles: Sequence[str]) -> figures.Figure:
    """Panels one above the other, each with all rows, so that they fit a phone and rows are easy to compare."""
    ticks = {height: labels[len(labels) - 1 - height] for height in sorted(heights.values())}
    rows = {
        "tickvals": list(ticks),
        "ticktext": list(ticks.values()),
        "range": [-0.6, len(labels) - 0.4],
        "zeroline": False,
        "automargin": True,
        "ticklabelstandoff": 6,
    }
    panel = 34 * len(labels)  # px
    gap = 84  # px
    height = len(titles) * panel + (len(titles) - 1) * gap
    axes: dict[str, Any] = {}
    for number, title in enumerate(titles, start=1):
        top = height - (number - 1) * (panel + gap)
        axes[f"yaxis{number}"] = {**rows, "domain": [(top - panel) / height, top / height], "anchor": f"x{number}"}
        axes[f"xaxis{number}"] = {
            "title": {"text": title, "standoff": 8},
            "zeroline": True,
            "zerolinecolor": figures.INK,
            "automargin": True,
            "anchor": f"y{number}",
        }
    # Plotly's first pair of axes has no number in its name.
    axes = {name.removesuffix("1") if name.endswith("axis1") else name: axis for name, axis in axes.items()}
    return figures.layout(**axes, height=height + 150)


def _group_words(kind: str, group: str) -> str:
    return REGION_WORDS.get(group, group) if kind == "region" else group


def _amount(row: dict[str, Any]) -> str:
    """A drop with its interval, or a share with its spread."""
    if row["measure"] in DROPS:
        return _level(row["value"]) + ("" if pd.isna(row["low"]) else f" ({_interval(row)})")
    return f"{row['value']:.1%}" + ("" if pd.isna(row["spread"]) else f" ± {row['spread']:.1%}")


def _level(value: float) -> str:
    """Three digits, with a true minus sign; zero has no sign."""
    text = f"{value:.3f}"
    return "0.000" if float(text) == 0 else text.replace("-", "−")


def _interval(row: dict[str, Any]) -> str:
    return f"{_level(row['low'])} to {_level(row['high'])}"


def _models(table: pd.DataFrame) -> list[str]:
    """Models, the highest rung first."""
    return list(reversed(list(rungs_below(list(dict.fromkeys(table.model)))))) if len(table) else []


def _clustered(groups: pd.DataFrame) -> list[str]:
    return _models(groups[groups.kind == "cluster"])


def _reading(groups: pd.DataFrame, model: str) -> dict[str, str] | None:
    """Say which groups a model relies on, and which it needs when refitted."""
    part = groups[(groups.model == model) & groups.kind.isin(["half", "theme", "region"])]
    shuffled, dropped = part[part.measure == "permutation"], part[part.measure == "dropped"]
    if shuffled.empty:
        return None
    sentences = [
        _drop_words(shuffled[shuffled.kind == kind], f"Drop in AUC when a {kind} is shuffled")
        for kind in ("theme", "region")
    ]
    sentences.append(_drop_words(dropped, "Drop in AUC after refitting without a group"))
    return {"words": _capital(model_words(model)), "text": " ".join(filter(None, sentences))}


def _drop_words(part: pd.DataFrame, title: str) -> str:
    """List drops in AUC: intervals above 0 first, then those below 0, then those that include 0."""
    rows = records(part.sort_values("value", ascending=False))
    if not rows:
        return ""
    # Compare rounded limits: an interval printed with a limit of 0.000 includes 0.
    above = [_named(row) for row in rows if round(row["low"], 3) > 0]
    below = [_named(row) for row in rows if round(row["high"], 3) < 0]
    rest = [row for row in rows if not (round(row["low"], 3) > 0 or round(row["high"], 3) < 0)]
    unclear = [_group_words(row["kind"], row["group"]) for row in rest]
    if rest and not above:
        unclear[0] = _named(rest[0])  # the largest drop
    lists = {"": above, "AUC rises: ": below, f"{INCONCLUSIVE}: ": unclear}
    return f"{title}: {'; '.join(name + ', '.join(listed) for name, listed in lists.items() if listed)}."


def _named(row: dict[str, Any]) -> str:
    interval = "" if pd.isna(row["low"]) else f" ({_interval(row)})"
    return f"{_group_words(row['kind'], row['group'])} {_level(row['value'])}{interval}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _trust(stability: pd.DataFrame, compared: pd.DataFrame, model: str) -> dict[str, Any]:
    """Cells of the table of stability and agreement."""
    stable, pairs = stability[stability.model == model], compared[compared.model == model]

    def concordance(level: str, over: str) -> list[dict[str, Any]]:
        part = stable[(stable.level == level) & (stable.over == over) & stable.w.notna()]
        return [
            {"words": MEASURE_WORDS[row["measure"]], "value": row["w"], "says": _says(row["w"])}
            for row in records(part)
        ]

    def correlations(level: str) -> list[dict[str, Any]]:
        part = pairs[pairs.level == level]
        return [
            {
                "words": f"{MEASURE_WORDS[row['first']]} and {MEASURE_WORDS[row['second']]}",
                "value": row["correlation"],
                "says": _says(row["correlation"]),
            }
            for row in records(part)
        ]

    cells = [concordance("feature", "folds"), concordance("family", "folds"), concordance("family", "draws of slides")]
    return {"words": _capital(model_words(model)), "cells": [*cells, correlations("feature"), correlations("family")]}


def _says(value: float) -> str:
    return "agree" if value >= AGREE else "agree in part" if value >= PARTLY else "disagree"


def _disagreement(groups: pd.DataFrame, compared: pd.DataFrame, model: str) -> str:
    """Say where two measures rank features or groups differently; empty if all agree."""
    parts = []
    pairs = compared[(compared.model == model) & (compared.correlation < PARTLY)]
    for level, words in (("feature", "single features"), ("family", "families")):
        rows = records(pairs[pairs.level == level])
        if rows:
            named = [
                f"{MEASURE_WORDS[row['first']]} and {MEASURE_WORDS[row['second']]} {two_digits(row['correlation'])}"
                for row in rows
            ]
            parts.append(f"on the ranking of {words} ({', '.join(named)})")
    for kind in ("theme", "region"):
        leading = _leading_groups(groups[(groups.model == model) & (groups.kind == kind)])
        if len(set(leading.values())) > 1:
            measures: dict[str, list[str]] = {}
            for measure, group in leading.items():
                measures.setdefault(_group_words(kind, group), []).append(MEASURE_WORDS[measure])
            named = [f"{group} by {' and '.join(names)}" for group, names in measures.items()]
            parts.append(f"on the leading {kind} ({', '.join(named)})")
    return f"{_capital(model_words(model))}: measures disagree {' and '.join(parts)}." if parts else ""


def _leading_groups(part: pd.DataFrame) -> dict[str, str]:
    """Leading group by each measure; without measures that have no drop above zero."""
    leading = {}
    for measure, rows in part.groupby("measure", sort=False):
        top = rows.sort_values("value", kind="stable").iloc[-1]
        if top.value > 0:
            leading[str(measure)] = str(top.group)
    return leading


def _cluster_rows(importances: pd.DataFrame, view: GroupView) -> list[dict[str, Any]]:
    """Clusters by their largest drop, with the largest drop of a single member."""
    models = _clustered(view.groups)
    part = view.groups[view.groups.kind == "cluster"]
    single = importances[(importances.measure == "permutation") & importances.feature.notna()]
    single_drops = {model: rows.set_index("feature").value for model, rows in single.groupby("model")}
    drops = {model: part[part.model == model].set_index("group") for model in models}
    rows = []
    for cluster in records(view.clusters) if models else []:
        members = str(cluster["members"]).split()
        cells = []
        for model in models:
            row = drops[model].loc[cluster["group"]]
            alone = single_drops[model].reindex(members).max() if model in single_drops else np.nan
            cells.append({"value": row.value, "low": row.low, "high": row.high, "alone": alone})
        words, top = plain_name(cluster["group"]), max(cell["value"] for cell in cells)
        rows.append({**cluster, "words": words, "members": members, "cells": cells, "top": top})
    return sorted(rows, key=lambda row: -row["top"])[:CLUSTER_ROWS]


def importances_section(
    importances: pd.DataFrame,
    sentences: Mapping[str, str],
    view: ExplorerView | None = None,
    groups: GroupView | None = None,
    *,
    shown: Sequence[str] = (),
) -> Section:
    """Show what models rely on.

    Parameters
    ----------
    importances : DataFrame
        From :mod:`models.inspection.importance`, of any models and measures; may be empty.
    sentences : mapping from feature name to str
        Description of each feature.
    view : ExplorerView, optional
        Details of features, and single patches.
    groups : GroupView, optional
        Importance of families, themes, regions and clusters.
    shown : sequence of str
        Patches that other sections show; their scores are explained too.

    Returns
    -------
    Section
    """
    sums = sum_by_family(importances) if len(importances) else pd.DataFrame()
    notes = order_notes(importances) if len(importances) else {}
    explorer = explore(importances, sums, sentences, view, notes=notes, shown=shown)
    content = group_content(importances, groups) if groups is not None else None
    plain = [*(centre_findings(groups.groups) if groups is not None else [])]
    if view is not None and view.best:
        plain += plain_findings(view)
    return Section(
        "importances",
        "Importances",
        {"groups": content, "explorer": explorer.content, "plain": plain} if len(importances) else None,
        absent="No importances were computed. The step that trains heads computes them.",
        charts=(group_charts(groups) if groups is not None else {}) | explorer.charts,
        tables={"importances": importances, "families": sums}
        | (group_tables(importances, groups) if groups is not None else {})
        | explorer.tables,
        data={"explorer": explorer.data},
        finding=finding(view, notes.get(view.best, notes.get("", "")).startswith("The order"))
        if view is not None and view.best
        else "",
    )
