"""Importance tables for single columns and groups of columns, and the built-in importances of fitted heads.

Built-in importances are gain, cover and coefficients: the fitted model provides them without further computation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoblend.features.handcrafted.families import parse_column

#: Measures that are computed for a whole family together. The values of its single columns do not add up to them.
JOINT = ("permutation", "shap")

PARTS = ("family", "statistic", "channel", "region")
COLUMNS = ["model", "measure", "feature", *PARTS, "value", "spread", "low", "high"]
GROUPS = ["model", "measure", "kind", "group", "columns", "value", "spread", "low", "high"]
STABILITY = ["model", "measure", "level", "over", "raters", "items", "w"]
AGREEMENT = ["model", "level", "first", "second", "items", "correlation"]

#: Kinds of groups, from coarse to fine. Halves are the parts of a set that combines two sets of columns.
KINDS = ("half", "theme", "region", "family", "cluster")

Units = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class GroupView:
    """Importance of groups of columns, and how stable it is.

    Attributes
    ----------
    groups : DataFrame
        `GROUPS`, one row per model, measure and group. ``permutation`` and ``dropped`` (left out and refitted) are
        drops in AUC on held-out slides. ``gain``, ``cover`` and ``coefficient`` are shares of the model's total.
    clusters : DataFrame
        One row per cluster of two or more columns: ``group`` (its leader), ``columns`` (their number), ``members``
        (joined by spaces), ``closeness`` (smallest rank correlation of a member with the leader).
    stability : DataFrame
        `STABILITY`: Kendall's W over folds or over draws of slides.
    rho : float
        Mean |rank correlation| at which clusters were cut.
    clustered_on : int
        Number of training patches that the correlations were computed from.
    """

    groups: pd.DataFrame
    clusters: pd.DataFrame
    stability: pd.DataFrame
    rho: float
    clustered_on: int


def fitted_importance(
    values: np.ndarray, columns: Sequence[str], *, measure: str, model: str = "", folds: np.ndarray | None = None
) -> pd.DataFrame:
    """Convert a model's built-in importances to a tidy table.

    Parameters
    ----------
    values : ndarray of shape (features,)
        Importances of the final fit: shares of gain or cover, or coefficients per standard deviation of the column.
    columns : sequence of str
        Names, ``family_statistic_channel_region``.
    measure : {"gain", "cover", "coefficient"}
    model : str
    folds : ndarray of shape (folds, features), optional
        Importances of the fits that each left one fold out. Their standard deviation is the spread.

    Returns
    -------
    DataFrame
        `COLUMNS`, one row per feature, in the order of `columns`; ``low`` and ``high`` are missing.

    Raises
    ------
    ValueError
        The number of values is not the number of columns.
    """
    value = np.asarray(values, dtype=np.float64)
    fits = value[None] if folds is None else np.asarray(folds, dtype=np.float64)
    if value.shape != (len(columns),) or fits.ndim != 2 or fits.shape[1] != len(columns):
        shapes = f"{np.shape(values)}" + ("" if folds is None else f" and {np.shape(folds)}")
        raise ValueError(f"values must have {len(columns)} columns; got shape {shapes}.")
    rows = pd.DataFrame([parse_column(name) for name in columns], columns=list(PARTS))
    rows = rows.assign(model=model, measure=measure, feature=list(columns), value=value, low=np.nan, high=np.nan)
    rows["spread"] = fits.std(axis=0, ddof=1) if len(fits) > 1 else np.nan
    return rows[COLUMNS]


def fitted_groups(
    values: np.ndarray, folds: np.ndarray, units: Units, *, kind: str, measure: str, model: str = ""
) -> pd.DataFrame:
    """Share of each group in a model's built-in importances.

    Parameters
    ----------
    values : ndarray of shape (features,)
        Importances of the final fit. Coefficients count by absolute value.
    folds : ndarray of shape (folds, features)
        Importances of the fits that each left one fold out.
    units : mapping from str to sequence of int
        Group to the indices of its columns.
    kind, measure, model : str
        Written into the table.

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
        Tidy table of any models and measures.

    Returns
    -------
    DataFrame
        ``model, measure, family, value, spread, low, high, features``. Gain and absolute coefficients are summed over
        the family's columns. `JOINT` measures are taken from the rows of whole families, because single columns do not
        add up to them.
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
    """Share of each unit in a row's sum of absolute values, (rows, features) to (rows, units); 0 for an all-0 row."""
    sizes = np.abs(values)
    sums = np.column_stack([sizes[:, list(columns)].sum(axis=1) for columns in units.values()])
    total = sizes.sum(axis=1, keepdims=True)
    return sums / np.where(total > 0, total, 1)


def group_rows(units: Units, rows: pd.DataFrame, *, kind: str, measure: str, model: str) -> pd.DataFrame:
    """Table `GROUPS` of the units, from their ``value, spread, low, high``."""
    sizes = [len(columns) for columns in units.values()]
    return rows.assign(model=model, measure=measure, kind=kind, group=list(units), columns=sizes)[GROUPS]
