"""A real bundle, made in seconds: a logistic head on colour columns of a small phantom."""

from pathlib import Path

from histoblend.pipelines.config import load_config
from histoblend.pipelines.plan import plan_run
from histoblend.pipelines.results import predictions_of
from histoblend.pipelines.steps.outputs import write_bundle
from histoblend.reports.evaluation.ladder import ladder
from tests import ROOT
from tests.reports.cohorts import model_names

SETTINGS = ["data.n=120", "data.slides=12", "split.folds=2", "engine.workers=1", "name=small"]
SETTINGS += ["features.families=['colour']", "heads.features=['colour']"]


def small_bundle(root: Path, *heads: str) -> Path:
    """Run the steps up to the heads, and pack them."""
    run = plan_run(load_config(ROOT / "configs" / "phantom.toml", [*SETTINGS, f"heads.heads={list(heads)}"]), root)
    predictions = predictions_of(run)
    write_bundle(run, ladder(predictions, model_names(predictions), draws=20))
    return run.folder / "bundle"
