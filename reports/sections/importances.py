"""What models rely on, by theme, region, family and cluster, and how far the answers can be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histoblend.features.handcrafted.column import REGION_WORDS
from histoblend.models.inspection.importance import GroupView, sum_by_family
from histoblend.models.inspection.importance_stability import agreement
from histoblend.reports.evaluation.explorer import ExplorerView
from histoblend.reports.evaluation.ladder import rungs_below
from histoblend.reports.page import figures
from histoblend.reports.page.section import Chart, Section, records
from histoblend.reports.sections.explorer import explore
from histoblend.reports.words import model_words

#: Clusters that the page lists; the table beside it holds all.
CLUSTER_ROWS = 30

#: Kendall's W and rank correlations from which orders agree, and agree in part.
AGREE, PARTLY = 0.7, 0.4

#: How each measure is called, its colour and its mark; drops in AUC first.
MARKS = {
    "permutation": ("shuffled together", figures.BLUE, "circle"),
    "dropped": ("left out and fitted again", figures.VERMILLION, "diamond-open"),
    "gain": ("share of gain", figures.GREEN, "square"),
    "cover": ("share of cover", figures.ORANGE, "triangle-up-open"),
    "coefficient": ("share of the coefficients’ sizes", figures.PURPLE, "square"),
}
DROPS = ("permutation", "dropped")
NAMES = {"permutation": "permutation", "dropped": "refitting", "gain": "gain", "cover": "cover"}
NAMES |= {"coefficient": "coefficients", "shap": "SHAP"}


def group_content(importances: pd.DataFrame, view: GroupView) -> dict[str, Any]:
    """What ``importances_groups.html`` shows.

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
    """The same numbers, as they lie beside the page."""
    return {
        "importance-groups": view.groups,
        "importance-clusters": view.clusters,
        "importance-stability": view.stability,
        "importance-agreement": agreement(importances, view.groups),
    }


def group_charts(view: GroupView) -> dict[str, Chart]:
    """One figure of themes and regions and one of families, a variant a model."""
    charts = {}
    for name, kinds in {"groups": ("half", "theme", "region"), "families": ("family",)}.items():
        part = view.groups[view.groups.kind.isin(kinds)]
        # The model of which most is known comes first.
        models = sorted(_models(part), key=lambda model: -(part.model == model).sum())
        if models:
            words = "families" if name == "families" else "themes and regions"
            charts[name] = Chart(
                f"Importance of {words} for each model, by every measure; importance-groups.csv holds the numbers.",
                [(model_words(model), group_figure(part[part.model == model], kinds)) for model in models],
            )
    return charts


def group_figure(groups: pd.DataFrame, kinds: Sequence[str]) -> figures.Figure:
    """Draw one model's groups: drops in AUC above, shares of what the fitted model says itself below.

    Parameters
    ----------
    groups : DataFrame
        `models.inspection.importance.GROUPS`, of one model.
    kinds : sequence of str
        In this order, with a gap between.

    Returns
    -------
    dict
        A Plotly figure. Lines are 95 % intervals over slides for drops, and one standard deviation over folds for
        shares.
    """
    labels, places = _places(groups, kinds)
    panels = [[name for name in MARKS if name in DROPS], [name for name in MARKS if name not in DROPS]]
    panels = [found for names in panels if (found := [name for name in names if (groups.measure == name).any()])]
    data = [
        trace
        for number, names in enumerate(panels, start=1)
        for i, name in enumerate(names)
        for trace in [_trace(groups[groups.measure == name], name, places, 0.36 * (0.5 - (i + 0.5) / len(names)))]
        if trace.update({"xaxis": f"x{number}", "yaxis": f"y{number}"}) is None
    ]
    titles = ["AUC lost on held-out slides" if names[0] in DROPS else "share of the whole" for names in panels]
    return {"data": data, "layout": _panel_layout(labels, places, titles)}


def _places(groups: pd.DataFrame, kinds: Sequence[str]) -> tuple[list[str], dict[tuple[str, str], int]]:
    """Labels from the top down, an empty one between kinds, and the row of each (kind, group)."""
    labels: list[str] = []
    places: dict[tuple[str, str], int] = {}
    for kind in kinds:
        part = groups[groups.kind == kind]
        if part.empty:
            continue
        if labels:
            labels.append("")
        # By the first measure that there is: permutation, where the model was shuffled.
        first = next(name for name in MARKS if (part.measure == name).any())
        order = part[part.measure == first].sort_values("value", ascending=False, kind="stable").group
        for group in dict.fromkeys([*order, *part.group]):
            places[kind, group] = len(labels)
            labels.append(figures.plain(_group_words(kind, group)))
    return labels, {key: len(labels) - 1 - place for key, place in places.items()}


def _trace(part: pd.DataFrame, name: str, places: dict[tuple[str, str], int], shift: float) -> figures.Figure:
    """Dots of one measure with their lines."""
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
        "y": [places[row["kind"], row["group"]] + shift for row in rows],
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


def _panel_layout(labels: list[str], places: dict[tuple[str, str], int], titles: Sequence[str]) -> figures.Figure:
    """Panels one above the other, each with all rows: they fit a phone, and rows are easily found again."""
    ticks = {place: labels[len(labels) - 1 - place] for place in sorted(places.values())}
    rows = {
        "tickvals": list(ticks),
        "ticktext": list(ticks.values()),
        "range": [-0.6, len(labels) - 0.4],
        "zeroline": False,
        "automargin": True,
        "ticklabelstandoff": 6,
    }
    inside = 34 * len(labels)  # pixels of a panel, and between panels
    between = 84
    height = len(titles) * inside + (len(titles) - 1) * between
    axes: dict[str, Any] = {}
    for number, title in enumerate(titles, start=1):
        top = height - (number - 1) * (inside + between)
        axes[f"yaxis{number}"] = {**rows, "domain": [(top - inside) / height, top / height], "anchor": f"x{number}"}
        axes[f"xaxis{number}"] = {
            "title": {"text": title, "standoff": 8},
            "zeroline": True,
            "zerolinecolor": figures.INK,
            "automargin": True,
            "anchor": f"y{number}",
        }
    # Plotly calls the first pair of axes by no number.
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
    """Three digits; the minus is a real one, and zero has none."""
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
    """Say what a model leans on, and whether it could do without."""
    part = groups[(groups.model == model) & groups.kind.isin(["half", "theme", "region"])]
    shuffled, dropped = part[part.measure == "permutation"], part[part.measure == "dropped"]
    if shuffled.empty:
        return None
    sentences = [_leaning(shuffled[shuffled.kind == kind], kind) for kind in ("theme", "region")]
    return {
        "words": _capital(model_words(model)),
        "text": " ".join([*filter(None, sentences), _without(dropped)]).strip(),
    }


def _leaning(part: pd.DataFrame, kind: str) -> str:
    """Which groups cost AUC when shuffled."""
    rows = records(part.sort_values("value", ascending=False))
    if not rows:
        return ""
    sure = [row for row in rows if _surely_above(row)]
    if not sure:
        return f"No {kind} is shown to matter when shuffled: all intervals include zero."
    listed = ", ".join(_named(row) for row in sure)
    text = f"AUC that it loses when a {kind} is shuffled: {listed}"
    rest = [_group_words(kind, row["group"]) for row in rows if row not in sure]
    return text + (f"; not shown to matter: {', '.join(rest)}." if rest else ".")


def _without(dropped: pd.DataFrame) -> str:
    """What is lost when a group never was there."""
    rows = records(dropped.sort_values("value", ascending=False))
    if not rows:
        return ""
    worse = [_named(row) for row in rows if _surely_above(row)]
    better = [_named(row) for row in rows if round(row["high"], 3) < 0]
    tried = _either([_group_words(row["kind"], row["group"]) for row in rows])
    if worse:
        text = f"Fitted again without {tried}, it misses {', '.join(worse)}."
    else:
        text = f"Fitted again without {tried}, it loses nothing that shows on these slides (most: {_named(rows[0])})."
    return text + (f" It does better without {', '.join(better)}." if better else "")


def _surely_above(row: dict[str, Any]) -> bool:
    """Whether the interval lies above zero, and still does as it is printed."""
    return bool(round(row["low"], 3) > 0)


def _named(row: dict[str, Any]) -> str:
    return f"{_group_words(row['kind'], row['group'])} {_level(row['value'])} ({_interval(row)})"


def _either(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _trust(stability: pd.DataFrame, compared: pd.DataFrame, model: str) -> dict[str, Any]:
    """Cells of the table on stability and agreement."""
    mine, pairs = stability[stability.model == model], compared[compared.model == model]

    def concord(level: str, over: str) -> list[dict[str, Any]]:
        part = mine[(mine.level == level) & (mine.over == over) & mine.w.notna()]
        return [{"words": NAMES[row["measure"]], "value": row["w"], "says": _says(row["w"])} for row in records(part)]

    def correlations(level: str) -> list[dict[str, Any]]:
        part = pairs[pairs.level == level]
        return [
            {
                "words": f"{NAMES[row['first']]} and {NAMES[row['second']]}",
                "value": row["correlation"],
                "says": _says(row["correlation"]),
            }
            for row in records(part)
        ]

    cells = [concord("feature", "folds"), concord("family", "folds"), concord("family", "draws of slides")]
    return {"words": _capital(model_words(model)), "cells": [*cells, correlations("feature"), correlations("family")]}


def _says(value: float) -> str:
    return "agree" if value >= AGREE else "agree in part" if value >= PARTLY else "disagree"


def _disagreement(groups: pd.DataFrame, compared: pd.DataFrame, model: str) -> str:
    """Say where two measures put other things first, or in another order; empty where none does."""
    parts = []
    pairs = compared[(compared.model == model) & (compared.correlation < PARTLY)]
    for level, words in (("feature", "single features"), ("family", "families")):
        found = records(pairs[pairs.level == level])
        if found:
            named = [f"{NAMES[row['first']]} and {NAMES[row['second']]} ({_two(row['correlation'])})" for row in found]
            parts.append(f"on the order of {words}: {', '.join(named)}")
    for kind in ("theme", "region"):
        first = _first(groups[(groups.model == model) & (groups.kind == kind)])
        if len(set(first.values())) > 1:
            by: dict[str, list[str]] = {}
            for measure, group in first.items():
                by.setdefault(_group_words(kind, group), []).append(NAMES[measure])
            parts.append(
                f"on the leading {kind}: " + "; ".join(f"{group} by {', '.join(names)}" for group, names in by.items())
            )
    return f"{_capital(model_words(model))}: measures disagree {', and '.join(parts)}." if parts else ""


def _first(part: pd.DataFrame) -> dict[str, str]:
    """Leading group by each measure; none where no drop is above zero."""
    found = {}
    for measure, rows in part.groupby("measure", sort=False):
        top = rows.sort_values("value", kind="stable").iloc[-1]
        if top.value > 0:
            found[str(measure)] = str(top.group)
    return found


def _two(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _cluster_rows(importances: pd.DataFrame, view: GroupView) -> list[dict[str, Any]]:
    """Clusters by their largest drop, beside the largest drop of a member alone."""
    models = _clustered(view.groups)
    part = view.groups[view.groups.kind == "cluster"]
    single = importances[(importances.measure == "permutation") & importances.feature.notna()]
    alone_of = {model: rows.set_index("feature").value for model, rows in single.groupby("model")}
    drops = {model: part[part.model == model].set_index("group") for model in models}
    rows = []
    for cluster in records(view.clusters) if models else []:
        members = str(cluster["members"]).split()
        cells = []
        for model in models:
            row = drops[model].loc[cluster["group"]]
            alone = alone_of[model].reindex(members).max() if model in alone_of else np.nan
            cells.append({"value": row.value, "low": row.low, "high": row.high, "alone": alone})
        rows.append({**cluster, "members": members, "cells": cells, "top": max(cell["value"] for cell in cells)})
    return sorted(rows, key=lambda row: -row["top"])[:CLUSTER_ROWS]


def importances_section(
    importances: pd.DataFrame,
    sentences: Mapping[str, str],
    view: ExplorerView | None = None,
    groups: GroupView | None = None,
) -> Section:
    """Show what models rely on.

    Parameters
    ----------
    importances : DataFrame
        From :mod:`models.inspection.importance`, of any models and measures; may be empty.
    sentences : mapping from feature name to str
        What each feature is.
    view : ExplorerView, optional
        What features open with, and single patches.
    groups : GroupView, optional
        Importance of families, themes, regions and clusters.

    Returns
    -------
    Section
    """
    sums = sum_by_family(importances) if len(importances) else pd.DataFrame()
    explorer = explore(importances, sums, sentences, view)
    shown = group_content(importances, groups) if groups is not None else None
    return Section(
        "importances",
        "Importances",
        {"groups": shown, "explorer": explorer.content} if len(importances) else None,
        absent="No importances were computed. The step that trains heads fills this section.",
        charts=(group_charts(groups) if groups is not None else {}) | explorer.charts,
        tables={"importances": importances, "families": sums}
        | (group_tables(importances, groups) if groups is not None else {})
        | explorer.tables,
        data={"explorer": explorer.data},
    )
