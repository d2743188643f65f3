"""Tables of importance of single columns and of groups of them, and what fitted heads say themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoblend.features.handcrafted.families import parse_column

#: Measures that are taken of a whole family at once: those of its columns do not add up to it.
JOINT = ("permutation", "shap")

PARTS = ("family", "statistic", "channel", "region")
COLUMNS = ["model", "measure", "feature", *PARTS, "value", "spread", "low", "high"]
GROUPS = ["model", "measure", "kind", "group", "columns", "value", "spread", "low", "high"]
STABILITY = ["model", "measure", "level", "over", "raters", "items", "w"]
AGREEMENT = ["model", "level", "first", "second", "items", "correlation"]

#: Kinds of groups, from coarse to fine. Halves are what two sets of columns were put together from.
KINDS = ("half", "theme", "region", "family", "cluster")

Units = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class GroupView:
    """Importance of groups of columns, and how far it can be believed.

    Attributes
    ----------
    groups : DataFrame
        `GROUPS`, a row a model, measure and group. ``permutation`` and ``dropped`` (left out and refitted) are drops in
        AUC on held-out slides; ``gain``, ``cover`` and ``coefficient`` are shares of the model's whole.
    clusters : DataFrame
        ``group`` (the leading member), ``columns`` (how many), ``members`` (joined by spaces), ``closeness`` (smallest
        rank correlation of a member with the leader), a row a cluster of two columns or more.
    stability : DataFrame
        `STABILITY`: Kendall's W over folds or over draws of slides.
    rho : float
        Mean |rank correlation| at which clusters were cut.
    clustered_on : int
        Training patches that correlations were taken over.
    """

    groups: pd.DataFrame
    clusters: pd.DataFrame
    stability: pd.DataFrame
    rho: float
    clustered_on: int


def fitted_importance(
    values: np.ndarray, columns: Sequence[str], *, measure: str, model: str = "", folds: np.ndarray | None = None
) -> pd.DataFrame:
    """Put what a fitted model says of its own columns into the tidy form.

    Parameters
    ----------
    values : ndarray of shape (features,)
        Of the model that is used: shares of gain or cover, or coefficients in units of one standard deviation.
    columns : sequence of str
        Names, ``family_statistic_channel_region``.
    measure : {"gain", "cover", "coefficient"}
    model : str
    folds : ndarray of shape (folds, features), optional
        The same of fits that each left a fold out; their standard deviation is the spread.

    Returns
    -------
    DataFrame
        `COLUMNS`, a row a feature, in the order of `columns`; ``low`` and ``high`` are missing.

    Raises
    ------
    ValueError
        As many values as columns are expected.
    """
    value = np.asarray(values, dtype=np.float64)
    several = value[None] if folds is None else np.asarray(folds, dtype=np.float64)
    if value.shape != (len(columns),) or several.ndim != 2 or several.shape[1] != len(columns):
        shapes = f"{np.shape(values)}" + ("" if folds is None else f" and {np.shape(folds)}")
        raise ValueError(f"values must hold {len(columns)} columns; got shape {shapes}.")
    rows = pd.DataFrame([parse_column(name) for name in columns], columns=list(PARTS))
    rows = rows.assign(model=model, measure=measure, feature=list(columns), value=value, low=np.nan, high=np.nan)
    rows["spread"] = several.std(axis=0, ddof=1) if len(several) > 1 else np.nan
    return rows[COLUMNS]


def fitted_groups(
    values: np.ndarray, folds: np.ndarray, units: Units, *, kind: str, measure: str, model: str = ""
) -> pd.DataFrame:
    """Share of each group in what a fitted model says of its columns.

    Parameters
    ----------
    values : ndarray of shape (features,)
        Of the model that is used; coefficients count by size.
    folds : ndarray of shape (folds, features)
        The same of fits that each left a fold out.
    units : mapping from str to sequence of int
        Group to places of its columns.
    kind, measure, model : str
        Go into the table.

    Returns
    -------
    DataFrame
        `GROUPS`; ``value`` is the group's share of the sum over all columns, ``spread`` the standard deviation of that
        share over the folds.
    """
    shares = unit_shares(np.vstack([values, folds]), units)
    spread = shares[1:].std(axis=0, ddof=1) if len(shares) > 2 else np.nan
    rows = pd.DataFrame({"value": shares[0], "spread": spread, "low": np.nan, "high": np.nan})
    return group_rows(units, rows, kind=kind, measure=measure, model=model)


def sum_by_family(importances: pd.DataFrame) -> pd.DataFrame:
    """Collect the importances of whole families.

    Parameters
    ----------
    importances : DataFrame
        Tidy, any models and measures.

    Returns
    -------
    DataFrame
        ``model, measure, family, value, spread, low, high, features``: gain summed; coefficients summed by size; for
        `JOINT` the families that were shuffled, or whose shares were added up, together (single columns' values do not
        add up to that, and are left out).
    """
    single = importances.feature.notna()
    fitted = importances[single & ~importances.measure.isin(JOINT)]
    sums = fitted.assign(value=fitted.value.abs()).groupby(["model", "measure", "family"], sort=False, as_index=False)
    summed = sums.agg(value=("value", "sum"), features=("feature", "size"))
    joint = importances[~single & importances.family.notna() & importances.region.isna()]
    joint = joint.drop_duplicates(["model", "measure", "family"])
    sizes = importances[single].drop_duplicates(["model", "feature"]).groupby(["model", "family"]).size()
    joint = joint.assign(features=[sizes.get(key, np.nan) for key in zip(joint.model, joint.family, strict=True)])
    names = ["model", "measure", "family", "value", "spread", "low", "high", "features"]
    return pd.concat([summed.reindex(columns=names), joint[names]], ignore_index=True)


def unit_shares(values: np.ndarray, units: Units) -> np.ndarray:
    """Share of each unit in the sizes of a row, (rows, features) to (rows, units); 0 where a row is 0 throughout."""
    sizes = np.abs(values)
    sums = np.column_stack([sizes[:, list(places)].sum(axis=1) for places in units.values()])
    total = sizes.sum(axis=1, keepdims=True)
    return sums / np.where(total > 0, total, 1)


def group_rows(units: Units, rows: pd.DataFrame, *, kind: str, measure: str, model: str) -> pd.DataFrame:
    """`GROUPS` of the units, from their ``value, spread, low, high``."""
    sizes = [len(places) for places in units.values()]
    return rows.assign(model=model, measure=measure, kind=kind, group=list(units), columns=sizes)[GROUPS]
