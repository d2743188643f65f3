"""Explanations of single embedding columns by the handcrafted features that correlate most with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

#: Number of embedding columns that are explained.
EXPLAINED = 10
#: Number of handcrafted features listed for each of them.
NEAREST = 3

#: Most patches that the regression is fitted on.
MAX_PATCHES = 5000

#: Ridge penalty per training patch, on standardised columns.
PENALTY = 0.2


def leading_columns(weights: Mapping[str, np.ndarray], most: int = EXPLAINED) -> np.ndarray:
    """Indices of the columns with the largest weights, taken from the heads in turn.

    Parameters
    ----------
    weights : mapping from head to ndarray of shape (columns,)
        Gain or coefficients; only their absolute value counts.
    most : int
        Largest number of columns to return.

    Returns
    -------
    ndarray of int
    """
    orders = [np.argsort(-np.abs(values), kind="stable") for values in weights.values()]
    turns = np.stack(orders, axis=1).ravel()[: most * len(orders)]
    return np.array(list(dict.fromkeys(turns.tolist()))[:most])


def explain_columns(
    embeddings: np.ndarray, names: Sequence[str], values: np.ndarray, features: Sequence[str], groups: np.ndarray
) -> pd.DataFrame:
    """For each embedding column, find the handcrafted features that correlate most, and the variance explained by all.

    Parameters
    ----------
    embeddings : ndarray of shape (n, k), float
        Columns to explain.
    names : sequence of str
        Names of the k columns.
    values : ndarray of shape (n, m), float
        Handcrafted features of the same patches.
    features : sequence of str
        Names of the m features.
    groups : ndarray of shape (n,)
        Groups that must not be divided between folds, from :func:`data.splits.patch_groups`.

    Returns
    -------
    DataFrame
        One row per column: ``column``, ``r2``, and for i from 1 to 3 ``feature_i, correlation_i``. ``r2`` is the
        cross-validated share of the column's variance that a ridge regression on all features explains. It is missing
        with fewer than two groups. ``feature_i`` are the features with the largest absolute rank correlation
        (Spearman).

    Notes
    -----
    The penalty is fixed at 0.2 per patch on standardised columns. Around this value R² hardly changes on real patches.
    """
    from scipy.stats import rankdata

    ranks = _standardise(rankdata(np.asarray(values, np.float64), axis=0))
    correlations = _standardise(rankdata(np.asarray(embeddings, np.float64), axis=0)).T @ ranks / len(values)
    scores = _cross_validated_r2(embeddings, values, groups)
    rows = []
    for name, r2, correlation in zip(names, scores, correlations, strict=True):
        row: dict[str, object] = {"column": name, "r2": r2}
        for i, index in enumerate(np.argsort(-np.abs(correlation), kind="stable")[:NEAREST], 1):
            row |= {f"feature_{i}": features[index], f"correlation_{i}": float(correlation[index])}
        rows.append(row)
    return pd.DataFrame(rows)


def _cross_validated_r2(targets: np.ndarray, values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """R² of each target under cross-validated ridge regression, with folds that keep groups together."""
    from sklearn.linear_model import Ridge
    from sklearn.metrics import r2_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = min(5, len(np.unique(groups)))
    if folds < 2:
        return np.full(targets.shape[1], np.nan)
    model = make_pipeline(StandardScaler(), Ridge(PENALTY * len(values) * (folds - 1) / folds))
    inputs, outputs = values.astype(np.float64), targets.astype(np.float64)
    predicted = cross_val_predict(model, inputs, outputs, groups=groups, cv=GroupKFold(folds))
    return np.asarray(r2_score(outputs, predicted, multioutput="raw_values"))


def _standardise(values: np.ndarray) -> np.ndarray:
    """Scale columns to mean 0 and standard deviation 1; constant columns become 0."""
    centred = values - values.mean(axis=0)
    spread = centred.std(axis=0)
    return np.asarray(centred / np.where(spread > 0, spread, 1.0))
