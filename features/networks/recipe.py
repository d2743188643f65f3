"""Recipe of an embedding network, and the Keras network that it describes: a backbone with pooled feature maps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoblend.data.errors import InputError
from histoblend.features.networks.backbones import check_kind, find_backbone, load_backbone, locate_weights
from histoblend.features.networks.backend import Shape, load_keras

if TYPE_CHECKING:
    import keras


POOLINGS = ("avg", "max", "both")


@dataclass(frozen=True)
class Recipe:
    """What a network is made of, whatever the size of its pictures.

    Attributes
    ----------
    backbone : str
        A name in :data:`features.networks.backbones.BACKBONES`.
    weights : str
        "imagenet", "random" or the path of a file, as for :func:`features.networks.backbones.load_backbone`.
    pooling : {"avg", "max", "both"}
        Over a feature map; "both" puts the maxima behind the averages.
    stages : int
        How many feature maps are pooled, from the last one backwards, put side by side with the earliest first.
    """

    backbone: str = "efficientnet-lite0"
    weights: str = "imagenet"
    pooling: str = "avg"
    stages: int = 1

    @property
    def maps(self) -> tuple[tuple[str, int], ...]:
        """Label, empty for the last map, and width of each pooled map."""
        row = find_backbone(self.backbone)
        first = len(row.stages) + 1 - self.stages
        inner = [(f"stage{place + 1}", stage.width) for place, stage in enumerate(row.stages) if place >= first]
        factor = 2 if self.pooling == "both" else 1
        return tuple((label, factor * width) for label, width in [*inner, ("", row.width)])

    @property
    def width(self) -> int:
        """Number of values for one picture."""
        return sum(width for _, width in self.maps)

    @property
    def label(self) -> str:
        """The backbone's name, with the kind of weights where they are not the pretrained ones."""
        kinds = {"imagenet": "", "random": "-random"}
        return self.backbone + kinds.get(self.weights, "-local")

    def check(self) -> None:
        """Raise InputError when a part is unknown or missing."""
        row = find_backbone(self.backbone)
        check_choice("pooling", self.pooling, POOLINGS)
        most = len(row.stages) + 1
        if isinstance(self.stages, bool) or not isinstance(self.stages, int) or not 1 <= self.stages <= most:
            raise InputError(f"stages must be a number from 1 to {most} for {row.name}; got {self.stages!r}.")
        if self.weights not in ("imagenet", "random"):
            check_kind(row, self.weights)

    def check_weights(self) -> None:
        """Raise InputError when pretrained weights cannot be had; those that are not here yet are downloaded."""
        if self.weights == "imagenet":
            locate_weights(find_backbone(self.backbone))


def embedding_network(recipe: Recipe, shape: Shape | None = None) -> keras.Model:
    """Pretrained network with pooling in place of its classifier.

    Parameters
    ----------
    recipe : Recipe
    shape : tuple of int, optional
        Height and width of the pictures; needed by rows without `any_size`.

    Returns
    -------
    keras.Model
        Maps (n, height, width, 3) float32 holding 0..255 RGB to (n, recipe.width) float32.
    """
    keras = load_keras()
    row = find_backbone(recipe.backbone)
    body = load_backbone(recipe.backbone, weights=recipe.weights, shape=shape)
    inner = row.stages[len(row.stages) + 1 - recipe.stages :]
    pooled = []
    for feature_map in [*(body.get_layer(stage.layer).output for stage in inner), body.output]:
        # float32 whatever the policy: a mean over many pixels in half precision would round in each step.
        if recipe.pooling in ("avg", "both"):
            pool = keras.layers.GlobalAveragePooling2D(data_format="channels_last", dtype="float32")
            pooled.append(pool(feature_map))
        if recipe.pooling in ("max", "both"):
            pool = keras.layers.GlobalMaxPooling2D(data_format="channels_last", dtype="float32")
            pooled.append(pool(feature_map))
    output = keras.layers.Concatenate(dtype="float32")(pooled) if len(pooled) > 1 else pooled[0]
    return keras.Model(body.input, output, name=f"{recipe.backbone}-{recipe.pooling}")


def recipes_of(backbone: str | Sequence[str], weights: str, pooling: str, stages: int) -> list[Recipe]:
    """Recipe of each backbone, checked; a path of weights is made absolute.

    Raises
    ------
    InputError
        For an unknown option, or one file of weights for several backbones.
    """
    names = [backbone] if isinstance(backbone, str) else list(backbone)
    if not names or len(set(names)) < len(names):
        raise InputError(f"backbone must be one name or several different ones; got {names}.")
    local = weights not in ("imagenet", "random")
    if local and len(names) > 1:
        raise InputError(f"a file of weights fits one backbone; got {weights!r} for {', '.join(names)}.")
    recipes = [Recipe(name, weights, pooling, stages) for name in names]
    for recipe in recipes:
        recipe.check()
    return [replace(recipe, weights=str(Path(weights).absolute())) for recipe in recipes] if local else recipes


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise InputError when an option is none of the known ones."""
    if value not in known:
        raise InputError(f"{name} must be one of {', '.join(known)}; got {value!r}.")


def shape_key(recipe: Recipe, images: np.ndarray) -> Shape | None:
    """Shape to build the network for; None where one network serves all."""
    return None if find_backbone(recipe.backbone).any_size else (images.shape[1], images.shape[2])


def byte_network(recipe: Recipe, shape: Shape | None, precision: str) -> keras.Model:
    """Embedding network on uint8 pictures, computing in a precision."""
    keras = load_keras()
    with dtype_policy(keras, precision):
        network = embedding_network(recipe, shape)
        pictures = keras.Input((*(shape or (None, None)), 3), dtype="uint8")
        return keras.Model(pictures, network(keras.ops.cast(pictures, "float32")))


@contextlib.contextmanager
def dtype_policy(keras: Any, precision: str) -> Iterator[None]:
    """Build layers in mixed precision: Keras' builders take the policy from a global setting only."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
