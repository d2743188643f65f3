"""Clusters of columns, compared with SciPy's rank correlation and with planted clusters."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from histoblend.models.inspection.column_clusters import cluster_columns, rank_correlations


@pytest.fixture
def planted():
    """Columns 0, 2 and 5 are one signal (2 negated, 5 non-linear), 1 and 3 another, 4 is noise, 6 is constant."""
    rng = np.random.default_rng(0)
    a, b, noise = rng.normal(size=(3, 500))
    jitter = 0.2 * rng.normal(size=(3, 500))
    columns = [a, b + jitter[0], -a + jitter[1], b + jitter[2], noise, np.exp(3 * a), np.full(500, 4.0)]
    return np.stack(columns, 1).astype(np.float32)


def test_planted_clusters_are_recovered_despite_sign_and_nonlinearity(planted):
    clusters = cluster_columns(planted)
    assert [set(cluster.members) for cluster in clusters] == [{0, 2, 5}, {1, 3}, {4}, {6}]
    first = clusters[0]
    assert first.leader in (0, 5)  # these two have the same ranks; 2 is a noisy copy
    assert first.members[0] == first.leader
    assert first.members[-1] == 2
    assert first.closeness == pytest.approx(abs(spearmanr(planted[:, 0], planted[:, 2]).statistic), abs=1e-6)
    assert clusters[2].closeness == 1


def test_the_cut_is_at_rho():
    """Two columns with a known rank correlation: one cluster if rho is below it, two if rho is above it."""
    values = np.column_stack([np.arange(20.0), np.r_[np.arange(10), np.arange(19, 9, -1)]])
    rho = spearmanr(*values.T).statistic
    assert 0.1 < rho < 0.9
    assert len(cluster_columns(values, rho=rho - 0.01)) == 1
    assert len(cluster_columns(values, rho=rho + 0.01)) == 2


@settings(max_examples=25)
@given(st.integers(3, 30), st.integers(3, 8), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_rank_correlations_equal_spearmans(rows, columns, levels, seed):
    values = np.random.default_rng(seed).integers(0, levels + 1, (rows, columns)).astype(np.float32)
    varied = np.flatnonzero(values.std(axis=0) > 0)
    correlations = rank_correlations(values)
    assert (np.diag(correlations) == 1).all()
    for first in range(columns):
        for second in range(first):
            pair = values[:, first], values[:, second]
            expected = spearmanr(*pair).statistic if {first, second} <= set(varied.tolist()) else 0
            assert correlations[first, second] == pytest.approx(expected, abs=1e-9)


def test_every_column_is_in_one_cluster_and_the_order_of_rows_does_not_matter(planted):
    clusters = cluster_columns(planted)
    assert sorted(column for cluster in clusters for column in cluster.members) == list(range(7))
    assert [cluster.members for cluster in cluster_columns(planted[::-1])] == [cluster.members for cluster in clusters]
    assert cluster_columns(planted[:, :1])[0].members == (0,)


def test_invalid_input_is_refused(planted):
    with pytest.raises(ValueError, match=r"got \(2, 7\)"):
        cluster_columns(planted[:2])
    with pytest.raises(ValueError, match=r"rho must be between 0 and 1, both excluded; got 1"):
        cluster_columns(planted, rho=1)
