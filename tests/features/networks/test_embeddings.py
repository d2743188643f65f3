"""Embeddings are the same for every engine, batch, thread and pickle."""

import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import histoblend.features.networks.engines
import histoblend.features.networks.onnx_export
from histoblend.features.extract import extract_shards
from histoblend.features.networks.backbones import find_backbone
from histoblend.features.networks.backend import load_keras
from histoblend.features.networks.embeddings import EmbeddingCompute, Embeddings, ahead, embedding_compute
from histoblend.features.networks.engines import KerasNetwork, OnnxNetwork
from histoblend.features.networks.onnx_export import export_onnx
from histoblend.features.networks.recipe import Recipe, embedding_network
from histoblend.features.networks.stored import open_networks, store_networks
from histoblend.features.networks.views import resize, symmetries
from tests import ROOT
from tests.oracles.record_lite_activations import crops


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Export once for all tests, in a separate interpreter, and return its output."""
    cache = tmp_path_factory.mktemp("networks")
    code = (
        "import sys\nfrom histoblend.features.networks.embeddings import embedding_compute\n"
        "embedding_compute(engine='onnx', cache=sys.argv[1])\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", code, cache]
    return cache, subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def cache(export):
    return export[0]


@pytest.fixture(scope="module")
def compute(cache):
    return embedding_compute(engine="onnx", cache=cache)


@pytest.fixture(scope="module")
def compute_by_keras():
    return embedding_compute(engine="keras")


@pytest.fixture(scope="module")
def patches():
    return np.random.default_rng(1).integers(0, 256, (70, 48, 48, 3), dtype=np.uint8)


def test_agrees_with_the_pytorch_implementation(compute):
    recorded = np.load(ROOT / "tests/fixtures/efficientnet-lite0-activations.npz")["pooled_96"]
    np.testing.assert_allclose(compute(crops(96)), recorded, rtol=0, atol=1e-4)


def test_engines_agree(compute, compute_by_keras, patches):
    np.testing.assert_allclose(compute(patches[:6]), compute_by_keras(patches[:6]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("engine", ["compute", "compute_by_keras"])
def test_a_row_is_bit_identical_in_any_batch(request, patches, engine):
    compute = request.getfixturevalue(engine)
    together = compute(patches)
    alone = np.concatenate([compute(patches[i : i + 1]) for i in range(0, 70, 9)])
    np.testing.assert_array_equal(together[::9], alone)
    np.testing.assert_array_equal(together[5:], compute(patches[5:]))
    np.testing.assert_array_equal(together[::-1], compute(patches[::-1]))


def test_threads_give_bit_identical_results(compute, patches):
    expected = compute(patches)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(compute, (patches[i : i + 3] for i in range(0, 70, 3))))
    np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_shards_on_two_threads_are_bit_identical(compute, patches, tmp_path):
    values = extract_shards(compute, patches, tmp_path, compute.width, shard_size=16, workers=2, prefer="threads")
    np.testing.assert_array_equal(values, compute(patches))


def test_a_pickle_contains_no_session_and_works_in_another_process(compute, patches, tmp_path):
    expected = compute(patches[:3])
    content = pickle.dumps(compute)
    assert len(content) < 2000
    (tmp_path / "compute.pickle").write_bytes(content)
    np.save(tmp_path / "patches.npy", patches[:3])
    code = (
        "import pickle, sys, numpy as np; from pathlib import Path; folder = Path(sys.argv[1])\n"
        "compute = pickle.loads((folder / 'compute.pickle').read_bytes())\n"
        "np.save(folder / 'values.npy', compute(np.load(folder / 'patches.npy')))\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    np.testing.assert_array_equal(np.load(tmp_path / "values.npy"), expected)


def test_the_keras_engine_pickles_without_its_model(compute_by_keras, patches, monkeypatch):
    expected = compute_by_keras(patches[:2])
    model = compute_by_keras.network._models[None]  # avoids loading the model again
    monkeypatch.setattr(histoblend.features.networks.engines, "byte_network", lambda *names: model)
    content = pickle.dumps(compute_by_keras)
    assert len(content) < 2000
    again = pickle.loads(content)  # noqa: S301 - made two lines above
    assert again == compute_by_keras
    np.testing.assert_array_equal(again(patches[:2]), expected)


def test_the_export_is_cached_and_a_damaged_file_is_replaced(compute, cache, monkeypatch):
    path = export_onnx(Recipe(), None, cache)
    exported = []

    def fake_export(recipe, shape, path):
        exported.append(recipe.backbone)
        path.write_bytes(content)

    content = path.read_bytes()
    monkeypatch.setattr(histoblend.features.networks.onnx_export, "_run_export", fake_export)
    assert export_onnx(Recipe(), None, cache) == path
    assert exported == []
    path.write_bytes(content[:-1])
    assert export_onnx(Recipe(), None, cache) == path
    assert exported == ["efficientnet-lite0"]
    assert path.read_bytes() == content
    monkeypatch.setattr(histoblend.features.networks.onnx_export, "_version", lambda name: "another")
    assert export_onnx(Recipe(), None, cache) != path
    assert not list(cache.glob(".export-*"))


def test_the_export_prints_nothing_and_loads_no_framework_in_the_parent(export):
    cache, done = export
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path.suffix for path in cache.iterdir()} == {".onnx", ".sha256"}


def test_poolings_are_mean_and_maximum_over_the_map(patches):
    both = embedding_network(Recipe(pooling="both"))
    keras = load_keras()
    body = keras.Model(both.input, both.get_layer("head_relu").output)
    images = patches[:2].astype(np.float32)
    maps = keras.ops.convert_to_numpy(body(images, training=False))
    pooled = keras.ops.convert_to_numpy(both(images, training=False))
    np.testing.assert_allclose(pooled[:, :1280], maps.mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(pooled[:, 1280:], maps.max((1, 2)), atol=1e-5)


def test_d4_is_the_average_over_the_symmetries_and_is_invariant(compute, patches):
    d4 = EmbeddingCompute(compute.network, (None,), True)
    values = d4(patches[:3])
    by_hand = np.mean(
        [compute(np.ascontiguousarray(view)) for view in symmetries(patches[:3])], axis=0, dtype=np.float64
    )
    np.testing.assert_allclose(values, by_hand, atol=1e-6)
    turned = d4(np.ascontiguousarray(np.rot90(patches[:3], axes=(1, 2))))
    np.testing.assert_allclose(turned, values, atol=1e-5)
    assert np.abs(compute(patches[:3]) - values).max() > 1e-2  # without the average, it is not invariant


def test_several_sizes_are_concatenated(compute, patches):
    values = EmbeddingCompute(compute.network, (None, 64), False)(patches[:3])
    np.testing.assert_array_equal(values[:, :1280], compute(patches[:3]))
    np.testing.assert_array_equal(values[:, 1280:], compute(resize(patches[:3], 64)))


@given(
    st.sampled_from([(1, 1), (5, 3), (32, 32), (40, 24)]),
    st.sampled_from(["noise", "white", "black"]),
    st.booleans(),
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_image_gives_finite_numbers(compute, shape, kind, d4):
    fill = {"white": 255, "black": 0}
    rng = np.random.default_rng(0)
    patch = rng.integers(0, 256, (2, *shape, 3)) if kind == "noise" else np.full((2, *shape, 3), fill[kind])
    values = EmbeddingCompute(compute.network, (None,), d4)(patch.astype(np.uint8))
    assert values.shape == (2, 1280)
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    assert (values <= 6).all()  # the last layer is a ReLU6


def test_an_empty_batch_gives_an_empty_table(compute):
    assert compute(np.empty((0, 96, 96, 3), np.uint8)).shape == (0, 1280)


def test_read_only_memory_maps_are_accepted(compute, patches, tmp_path):
    np.save(tmp_path / "patches.npy", patches)
    mapped = np.load(tmp_path / "patches.npy", mmap_mode="r")
    np.testing.assert_array_equal(compute(mapped[:9]), compute(patches[:9]))


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8, 8, 4), np.uint8)]
)
def test_other_arrays_are_rejected(compute, bad):
    with pytest.raises(ValueError, match=re.escape(f"got {bad.dtype} {bad.shape}")):
        compute(bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "alexnet"}, "backbone must be"),
        ({"engine": "torch"}, "engine must be one of auto, onnx, keras; got 'torch'"),
        ({"engine": "onnx", "precision": "bfloat16"}, "computes in float32 or int8; got precision 'bfloat16'"),
        ({"engine": "keras", "precision": "int8"}, 'precision "int8" needs engine "onnx"'),
        ({"engine": "onnx", "precision": "int8"}, "needs patches to be calibrated on; got none"),
        ({"precision": "double"}, "precision must be one of auto, float32, bfloat16, float16, int8; got 'double'"),
        ({"stages": 5}, "stages must be a number from 1 to 4 for efficientnet-lite0; got 5"),
        ({"stages": True}, "got True"),
        ({"centre": True}, "centre must be a number of pixels, such as 32, or 0 for none; got True"),
        ({"backbone": ["efficientnet-lite0"] * 2}, "one name or several different names"),
        ({"backbone": ["efficientnet-lite0", "vgg16"], "weights": "x.h5"}, "fits one backbone; got 'x.h5' for"),
        ({"weights": "absent.h5"}, "existing file of .h5, .keras, .pth; got 'absent.h5'"),
        ({"pooling": "mean"}, "pooling must be one of avg, max, both; got 'mean'"),
        ({"size": 0}, "size must be a positive number of pixels or None; got 0"),
        ({"size": 96.0}, "got 96.0"),
        ({"size": (96, 96)}, "different numbers"),
        ({"size": ()}, "one or more"),
    ],
)
def test_invalid_options_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        embedding_compute(**options)


def test_columns_are_unique_and_in_four_parts(compute):
    names = EmbeddingCompute(compute.network, (None, 192), True).columns
    assert len(set(names)) == len(names) == 2560
    assert all(len(name.split("_")) == 4 for name in names)
    assert compute.columns[0] == "embedding_efficientnet-lite0-0000_rgb_whole"
    assert names[-1] == "embedding_efficientnet-lite0-192px-d4-1279_rgb_whole"


def test_column_names_include_every_option():
    recipe = Recipe("efficientnet-lite2", "random", "both", 3)
    compute = EmbeddingCompute(KerasNetwork(recipe), (96, 192), False, 48)
    names = compute.columns
    assert len(set(names)) == len(names) == compute.width == 2 * 2 * 2 * (48 + 120 + 1280)
    assert all(len(name.split("_")) == 4 for name in names)
    assert names[0] == "embedding_efficientnet-lite2-random-96px-both-stage2-0000_rgb_whole"
    assert names[2 * 48] == "embedding_efficientnet-lite2-random-96px-both-stage3-0000_rgb_whole"
    assert names[-1] == "embedding_efficientnet-lite2-random-192px-crop48-both-2559_rgb_centre"
    assert EmbeddingCompute(KerasNetwork(Recipe()), (None,), True, 32).columns[-1].endswith("lite0-d4-1279_rgb_centre")


def test_pooled_stages_are_concatenated_with_the_last_one_last(patches):
    network = embedding_network(Recipe(stages=3, pooling="both"))
    keras = load_keras()
    images = patches[:2].astype(np.float32)
    pooled = keras.ops.convert_to_numpy(network(images, training=False))
    expected = []
    for layer in ("block4_add", "block10_add", "head_relu"):  # the last maps of 1/8, 1/16 and 1/32 in Lite0
        feature_map = keras.Model(network.input, network.get_layer(layer).output)(images, training=False)
        maps = keras.ops.convert_to_numpy(feature_map)
        expected += [maps.mean((1, 2)), maps.max((1, 2))]
    np.testing.assert_allclose(pooled, np.concatenate(expected, axis=1), atol=1e-5)
    assert pooled.shape[1] == Recipe(stages=3, pooling="both").width == 2 * (40 + 112 + 1280)


def test_the_centre_is_appended_to_the_whole(compute, patches):
    values = EmbeddingCompute(compute.network, (64, None), False, 16)(patches[:3])
    centre = patches[:3, 16:32, 16:32]
    by_hand = [resize(patches[:3], 64), resize(centre, 64), patches[:3], resize(centre, 48)]
    np.testing.assert_array_equal(values, np.concatenate([compute(view) for view in by_hand], axis=1))
    with pytest.raises(ValueError, match="centre must fit inside the patches"):
        EmbeddingCompute(compute.network, (64,), False, 49)(patches[:3])


def test_d4_of_patches_that_are_not_square(compute, patches):
    oblong = np.ascontiguousarray(patches[:3, :, :40])
    values = EmbeddingCompute(compute.network, (None,), True)(oblong)
    by_hand = np.mean([compute(np.ascontiguousarray(view)) for view in symmetries(oblong)], axis=0)
    np.testing.assert_allclose(values, by_hand, atol=1e-5)


def test_backbones_are_concatenated(cache, compute, patches):
    names = ("efficientnet-lite0", "efficientnet-lite2")
    several = embedding_compute(names, engine="keras")
    values = several(patches[:2])
    assert values.shape == (2, several.width) == (2, 2560)
    assert several.columns == tuple(n for one in names for n in embedding_compute(one, engine="keras").columns)
    np.testing.assert_allclose(values[:, :1280], compute(patches[:2]), atol=1e-4)
    assert pickle.loads(pickle.dumps(several)) == several  # noqa: S301 - made here


def test_batches_are_prepared_in_order_up_to_the_given_depth():
    started = []

    def prepare(item):
        started.append(item)
        return 10 * item

    results = ahead(prepare, range(9), 3)
    assert next(results) == 0
    assert len(started) <= 4
    assert list(results) == [10, 20, 30, 40, 50, 60, 70, 80]
    assert list(ahead(prepare, range(3), 0)) == [0, 10, 20]
    with pytest.raises(ZeroDivisionError):
        list(ahead(lambda item: 1 // item, [1, 0, 1], 2))


def test_half_precision_rounds_and_restores_the_policy(compute_by_keras, patches):
    exact = compute_by_keras(patches[:4])
    half = embedding_compute(engine="keras", precision="bfloat16")(patches[:4])
    assert half.dtype == np.float32
    gap = np.abs(half - exact)
    assert gap.max() > 1e-4  # it computed with 8 bits of mantissa
    assert np.corrcoef(half.ravel(), exact.ravel())[0, 1] > 0.99
    assert load_keras().config.dtype_policy().name == "float32"


def test_a_network_with_size_dependent_padding_is_exported_for_its_size(cache, monkeypatch):
    """At an odd size, a MobileNetV2 exported for free sizes would shift its maps by a pixel."""
    compute = embedding_compute("mobilenet-v2", weights="random", size=33, engine="onnx", cache=cache)
    assert [path.name[:30] for path in cache.glob("mobilenet*.onnx")] == ["mobilenet-v2-random-avg-33x33-"]
    monkeypatch.setattr(histoblend.features.networks.onnx_export, "_run_export", None)  # it is already in the cache
    patches = np.random.default_rng(2).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    network = embedding_network(Recipe("mobilenet-v2", "random"), (33, 33))
    expected = network(resize(patches, 33).astype(np.float32), training=False)
    np.testing.assert_allclose(compute(patches), load_keras().ops.convert_to_numpy(expected), rtol=1e-4, atol=1e-4)


def test_shapes_without_resizing_are_unknown_before_the_patches(cache):
    row = find_backbone("mobilenet-v2")
    assert OnnxNetwork(Recipe(row.name), cache).shapes([None, 64]) == [(64, 64)]
    assert OnnxNetwork(Recipe(), cache).shapes([None, 64]) == [None]


def test_the_scikit_learn_transformer(cache, patches):
    embedding = Embeddings(engine="onnx", cache=cache, n_jobs=2)
    with pytest.raises(NotFittedError):
        embedding.transform(patches)
    values = clone(embedding).fit_transform(patches)
    assert values.shape == (70, 1280)
    single = Embeddings(engine="onnx", cache=cache).fit(patches)
    np.testing.assert_array_equal(single.transform(patches), values)
    assert single.get_feature_names_out()[1] == "embedding_efficientnet-lite0-0001_rgb_whole"
    again = pickle.loads(pickle.dumps(single))  # noqa: S301 - made here
    np.testing.assert_array_equal(again.transform(patches[:2]), values[:2])
    frame = single.set_output(transform="pandas").transform(patches[:2])
    assert list(frame.columns) == list(single.get_feature_names_out())


def test_cross_validation_in_parallel_equals_the_plain_one(cache, patches):
    labels = np.arange(70) % 2
    model = make_pipeline(Embeddings(engine="onnx", cache=cache), StandardScaler(), LogisticRegression())
    plain, parallel = (cross_val_score(model, patches, labels, cv=2, n_jobs=jobs) for jobs in (None, 2))
    np.testing.assert_array_equal(plain, parallel)


@pytest.mark.parametrize("workers", [1, 2, -1])
@pytest.mark.parametrize("shape", [(96, 80, 3), (40, 96, 96), (40, 3, 96, 96)])
def test_the_error_of_a_wrong_shape_names_the_given_shape(shape, workers):
    embedding = Embeddings(n_jobs=workers)
    embedding.compute_ = None
    with pytest.raises(ValueError, match=re.escape(f"(n, height, width, 3); got uint8 {shape}.")):
        embedding.transform(np.zeros(shape, np.uint8))


def test_zero_workers_are_rejected():
    with pytest.raises(ValueError, match="n_jobs must be a positive number, or -1 for one per core"):
        Embeddings(n_jobs=0).fit()


def test_8_bit_embeddings_agree_and_are_stored(cache, compute, tmp_path):
    images = crops(96)
    small = embedding_compute(engine="onnx", precision="int8", cache=cache, calibration=images)
    assert small.columns == compute.columns
    expected, values = compute(images), small(images)
    cosine = (values * expected).sum(axis=1) / np.linalg.norm(values, axis=1) / np.linalg.norm(expected, axis=1)
    assert 0.99 < cosine.min() < 1
    entries = store_networks(small, 96, tmp_path)
    assert entries[0]["precision"] == "int8"
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(files["0-efficientnet-lite0-any.onnx"]) < 0.35 * len(compute.network.content(None))
    np.testing.assert_array_equal(open_networks(entries, files)(images), values)
    np.testing.assert_array_equal(np.concatenate([small(image[None]) for image in images]), values)
