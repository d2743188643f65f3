"""Bundle: the same probabilities after a round trip; anything altered, missing or foreign is refused."""

import json
import pickle

import numpy as np
import pytest

from data.errors import InputError
from models.bundle import load_head, open_bundle, save_head, seal_bundle
from models.heads import HEADS


@pytest.fixture
def fitted():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    X = rng.normal(size=(200, 5)).astype(np.float32)
    X[:, 1] += y
    return {name: make(0).fit(X, y, np.arange(200) // 10) for name, make in HEADS.items()}, X


@pytest.fixture
def bundle(fitted, tmp_path):
    for name, head in fitted[0].items():
        save_head(head, tmp_path / "b" / name)
    seal_bundle(tmp_path / "b", {"run": "r"})
    return tmp_path / "b"


@pytest.mark.parametrize("name", HEADS)
def test_a_head_survives_the_round_trip(fitted, bundle, name):
    heads, X = fitted
    again = load_head(bundle / name)
    np.testing.assert_array_equal(again.predict_proba(X), heads[name].predict_proba(X))
    assert again.get_params() == heads[name].get_params()
    np.testing.assert_array_equal(again.classes_, heads[name].classes_)


def test_a_sound_bundle_opens_and_lists_its_files(bundle):
    index = open_bundle(bundle)
    assert index["run"] == "r"
    assert set(index["files"]) == {
        "logistic/head.skops",
        *(f"xgboost/booster-{i}.ubj" for i in range(3)),
        "xgboost/head.json",
    }


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def newer(folder):
    index = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps({**index, "format": 2}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: flip(b / "xgboost" / "booster-1.ubj"), r"xgboost/booster-1.ubj was altered"),
        (lambda b: (b / "logistic" / "head.skops").unlink(), r"logistic/head.skops is missing"),
        (lambda b: (b / "extra.pkl").write_bytes(b"x"), r"extra.pkl is not listed"),
        (newer, "expected bundle format 1; got 2"),
        (lambda b: (b / "bundle.json").write_text("{"), "expected JSON"),
        (lambda b: (b / "bundle.json").write_text("[]"), r"expected bundle format 1; got \[\]"),
        (lambda b: (b / "bundle.json").unlink(), "there is none"),
    ],
    ids=["byte", "missing", "foreign file", "newer", "broken", "no object", "no index"],
)
def test_a_spoilt_bundle_is_refused(bundle, spoil, message):
    spoil(bundle)
    with pytest.raises(InputError, match=message):
        open_bundle(bundle)


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_in_a_head_is_never_loaded(bundle, tmp_path):
    (bundle / "logistic" / "head.skops").write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
    with pytest.raises(Exception, match=r"(?i)zip"):
        load_head(bundle / "logistic")
    assert not (tmp_path / "touched").exists()


def test_a_type_that_is_not_trusted_is_refused(bundle):
    import skops.io

    from models.heads import XGBoostHead

    skops.io.dump({"head": XGBoostHead()}, bundle / "logistic" / "head.skops")
    with pytest.raises(InputError, match=r"expected only models.heads.LogisticHead; got models.heads.XGBoostHead"):
        load_head(bundle / "logistic")
