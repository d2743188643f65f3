"""How far each column, cluster and family separates tumour from benign patches, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from histoblend.features.handcrafted.families import parse_column
from histoblend.models.inspection.column_clusters import Cluster
from histoblend.models.inspection.shapley import TOGETHER, ShapleyValues
from histoblend.models.resampling import draw_slides, percentile_interval

EVIDENCE = ["model", "kind", "unit", "columns", "separation", "low", "high", "direction", "first", "last", "ranked"]

#: Most columns that count as leading in a fold: this share of the ranked columns.
LEADING_SHARE = 0.1
#: Rank correlation of value and contribution from which a column has a direction.
CLEAR = 0.3


def family_of(feature: str) -> str:
    """Family of a column; columns that are taken together are a family of their own."""
    return feature if feature in TOGETHER else parse_column(feature).family


def family_members(features: Sequence[str]) -> dict[str, list[int]]:
    """Positions of the columns of each family, in order of first appearance."""
    members: dict[str, list[int]] = {}
    for position, feature in enumerate(features):
        members.setdefault(family_of(feature), []).append(position)
    return members


def cluster_members(clusters: Sequence[Cluster], columns: Sequence[str]) -> list[list[str]]:
    """Names of the columns of each cluster of two or more; the leader comes first."""
    return [[columns[index] for index in each.members] for each in clusters if len(each.members) > 1]


def evidence(
    attribution: ShapleyValues,
    labels: np.ndarray,
    groups: np.ndarray,
    clusters: Sequence[Sequence[str]],
    folds: pd.DataFrame | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
    model: str = "",
) -> pd.DataFrame:
    """Separation of columns, clusters and families, with intervals, direction and rank over folds.

    The separation is the mean contribution to positive patches minus the mean contribution to negative patches. Those
    of all columns add up to the model's separation: the difference in mean log-odds. The separation of a cluster or a
    family is the sum over its columns, so credit that is split arbitrarily among them does not matter.

    Parameters
    ----------
    attribution : ShapleyValues
        Of patches of held-out slides.
    labels : ndarray of shape (n,), 0 or 1
    groups : ndarray of shape (n,), int
        Slides of the patches, from :func:`models.resampling.slide_groups`.
    clusters : sequence of sequence of str
        Names of the columns of each cluster; the leader comes first.
    folds : DataFrame, optional
        Importance of each column (in rows) in the fit that left one fold out (in columns); absolute values count.
    draws, seed : int
        Draws of slides for the intervals. Draws with a single class are left out.
    model : str
        Written into the table.

    Returns
    -------
    DataFrame
        `EVIDENCE`, one row per "family", "cluster" (named after its leader) and "column". ``direction`` is the rank
        correlation between value and contribution. ``first`` and ``last`` are the best and worst rank over folds, of
        ``ranked`` columns. What is not known is missing, and so are intervals if fewer than half of the draws have both
        classes.
    """
    index = {name: position for position, name in enumerate(attribution.features)}
    units = {("family", name): positions for name, positions in family_members(attribution.features).items()}
    units |= {("cluster", members[0]): [index[name] for name in members] for members in clusters}
    units |= {("column", name): [position] for name, position in index.items() if name not in TOGETHER}
    sums = np.column_stack([attribution.shares[:, positions].sum(axis=1) for positions in units.values()])
    value, low, high = _separation(sums, np.asarray(labels), groups, draws, seed)
    rows = pd.DataFrame(list(units), columns=["kind", "unit"])
    rows = rows.assign(model=model, columns=[len(each) for each in units.values()], separation=value)
    rows = rows.assign(low=low, high=high, direction=np.nan, first=np.nan, last=np.nan, ranked=np.nan)
    single = (rows.kind == "column").to_numpy()
    places = [index[name] for name in rows.unit[single]]
    rows.loc[single, "direction"] = _rank_correlations(attribution.values[:, places], attribution.shares[:, places])
    if folds is not None and folds.shape[1] > 1:
        ranks = folds.abs().rank(ascending=False, method="min").reindex(rows.unit[single])
        rows.loc[single, "first"] = ranks.min(axis=1).to_numpy()
        rows.loc[single, "last"] = ranks.max(axis=1).to_numpy()
        rows.loc[single, "ranked"] = float(len(folds))
    return rows[EVIDENCE].sort_values(["kind", "separation"], ascending=False, kind="stable", ignore_index=True)


def _separation(
    values: np.ndarray, labels: np.ndarray, groups: np.ndarray, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over positives minus mean over negatives of each column, and its 95 % interval over slides."""
    empty = np.full(values.shape[1], np.nan)
    if len(np.unique(labels)) < 2:
        return empty, empty, empty
    slides = int(groups.max()) + 1
    sizes, sums = [], []
    for label in (1, 0):
        member = labels == label
        sizes.append(np.bincount(groups[member], minlength=slides))
        total = np.zeros((slides, values.shape[1]))
        np.add.at(total, groups[member], values[member])
        sums.append(total)
    value = sums[0].sum(axis=0) / sizes[0].sum() - sums[1].sum(axis=0) / sizes[1].sum()
    drawn = []
    for counts in draw_slides(slides, draws, seed):
        drawn_sizes = [counts @ size for size in sizes]
        both = (drawn_sizes[0] > 0) & (drawn_sizes[1] > 0)
        means = [counts[both] @ total / size[both, None] for total, size in zip(sums, drawn_sizes, strict=True)]
        drawn.append(means[0] - means[1])
    differences = np.concatenate(drawn)
    if 2 * len(differences) < draws or slides < 2:
        return value, empty, empty
    return value, *percentile_interval(differences)


def _rank_correlations(values: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each column of `values` with that of `shares`; NaN if either is constant."""
    ranks = [pd.DataFrame(table).rank().to_numpy() for table in (values, shares)]
    first, second = (table - table.mean(axis=0) for table in ranks)
    norm = np.sqrt(np.square(first).sum(axis=0) * np.square(second).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(norm > 0, (first * second).sum(axis=0) / norm, np.nan))


def weighted_folds(by_member: Mapping[str, pd.DataFrame], weights: Mapping[str, float]) -> pd.DataFrame | None:
    """Importances over folds of an ensemble's columns: each member's times its weight, added up.

    Parameters
    ----------
    by_member : mapping from member to DataFrame
        Absolute coefficients, columns in rows and folds in columns, of members that have single columns.
    weights : mapping from member to float

    Returns
    -------
    DataFrame or None
        None if no member has single columns.
    """
    tables = [table.abs() * abs(weights[member]) for member, table in by_member.items()]
    if not tables:
        return None
    total = tables[0]
    for table in tables[1:]:
        total = total.add(table, fill_value=0.0)
    return total


def trust_checks(rows: pd.DataFrame, clustered: Mapping[str, int]) -> pd.DataFrame:
    """Three checks of each column, and how far they allow to trust it.

    Parameters
    ----------
    rows : DataFrame
        `EVIDENCE` of columns.
    clustered : mapping from column to int
        Number of columns of the cluster that a column is in; columns outside of clusters are missing.

    Returns
    -------
    DataFrame
        ``separates`` (the interval is above 0, with three digits), ``stable`` (among the leading `LEADING_SHARE` of
        columns in every fold), ``alone`` (in no cluster), and ``trust``: "high" if all three hold, "medium" if the
        first and one other hold, otherwise "low". Rows as in `rows`.
    """
    separates = (rows.low.round(3) > 0).to_numpy()
    stable = (rows["last"] <= np.ceil(LEADING_SHARE * rows.ranked)).to_numpy()
    alone = np.array([name not in clustered for name in rows.unit], dtype=bool)
    trust = np.where(separates & stable & alone, "high", np.where(separates & (stable | alone), "medium", "low"))
    checks = {"separates": separates, "stable": stable, "alone": alone, "trust": trust}
    return pd.DataFrame(checks, index=rows.index)
