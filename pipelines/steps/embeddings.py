"""Step 3: embeddings from pretrained networks."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoblend.data.errors import InputError
from histoblend.data.patches import PatchSet
from histoblend.pipelines.config import Config
from histoblend.pipelines.results import patches_of
from histoblend.pipelines.run_files import NETWORK_LIST, NETWORKS
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.tables import (
    STAINED,
    calibration_patches,
    check_table_room,
    finite_columns,
    input_pixels,
    write_columns,
)

if TYPE_CHECKING:
    from histoblend.features.networks.engines import Engine
    from histoblend.features.networks.onnx_files import OnnxFile
    from histoblend.pipelines.engine.cluster import Cluster
    from histoblend.pipelines.run import Run


def inputs(run: Run) -> dict[str, str]:
    """Digests of the weights, and the engine that "auto" selects here: the last digits depend on the engine."""
    return {
        "weights": "; ".join(_weights_digest(name, run.config) for name in run.config.embeddings.backbone),
        "engine": str(embeddings_engine(run.config)),
    }


def _weights_digest(backbone: str, config: Config) -> str:
    from histoblend.features.networks.backbones import find_backbone, weights_digest

    if (file := _onnx_file(backbone, config)) is not None:
        return "; ".join(f"{name} sha256:{digest}" for name, digest in file.digests.items())
    return weights_digest(find_backbone(backbone), config.embeddings.weights)


def _onnx_file(backbone: str, config: Config) -> OnnxFile | None:
    """The ONNX file that a backbone is; None if it is in the table of backbones."""
    from histoblend.features.networks.onnx_files import OnnxOptions, read_onnx_file
    from histoblend.features.networks.recipe import ONNX_PREFIX

    if not backbone.startswith(ONNX_PREFIX):
        return None
    return read_onnx_file(backbone.removeprefix(ONNX_PREFIX), OnnxOptions(**config.embeddings.onnx.model_dump()))


def build(run: Run, folder: Path, *, normalised: bool = False) -> StepResult:
    """Compute the embeddings of a run's patches, optionally stain-normalised."""
    options: dict[str, Any] = {"workers": run.workers, "screen": run.screen, "cluster": run.cluster}
    return extract_embeddings(run.config, patches_of(run), folder, normalised=normalised, **options)


#: :func:`build` on stain-normalised patches.
build_normalised = partial(build, normalised=True)


def embeddings_engine(config: Config) -> Engine:
    """The engine that runs the networks on this machine.

    Raises
    ------
    InputError
        The engine does not support the precision.
    """
    from histoblend.features.networks.engines import engine_for

    options = config.embeddings
    return engine_for(options.backbone, options.engine, options.precision)


def check_embeddings(config: Config) -> None:
    """Check the options of the embeddings before hours of work.

    Raises
    ------
    InputError
        A name is unknown, a weights file is not available, a size does not fit the network, or an ONNX file cannot be
        used.
    """
    from histoblend.features.networks.backbones import check_shape
    from histoblend.features.networks.recipe import recipes_of

    options = config.embeddings
    recipes = recipes_of(options.backbone, options.weights, options.pooling, options.stages)
    embeddings_engine(config)
    for name in options.backbone:
        file = _onnx_file(name, config)
        for size in options.size:
            shape = (size or config.data.size,) * 2
            check_shape(name, shape) if file is None else file.recipe(shape)
    if options.centre > config.data.size:
        raise InputError(
            f"embeddings.centre must be at most the patch size of {config.data.size} pixels; got {options.centre}."
        )
    for recipe in recipes:
        recipe.check_weights()


def extract_embeddings(
    config: Config,
    patches: PatchSet,
    folder: Path,
    *,
    workers: int,
    screen: Screen,
    cluster: Cluster | None = None,
    normalised: bool = False,
) -> StepResult:
    """Write ``values.npy`` (n, columns) float32 and ``columns.json`` of the pretrained embeddings.

    With ``normalised``, patches are first stain-normalised (:mod:`features.slide_stain`). The networks of both tables
    are the same: those of "int8" are calibrated on patches as they are, and stored in the folder too.
    """
    from histoblend.features.extract import extract_shards
    from histoblend.features.networks.backbones import weights_note
    from histoblend.features.networks.embeddings import embedding_compute
    from histoblend.features.networks.stored import store_networks
    from histoblend.features.slide_stain import normalised_name

    engine, options = embeddings_engine(config), config.embeddings
    in_8_bits = engine.precision == "int8"
    compute = embedding_compute(
        size=[size or None for size in options.size],
        engine=engine.name,
        precision=engine.precision,
        calibration=calibration_patches(patches, config.seed) if in_8_bits else None,
        **options.model_dump(include={"backbone", "weights", "centre", "pooling", "stages", "d4", "onnx"}),
    )
    pixels = input_pixels(patches, normalised=normalised)
    names = list(map(normalised_name, compute.columns) if normalised else compute.columns)
    check_table_room(folder, len(pixels), len(names))
    note = weights_note(options.backbone, options.weights)
    sizes = " and ".join(f"{size or 'native'} px" for size in options.size)
    screen.say(
        f"  {' and '.join(options.backbone)} at {sizes}, {len(names)} columns; {engine}, {engine.reason()}{note}"
    )
    started = time.process_time()
    usage = None
    task = f"embeddings{STAINED if normalised else ''}"
    with screen.progress(task, len(pixels)) as progress, finite_columns(names, patches.table):
        if cluster is not None:
            from histoblend.pipelines.engine.cluster_tables import embed_on_cluster

            usage = embed_on_cluster(
                cluster, compute, names, patches, pixels, folder, shard=options.shard, progress=progress
            )
        else:
            extract_shards(
                compute,
                pixels,
                folder,
                len(names),
                shard_size=options.shard,
                # ONNX Runtime: one single-threaded session per worker thread. Keras runs one batch at a time, while
                # other threads read, resize and write.
                workers=engine.feeders(workers),
                prefer="threads",
                progress=progress,
            )
    write_columns(folder, names)
    if in_8_bits:
        entries = store_networks(compute, config.data.size, folder / NETWORKS)
        (folder / NETWORKS / NETWORK_LIST).write_text(json.dumps(entries), encoding="utf-8")
    core_seconds = usage.core_seconds if usage else time.process_time() - started
    notes = {"columns": len(names), "core_seconds": round(core_seconds, 1), "engine": asdict(engine)}
    notes |= {"cluster": usage.notes()} if usage else {}
    sources = {name: weights_source(name, config) for name in options.backbone}
    return StepResult(len(pixels), {**notes, "weights": sources})


def weights_source(backbone: str, config: Config) -> dict[str, Any]:
    """Source of a network's weights: kind, file, digest of the file, and licence."""
    from histoblend.features.networks.applications import file_sha256
    from histoblend.features.networks.backbones import RANDOM_SEED, find_backbone, locate_weights, weights_note

    if (own := _onnx_file(backbone, config)) is not None:
        return {"kind": "onnx", "file": own.name, "sha256": own.sha256, "files": own.digests, **asdict(own.options)}
    row, kind = find_backbone(backbone), config.embeddings.weights
    if kind == "random":
        return {"kind": "random", "seed": str(RANDOM_SEED)}
    path = locate_weights(row) if kind == "imagenet" else Path(kind)
    source = {"kind": "imagenet" if kind == "imagenet" else "local", "file": path.name, "sha256": file_sha256(path)}
    source |= {"note": "not verified"} if weights_note([backbone], kind) else {}
    return {**source, "licence": row.weights.licence} if kind == "imagenet" else source
