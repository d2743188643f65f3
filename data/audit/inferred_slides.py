"""Stand-ins for slides where none is known: clusters of patches that are stained alike.

Slides differ in stain first of all, so patches of one slide tend to fall into one cluster, though a cluster holds
patches of several slides. Fewer clusters hold slides together better; so there are as few as a split can do with. What
this recovers of real slides, and what it does not, stands in docs/decisions.md.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from histoblend.data.splits import INFERRED

#: What patches are clustered by: the tints of nuclei and of fibres; see :data:`data.audit.measures.MEASURES`.
TINTS = ("nuclei_red", "nuclei_blue", "fibres_red", "fibres_blue")

#: Patches that the clusters are learned from at most; the others are put into the nearest.
LEARNED_FROM = 20_000


def clusters_for(test_share: float, folds: int) -> int:
    """Fewest clusters that leave a test set of four with the wanted share, and one for each fold beside it."""
    return max(math.ceil(4 / test_share), folds + 4)


def infer_slides(measures: pd.DataFrame, together: np.ndarray, *, clusters: int, seed: int) -> pd.Series:
    """Name a cluster for each patch in place of a slide.

    The four tints are centred on their median, divided by their interquartile range, cut off at four of it, and
    clustered by k-means.

    Parameters
    ----------
    measures : DataFrame
        From :meth:`data.audit.measures.Measures.table`.
    together : ndarray of shape (n,), int
        Row whose cluster a patch shares: its own, or that of a patch that it is a duplicate of.
    clusters : int
        At most as many are made as there are patches.
    seed : int

    Returns
    -------
    Series of shape (n,), string
        ``(inferred 00)``, ``(inferred 01)`` and so on.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    tints = measures[list(TINTS)].to_numpy(np.float64)
    low, middle, high = np.quantile(tints, [0.25, 0.5, 0.75], axis=0)
    tints = np.clip((tints - middle) / np.maximum(high - low, 1e-6), -4, 4)
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(tints), min(len(tints), LEARNED_FROM), replace=False))
    # One thread: sums then have one order, and clusters do not depend on the number of cores.
    with threadpool_limits(1):
        model = KMeans(min(clusters, len(rows)), n_init=4, random_state=seed).fit(tints[rows])
        numbers = model.predict(tints)
    names = np.array([f"{INFERRED} {number:02d})" for number in range(clusters)], dtype=object)
    return pd.Series(names[numbers[together]], dtype="string")
