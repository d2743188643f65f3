"""The plan of a run: all steps in order of execution, with the inputs, settings and code that each depends on.

A result is reused if none of its dependencies changed: the results of the steps that it reads, its settings, its other
inputs, the libraries, and the code listed in ``code`` (folders, files and patterns in the package). A test follows the
imports of each ``build``. It fails if ``code`` misses a module that could change a value;
``tests/pipelines/test_plan.py`` lists the modules that cannot.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from histoblend.models.names import TABLES
from histoblend.pipelines.config import Config, shown_configuration
from histoblend.pipelines.results import needs_table
from histoblend.pipelines.run import Run, Step
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.steps import (
    bundle,
    centres,
    cnn,
    embeddings,
    features,
    heads,
    model_set,
    patches,
    predictions,
    refit,
)

#: The step of learning curves, and that of the fine-tuned network's.
LEARNING, LEARNING_NETWORK = "learning", "learning-network"

#: Code that several steps depend on: patches and splits, feature tables, fitted models, analyses, report sections.
PATCHES = ("data", "pipelines/run_files.py")
#: Modules of features/ that only name and describe columns. No table depends on them; report sections do.
COLUMN_WORDS = ("features/handcrafted/plain_names.py", "features/handcrafted/search_words.py")
TABLE_CODE = (
    *PATCHES, "features", *(f"!{name}" for name in COLUMN_WORDS), "!features/handcrafted/catalogue.py",
    "models/names.py", "pipelines/results.py", "pipelines/tables.py",
)  # fmt: skip
CLUSTER = tuple(f"pipelines/engine/{name}.py" for name in ("cluster", "cluster_tables", "worker"))
#: The training of the network.
NETWORK = tuple(f"pipelines/steps/{name}.py" for name in ("cnn", "cnn_context", "cnn_training"))
MODELS = (*TABLE_CODE, "models/*.py", "models/heads")
ANALYSES = (
    *MODELS, "models/inspection", "reports/evaluation",
    "pipelines/analysis/model_set.py", "pipelines/runtime/dataclass_files.py",
)  # fmt: skip
SECTIONS = (
    *ANALYSES, "pipelines/analysis", "pipelines/steps/bundle.py", "pipelines/steps/cnn_context.py",
    "pipelines/steps/ladder.py", "pipelines/steps/model_set.py", "pipelines/steps/patches.py",
    "pipelines/steps/report_inputs.py",
    "reports/*.py", "reports/sections", "reports/page", *COLUMN_WORDS,
)  # fmt: skip
CONTENT = (
    "data/ignored.py", "data/storage", "pipelines/run_files.py", "pipelines/runtime/dataclass_files.py",
    "pipelines/steps/page_content.py", "reports/page/section.py",
)  # fmt: skip


def _shown(run: Run) -> dict[str, str]:
    """Digest of the configuration, all of which the report shows: a change rebuilds the report and is not refused."""
    shown = json.dumps(shown_configuration(run.config), sort_keys=True)
    return {"configuration": hashlib.sha256(shown.encode()).hexdigest()}


STEPS = (
    Step(
        "prepare", "1-patches", "pipelines.steps.patches:build",
        reads=(),
        code=(*PATCHES, "pipelines/steps/patches.py"),
        settings=patches.settings,
        inputs=patches.inputs,
    ),
    Step(
        "features", "2-features", "pipelines.steps.features:build",
        reads=("prepare",),
        code=(*TABLE_CODE, "pipelines/steps/features.py", *CLUSTER),
        settings=lambda config: {"families": list(config.features.families)},
        inputs=features.inputs,
        is_needed=lambda run: needs_table(run, "features"),
    ),
    Step(
        "features-normalised", "2-features-normalised", "pipelines.steps.features:build_normalised",
        reads=("prepare",),
        code=(*TABLE_CODE, "pipelines/steps/features.py", *CLUSTER),
        settings=lambda config: {"families": list(config.features.families)},
        inputs=features.inputs,
        is_needed=lambda run: needs_table(run, "features-normalised"),
    ),
    Step(
        "embeddings", "3-embeddings", "pipelines.steps.embeddings:build",
        reads=("prepare",),
        code=(*TABLE_CODE, "pipelines/steps/embeddings.py", *CLUSTER),
        settings=lambda config: config.embeddings.model_dump(exclude={"shard"}),
        inputs=embeddings.inputs,
        is_needed=lambda run: needs_table(run, "embeddings"),
    ),
    Step(
        "embeddings-normalised", "3-embeddings-normalised", "pipelines.steps.embeddings:build_normalised",
        reads=("prepare",),
        code=(*TABLE_CODE, "pipelines/steps/embeddings.py", *CLUSTER),
        settings=lambda config: config.embeddings.model_dump(exclude={"shard"}),
        inputs=embeddings.inputs,
        is_needed=lambda run: needs_table(run, "embeddings-normalised"),
    ),
    Step(
        "heads", "4-heads", "pipelines.steps.heads:build",
        reads=("prepare", *TABLES),
        code=(*MODELS, "pipelines/steps/heads.py", "pipelines/engine"),
        settings=lambda config: config.heads.model_dump(),
        inputs=heads.inputs,
    ),
    Step(
        "cnn", "5-cnn", "pipelines.steps.cnn:build",
        reads=("prepare",),
        code=(*MODELS, *NETWORK),
        settings=lambda config: config.cnn.model_dump(exclude={"cache_gb"}) | {"refit": config.final.refit},
        inputs=cnn.inputs,
        is_needed=lambda run: run.config.cnn.enabled,
    ),
    Step(
        "ensemble", "6-ensemble", "pipelines.steps.ensemble:build",
        reads=("prepare", "heads", "cnn"),
        code=(*MODELS, "pipelines/steps/ensemble.py"),
        settings=lambda config: config.ensemble.model_dump(),
    ),
    Step(
        "ladder", "analysis/ladder", "pipelines.steps.ladder:build",
        reads=("prepare", *TABLES, "heads", "cnn", "ensemble"),
        code=(*MODELS, "pipelines/runtime/dataclass_files.py", "pipelines/steps/ladder.py", "reports/evaluation"),
        settings=lambda config: {"draws": config.report.draws},
    ),
    Step(
        "models", "analysis/models", "pipelines.steps.model_set:build",
        reads=("prepare", *TABLES, "heads", "cnn", "ensemble", "ladder"),
        code=(*MODELS, "pipelines/steps/cnn_context.py", "pipelines/steps/model_set.py"),
        inputs=model_set.inputs,
    ),
    Step(
        "refit", "analysis/refit", "pipelines.steps.refit:build",
        reads=("prepare", *TABLES, "heads"),
        code=(*MODELS, "pipelines/steps/heads.py", "pipelines/steps/refit.py", "pipelines/engine"),
        settings=lambda config: config.heads.model_dump(),
        inputs=heads.inputs,
        is_needed=refit.is_needed,
    ),
    Step(
        "bundle", "analysis/bundle", "pipelines.steps.bundle:build",
        reads=("prepare", "cnn", "models", "ladder", "refit"),
        inputs=bundle.inputs,
        code=(
            *ANALYSES, "pipelines/steps/cnn_context.py", "pipelines/steps/model_set.py", "pipelines/steps/bundle.py",
            "reports/model_card.py", "reports/within_slides.py", "reports/words.py",
        ),
    ),
    Step(
        "importances", "analysis/importances", "pipelines.analysis.importances:build",
        reads=("prepare", "features", "embeddings", "heads", "models"),
        code=(*ANALYSES, "pipelines/analysis/importances.py"),
        settings=lambda config: config.report.model_dump(),
    ),
    Step(
        "attributions", "analysis/attributions", "pipelines.analysis.attributions:build",
        reads=("prepare", *TABLES, "heads", "cnn", "ensemble", "models", "importances"),
        code=(
            *ANALYSES, "pipelines/analysis/importances.py", "pipelines/analysis/attributions.py",
            "pipelines/analysis/explained_models.py",
        ),
        settings=lambda config: {"draws": config.report.draws},
    ),
    Step(
        "leakage", "analysis/leakage", "pipelines.analysis.leakage:build",
        reads=("prepare", "features"),
        code=(*MODELS, "pipelines/analysis/leakage.py"),
        settings=lambda config: {"draws": config.report.draws},
        is_needed=lambda run: run.has("features"),
    ),
    Step(
        "shortcuts", "analysis/shortcuts", "pipelines.analysis.shortcuts:build",
        reads=("prepare", *TABLES, "cnn", "ensemble"),
        code=(*MODELS, "models/inspection", "pipelines/analysis/shortcuts.py"),
        settings=lambda config: {"draws": config.report.draws, "features": list(config.heads.features)},
    ),
    Step(
        "learning", "analysis/learning", "pipelines.analysis.learning:build",
        reads=("prepare", *TABLES, "heads", "cnn", "ensemble"),
        code=(*MODELS, "models/inspection", "pipelines/analysis/learning.py"),
        settings=lambda config: {"draws": config.report.draws},
    ),
    Step(
        "learning-network", "analysis/learning-network", "pipelines.steps.learning_network:build",
        reads=("prepare",),
        code=(
            *MODELS, *NETWORK, "models/inspection", "pipelines/analysis/learning.py",
            "pipelines/steps/learning_network.py",
        ),
        # All folds are judged, even if cnn.folds is smaller.
        settings=lambda config: (
            {"draws": config.report.draws} | config.cnn.model_dump(exclude={"enabled", "folds", "cache_gb"})
        ),
        inputs=cnn.inputs,
        is_needed=lambda run: run.config.learning.network,
    ),
    Step(
        "centres", "analysis/centres", "pipelines.steps.centres:build",
        reads=("prepare", *TABLES, "heads"),
        code=(
            *MODELS, "pipelines/steps/heads.py", "pipelines/steps/centres.py", "pipelines/engine",
            "reports/evaluation/centres.py",
        ),
        settings=lambda config: {"draws": config.report.draws, "heads": config.heads.model_dump()},
        inputs=heads.inputs,
        is_needed=centres.is_needed,
    ),
    Step(
        "stain", "analysis/stain", "pipelines.analysis.stain:build",
        reads=("prepare", "features", "embeddings", "heads", "cnn", "ensemble", "models", "ladder"),
        code=(*ANALYSES, "pipelines/analysis/stain.py"),
        settings=lambda config: {"draws": config.report.draws},
    ),
    Step(
        "saliency", "analysis/saliency", "pipelines.analysis.saliency:build",
        reads=("prepare", "cnn"),
        code=(*MODELS, "models/inspection", "reports/evaluation", "pipelines/analysis/saliency.py"),
        is_needed=lambda run: run.has("cnn"),
    ),
    Step(
        "sections", "analysis/sections", "pipelines.steps.sections:build",
        reads=(
            "prepare", "features", "embeddings", "heads", "cnn", "ensemble", "ladder", "bundle",
            "importances", "attributions", "leakage", "centres", "shortcuts", "learning", "learning-network", "stain",
            "saliency",
        ),
        code=(*SECTIONS, "pipelines/steps/sections.py"),
        inputs=_shown,
    ),
    Step(
        "figures", "analysis/figures", "pipelines.steps.figures:build",
        reads=("sections",),
        code=(*MODELS, *CONTENT, "pipelines/steps/figures.py", "reports/page", "reports/words.py"),
    ),
    Step(
        "report", "7-report", "pipelines.steps.report:build",
        reads=("sections", "figures"),
        code=(
            *MODELS, *CONTENT, "pipelines/steps/report.py", "reports/page", "reports/templates", "reports/vendor",
            "reports/words.py",
        ),
    ),
    Step(
        "predictions", "8-predictions", "pipelines.steps.predictions:build",
        reads=("prepare", "bundle"),
        code=(*ANALYSES, "pipelines/predict", "pipelines/steps/bundle.py", "pipelines/steps/predictions.py"),
        is_needed=predictions.is_needed,
    ),
)  # fmt: skip

#: Steps that `make ensemble` adds to `make baseline`. `make generalise` adds learning curves alone.
CURVES = frozenset({LEARNING, LEARNING_NETWORK})
ENSEMBLE_ONLY = frozenset({"cnn", "ensemble", "saliency"}) | CURVES


def plan_run(config: Config, root: Path, *, rebuild: bool = False, screen: Screen | None = None) -> Run:
    """Open a run with these steps.

    Parameters
    ----------
    config : Config
    root : Path
        Folder of all runs.
    rebuild : bool
        Whether to replace results that were made with another configuration.
    screen : Screen, optional
    """
    return Run(config, root, {step.name: step for step in STEPS}, rebuild, screen or Screen())
