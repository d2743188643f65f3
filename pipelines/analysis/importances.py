"""What each refitted head relies on, column by column and in groups, for the report."""

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
from histoblend.models.names import ALONE, LINEAR_ONLY
from histoblend.models.resampling import even_rows, slide_groups
from histoblend.pipelines.analysis.model_set import models_of
from histoblend.pipelines.config import Config
from histoblend.pipelines.results import feature_sets, patches_of, predictions_of
from histoblend.pipelines.run_files import DROPPED, FITTED, LEFT_OUT_OF, SETS
from histoblend.pipelines.runtime.artefacts import Outcome
from histoblend.pipelines.runtime.dataclass_files import load_view, save_view

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run

FEATURES, GROUPED = "features.parquet", "groups"

Stability = dict[str, str | int | float]

#: Sets that were put together from others: each part, and the set that remains without it and has its own fit.
HALVES = {
    "both": {"embeddings": "handcrafted", "handcrafted": "embeddings"},
    "context": {"slide context": "handcrafted"},
}

#: What is shuffled together beside halves and clusters. Regions only where no embedding, which sees the whole patch,
#: stands in for them.
SHUFFLED = {
    "handcrafted": ("theme", "region", "family"),
    "both": ("theme", "family"),
    "context": ("theme", "region", "family"),
}


@dataclass(frozen=True)
class Judged:
    """One model, what it says of its columns, and the held-out slides.

    Attributes
    ----------
    name : str
    features : str
        Its set of columns.
    columns : list of str
    head : fitted head
    said : dict from str to ndarray of shape (1 + folds, columns)
        Measure to the refit's values and, below, those of the fits that each left a fold out.
    X, y, slides : ndarray
        Held-out patches: columns, labels, slides as :func:`models.resampling.slide_groups` numbers them.
    units : dict from str to dict
        Kind of group to its groups: name to places of columns.
    without : dict from str to dict
        Kind of group to groups: name to the held-out scores of the model that was fitted without it.
    full : ndarray of shape (n,)
        Held-out scores with all columns.
    """

    name: str
    features: str
    columns: list[str]
    head: Any
    said: dict[str, np.ndarray]
    X: np.ndarray
    y: np.ndarray
    slides: np.ndarray
    units: dict[str, dict[str, list[int]]]
    without: dict[str, dict[str, np.ndarray]]
    full: np.ndarray


def build(run: Run, folder: Path) -> Outcome:
    """Write the importance of single columns, and of groups of them."""
    features, groups = importances(run, predictions_of(run))
    features.to_parquet(folder / FEATURES)
    save_view(groups, folder / GROUPED)
    return Outcome(len(features))


def read_importances(run: Run) -> tuple[pd.DataFrame, GroupView]:
    """Importances of a run, as :func:`importances` returned them."""
    folder = run.step("importances").folder
    return pd.read_parquet(folder / FEATURES), load_view(folder / GROUPED, GroupView)


def importances(run: Run, predictions: pd.DataFrame) -> tuple[pd.DataFrame, GroupView]:
    """What each refitted head relies on.

    Parameters
    ----------
    run : Run
        With fitted heads.
    predictions : DataFrame
        ``patch_id, slide, split, label, prob_<model>``, rows as in the feature tables.

    Returns
    -------
    features : DataFrame
        Single columns, `models.inspection.importance.COLUMNS`: gain, cover and coefficients with their spread over
        folds, and permutation on the held-out slides for the handcrafted columns; families that were shuffled
        together have rows without a feature.
    groups : GroupView
        Families, themes, regions, clusters, and the halves that sets were put together from.
    """
    from joblib import Parallel, delayed

    clusters, clustered_on = _clusters(run)
    tasks = (delayed(_importance)(run.config, judged) for judged in _judged(run, predictions, clusters))
    # Threads: XGBoost and the bootstrap let go of the interpreter lock.
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
    """Clusters of two columns or more by name: ``group, columns, members, closeness``; see :class:`GroupView`."""
    rows = [
        (columns[each.leader], len(each.members), " ".join(columns[place] for place in each.members), each.closeness)
        for each in clusters
        if len(each.members) > 1
    ]
    return pd.DataFrame(rows, columns=["group", "columns", "members", "closeness"])


def _clusters(run: Run) -> tuple[list[Cluster], int]:
    """Clusters of handcrafted columns, found on training patches only, and how many of these there were."""
    sets = feature_sets(run)
    if LEFT_OUT_OF not in sets:
        return [], 0
    table = patches_of(run).table
    train = np.flatnonzero(table["split"] == "train")
    slides = slide_groups(table["slide"].to_numpy()[train])
    rows = train[even_rows(slides, CLUSTER_ON, seed=run.config.seed)]
    return cluster_columns(np.asarray(sets[LEFT_OUT_OF][0][rows])), len(rows)


def _judged(run: Run, predictions: pd.DataFrame, clusters: Sequence[Cluster]) -> Iterator[Judged]:
    """Put together all models but those of a family alone; a set's values are read once for all heads."""
    folder, sets = run.step("heads").folder, feature_sets(run)
    names = json.loads((folder / SETS).read_text(encoding="utf-8"))
    said, dropped = pd.read_parquet(folder / FITTED), pd.read_parquet(folder / DROPPED)
    test = predictions[predictions["split"] == "test"]
    dropped = dropped.set_index("patch_id").loc[test["patch_id"]]
    for features in sets:
        if features in ALONE or features in LINEAR_ONLY:
            continue
        values, columns = sets[features]
        X = np.asarray(values[test.index])
        units = _units(features, names, clusters)
        for head in run.config.heads.heads:
            name = f"{head}_{features}"
            yield Judged(
                name,
                features,
                columns,
                models_of(run).head(name),
                by_measure(said[said["model"] == name], columns),
                X,
                test["label"].to_numpy(),
                slide_groups(test["slide"]),
                units,
                _without(head, features, units, test, dropped),
                test[f"prob_{name}"].to_numpy(),
            )


def _units(features: str, names: dict[str, list[str]], clusters: Sequence[Cluster]) -> dict[str, dict[str, list[int]]]:
    """Groups of a set's columns, by kind."""
    columns = names[features]
    units = {kind: group_columns(columns, kind) for kind in ("theme", "region", "family")}
    if features == LEFT_OUT_OF:
        units["cluster"] = {columns[each.leader]: list(each.members) for each in clusters if len(each.members) > 1}
    halves = {}
    for part, rest in HALVES.get(features, {}).items():
        if rest in names:
            kept = set(names[rest])
            halves[part] = [place for place, column in enumerate(columns) if column not in kept]
    units["half"] = halves
    return units


def _without(
    head: str, features: str, units: dict[str, dict[str, list[int]]], test: pd.DataFrame, dropped: pd.DataFrame
) -> dict[str, dict[str, np.ndarray]]:
    """Held-out scores of the fits without a group: those of step 4, and the rungs that lack a half."""
    rest = HALVES.get(features, {})
    found = {"half": {part: test[f"prob_{head}_{rest[part]}"].to_numpy() for part in units["half"]}}
    for kind in ("theme", "region"):
        places = {name: f"prob_{head}_{features}_without_{name}" for name in units[kind]}
        found[kind] = {name: dropped[place].to_numpy() for name, place in places.items() if place in dropped}
    return found


def by_measure(said: pd.DataFrame, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """What the fits of one model say of their columns.

    Parameters
    ----------
    said : DataFrame
        ``fold, measure, feature, value``, as step 4 stores it; fold −1 is the refit.
    columns : sequence of str

    Returns
    -------
    dict from str to ndarray of shape (1 + folds, columns), dtype float64
        The refit first, then by fold.
    """
    found = {}
    for measure, part in said.groupby("measure", sort=False):
        wide = part.pivot(index="fold", columns="feature", values="value")[list(columns)].sort_index()
        found[str(measure)] = wide.to_numpy(dtype=np.float64)
    return found


def _importance(config: Config, judged: Judged) -> tuple[pd.DataFrame, pd.DataFrame, list[Stability]]:
    """Single columns, groups and stability of one model."""
    single, groups, stability = _said(judged)
    more, steady = _shuffled(config, judged)
    groups += more + _dropped(config, judged)
    single += [family_rows(found) for found in more]
    if judged.features == LEFT_OUT_OF:
        single.append(
            permutation_importance(
                partial(_positive, judged.head),
                judged.X,
                judged.y,
                judged.columns,
                judged.slides,
                model=judged.name,
                repeats=config.report.repeats,
                draws=config.report.draws,
                seed=config.seed,
                make_scorer=judged.head.with_replaced,
            )
        )
    return _join(single, COLUMNS), _join(groups, GROUPS), stability + steady


def family_rows(groups: pd.DataFrame) -> pd.DataFrame:
    """Families that were shuffled together, as rows of a table of features that name none."""
    return groups[groups["kind"] == "family"].rename(columns={"group": "family"}).reindex(columns=COLUMNS)


def _said(judged: Judged) -> tuple[list[pd.DataFrame], list[pd.DataFrame], list[Stability]]:
    """What the fits say of their columns: single ones, groups, and how far folds agree."""
    model = judged.name
    single, groups, stability = [], [], []
    for measure, values in judged.said.items():
        refit, folds = values[0], values[1:]
        single.append(fitted_importance(refit, judged.columns, measure=measure, model=model, folds=folds))
        for kind in ("half", "theme", "region", "family"):
            units = judged.units[kind]
            # All of a model's columns in one group say nothing; a half is never all of them.
            if len(units) > 1 or (units and kind == "half"):
                groups.append(fitted_groups(refit, folds, units, kind=kind, measure=measure, model=model))
        stability += fold_stability(folds, judged.units["family"], model=model, measure=measure)
    return single, groups, stability


def _shuffled(config: Config, judged: Judged) -> tuple[list[pd.DataFrame], list[Stability]]:
    """Groups shuffled together on the held-out slides, and how far draws of slides agree on families."""
    groups, stability = [], []
    for kind in ("half", *SHUFFLED.get(judged.features, ()), "cluster"):
        units = judged.units.get(kind, {})
        if not units:
            continue
        found, drops = group_permutation(
            partial(_positive, judged.head),
            judged.X,
            judged.y,
            units,
            judged.slides,
            kind=kind,
            model=judged.name,
            repeats=config.report.repeats,
            draws=config.report.draws,
            seed=config.seed,
            make_scorer=judged.head.with_replaced,
        )
        groups.append(found)
        if kind == "family":
            names = {"model": judged.name, "measure": "permutation", "level": "family", "over": "draws of slides"}
            stability.append(stability_row(drops.drawn, **names))
    return groups, stability


def _dropped(config: Config, judged: Judged) -> list[pd.DataFrame]:
    """Groups left out of the fit, judged on the held-out slides."""
    return [
        dropped_importance(
            judged.y,
            judged.full,
            without,
            judged.units[kind],
            judged.slides,
            kind=kind,
            model=judged.name,
            draws=config.report.draws,
            seed=config.seed,
        )
        for kind, without in judged.without.items()
        if without
    ]


def _join(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _positive(head: Any, X: np.ndarray) -> np.ndarray:
    positive: np.ndarray = head.predict_proba(X)[:, 1]
    return positive
