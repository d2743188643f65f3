"""Separation, direction, ranks over folds and trust, by hand on a few patches."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from histoblend.models.inspection.importance_evidence import EVIDENCE, evidence, trust_checks, weighted_folds
from histoblend.models.inspection.shapley import ShapleyValues

A, B, C = "nuclei_area_grey_whole", "nuclei_count_grey_whole", "colour_mean_red_whole"


def made(seed=0, slides=8, each=10):
    """Contributions of three columns and a network; the first two rise with the label, the third is noise."""
    rng = np.random.default_rng(seed)
    labels = np.tile([0, 1], slides * each // 2)
    groups = np.repeat(np.arange(slides), each)
    shares = rng.normal(size=(len(labels), 4)) + labels[:, None] * [2.0, 1.0, 0.0, 3.0]
    values = np.column_stack([shares[:, 0], -shares[:, 1], rng.normal(size=len(labels)), np.full(len(labels), np.nan)])
    return ShapleyValues([A, B, C, "network"], shares, values.astype(np.float32), 0.1), labels, groups


@pytest.fixture(scope="module")
def table():
    attribution, labels, groups = made()
    folds = pd.DataFrame({0: [3.0, -2.0, 1.0], 1: [0.5, 2.0, 1.0]}, [A, B, C])
    return evidence(attribution, labels, groups, [[B, A]], folds, draws=200, model="m").set_index(["kind", "unit"])


def test_separations_add_up_to_the_difference_in_mean_log_odds(table):
    attribution, labels, _ = made()
    odds = attribution.log_odds
    expected = odds[labels == 1].mean() - odds[labels == 0].mean()
    assert table.separation["family"].sum() == pytest.approx(expected)
    assert table.separation["column"].sum() + table.separation["family", "network"] == pytest.approx(expected)
    assert table.separation["cluster", B] == pytest.approx(table.separation["column"][[A, B]].sum())
    assert table["columns"]["cluster", B] == table["columns"]["family", "nuclei"] == 2
    assert list(table.reset_index()[EVIDENCE]) == EVIDENCE
    assert ("column", "network") not in table.index


def test_intervals_are_those_of_resampled_slides(table):
    attribution, labels, groups = made()
    rng = np.random.default_rng(7)
    drawn = []
    for _ in range(2000):
        rows = np.concatenate([np.flatnonzero(groups == slide) for slide in rng.integers(8, size=8)])
        share, label = attribution.shares[rows, 0], labels[rows]
        drawn.append(share[label == 1].mean() - share[label == 0].mean())
    expected = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose(table.loc[("column", A), ["low", "high"]].astype(float), expected, atol=0.06)
    assert table.low["column", C] < 0 < table.high["column", C]


def test_direction_and_ranks_by_hand(table):
    attribution = made()[0]
    assert table.direction["column", A] == pytest.approx(1)
    assert table.direction["column", B] == pytest.approx(-1)
    expected = spearmanr(attribution.values[:, 2], attribution.shares[:, 2]).statistic
    assert table.direction["column", C] == pytest.approx(expected)
    # Absolute values: A is first, then last; B is second, then first.
    ranks = table.loc["column"].loc[[A, B, C], ["first", "last", "ranked"]].to_numpy()
    np.testing.assert_array_equal(ranks, [[1, 3, 3], [1, 2, 3], [2, 3, 3]])


def test_one_class_or_one_slide_has_no_interval():
    attribution, labels, groups = made()
    assert evidence(attribution, np.ones_like(labels), groups, [], draws=20).separation.isna().all()
    single = evidence(attribution, labels, np.zeros_like(groups), [], draws=20)
    assert single.separation.notna().all()
    assert single.low.isna().all()
    assert single["last"].isna().all()


@pytest.mark.parametrize(
    ("low", "last", "clustered", "trust"),
    [
        (0.01, 100, {}, "high"),
        (0.01, 100, {A: 3}, "medium"),
        (0.01, 101, {}, "medium"),
        (0.01, 101, {A: 3}, "low"),
        # Printed as 0.000, so the interval includes 0.
        (0.0004, 1, {}, "low"),
        (np.nan, np.nan, {}, "low"),
    ],
)
def test_trust_follows_the_rules(low, last, clustered, trust):
    rows = pd.DataFrame({"unit": [A], "low": [low], "last": [last], "ranked": [1000.0]})
    assert trust_checks(rows, clustered).trust.tolist() == [trust]


def test_folds_of_members_are_weighted_and_added():
    first, second = pd.DataFrame({0: [1.0, -2.0]}, [A, B]), pd.DataFrame({0: [3.0]}, [B])
    total = weighted_folds({"x": first, "y": second}, {"x": 0.5, "y": -1.0, "cnn": 2.0})
    assert total[0].to_dict() == {A: 0.5, B: 4.0}
    assert weighted_folds({}, {"cnn": 1.0}) is None
