"""The final outputs of a run, stored next to its numbered folders."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from histoblend.data.ignored import ignored_names
from histoblend.data.storage.arrays import files_under
from histoblend.data.storage.atomic import copy_whole, write_atomically
from histoblend.pipelines.results import predictions_of
from histoblend.pipelines.run_files import BUNDLE, FINAL, LADDER, PREDICTIONS, SUBMISSION
from histoblend.pipelines.runtime.artefacts import file_digest, replace_folder, restore_folder

if TYPE_CHECKING:
    from pathlib import Path

    from histoblend.pipelines.run import Run


def publish(run: Run) -> None:
    """Update predictions, ladder and bundle, and the predictions of unlabelled patches if there are any."""
    predictions = predictions_of(run)
    write_atomically(run.folder / PREDICTIONS, lambda file: predictions.to_parquet(file, index=False))
    _copy(run.step("ladder").folder / LADDER, run.folder / LADDER)
    _copy_bundle(run.step("bundle").folder / BUNDLE, run.folder / BUNDLE)
    for name in (FINAL, SUBMISSION):
        if run.has("predictions"):
            _copy(run.step("predictions").folder / name, run.folder / name)
        else:
            (run.folder / name).unlink(missing_ok=True)  # from an earlier run, no longer valid


def _copy_bundle(source: Path, target: Path) -> None:
    restore_folder(target)
    if target.is_dir() and _contents(source) == _contents(target):
        return
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, ignore=ignored_names)
    replace_folder(partial, target)


def _contents(folder: Path) -> dict[str, str]:
    """Digest of every file in a folder."""
    return {name: file_digest(folder / name) for name in files_under(folder)}


def _copy(source: Path, target: Path) -> None:
    if not target.is_file() or file_digest(source) != file_digest(target):
        copy_whole(source, target)
