"""Data of the report's feature explorer: Shapley values, partial dependence curves and example patches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoblend.data.patches import rows_of_patches
from histoblend.data.splits import patch_groups
from histoblend.models.calibration import youden_threshold
from histoblend.models.heads.registry import head_class
from histoblend.models.inspection.embedding_columns import MAX_PATCHES, explain_columns, leading_columns
from histoblend.models.inspection.partial_dependence import grid, partial_dependence, positive_shares
from histoblend.models.inspection.shapley import (
    EXPLAINED_PATCHES,
    ShapleyValues,
    attribute,
    choose_cases,
    shapley_importance,
)
from histoblend.models.names import LINEAR_ONLY, SINGLE_FAMILIES
from histoblend.models.resampling import sample_rows_evenly, slide_groups
from histoblend.pipelines.analysis.importances import read_importances
from histoblend.pipelines.analysis.model_set import models_of
from histoblend.pipelines.results import feature_sets, feature_tables, patches_of, predictions_of
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.runtime.dataclass_files import load_dataclass, save_dataclass
from histoblend.pipelines.tables import read_values
from histoblend.reports.evaluation.explorer import LEVELS, ExplorerView, leading_features, share_examples

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run

FEATURES, VIEW = "importances.parquet", "explorer"

#: Sets of columns whose heads are explained patch by patch. Colour is part of each set.
EXPLAINED_SETS = ("handcrafted", "both", "context")

#: Most patches used for percentiles, shares of positives and examples, spread evenly over slides.
SAMPLED = 5000
#: Most patches that a partial dependence curve is averaged over.
AVERAGED = 100


def build(run: Run, folder: Path) -> StepResult:
    """Write the data of the feature explorer, and Shapley values as a table of importances."""
    predictions = predictions_of(run)
    shares, explained = attributions(run, predictions)
    measured = attribution_importances(run, shares, explained)
    measured.to_parquet(folder / FEATURES)
    everything = pd.concat([read_importances(run)[0], measured])
    save_dataclass(explorer_view(run, predictions, everything, shares, explained), folder / VIEW)
    return StepResult(len(explained))


def read_measured(run: Run) -> pd.DataFrame:
    """All importances of a run; those from Shapley values come last."""
    by_shapley = pd.read_parquet(run.step("attributions").folder / FEATURES)
    return pd.concat([read_importances(run)[0], by_shapley]).reset_index(drop=True)


def read_explorer(run: Run) -> ExplorerView:
    """Data of the feature explorer of a run."""
    return load_dataclass(run.step("attributions").folder / VIEW, ExplorerView, ShapleyValues)


def attributions(run: Run, predictions: pd.DataFrame) -> tuple[dict[str, ShapleyValues], pd.DataFrame]:
    """Compute Shapley values of held-out patches for each head on a set with handcrafted columns.

    Parameters
    ----------
    run : Run
    predictions : DataFrame
        Rows as in the feature tables.

    Returns
    -------
    by_model : dict from model to ShapleyValues
        Empty if no such head was fitted.
    explained : DataFrame
        Rows of `predictions` that were explained: at most `EXPLAINED_PATCHES`, spread evenly over the held-out slides.
    """
    from joblib import Parallel, delayed

    test = np.flatnonzero(predictions["split"] == "test")
    rows = test[
        sample_rows_evenly(slide_groups(predictions["slide"].iloc[test]), EXPLAINED_PATCHES, seed=run.config.seed)
    ]
    sets = feature_sets(run)
    by_model: dict[str, ShapleyValues] = {}
    for name in [each for each in EXPLAINED_SETS if each in sets]:
        values, columns = sets[name]
        models = [f"{head}_{name}" for head in run.config.heads.heads]
        X = values[rows]
        # Threads suffice: XGBoost releases the interpreter lock.
        tasks = [delayed(_attribute)(run, model, X, columns) for model in models]
        by_model |= zip(models, Parallel(n_jobs=run.workers, prefer="threads")(tasks), strict=True)
    return by_model, predictions.iloc[rows]


def _attribute(run: Run, model: str, X: np.ndarray, columns: list[str]) -> ShapleyValues:
    return attribute(models_of(run).head(model), X, columns)


def attribution_importances(run: Run, by_model: Mapping[str, ShapleyValues], explained: pd.DataFrame) -> pd.DataFrame:
    """Mean absolute Shapley values as a table of importances; see :func:`shapley.shapley_importance`."""
    groups = slide_groups(explained["slide"])
    options = {"draws": run.config.report.draws, "seed": run.config.seed}
    tables = [shapley_importance(each, groups, model=model, **options) for model, each in by_model.items()]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def explorer_view(
    run: Run,
    predictions: pd.DataFrame,
    importances: pd.DataFrame,
    by_model: Mapping[str, ShapleyValues],
    explained: pd.DataFrame,
) -> ExplorerView:
    """Compute the data of the feature explorer.

    Parameters
    ----------
    run : Run
    predictions : DataFrame
        Rows as in the feature tables.
    importances : DataFrame
        All measures, including Shapley values.
    by_model, explained
        From :func:`attributions`.

    Returns
    -------
    ExplorerView
    """
    seed = run.config.seed
    rows = sample_rows_evenly(slide_groups(predictions["slide"]), SAMPLED, seed=seed)
    part = predictions.iloc[rows]
    groups = slide_groups(part["slide"])
    averaged = sample_rows_evenly(groups, AVERAGED, seed=seed)
    features = leading_features(importances, list(by_model))
    quantiles, values, curves = _read_sets(run, rows, averaged, features)
    examples = _examples(values, features, part)
    options = {"draws": run.config.report.draws, "seed": seed}
    tables = positive_shares(values, part["label"].to_numpy(), groups, **options) if features else []
    bins = [table.assign(feature=feature) for feature, table in zip(features, tables, strict=True)]
    cases = _cases(predictions, by_model, explained)
    shown = list(dict.fromkeys([*examples["patch_id"], *cases["patch_id"]]))
    positions = rows_of_patches(patches_of(run), shown)
    return ExplorerView(
        attributions=by_model,
        explained=explained[["patch_id", "slide", "label"]].reset_index(drop=True),
        cases=cases,
        quantiles=quantiles,
        examples=examples,
        curves=curves,
        bins=pd.concat(bins, ignore_index=True) if bins else pd.DataFrame(),
        embeddings=explain_embeddings(run),
        patches=predictions.set_index("patch_id").loc[shown, ["slide", "label", "split"]].reset_index(),
        pixels=np.stack([np.asarray(patches_of(run).pixels[position]) for position in positions])
        if shown
        else np.empty(0),
        sampled=len(rows),
        averaged=len(averaged),
    )


def _read_sets(
    run: Run, rows: np.ndarray, averaged: np.ndarray, features: list[str]
) -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame]:
    """Percentiles of all features, values (len(rows), len(features)) of the shown ones, and their curves by model.

    Only one set is read at a time, because two may not fit into memory.
    """
    sets = feature_sets(run)
    quantiles: dict[str, np.ndarray] = {}
    curves = []
    values = np.empty((len(rows), len(features)), np.float32)
    for name in [each for each in sets if each not in (*SINGLE_FAMILIES, "embeddings", *LINEAR_ONLY)]:
        table, columns = sets[name]
        table = table[rows]
        index_of = {column: number for number, column in enumerate(columns)}
        new = [column for column in columns if column not in quantiles and not column.startswith("embedding_")]
        new_values = table[:, [index_of[column] for column in new]]
        quantiles |= zip(new, np.quantile(new_values, list(LEVELS), axis=0).T, strict=True)
        present = [(number, feature) for number, feature in enumerate(features) if feature in index_of]
        for number, feature in present:
            values[:, number] = table[:, index_of[feature]]
        points = {index_of[feature]: grid(table[:, index_of[feature]]) for _, feature in present}
        curves.append(_curves(run, name, table[averaged], columns, points))
    percentiles = pd.DataFrame(list(quantiles.values()), list(quantiles), list(LEVELS.values()))
    return percentiles, values, pd.concat(curves, ignore_index=True) if curves else pd.DataFrame()


def _curves(run: Run, name: str, X: np.ndarray, columns: list[str], points: Mapping[int, np.ndarray]) -> pd.DataFrame:
    """Partial dependence of every head on one set of columns: ``feature, model, value, probability``."""
    from joblib import Parallel, delayed

    def draw(model: str) -> pd.DataFrame:
        dependence = partial_dependence(models_of(run).head(model), X)
        parts = [
            pd.DataFrame(
                {
                    "feature": columns[index],
                    "model": model,
                    "value": grid_values,
                    "probability": dependence(index, grid_values),
                }
            )
            for index, grid_values in points.items()
        ]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    tasks = [delayed(draw)(f"{head}_{name}") for head in run.config.heads.heads]
    return pd.concat(Parallel(n_jobs=run.workers, prefer="threads")(tasks), ignore_index=True)


def _examples(values: np.ndarray, features: list[str], part: pd.DataFrame) -> pd.DataFrame:
    """Example patches at the percentiles of each feature: ``feature, level, patch_id, value``."""
    chosen = share_examples(values)
    rows = [
        {
            "feature": feature,
            "level": level,
            "patch_id": part["patch_id"].iloc[row],
            "value": float(values[row, number]),
        }
        for number, feature in enumerate(features)
        for level, row in zip(LEVELS.values(), chosen[number], strict=True)
    ]
    return pd.DataFrame(rows, columns=["feature", "level", "patch_id", "value"])


def _cases(predictions: pd.DataFrame, by_model: Mapping[str, ShapleyValues], explained: pd.DataFrame) -> pd.DataFrame:
    """Example patches for the explained head with the best out-of-fold AUC: ``case, model, …``.

    Heads with interactions between columns are preferred, because they are more informative than additive heads.
    """
    from sklearn.metrics import roc_auc_score

    columns = ["case", "model", "patch_id", "place", "score", "threshold"]
    train = predictions[predictions["split"] == "train"]
    models = [model for model in by_model if not _additive(model)] or list(by_model)
    if not models:
        return pd.DataFrame(columns=columns)
    model = max(models, key=lambda each: roc_auc_score(train["label"], train[f"prob_{each}"]))
    threshold = float(youden_threshold(train["label"].to_numpy(), train[f"prob_{model}"].to_numpy()))
    scores = explained[f"prob_{model}"].to_numpy()
    cases = choose_cases(explained["label"].to_numpy(), scores, threshold)
    rows = [(case, model, explained["patch_id"].iloc[row], row, scores[row], threshold) for case, row in cases.items()]
    return pd.DataFrame(rows, columns=columns)


def _additive(model: str) -> bool:
    return head_class(model.partition("_")[0]).additive


def explain_embeddings(run: Run) -> pd.DataFrame | None:
    """Explain the leading embedding columns by handcrafted features; None without both tables or without a head.

    Only training slides are used: the leading columns come from heads that were fitted on these slides.
    """
    tables = feature_tables(run)
    if not {"features", "embeddings"} <= set(tables) or "embeddings" not in run.config.heads.features:
        return None
    (raw, features), (table, names) = (read_values(tables[name].folder) for name in ("features", "embeddings"))
    heads = {str(name): models_of(run).head(f"{name}_embeddings") for name in run.config.heads.heads}
    weights = {name: head.importances for name, head in heads.items()}
    leading = leading_columns(weights)
    patches = patches_of(run).table
    groups = pd.factorize(patch_groups(patches))[0]
    train = np.flatnonzero(patches["split"] == "train")
    rows = train[sample_rows_evenly(groups[train], MAX_PATCHES, seed=run.config.seed)]
    chosen = [names[index] for index in leading]
    explained = explain_columns(table[rows][:, leading], chosen, raw[rows], features, groups[rows])
    return explained.assign(**{name: values[leading] for name, values in weights.items()})
