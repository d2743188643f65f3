"""Importances of single columns and groups of columns for each refitted head."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoblend.features.handcrafted.families import group_columns
from histoblend.models.inspection.column_clusters import CLUSTER_ON, RHO, Cluster, cluster_columns
from histoblend.models.inspection.importance import (
    COLUMNS,
    GROUPS,
    STABILITY,
    GroupView,
    fitted_groups,
    fitted_importance,
)
from histoblend.models.inspection.importance_stability import fold_stability, stability_row
from histoblend.models.inspection.permutation import dropped_importance, group_permutation, permutation_importance
from histoblend.models.names import LINEAR_ONLY, SINGLE_FAMILIES
from histoblend.models.resampling import sample_rows_evenly, slide_groups
from histoblend.pipelines.analysis.model_set import models_of
from histoblend.pipelines.config import Config
from histoblend.pipelines.results import feature_sets, patches_of, predictions_of
from histoblend.pipelines.run_files import DROPPED, FITTED, LEFT_OUT_OF, SETS
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.runtime.dataclass_files import load_dataclass, save_dataclass
from histoblend.pipelines.tables import StoredSet

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run

FEATURES, GROUPED = "features.parquet", "groups"

Stability = dict[str, str | int | float]

#: Sets that combine other sets: each part, and the fitted set that is left without that part.
HALVES = {
    "both": {"embeddings": "handcrafted", "handcrafted": "embeddings"},
    "context": {"slide context": "handcrafted"},
}

#: Kinds of groups that are shuffled, besides halves and clusters. Regions are not shuffled in sets with embeddings,
#: because embeddings cover the whole patch and carry the same information.
SHUFFLED = {
    "handcrafted": ("theme", "region", "family"),
    "both": ("theme", "family"),
    "context": ("theme", "region", "family"),
}


@dataclass(frozen=True)
class EvaluatedModel:
    """One model, its built-in importances, and the held-out patches.

    Attributes
    ----------
    name : str
    features : str
        Set of columns.
    columns : list of str
    head : fitted head
    built_in : dict from str to ndarray of shape (1 + folds, columns)
        Measure (gain, cover or coefficient) to the values of the refit in the first row, then of the fold fits.
    X : StoredSet
        Columns of the held-out patches.
    y, slides : ndarray
        Labels and slide numbers (:func:`models.resampling.slide_groups`) of the held-out patches.
    units : dict from str to dict
        Kind of group to its groups, and each group to the indices of its columns.
    without : dict from str to dict
        Kind of group to its groups, and each group to the held-out scores of the model fitted without it.
    full : ndarray of shape (n,)
        Held-out scores of the model with all columns.
    """

    name: str
    features: str
    columns: list[str]
    head: Any
    built_in: dict[str, np.ndarray]
    X: StoredSet
    y: np.ndarray
    slides: np.ndarray
    units: dict[str, dict[str, list[int]]]
    without: dict[str, dict[str, np.ndarray]]
    full: np.ndarray


def build(run: Run, folder: Path) -> StepResult:
    """Write the importances of single columns and of groups."""
    features, groups = importances(run, predictions_of(run))
    features.to_parquet(folder / FEATURES)
    save_dataclass(groups, folder / GROUPED)
    return StepResult(len(features))


def read_importances(run: Run) -> tuple[pd.DataFrame, GroupView]:
    """Importances of a run, as returned by :func:`importances`."""
    folder = run.step("importances").folder
    return pd.read_parquet(folder / FEATURES), load_dataclass(folder / GROUPED, GroupView)


def importances(run: Run, predictions: pd.DataFrame) -> tuple[pd.DataFrame, GroupView]:
    """Compute the importances of each refitted head.

    Parameters
    ----------
    run : Run
        Must have fitted heads.
    predictions : DataFrame
        ``patch_id, slide, split, label, prob_<model>``, rows as in the feature tables.

    Returns
    -------
    features : DataFrame
        Single columns, `models.inspection.importance.COLUMNS`: gain, cover and coefficients with their spread over
        folds, and permutation importance on the held-out slides for handcrafted columns. Rows without a feature are
        shuffled families.
    groups : GroupView
        Families, themes, regions, clusters, and the halves of combined sets.
    """
    from joblib import Parallel, delayed

    clusters, clustered_on = _clusters(run)
    tasks = (delayed(_importance)(run.config, evaluated) for evaluated in _evaluated_models(run, predictions, clusters))
    # Threads suffice: XGBoost and the bootstrap release the interpreter lock.
    results = Parallel(n_jobs=run.workers, prefer="threads")(tasks)
    names = json.loads((run.step("heads").folder / SETS).read_text(encoding="utf-8")).get(LEFT_OUT_OF, [])
    view = GroupView(
        groups=_join([groups for _, groups, _ in results], GROUPS),
        clusters=cluster_table(clusters, names),
        stability=pd.DataFrame([row for *_, rows in results for row in rows], columns=STABILITY),
        rho=RHO,
        clustered_on=clustered_on,
    )
    return _join([single for single, _, _ in results], COLUMNS), view


def cluster_table(clusters: Sequence[Cluster], columns: Sequence[str]) -> pd.DataFrame:
    """Table of the clusters of two or more columns: ``group, columns, members, closeness``; see :class:`GroupView`."""
    rows = [
        (columns[each.leader], len(each.members), " ".join(columns[index] for index in each.members), each.closeness)
        for each in clusters
        if len(each.members) > 1
    ]
    return pd.DataFrame(rows, columns=["group", "columns", "members", "closeness"])


def _clusters(run: Run) -> tuple[list[Cluster], int]:
    """Clusters of handcrafted columns, computed on training patches only, and the number of these patches."""
    sets = feature_sets(run)
    if LEFT_OUT_OF not in sets:
        return [], 0
    table = patches_of(run).table
    train = np.flatnonzero(table["split"] == "train")
    slides = slide_groups(table["slide"].to_numpy()[train])
    rows = train[sample_rows_evenly(slides, CLUSTER_ON, seed=run.config.seed)]
    return cluster_columns(sets.stored(LEFT_OUT_OF)[rows]), len(rows)


def _evaluated_models(run: Run, predictions: pd.DataFrame, clusters: Sequence[Cluster]) -> Iterator[EvaluatedModel]:
    """Collect all models except those of single families."""
    folder, sets = run.step("heads").folder, feature_sets(run)
    names = json.loads((folder / SETS).read_text(encoding="utf-8"))
    built_in, dropped = pd.read_parquet(folder / FITTED), pd.read_parquet(folder / DROPPED)
    test = predictions[predictions["split"] == "test"]
    dropped = dropped.set_index("patch_id").loc[test["patch_id"]]
    for features in sets:
        if features in SINGLE_FAMILIES or features in LINEAR_ONLY:
            continue
        columns, X = sets.columns(features), sets.stored(features, test.index.to_numpy())
        units = _units(features, names, clusters)
        for head in run.config.heads.heads:
            name = f"{head}_{features}"
            yield EvaluatedModel(
                name,
                features,
                columns,
                models_of(run).head(name),
                by_measure(built_in[built_in["model"] == name], columns),
                X,
                test["label"].to_numpy(),
                slide_groups(test["slide"]),
                units,
                _without(head, features, units, test, dropped),
                test[f"prob_{name}"].to_numpy(),
            )


def _units(features: str, names: dict[str, list[str]], clusters: Sequence[Cluster]) -> dict[str, dict[str, list[int]]]:
    """Groups of columns of a set, by kind of group."""
    columns = names[features]
    units = {kind: group_columns(columns, kind) for kind in ("theme", "region", "family")}
    if features == LEFT_OUT_OF:
        units["cluster"] = {columns[each.leader]: list(each.members) for each in clusters if len(each.members) > 1}
    halves = {}
    for part, rest in HALVES.get(features, {}).items():
        if rest in names:
            kept = set(names[rest])
            halves[part] = [index for index, column in enumerate(columns) if column not in kept]
    units["half"] = halves
    return units


def _without(
    head: str, features: str, units: dict[str, dict[str, list[int]]], test: pd.DataFrame, dropped: pd.DataFrame
) -> dict[str, dict[str, np.ndarray]]:
    """Held-out scores of the fits without a group: refits of step 4, and, for halves, the rung without that half."""
    rest = HALVES.get(features, {})
    scores = {"half": {part: test[f"prob_{head}_{rest[part]}"].to_numpy() for part in units["half"]}}
    for kind in ("theme", "region"):
        columns = {name: f"prob_{head}_{features}_without_{name}" for name in units[kind]}
        scores[kind] = {name: dropped[column].to_numpy() for name, column in columns.items() if column in dropped}
    return scores


def by_measure(built_in: pd.DataFrame, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrange the built-in importances of one model by measure.

    Parameters
    ----------
    built_in : DataFrame
        ``fold, measure, feature, value``, as stored by step 4. Fold −1 is the refit.
    columns : sequence of str

    Returns
    -------
    dict from str to ndarray of shape (1 + folds, columns), dtype float64
        The refit first, then the folds in order.
    """
    values = {}
    for measure, part in built_in.groupby("measure", sort=False):
        wide = part.pivot(index="fold", columns="feature", values="value")[list(columns)].sort_index()
        values[str(measure)] = wide.to_numpy(dtype=np.float64)
    return values


def _importance(config: Config, evaluated: EvaluatedModel) -> tuple[pd.DataFrame, pd.DataFrame, list[Stability]]:
    """Importances of single columns, of groups, and their stability, for one model."""
    single, groups, stability = _built_in(evaluated)
    shuffled, shuffled_stability = _shuffled(config, evaluated)
    groups += shuffled + _dropped(config, evaluated)
    single += [family_rows(table) for table in shuffled]
    if evaluated.features == LEFT_OUT_OF:
        single.append(
            permutation_importance(
                partial(_positive, evaluated.head),
                evaluated.X,
                evaluated.y,
                evaluated.columns,
                evaluated.slides,
                model=evaluated.name,
                repeats=config.report.repeats,
                draws=config.report.draws,
                seed=config.seed,
                make_scorer=evaluated.head.with_replaced,
            )
        )
    return _join(single, COLUMNS), _join(groups, GROUPS), stability + shuffled_stability


def family_rows(groups: pd.DataFrame) -> pd.DataFrame:
    """Rows of the shuffled families for the table of features, without a feature name."""
    return groups[groups["kind"] == "family"].rename(columns={"group": "family"}).reindex(columns=COLUMNS)


def _built_in(evaluated: EvaluatedModel) -> tuple[list[pd.DataFrame], list[pd.DataFrame], list[Stability]]:
    """Built-in importances of single columns and of groups, and their stability over folds."""
    model = evaluated.name
    single, groups, stability = [], [], []
    for measure, values in evaluated.built_in.items():
        refit, folds = values[0], values[1:]
        single.append(fitted_importance(refit, evaluated.columns, measure=measure, model=model, folds=folds))
        for kind in ("half", "theme", "region", "family"):
            units = evaluated.units[kind]
            # A single group of all columns has share 1 and is left out. A half never has all columns.
            if len(units) > 1 or (units and kind == "half"):
                groups.append(fitted_groups(refit, folds, units, kind=kind, measure=measure, model=model))
        stability += fold_stability(folds, evaluated.units["family"], model=model, measure=measure)
    return single, groups, stability


def _shuffled(config: Config, evaluated: EvaluatedModel) -> tuple[list[pd.DataFrame], list[Stability]]:
    """Permutation importance of groups on the held-out slides, and its stability over draws of slides for families."""
    groups, stability = [], []
    for kind in ("half", *SHUFFLED.get(evaluated.features, ()), "cluster"):
        units = evaluated.units.get(kind, {})
        if not units:
            continue
        table, drops = group_permutation(
            partial(_positive, evaluated.head),
            evaluated.X,
            evaluated.y,
            units,
            evaluated.slides,
            kind=kind,
            model=evaluated.name,
            repeats=config.report.repeats,
            draws=config.report.draws,
            seed=config.seed,
            make_scorer=evaluated.head.with_replaced,
        )
        groups.append(table)
        if kind == "family":
            names = {"model": evaluated.name, "measure": "permutation", "level": "family", "over": "draws of slides"}
            stability.append(stability_row(drops.drawn, **names))
    return groups, stability


def _dropped(config: Config, evaluated: EvaluatedModel) -> list[pd.DataFrame]:
    """Drop in AUC on the held-out slides for groups that were left out of a refit."""
    return [
        dropped_importance(
            evaluated.y,
            evaluated.full,
            without,
            evaluated.units[kind],
            evaluated.slides,
            kind=kind,
            model=evaluated.name,
            draws=config.report.draws,
            seed=config.seed,
        )
        for kind, without in evaluated.without.items()
        if without
    ]


def _join(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _positive(head: Any, X: np.ndarray) -> np.ndarray:
    positive: np.ndarray = head.predict_proba(X)[:, 1]
    return positive
