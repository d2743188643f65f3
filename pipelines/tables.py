"""Steps 2 and 3: the two feature tables, handcrafted and embedded, and which columns a model sees."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.errors import InputError
from data.patches import PatchSet
from data.splits import is_known
from pipelines.artefacts import Outcome, StepSpec
from pipelines.config import Config
from pipelines.console import Screen
from pipelines.memory import dismiss_workers

COLUMNS = "columns.json"
VALUES = "values.npy"

#: Patches on which each family's own cost is measured.
TIMED = 64


def features_spec(config: Config, patches: str) -> StepSpec:
    """What the handcrafted features depend on; ``patches`` is the digest of the prepared step."""
    section = {"families": list(config.features.families)}
    # The families behind "all" are an input, so that a new one rebuilds; another choice is another configuration.
    inputs = {"1-patches": patches, "families": ",".join(chosen_families(config))}
    return StepSpec("features", "2-features", ("features", "pipelines/tables.py"), section, inputs, config.seed)


def embeddings_spec(config: Config, patches: str) -> StepSpec:
    """What the embeddings depend on; ``patches`` is the digest of the prepared step."""
    section = config.embeddings.model_dump(exclude={"shard"})
    sources = ("features", "pipelines/tables.py")
    return StepSpec("embeddings", "3-embeddings", sources, section, {"1-patches": patches}, config.seed)


def chosen_families(config: Config) -> tuple[str, ...]:
    """Names of the configured feature families, in the table's order.

    Raises
    ------
    InputError
        A name is not in the table (the nearest is named).
    """
    from features.table import FAMILIES, family_named

    wanted = {family_named(name).name for name in config.features.families}
    return tuple(family.name for family in FAMILIES if not wanted or family.name in wanted)


def extract_features(config: Config, patches: PatchSet, folder: Path, *, workers: int, screen: Screen) -> Outcome:
    """Write ``values.npy`` (n, columns) float32 and ``columns.json`` of the handcrafted features."""
    from functools import partial

    from features.extract import extract_shards
    from features.table import columns, compute

    families = chosen_families(config)
    names = [column.name for column in columns(families)]
    with screen.progress("handcrafted features", len(patches.pixels)) as progress:
        extract_shards(
            partial(compute, families=families),
            patches.pixels,
            folder,
            len(names),
            shard_size=config.features.shard,
            workers=workers,
            progress=progress,
        )
    dismiss_workers()
    _write_columns(folder, names)
    costs = family_costs(families, patches.pixels)
    core_seconds = round(sum(costs.values()) * len(patches.pixels) / 1e3, 1)
    return Outcome(len(patches.pixels), {"columns": len(names), "ms_a_patch": costs, "core_seconds": core_seconds})


def family_costs(families: tuple[str, ...], pixels: np.ndarray) -> dict[str, float]:
    """Milliseconds of one core a patch, by family, measured on the first patches."""
    from features.table import compute

    sample = np.ascontiguousarray(pixels[:TIMED])
    costs = {}
    for family in families:
        compute(sample[:2], families=(family,))  # compiles, or loads what was compiled
        started = time.process_time()
        compute(sample, families=(family,))
        costs[family] = round(1e3 * (time.process_time() - started) / len(sample), 3)
    return costs


def extract_embeddings(config: Config, patches: PatchSet, folder: Path, *, workers: int, screen: Screen) -> Outcome:
    """Write ``values.npy`` (n, columns) float32 and ``columns.json`` of the pretrained embeddings."""
    from features.embeddings import embedding_compute
    from features.extract import extract_shards

    options = config.embeddings
    screen.say(f"  {options.backbone} at {options.size} px on {options.engine}")
    compute = embedding_compute(backbone=options.backbone, size=options.size, engine=options.engine, d4=options.d4)
    names = list(compute.columns)
    started = time.process_time()
    with screen.progress("embeddings", len(patches.pixels)) as progress:
        extract_shards(
            compute,
            patches.pixels,
            folder,
            len(names),
            shard_size=options.shard,
            # Keras runs its own threads; ONNX Runtime gets one session of one thread for each of ours.
            workers=workers if options.engine == "onnx" else 1,
            prefer="threads",
            progress=progress,
        )
    _write_columns(folder, names)
    core_seconds = round(time.process_time() - started, 1)
    return Outcome(len(patches.pixels), {"columns": len(names), "core_seconds": core_seconds})


def read_values(folder: Path) -> tuple[np.ndarray, list[str]]:
    """The table of a finished step: values (n, columns) float32, memory-mapped, and column names."""
    return np.load(folder / VALUES, mmap_mode="r"), json.loads((folder / COLUMNS).read_text(encoding="utf-8"))


def feature_sets(
    config: Config, folders: Mapping[str, Path], slides: pd.Series
) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Columns of each configured set: colour, handcrafted, embeddings, both, context, and each family alone.

    Parameters
    ----------
    config : Config
    folders : mapping
        "features" and "embeddings" to the folders of those steps, where they ran.
    slides : Series of str
        Slide of each patch, missing where unknown. Where no slide is known, "context" is left out.

    Returns
    -------
    dict
        Name to (values of shape (n, columns), float32, column names), in the configured order.
    """
    from features.context import slide_context, slide_stains

    sets: dict[str, tuple[np.ndarray, list[str]]] = {}
    # Patches that a slide map leaves out, and inferred slides, are groups for splitting, not slides to compare with.
    known = is_known(slides)
    tables: dict[str, Any] = {name: read_values(folder) for name, folder in folders.items()}
    for name in config.heads.features:
        if name == "colour":
            sets[name] = _family(tables["features"], name)
        elif name == "families":
            sets |= {family: _family(tables["features"], family) for family in chosen_families(config)}
        elif name == "context":
            if known.any():
                raw, names = tables["features"]
                where = slides.where(known, None).to_numpy(dtype=object)
                relative, more = slide_context(raw, where, names)
                stains, others = slide_stains(raw, where, names)
                sets[name] = np.concatenate([raw, relative, stains], axis=1), names + more + others
            elif len(config.heads.features) == 1:
                raise InputError(
                    "the set 'context' needs slides, and none is known. Add another set to heads.features."
                )
        elif name == "both":
            sets[name] = (
                np.concatenate([tables["features"][0], tables["embeddings"][0]], axis=1),
                tables["features"][1] + tables["embeddings"][1],
            )
        else:
            sets[name] = tables["features" if name == "handcrafted" else name]
    return sets


def _family(table: tuple[np.ndarray, list[str]], family: str) -> tuple[np.ndarray, list[str]]:
    """The columns of one family of handcrafted features."""
    values, names = table
    kept = [place for place, column in enumerate(names) if column.startswith(f"{family}_")]
    return np.ascontiguousarray(values[:, kept]), [names[place] for place in kept]


def _write_columns(folder: Path, names: list[str]) -> None:
    (folder / COLUMNS).write_text(json.dumps(names), encoding="utf-8")
