"""Step 7: the page, from what the steps before it left."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histoblend.pipelines.config import Config
from histoblend.pipelines.runtime.artefacts import MANIFEST, Outcome
from histoblend.pipelines.steps.report_inputs import report_inputs, shown_configuration
from histoblend.reports.report_files import write_report

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def settings(config: Config) -> dict[str, Any]:
    """The name of the run, which the page carries."""
    return {"name": config.name}


def inputs(run: Run) -> dict[str, str]:
    """The page shows all of the configuration; another one rebuilds it, where a step before would refuse."""
    shown = json.dumps(shown_configuration(run.config), sort_keys=True)
    return {"configuration": hashlib.sha256(shown.encode()).hexdigest()}


def build(run: Run, folder: Path) -> Outcome:
    """Write ``report.html``, its numbers as CSV and JSON, and its figures beside it."""
    shown = report_inputs(run)
    write_report(folder, shown, prints=True)
    figures, ignore = run.step("figures").folder, shutil.ignore_patterns(MANIFEST)
    shutil.copytree(figures, folder / "figures", ignore=ignore, dirs_exist_ok=True)
    return Outcome(len(shown.predictions))
