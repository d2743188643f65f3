"""XGBoost's files: ours pass unchanged, and a file that would mislead XGBoost's own reader is refused."""

import copy
import json
import random

import numpy as np
import pytest
import xgboost
from hypothesis import given
from hypothesis import strategies as st

from histoblend.data.errors import InputError
from histoblend.models.heads.booster_files import checked_booster
from tests.torture.fuzz.driver import mutate_bytes


@pytest.fixture(scope="module")
def booster():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    X = rng.normal(size=(200, 5)).astype(np.float32)
    X[:, 1] += y
    X[::7, 2] = np.nan
    settings = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1, "tree_method": "hist", "base_score": 0.5}
    return xgboost.train(settings, xgboost.DMatrix(X, y, nthread=1), 5)


@pytest.fixture(scope="module")
def content(booster):
    return bytes(booster.save_raw("json"))


def predict(content):
    return xgboost.Booster({"nthread": 1}, model_file=bytearray(content)).inplace_predict(np.zeros((2, 5), np.float32))


def test_own_files_are_read_without_a_change(booster, content):
    again = xgboost.Booster({"nthread": 1}, model_file=checked_booster("b.json", content, 5))
    assert bytes(again.save_raw("json")) == content
    with pytest.raises(InputError, match=r"b\.json: expected a booster for 6 columns; got 5"):
        checked_booster("b.json", content, 6)


def changed(*path, to):
    """Return a function that sets one value of a parsed model; the path begins at the first tree or at the learner."""

    def change(model):
        part = model["learner"]
        if path[0] in part["gradient_booster"]["model"]["trees"][0]:
            part = part["gradient_booster"]["model"]["trees"][0]
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = to
        return model

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("left_children", 0, to=10**6), "child of one earlier node"),
        (changed("left_children", 0, to=2**40), "less than or equal to 2147483647"),
        (changed("left_children", 0, to=0), "child of one earlier node"),
        (changed("left_children", 0, to=-1), "two children or none"),
        (changed("parents", 1, to=2), "child of one earlier node"),
        (changed("split_indices", 0, to=5), "columns 0 to 4"),
        (changed("split_indices", 0, to=-1), "columns 0 to 4"),
        (changed("split_conditions", 0, to=1e39), "less than or equal to 34028"),
        (changed("split_conditions", 0, to=float("nan")), "split_conditions.0"),
        (changed("split_conditions", to=[]), "must hold"),
        (changed("split_type", 0, to=1), "split_type.0"),
        (changed("categories", to=[1]), "categories"),
        (changed("tree_param", "num_nodes", to="-1"), "num_nodes"),
        (changed("tree_param", "num_feature", to="4"), "columns"),
        (changed("tree_param", "size_leaf_vector", to="2"), "size_leaf_vector"),
        (changed("objective", "name", to="binary:logitraw"), "objective.name"),
        (changed("gradient_booster", "name", to="dart"), "gradient_booster.name"),
        (changed("gradient_booster", "model", "tree_info", 0, to=1), "tree_info.0"),
        (changed("gradient_booster", "model", "iteration_indptr", 1, to=9), "numbered, one per round"),
        (changed("learner_model_param", "base_score", to="[1E0]"), "base_score must be between 0 and 1"),
        (changed("learner_model_param", "num_feature", to="5" * 12), "num_feature"),
        (changed("attributes", "x", to="y"), "attributes"),
        (changed("more", to=1), "more: Extra inputs"),
    ],
)
def test_models_that_would_mislead_xgboost_are_refused(content, change, message):
    altered = json.dumps(change(copy.deepcopy(json.loads(content)))).encode()
    with pytest.raises(InputError, match=rf"b\.json: expected a booster of XGBoost; got: .*{message}"):
        checked_booster("b.json", altered)


@pytest.mark.parametrize(
    "spoil",
    [lambda c: b"", lambda c: b"{}", lambda c: c + b"}", lambda c: c[:-1], lambda c: b"[" * 10**5],
    ids=["empty", "no model", "longer", "shorter", "deep"],
)
def test_damaged_files_are_refused(content, spoil):
    with pytest.raises(InputError, match=r"b\.json: expected a booster of XGBoost; got: "):
        checked_booster("b.json", spoil(content))


def test_xgboost_gets_what_was_checked(content):
    """Of a name that comes twice, parsers may take the first value or the last."""
    twice = content.replace(b'"left_children":[', b'"left_children":[1000000],"left_children":[', 1)
    assert bytes(checked_booster("b.json", twice)).count(b"1000000") == 0
    np.testing.assert_array_equal(predict(checked_booster("b.json", twice)), predict(content))


@given(position=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_changed_byte_never_crashes_xgboost(content, position, value):
    altered = bytearray(content)
    altered[position % len(altered)] = value
    try:
        checked = checked_booster("b.json", bytes(altered), 5)
    except InputError:
        return
    assert predict(checked).shape == (2,)


def test_damage_of_many_kinds_never_crashes_xgboost(content):
    rng = random.Random(0)  # noqa: S311 - no secret
    refused = 0
    for _ in range(300):
        try:
            checked = checked_booster("b.json", mutate_bytes(content, rng), 5)
        except InputError:
            refused += 1
            continue
        predict(checked)
    assert refused > 150
