"""The transformer follows scikit-learn's conventions."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from histoblend.features.handcrafted import families
from histoblend.features.handcrafted.transformer import HandcraftedFeatures
from tests.oracles import pictures


@pytest.fixture(scope="module")
def patches():
    return np.stack([pictures.tissue(seed, 32, 40) for seed in range(6)])


def test_equals_compute(patches):
    np.testing.assert_array_equal(HandcraftedFeatures().fit_transform(patches), families.compute(patches))


def test_needs_no_fit(patches):
    transformer = HandcraftedFeatures(["nuclei"])
    np.testing.assert_array_equal(transformer.transform(patches), transformer.fit(patches).transform(patches))


def test_pandas_output_has_named_columns(patches):
    frame = HandcraftedFeatures(["nuclei"]).set_output(transform="pandas").fit_transform(patches)
    assert list(frame.columns) == [column.name for column in families.columns(["nuclei"])]
    assert list(frame.columns) == list(HandcraftedFeatures(["nuclei"]).get_feature_names_out())
    assert frame.shape == (6, len(families.columns(["nuclei"])))


def test_workers_change_nothing():
    many = np.random.default_rng(0).integers(0, 256, (600, 32, 32, 3), dtype=np.uint8)
    one = HandcraftedFeatures(["nuclei"]).transform(many)
    np.testing.assert_array_equal(HandcraftedFeatures(["nuclei"], n_jobs=2).transform(many), one)


def test_one_worker_per_core_changes_nothing(monkeypatch):
    many = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
    one = HandcraftedFeatures(["colour"]).transform(many)
    np.testing.assert_array_equal(HandcraftedFeatures(["colour"], n_jobs=-1).fit(many).transform(many), one)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((96, 80, 3), r"shape \(n, height, width, 3\); got \(96, 80, 3\)\. For a single patch, give patch\["),
        ((5, 27648), r"shape \(n, height, width, 3\); got \(5, 27648\)\.$"),
        ((5, 3, 96, 96), r"got \(5, 3, 96, 96\)\.$"),
        ((5, 96, 96), r"got \(5, 96, 96\)\.$"),
        ((5, 96, 96, 4), r"got \(5, 96, 96, 4\)\.$"),
        ((0,), r"got \(0,\)\.$"),
        ((5, 20, 96, 3), r"at least 32 × 32 pixels, the size of the centre; got 20 × 96"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_wrong_shape_is_reported_as_given(shape, words, workers):
    for method in (HandcraftedFeatures(n_jobs=workers).fit, HandcraftedFeatures(n_jobs=workers).transform):
        with pytest.raises(ValueError, match=words):
            method(np.zeros(shape, np.uint8))


def test_clones_and_pickles(patches):
    transformer = HandcraftedFeatures(families=["gradient"], n_jobs=2)
    copy = pickle.loads(pickle.dumps(clone(transformer)))  # noqa: S301
    assert copy.get_params() == {"families": ["gradient"], "n_jobs": 2}
    np.testing.assert_array_equal(copy.transform(patches), transformer.transform(patches))


def test_works_in_a_pipeline(patches):
    dark = (patches // 3).astype(np.uint8)
    X, y = np.concatenate([patches, dark]), np.repeat([0, 1], len(patches))
    model = make_pipeline(HandcraftedFeatures(["colour"]), StandardScaler(), LogisticRegression()).fit(X, y)
    assert model.score(X, y) == 1.0
    plain, parallel = (cross_val_score(model, X, y, cv=2, n_jobs=jobs) for jobs in (None, 2))
    np.testing.assert_array_equal(plain, parallel)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"families": ["nucleus"]}, "Did you mean 'nuclei'"), ({"n_jobs": 0}, r"n_jobs must be a positive .*; got 0\.")],
)
def test_bad_arguments_raise_in_fit_and_in_transform(patches, arguments, message):
    transformer = HandcraftedFeatures(**arguments)
    with pytest.raises(ValueError, match=message):
        transformer.fit(patches)
    with pytest.raises(ValueError, match=message):
        transformer.transform(patches)
