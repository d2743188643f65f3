"""Step 2: handcrafted colour, texture and nuclei columns."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoblend.data.patches import PatchSet
from histoblend.pipelines.config import Config
from histoblend.pipelines.results import patches_of
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.runtime.resources import stop_workers
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.tables import (
    STAINED,
    check_table_room,
    chosen_families,
    finite_columns,
    input_pixels,
    write_columns,
)

#: Number of patches on which the cost of each family is measured.
TIMED = 64

if TYPE_CHECKING:
    from histoblend.features.extract import Pixels
    from histoblend.pipelines.engine.cluster import Cluster
    from histoblend.pipelines.run import Run


def inputs(run: Run) -> dict[str, str]:
    """The families that "all" stands for, so that a new family in the code rebuilds the step."""
    return {"families": ",".join(chosen_families(run.config))}


def build(run: Run, folder: Path, *, normalised: bool = False) -> StepResult:
    """Compute the handcrafted features of a run's patches, optionally stain-normalised."""
    options: dict[str, Any] = {"workers": run.workers, "screen": run.screen, "cluster": run.cluster}
    return extract_features(run.config, patches_of(run), folder, normalised=normalised, **options)


#: :func:`build` on stain-normalised patches.
build_normalised = partial(build, normalised=True)


def extract_features(
    config: Config,
    patches: PatchSet,
    folder: Path,
    *,
    workers: int,
    screen: Screen,
    cluster: Cluster | None = None,
    normalised: bool = False,
) -> StepResult:
    """Write ``values.npy`` (n, columns) float32 and ``columns.json`` of the handcrafted features.

    With ``normalised``, patches are first stain-normalised (:mod:`features.slide_stain`).
    """
    from histoblend.features.extract import extract_shards
    from histoblend.features.handcrafted.families import columns, compile_kernels, compute
    from histoblend.features.slide_stain import normalised_name

    families = chosen_families(config)
    names = [column.name for column in columns(families)]
    pixels = input_pixels(patches, normalised=normalised)
    names = list(map(normalised_name, names)) if normalised else names
    check_table_room(folder, len(patches.pixels), len(names))
    # Without cached kernels this takes 20 seconds of one core, so it has its own progress bar.
    with screen.once(), screen.progress("compiling kernels", len(families), "families") as progress:
        compile_kernels(families, workers=workers, progress=progress)
    usage = None
    task = f"handcrafted features{STAINED if normalised else ''}"
    with screen.progress(task, len(pixels)) as progress, finite_columns(names, patches.table):
        if cluster is not None:
            from histoblend.pipelines.engine.cluster_tables import extract_on_cluster

            recipe = {"families": list(families)}
            usage = extract_on_cluster(
                cluster, recipe, names, patches, pixels, folder, shard=config.features.shard, progress=progress
            )
        else:
            extract_shards(
                partial(compute, families=families),
                pixels,
                folder,
                len(names),
                shard_size=config.features.shard,
                workers=workers,
                progress=progress,
            )
    stop_workers()
    write_columns(folder, names)
    costs = family_costs(families, pixels)
    core_seconds = round(sum(costs.values()) * len(pixels) / 1e3, 1)
    notes = {"columns": len(names), "ms_per_patch": costs, "core_seconds": core_seconds}
    return StepResult(len(pixels), notes | ({"cluster": usage.notes()} if usage else {}))


def family_costs(families: tuple[str, ...], pixels: Pixels) -> dict[str, float]:
    """Core-milliseconds per patch of each family, measured on the first patches."""
    from histoblend.features.handcrafted.families import compute

    sample = np.ascontiguousarray(pixels[:TIMED])
    costs = {}
    for family in families:
        compute(sample[:2], families=(family,))  # loads the compiled kernels
        seconds = []
        for _ in range(3):
            started = time.process_time()
            compute(sample, families=(family,))
            seconds.append(time.process_time() - started)
        # The minimum, because other work on the machine can only add time.
        costs[family] = round(1e3 * min(seconds) / len(sample), 3)
    return costs
