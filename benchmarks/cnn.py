"""How much faster than Keras' plain ``fit`` the small-machine fine-tuning is, and that both train the same network.

Run from the repository's root: ``python -m benchmarks.cnn [backbone] [size] [batches]``. The plain way trains the whole
network on pictures, as a tutorial does. Ours trains what follows the last inner feature map, whose maps are computed
once; batch norms are folded away and depthwise kernels stay. First it is checked that both are the same function before
any training. Then images a second of both are measured in turns, three times, the medians quoted. Computing the maps is
timed as well: the last line spreads it over the trainings of a run with five folds and a refit.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from histoblend.features.networks.engines import choose_engine
from histoblend.models.cnn import CnnSettings, PatchTransform, TrainablePart, lower_network

BATCH = 32
TRAININGS = 6
#: Times that a map is used in an epoch: five trainings on four fifths of the patches and one on all, each of which sets
#: a fifth aside to be stopped on.
USES = (5 * 0.8 + 1) * 0.8


def plain_model(settings: CnnSettings, shape: tuple[int, int]):
    """Return the whole backbone with a new head, every weight learning, compiled as usual."""
    import keras

    trainable = TrainablePart(CnnSettings(**{**vars(settings), "trained": "all", "batch_norm": "trained"}), shape)
    model = trainable.model(np.zeros(trainable.width), np.ones(trainable.width))
    model.compile(
        optimizer=keras.optimizers.AdamW(settings.learning_rate), loss=keras.losses.BinaryCrossentropy(from_logits=True)
    )
    return model


def compiled(trainable: TrainablePart, settings: CnnSettings):
    """Return our trained part with a head, compiled as in training."""
    import keras

    model = trainable.model(np.zeros(trainable.width), np.ones(trainable.width))
    model.compile(
        optimizer=keras.optimizers.AdamW(settings.learning_rate),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        jit_compile=False,
    )
    return model


def check(
    plain, ours, shown: PatchTransform, patches: np.ndarray, pictures: np.ndarray, trainable: TrainablePart
) -> float:
    """Largest difference of the log-odds before any training, relative to the largest."""
    ours.layers[-1].set_weights(plain.layers[-1].get_weights())
    maps = shown(patches).astype(np.float32).reshape(len(patches), *trainable.input_shape)
    expected = np.asarray(plain(pictures, training=False))
    gap = np.abs(np.asarray(ours(maps, training=False)) - expected).max() / np.abs(expected).max()
    if not gap < 0.01:  # maps are kept in half precision
        raise SystemExit(f"the two networks differ before training: {gap:.3g} of the largest log-odds")
    return float(gap)


def main(backbone: str = "efficientnet-lite2", size: int = 192, batches: int = 6) -> None:
    """Print images a second of both ways, and the ratio."""
    settings = CnnSettings(backbone=backbone, size=size, trained="top")
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (BATCH * batches, size, size, 3)).astype(np.uint8)
    labels = rng.integers(0, 2, (len(patches), 1)).astype(np.float32)
    shape = (size, size)
    with tempfile.TemporaryDirectory() as folder:
        trainable = TrainablePart(settings, shape)
        network = lower_network(trainable, choose_engine(), Path(folder))
    shown = PatchTransform(size, "jitter", 0.1, 0, network, turn=0)
    plain, ours = plain_model(settings, shape), compiled(trainable, settings)
    pictures = patches.astype(np.float32)
    gap = check(plain, ours, shown, patches[:8], pictures[:8], trainable)
    print(f"{backbone} at {size} px: log-odds before training agree to {gap:.1e} of the largest")
    maps = shown(patches).astype(np.float32).reshape(len(patches), *trainable.input_shape)
    rates: dict[str, list[float]] = {"plain": [], "ours": []}
    for turn in range(4):  # the first one compiles
        for name, model, inputs in (("plain", plain, pictures), ("ours", ours, maps)):
            started = time.perf_counter()
            model.fit(inputs, labels, batch_size=BATCH, epochs=1, verbose=0)
            if turn:
                rates[name].append(len(patches) / (time.perf_counter() - started))
    slow, fast = (float(np.median(rates[name])) for name in ("plain", "ours"))
    drawn = PatchTransform(size, "jitter", 0.1, 0, network, turn=None)
    mapped = map_rate(drawn, patches)
    print(f"Keras fit, whole network {slow:7.1f} images/s")
    print(f"what follows the maps    {fast:7.1f} images/s   {fast / slow:5.1f} ×")
    print(f"computing the maps       {mapped:7.1f} images/s")
    whole = 1 / (1 / fast + 1 / (mapped * USES))
    print(f"a run of {TRAININGS} trainings       {whole:7.1f} images/s   {whole / slow:5.1f} ×, maps included")


def map_rate(shown: PatchTransform, patches: np.ndarray) -> float:
    """Feature maps a second, on as many threads as there are cores."""
    from joblib import Parallel, cpu_count, delayed

    shown(patches[:8])
    parts = [patches[start : start + 16] for start in range(0, len(patches), 16)]
    started = time.perf_counter()
    Parallel(n_jobs=cpu_count(), prefer="threads")(delayed(shown)(part) for part in parts)
    return len(patches) / (time.perf_counter() - started)


if __name__ == "__main__":
    given = sys.argv[1:]
    main(*given[:1], *(int(argument) for argument in given[1:3]))
