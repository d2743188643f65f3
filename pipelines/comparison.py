"""Comparison of several finished runs on one page: reads the runs and writes the page."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.ignored import ignored
from histoblend.data.storage.arrays import files_under
from histoblend.pipelines.run_files import LADDER, PREDICTIONS
from histoblend.pipelines.runtime.artefacts import (
    MANIFEST,
    file_digest,
    flat_keys,
    read_manifest,
    replace_folder,
    write_json,
)
from histoblend.pipelines.runtime.screen import Screen
from histoblend.reports.evaluation.ladder import COLUMNS as LADDER_COLUMNS
from histoblend.reports.evaluation.pairing import RunResults
from histoblend.reports.page.page import write_page
from histoblend.reports.page.static_figures import write_static_figures
from histoblend.reports.sections.comparison import comparison_sections

REPORT = "7-report"
FACTS = "facts.json"
PATCHES = "1-patches/patches.parquet"
#: Files that a comparison reads if they are there.
EMBEDDINGS, STAIN = "3-embeddings", "analysis/stain/view/shifted.parquet"
#: Columns of predictions that a comparison needs.
COLUMNS = ("patch_id", "slide", "split", "fold", "label")

#: Longest folder name made from run names, in bytes. A longer name is cut and gets a digest.
LONGEST = 80


def compare(names: Sequence[str], runs: Path, *, out: Path | None, draws: int, seed: int, screen: Screen) -> Path:
    """Write one page that compares several finished runs.

    Parameters
    ----------
    names : sequence of str
        Names of two to seven folders in `runs`.
    runs : Path
    out : Path or None
        Folder to write; by default ``compare-<names>`` in `runs`.
    draws, seed : int
        Resamplings for the intervals of paired differences.
    screen : Screen

    Returns
    -------
    Path
        The file ``report.html``.

    Raises
    ------
    InputError
        A run is unknown or unfinished, or `out` contains other files.
    """
    _check_names(names, runs)
    folder = out or runs / folder_name(names)
    _check_folder(folder)
    results = [read_run(runs / name) for name in names]
    screen.say(f"compare: {' · '.join(names)}")
    sections = comparison_sections(results, draws=draws, seed=seed)
    # Files of an interrupted comparison must not be mixed with this one.
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_page(partial, f"Histoblend: {' · '.join(names)}", sections, prints=True)
    write_static_figures(partial / "figures", sections)
    digests = {name: file_digest(runs / name / PREDICTIONS) for name in names}
    files = {name: file_digest(partial / name) for name in files_under(partial)}
    manifest = {
        "step": "compare",
        "config": {"runs": list(names), "draws": draws},
        "seed": seed,
        "inputs": digests,
        "rows": sum(len(result.predictions) for result in results),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "notes": {},
        "files": files,
    }
    write_json(partial / MANIFEST, manifest)
    replace_folder(partial, folder)
    for sentence in sections[0].content["pairs"] if sections[0].content else ():
        screen.say(sentence)
    return folder / "report.html"


def folder_name(names: Sequence[str]) -> str:
    """Name of a comparison's folder: ``compare-a-b``, limited in length and unique."""
    name = "compare-" + "-".join(names)
    if len(name.encode()) <= LONGEST:
        return name
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()[:12]
    return name.encode()[: LONGEST - 13].decode(errors="ignore") + "-" + digest


def known_runs(runs: Path) -> list[str]:
    """Names of the finished runs in a folder of runs."""
    names = (path.parent.name for path in runs.glob(f"*/{PREDICTIONS}"))
    return sorted(name for name in names if not ignored(name))


def _check_names(names: Sequence[str], runs: Path) -> None:
    known = known_runs(runs)
    for name in names:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, 1, 0.4)
        hint = f"Did you mean {near[0]!r}?" if near else f"Finished runs: {', '.join(known) or 'none'}."
        if (runs / name).is_dir() and name not in ("", ".", ".."):
            hint = "It has no report yet: run `make report RUN=…` with its configuration first."
        raise InputError(f"RUNS must name finished runs in {runs}/; got {name!r}. {hint}")


def _check_folder(folder: Path) -> None:
    """Refuse to replace a folder that is not a comparison."""
    if not folder.exists() or (folder.is_dir() and all(ignored(path.name) for path in folder.iterdir())):
        return
    try:
        known = read_manifest(folder).get("step") == "compare"
    except (InputError, OSError):
        known = False
    if not known:
        raise InputError(
            f"{folder} must be new, empty or an older comparison; it contains other files. Choose another folder."
        )


def read_run(folder: Path) -> RunResults:
    """Read the results of a finished run for a comparison.

    Raises
    ------
    InputError
        A file is missing or damaged.
    """
    try:
        predictions = pd.read_parquet(folder / PREDICTIONS)
        ladder = pd.read_csv(folder / LADDER)
        facts = json.loads((folder / REPORT / FACTS).read_text(encoding="utf-8"))
        flat = {
            key: ", ".join(map(str, value)) if isinstance(value, list) else value
            for key, value in flat_keys(facts["configuration"]).items()
            if key != "name"
        }
        origin = _origin(facts, facts["steps"])
        missing = sorted({*COLUMNS} - {*predictions.columns}) + sorted({*LADDER_COLUMNS} - {*ladder.columns})
        if missing:
            raise ValueError(f"no column {', '.join(missing)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder}: expected a finished run with {PREDICTIONS}, {LADDER} and {REPORT}/{FACTS}; got: {error}. Run "
            "`make report RUN=…` with its configuration first."
        ) from error
    ladder["head"] = ladder["head"].astype(object).where(ladder["head"].notna(), None)
    with_digests = _with_digests(predictions, folder / PATCHES)
    return RunResults(folder.name, with_digests, ladder, flat, origin, _embedding_cost(folder), _stain(folder))


def _embedding_cost(folder: Path) -> float:
    """Core-seconds per 1,000 patches of a run's networks; NaN if the run has none."""
    try:
        manifest = read_manifest(folder / EMBEDDINGS)
        return float(1000 * manifest["notes"]["core_seconds"] / manifest["rows"])
    except (InputError, OSError, KeyError, TypeError, ZeroDivisionError):
        return math.nan


def _stain(folder: Path) -> pd.DataFrame | None:
    """Changes in AUC with altered stains; None if they were not measured."""
    try:
        return pd.read_parquet(folder / STAIN, columns=["model", "alteration", "change", "change_low", "change_high"])
    except (OSError, ValueError):
        return None


def _with_digests(predictions: pd.DataFrame, patches: Path) -> pd.DataFrame:
    """Add the digest of each patch's pixels to its predictions, if step 1 has stored it."""
    try:
        digests = pd.read_parquet(patches, columns=["patch_id", "sha256"])
    except (OSError, ValueError):
        return predictions
    return predictions.merge(digests.drop_duplicates("patch_id"), on="patch_id", how="left")


def _origin(facts: Mapping[str, Any], steps: Mapping[str, Mapping[str, Any]]) -> dict[str, object]:
    """Digest of the patches, and commit, machine, library versions and time of each step."""
    origin: dict[str, object] = {"patches digest": facts.get("patches digest")}
    for name, step in steps.items():
        kept = {key: step.get(key) for key in ("commit", "python", "machine", "rows", "seconds", "peak_mb")}
        origin |= {f"{name}.{key}": value for key, value in kept.items()}
        origin |= {f"libraries.{library}": version for library, version in step.get("libraries", {}).items()}
    return origin
