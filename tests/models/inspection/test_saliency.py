"""Evidence maps: planted evidence, gradients compared with finite differences, and randomised networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from histoblend.data.errors import InputError
from histoblend.features.networks.backend import load_keras
from histoblend.features.networks.engines import Engine
from histoblend.features.networks.views import symmetries
from histoblend.models.cnn import KERAS_FILE, CnnSettings, TrainablePart, store_cnn
from histoblend.models.inspection.centre_evidence import area_share, centre_cells, centre_shares
from histoblend.models.inspection.gradients import upper_function
from histoblend.models.inspection.saliency import (
    choose_sample,
    cut,
    inner_layer,
    open_network,
    saliency,
    spread_over_slides,
)
from histoblend.models.inspection.saliency_checks import likeness, randomise, sanity_table

#: Patches are not resized, and maps are not averaged over symmetries.
PLAIN = CnnSettings(size=0, d4=False)


def _network(seed: int = 0) -> Any:
    """Two strided convolutions, an average and a dense layer, with random weights."""
    keras = load_keras()
    start = keras.Input((None, None, 3))
    layer = keras.layers.Rescaling(1 / 127.5, -1, name="contract")(start)
    layer = keras.layers.Conv2D(6, 3, strides=4, padding="same", activation="tanh", name="inner")(layer)
    layer = keras.layers.DepthwiseConv2D(3, padding="same", name="depth")(layer)
    layer = keras.layers.BatchNormalization(name="norm")(layer)
    layer = keras.layers.Conv2D(5, 3, strides=2, padding="same", activation="softplus", name="outer")(layer)
    log_odds = keras.layers.Dense(1, name="log_odds")(keras.layers.GlobalAveragePooling2D()(layer))
    network = keras.Model(start, log_odds)
    rng = np.random.default_rng(seed)
    network.set_weights(
        [
            rng.uniform(0.5, 1.5, value.shape) if value.ndim == 1 else rng.normal(0, 0.5, value.shape)
            for value in network.get_weights()
        ]
    )
    return network


def _colour_network(kernel: tuple[float, float, float], intercept: float = 0.0) -> Any:
    """A network whose last map is the mean colour (0..1) of squares of 16 × 16 pixels."""
    keras = load_keras()
    start = keras.Input((None, None, 3))
    layer = keras.layers.AveragePooling2D(16)(keras.layers.Rescaling(1 / 255)(start))
    network = keras.Model(start, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling2D()(layer)))
    network.layers[-1].set_weights([np.array(kernel, np.float32)[:, None], np.array([intercept], np.float32)])
    return network


@pytest.fixture(scope="module")
def network() -> Any:
    return _network()


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)


def test_mean_of_the_last_map_is_the_log_odds(network, patches):
    (maps,) = saliency([cut(network, "inner")], patches, PLAIN)
    expected = np.asarray(network.predict_on_batch(patches.astype(np.float32)))[:, 0]
    np.testing.assert_allclose(maps.last.mean(axis=(1, 2)), expected, rtol=1e-5, atol=1e-6)
    assert maps.last.shape == (3, 4, 4)
    assert maps.inner is not None
    assert maps.inner.shape == (3, 8, 8)


def test_last_map_without_the_intercept_is_grad_cam(network, patches):
    tensorflow = pytest.importorskip("tensorflow")
    if load_keras().backend.backend() != "tensorflow":
        pytest.skip("needs Keras on TensorFlow")
    # As published: channels are weighted by the mean gradient of the log-odds, from TensorFlow's tape.
    keras = load_keras()
    both = keras.Model(network.input, [network.get_layer("outer").output, network.output])
    with tensorflow.GradientTape() as tape:
        last_map, log_odds = both(patches.astype(np.float32))
        tape.watch(last_map)
        head = network.layers[-1](network.layers[-2](last_map))
    gradient = tape.gradient(head, last_map).numpy()
    published = np.einsum("nijc,nc->nij", last_map.numpy(), gradient.mean(axis=(1, 2)))
    (maps,) = saliency([cut(network, "inner")], patches, PLAIN)
    cells = published[0].size
    np.testing.assert_allclose(maps.named("grad-cam"), published * cells, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(head.numpy(), log_odds.numpy(), rtol=1e-5)


def test_gradient_agrees_with_finite_differences(network):
    upper = upper_function(cut(network, "inner").upper)
    rng = np.random.default_rng(2)
    inner_map = rng.normal(size=(4, 8, 8, 6)).astype(np.float32)
    gradient = upper(inner_map)[1]
    assert gradient is not None
    model = cut(network, "inner").upper
    step = 1e-2
    for _ in range(5):
        direction = rng.normal(size=inner_map.shape).astype(np.float32)
        ends = [np.asarray(model.predict_on_batch(inner_map + sign * step * direction)[1])[:, 0] for sign in (1, -1)]
        np.testing.assert_allclose(
            (gradient * direction).sum(axis=(1, 2, 3)), (ends[0] - ends[1]) / (2 * step), rtol=0.02, atol=5e-3
        )


def test_inner_map_is_activation_times_gradient(network, patches):
    pieces = cut(network, "inner")
    assert pieces.lower is not None
    inner_map = np.asarray(pieces.lower.predict_on_batch(patches.astype(np.float32)))
    gradient = upper_function(pieces.upper)(inner_map)[1]
    (maps,) = saliency([pieces], patches, PLAIN)
    np.testing.assert_allclose(maps.inner, (inner_map * gradient).sum(axis=3), rtol=1e-4, atol=1e-6)


def _red(rows: slice, columns: slice) -> np.ndarray:
    patch = np.zeros((1, 96, 96, 3), np.uint8)
    patch[0, rows, columns, 0] = 255
    return patch


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (slice(32, 64), slice(32, 64), 1.0),
        (slice(0, 32), slice(0, 32), 0.0),
        (slice(0, 96), slice(0, 96), 1 / 9),
        (slice(32, 64), slice(32, 96), 0.5),
    ],
    ids=["centre", "corner", "everywhere", "half"],
)
@pytest.mark.parametrize("d4", [False, True])
def test_share_equals_that_of_planted_evidence(rows, columns, expected, d4):
    pieces = cut(_colour_network((3.0, -1.0, -1.0)), None)
    (maps,) = saliency([pieces], _red(rows, columns), replace(PLAIN, d4=d4))
    assert maps.inner is None
    assert centre_shares(maps.last, 96)[0] == pytest.approx(expected, abs=1e-6)


def test_negative_evidence_and_the_intercept():
    patch = _red(slice(32, 64), slice(32, 64))
    patch[0, :32, :32, 1] = 255
    (maps,) = saliency([cut(_colour_network((3.0, -2.0, 0.0), intercept=-1.0), None)], patch, PLAIN)
    assert maps.last[0, 2, 2] == pytest.approx(2)
    assert maps.last[0, 0, 0] == pytest.approx(-3)
    assert maps.named("grad-cam")[0, 0, 0] == pytest.approx(-2)
    assert maps.last[0, 5, 5] == pytest.approx(-1)
    assert centre_shares(maps.last, 96)[0] == 1.0
    assert np.isnan(centre_shares(-np.abs(maps.last), 96)[0])


def test_maps_transform_with_the_patch(network, patches):
    settings = replace(PLAIN, d4=True)
    (maps,) = saliency([cut(network, "inner")], patches, settings)
    for number, turned in enumerate(symmetries(patches)):
        (result,) = saliency([cut(network, "inner")], np.ascontiguousarray(turned), settings)
        for name in ("last", "inner"):
            expected = list(symmetries(maps.named(name)[..., None]))[number][..., 0]
            np.testing.assert_allclose(result.named(name), expected, rtol=1e-4, atol=1e-5, err_msg=f"{name} {number}")
    (plain,) = saliency([cut(network, "inner")], patches, PLAIN)
    assert np.abs(plain.last - maps.last).max() > 0.01  # averaging does change the maps


def test_maps_do_not_depend_on_other_patches_of_the_batch(network):
    many = np.random.default_rng(3).integers(0, 256, (35, 32, 32, 3), np.uint8)
    counted: list[int] = []
    (maps,) = saliency([cut(network, "inner")], many, PLAIN, progress=counted.append)
    assert sum(counted) == 35
    (last,) = saliency([cut(network, "inner")], many[-1:], PLAIN)
    np.testing.assert_allclose(maps.last[-1:], last.last, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(maps.inner[-1:], last.inner, rtol=1e-4, atol=1e-6)


def test_centre_cells_by_hand():
    six = np.zeros((6, 6))
    six[2:4, 2:4] = 1
    np.testing.assert_allclose(centre_cells(6, 6, 96), six)
    three = np.zeros((3, 3))
    three[1, 1] = 1
    np.testing.assert_allclose(centre_cells(3, 3, 96), three)
    # Seven cells of 96/7 px: the centre covers the middle cell and a part of the cell on either side.
    side = (32 - 96 / 7) / 2 / (96 / 7)
    np.testing.assert_allclose(centre_cells(7, 7, 96)[3], [0, 0, side, 1, side, 0, 0])
    for cells in (1, 4, 7, 12):
        assert centre_cells(cells, cells, 96).mean() == pytest.approx(1 / 9)
    assert centre_cells(2, 2, 32).tolist() == [[1, 1], [1, 1]]
    assert area_share(6, 6, 96) == pytest.approx(1 / 9)
    assert area_share(6, 6, 96, border=False) == pytest.approx(1 / 4)


def test_outermost_cells_can_be_left_out():
    maps = np.full((1, 6, 6), 10.0)
    maps[0, 1:5, 1:5] = 1.0
    maps[0, 2, 2] = 5.0
    assert centre_shares(maps, 96, border=False)[0] == pytest.approx(8 / 20)
    assert centre_shares(maps, 96)[0] == pytest.approx(8 / 220)


def test_likeness_ignores_scale_and_sign():
    rng = np.random.default_rng(4)
    maps = rng.normal(size=(4, 6, 6))
    others = maps.copy()
    others[1] = -2 * maps[1] + 3
    others[2] = 0.001
    others[3] = rng.normal(size=(6, 6))
    rank, structure = likeness(maps, 5 * others - 1)
    assert rank[:2] == pytest.approx([1, 1])
    assert structure[:2] == pytest.approx([1, 1])
    assert np.isnan(rank[2])
    assert np.isnan(structure[2])
    # For normal variables, Kendall's correlation predicts Spearman's closely enough to notice a wrong cell order.
    expected = kendalltau(maps[3].ravel(), others[3].ravel()).statistic
    assert rank[3] == pytest.approx(abs(np.sin(np.pi / 2 * expected)), abs=0.15)


def _values(model: Any) -> dict[str, np.ndarray]:
    return {f"{layer.name}/{weight.name}": np.asarray(weight) for layer in model.layers for weight in layer.weights}


@pytest.mark.parametrize("part", ["head", "top", "whole"])
def test_randomised_parts_include_all_later_layers(network, part):
    pieces = cut(network, "inner")
    before = [_values(pieces.lower), _values(pieces.upper)]
    drawn = randomise(pieces, part, np.random.default_rng(5))
    after = [_values(drawn.lower), _values(drawn.upper)]
    assert (drawn.lower is pieces.lower) is (part != "whole")
    changed = {name for old, new in zip(before, after, strict=True) for name in old if (old[name] != new[name]).any()}
    body = {"depth/kernel", "outer/kernel", "outer/bias", "depth/bias", "norm/gamma", "norm/moving_mean"}
    assert "log_odds/kernel" in changed
    assert "log_odds/bias" not in changed
    assert (body <= changed) is (part != "head")
    assert ("inner/kernel" in changed) is (part == "whole")
    np.testing.assert_allclose(drawn.kernel, after[1]["log_odds/kernel"][:, 0])
    for old, now in zip(before, [_values(pieces.lower), _values(pieces.upper)], strict=True):
        assert all((old[name] == now[name]).all() for name in old)
    again = randomise(pieces, part, np.random.default_rng(5))
    assert all((value == _values(again.upper)[name]).all() for name, value in after[1].items())


def test_maps_of_a_random_head_differ_and_those_of_the_same_network_agree(network):
    patches = np.random.default_rng(6).integers(0, 256, (12, 64, 64, 3), np.uint8)
    pieces = cut(network, "inner")
    heads = [randomise(pieces, "head", np.random.default_rng(seed)) for seed in range(20)]
    true, same, *drawn = saliency([pieces, pieces, *heads], patches, PLAIN)
    names = pd.DataFrame({"patch_id": [f"p{i}" for i in range(12)], "slide": ["a", "b", "c"] * 4})
    drawn_maps = {("whole", 0): same} | {("head", number): maps for number, maps in enumerate(drawn)}
    table = sanity_table(true, drawn_maps, names)
    means = table[table["map"] == "last"].groupby("part")["rank"].mean()
    assert means["whole"] == pytest.approx(1)
    assert means["head"] < 0.5
    assert means["other"] < 0.5
    assert set(table["map"]) == {"last", "inner"}


def test_the_other_patch_is_from_another_slide(network):
    patches = np.random.default_rng(7).integers(0, 256, (4, 32, 32, 3), np.uint8)
    (maps,) = saliency([cut(network, "inner")], patches, PLAIN)
    names = pd.DataFrame({"patch_id": list("pqrs"), "slide": ["a", "a", "a", "b"]})
    table = sanity_table(maps, {}, names).set_index(["map", "patch_id"])
    expected, _ = likeness(maps.last[[0, 1, 2]], maps.last[[3, 3, 3]])
    assert table.loc[("last", ["p", "q", "r"]), "rank"].tolist() == pytest.approx(expected.tolist())


def test_sample_has_both_labels_and_is_spread_over_slides():
    table = pd.DataFrame({"slide": ["a"] * 100 + ["b"] * 100 + ["c"] * 5 + [None] * 3})
    table["label"] = [1] * 100 + [0] * 100 + [1, 0, 1, 0, 1] + [0] * 3
    rows = choose_sample(table, 40, seed=0)
    some = table.iloc[rows]
    assert (rows == np.sort(rows)).all()
    assert some.label.value_counts().to_dict() == {0: 20, 1: 20}
    assert some[some.label == 1].slide.value_counts().to_dict() == {"a": 17, "c": 3}
    assert some[some.label == 0].slide.fillna("none").value_counts().to_dict() == {"b": 15, "c": 2, "none": 3}
    assert (rows == choose_sample(table, 40, seed=0)).all()
    assert (rows != choose_sample(table, 40, seed=1)).any()
    assert len(spread_over_slides(table, np.empty(0, int), 5, seed=0)) == 0


def test_network_with_another_end_is_refused():
    keras = load_keras()
    start = keras.Input((8, 8, 3))
    flat = keras.Model(start, keras.layers.Dense(1)(keras.layers.Flatten()(start)))
    with pytest.raises(ValueError, match=r"must end in a global average and one dense layer; got Flatten, Dense\."):
        cut(flat, None)
    with pytest.raises(ValueError, match="part must be one of head, top, whole; got 'tail'"):
        randomise(cut(_network(), "inner"), "tail", np.random.default_rng(0))


def test_stored_network_is_opened_and_agrees_with_its_predictions(tmp_path, patches):
    settings = CnnSettings(backbone="efficientnet-lite0", weights="random", size=64, trained="top")
    trainable = TrainablePart(settings, (64, 64))
    rng = np.random.default_rng(8)
    values = trainable.model(np.zeros(1280), np.ones(1280)).get_weights()
    values[-2] = rng.normal(0, 0.1, values[-2].shape)
    backend = load_keras().backend.backend()
    engine = Engine("keras", backend, "float32", False)
    compute = store_cnn(trainable.whole(values, np.zeros(1280), np.ones(1280)), settings, (64, 64), engine, tmp_path)
    network, stored = open_network(tmp_path)
    assert stored == settings
    layer = inner_layer(stored)
    assert layer == "block10_add"
    (maps,) = saliency([cut(network, layer)], patches, stored)
    np.testing.assert_allclose(maps.last.mean(axis=(1, 2)), compute(patches)[:, 0], rtol=1e-3, atol=1e-4)
    assert maps.last.shape == (3, 2, 2)
    assert maps.inner is not None
    assert maps.inner.shape == (3, 4, 4)


def test_files_that_could_run_code_are_refused(tmp_path, network):
    store_cnn(network, replace(PLAIN, size=32), (32, 32), Engine("keras", "tensorflow", "float32", False), tmp_path)
    keras = load_keras()
    start = keras.Input((8, 8, 3))
    keras.Model(start, keras.layers.Lambda(lambda x: x)(start)).save(tmp_path / KERAS_FILE)
    with pytest.raises(InputError, match="expected known layers of Keras; got"):
        open_network(tmp_path)
    (tmp_path / KERAS_FILE).unlink()
    with pytest.raises(InputError, match=r"expected a fine-tuned network with network\.keras"):
        open_network(tmp_path)
