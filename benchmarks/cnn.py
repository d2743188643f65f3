"""Time fine-tuning on cached feature maps against a plain Keras ``fit`` of the whole network.

Run from the repository root: ``python -m benchmarks.cnn [backbone] [size] [batches]``. The plain way trains the whole
network on images, as a tutorial does. Ours computes the last inner feature maps once and trains the layers after them.
Batch norms are folded into the weights, and depthwise kernels are frozen.

The benchmark first checks that both compute the same function before training. It then measures images per second of
both in turn, three times, and prints the medians. Computing the maps is timed too. The last line spreads that time over
the trainings of a run with five folds and a refit.
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
#: How often each map is used per epoch, over five trainings on four fifths of the patches and one on all patches. Each
#: training holds out a fifth of its patches for early stopping.
USES = (5 * 0.8 + 1) * 0.8


def plain_model(settings: CnnSettings, shape: tuple[int, int]):
    """Return the whole backbone with a new head and all weights trainable, compiled as usual."""
    import keras

    trainable = TrainablePart(CnnSettings(**{**vars(settings), "trained": "all", "batch_norm": "trained"}), shape)
    model = trainable.model(np.zeros(trainable.width), np.ones(trainable.width))
    model.compile(
        optimizer=keras.optimizers.AdamW(settings.learning_rate), loss=keras.losses.BinaryCrossentropy(from_logits=True)
    )
    return model


def compiled(trainable: TrainablePart, settings: CnnSettings):
    """Return our trainable part with a head, compiled as in training."""
    import keras

    model = trainable.model(np.zeros(trainable.width), np.ones(trainable.width))
    model.compile(
        optimizer=keras.optimizers.AdamW(settings.learning_rate),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        jit_compile=False,
    )
    return model


def check(
    plain, ours, transform: PatchTransform, patches: np.ndarray, pictures: np.ndarray, trainable: TrainablePart
) -> float:
    """Largest difference of the log-odds before training, relative to the largest log-odds."""
    ours.layers[-1].set_weights(plain.layers[-1].get_weights())
    maps = transform(patches).astype(np.float32).reshape(len(patches), *trainable.input_shape)
    expected = np.asarray(plain(pictures, training=False))
    gap = np.abs(np.asarray(ours(maps, training=False)) - expected).max() / np.abs(expected).max()
    if not gap < 0.01:  # maps are stored in half precision
        raise SystemExit(
            f"the two networks must agree before training; they differ by {gap:.3g} of the largest log-odds."
        )
    return float(gap)


def main(backbone: str = "efficientnet-lite2", size: int = 192, batches: int = 6) -> None:
    """Print images per second of both ways, and their ratio."""
    settings = CnnSettings(backbone=backbone, size=size, trained="top")
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (BATCH * batches, size, size, 3)).astype(np.uint8)
    labels = rng.integers(0, 2, (len(patches), 1)).astype(np.float32)
    shape = (size, size)
    with tempfile.TemporaryDirectory() as folder:
        trainable = TrainablePart(settings, shape)
        network = lower_network(trainable, choose_engine(), Path(folder))
    transform = PatchTransform(size, "jitter", 0.1, 0, network, turn=0)
    plain, ours = plain_model(settings, shape), compiled(trainable, settings)
    pictures = patches.astype(np.float32)
    gap = check(plain, ours, transform, patches[:8], pictures[:8], trainable)
    print(f"{backbone} at {size} px: log-odds before training agree to {gap:.1e} of the largest")
    maps = transform(patches).astype(np.float32).reshape(len(patches), *trainable.input_shape)
    rates: dict[str, list[float]] = {"plain": [], "ours": []}
    for turn in range(4):  # the first turn compiles
        for name, model, inputs in (("plain", plain, pictures), ("ours", ours, maps)):
            started = time.perf_counter()
            model.fit(inputs, labels, batch_size=BATCH, epochs=1, verbose=0)
            if turn:
                rates[name].append(len(patches) / (time.perf_counter() - started))
    slow, fast = (float(np.median(rates[name])) for name in ("plain", "ours"))
    random_transform = PatchTransform(size, "jitter", 0.1, 0, network, turn=None)
    mapped = map_rate(random_transform, patches)
    print(f"Keras fit, whole network {slow:7.1f} images/s")
    print(f"layers after the maps    {fast:7.1f} images/s   {fast / slow:5.1f} ×")
    print(f"computing the maps       {mapped:7.1f} images/s")
    whole = 1 / (1 / fast + 1 / (mapped * USES))
    print(f"a run of {TRAININGS} trainings       {whole:7.1f} images/s   {whole / slow:5.1f} ×, maps included")


def map_rate(transform: PatchTransform, patches: np.ndarray) -> float:
    """Feature maps per second, with one thread per core."""
    from joblib import Parallel, cpu_count, delayed

    transform(patches[:8])
    blocks = [patches[start : start + 16] for start in range(0, len(patches), 16)]
    started = time.perf_counter()
    Parallel(n_jobs=cpu_count(), prefer="threads")(delayed(transform)(block) for block in blocks)
    return len(patches) / (time.perf_counter() - started)


if __name__ == "__main__":
    given = sys.argv[1:]
    main(*given[:1], *(int(argument) for argument in given[1:3]))
