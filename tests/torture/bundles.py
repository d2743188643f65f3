"""A real bundle that is built in seconds: heads on the colour columns of a small phantom."""

from pathlib import Path

from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import ENSEMBLE_ONLY, plan_run
from tests import ROOT

SETTINGS = ["data.n=120", "data.slides=12", "split.folds=2", "engine.workers=1", "report.draws=100"]
SETTINGS += ["name=small", "final.refit=train"]
SETTINGS += ["features.families=['colour']", "heads.features=['colour']"]


def small_bundle(root: Path, *heads: str) -> Path:
    """Run the steps up to the bundle; return its folder."""
    run = plan_run(load_config(ROOT / "configs" / "phantom.toml", [*SETTINGS, f"heads.heads={list(heads)}"]), root)
    run.leave_out(ENSEMBLE_ONLY)
    return run.step("bundle").folder / "bundle"
