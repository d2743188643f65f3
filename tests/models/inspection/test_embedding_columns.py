"""A planted embedding column is traced back to the handcrafted feature it was made of."""

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
    made = np.column_stack([-np.exp(values[:, 3]), rng.normal(size=400)]).astype(np.float32)
    return made, values, np.repeat(np.arange(20), 20)


def test_the_cause_is_named_with_its_sign_and_noise_is_unexplained(planted):
    made, values, slides = planted
    table = explain_columns(made, ["a", "b"], values, FEATURES, slides).set_index("column")
    assert table.feature_1["a"] == FEATURES[3]
    assert table.correlation_1["a"] == pytest.approx(-1)  # rising and falling alike, however bent
    assert table.r2["a"] > 0.4
    assert table.r2["b"] < 0.05
    second = FEATURES.index(table.feature_2["a"])
    assert table.correlation_2["a"] == pytest.approx(spearmanr(made[:, 0], values[:, second]).statistic)


def test_slides_are_never_parted(planted):
    """A column that is the slide's own number is learned on its slides and unknown on others."""
    rng = np.random.default_rng(1)
    slides = np.repeat(np.arange(10), 40)
    values = np.eye(10)[slides] + 0.01 * rng.normal(size=(400, 10))
    table = explain_columns(rng.normal(size=10)[slides][:, None], ["a"], values, list("abcdefghij"), slides)
    assert table.r2[0] < 0.1


def test_without_groups_to_hold_out_nothing_is_claimed(planted):
    made, values, _ = planted
    table = explain_columns(made, ["a", "b"], values, FEATURES, np.zeros(400))
    assert table.r2.isna().all()


def test_heads_name_leading_columns_in_turn():
    weights = {"logistic": np.array([0.1, -5.0, 0.2, 1.0]), "xgboost": np.array([0.0, 0.5, 0.4, 0.1])}
    assert leading_columns(weights, 3).tolist() == [1, 3, 2]
    assert leading_columns(weights, 10).tolist() == [1, 3, 2, 0]
