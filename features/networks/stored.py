"""Embedding networks as files that travel: written beside a description, run again without weights or an export."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoblend.data.errors import InputError
from histoblend.features.networks.backbones import find_backbone
from histoblend.features.networks.backend import Shape, load_keras
from histoblend.features.networks.embeddings import EmbeddingCompute, SideBySide
from histoblend.features.networks.engines import KerasNetwork, OnnxNetwork
from histoblend.features.networks.recipe import Recipe, byte_network

if TYPE_CHECKING:
    import keras

#: Name of a network's file where one serves pictures of any shape.
ANY_SHAPE = "any"


@dataclass
class StoredOnnx(OnnxNetwork):
    """A network run by ONNX Runtime from files that were handed over; nothing is exported.

    Parameters
    ----------
    recipe : Recipe
    cache : Path
        Not used.
    contents : mapping from shape to bytes
        ONNX file for pictures of each shape (height, width), under None where one serves all.
    """

    contents: Mapping[Shape | None, bytes] = field(default_factory=dict, repr=False)

    def content(self, shape: Shape | None) -> bytes:
        """Return the ONNX file for pictures of a shape."""
        return _pick(self.contents, shape)


@dataclass
class StoredKeras(KerasNetwork):
    """A network run by Keras from files that were handed over, opened in safe mode.

    Parameters
    ----------
    recipe, precision, batch
        As for :class:`features.networks.engines.KerasNetwork`.
    contents : mapping from shape to bytes
        ``.keras`` file for pictures of each shape (height, width), under None where one serves all.
    """

    contents: Mapping[Shape | None, bytes] = field(default_factory=dict, repr=False)

    def build(self, shape: Shape | None) -> keras.Model:
        """Open the network for pictures of a shape."""
        keras = load_keras()
        # Keras reads from a file only: a folder that nobody else can write, and the bytes that were checked.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "network.keras")
            path.write_bytes(_pick(self.contents, shape))
            return keras.saving.load_model(path, compile=False, safe_mode=True)


def store_networks(compute: EmbeddingCompute | SideBySide, side: int, folder: Path) -> list[dict[str, Any]]:
    """Write the networks behind an embedding into ``folder``.

    Parameters
    ----------
    compute : EmbeddingCompute or SideBySide
    side : int
        Height and width of the patches: what a network is shown that sees them as they are.
    folder : Path
        Made where it is missing.

    Returns
    -------
    list of dict
        Plain values, one entry a backbone, from which :func:`open_networks` makes the embedding again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = compute.parts if isinstance(compute, SideBySide) else (compute,)
    return [_store_one(part, side, folder, number) for number, part in enumerate(parts)]


def _store_one(part: EmbeddingCompute, side: int, folder: Path, number: int) -> dict[str, Any]:
    network, row = part.network, find_backbone(part.network.recipe.backbone)
    recipe = network.recipe
    onnx = isinstance(network, OnnxNetwork)
    shapes: set[Shape | None] = {None} if row.any_size else {(size or side, size or side) for size in part.sizes}
    files = {}
    for shape in sorted(shapes, key=str):
        name = f"{number}-{recipe.label}-{_shape_name(shape)}.{'onnx' if onnx else 'keras'}"
        if isinstance(network, OnnxNetwork):
            (folder / name).write_bytes(network.content(shape))
        else:
            byte_network(recipe, shape, network.precision).save(folder / name)
        files[_shape_name(shape)] = name
    return {
        # Where weights lay on the machine that trained is nobody's business, and they are in the network's file.
        "recipe": asdict(replace(recipe, weights=recipe.weights if recipe.weights in ("imagenet", "random") else "")),
        "preprocessing": {**asdict(row.contract), "input": "0..255 RGB, float32 or uint8; scaled inside the network"},
        "sizes": list(part.sizes),
        "centre": part.centre,
        "d4": part.d4,
        "engine": "onnx" if onnx else "keras",
        "precision": "float32" if isinstance(network, OnnxNetwork) else network.precision,
        "batch": network.batch,
        "width": part.width,
        "files": files,
    }


def open_networks(entries: list[dict[str, Any]], contents: Mapping[str, bytes]) -> EmbeddingCompute | SideBySide:
    """Make an embedding from what :func:`store_networks` returned and wrote.

    Parameters
    ----------
    entries : list of dict
    contents : mapping from str to bytes
        The files, by their name in the folder.

    Raises
    ------
    InputError
        The description is damaged, or names a backbone that this version does not know.
    """
    try:
        parts = tuple(_open_one(entry, contents) for entry in entries)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the bundle's description of its networks cannot be read ({type(error).__name__}: {error}). "
            "Use the version that made it."
        ) from error
    return parts[0] if len(parts) == 1 else SideBySide(parts)


def _open_one(entry: dict[str, Any], contents: Mapping[str, bytes]) -> EmbeddingCompute:
    recipe = Recipe(**entry["recipe"])
    found = {_shape_of(shape): contents[name] for shape, name in entry["files"].items()}
    network: OnnxNetwork | KerasNetwork
    if entry["engine"] == "onnx":
        network = StoredOnnx(recipe, Path(), found)
    else:
        network = StoredKeras(recipe, entry["precision"], int(entry["batch"]), found)
    part = EmbeddingCompute(network, tuple(entry["sizes"]), bool(entry["d4"]), int(entry["centre"]))
    if part.width != entry["width"]:
        raise InputError(
            f"{recipe.backbone}: expected an embedding of {entry['width']} columns; this version makes {part.width}. "
            "Use the version that made the bundle."
        )
    return part


def _pick(contents: Mapping[Shape | None, bytes], shape: Shape | None) -> bytes:
    if shape not in contents:
        known = ", ".join(_shape_name(one) for one in contents)
        raise InputError(
            f"expected pictures of {known} pixels; got {_shape_name(shape)}. Use patches of the same size."
        )
    return contents[shape]


def _shape_name(shape: Shape | None) -> str:
    return f"{shape[0]}x{shape[1]}" if shape else ANY_SHAPE


def _shape_of(name: str) -> Shape | None:
    if name == ANY_SHAPE:
        return None
    height, width = map(int, name.split("x"))
    return height, width
