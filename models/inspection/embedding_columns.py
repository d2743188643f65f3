"""What single embedding columns see, told by the handcrafted features that come closest to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

#: Embedding columns that are explained, and handcrafted features that are named for each.
EXPLAINED = 10
NEAREST = 3

#: Patches that the explanation is learned from, at most.
MOST_PATCHES = 5000

#: Penalty of the regression for each patch it learns from, on standardised columns.
PENALTY = 0.2


def leading_columns(weights: Mapping[str, np.ndarray], most: int = EXPLAINED) -> np.ndarray:
    """Columns that any of several heads leans on most, taken from the heads in turn, ndarray of at most `most` places.

    Parameters
    ----------
    weights : mapping from head to ndarray of shape (columns,)
        Gain or coefficients; their size counts.
    most : int
    """
    orders = [np.argsort(-np.abs(values), kind="stable") for values in weights.values()]
    turns = np.stack(orders, axis=1).ravel()[: most * len(orders)]
    return np.array(list(dict.fromkeys(turns.tolist()))[:most])


def explain_columns(
    embeddings: np.ndarray, names: Sequence[str], values: np.ndarray, features: Sequence[str], groups: np.ndarray
) -> pd.DataFrame:
    """Find the handcrafted features that go with each embedding column, and how much of it all of them explain.

    Parameters
    ----------
    embeddings : ndarray of shape (n, k), float
        Columns to explain.
    names : sequence of str
        Of the k columns.
    values : ndarray of shape (n, m), float
        Handcrafted features of the same patches.
    features : sequence of str
        Of the m features.
    groups : ndarray of shape (n,)
        What a fold must not part, from :func:`data.splits.patch_groups`.

    Returns
    -------
    DataFrame
        A row a column: ``column``; ``r2``, the share of its variance that a ridge regression on all features explains
        on groups that it was not fitted on (missing with fewer than two groups); and for i from 1 to 3
        ``feature_i, correlation_i``, the features with the largest rank correlation (Spearman) by size.

    Notes
    -----
    The penalty is fixed, 0.2 for each patch on standardised columns: at this strength R² is flat on real patches.
    """
    from scipy.stats import rankdata

    ranks = _standard(rankdata(values, axis=0))
    correlations = _standard(rankdata(embeddings, axis=0)).T @ ranks / len(values)
    rows = []
    for name, explained, row in zip(names, _explained(embeddings, values, groups), correlations, strict=True):
        found: dict[str, object] = {"column": name, "r2": explained}
        for i, place in enumerate(np.argsort(-np.abs(row), kind="stable")[:NEAREST], 1):
            found |= {f"feature_{i}": features[place], f"correlation_{i}": float(row[place])}
        rows.append(found)
    return pd.DataFrame(rows)


def _explained(targets: np.ndarray, values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """R² of each target, predicted by a ridge regression that has not seen the patch's group."""
    from sklearn.linear_model import Ridge
    from sklearn.metrics import r2_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = min(5, len(np.unique(groups)))
    if folds < 2:
        return np.full(targets.shape[1], np.nan)
    model = make_pipeline(StandardScaler(), Ridge(PENALTY * len(values) * (folds - 1) / folds))
    inputs, wanted = values.astype(np.float64), targets.astype(np.float64)
    predicted = cross_val_predict(model, inputs, wanted, groups=groups, cv=GroupKFold(folds))
    return np.asarray(r2_score(wanted, predicted, multioutput="raw_values"))


def _standard(table: np.ndarray) -> np.ndarray:
    """Columns with mean 0 and standard deviation 1; constant ones become 0."""
    centred = table - table.mean(axis=0)
    spread = centred.std(axis=0)
    return np.asarray(centred / np.where(spread > 0, spread, 1.0))
