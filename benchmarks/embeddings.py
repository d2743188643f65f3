"""How fast are embeddings, and which split of two threads is best? EfficientNet-Lite0, uint8 patches to float32 rows.

Usage: ``python -m benchmarks.embeddings [patches] [workers]`` from the repository's root. The answers of every way are
compared first. Rates are the best of three, the ways taking turns, so that a busy machine disturbs all alike.
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from features.embeddings import DEFAULT_CACHE, Recipe, embedding_compute, embedding_network, export_onnx

Way = Callable[[np.ndarray], np.ndarray]


def threaded(compute: Way, workers: int) -> Way:
    """Call compute on slices of 64 patches from several threads."""

    def call(patches: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor(workers) as pool:
            return np.concatenate(list(pool.map(compute, np.array_split(patches, max(1, len(patches) // 64)))))

    return call


def bare_session(path: str, threads: int, batch: int) -> Way:
    """ONNX Runtime alone, with its own threads, on batches of a fixed size."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def call(patches: np.ndarray) -> np.ndarray:
        starts = range(0, len(patches), batch)
        return np.concatenate(
            [session.run(None, {"images": patches[i : i + batch].astype(np.float32)})[0] for i in starts]
        )

    return call


def main(count: int = 512, workers: int = 2) -> None:
    """Check that all ways agree, then time them in turns."""
    patches = np.random.default_rng(0).integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
    compute = embedding_compute(engine="onnx")
    path = str(export_onnx(Recipe(), None, DEFAULT_CACHE.absolute()))
    model = embedding_network(Recipe())
    ways: dict[str, Way] = {
        "Keras predict, batch 64": lambda x: model.predict(x.astype(np.float32), batch_size=64, verbose=0),
        "ours, 1 worker × 1 thread": compute,
        f"ours, {workers} workers × 1 thread": threaded(compute, workers),
        f"ONNX Runtime, 1 worker × {workers} threads, batch 8": bare_session(path, workers, 8),
        f"ONNX Runtime, 1 worker × {workers} threads, batch 64": bare_session(path, workers, 64),
    }
    expected = compute(patches)
    for name, way in ways.items():
        gap = np.abs(way(patches) - expected).max()
        assert gap <= 1e-4, f"{name} differs by {gap:.2g}"
    best = dict.fromkeys(ways, np.inf)
    for _ in range(3):
        for name, way in ways.items():
            start = time.perf_counter()
            way(patches)
            best[name] = min(best[name], time.perf_counter() - start)
    slowest = best["Keras predict, batch 64"]
    for name, seconds in best.items():
        print(f"{name:48s} {count / seconds:7.0f} images/s   {slowest / seconds:5.2f} × Keras")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
