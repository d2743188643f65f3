"""Readers for the results of finished steps, used by later steps."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pandas as pd

from histoblend.data.patches import PatchSet
from histoblend.data.splits import is_known
from histoblend.data.storage.arrays import names_in
from histoblend.models.names import CONTEXT_RUNGS, TABLES, tables_of
from histoblend.pipelines.run_files import CENTRES, LEAKAGE, NETWORK_LIST, NETWORKS, PREDICTIONS, SCORES, TIMES
from histoblend.pipelines.runtime.artefacts import FinishedStep
from histoblend.pipelines.tables import FeatureSets, read_values

if TYPE_CHECKING:
    from histoblend.features.networks.embeddings import ConcatenatedEmbeddings, EmbeddingCompute
    from histoblend.pipelines.run import Run


def embedding_tables(run: Run) -> list[FinishedStep]:
    """Steps that computed embeddings, of patches as they are or stain-normalised; the networks of both are the same."""
    return [step for name, step in feature_tables(run).items() if name.startswith("embeddings")]


def embedding_of(run: Run) -> EmbeddingCompute | ConcatenatedEmbeddings:
    """Function that computes the embeddings of patches, with the networks and the engine of the run."""
    from histoblend.features.networks.embeddings import embedding_compute
    from histoblend.features.networks.stored import open_networks

    step, options = embedding_tables(run)[0], run.config.embeddings
    engine = step.manifest["notes"]["engine"]
    if engine["precision"] == "int8":
        contents = {name: (step.folder / NETWORKS / name).read_bytes() for name in names_in(step.folder / NETWORKS, "")}
        return open_networks(json.loads(contents.pop(NETWORK_LIST)), contents)
    return embedding_compute(
        size=[size or None for size in options.size],
        engine=engine["name"],
        precision=engine["precision"],
        **options.model_dump(include={"backbone", "weights", "centre", "pooling", "stages", "d4", "onnx"}),
    )


def patches_of(run: Run) -> PatchSet:
    """The prepared patches of a run."""
    return run.open("patches", lambda: PatchSet.open(run.step("prepare").folder))


def needs_table(run: Run, table: str) -> bool:
    """Whether a configured set of columns needs a table. Sets in slide context need none if no slide is known.

    Parameters
    ----------
    run : Run
    table : str
        One of :data:`models.names.TABLES`.
    """
    sets = [name for name in run.config.heads.features if table in tables_of(name)]
    if all(name in CONTEXT_RUNGS for name in sets):
        return bool(sets) and bool(is_known(patches_of(run).table["slide"]).any())
    return True


def feature_tables(run: Run) -> dict[str, FinishedStep]:
    """The steps whose tables the configured sets of columns need, by name of the table."""
    return {name: run.step(name) for name in TABLES if run.has(name)}


def feature_sets(run: Run) -> FeatureSets:
    """Values and column names of each configured set of columns."""
    folders = {name: step.folder for name, step in feature_tables(run).items()}
    return run.open("feature sets", lambda: FeatureSets(run.config, folders, patches_of(run).table["slide"]))


def predictions_of(run: Run, *steps: str) -> pd.DataFrame:
    """Predictions of every model of these steps, one row per patch. Steps that are not part of the run are skipped.

    Parameters
    ----------
    run : Run
    *steps : str
        Any of "heads", "cnn" and "ensemble"; all of them by default.

    Returns
    -------
    DataFrame
        ``patch_id, slide, split, fold, label`` and ``prob_<model>``, rows as in the feature tables.
    """
    first, *others = (name for name in steps or ("heads", "cnn", "ensemble") if run.has(name))
    table = pd.read_parquet(run.step(first).folder / PREDICTIONS)
    for name in others:
        more = pd.read_parquet(run.step(name).folder / PREDICTIONS)
        table = table.merge(more, on="patch_id", validate="one_to_one")
    return table


def read_ladder(run: Run) -> pd.DataFrame:
    """The ladder of a run, as returned by :func:`reports.evaluation.ladder.ladder`."""
    folder = run.step("ladder").folder
    return pd.concat([pd.read_parquet(folder / SCORES), pd.read_parquet(folder / TIMES)], axis=1)


def read_leakage(run: Run) -> pd.DataFrame | None:
    """The leakage meter of a run; None without slides, or without handcrafted features."""
    path = run.step("leakage").folder / LEAKAGE if run.has("leakage") else None
    return pd.read_csv(path) if path is not None and path.is_file() else None


def read_centres(run: Run) -> pd.DataFrame | None:
    """Scores on left-out centres, from :func:`reports.evaluation.centres.score_centres`; None without two centres."""
    return pd.read_csv(run.step("centres").folder / CENTRES, dtype={"centre": str}) if run.has("centres") else None


def family_costs(run: Run) -> dict[str, tuple[int, float]]:
    """Number of columns of each computed family of handcrafted features, and its core-milliseconds per patch."""
    if not run.has("features"):
        return {}
    folder, manifest = run.step("features")
    columns = pd.Series(read_values(folder)[1]).str.partition("_")[0].value_counts()
    return {name: (int(columns[name]), float(cost)) for name, cost in manifest["notes"]["ms_per_patch"].items()}
