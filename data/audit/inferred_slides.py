"""Infer slides by clustering patches with similar stain, for data sets without slide names.

Slides differ most in stain, so the patches of one slide tend to fall into one cluster. A cluster may contain several
slides. Fewer clusters split fewer slides, so the number of clusters is the smallest that a train-test split allows.
docs/decisions.md says how well the clusters match real slides.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from histoblend.data.splits import INFERRED

#: Measures that patches are clustered by: tints of nuclei and of fibres, see :data:`data.audit.measures.MEASURES`.
TINTS = ("nuclei_red", "nuclei_blue", "fibres_red", "fibres_blue")

#: Maximum number of patches that k-means is fitted on. The others are assigned to the nearest cluster.
MAX_FITTED = 20_000


def clusters_for(test_share: float, folds: int) -> int:
    """Return the smallest number of clusters that gives the test set four clusters and each fold at least one."""
    return max(math.ceil(4 / test_share), folds + 4)


def infer_slides(measures: pd.DataFrame, together: np.ndarray, *, clusters: int, seed: int) -> pd.Series:
    """Assign each patch to a cluster that replaces its slide.

    The four tints are centred on their median, divided by their interquartile range, clipped to ±4 and clustered by
    k-means.

    Parameters
    ----------
    measures : DataFrame
        From :meth:`data.audit.measures.Measures.table`.
    together : ndarray of shape (n,), int
        Row whose cluster each patch takes: its own row, or the row of the patch that it duplicates.
    clusters : int
        Number of clusters, limited to the number of patches.
    seed : int

    Returns
    -------
    Series of shape (n,), string
        Cluster names: ``(inferred 00)``, ``(inferred 01)`` and so on.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    tints = measures[list(TINTS)].to_numpy(np.float64)
    low, middle, high = np.quantile(tints, [0.25, 0.5, 0.75], axis=0)
    tints = np.clip((tints - middle) / np.maximum(high - low, 1e-6), -4, 4)
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(tints), min(len(tints), MAX_FITTED), replace=False))
    # One thread sums in a fixed order, so the clusters do not depend on the number of cores.
    with threadpool_limits(1):
        model = KMeans(min(clusters, len(rows)), n_init=4, random_state=seed).fit(tints[rows])
        numbers = model.predict(tints)
    names = np.array([f"{INFERRED} {number:02d})" for number in range(clusters)], dtype=object)
    return pd.Series(names[numbers[together]], dtype="string")
