"""Record tiny vision transformers by timm and Hugging Face, with their outputs, and the names of the real ones.

Run once, outside the project's environment::

    pip install torch timm transformers safetensors
    python -m tests.oracles.record_vits tests/fixtures/vits

It writes random checkpoints as the libraries save them, ``outputs.npz`` with what the libraries compute from them, and
``names.json`` with the names and shapes of the published networks (blocks as ``{i}``). Recorded with torch 2.13.0, timm
1.0.31 and transformers 5.24.0. timm imports torchvision, which must match PyTorch's build; nothing here needs it, so
that it is replaced by empty modules.
"""

import importlib.abc
import importlib.machinery
import json
import re
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

#: Height and width: the native size, and one that shrinks positions along one side and enlarges them along the other.
SIZES = ((32, 32), (24, 56))

_TINY = {"patch": 8, "width": 24, "depth": 2, "heads": 2, "grid": 4}
#: Form of each tiny network (see VitForm), by the name of its file.
FAMILIES = {
    "timm-plain.safetensors": {**_TINY, "hidden": 96},
    "timm-scaled.bin": {**_TINY, "hidden": 96, "scaled": True},
    "timm-unbiased.safetensors": {**_TINY, "hidden": 96, "biased": False, "output": "mean"},
    "timm-registers.safetensors": {**_TINY, "hidden": 64, "registers": 3, "swiglu": True, "scaled": True},
    "timm-placed-registers.safetensors": {
        **_TINY, "hidden": 64, "registers": 3, "swiglu": True, "scaled": True, "output": "both",
    },
    "meta-registers.pt": {**_TINY, "hidden": 64, "registers": 3, "swiglu": True, "scaled": True},
    "hf-vit.safetensors": {**_TINY, "hidden": 48, "antialias": False},
    "hf-dinov2.safetensors": {
        **_TINY, "hidden": 64, "swiglu": True, "scaled": True, "antialias": False, "output": "both",
    },
    "hf-registers.safetensors": {**_TINY, "hidden": 96, "registers": 3, "scaled": True},
}  # fmt: skip


def images(size):
    """Two random uint8 images (2, height, width, 3)."""
    return np.random.default_rng(7).integers(0, 256, (2, *size, 3), dtype=np.uint8)


class _Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import torchvision and everything below it as modules in which every name exists."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = mock.MagicMock(name=spec.name, __path__=[], __spec__=spec)
        module.ops.misc.FrozenBatchNorm2d = type("FrozenBatchNorm2d", (), {})
        return module

    def exec_module(self, module):
        pass


def _fill(model, torch):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2 + (1 if "norm" in name else 0))
    return model.eval()


def _timm_model(timm, torch, form):
    options = {}
    if form.get("swiglu"):
        options = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU}
    return timm.models.vision_transformer.VisionTransformer(
        img_size=form["grid"] * form["patch"], patch_size=form["patch"], embed_dim=form["width"], depth=form["depth"],
        num_heads=form["heads"], mlp_ratio=form["hidden"] * (2 if form.get("swiglu") else 1) / form["width"],
        qkv_bias=form.get("biased", True), init_values=1.0 if form.get("scaled") else None, num_classes=0,
        reg_tokens=form.get("registers", 0), dynamic_img_size=True, **options, **form.get("options", {}),
    )  # fmt: skip


def _hf_model(transformers, kind, form):
    options = {"num_register_tokens": form["registers"]} if form.get("registers") else {}
    config = getattr(transformers, f"{kind}Config")(
        image_size=form["grid"] * form["patch"], patch_size=form["patch"], hidden_size=form["width"],
        num_hidden_layers=form["depth"], num_attention_heads=form["heads"], intermediate_size=form["hidden"],
        use_swiglu_ffn=form.get("swiglu", False), layer_norm_eps=1e-6, **options,
    )  # fmt: skip
    return getattr(transformers, f"{kind}Model")(config)


def _save_hf(model, path):
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        path.write_bytes(Path(folder, "model.safetensors").read_bytes())


def _as_meta(state):
    """timm's arrays by the names of Meta's code, with a position for the class token."""
    renamed = {
        re.sub(r"mlp\.fc1", "mlp.w12", re.sub(r"mlp\.fc2", "mlp.w3", name)): value.clone()
        for name, value in state.items()
        if name not in ("reg_token", "pos_embed")
    }
    renamed |= {"register_tokens": state["reg_token"].clone(), "mask_token": state["norm.weight"][None].clone()}
    first = state["cls_token"] * 0.5
    renamed["cls_token"] = state["cls_token"] - first
    renamed["pos_embed"] = first.new_tensor(np.concatenate([first, state["pos_embed"]], axis=1))
    return renamed


def _tokens(model, pixels, name):
    """Normalised tokens (n, tokens, width) of a network."""
    if name.startswith("hf-vit"):
        return model(pixels, interpolate_pos_encoding=True).last_hidden_state
    return model(pixels).last_hidden_state if name.startswith("hf") else model.forward_features(pixels)


def record(folder, torch, timm, transformers):
    """Write the tiny checkpoints and ``outputs.npz``."""
    from safetensors.torch import save_file

    outputs = {}
    for name, form in FAMILIES.items():
        registers = form.get("registers", 0)
        kinds = {"hf-vit": "ViT", "hf-dinov2": "Dinov2", "hf-registers": "Dinov2WithRegisters"}
        path = folder / name
        if kind := kinds.get(path.stem):
            model = _fill(_hf_model(transformers, kind, form), torch)
            _save_hf(model, path)
        else:
            options = {"no_embed_class": registers > 0 and "placed" not in name}
            model = _fill(_timm_model(timm, torch, {**form, "options": options}), torch)
            state = model.state_dict()
            if path.suffix == ".safetensors":
                save_file({key: value.contiguous() for key, value in state.items()}, path)
            else:
                torch.save(_as_meta(state) if name.startswith("meta") else state, path)
        for size in SIZES:
            pixels = torch.from_numpy(images(size).astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1)
            with torch.no_grad():
                tokens = _tokens(model, pixels, name).numpy()
            first, rest = tokens[:, 0], tokens[:, 1 + registers :].mean(1)
            chosen = {"class": [first], "mean": [rest], "both": [first, rest]}[form.get("output", "class")]
            outputs[f"{path.stem}-{size[0]}x{size[1]}"] = np.concatenate(chosen, axis=1)
    np.savez_compressed(folder / "outputs.npz", **outputs)


#: Published networks: how their authors' instructions build them, and whether Hugging Face saves them.
_GIANT = {"patch": 14, "width": 1536, "heads": 24, "hidden": 4096, "swiglu": True, "scaled": True}
_PLAIN = {"no_embed_class": False}
_APART = {"no_embed_class": True}


def _size(width, depth, heads, **rest):
    return {"width": width, "depth": depth, "heads": heads, "hidden": 4 * width, **rest}


_SMALL, _BASE, _LARGE = (384, 12, 6), (768, 12, 12), (1024, 24, 16)
PUBLISHED = {
    "hibou-b": ("Dinov2WithRegisters", _size(*_BASE, patch=14, grid=16, registers=4, swiglu=True)),
    "hibou-l": ("Dinov2WithRegisters", _size(*_LARGE, patch=14, grid=16, registers=4, swiglu=True)),
    "h-optimus-0": ("timm", {**_GIANT, "depth": 40, "grid": 16, "registers": 4, "options": _APART}),
    "h0-mini": (
        "timm",
        _size(*_BASE, patch=14, grid=16, registers=4, scaled=True, swiglu=True, options=_APART) | {"hidden": 2048},
    ),
    "midnight-12k": ("Dinov2", {**_GIANT, "depth": 40, "grid": 37}),
    "openmidnight": ("meta", {**_GIANT, "depth": 40, "grid": 16, "registers": 4, "options": _APART}),
    "uni": ("timm", _size(*_LARGE, patch=16, grid=14, scaled=True, options=_PLAIN)),
    "uni2-h": ("timm", {**_GIANT, "depth": 24, "grid": 16, "registers": 8, "options": _APART}),
    "virchow2": (
        "timm",
        _size(1280, 32, 16, patch=14, grid=16, registers=4, scaled=True, swiglu=True, options=_PLAIN)
        | {"hidden": 3416},
    ),
    "phikon": ("ViT", _size(*_BASE, patch=16, grid=14)),
    "phikon-v2": ("Dinov2", _size(*_LARGE, patch=16, grid=14)),
    "kaiko-vit-s16": ("timm", _size(*_SMALL, patch=16, grid=14, options=_PLAIN)),
    "kaiko-vit-b16": ("timm", _size(*_BASE, patch=16, grid=14, options=_PLAIN)),
    "kaiko-vit-l14": ("timm", _size(*_LARGE, patch=14, grid=37, registers=4, scaled=True, options=_APART)),
    "lunit-vit-s16": ("timm", _size(*_SMALL, patch=16, grid=14, options=_PLAIN)),
    "lunit-vit-s8": ("timm", _size(*_SMALL, patch=8, grid=28, options=_PLAIN)),
    "dinov2-s": ("Dinov2", _size(*_SMALL, patch=14, grid=37)),
    "dinov2-b": ("Dinov2", _size(*_BASE, patch=14, grid=37)),
    "dinov2-l": ("Dinov2", _size(*_LARGE, patch=14, grid=37)),
}


def names(torch, timm, transformers):
    """Names and shapes of the published networks, ``{network: {"depth": …, "arrays": {name: shape}}}``."""
    listed = {}
    for network, (kind, form) in PUBLISHED.items():
        if kind in ("timm", "meta"):
            with torch.device("meta"):
                state = _timm_model(timm, torch, form).state_dict()
            shapes = {name: list(value.shape) for name, value in state.items()}
        else:  # one block of the real width, because names are those of a saved file
            from safetensors import safe_open

            with tempfile.TemporaryDirectory() as folder:
                _save_hf(_hf_model(transformers, kind, {**form, "depth": 1}), Path(folder, "file"))
                with safe_open(Path(folder, "file"), "np") as file:
                    shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        if kind == "meta":
            shapes = {re.sub("mlp.fc1", "mlp.w12", re.sub("mlp.fc2", "mlp.w3", key)): shapes[key] for key in shapes}
            shapes["register_tokens"] = shapes.pop("reg_token")
            shapes["mask_token"] = [1, form["width"]]
            shapes["pos_embed"][1] += 1
        of_blocks = {re.sub(r"(blocks|layer)\.\d+\.", r"\1.{i}.", name): shape for name, shape in shapes.items()}
        assert all(of_blocks[re.sub(r"(blocks|layer)\.\d+\.", r"\1.{i}.", name)] == shapes[name] for name in shapes)
        listed[network] = {"depth": form["depth"], "arrays": dict(sorted(of_blocks.items()))}
    return listed


def main(folder):
    """Write all files."""
    sys.meta_path.insert(0, empty := _Empty())
    import timm
    import torch

    sys.meta_path.remove(empty)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # transformers asks for its version
    import transformers

    record(folder, torch, timm, transformers)
    text = json.dumps(names(torch, timm, transformers), indent=0, separators=(",", ":"))
    (folder / "names.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
