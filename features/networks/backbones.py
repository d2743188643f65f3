"""Pretrained networks as Keras 3 models that take 0..255 RGB patches: one row of BACKBONES each.

What a network wants its input to look like is part of the network here: its first layers turn 0..255 into it, so no
caller normalises anything, and nothing is normalised twice. ``python -m histoblend.features.networks.backbones
docs/backbones.md`` writes the table for readers.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoblend.data.errors import InputError
from histoblend.features.networks.applications import KERAS_SUFFIXES, file_sha256, load_application
from histoblend.features.networks.backend import BUILT_IN, Backbone, PackagedWeights, Preprocessing, Shape
from histoblend.features.networks.classic_backbones import CLASSIC_BACKBONES
from histoblend.features.networks.downloads import fetch
from histoblend.features.networks.mobile_backbones import MOBILE_BACKBONES
from histoblend.features.networks.weights import CheckpointError, locate_package_file

if TYPE_CHECKING:
    import keras

#: Seed of ``weights="random"``.
RANDOM_SEED = 0

#: Every row, in the order of docs/backbones.md.
BACKBONES: tuple[Backbone, ...] = (*MOBILE_BACKBONES, *CLASSIC_BACKBONES)


def find_backbone(name: str) -> Backbone:
    """Row of BACKBONES with this name.

    Raises
    ------
    InputError
        When there is none; names the nearest.
    """
    rows = {row.name: row for row in BACKBONES}
    if name not in rows:
        alike = {known: difflib.SequenceMatcher(None, name, known).ratio() for known in rows}
        nearest = max(alike, key=alike.__getitem__)  # the first in the table of several
        hint = f"Did you mean {nearest!r}?" if alike[nearest] > 0.6 else f"Known: {', '.join(rows)}."
        raise InputError(f"backbone must be a name in features.backbones.BACKBONES; got {name!r}. {hint}")
    return rows[name]


def load_backbone(
    name: str, *, weights: str = "imagenet", shape: Shape | None = None, head: bool = False
) -> keras.Model:
    """Build a row's network and fill it.

    Parameters
    ----------
    name : str
        A name in BACKBONES.
    weights : str
        "imagenet" for the row's pretrained weights, "random" for seeded ones, or the path of a local file: ``.h5``,
        ``.weights.h5`` or ``.keras``, for EfficientNet-Lite also PyTorch's ``.pth``.
    shape : tuple of int, optional
        Height and width of the pictures. Rows with `any_size` do without.
    head : bool
        Keep the ImageNet classifier; only EfficientNet-Lite has it here.

    Returns
    -------
    keras.Model
        Maps (n, height, width, 3) float32 holding 0..255 RGB to the last feature map, (n, about height / 32, about
        width / 32, row.width) float32; with the head, to (n, 1000) logits.

    Raises
    ------
    InputError
        For an unknown name, or pictures smaller than the network takes.
    features.weights.CheckpointError
        When the weights are missing or are not the pinned ones.
    """
    row = find_backbone(name)
    if shape is not None:
        check_shape(name, shape)
    model = row.build(row.contract, shape, head)
    if weights == "random":
        fill_randomly(model)
    elif weights == "imagenet":
        path = locate_weights(row)
        row.load(model, path, row.weights.sha256 if isinstance(row.weights, PackagedWeights) else None)
    else:
        path = check_kind(row, weights)
        resaved = path.suffix.lower() in KERAS_SUFFIXES and isinstance(row.weights, PackagedWeights)
        (load_application if resaved else row.load)(model, path, None)
    return model


def check_shape(name: str, shape: Shape) -> None:
    """Raise InputError when pictures of this height and width are smaller than a row's network takes."""
    least = find_backbone(name).smallest
    if min(shape) < least:
        raise InputError(
            f"{name} takes pictures of at least {least} × {least} pixels; got {shape[0]} × {shape[1]}. "
            "Choose a larger size."
        )


def locate_weights(row: Backbone) -> Path:
    """Find the row's pretrained weights on disk; downloads them where that is where they come from.

    Raises
    ------
    features.weights.CheckpointError
        When they cannot be had.
    """
    if isinstance(row.weights, PackagedWeights):
        return locate_package_file(row.weights.package, row.weights.file)
    return fetch(row.weights)


def weights_digest(row: Backbone, weights: str) -> str:
    """Digest that says which numbers a network is filled with, without building it.

    Parameters
    ----------
    row : Backbone
    weights : str
        As for :func:`load_backbone`.

    Returns
    -------
    str
        ``"sha256:…"`` or ``"md5:…"``, or ``"random, seed 0"``. A file without a published digest is read for its own.

    Raises
    ------
    features.weights.CheckpointError
        When a file that must be read is missing, or is not of a kind that is read.
    """
    if weights == "random":
        return f"random, seed {RANDOM_SEED}"
    if weights == "imagenet":
        if isinstance(row.weights, PackagedWeights):
            return f"sha256:{row.weights.sha256}"
        return row.weights.digest or f"sha256:{file_sha256(locate_weights(row))}"
    return f"sha256:{file_sha256(check_kind(row, weights))}"


def check_kind(row: Backbone, weights: str) -> Path:
    """Path of a local file of weights, when it is there and of a kind that the row reads.

    Raises
    ------
    features.weights.CheckpointError
        When it is not.
    """
    path = Path(weights)
    kinds = sorted({Path(row.weights.file).suffix, *KERAS_SUFFIXES})
    if path.suffix.lower() not in kinds or not path.is_file():
        raise CheckpointError(
            f'weights must be "imagenet", "random" or an existing file of {", ".join(kinds)}; got {weights!r}.'
        )
    return path


def fill_randomly(model: keras.Model, seed: int = RANDOM_SEED) -> None:
    """Fill a network with seeded random numbers, the same on every backend: for tests, and as what training is worth.

    Kernels are normal with spread ``sqrt(2 / inputs)`` (He et al. 2015); biases, scales and statistics stay as built.
    """
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        shape = tuple(variable.shape)
        if len(shape) < 2:
            continue
        depthwise = len(shape) == 4 and shape[3] == 1  # each channel has its own inputs
        inputs = np.prod(shape[:2] if depthwise else shape[:-1])
        variable.assign(rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2.0 / inputs)))


def catalogue() -> str:
    """Return docs/backbones.md: every row, what it wants and where its weights come from."""
    lines = [
        "# Backbones",
        "",
        f"{len(BACKBONES)} pretrained networks, generated from `features/networks/backbones.py` by "
        "`python -m histoblend.features.networks.backbones docs/backbones.md`.",
        "All take 0..255 RGB; *input* is what their first layers make of it. *Stages* are the channels of the feature "
        "maps that `embeddings.stages` counts, the last one in bold. Weights from a package need no network; the "
        "others are downloaded on first use, into `models/` under `KERAS_HOME` (`~/.keras`).",
        "",
        "| name | trained at | least side | stages | input | weights | digest | licence | reference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in BACKBONES:
        widths = [*(str(stage.width) for stage in row.stages), f"**{row.width}**"]
        if isinstance(row.weights, PackagedWeights):
            source, digest = f"package `{row.weights.package}` {row.weights.version}", f"sha256:{row.weights.sha256}"
        else:
            source, digest = f"download `{row.weights.file}`", row.weights.digest or "none published"
        lines.append(
            f"| `{row.name}` | {row.size} px | {row.smallest} px | {', '.join(widths)} | {_in_words(row.contract)} "
            f"| {source} | `{digest[:15]}…` | {row.weights.licence} | {row.reference} |".replace(
                "`none published…`", "none published"
            )
        )
    return "\n".join(lines) + "\n"


def _in_words(contract: Preprocessing) -> str:
    if contract == BUILT_IN:
        return "as it is: scaled by arrays in the weights file"
    offset, scale = (
        f"{values[0]:g}" if len(set(values)) == 1 else f"({', '.join(f'{value:g}' for value in values)})"
        for values in (contract.offset, contract.scale)
    )
    return f"{contract.order.upper()}, (x − {offset})" + (f" / {scale}" if set(contract.scale) != {1.0} else "")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(catalogue(), encoding="utf-8")
