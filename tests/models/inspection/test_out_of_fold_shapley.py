"""Contributions rebuilt from stored coefficients are those of the fit of the fold itself."""

import numpy as np
import pandas as pd
import pytest

from histoblend.models.heads.logistic import LogisticHead
from histoblend.models.inspection.out_of_fold_shapley import fold_moments, out_of_fold_shares

NAMES = ["nuclei_area_grey_whole", "colour_mean_red_whole", "embedding_net-0_rgb_whole", "embedding_net-1_rgb_whole"]


@pytest.fixture(scope="module")
def fitted():
    """Two folds and held-out patches; each fold is predicted by the fit without it. One column is constant."""
    rng = np.random.default_rng(0)
    X = rng.normal(3, 2, size=(180, 4)).astype(np.float32)
    X[:, 1] = 5.5
    fold = np.repeat([0, 1, -1], 60)
    labels = (X[:, 0] + X[:, 2] + rng.normal(size=180) > 6).astype(int)
    table = pd.DataFrame({"split": np.where(fold < 0, "test", "train"), "fold": fold, "prob_m": np.nan})
    heads, coefficients = {}, {}
    for number in (0, 1):
        rows = (fold >= 0) & (fold != number)
        heads[number] = LogisticHead(folds=2).fit(X[rows], labels[rows])
        coefficients[number] = heads[number].coef_[0].astype(np.float32)
        inside = fold == number
        table.loc[inside, "prob_m"] = heads[number].predict_proba(X[inside])[:, 1]
    return X, table, pd.DataFrame(coefficients, NAMES), heads


def moments(X, table):
    """Moments from blocks of unequal sizes, in any order."""
    rows = np.random.default_rng(1).permutation(120)
    blocks = ((part, X[part]) for part in np.split(rows, [7, 8, 70]))
    return fold_moments(blocks, table.fold.to_numpy()[:120])


def test_contributions_are_those_of_the_fold_and_add_up(fitted):
    X, table, coefficients, heads = fitted
    rows = {"0": [3, 7, 41], "1": [60, 119]}
    explained = out_of_fold_shares(X, moments(X, table), coefficients, table.prob_m.to_numpy(), rows)
    for fold, chosen in rows.items():
        shares, base = heads[int(fold)].contributions(X[chosen])
        assert explained[fold].features == [*NAMES[:2], "embedding"]
        np.testing.assert_allclose(explained[fold].shares[:, :2], shares[:, :2], atol=1e-5)
        np.testing.assert_allclose(explained[fold].shares[:, 2], shares[:, 2:].sum(axis=1), atol=1e-5)
        assert explained[fold].base == pytest.approx(base, abs=1e-4)
        probability = 1 / (1 + np.exp(-explained[fold].log_odds))
        np.testing.assert_allclose(probability, table.prob_m.to_numpy()[chosen], atol=1e-5)


def test_a_fold_whose_predictions_do_not_match_is_left_out(fitted):
    X, table, coefficients, _ = fitted
    wrong = coefficients.assign(**{"0": coefficients[0]})
    wrong[0] = wrong[0] + 0.1
    rows = {"0": [3, 7, 41], "1": [60, 119]}
    explained = out_of_fold_shares(X, moments(X, table), wrong, table.prob_m.to_numpy(), rows)
    assert list(explained) == ["1"]
