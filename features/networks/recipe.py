"""Recipe of an embedding network, and the Keras network it describes: a backbone with pooled feature maps."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from histoblend.data.errors import InputError
from histoblend.features.networks.backbones import check_kind, find_backbone, load_backbone, locate_weights
from histoblend.features.networks.backend import Preprocessing, Shape, load_keras

if TYPE_CHECKING:
    import keras


POOLINGS = ("avg", "max", "both")
#: Begins the name of a backbone that is a user's ONNX file.
ONNX_PREFIX = "onnx:"
#: Most values per image of a user's ONNX file.
MAX_WIDTH = 2**16


@dataclass(frozen=True)
class Recipe:
    """Description of an embedding network, without the image size.

    Attributes
    ----------
    backbone : str
        A name in :data:`features.networks.backbones.BACKBONES`.
    weights : str
        "imagenet", "random" or the path of a file, see :func:`features.networks.backbones.load_backbone`.
    pooling : {"avg", "max", "both"}
        Pooling over a feature map; "both" appends the maxima to the averages.
    stages : int
        Number of feature maps to pool, counted from the last one. They are concatenated, the earliest first.
    """

    backbone: str = "efficientnet-lite0"
    weights: str = "imagenet"
    pooling: str = "avg"
    stages: int = 1

    @property
    def maps(self) -> tuple[tuple[str, int], ...]:
        """Label and width of each pooled map; the label of the last map is empty."""
        row = find_backbone(self.backbone)
        first = len(row.stages) + 1 - self.stages
        inner = [(f"stage{index + 1}", stage.width) for index, stage in enumerate(row.stages) if index >= first]
        factor = 2 if self.pooling == "both" else 1
        return tuple((label, factor * width) for label, width in [*inner, ("", row.width)])

    @property
    def width(self) -> int:
        """Number of values per image."""
        return sum(width for _, width in self.maps)

    @property
    def label(self) -> str:
        """Name of the backbone, with the kind of weights unless they are the pretrained ones."""
        kinds = {"imagenet": "", "random": "-random"}
        return self.backbone + kinds.get(self.weights, "-local")

    @property
    def any_size(self) -> bool:
        """Whether one network accepts images of all sizes."""
        return find_backbone(self.backbone).any_size

    @property
    def contract(self) -> Preprocessing:
        """Scaling of 0..255 images inside the network."""
        return find_backbone(self.backbone).contract

    def check(self) -> None:
        """Raise InputError if an option is invalid or a weights file is missing."""
        row = find_backbone(self.backbone)
        check_choice("pooling", self.pooling, POOLINGS)
        maximum = len(row.stages) + 1
        if isinstance(self.stages, bool) or not isinstance(self.stages, int) or not 1 <= self.stages <= maximum:
            raise InputError(f"stages must be a number from 1 to {maximum} for {row.name}; got {self.stages!r}.")
        if self.weights not in ("imagenet", "random"):
            check_kind(row, self.weights)

    def check_weights(self) -> None:
        """Download pretrained weights if needed; raise InputError if they are not available."""
        if self.weights == "imagenet":
            locate_weights(find_backbone(self.backbone))


@dataclass(frozen=True)
class FileRecipe:
    """Description of an embedding network that is a user's ONNX file.

    Attributes
    ----------
    backbone : str
        :data:`ONNX_PREFIX` and the name of the file, without its folder.
    sha256 : str
        Digest (hex) of the file and of those with its numbers.
    width : int
        Number of values per image.
    pooling : str
        See :class:`features.networks.onnx_files.OnnxOptions`.
    offset, scale : sequence of three floats
        Scaling of 0..255 RGB images inside the network, as in :class:`features.networks.backend.Preprocessing`.
    """

    backbone: str
    sha256: str
    width: int
    pooling: str
    offset: Sequence[float]
    scale: Sequence[float]
    any_size: ClassVar[bool] = False

    @property
    def maps(self) -> tuple[tuple[str, int], ...]:
        """Label and width of the output."""
        return (("", self.width),)

    @property
    def label(self) -> str:
        """Name of the file in letters and digits, and the beginning of its digest."""
        stem = re.sub("[^a-z0-9]", "", Path(self.backbone.removeprefix(ONNX_PREFIX)).stem.lower())
        return f"onnx.{stem[:24]}.{self.sha256[:8]}"

    @property
    def contract(self) -> Preprocessing:
        """Scaling of 0..255 images inside the network."""
        (red, green, blue), (red_scale, green_scale, blue_scale) = self.offset, self.scale
        return Preprocessing((red, green, blue), (red_scale, green_scale, blue_scale))


def embedding_network(recipe: Recipe, shape: Shape | None = None) -> keras.Model:
    """Build the pretrained network with pooling in place of its classifier.

    Parameters
    ----------
    recipe : Recipe
    shape : tuple of int, optional
        Height and width of the images; required for backbones without `any_size`.

    Returns
    -------
    keras.Model
        Maps (n, height, width, 3) float32 RGB, 0..255, to (n, recipe.width) float32.
    """
    keras = load_keras()
    row = find_backbone(recipe.backbone)
    body = load_backbone(recipe.backbone, weights=recipe.weights, shape=shape)
    inner = row.stages[len(row.stages) + 1 - recipe.stages :]
    pooled = []
    for feature_map in [*(body.get_layer(stage.layer).output for stage in inner), body.output]:
        # Always float32: a mean over many pixels in half precision would accumulate rounding errors.
        if recipe.pooling in ("avg", "both"):
            pool = keras.layers.GlobalAveragePooling2D(data_format="channels_last", dtype="float32")
            pooled.append(pool(feature_map))
        if recipe.pooling in ("max", "both"):
            pool = keras.layers.GlobalMaxPooling2D(data_format="channels_last", dtype="float32")
            pooled.append(pool(feature_map))
    output = keras.layers.Concatenate(dtype="float32")(pooled) if len(pooled) > 1 else pooled[0]
    return keras.Model(body.input, output, name=f"{recipe.backbone}-{recipe.pooling}")


def recipes_of(backbone: str | Sequence[str], weights: str, pooling: str, stages: int) -> list[Recipe]:
    """Return the validated recipe of each backbone but ONNX files; the path of a weights file is made absolute.

    Raises
    ------
    InputError
        If an option is unknown, or one weights file is given for several backbones.
    """
    names = [backbone] if isinstance(backbone, str) else list(backbone)
    if not names or len(set(names)) < len(names):
        raise InputError(f"backbone must be one name or several different names; got {names}.")
    if all(name.startswith(ONNX_PREFIX) for name in names) and weights != "imagenet":
        raise InputError(f"an ONNX file contains its weights; got weights={weights!r}. Leave weights at its default.")
    names = [name for name in names if not name.startswith(ONNX_PREFIX)]
    is_file = weights not in ("imagenet", "random")
    if is_file and len(names) > 1:
        raise InputError(f"a weights file fits one backbone; got {weights!r} for {', '.join(names)}.")
    # Networks without inner maps, such as vision transformers, have one map to pool.
    recipes = [Recipe(name, weights, pooling, stages if find_backbone(name).stages else 1) for name in names]
    for recipe in recipes:
        recipe.check()
    return [replace(recipe, weights=str(Path(weights).absolute())) for recipe in recipes] if is_file else recipes


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise InputError if an option is not one of the known values."""
    if value not in known:
        raise InputError(f"{name} must be one of {', '.join(known)}; got {value!r}.")


def shape_key(recipe: Recipe | FileRecipe, images: np.ndarray) -> Shape | None:
    """Return the shape to build the network for; None if one network accepts all shapes."""
    return None if recipe.any_size else (images.shape[1], images.shape[2])


def byte_network(recipe: Recipe, shape: Shape | None, precision: str) -> keras.Model:
    """Build the embedding network for uint8 images, with the given precision."""
    keras = load_keras()
    with dtype_policy(keras, precision):
        network = embedding_network(recipe, shape)
        inputs = keras.Input((*(shape or (None, None)), 3), dtype="uint8")
        return keras.Model(inputs, network(keras.ops.cast(inputs, "float32")))


@contextlib.contextmanager
def dtype_policy(keras: Any, precision: str) -> Iterator[None]:
    """Set the precision of new layers: Keras' builders read it only from a global setting."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)
