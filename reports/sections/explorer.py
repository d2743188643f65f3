"""Interactive part of the Importances section: searchable features, single patches, embedding columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from histoblend.models.heads.registry import HEADS, head_class
from histoblend.models.inspection.shapley import TOGETHER
from histoblend.reports.evaluation.explorer import MEASURES, ExplorerView, feature_ranks, single_features
from histoblend.reports.evaluation.ladder import rungs_below
from histoblend.reports.page import figures
from histoblend.reports.page.images import centre_box, data_uri
from histoblend.reports.page.section import Chart
from histoblend.reports.sections.shapley_charts import beeswarm, share_table, swarm_table, waterfall
from histoblend.reports.words import model_words, signed

#: Most features in the table of a model.
TABLE_ROWS = 300

#: Number of colours of a picture of a patch: a third of the bytes, without a visible difference at this size.
PICTURE_COLOURS = 64


@dataclass(frozen=True)
class Explorer:
    """The explorer's part of a section; see :class:`reports.page.section.Section`."""

    content: dict[str, Any]
    charts: dict[str, Chart]
    tables: dict[str, pd.DataFrame]
    data: dict[str, Any]


def explore(
    importances: pd.DataFrame, sums: pd.DataFrame, sentences: Mapping[str, str], view: ExplorerView | None
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

    Returns
    -------
    Explorer
        ``importances_explorer.html`` shows its content, ``importances.js`` draws its data.
    """
    models = [_model_rows(importances, sums, model) for model in _models(importances)]
    models = sorted((model for model in models if model["rows"]), key=lambda model: -len(model["measures"]))
    data: dict[str, Any] = {
        "measures": {
            name: {"head": head, "sign": sign, "digits": digits} for name, (head, sign, digits) in MEASURES.items()
        },
        "models": models,
        "features": _features(models, sums, sentences, view),
        "opened": {},
        "patches": [],
    }
    content: dict[str, Any] = {"models": models, "view": None, "embeddings": None, "cases": []}
    charts: dict[str, Chart] = {}
    tables: dict[str, pd.DataFrame] = {}
    if view is not None:
        pictures = {
            patch: data_uri(pixels, colours=PICTURE_COLOURS)
            for patch, pixels in zip(view.patches.patch_id, view.pixels, strict=True)
        }
        data |= _opened(view, pictures)
        content |= {
            "view": _view_words(view),
            "embeddings": _embedding_rows(view),
            "cases": _case_cards(view, pictures),
        }
        charts, tables = _charts(view), _tables(view)
    return Explorer(content, charts, tables, data)


def _models(importances: pd.DataFrame) -> list[str]:
    """Models, the highest rung first."""
    return list(reversed(list(rungs_below(list(dict.fromkeys(importances.model)))))) if len(importances) else []


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
    models: Sequence[Mapping[str, Any]],
    sums: pd.DataFrame,
    sentences: Mapping[str, str],
    view: ExplorerView | None,
) -> dict[str, list[Any]]:
    """Description and, if known, percentiles of every listed feature."""
    features: dict[str, list[Any]] = {}
    for name in dict.fromkeys(row[0] for model in models for row in model["rows"]):
        if name in TOGETHER:
            features[name] = [f"{_column_count(sums, name):,} columns of pretrained networks, taken together."]
            continue
        features[name] = [sentences.get(name, "")]
        if view is not None and name in view.quantiles.index:
            features[name] += [_rounded(value) for value in view.quantiles.loc[name].tolist()]
    return features


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


def _view_words(view: ExplorerView) -> dict[str, Any]:
    """Numbers in the template's sentences."""
    return {
        "explained": len(view.explained),
        "slides": int(view.explained.slide.nunique()),
        "sampled": view.sampled,
        "averaged": view.averaged,
        "opened": int(view.examples.feature.nunique()),
        "models": [model_words(model) for model in view.attributions],
        "case_model": model_words(view.cases.model.iloc[0]) if len(view.cases) else "",
        "threshold": float(view.cases.threshold.iloc[0]) if len(view.cases) else float("nan"),
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
        percentiles = {model: view.attributions[model].percentiles() for model in set(view.cases.model)}
        falls = []
        for row in view.cases.to_dict("records"):
            figure = waterfall(view.attributions[row["model"]], row["place"], percentiles[row["model"]])
            title = f"Contributions to one patch of a test slide ({row['case']}): {model_words(row['model'])}"
            figure["layout"]["meta"] = {"title": title}
            falls.append((row["case"], figure))
        charts["waterfall"] = Chart(
            "Contribution of each feature to the log-odds of one patch, largest first. waterfalls.csv has the numbers.",
            falls,
        )
    return charts


def _tables(view: ExplorerView) -> dict[str, pd.DataFrame]:
    """The figures' numbers, written as CSV files next to the page."""
    swarms = [
        swarm_table(attribution, view.explained).assign(model=model) for model, attribution in view.attributions.items()
    ]
    falls = [
        share_table(view.attributions[row["model"]], row["place"]).assign(
            case=row["case"], model=row["model"], patch_id=row["patch_id"]
        )
        for row in view.cases.to_dict("records")
    ]
    tables = {"dependence": view.curves, "positives-by-feature": view.bins, "feature-examples": view.examples}
    if swarms:
        tables["beeswarm"] = pd.concat(swarms, ignore_index=True)
    if falls:
        tables["waterfalls"] = pd.concat(falls, ignore_index=True)
    if view.embeddings is not None:
        tables["embedding-columns"] = view.embeddings
    return tables
