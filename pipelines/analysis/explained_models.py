"""Models that the report explains patch by patch: Shapley values, their evidence, and the best of these models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoblend.models.calibration import log_odds, youden_threshold
from histoblend.models.ensemble import Ensemble
from histoblend.models.heads.registry import head_class
from histoblend.models.inspection.column_clusters import CLUSTER_ON, cluster_columns
from histoblend.models.inspection.ensemble_shapley import Blending, blending, combine_shares, network_shares
from histoblend.models.inspection.importance_evidence import cluster_members, evidence, weighted_folds
from histoblend.models.inspection.out_of_fold_shapley import fold_moments, out_of_fold_shares
from histoblend.models.inspection.shapley import EXPLAINED_PATCHES, TOGETHER, ShapleyValues, attribute
from histoblend.models.names import LINEAR_ONLY, WITH_SLIDES, tables_of
from histoblend.models.resampling import sample_rows_evenly, slide_groups
from histoblend.models.slide_means import slide_means
from histoblend.pipelines.analysis.model_set import models_of
from histoblend.pipelines.results import feature_sets, patches_of
from histoblend.pipelines.run_files import ENSEMBLE, FITTED
from histoblend.pipelines.tables import known_slides
from histoblend.reports.evaluation.decisions import DEFAULT_POINT
from histoblend.reports.evaluation.explorer import likely_shown

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run

#: Sets of columns whose heads are all explained. Colour is part of each set. The best head and the members of the
#: ensemble are explained too.
EXPLAINED_SETS = ("handcrafted", "both", "context")
COMBINED = "ensemble"


@dataclass
class ExplainedModels:
    """Shapley values of all explained models.

    Attributes
    ----------
    shares : dict from model to ShapleyValues
        Of the held-out patches in `rows`.
    rows : ndarray of int
        Rows of the predictions: at most `EXPLAINED_PATCHES`, spread evenly over the held-out slides.
    best : str
        Explained model with the best out-of-fold AUC; empty if none is explained.
    threshold : float
        Threshold of the best model.
    blend : Blending or None
        How the ensemble weights its members, if it is explained.
    evidence : DataFrame
        From :func:`models.inspection.importance_evidence.evidence`, of all models.
    clusters : DataFrame
        ``model, unit, members``: leader, and names of all columns, joined by spaces.
    folds : dict from str to ShapleyValues
        Fold to values of training patches of that fold, from the fits without it, for the best model.
    fold_rows : dict from str to list of int
        Rows of the predictions that `folds` belong to.
    """

    shares: dict[str, ShapleyValues] = field(default_factory=dict)
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    best: str = ""
    threshold: float = 0.5
    blend: Blending | None = None
    evidence: pd.DataFrame = field(default_factory=pd.DataFrame)
    clusters: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["model", "unit", "members"]))
    folds: dict[str, ShapleyValues] = field(default_factory=dict)
    fold_rows: dict[str, list[int]] = field(default_factory=dict)


@dataclass
class _Parts:
    """What is kept of each set of columns: members that belong to no selectable model, and values for clusters."""

    shares: dict[str, ShapleyValues] = field(default_factory=dict)
    folds: dict[str, dict[str, ShapleyValues]] = field(default_factory=dict)
    samples: dict[str, pd.DataFrame] = field(default_factory=dict)


def explain_models(run: Run, predictions: pd.DataFrame) -> ExplainedModels:
    """Explain held-out patches by every model that can be explained.

    Parameters
    ----------
    run : Run
    predictions : DataFrame
        Rows as in the feature tables.

    Returns
    -------
    ExplainedModels
        Without models if no head has handcrafted columns.
    """
    sets = feature_sets(run)
    single = _explainable_heads(run, predictions)
    blend = _stored_blend(run, predictions, list(sets))
    best = _best_model(predictions, [*single, *([COMBINED] if blend else [])])
    test = np.flatnonzero(predictions["split"] == "test")
    rows = test[
        sample_rows_evenly(slide_groups(predictions["slide"].iloc[test]), EXPLAINED_PATCHES, seed=run.config.seed)
    ]
    result = ExplainedModels(rows=rows, best=best, blend=blend)
    if not best:
        return result
    train = predictions[(predictions["split"] == "train") & predictions[f"prob_{best}"].notna()]
    if best == COMBINED:
        stored = json.loads((run.step("ensemble").folder / ENSEMBLE).read_text(encoding="utf-8"))
        result.threshold = float(stored[WITH_SLIDES]["thresholds"][DEFAULT_POINT])
    else:
        result.threshold = float(youden_threshold(train["label"].to_numpy(), train[f"prob_{best}"].to_numpy()))
    members = blend.members if blend else []
    wanted = [model for model in single if _is_shown(model) or model in (best, *members)]
    shown = likely_shown(train, best, result.threshold)
    result.fold_rows = {str(fold): part.index.tolist() for fold, part in shown.groupby("fold")}
    traced = list(members) if best == COMBINED else [best]
    parts = _read_sets(run, predictions, list(dict.fromkeys([*wanted, *members])), result, traced)
    result.shares = {model: parts.shares[model] for model in wanted}
    if blend:
        result.shares[COMBINED] = _ensemble_shares(run, predictions, blend, parts.shares, rows)
    result.folds = _fold_shares(run, predictions, result, parts, traced)
    result.fold_rows = {fold: rows_ for fold, rows_ in result.fold_rows.items() if fold in result.folds}
    _add_evidence(run, predictions, result, parts)
    return result


def _explainable_heads(run: Run, predictions: pd.DataFrame) -> list[str]:
    """Heads with handcrafted columns, in the order of the sets: single embedding columns have no meaning."""
    names = [name for name in feature_sets(run) if name in EXPLAINED_SETS or "-" in name]
    names = [name for name in names if any(table.startswith("features") for table in tables_of(name))]
    models = [f"{head}_{name}" for name in names for head in run.config.heads.heads]
    return [model for model in models if f"prob_{model}" in predictions]


def _is_shown(model: str) -> bool:
    return model.partition("_")[2] in EXPLAINED_SETS


def _best_model(predictions: pd.DataFrame, models: Sequence[str]) -> str:
    """Model with the best out-of-fold AUC; the first of equals; empty without models."""
    from sklearn.metrics import roc_auc_score

    aucs = {}
    for model in models:
        part = predictions[(predictions["split"] == "train") & predictions[f"prob_{model}"].notna()]
        aucs[model] = roc_auc_score(part["label"], part[f"prob_{model}"])
    return max(aucs, key=aucs.__getitem__) if aucs else ""


def _stored_blend(run: Run, predictions: pd.DataFrame, sets: Sequence[str]) -> Blending | None:
    """Weights of the run's ensemble for known slides; None without an ensemble that can be explained."""
    if not run.has("ensemble") or f"prob_{COMBINED}" not in predictions:
        return None
    content = json.loads((run.step("ensemble").folder / ENSEMBLE).read_text(encoding="utf-8"))
    blend = blending(Ensemble.from_dict(content[WITH_SLIDES]))
    # An ensemble of networks only has no columns to explain.
    return blend if blend and any(_set_of(member) in sets for member in blend.members) else None


def _set_of(model: str) -> str:
    return model.partition("_")[2]


def _read_sets(
    run: Run, predictions: pd.DataFrame, models: Sequence[str], result: ExplainedModels, traced: Sequence[str]
) -> _Parts:
    """Explain all heads, one set of columns at a time."""
    from joblib import Parallel, delayed

    sets, parts = feature_sets(run), _Parts()
    train = np.flatnonzero(predictions["split"] == "train")
    sample = train[sample_rows_evenly(slide_groups(predictions["slide"].iloc[train]), CLUSTER_ON, seed=run.config.seed)]
    fitted = pd.read_parquet(run.step("heads").folder / FITTED)
    for name in [each for each in sets if any(_set_of(model) == each for model in models)]:
        values, columns = sets.stored(name), sets.columns(name)
        here = [model for model in models if _set_of(model) == name]
        X = values[result.rows]
        # Threads suffice: XGBoost releases the interpreter lock.
        tasks = [delayed(_attribute)(run, model, X, columns) for model in here]
        parts.shares |= zip(here, Parallel(n_jobs=run.workers, prefer="threads")(tasks), strict=True)
        keep = [index for index, column in enumerate(columns) if column.partition("_")[0] not in TOGETHER]
        kept_columns = [columns[index] for index in keep]
        parts.samples[name] = pd.DataFrame(values[sample][:, keep], columns=kept_columns)
        if linear := [each for each in here if each in traced and _is_linear(each)]:
            moments = fold_moments(sets.stored(name, train).blocks(), predictions["fold"].to_numpy()[train])
        for model in linear:
            coefficients = fitted[fitted["model"] == model].pivot(index="feature", columns="fold", values="value")
            parts.folds[model] = out_of_fold_shares(
                values, moments, coefficients.loc[columns], predictions[f"prob_{model}"].to_numpy(), result.fold_rows
            )
    return parts


def _attribute(run: Run, model: str, X: np.ndarray, columns: list[str]) -> ShapleyValues:
    return attribute(models_of(run).head(model), X, columns)


def _is_linear(model: str) -> bool:
    return head_class(model.partition("_")[0]).importance == "coefficient"


def _ensemble_shares(
    run: Run, predictions: pd.DataFrame, blend: Blending, shares: Mapping[str, ShapleyValues], rows: np.ndarray
) -> ShapleyValues:
    """Shapley values of the ensemble; members without columns count as one feature."""
    odds, usual, means, usual_means = _member_odds(run, predictions, blend)
    members = {
        member: shares[member] if member in shares else network_shares(odds[rows, number], float(usual[number]))
        for number, member in enumerate(blend.members)
    }
    return combine_shares(blend, members, means[rows], usual_means)


def _member_odds(
    run: Run, predictions: pd.DataFrame, blend: Blending
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Members' probabilities and slide means of all patches, and the mean log-odds of each over training patches."""
    values = predictions[[f"prob_{member}" for member in blend.members]].to_numpy(dtype=np.float64)
    complete = ~np.isnan(values).any(axis=1)
    means = np.full_like(values, np.nan)
    slides = known_slides(patches_of(run).table["slide"])
    means[complete] = slide_means(values[complete], slides[complete])
    train = complete & (predictions["split"] == "train").to_numpy()
    return values, log_odds(values[train]).mean(axis=0), means, log_odds(means[train]).mean(axis=0)


def _fold_shares(
    run: Run, predictions: pd.DataFrame, result: ExplainedModels, parts: _Parts, traced: Sequence[str]
) -> dict[str, ShapleyValues]:
    """Values of training patches by fold; empty if a traced model is not linear, as fits of folds are not stored."""
    with_columns = [model for model in traced if model in parts.shares]
    if not with_columns or any(model not in parts.folds for model in with_columns):
        return {}
    folds = [fold for fold in result.fold_rows if all(fold in parts.folds[model] for model in with_columns)]
    if result.best != COMBINED or result.blend is None:
        return {fold: parts.folds[result.best][fold] for fold in folds}
    blend = result.blend
    odds, usual, means, usual_means = _member_odds(run, predictions, blend)
    by_fold = {}
    for fold in folds:
        rows = result.fold_rows[fold]
        members = {
            member: parts.folds[member][fold]
            if member in parts.folds
            else network_shares(odds[rows, number], float(usual[number]))
            for number, member in enumerate(blend.members)
        }
        by_fold[fold] = combine_shares(blend, members, means[rows], usual_means)
    return by_fold


def _add_evidence(run: Run, predictions: pd.DataFrame, result: ExplainedModels, parts: _Parts) -> None:
    """Clusters, and evidence for every column, cluster and family of each model."""
    explained = predictions.iloc[result.rows]
    groups, labels = slide_groups(explained["slide"]), explained["label"].to_numpy()
    fitted = pd.read_parquet(run.step("heads").folder / FITTED)
    known: dict[tuple[str, ...], list[list[str]]] = {}
    tables, rows = [], []
    for model, shares in result.shares.items():
        members = result.blend.members if model == COMBINED and result.blend else [model]
        names = tuple(_set_of(member) for member in members if _set_of(member) in parts.samples)
        if names not in known:
            table = pd.concat([parts.samples[name] for name in dict.fromkeys(names)], axis=1)
            table = table.loc[:, ~table.columns.duplicated()]
            known[names] = cluster_members(cluster_columns(table.to_numpy()), list(table.columns))
        folds = _fold_importances(fitted, model, result.blend)
        options = {"draws": run.config.report.draws, "seed": run.config.seed}
        tables.append(evidence(shares, labels, groups, known[names], folds, model=model, **options))
        rows += [(model, each[0], " ".join(each)) for each in known[names]]
    result.evidence = pd.concat(tables, ignore_index=True)
    result.clusters = pd.DataFrame(rows, columns=["model", "unit", "members"])


def _fold_importances(fitted: pd.DataFrame, model: str, blend: Blending | None) -> pd.DataFrame | None:
    """Importance of each single column in the fit without each fold; None if members' measures cannot be compared."""
    part = fitted[(fitted["fold"] >= 0) & ~fitted["feature"].str.startswith(tuple(f"{name}_" for name in TOGETHER))]
    if model != COMBINED or blend is None:
        return _by_fold(part, model)
    with_columns = [member for member in blend.members if (part["model"] == member).any()]
    if not all(_is_linear(member) for member in with_columns):
        return None
    weights = dict(zip(blend.members, blend.weights, strict=True))
    return weighted_folds({member: _by_fold(part, member) for member in with_columns}, weights)


def _by_fold(fitted: pd.DataFrame, model: str) -> pd.DataFrame:
    """Columns in rows and folds in columns, by the measure that the head is known for."""
    measure = head_class(model.partition("_")[0]).importance
    rows = fitted[(fitted["model"] == model) & (fitted["measure"] == measure)]
    return rows.pivot(index="feature", columns="fold", values="value")


def models_on(name: str, heads: Sequence[str], explained: Mapping[str, ShapleyValues]) -> list[str]:
    """Models on a set of columns that have a curve: all heads, or the explained ones if only some were fitted."""
    models = [f"{head}_{name}" for head in heads]
    return [model for model in models if model in explained] if name in LINEAR_ONLY else models
