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
from histoblend.pipelines.runtime.artefacts import Outcome
from histoblend.pipelines.runtime.resources import dismiss_workers
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.tables import (
    STAINED,
    check_table_room,
    chosen_families,
    finite_columns,
    shown_pixels,
    write_columns,
)

#: Patches on which each family's own cost is measured.
TIMED = 64

if TYPE_CHECKING:
    from histoblend.features.extract import Pixels
    from histoblend.pipelines.engine.cluster import Cluster
    from histoblend.pipelines.run import Run


def inputs(run: Run) -> dict[str, str]:
    """The families behind "all": a new one rebuilds, where another choice is another configuration."""
    return {"families": ",".join(chosen_families(run.config))}


def build(run: Run, folder: Path, *, normalised: bool = False) -> Outcome:
    """Compute the handcrafted features of a run's patches, or of these stain-normalised."""
    options: dict[str, Any] = {"workers": run.workers, "screen": run.screen, "cluster": run.cluster}
    return extract_features(run.config, patches_of(run), folder, normalised=normalised, **options)


#: Of stain-normalised patches.
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
) -> Outcome:
    """Write ``values.npy`` (n, columns) float32 and ``columns.json`` of the handcrafted features.

    With ``normalised`` they are those of stain-normalised patches (:mod:`features.slide_stain`).
    """
    from histoblend.features.extract import extract_shards
    from histoblend.features.handcrafted.families import columns, compile_kernels, compute
    from histoblend.features.slide_stain import normalised_name

    families = chosen_families(config)
    names = [column.name for column in columns(families)]
    pixels = shown_pixels(patches, normalised=normalised)
    names = list(map(normalised_name, names)) if normalised else names
    check_table_room(folder, len(patches.pixels), len(names))
    # Half a minute where no earlier run has left them in the cache: not to be spent behind a bar that stands still.
    with screen.progress("compiling kernels", len(families), "families") as progress:
        compile_kernels(families, workers=workers, progress=progress)
    spent = None
    task = f"handcrafted features{STAINED if normalised else ''}"
    with screen.progress(task, len(pixels)) as progress, finite_columns(names, patches.table):
        if cluster is not None:
            from histoblend.pipelines.engine.cluster_tables import extract_on_cluster

            recipe = {"families": list(families)}
            spent = extract_on_cluster(
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
    dismiss_workers()
    write_columns(folder, names)
    costs = family_costs(families, pixels)
    core_seconds = round(sum(costs.values()) * len(pixels) / 1e3, 1)
    notes = {"columns": len(names), "ms_per_patch": costs, "core_seconds": core_seconds}
    return Outcome(len(pixels), notes | ({"cluster": spent.notes()} if spent else {}))


def family_costs(families: tuple[str, ...], pixels: Pixels) -> dict[str, float]:
    """Milliseconds of one core a patch, by family, measured on the first patches."""
    from histoblend.features.handcrafted.families import compute

    sample = np.ascontiguousarray(pixels[:TIMED])
    costs = {}
    for family in families:
        compute(sample[:2], families=(family,))  # loads what was compiled
        spent = []
        for _ in range(3):
            started = time.process_time()
            compute(sample, families=(family,))
            spent.append(time.process_time() - started)
        # The least: other work on the machine only ever adds.
        costs[family] = round(1e3 * min(spent) / len(sample), 3)
    return costs
