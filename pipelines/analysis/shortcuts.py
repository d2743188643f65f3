"""The shortcut meter of a run: what the neighbours of training patches have in common, for each set of columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoblend.data.storage.arrays import StoredRows
from histoblend.features.handcrafted.families import parse_column
from histoblend.models.calibration import log_odds
from histoblend.models.inspection.shortcuts import SLIDE, measure_shortcuts
from histoblend.models.names import SINGLE_FAMILIES
from histoblend.models.resampling import sample_rows_evenly, slide_groups
from histoblend.pipelines.results import feature_sets, feature_tables, patches_of, predictions_of
from histoblend.pipelines.run_files import SHORTCUTS
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.tables import MAX_PATCHES, known_slides, read_values

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run

#: Columns of the table of patches that name further groups of slides, if it has them.
FURTHER_GROUPS = ("scanner", "centre")

Columns = tuple[str, str, Callable[[], np.ndarray]]


def build(run: Run, folder: Path) -> StepResult:
    """Write ``shortcuts.csv`` if two or more training slides are known."""
    rows = shortcut_rows(patches_of(run).table, run.config.seed)
    table = patches_of(run).table.iloc[rows]
    groups = {SLIDE: known_slides(table["slide"])}
    for kind in FURTHER_GROUPS:
        if kind in table:
            groups[kind] = table[kind].astype(object).where(table[kind].notna(), None).to_numpy()
    parts = []
    options = {"draws": run.config.report.draws, "seed": run.config.seed}
    sets = list(column_sets(run, rows)) if len(rows) else []
    with run.screen.progress("shortcut meter", len(sets), "sets") as progress:
        for name, source, read in sets:
            values = read()
            # A network that predicts only some folds has no score for the other patches.
            scored = np.isfinite(values).all(axis=1)
            part = measure_shortcuts(
                values[scored],
                table["label"].to_numpy()[scored],
                {kind: names[scored] for kind, names in groups.items()},
                **options,
            )
            parts.append(part.assign(set=name, source=source))
            progress(1)
    measured = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if measured.empty:
        return StepResult(0)
    measured = measured[["set", "source", *(name for name in measured if name not in ("set", "source"))]]
    measured.to_csv(folder / SHORTCUTS, index=False)
    return StepResult(len(measured))


def read_shortcuts(run: Run) -> pd.DataFrame | None:
    """The shortcut meter of a run; None if too few slides are known.

    Kinds of which no group can be recognised, such as centres with one slide each, are in the file only.
    """
    path = run.step("shortcuts").folder / SHORTCUTS
    if not path.is_file():
        return None
    table = pd.read_csv(path)
    table = table[table.groupby("kind")["recognised"].transform("count") > 0]
    return table if (table["kind"] == SLIDE).any() else None


def shortcut_rows(table: pd.DataFrame, seed: int) -> np.ndarray:
    """Rows of training patches of known slides, at most `MAX_PATCHES`, evenly over slides. Test slides stay out."""
    slides = known_slides(table["slide"])
    rows = np.flatnonzero((table["split"] == "train").to_numpy() & pd.notna(slides))
    if not len(rows):
        return rows
    return np.asarray(rows[sample_rows_evenly(slide_groups(slides[rows]), MAX_PATCHES, seed=seed)])


def column_sets(run: Run, rows: np.ndarray) -> Iterator[Columns]:
    """Yield the name, the source ("family", "set", "network" or "model") and a reader of each set of columns.

    The sets are families of handcrafted columns, the configured sets, each network of the embeddings if there are
    several, and the outputs of the fine-tuned network and the ensemble, as log-odds out of fold.
    """
    tables = feature_tables(run)
    if "features" in tables:
        values, names = read_values(tables["features"].folder)
        for family, columns in _by(names, lambda name: parse_column(name).family).items():
            yield family, "family", partial(_read, values, rows, columns)
    sets = feature_sets(run)
    for name in sets:
        if name not in (*SINGLE_FAMILIES, "colour"):
            yield name, "set", partial(sets.stored(name, rows).__getitem__, slice(None))
    if "embeddings" in tables:
        values, names = read_values(tables["embeddings"].folder)
        networks = _by(names, _network_of)
        for network, columns in networks.items() if len(networks) > 1 else ():
            yield network, "network", partial(_read, values, rows, columns)
    models = [name for name in ("cnn", "ensemble") if run.has(name)]
    for name in models:
        scores = predictions_of(run, *models)[f"prob_{name}"].to_numpy()[rows]
        yield name, "model", partial(_output, scores)


def _read(values: StoredRows, rows: np.ndarray, columns: list[int]) -> np.ndarray:
    return np.asarray(values[rows, columns])


def _output(scores: np.ndarray) -> np.ndarray:
    """Log-odds as a table of one column; NaN where a score is missing."""
    return log_odds(scores)[:, None]


def _by(names: list[str], key: Callable[[str], str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(key(name), []).append(index)
    return groups


def _network_of(column: str) -> str:
    """Network and size of an embedding column, such as ``efficientnet-lite2-192px``, whatever its stage."""
    return re.sub(r"(-stage\d+)?-\d+$", "", parse_column(column).statistic)
