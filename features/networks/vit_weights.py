"""Weights of vision transformers from ``.safetensors`` and PyTorch files, by the names of timm and Hugging Face.

Neither PyTorch nor code from the file is needed. Names of Hugging Face's ViT and Dinov2 and of Meta's DINOv2 are
translated to timm's. Then every array of the file must have a place in the network, and the other way round.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoblend.features.networks.vit import VitForm
from histoblend.features.networks.weights import CheckpointError, read_checkpoint

if TYPE_CHECKING:
    import keras

SAFETENSORS = ".safetensors"
#: Extensions of files that :func:`load_vit` reads; the last four are PyTorch's.
VIT_SUFFIXES = (SAFETENSORS, ".bin", ".pt", ".pth", ".torch")

#: Largest header of a ``.safetensors`` file: that of the largest supported network has 70 kB.
MAX_HEADER_BYTES = 4 * 2**20
#: Types of numbers that NumPy can read and the networks use.
NUMBERS = {"F16": 2, "F32": 4, "F64": 8}

#: Hugging Face's and Meta's names as timm's. Each pattern must match a whole name.
_TRANSLATIONS = (
    (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.proj.\1"),
    (r"embeddings\.cls_token", "cls_token"),
    (r"register_tokens|embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"layernorm\.(weight|bias)", r"norm.\1"),
    (r"encoder\.layer\.(\d+)\.(?:norm1|layernorm_before)\.(weight|bias)", r"blocks.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.(?:norm2|layernorm_after)\.(weight|bias)", r"blocks.\1.norm2.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)", r"blocks.\1.attn.\2.\3"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
    (
        r"encoder\.layer\.(\d+)\.(?:mlp\.fc1|mlp\.weights_in|intermediate\.dense)\.(weight|bias)",
        r"blocks.\1.mlp.fc1.\2",
    ),
    (r"encoder\.layer\.(\d+)\.(?:mlp\.fc2|mlp\.weights_out|output\.dense)\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
    (r"blocks\.(\d+)\.mlp\.w12\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
    (r"blocks\.(\d+)\.mlp\.w3\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
)
#: Arrays that only pretraining or another output uses.
_UNUSED = re.compile(r"(embeddings\.)?mask_token|pooler\.dense\.(weight|bias)")
_PARTS = ("query", "key", "value")

Shapes = Mapping[str, tuple[int, ...]]


def load_vit(model: keras.Model, path: Path, sha256: str | None = None, *, form: VitForm) -> None:
    """Load a file's weights into a vision transformer.

    Parameters
    ----------
    model : keras.Model
        From :func:`features.networks.vit.vit`.
    path : Path
        File with one of VIT_SUFFIXES.
    sha256 : str, optional
        Expected hexadecimal digest of the file.
    form : VitForm
        That of the model.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, has another digest, or is not exactly the weights of this network.
    """
    if path.suffix.lower() == SAFETENSORS:
        shapes, read = _open_safetensors(path, sha256)
    else:
        arrays = read_checkpoint(path, sha256)
        shapes, read = {name: array.shape for name, array in arrays.items()}, arrays.__getitem__
    try:
        names = place_arrays(form, shapes)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path}: expected the weights of this vision transformer; got: {error} Give its published file, or the "
            "backbone that the file belongs to."
        ) from error
    _assign(model, form, lambda name: np.asarray(read(names[name]), np.float32), set(names))


def place_arrays(form: VitForm, shapes: Shapes) -> dict[str, str]:
    """Return the file's name of each array that a network needs, by timm's name.

    Parameters
    ----------
    form : VitForm
    shapes : mapping from str to tuple of int
        Shape of every array in the file, by its name there.

    Returns
    -------
    dict of str to str

    Raises
    ------
    CheckpointError
        If arrays are missing, left over or of another shape.
    """
    found: dict[str, str] = {}
    for name in shapes:
        if not _UNUSED.fullmatch(name):
            found.setdefault(translate(name), name)
    needed = needed_shapes(form, split="blocks.0.attn.query.weight" in found)
    left = sorted({name for name in shapes if not _UNUSED.fullmatch(name)} - {found[n] for n in found if n in needed})
    missing = sorted(set(needed) - set(found))
    if missing or left:
        raise CheckpointError(f"{_list('missing', missing)}{'; ' * bool(missing and left)}{_list('left over', left)}.")
    for name, shape in needed.items():
        given = tuple(shapes[found[name]])
        if (
            name == "pos_embed"
            and len(given) == 3
            and given[2] == form.width
            and _prefix_positions(form, given[1]) >= 0
        ):
            continue  # another number of positions, which are interpolated
        if given != shape:
            raise CheckpointError(f"{found[name]}: shape must be {shape}; got {given}.")
    return {name: found[name] for name in needed}


def translate(name: str) -> str:
    """Return timm's name of an array, from Hugging Face's or Meta's; other names are returned unchanged."""
    for pattern, replacement in _TRANSLATIONS:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return name


def needed_shapes(form: VitForm, *, split: bool = False) -> dict[str, tuple[int, ...]]:
    """Shape of every array that a network needs, by timm's name; with ``split``, query, key and value are separate."""
    width, hidden = form.width, form.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, 3, form.patch, form.patch),
        "patch_embed.proj.bias": (width,),
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + form.grid**2, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if form.registers:
        shapes["reg_token"] = (1, form.registers, width)
    attention = dict.fromkeys(_PARTS, width) if split else {"qkv": 3 * width}
    for number in range(form.depth):
        block = f"blocks.{number}."
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
        kernels = {f"attn.{part}": (size, width) for part, size in attention.items()}
        kernels |= {"attn.proj": (width, width), "mlp.fc1": (hidden * (1 + form.swiglu), width)}
        kernels |= {"mlp.fc2": (width, hidden)}
        for name, shape in kernels.items():
            shapes[f"{block}{name}.weight"] = shape
            if form.biased or name in ("attn.proj", "mlp.fc1", "mlp.fc2"):
                shapes[f"{block}{name}.bias"] = shape[:1]
        if form.scaled:
            shapes |= {f"{block}ls1.gamma": (width,), f"{block}ls2.gamma": (width,)}
    return shapes


def _list(word: str, names: list[str]) -> str:
    """Say how many names there are, and the first three."""
    if not names:
        return ""
    shown = ", ".join(repr(name[:80]) for name in names[:3])
    return f"{len(names)} {word}, such as {shown}" if len(names) > 3 else f"{word} {shown}"


def _prefix_positions(form: VitForm, count: int) -> int:
    """How many of these positions are of tokens before the patches, if the others are a square; -1 if impossible."""
    for prefix in (1, 0, form.prefix):
        if count > prefix and math.isqrt(count - prefix) ** 2 == count - prefix:
            return prefix
    return -1


def _assign(model: keras.Model, form: VitForm, read: Callable[[str], np.ndarray], names: set[str]) -> None:
    """Copy arrays into the layers, in Keras' order of axes."""

    def dense(name: str, scale: str = "", part: slice = slice(None)) -> list[np.ndarray]:
        factor = read(scale) if scale in names else np.float32(1)
        kernel = (read(f"{name}.weight").T * factor)[:, part]
        return [kernel, (read(f"{name}.bias") * factor)[part]] if f"{name}.bias" in names else [kernel]

    height, width = model.input_shape[1:3]
    kernel, bias = read("patch_embed.proj.weight"), read("patch_embed.proj.bias")
    prefix, positions = _tokens(form, read, (height // form.patch, width // form.patch))
    tokens = [kernel.transpose(2, 3, 1, 0).reshape(-1, form.width), np.concatenate([prefix, positions + bias])]
    model.get_layer("tokens").set_weights(tokens)
    model.get_layer("norm").set_weights([read("norm.weight"), read("norm.bias")])
    for number in range(form.depth):
        block = f"blocks.{number}."
        values = {norm: [read(f"{block}{norm}.weight"), read(f"{block}{norm}.bias")] for norm in ("norm1", "norm2")}
        if f"{block}attn.qkv.weight" in names:
            values["qkv"] = dense(f"{block}attn.qkv")
        else:
            parts = [dense(f"{block}attn.{part}") for part in _PARTS]
            values["qkv"] = [np.concatenate(arrays, axis=-1) for arrays in zip(*parts, strict=True)]
        values |= {"proj": dense(f"{block}attn.proj", f"{block}ls1.gamma")}
        if form.swiglu:
            values["gate"] = dense(f"{block}mlp.fc1", part=slice(form.hidden))
            values["value"] = dense(f"{block}mlp.fc1", part=slice(form.hidden, None))
        else:
            values["fc1"] = dense(f"{block}mlp.fc1")
        values["fc2"] = dense(f"{block}mlp.fc2", f"{block}ls2.gamma")
        for layer, arrays in values.items():
            model.get_layer(f"block{number}_{layer}").set_weights(arrays)


def _tokens(form: VitForm, read: Callable[[str], np.ndarray], grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens before the patches (prefix, width) and positions of the patches (rows * columns, width)."""
    given = read("pos_embed")[0]
    count = _prefix_positions(form, len(given))
    prefix = np.concatenate([read("cls_token")[0], *([read("reg_token")[0]] if form.registers else [])])
    prefix[:count] += given[:count]
    side = math.isqrt(len(given) - count)
    positions = resize_positions(given[count:].reshape(side, side, form.width), grid, antialias=form.antialias)
    return prefix, positions.reshape(-1, form.width)


def resize_positions(positions: np.ndarray, grid: tuple[int, int], *, antialias: bool) -> np.ndarray:
    """Resize learned positions with PyTorch's bicubic interpolation.

    Parameters
    ----------
    positions : ndarray of shape (rows, columns, width), dtype float32
    grid : tuple of int
        New rows and columns.
    antialias : bool
        Whether the kernel is widened for shrinking.

    Returns
    -------
    ndarray of shape (*grid, width), dtype float32

    References
    ----------
    ``torch.nn.functional.interpolate`` with ``mode="bicubic"``: Keys (1981), IEEE TASSP 29(6):1153-1160, with
    a = -0.75, edges repeated; with antialiasing a = -0.5, edges cut off and renormalised.
    """
    if positions.shape[:2] == grid:
        return positions
    down, across = (_cubic(old, new, antialias) for old, new in zip(positions.shape[:2], grid, strict=True))
    resized: np.ndarray = np.einsum("ri,ijc,sj->rsc", down, positions.astype(np.float64), across, optimize=True)
    return resized.astype(np.float32)


def _cubic(old: int, new: int, antialias: bool) -> np.ndarray:
    """Matrix of shape (new, old) that interpolates a line of points."""
    step = old / new
    spread, a = (max(step, 1.0), -0.5) if antialias else (1.0, -0.75)
    centres = (np.arange(new) + 0.5) * step - 0.5
    reach = math.ceil(2 * spread) + 1
    taps = np.floor(centres).astype(int)[:, None] + np.arange(-reach, reach + 1)
    x = np.abs(taps - centres[:, None]) / spread
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    if antialias:
        weights[(taps < 0) | (taps >= old)] = 0.0
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], taps.clip(0, old - 1)), weights)
    return matrix / matrix.sum(axis=1, keepdims=True)


def _open_safetensors(path: Path, sha256: str | None) -> tuple[Shapes, Callable[[str], np.ndarray]]:
    """Return the shapes of a file's arrays and a function that reads one, after checking the header."""
    from safetensors import SafetensorError, safe_open

    shapes = safetensors_shapes(path)
    if sha256 is not None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256:
            raise CheckpointError(f"{path}: sha256 must be {sha256}; got {digest}. Download the file again.")
    try:
        return shapes, safe_open(path, framework="np").get_tensor
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: expected a safetensors file; got: {error}. Download it again.") from error


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the header of a ``.safetensors`` file and check it before anything is allocated.

    Returns
    -------
    dict of str to tuple of int
        Shape of each array, by name.

    Raises
    ------
    CheckpointError
        If the file is missing, of another kind, cut off, or its header is too large or does not describe the file.
    """
    try:
        with path.open("rb") as file:
            total = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            content = file.read(length) if 2 <= length <= min(MAX_HEADER_BYTES, total - 8) else b""
    except OSError as error:
        raise CheckpointError(f"{path}: expected a weights file; got: {error.strerror}.") from error
    if not content:
        raise CheckpointError(
            f"{path}: expected a safetensors file, with a header of at most {MAX_HEADER_BYTES} bytes; got {length} "
            f"bytes in a file of {total}. It is damaged or of another kind: download it again."
        )
    try:
        header = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: expected a safetensors file; its header is not JSON ({error}). Download it again."
        ) from error
    spans, shapes = [(0, 0)], {}
    entries: dict[str, Any] = header if isinstance(header, dict) else {"header": header}
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        kind, begin, end, shape = _entry(entry)
        if not 0 < end - begin == math.prod(shape) * NUMBERS.get(kind, 0):
            raise CheckpointError(
                f"{path}: {name[:80]!r} must be an array of {', '.join(NUMBERS)}; got {entry!r:.80}. Convert the "
                "file, or download it again."
            )
        spans.append((begin, end))
        shapes[name] = shape
    spans.sort()
    held = total - 8 - length
    if any(begin != end for (_, end), (begin, _) in itertools.pairwise(spans)) or spans[-1][1] != held:
        raise CheckpointError(
            f"{path}: expected arrays of {spans[-1][1]} bytes, one after another; the file holds {held}. It is cut off "
            "or damaged: download it again."
        )
    return shapes


def _entry(entry: Any) -> tuple[str, int, int, tuple[int, ...]]:
    """Type, begin, end and shape of an array in a header; an impossible place if these are not counts."""
    try:
        begin, end = entry["data_offsets"]
        shape, kind = tuple(entry["shape"]), str(entry["dtype"])
    except (KeyError, TypeError, ValueError):
        return "", 1, 0, ()
    counts = all(type(count) is int and 0 <= count < 2**48 for count in (begin, end, *shape))
    return (kind, begin, end, shape) if counts and len(shape) <= 8 else ("", 1, 0, ())
