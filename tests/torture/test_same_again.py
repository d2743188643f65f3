"""The same seed gives the same bytes for any number of workers, shard size and hash seed of Python."""

import os

import pytest

from tests.torture.commands import command

pytestmark = pytest.mark.torture
RESULTS = ("1-patches/pixels.npy", "2-features/values.npy", "4-heads/predictions.parquet")
HEADS = {
    "data.n": 240,
    "features.families": ["colour", "lbp"],
    "heads.features": ["colour", "handcrafted", "context"],
    "heads.heads": ["logistic", "xgboost"],
}
NETWORKS = {
    "heads.features": ["colour", "embeddings"],
    "embeddings.backbone": "efficientnet-lite0",
    "embeddings.weights": "random",
    "embeddings.size": [64],
    "cnn.backbone": "efficientnet-lite0",
    "cnn.weights": "random",
    "cnn.size": 32,
    "cnn.epochs": 2,
    "cnn.batch": 16,
    "ensemble.draws": 100,
}
WAYS = [
    ({"engine.workers": 1, "features.shard": 256}, "0"),
    ({"engine.workers": 2, "features.shard": 37}, "1"),
    ({"engine.workers": 3, "features.shard": 1}, "2"),
]


def outcome(step, runs, settings, seed, names):
    # The hash seed changes the order of sets of strings, which must not change results.
    done = command(step, runs, settings=settings, environment={**os.environ, "PYTHONHASHSEED": seed})
    assert done.returncode == 0, done.stderr
    return {name: (runs / "one" / name).read_bytes() for name in names}


@pytest.mark.length
def test_heads_are_the_same_for_any_workers_shards_and_hashing(tmp_path, faults):
    outcomes = [
        outcome("heads", tmp_path / str(number), HEADS | settings, seed, RESULTS)
        for number, (settings, seed) in enumerate(WAYS)
    ]
    for name in RESULTS:
        assert len({result[name] for result in outcomes}) == 1, name
    faults(
        "other workers, shards and hash seeds: features and heads", len(WAYS), len(WAYS), "nothing: identical results"
    )


@pytest.mark.length
def test_networks_are_the_same_for_any_workers_and_shards(tmp_path, faults):
    names = ("3-embeddings/values.npy", "5-cnn/predictions.parquet", "predictions.parquet")
    outcomes = [
        outcome("ensemble", tmp_path / str(number), HEADS | NETWORKS | settings | {
            "embeddings.shard": settings["features.shard"] + 15}, seed, names)
        for number, (settings, seed) in enumerate(WAYS)
    ]  # fmt: skip
    for name in names:
        assert len({result[name] for result in outcomes}) == 1, name
    faults(
        "other workers, shards and hash seeds: embeddings, network, ensemble",
        len(WAYS),
        len(WAYS),
        "nothing: identical results",
    )
