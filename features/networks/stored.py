"""Store embedding networks with a description, to run them elsewhere without weights files or an export."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoblend.data.errors import InputError
from histoblend.features.networks.backend import Shape, load_keras
from histoblend.features.networks.embeddings import ConcatenatedEmbeddings, EmbeddingCompute
from histoblend.features.networks.engines import (
    ANY_SHAPE,
    KerasNetwork,
    OnnxNetwork,
    StoredOnnx,
    content_for,
    shape_name,
)
from histoblend.features.networks.keras_checks import check_keras, check_size
from histoblend.features.networks.recipe import MAX_WIDTH, FileRecipe, Recipe, byte_network

if TYPE_CHECKING:
    import keras

#: Largest number in the scaling of a user's network: that of float32.
MAX_SCALING = 3.4e38


@dataclass
class StoredKeras(KerasNetwork):
    """A network run by Keras from given ``.keras`` files, checked and opened in safe mode.

    Parameters
    ----------
    recipe, precision, batch
        See :class:`features.networks.engines.KerasNetwork`.
    contents : mapping from shape to bytes
        ``.keras`` file for images of each shape (height, width); under None if one file accepts all shapes.
    """

    contents: Mapping[Shape | None, bytes] = field(default_factory=dict, repr=False)

    def build(self, shape: Shape | None) -> keras.Model:
        """Open the network for images of a shape."""
        keras = load_keras()
        # Keras can only read files: write the checked bytes to a folder that no other user can write to.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "network.keras")
            content = content_for(self.contents, shape)
            check_keras("the .keras file", content)
            check_size("the .keras file", content)
            path.write_bytes(content)
            return keras.saving.load_model(path, compile=False, safe_mode=True)


def store_networks(compute: EmbeddingCompute | ConcatenatedEmbeddings, side: int, folder: Path) -> list[dict[str, Any]]:
    """Write the networks of an embedding to ``folder``.

    Parameters
    ----------
    compute : EmbeddingCompute or ConcatenatedEmbeddings
    side : int
        Height and width of the patches: the input size of networks without resizing.
    folder : Path
        Created if missing.

    Returns
    -------
    list of dict
        JSON-compatible description, one entry per backbone, for :func:`open_networks`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = compute.parts if isinstance(compute, ConcatenatedEmbeddings) else (compute,)
    return [_store_one(part, side, folder, number) for number, part in enumerate(parts)]


def _store_one(part: EmbeddingCompute, side: int, folder: Path, number: int) -> dict[str, Any]:
    network, recipe = part.network, part.network.recipe
    onnx = isinstance(network, OnnxNetwork)
    shapes: set[Shape | None] = {None} if recipe.any_size else {(size or side, size or side) for size in part.sizes}
    files = {}
    for shape in sorted(shapes, key=str):
        name = f"{number}-{recipe.label}-{shape_name(shape)}.{'onnx' if onnx else 'keras'}"
        if isinstance(network, OnnxNetwork):
            (folder / name).write_bytes(network.content(shape))
        else:
            byte_network(network.recipe, shape, network.precision).save(folder / name)
        files[shape_name(shape)] = name
    if isinstance(recipe, Recipe) and recipe.weights not in ("imagenet", "random"):
        recipe = replace(recipe, weights="")  # paths of the training machine stay private; the file has the weights
    return {
        "recipe": asdict(recipe),
        "preprocessing": {
            **asdict(recipe.contract),
            "input": "0..255 RGB, float32 or uint8; scaled inside the network",
        },
        "sizes": list(part.sizes),
        "centre": part.centre,
        "d4": part.d4,
        "engine": "onnx" if onnx else "keras",
        "precision": network.precision,
        "batch": network.batch,
        "width": part.width,
        "files": files,
    }


def open_networks(
    entries: list[dict[str, Any]], contents: Mapping[str, bytes]
) -> EmbeddingCompute | ConcatenatedEmbeddings:
    """Restore an embedding from the description and files of :func:`store_networks`.

    Parameters
    ----------
    entries : list of dict
    contents : mapping from str to bytes
        Content of the files, by their name in the folder.

    Raises
    ------
    InputError
        If the description is damaged, or names a backbone unknown to this version.
    """
    try:
        parts = tuple(_open_one(entry, contents) for entry in entries)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the bundle's description of its networks cannot be read ({type(error).__name__}: {error}). "
            "Use the version that created it."
        ) from error
    return parts[0] if len(parts) == 1 else ConcatenatedEmbeddings(parts)


def _open_one(entry: dict[str, Any], contents: Mapping[str, bytes]) -> EmbeddingCompute:
    fields = entry["recipe"]
    recipe = FileRecipe(**fields) if "sha256" in fields else Recipe(**fields)
    if isinstance(recipe, FileRecipe):
        _check_file_recipe(recipe)
    files = {_parse_shape(shape): contents[name] for shape, name in entry["files"].items()}
    network: OnnxNetwork | KerasNetwork
    if entry["engine"] == "onnx":
        network = StoredOnnx(recipe, precision=entry["precision"], contents=files)
    elif isinstance(recipe, Recipe):
        network = StoredKeras(recipe, entry["precision"], int(entry["batch"]), files)
    else:
        raise InputError(f'{recipe.backbone}: expected engine "onnx"; got {entry["engine"]!r}. Get the bundle again.')
    part = EmbeddingCompute(network, tuple(entry["sizes"]), bool(entry["d4"]), int(entry["centre"]))
    if part.width != entry["width"]:
        raise InputError(
            f"{recipe.backbone}: expected an embedding of {entry['width']} columns; this version gives {part.width}. "
            "Use the version that created the bundle."
        )
    return part


def _check_file_recipe(recipe: FileRecipe) -> None:
    """Check a description that comes from a bundle: columns are named after it, before any network runs."""
    texts = (recipe.backbone, recipe.sha256, recipe.pooling)
    scaling = (recipe.offset, recipe.scale)
    if not (type(recipe.width) is int and 0 < recipe.width <= MAX_WIDTH):
        fault = f"a width of 1 to {MAX_WIDTH}"
    elif not all(isinstance(text, str) for text in texts):
        fault = "backbone, sha256 and pooling as texts"
    elif not all(isinstance(values, (list, tuple)) and len(values) == 3 for values in scaling) or not all(
        type(value) in (int, float) and abs(value) <= MAX_SCALING for values in scaling for value in values
    ):
        fault = "offset and scale of three finite numbers each"
    else:
        return
    raise InputError(f"the bundle's description of an ONNX file: expected {fault}; got others. Get the bundle again.")


def _parse_shape(name: str) -> Shape | None:
    if name == ANY_SHAPE:
        return None
    height, width = map(int, name.split("x"))
    return height, width
