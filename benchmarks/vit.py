"""Time vision transformers by ONNX Runtime against timm on PyTorch, with the same weights on the same cores.

Run from the repository root: ``python -m benchmarks.vit [images] [workers]``. It needs ``torch``, ``torchvision`` and
``timm`` beside the project's packages. Weights are random. The benchmark first checks that both give the same class
tokens. Then both take turns, and the best of three passes counts, in core-seconds, which other work on the machine
hardly affects. PyTorch uses all workers as threads, with the best of three batch sizes. Ours has one thread per worker.

Sides are 98, 140 and 224 pixels for patches of 14, and the nearest multiples of 16 for patches of 16.
"""

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from histoblend.features.networks.backend import IMAGENET
from histoblend.features.networks.engines import ONNX_BATCH, StoredOnnx
from histoblend.features.networks.onnx_export import export_model
from histoblend.features.networks.recipe import Recipe
from histoblend.features.networks.vit import VitForm, vit
from histoblend.features.networks.vit_weights import load_vit

#: Networks: name in timm, row of docs/backbones.md with the same form, and sides of the images.
NETWORKS = {
    "ViT-S/16": ("vit_small_patch16_224", "kaiko-vit-s16", VitForm(16, 384, 12, 6, 14, 1536), (96, 144, 224)),
    "ViT-B/14": (
        "vit_base_patch14_dinov2", "dinov2-b", VitForm(14, 768, 12, 12, 37, 3072, scaled=True), (98, 140, 224)
    ),
}  # fmt: skip
BATCHES = (1, 8, 32)
Way = Callable[[np.ndarray], np.ndarray]


def timm_network(name: str, folder: Path):
    """Return a network of timm with random weights, and the file with them."""
    import timm
    import torch

    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # zeros and ones would hide mistakes
            parameter.add_(0.02 * torch.randn_like(parameter))
    torch.save(network.state_dict(), folder / "weights.pth")
    return network, folder / "weights.pth"


def by_timm(network, threads: int, batch: int) -> Way:
    """Run timm's network in eager mode, on PyTorch's threads."""
    import torch

    torch.set_num_threads(threads)
    mean, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET.offset, IMAGENET.scale))

    def call(images: np.ndarray) -> np.ndarray:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                pixels = torch.from_numpy(images[start : start + batch]).permute(0, 3, 1, 2).float()
                rows.append(network((pixels - mean) / scale).numpy())
        return np.concatenate(rows)

    return call


def by_onnx_runtime(form: VitForm, row: str, weights: Path, side: int, workers: int) -> Way:
    """Export our network with the same weights, as step 3 does, and run it on threads of the program."""
    shape = (side, side)
    model = vit(IMAGENET, shape, False, form=form)
    load_vit(model, weights, form=form)
    path = weights.with_name(f"{side}.onnx")
    export_model(model, shape, str(path))
    network = StoredOnnx(Recipe(row), contents={shape: path.read_bytes()})

    def call(images: np.ndarray) -> np.ndarray:
        blocks = [images[start : start + ONNX_BATCH] for start in range(0, len(images), ONNX_BATCH)]
        with ThreadPoolExecutor(workers) as pool:
            return np.concatenate(list(pool.map(network, blocks))).reshape(len(images), -1)

    return call


def main(count: int = 32, workers: int = 1) -> None:
    """Check that both agree, then print images per core-second and their ratio."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "timm")):
        print("left out: it needs torch, torchvision and timm")
        return
    for name, (model, row, form, sides) in NETWORKS.items():
        with tempfile.TemporaryDirectory() as folder:
            network, weights = timm_network(model, Path(folder))
            for side in sides:
                images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
                ours = by_onnx_runtime(replace(form, antialias=True), row, weights, side, workers)
                ways = {f"timm, batch {batch}": by_timm(network, workers, batch) for batch in BATCHES}
                expected, values = ways["timm, batch 8"](images[:8]), ours(images[:8])
                gap = np.abs(values - expected).max() / np.abs(expected).max()
                assert gap < 1e-4, f"{name} at {side} px differs by {gap:.2g}"
                best = dict.fromkeys([*ways, "ours"], np.inf)
                for _ in range(3):
                    for way, run in [*ways.items(), ("ours", ours)]:
                        start = time.process_time()
                        run(images)
                        best[way] = min(best[way], time.process_time() - start)
                fastest = min(ways, key=best.__getitem__)
                words = f"{fastest} {count / best[fastest]:7.1f}; ratio {best[fastest] / best['ours']:.2f}"
                speeds = f"{count / best['ours']:5.1f} images per core-second; {words}"
                print(f"{name} at {side} px: {speeds}; outputs agree to {gap:.0e}", flush=True)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
