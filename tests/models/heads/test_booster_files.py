"""XGBoost's files: ours are accepted, and nothing that its own reader would stumble over reaches it."""

import random

import numpy as np
import pytest
import xgboost
from hypothesis import given
from hypothesis import strategies as st

from histoblend.data.errors import InputError
from histoblend.models.heads.booster_files import check_booster


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
    return bytes(booster.save_raw("ubj"))


def replaced(content, old, new):
    assert content.count(old) >= 1
    return content.replace(old, new, 1)


def key(name):
    return b"L" + len(name).to_bytes(8, "big") + name


def first_array(content, name, values):
    """Overwrite the beginning of the first array of int32 of that name."""
    place = content.index(key(name)) + len(key(name)) + len(b"[$l#L") + 8
    new = np.array(values, ">i4").tobytes()
    return content[:place] + new + content[place + len(new) :]


def test_ours_are_accepted(content):
    check_booster("b.ubj", content, 5)
    with pytest.raises(InputError, match=r"b.ubj: expected a booster for 6 columns; got 5"):
        check_booster("b.ubj", content, 6)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: b"", "1 bytes wanted at byte 0 of 0"),
        (lambda c: b"{}", "'learner'"),
        (lambda c: c + b"}", "more after the end"),
        (lambda c: c[:-1], "bytes wanted"),
        (lambda c: b"[#L" + (2**40).to_bytes(8, "big"), "1099511627776 values"),
        (lambda c: b"[$d#L" + (2**62).to_bytes(8, "big"), "bytes wanted"),
        (lambda c: b"[$d#L" + b"\xff" * 8, "bytes wanted"),
        (lambda c: b"[#L\0\0\0\0\0\0\0\1" * 50 + b"Z", "more than 16 levels"),
        (lambda c: first_array(c, b"left_children", [10**9]), "children of another kind"),
        (lambda c: first_array(c, b"left_children", [0]), "children of another kind"),
        (lambda c: first_array(c, b"left_children", [-1]), "leaves of another kind"),
        (lambda c: first_array(c, b"split_indices", [5]), "columns of another kind"),
        (lambda c: first_array(c, b"split_indices", [-1]), "columns of another kind"),
        (lambda c: replaced(c, b"binary:logistic", b"binary:logitraw"), "objective of another kind"),
        (lambda c: replaced(c, b"gbtree", b"dbtree"), "KeyError|another kind"),
    ],
    ids=[
        "empty", "no model", "longer", "shorter", "long list", "long array", "negative", "deep", "outside", "circle",
        "torn leaf", "column", "negative column", "objective", "kind",
    ],
)  # fmt: skip
def test_what_would_mislead_xgboost_is_refused(content, spoil, message):
    with pytest.raises(InputError, match=message):
        check_booster("b.ubj", spoil(content))


@given(place=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_changed_byte_never_crashes_xgboost(booster, content, place, value):
    altered = bytearray(content)
    altered[place % len(altered)] = value
    try:
        check_booster("b.ubj", bytes(altered), 5)
    except InputError:
        return
    again = xgboost.Booster({"nthread": 1}, model_file=altered)
    assert again.inplace_predict(np.zeros((2, 5), np.float32)).shape == (2,)


@pytest.mark.parametrize("name", [b"enc[#L", b"feature_names[#L", b"sorted_idx[$l#L"])
def test_a_negative_count_is_refused(content, name):
    altered = bytearray(content)
    altered[content.index(name) + len(name)] = 128
    with pytest.raises(InputError, match="expected a booster of XGBoost's; got: ValueError: -"):
        check_booster("b.ubj", bytes(altered), 5)


def test_damage_of_many_kinds_never_crashes_xgboost(content):
    from tests.torture.fuzz.driver import mutate_bytes

    rng = random.Random(0)  # noqa: S311 - no secret
    refused = 0
    for _ in range(300):
        altered = mutate_bytes(content, rng)
        try:
            check_booster("b.ubj", altered, 5)
        except InputError:
            refused += 1
            continue
        xgboost.Booster({"nthread": 1}, model_file=bytearray(altered)).inplace_predict(np.zeros((2, 5), np.float32))
    assert refused > 250
