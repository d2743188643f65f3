"""Data of the report's feature explorer: Shapley values, partial dependence curves and example patches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoblend.data.patches import rows_of_patches
from histoblend.data.splits import patch_groups
from histoblend.models.inspection.embedding_columns import MAX_PATCHES, explain_columns, leading_columns
from histoblend.models.inspection.ensemble_shapley import Blending
from histoblend.models.inspection.partial_dependence import grid, partial_dependence, positive_shares
from histoblend.models.inspection.shapley import ShapleyValues, choose_cases, shapley_importance
from histoblend.models.names import SINGLE_FAMILIES
from histoblend.models.resampling import sample_rows_evenly, slide_groups
from histoblend.pipelines.analysis.explained_models import ExplainedModels, explain_models, models_on
from histoblend.pipelines.analysis.importances import read_importances
from histoblend.pipelines.analysis.model_set import models_of
from histoblend.pipelines.results import feature_sets, feature_tables, patches_of, predictions_of
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.runtime.dataclass_files import load_dataclass, save_dataclass
from histoblend.pipelines.tables import read_values
from histoblend.reports.evaluation.explorer import LEVELS, ExplorerView, opened_features, share_examples

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run

FEATURES, VIEW = "importances.parquet", "explorer"

#: Most patches used for percentiles, shares of positives and examples, spread evenly over slides.
SAMPLED = 5000
#: Most patches that a partial dependence curve is averaged over.
AVERAGED = 100


def build(run: Run, folder: Path) -> StepResult:
    """Write the data of the feature explorer, and Shapley values as a table of importances."""
    predictions = predictions_of(run)
    models = explain_models(run, predictions)
    measured = attribution_importances(run, models, predictions)
    measured.to_parquet(folder / FEATURES)
    everything = pd.concat([read_importances(run)[0], measured])
    save_dataclass(explorer_view(run, predictions, everything, models), folder / VIEW)
    return StepResult(len(models.rows))


def read_measured(run: Run) -> pd.DataFrame:
    """All importances of a run; those from Shapley values come last."""
    by_shapley = pd.read_parquet(run.step("attributions").folder / FEATURES)
    return pd.concat([read_importances(run)[0], by_shapley]).reset_index(drop=True)


def read_explorer(run: Run) -> ExplorerView:
    """Data of the feature explorer of a run."""
    return load_dataclass(run.step("attributions").folder / VIEW, ExplorerView, ShapleyValues, Blending)


def attribution_importances(run: Run, models: ExplainedModels, predictions: pd.DataFrame) -> pd.DataFrame:
    """Mean absolute Shapley values as a table of importances; see :func:`shapley.shapley_importance`."""
    groups = slide_groups(predictions["slide"].iloc[models.rows])
    options = {"draws": run.config.report.draws, "seed": run.config.seed}
    tables = [shapley_importance(each, groups, model=model, **options) for model, each in models.shares.items()]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def explorer_view(
    run: Run, predictions: pd.DataFrame, importances: pd.DataFrame, models: ExplainedModels
) -> ExplorerView:
    """Compute the data of the feature explorer.

    Parameters
    ----------
    run : Run
    predictions : DataFrame
        Rows as in the feature tables.
    importances : DataFrame
        All measures, including Shapley values.
    models : ExplainedModels

    Returns
    -------
    ExplorerView
    """
    seed = run.config.seed
    rows = sample_rows_evenly(slide_groups(predictions["slide"]), SAMPLED, seed=seed)
    part = predictions.iloc[rows]
    groups = slide_groups(part["slide"])
    averaged = sample_rows_evenly(groups, AVERAGED, seed=seed)
    features = opened_features(importances, models.evidence, list(models.shares)) if models.shares else []
    quantiles, values, curves = _read_sets(run, rows, averaged, features, models)
    examples = _examples(values, features, part)
    options = {"draws": run.config.report.draws, "seed": seed}
    tables = positive_shares(values, part["label"].to_numpy(), groups, **options) if features else []
    bins = [table.assign(feature=feature) for feature, table in zip(features, tables, strict=True)]
    explained = predictions.iloc[models.rows]
    cases = _cases(models, explained)
    shown = list(dict.fromkeys([*examples["patch_id"], *cases["patch_id"]]))
    positions = rows_of_patches(patches_of(run), shown)
    return ExplorerView(
        attributions=models.shares,
        best=models.best,
        blend=models.blend,
        evidence=models.evidence,
        clusters=models.clusters,
        explained=explained[["patch_id", "slide", "label"]].reset_index(drop=True),
        folds=models.folds,
        traced=_traced(models, predictions),
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


def _traced(models: ExplainedModels, predictions: pd.DataFrame) -> pd.DataFrame:
    """Patches that are explained by the fits without their slides: ``patch_id, fold, place``."""
    rows = [
        (predictions["patch_id"].iloc[row], fold, place)
        for fold, chosen in models.fold_rows.items()
        for place, row in enumerate(chosen)
    ]
    return pd.DataFrame(rows, columns=["patch_id", "fold", "place"])


def _read_sets(
    run: Run, rows: np.ndarray, averaged: np.ndarray, features: list[str], models: ExplainedModels
) -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame]:
    """Percentiles of all features, values (len(rows), len(features)) of the shown ones, and their curves by model."""
    sets = feature_sets(run)
    quantiles: dict[str, np.ndarray] = {}
    curves = []
    values = np.empty((len(rows), len(features)), np.float32)
    for name in [each for each in sets if each not in (*SINGLE_FAMILIES, "embeddings")]:
        on_set = models_on(name, run.config.heads.heads, models.shares)
        if not on_set:
            continue
        table, columns = sets.stored(name)[rows], sets.columns(name)
        index_of = {column: number for number, column in enumerate(columns)}
        new = [column for column in columns if column not in quantiles and not column.startswith("embedding_")]
        new_values = table[:, [index_of[column] for column in new]]
        quantiles |= zip(new, np.quantile(new_values, list(LEVELS), axis=0).T, strict=True)
        present = [(number, feature) for number, feature in enumerate(features) if feature in index_of]
        for number, feature in present:
            values[:, number] = table[:, index_of[feature]]
        points = {index_of[feature]: grid(table[:, index_of[feature]]) for _, feature in present}
        curves.append(_curves(run, on_set, table[averaged], columns, points))
    percentiles = pd.DataFrame(list(quantiles.values()), list(quantiles), list(LEVELS.values()))
    return percentiles, values, pd.concat(curves, ignore_index=True) if curves else pd.DataFrame()


def _curves(
    run: Run, models: list[str], X: np.ndarray, columns: list[str], points: Mapping[int, np.ndarray]
) -> pd.DataFrame:
    """Partial dependence of heads on one set of columns: ``feature, model, value, probability``."""
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

    tasks = [delayed(draw)(model) for model in models]
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


def _cases(models: ExplainedModels, explained: pd.DataFrame) -> pd.DataFrame:
    """Example patches of the best explained model: ``case, model, …``."""
    columns = ["case", "model", "patch_id", "place", "score", "threshold"]
    if not models.best:
        return pd.DataFrame(columns=columns)
    scores = explained[f"prob_{models.best}"].to_numpy()
    cases = choose_cases(explained["label"].to_numpy(), scores, models.threshold)
    rows = [
        (case, models.best, explained["patch_id"].iloc[row], row, scores[row], models.threshold)
        for case, row in cases.items()
    ]
    return pd.DataFrame(rows, columns=columns)


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
