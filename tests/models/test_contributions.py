"""Contributions: with the base they add up to the head's own log odds, and idle columns have none."""

import numpy as np
import pytest
from scipy.special import logit

from histoblend.models.contributions import contributions
from histoblend.models.heads import HEADS, XGBoostHead


@pytest.fixture(scope="module")
def cohort():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 6)).astype(np.float32)
    X[:, 4] = 3
    return X, (X[:, 1] + 0.5 * rng.normal(size=300) > 0).astype(int), np.arange(300) // 10


@pytest.mark.parametrize("make", [*HEADS.values(), lambda seed: XGBoostHead(subspace=5, seed=seed)])
def test_shares_and_base_add_up_to_the_log_odds(cohort, make):
    X, y, groups = cohort
    head = make(0).fit(X, y, groups)
    shares, base = contributions(head, X[:50])
    np.testing.assert_allclose(shares.sum(axis=1) + base, logit(head.predict_proba(X[:50])[:, 1]), atol=1e-4)
    assert not shares[:, 4].any()
    assert np.abs(shares).mean(axis=0).argmax() == 1
    one, same = contributions(head, X[7:8])
    np.testing.assert_allclose(one[0], shares[7], atol=1e-6)
    assert same == pytest.approx(base, abs=1e-6)


def test_a_row_has_the_same_bits_in_any_batch(cohort):
    X, y, groups = cohort
    wide = np.tile(X, (1, 40))
    head = HEADS["logistic"](0).fit(wide, y, groups)
    together = head.predict_proba(wide)[:, 1]
    for step in (1, 7, 64):
        parts = [head.predict_proba(wide[start : start + step])[:, 1] for start in range(0, len(wide), step)]
        np.testing.assert_array_equal(np.concatenate(parts), together)
