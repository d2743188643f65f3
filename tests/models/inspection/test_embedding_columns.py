"""A planted embedding column is explained by the handcrafted feature that it was made from."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from histoblend.models.inspection.embedding_columns import explain_columns, leading_columns

FEATURES = [f"colour_mean_c{i}_whole" for i in range(8)]


@pytest.fixture(scope="module")
def planted():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 8)).astype(np.float32)
    values[:, 7] = 1.0
    embeddings = np.column_stack([-np.exp(values[:, 3]), rng.normal(size=400)]).astype(np.float32)
    return embeddings, values, np.repeat(np.arange(20), 20)


def test_the_source_feature_is_named_with_its_sign_and_noise_is_unexplained(planted):
    embeddings, values, slides = planted
    table = explain_columns(embeddings, ["a", "b"], values, FEATURES, slides).set_index("column")
    assert table.feature_1["a"] == FEATURES[3]
    assert table.correlation_1["a"] == pytest.approx(-1)  # the relation is monotonic
    assert table.r2["a"] > 0.4
    assert table.r2["b"] < 0.05
    second = FEATURES.index(table.feature_2["a"])
    assert table.correlation_2["a"] == pytest.approx(spearmanr(embeddings[:, 0], values[:, second]).statistic)


def test_slides_are_not_divided_between_folds(planted):
    """A column that identifies the slide can be learned on known slides only."""
    rng = np.random.default_rng(1)
    slides = np.repeat(np.arange(10), 40)
    values = np.eye(10)[slides] + 0.01 * rng.normal(size=(400, 10))
    table = explain_columns(rng.normal(size=10)[slides][:, None], ["a"], values, list("abcdefghij"), slides)
    assert table.r2[0] < 0.1


def test_r2_is_missing_without_groups_to_hold_out(planted):
    embeddings, values, _ = planted
    table = explain_columns(embeddings, ["a", "b"], values, FEATURES, np.zeros(400))
    assert table.r2.isna().all()


def test_leading_columns_are_taken_from_heads_in_turn():
    weights = {"logistic": np.array([0.1, -5.0, 0.2, 1.0]), "xgboost": np.array([0.0, 0.5, 0.4, 0.1])}
    assert leading_columns(weights, 3).tolist() == [1, 3, 2]
    assert leading_columns(weights, 10).tolist() == [1, 3, 2, 0]
