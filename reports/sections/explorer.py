"""Interactive part of the Importances section: searchable features, single patches, embedding columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from histoblend.models.heads.registry import HEADS, head_class
from histoblend.models.inspection.shapley import EMBEDDING, TOGETHER
from histoblend.reports.evaluation.explorer import MEASURES, ExplorerView, feature_ranks, single_features
from histoblend.reports.evaluation.ladder import rungs_below
from histoblend.reports.page import figures
from histoblend.reports.page.images import centre_box, small_uri
from histoblend.reports.page.section import Chart
from histoblend.reports.sections.feature_words import (
    FAMILY_COLOURS,
    family_words,
    feature_name,
    feature_sentence,
    feature_synonyms,
    feature_unit,
    how_compared,
    measured_column,
)
from histoblend.reports.sections.importance_board import RULES, about, board
from histoblend.reports.sections.shapley_charts import beeswarm, swarm_table, waterfall
from histoblend.reports.sections.waterfalls import case_table, grouped, names_in, numbered, waterfall_data
from histoblend.reports.words import model_words, signed

#: Most features in the table of a model.
TABLE_ROWS = 150


@dataclass(frozen=True)
class Explorer:
    """The explorer's part of a section; see :class:`reports.page.section.Section`."""

    content: dict[str, Any]
    charts: dict[str, Chart]
    tables: dict[str, pd.DataFrame]
    data: dict[str, Any]


def explore(
    importances: pd.DataFrame,
    sums: pd.DataFrame,
    sentences: Mapping[str, str],
    view: ExplorerView | None,
    *,
    notes: Mapping[str, str] | None = None,
    shown: Sequence[str] = (),
) -> Explorer:
    """Build the explorer from the available importances.

    Parameters
    ----------
    importances : DataFrame
        One row per model, measure and feature; any models and measures.
    sums : DataFrame
        From :func:`models.inspection.importance.sum_by_family`.
    sentences : mapping from feature name to str
    view : ExplorerView or None
        Without it, features are listed without details.
    notes : mapping from model to str, optional
        What to say above the single columns of a model; the entry "" is for models without one.
    shown : sequence of str
        Patches that other sections show, which are explained too.

    Returns
    -------
    Explorer
        ``importances_explorer.html`` shows its content, ``importances.js`` draws its data.
    """
    models = [_model_rows(importances, sums, model) for model in _models(importances, view)]
    models = [model for model in models if model["rows"]]
    notes = notes or {}
    for model in models:
        model["note"] = notes.get(model["model"], notes.get("", ""))
    data: dict[str, Any] = {
        "measures": {
            name: {"head": head, "sign": sign, "digits": digits} for name, (head, sign, digits) in MEASURES.items()
        },
        "models": models,
        "colours": FAMILY_COLOURS,
        "families": {family: family_words(family) for family in [*FAMILY_COLOURS, *_families(importances)]},
        "opened": {},
        "patches": [],
        "trees": {},
    }
    content: dict[str, Any] = {"models": models, "view": None, "embeddings": None, "cases": []}
    charts: dict[str, Chart] = {}
    tables: dict[str, pd.DataFrame] = {}
    if view is not None:
        for model in models:
            explained = model["model"] in view.attributions
            model |= {"board": board(view, model["model"]) if explained else None}
            model |= {"about": about(model["model"], view.blend) if explained else ""}
        pictures = {patch: small_uri(pixels) for patch, pixels in zip(view.patches.patch_id, view.pixels, strict=True)}
        data |= _opened(view, pictures) | {"trees": waterfall_data(view, shown), "best": view.best}
        data |= {
            "members": view.blend.members if view.blend else [],
            "modelWords": {str(name): model_words(str(name)) for name in view.curves.model.unique()}
            if len(view.curves)
            else {},
        }
        content |= {
            "view": _view_words(view, data["trees"].get(view.best, {}), shown),
            "embeddings": _embedding_rows(view),
            "cases": _case_cards(view, pictures),
        }
        charts, tables = _charts(view), _tables(view)
    data |= _features(data, sums, sentences, view)
    index = {name: number for number, name in enumerate(data["features"])}
    data["trees"] = {
        model: {patch: numbered(tree, index) for patch, tree in trees.items()} for model, trees in data["trees"].items()
    }
    return Explorer(content, charts, tables, data)


def _models(importances: pd.DataFrame, view: ExplorerView | None) -> list[str]:
    """Models of the selector: the best explained model first, then the highest rungs. Only explained ones, if any."""
    models = list(reversed(list(rungs_below(list(dict.fromkeys(importances.model)))))) if len(importances) else []
    if view is None or not view.attributions:
        return models
    return sorted((model for model in models if model in view.attributions), key=lambda model: model != view.best)


def _families(importances: pd.DataFrame) -> list[str]:
    return [str(family) for family in dict.fromkeys(importances.family.dropna())] if len(importances) else []


def _model_rows(importances: pd.DataFrame, sums: pd.DataFrame, model: str) -> dict[str, Any]:
    """Table of one model: families that count as one feature, then the leading features, with a cell per measure."""
    part = single_features(importances[importances.model == model])
    present = [name for name in MEASURES if (part.measure == name).any()]
    order = feature_ranks(part).mean_reciprocal.sort_values(ascending=False, kind="stable")
    names = list(order.index[:TABLE_ROWS])
    cells = [_cells(part[part.measure == name], "feature", set(names)) for name in present]
    rows = [[name, *(cell.get(name) for cell in cells)] for name in names]
    joint = sums[(sums.model == model) & sums.family.isin(TOGETHER)] if rows else pd.DataFrame()
    for family in joint.family.unique() if len(joint) else ():
        cells = [_cells(joint[joint.measure == name], "family", {family}) for name in present]
        rows.insert(0, [family, *(cell.get(family) for cell in cells)])
    return {"model": model, "words": model_words(model), "measures": present, "total": len(order), "rows": rows}


def _cells(part: pd.DataFrame, key: str, names: set[str]) -> dict[str, list[float]]:
    """Value for each name, followed by its interval or its spread if there is one."""
    cells: dict[str, list[float]] = {}
    for name, value, low, high, spread in part[[key, "value", "low", "high", "spread"]].itertuples(index=False):
        if name not in names or name in cells:
            continue
        limits = (low, high) if np.isfinite(low) else (spread,) if np.isfinite(spread) else ()
        cells[name] = [_rounded(number) for number in (value, *limits)]
    return cells


def _rounded(value: float) -> float:
    """Round to four significant digits, as tables do: half the bytes."""
    return float(f"{value:.4g}")


def _features(
    data: Mapping[str, Any], sums: pd.DataFrame, sentences: Mapping[str, str], view: ExplorerView | None
) -> dict[str, Any]:
    """Words for every feature on the page.

    Returns
    -------
    dict
        ``features``: plain name and, for those with details, unit, whether it is normalised (1) or relative to the
        slide (2), and percentiles if known. ``words``: sentence and synonyms of each measured column, which several
        features share.
    """
    names = dict.fromkeys(row[0] for model in data["models"] for row in model["rows"])
    for model in data["models"]:
        if shown := model.get("board"):
            names |= dict.fromkeys(row[0] for row in shown["columns"])
    features: dict[str, list[Any]] = {}
    words: dict[str, list[str]] = {}
    for name in names:
        measured = measured_column(name) if "_" in name else name
        sentence = feature_sentence(name, sentences)
        if name == EMBEDDING:
            sentence = f"{_column_count(sums, name):,} columns of pretrained networks, taken together."
        words.setdefault(measured, [sentences.get(measured) or sentence, ", ".join(feature_synonyms(measured))])
        features[name] = [feature_name(name), feature_unit(name), how_compared(name)]
        if view is not None and name in view.quantiles.index:
            features[name] += [_rounded(value) for value in view.quantiles.loc[name].tolist()]
    for name in _further_names(data):
        features.setdefault(name, [feature_name(name)])
    return {"features": features, "words": words}


def _further_names(data: Mapping[str, Any]) -> Iterator[str]:
    """Names that only clusters and waterfalls show; they need no details."""
    for model in data["models"]:
        for row in (model.get("board") or {"clusters": []})["clusters"]:
            yield from (row[0], *row[5])
    for trees in data["trees"].values():
        for tree in trees.values():
            yield from names_in(tree)


def _column_count(sums: pd.DataFrame, family: str) -> int:
    return int(sums[sums.family == family].features.max())


def _opened(view: ExplorerView, pictures: Mapping[str, str]) -> dict[str, Any]:
    """Example patches, curves and shares of positives of the features with details, and every patch once."""
    shown = list(dict.fromkeys(view.examples.patch_id))
    index = {patch: i for i, patch in enumerate(shown)}
    rows = view.patches.set_index("patch_id")
    height, width = view.pixels.shape[1:3] if len(shown) else (0, 0)
    opened: dict[str, Any] = {}
    for feature, part in view.examples.groupby("feature", sort=False):
        bins, curves = view.bins[view.bins.feature == feature], view.curves[view.curves.feature == feature]
        columns = ("value", "share", "low", "high")
        by_model = {str(model): curve for model, curve in curves.groupby("model", sort=False)}
        opened[str(feature)] = {
            "shown": [[index[patch], _rounded(value)] for patch, value in zip(part.patch_id, part.value, strict=True)],
            "bins": [*(_numbers(bins[name]) for name in columns), bins.patches.tolist(), bins.slides.tolist()],
            "grid": _numbers(next(iter(by_model.values())).value) if by_model else [],
            "curves": {model: figures.numbers(curve.probability, 4) for model, curve in by_model.items()},
        }
    cards = [
        {
            "image": pictures[patch],
            "id": patch,
            "slide": None if pd.isna(rows.slide[patch]) else str(rows.slide[patch]),
            "label": int(rows.label[patch]),
        }
        for patch in shown
    ]
    return {
        "opened": opened,
        "patches": cards,
        "size": [height, width],
        "box": centre_box(height, width) if shown else [],
    }


def _numbers(values: pd.Series) -> list[float | None]:
    """Values with four significant digits; None for missing values."""
    return [_rounded(float(value)) if np.isfinite(value) else None for value in values]


def _view_words(view: ExplorerView, trees: Mapping[str, Any], shown: Sequence[str]) -> dict[str, Any]:
    """Numbers in the template's sentences."""
    return {
        "explained": len(view.explained),
        "slides": int(view.explained.slide.nunique()),
        "opened": int(view.examples.feature.nunique()),
        "best": model_words(view.best) if view.best else "",
        "threshold": float(view.cases.threshold.iloc[0]) if len(view.cases) else float("nan"),
        "shown": len(set(shown)),
        "shown_explained": len(set(shown) & set(trees)),
        "by_fold": bool(view.folds),
        "blended": view.blend is not None and view.best == "ensemble",
        "clustered": len(view.clusters[view.clusters.model == view.best]),
        "rules": list(RULES.values()),
    }


def _embedding_importance(head: str, value: float) -> tuple[str, str]:
    """Importance of an embedding column for a head: the measure in words, and the value."""
    cls = head_class(head)
    words, sign, digits = MEASURES[cls.importance]
    return f"{words} ({cls.display_name})", signed(value) if sign else f"{value:.{digits}f}"


def _embedding_rows(view: ExplorerView) -> list[dict[str, Any]] | None:
    """Leading embedding columns with their most correlated features."""
    if view.embeddings is None:
        return None
    heads = [name for name in view.embeddings if name in HEADS]
    return [
        {
            "column": row["column"],
            "heads": [_embedding_importance(name, row[name]) for name in heads],
            "r2": row["r2"],
            "nearest": [
                (row[f"feature_{i}"], row[f"correlation_{i}"])
                for i in (1, 2, 3)
                if isinstance(row.get(f"feature_{i}"), str)
            ],
        }
        for row in view.embeddings.to_dict("records")
    ]


def _case_cards(view: ExplorerView, pictures: Mapping[str, str]) -> list[dict[str, Any]]:
    """The patch of each waterfall."""
    rows = view.patches.set_index("patch_id")
    cards = []
    for row in view.cases.to_dict("records"):
        height, width = view.pixels.shape[1:3]
        slide, label = rows.slide[row["patch_id"]], rows.label[row["patch_id"]]
        picture = {"image": pictures[row["patch_id"]], "height": height, "width": width}
        known = {str(name): value for name, value in row.items()}
        cards.append(known | picture | {"box": centre_box(height, width), "slide": slide, "label": label})
    return cards


def _charts(view: ExplorerView) -> dict[str, Chart]:
    """Beeswarms by model and waterfalls by patch."""
    charts = {}
    if view.attributions:
        order = reversed(list(rungs_below(list(view.attributions))))
        swarms = [(model_words(model), beeswarm(view.attributions[model])) for model in order]
        charts["beeswarm"] = Chart(
            "Contributions of features to the log-odds of single patches, one row per feature, coloured by the "
            "feature's value. beeswarm.csv has the numbers.",
            swarms,
        )
    if len(view.cases):
        attribution = grouped(view.attributions[view.best])
        percentiles = attribution.percentiles()
        falls = []
        for row in view.cases.to_dict("records"):
            figure = waterfall(attribution, row["place"], percentiles)
            title = f"Contributions to one patch of a test slide ({row['case']}): {model_words(view.best)}"
            figure["layout"]["meta"] = {"title": title}
            falls.append((row["case"], figure))
        # Only a file: on the page, waterfalls can be expanded.
        charts["waterfall"] = Chart("Contribution of each family to the log-odds of one patch, largest first.", falls)
    return charts


def _tables(view: ExplorerView) -> dict[str, pd.DataFrame]:
    """The figures' numbers, written as CSV files next to the page."""
    swarms = [
        swarm_table(attribution, view.explained).assign(model=model) for model, attribution in view.attributions.items()
    ]
    tables = {"dependence": view.curves, "positives-by-feature": view.bins, "feature-examples": view.examples}
    tables |= {"importance-evidence": view.evidence, "importance-model-clusters": view.clusters}
    if swarms:
        tables["beeswarm"] = pd.concat(swarms, ignore_index=True)
    if len(view.cases):
        tables["waterfalls"] = case_table(view)
    if view.embeddings is not None:
        tables["embedding-columns"] = view.embeddings
    return tables
