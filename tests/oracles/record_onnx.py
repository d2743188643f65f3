"""Record tiny networks that PyTorch and Keras export to ONNX, with their outputs, as a reference for ONNX backbones.

Run once, outside the project's environment for PyTorch, inside it for Keras::

    pip install torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2
    python tests/oracles/record_onnx.py torch tests/fixtures/onnx
    .venv/bin/python tests/oracles/record_onnx.py keras tests/fixtures/onnx

Weights are random. The outputs are those of PyTorch, for `images` scaled by `MEAN` and `STD`, and of Keras, unscaled.
"""

import sys
import warnings
from pathlib import Path

import numpy as np

SIDE = 32
MEAN, STD = (0.7, 0.6, 0.7), (0.2, 0.3, 0.2)


def images(count=9, side=SIDE):
    """Random RGB images, (count, side, side, 3) uint8."""
    return np.random.default_rng(5).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def torch_networks():
    """A vision transformer with a class token and a register, and a convolutional network, both untrained."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            self.heads = heads

        def forward(self, x):
            count, tokens, width = x.shape
            qkv = self.qkv(self.first(x)).reshape(count, tokens, 3, self.heads, width // self.heads)
            query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            x = x + self.out(
                nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(x.shape)
            )
            return x + self.mlp(self.second(x))

    class Transformer(nn.Module):
        def __init__(self, width=16, heads=2, patch=8):
            super().__init__()
            self.patches = nn.Conv2d(3, width, patch, patch)
            self.prefix = nn.Parameter(torch.randn(1, 2, width))
            self.places = nn.Parameter(torch.randn(1, (SIDE // patch) ** 2, width))
            self.blocks = nn.Sequential(Block(width, heads), Block(width, heads))
            self.norm = nn.LayerNorm(width)

        def forward(self, pixel_values):
            x = self.patches(pixel_values).flatten(2).transpose(1, 2) + self.places
            x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], dim=1)
            tokens = self.norm(self.blocks(x))
            return tokens, tokens[:, 0]

    class Convolutional(nn.Module):
        def __init__(self, width=8):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, width, 5, 4, 2, bias=False), nn.BatchNorm2d(width), nn.SiLU())
            self.body = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.Hardswish(), nn.Conv2d(width, width, 1))

        def forward(self, images):
            maps = self.stem(images)
            return maps + self.body(maps)

    torch.manual_seed(0)
    return {"vit": Transformer().eval(), "conv": Convolutional().eval()}


#: Files of PyTorch: network, whether the new exporter makes it, which dimensions are free, and further options.
EXPORTS = {
    "vit-script-free": ("vit", False, "batch", {"opset_version": 17}),
    "vit-script-fixed": ("vit", False, "", {"opset_version": 14}),
    "vit-dynamo-free": ("vit", True, "batch", {"external_data": False}),
    "vit-dynamo-sidecar": ("vit", True, "", {"external_data": True}),
    "conv-script-any": ("conv", False, "all", {"opset_version": 17}),
    "conv-dynamo-any": ("conv", True, "all", {"external_data": False}),
}


def record_torch(folder):
    """Write the files that PyTorch's two exporters make, and the outputs."""
    import torch

    networks = torch_networks()
    inputs = torch.from_numpy(((images() / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32))
    with torch.inference_mode():
        tokens, first = networks["vit"](inputs)
        outputs = {"tokens": tokens.numpy(), "class": first.numpy(), "maps": networks["conv"](inputs).numpy()}
    np.savez_compressed(folder / "torch-outputs.npz", **outputs)
    for name, (kind, dynamo, free, options) in EXPORTS.items():
        network = networks[kind]
        names = ["pixel_values"] if kind == "vit" else ["images"]
        axes = {"": {}, "batch": {0: "n"}, "all": {0: "n", 2: "height", 3: "width"}}[free]
        dynamic = {}
        if axes and dynamo:
            dynamic = {"dynamic_shapes": [dict.fromkeys(axes, torch.export.Dim.DYNAMIC)]}
        elif axes:
            dynamic = {"dynamic_axes": {names[0]: axes}}
        outputs = ["last_hidden_state", "pooler_output"] if kind == "vit" else ["maps"]
        example = torch.zeros(2 if axes else 1, 3, SIDE, SIDE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = folder / f"{name}.onnx"
            torch.onnx.export(
                network, (example,), path, dynamo=dynamo, input_names=names, output_names=outputs, **options, **dynamic
            )
        without_traces(path)


def without_traces(path):
    """Drop the paths and lines of source code that the new exporter records for every node."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        del part.metadata_props[:]
    path.write_bytes(model.SerializeToString())


def record_keras(folder):
    """Write the file that Keras makes of a network that scales 0..255 itself, and the outputs."""
    import keras

    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.Rescaling(1 / 128, -1)(inputs)
    x = keras.layers.Conv2D(8, 3, 4, activation="swish", padding="same")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", activation="relu")(x)
    network = keras.Model(inputs, x)
    outputs = np.asarray(network(images().astype(np.float32)))
    network.export(folder / "keras-conv.onnx", format="onnx", verbose=False)
    np.savez_compressed(folder / "keras-outputs.npz", maps=outputs)


if __name__ == "__main__":
    Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
    {"torch": record_torch, "keras": record_keras}[sys.argv[1]](Path(sys.argv[2]))
