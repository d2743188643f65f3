"""The stable outputs of a run, beside its numbered folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histoblend.data.storage.atomic import copy_whole, write_whole
from histoblend.pipelines.results import predictions_of
from histoblend.pipelines.run_files import FINAL, LADDER, PREDICTIONS, SUBMISSION
from histoblend.pipelines.runtime.artefacts import file_digest

if TYPE_CHECKING:
    from pathlib import Path

    from histoblend.pipelines.run import Run


def publish(run: Run) -> None:
    """Bring ``predictions.parquet``, ``ladder.csv``, ``predictions.csv`` and ``submission.csv`` up to date.

    The first two hold what the report holds. The others are there where patches came without labels.
    """
    predictions = predictions_of(run)
    write_whole(run.folder / PREDICTIONS, lambda file: predictions.to_parquet(file, index=False))
    _copy(run.step("ladder").folder / LADDER, run.folder / LADDER)
    for name in (FINAL, SUBMISSION):
        if run.has("predictions"):
            _copy(run.step("predictions").folder / name, run.folder / name)
        else:
            (run.folder / name).unlink(missing_ok=True)  # an earlier run's, which no longer holds


def _copy(source: Path, target: Path) -> None:
    if not target.is_file() or file_digest(source) != file_digest(target):
        copy_whole(source, target)
