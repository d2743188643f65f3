"""Clusters of nearly redundant columns, found by rank correlation. A cluster can be shuffled as one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Clusters are merged while the mean of |Spearman's rank correlation| between their columns is at least this.
RHO = 0.8

#: Most training patches that correlations are computed from. Their standard error is then 0.02.
CLUSTER_ON = 3000


@dataclass(frozen=True)
class Cluster:
    """Strongly correlated columns.

    Attributes
    ----------
    leader : int
        Index of the medoid: the member with the largest mean |rank correlation| with the others.
    members : tuple of int
        Indices of all columns: the leader first, then by decreasing |rank correlation| with the leader.
    closeness : float
        Smallest |rank correlation| between the leader and another member; 1 for a single column.
    """

    leader: int
    members: tuple[int, ...]
    closeness: float


def cluster_columns(values: np.ndarray, *, rho: float = RHO) -> list[Cluster]:
    """Cluster columns hierarchically, with average linkage on 1 − |Spearman's rank correlation|, cut at 1 − `rho`.

    A constant column has correlation 0 with every other column and forms its own cluster.

    Parameters
    ----------
    values : ndarray of shape (n, k), float
        Training patches only. With held-out patches, the groups would depend on the slides they are evaluated on.
    rho : float
        0 to 1, ends excluded.

    Returns
    -------
    list of Cluster
        Every column is in exactly one cluster. The largest cluster comes first, ties by the leader's index.

    Raises
    ------
    ValueError
        There are fewer than 3 patches or no columns, or `rho` is out of range.

    References
    ----------
    Sokal & Michener (1958), Univ Kansas Sci Bull 38:1409-1438 (average linkage). Harrell (2015), Regression Modeling
    Strategies, section 4.7 (clustering variables by rank correlation).
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if values.ndim != 2 or len(values) < 3 or not values.shape[1]:
        raise ValueError(f"values must have shape (3 or more patches, 1 or more columns); got {values.shape}.")
    if not 0 < rho < 1:
        raise ValueError(f"rho must be between 0 and 1, both excluded; got {rho}.")
    similarity = np.abs(rank_correlations(values))
    if len(similarity) == 1:
        return [Cluster(0, (0,), 1.0)]
    tree = linkage(squareform(1 - similarity, checks=False), method="average")
    labels = fcluster(tree, 1 - rho, criterion="distance")
    clusters = [_make_cluster(np.flatnonzero(labels == label), similarity) for label in np.unique(labels)]
    return sorted(clusters, key=lambda cluster: (-len(cluster.members), cluster.leader))


def rank_correlations(values: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation between every pair of columns.

    Parameters
    ----------
    values : ndarray of shape (n, k), float

    Returns
    -------
    ndarray of shape (k, k), dtype float64
        1 on the diagonal; 0 between a constant column and any other column.
    """
    from scipy.stats import rankdata

    ranks = rankdata(np.asarray(values, np.float64), axis=0)  # newer versions of SciPy keep float32
    ranks -= ranks.mean(axis=0)
    norm = np.sqrt(np.square(ranks).sum(axis=0))
    ranks /= np.where(norm > 0, norm, 1)
    correlation = np.clip(ranks.T @ ranks, -1, 1)
    np.fill_diagonal(correlation, 1)
    return correlation


def _make_cluster(members: np.ndarray, similarity: np.ndarray) -> Cluster:
    within = similarity[np.ix_(members, members)]
    leader = int(within.sum(axis=1).argmax())
    order = np.argsort(-within[leader], kind="stable")
    order = np.r_[leader, order[order != leader]]
    return Cluster(int(members[leader]), tuple(members[order].tolist()), float(within[leader].min()))
