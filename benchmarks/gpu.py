"""Time embeddings, fine-tuning and boosting on a GPU, in shares of the card's limit, and what bfloat16 costs in AUC.

Run from the repository root, with the environment of docs/gpu.md::

    histoblend prepare --config kaggle --data path/to/folder --run mine
    KERAS_BACKEND=torch python -m benchmarks.gpu runs/mine/1-patches

The whole takes less than 10 minutes on one card. ``--patches`` and ``--only`` make it shorter: with few patches it runs
on a CPU too. Without a folder, patches are those of a phantom, whose AUC says nothing.

Speeds are checked before they are measured: a network in bfloat16 must agree with float32, and the way of the pipeline
with a plain loop. Floating-point operations are those of convolutions and matrix products.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks.spread import sample
from histoblend.data.errors import InputError
from histoblend.features.extract import extract_shards
from histoblend.features.networks.backbones import check_shape
from histoblend.features.networks.backend import load_keras
from histoblend.features.networks.embeddings import embedding_compute
from histoblend.features.networks.engines import Engine, choose_engine
from histoblend.features.networks.recipe import Recipe, byte_network, embedding_network
from histoblend.models.cnn import CnnSettings, PatchTransform, TrainablePart
from histoblend.models.finetune import TrainingData, fine_tune, pool
from histoblend.models.heads import boosted
from histoblend.models.heads.boosted import XGBoostHead
from histoblend.models.heads.inner_folds import inner_folds
from histoblend.models.heads.logistic import LogisticHead
from histoblend.models.resampling import auc_draws, percentile_interval

#: Networks alone: backbone, and side of the images. The last has 1.1 billion weights.
NETWORKS = (("efficientnet-lite2", 192), ("dinov2-b", 224), ("h-optimus-0", 224))
LITE, SIDE = "efficientnet-lite2", 192
PARTS = ("limit", "embeddings", "networks", "tuning", "boosting")
SECONDS = 5.0


def rate(run: Callable[[], None], count: int) -> float:
    """Items per second: the best of passes over SECONDS, after a first pass that compiles."""
    run()
    best, end = np.inf, time.perf_counter() + SECONDS
    while best == np.inf or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return count / best


def card_limit(gpu: bool) -> dict[str, float]:
    """Floating-point operations per second of matrix products, by precision."""
    keras = load_keras()
    size, repeats = (8192, 20) if gpu else (1024, 2)
    limits = {}
    for precision in ("float32", "bfloat16"):
        left = keras.ops.cast(keras.random.normal((size, size), seed=0), precision)

        def multiply(left=left) -> None:
            product = left
            for _ in range(repeats):
                product = keras.ops.matmul(left, product)
            float(keras.ops.convert_to_numpy(keras.ops.cast(product[0, 0], "float32")))

        limits[precision] = rate(multiply, repeats * 2 * size**3)
        print(f"matrix products, {precision:9s} {limits[precision] / 1e12:8.1f} TFLOP/s")
    return limits


def operations(model) -> float:
    """Floating-point operations per image of a network, by its layers' kernels and matrix products."""
    total = 0.0
    for layer in model._flatten_layers():
        kernel = getattr(layer, "kernel", None)
        if kernel is not None and not hasattr(layer, "layers"):
            shape = tuple(kernel.shape)
            weights = np.prod(shape[:3]) if type(layer).__name__ == "DepthwiseConv2D" else np.prod(shape)
            total += 2 * weights * np.prod(layer.output.shape[1:-1])
        elif type(layer).__name__ == "Matmul":  # attention
            total += 2 * np.prod(layer.output.shape[1:]) * layer.input[0].shape[-1]
    return float(total)


def time_embeddings(given: dict[str, np.ndarray], engine: Engine, workers: int) -> None:
    """Patches to embeddings as step 3 does it, and the AUC that bfloat16 costs."""
    patches, values = given["patches"], {}
    for precision in ("float32", "bfloat16"):
        compute = embedding_compute(LITE, size=SIDE, stages=2, engine="keras", precision=precision)

        def run(compute=compute, precision=precision) -> None:
            with tempfile.TemporaryDirectory() as folder:
                target, width = Path(folder, "embeddings"), compute.width
                options = {"shard_size": 256, "workers": engine.feeders(workers), "prefer": "threads"}
                values[precision] = np.array(extract_shards(compute, patches, target, width, **options))

        speed = rate(run, len(patches))
        plain = compute(patches[:64])
        gap = np.abs(values[precision][:64] - plain).max() / np.abs(plain).max()
        assert gap < (1e-4 if precision == "float32" else 0.05), f"the pipeline differs by {gap:.2g}"
        print(f"{LITE} at {SIDE} px, patches to embeddings, {precision:9s} {speed:8.0f} images/s")
    scores = np.column_stack([out_of_fold(values[precision], given) for precision in ("float32", "bfloat16")])
    exact, half = (roc_auc_score(given["labels"], column) for column in scores.T)
    draws = auc_draws(given["labels"], scores, given["slides"], draws=2000, seed=0)
    low, high = percentile_interval(draws[:, 1] - draws[:, 0])
    print(f"AUC of logistic regression {exact:.4f}; in bfloat16 {half - exact:+.4f} ({low:+.4f} to {high:+.4f})")


def out_of_fold(table: np.ndarray, given: dict[str, np.ndarray]) -> np.ndarray:
    """Probabilities for every patch by a head that has not seen its slide."""
    labels, slides = given["labels"], given["slides"]
    scores = np.full(len(labels), np.nan)
    for inside, outside in inner_folds(labels, slides, 5, 0):
        head = LogisticHead(seed=0).fit(table[inside], labels[inside], slides[inside])
        scores[outside] = head.predict_proba(table[outside])[:, 1]
    return scores


def time_networks(gpu: bool, limits: dict[str, float]) -> None:
    """Networks alone, in both precisions. On a CPU the largest one is left out."""
    for name, side in NETWORKS if gpu else NETWORKS[:2]:
        try:
            check_shape(name, (side, side))
        except InputError as error:
            print(f"{name}: left out ({str(error)[:60]} …)")
            continue
        images = np.random.default_rng(0).integers(0, 256, (256 if gpu else 8, side, side, 3), dtype=np.uint8)
        first, second = (time_network(name, images, precision, gpu, limits) for precision in ("float32", "bfloat16"))
        agreement = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
        assert agreement > 0.98, f"{name}: bfloat16 and float32 agree to {agreement:.3f}"


def time_network(name: str, images: np.ndarray, precision: str, gpu: bool, limits: dict[str, float]) -> np.ndarray:
    """One network with random weights on images that are ready, as it is and compiled; return its outputs."""
    keras = load_keras()
    side = images.shape[1]
    model = byte_network(Recipe(name, "random"), (side, side), precision)
    outputs = np.asarray(model.predict_on_batch(images), np.float64)
    for compiled in (False, True) if gpu else (False,):  # XLA slows depthwise convolutions on a CPU
        model.compile(jit_compile=compiled)
        words = f"{name} at {side} px, network alone, {precision}{', compiled' if compiled else ''}"
        try:
            speed = rate(lambda: model.predict_on_batch(images), len(images))
        except Exception as error:  # compilers fail in many ways
            print(f"{words}: failed ({keras.backend.backend()}: {type(error).__name__})")
            continue
        achieved = speed * operations(model)
        share = f"{achieved / limits[precision]:6.1%} of the limit" if limits else ""
        print(f"{words:66s} {speed:8.1f} images/s {achieved / 1e12:7.2f} TFLOP/s {share}")
    return outputs.ravel()


def time_tuning(given: dict[str, np.ndarray], batch: int, precision: str, limits: dict[str, float]) -> None:
    """One epoch of fine-tuning all layers, with its augmentation."""
    settings = CnnSettings(LITE, size=SIDE, trained="all", epochs=1, batch=batch, precision=precision)
    trainable = TrainablePart(settings, (SIDE, SIDE), settings.precision)
    augmented, plain = (PatchTransform(SIDE, "jitter", 0.1, 0, None, turn) for turn in (None, 0))
    patches = given["patches"]
    with tempfile.TemporaryDirectory() as folder:
        pooled = np.stack([pool(trainable, lambda rows: plain(patches[rows]), np.arange(len(patches)))])
        data = TrainingData(
            lambda rows, epoch: augmented(patches[rows]), lambda rows, turn: plain(patches[rows]),
            pooled, given["labels"], given["slides"], 1,
        )  # fmt: skip
        tuned, _ = fine_tune(settings, trainable, data, np.arange(len(patches)), Path(folder), exactly=1)
    speed = float(tuned.history["images_per_s"].iloc[-1])
    # A step takes the operations of a prediction three times: forward, and for two gradients.
    achieved = 3 * speed * operations(embedding_network(Recipe(LITE, "random"), (SIDE, SIDE)))
    share = f"{achieved / limits['bfloat16']:6.2%} of the bfloat16 limit" if limits else ""
    words = f"fine-tuning all layers of {LITE}, batch {batch}, {precision}, compilation included"
    print(f"{words} {speed:8.1f} images/s {share}")


def time_boosting(rows: int) -> None:
    """One booster on a large table, on the CPU and on the GPU."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, 1024)).astype(np.float32)
    y = (X[:, :20].sum(axis=1) + rng.standard_normal(rows) * 4 > 0).astype(int)
    device, least = boosted.device_for(X.shape), boosted.GPU_FROM
    seconds, scores = {}, {}
    for name in ("cpu", device) if device != "cpu" else ("cpu",):
        boosted.GPU_FROM = least if name == device else X.size + 1
        start = time.perf_counter()
        head = XGBoostHead(trees=100, fewest=100).fit(X, y)
        seconds[name] = time.perf_counter() - start
        scores[name] = head.predict_proba(X[:2000])[:, 1]
        print(f"XGBoost, 3 boosters of 100 trees, {rows} × 1,024, {name}: {seconds[name]:.1f} s")
    boosted.GPU_FROM = least
    if device != "cpu":
        correlation = np.corrcoef(scores["cpu"], scores[device])[0, 1]
        assert correlation > 0.95, f"probabilities of both devices correlate to {correlation:.3f}"
        print(f"XGBoost on the GPU: {seconds['cpu'] / seconds[device]:.1f} × the speed of one core")


def main() -> None:
    """Measure all parts, or some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="a run's 1-patches folder (default: a phantom)")
    parser.add_argument("--patches", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=30_000, help="rows of the table for XGBoost")
    parser.add_argument("--only", choices=PARTS, nargs="*", default=PARTS)
    options = parser.parse_args()
    from joblib import cpu_count

    started = time.perf_counter()
    engine = choose_engine("keras")
    print(f"{engine}, {engine.reason()}; {options.patches} patches of {options.data or 'a phantom'}")
    if not engine.gpu and len(sys.argv) == 1:
        print("left out: it needs a GPU; give a folder or --patches to run it on a CPU")
        return
    limits = card_limit(engine.gpu) if "limit" in options.only else {}
    given = sample(options.data, options.patches)
    if "embeddings" in options.only:
        time_embeddings(given, engine, cpu_count())
    if "networks" in options.only:
        time_networks(engine.gpu, limits)
    if "tuning" in options.only:
        for batch in (32, 128):
            time_tuning(given, batch, engine.precision, limits)
    if "boosting" in options.only:
        time_boosting(options.rows)
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
