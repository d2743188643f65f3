"""Columns that say nearly the same, found by rank correlation, so that they can be shuffled together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Columns join a cluster while the mean of |Spearman's rank correlation| between its parts is at least this.
RHO = 0.8

#: Training patches that correlations are taken over, at most: their error is then 0.02.
CLUSTER_ON = 3000


@dataclass(frozen=True)
class Cluster:
    """Columns that go up and down together.

    Attributes
    ----------
    leader : int
        Place of the medoid: the member whose |rank correlation| with the others is largest on average.
    members : tuple of int
        Places of all columns, the leader first, then by falling |rank correlation| with it.
    closeness : float
        Smallest |rank correlation| between the leader and a member; 1 where there is no other.
    """

    leader: int
    members: tuple[int, ...]
    closeness: float


def cluster_columns(values: np.ndarray, *, rho: float = RHO) -> list[Cluster]:
    """Cluster columns hierarchically: average linkage on 1 − |Spearman's rank correlation|, cut at 1 − `rho`.

    A constant column correlates with none and stays alone.

    Parameters
    ----------
    values : ndarray of shape (n, k), float
        Patches that the model has learned from: whoever looks at held-out slides here lets them choose the groups.
    rho : float
        0 to 1, ends excluded.

    Returns
    -------
    list of Cluster
        Every column is in one; the largest first, then by the leader's place.

    Raises
    ------
    ValueError
        Fewer than 3 patches, no column, or `rho` out of range.

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
        raise ValueError(f"rho must lie between 0 and 1; got {rho}.")
    alike = np.abs(rank_correlations(values))
    if len(alike) == 1:
        return [Cluster(0, (0,), 1.0)]
    tree = linkage(squareform(1 - alike, checks=False), method="average")
    labels = fcluster(tree, 1 - rho, criterion="distance")
    clusters = [_describe(np.flatnonzero(labels == label), alike) for label in np.unique(labels)]
    return sorted(clusters, key=lambda cluster: (-len(cluster.members), cluster.leader))


def rank_correlations(values: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each two columns.

    Parameters
    ----------
    values : ndarray of shape (n, k), float

    Returns
    -------
    ndarray of shape (k, k), dtype float64
        1 on the diagonal; 0 between a constant column and any other.
    """
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=0)
    ranks -= ranks.mean(axis=0)
    norm = np.sqrt(np.square(ranks).sum(axis=0))
    ranks /= np.where(norm > 0, norm, 1)
    correlation = np.clip(ranks.T @ ranks, -1, 1)
    np.fill_diagonal(correlation, 1)
    return correlation


def _describe(members: np.ndarray, alike: np.ndarray) -> Cluster:
    inside = alike[np.ix_(members, members)]
    leader = int(inside.sum(axis=1).argmax())
    order = np.argsort(-inside[leader], kind="stable")
    order = np.r_[leader, order[order != leader]]
    return Cluster(int(members[leader]), tuple(members[order].tolist()), float(inside[leader].min()))
