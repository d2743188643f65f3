"""The plan of a run: every step, what it reads, and what its result depends on, in the order in which they are made.

A result is reused when nothing changed that it depends on: the results of the steps that it reads, its settings, its
other inputs, the libraries, and the code in ``code``: folders, files and patterns in the package. A test walks the
imports of each ``build`` and fails where ``code`` misses a module that is not in ``tests/pipelines/test_plan.py``'s
list of modules that change no value.
"""

from __future__ import annotations

from pathlib import Path

from histoblend.pipelines.analysis import attributions, importances, leakage, saliency, stain
from histoblend.pipelines.config import Config
from histoblend.pipelines.run import Run, Step
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.steps import (
    bundle,
    cnn,
    embeddings,
    ensemble,
    features,
    figures,
    heads,
    ladder,
    model_set,
    patches,
    predictions,
    report,
    sections,
)

#: Code that several steps depend on: patches and splits, feature tables, fitted models, analyses, what is drawn.
PATCHES = ("data", "pipelines/run_files.py")
TABLES = (*PATCHES, "features", "pipelines/results.py", "pipelines/tables.py")
CLUSTER = tuple(f"pipelines/engine/{name}.py" for name in ("cluster", "cluster_tables", "worker"))
MODELS = (*TABLES, "models/*.py", "models/heads")
ANALYSES = (
    *MODELS, "models/inspection", "reports/evaluation",
    "pipelines/analysis/model_set.py", "pipelines/runtime/dataclass_files.py",
)  # fmt: skip
SECTIONS = (
    *ANALYSES, "pipelines/analysis", "pipelines/steps/bundle.py", "pipelines/steps/ladder.py",
    "pipelines/steps/model_set.py", "pipelines/steps/patches.py", "pipelines/steps/report_inputs.py",
    "reports/*.py", "reports/sections", "reports/page",
)  # fmt: skip
CONTENT = (
    "data/storage", "pipelines/run_files.py", "pipelines/runtime/dataclass_files.py", "pipelines/steps/page_content.py",
    "reports/page/section.py",
)  # fmt: skip

STEPS = (
    Step(
        "prepare", "1-patches", patches.build,
        reads=(),
        code=(*PATCHES, "pipelines/steps/patches.py"),
        settings=patches.settings, inputs=patches.inputs,
    ),
    Step(
        "features", "2-features", features.build,
        reads=("prepare",),
        code=(*TABLES, "pipelines/steps/features.py", *CLUSTER),
        settings=features.settings, inputs=features.inputs, part_of=features.part_of,
    ),
    Step(
        "embeddings", "3-embeddings", embeddings.build,
        reads=("prepare",),
        code=(*TABLES, "pipelines/steps/embeddings.py", *CLUSTER),
        settings=embeddings.settings, inputs=embeddings.inputs, part_of=embeddings.part_of,
    ),
    Step(
        "heads", "4-heads", heads.build,
        reads=("prepare", "features", "embeddings"),
        code=(*MODELS, "pipelines/steps/heads.py", "pipelines/engine"),
        settings=heads.settings, inputs=heads.inputs,
    ),
    Step(
        "cnn", "5-cnn", cnn.build,
        reads=("prepare",),
        code=(*MODELS, "pipelines/steps/cnn.py"),
        settings=cnn.settings, inputs=cnn.inputs, part_of=cnn.part_of,
    ),
    Step(
        "ensemble", "6-ensemble", ensemble.build,
        reads=("prepare", "heads", "cnn"),
        code=(*MODELS, "pipelines/steps/ensemble.py"),
        settings=ensemble.settings,
    ),
    Step(
        "ladder", "analysis/ladder", ladder.build,
        reads=("prepare", "features", "embeddings", "heads", "cnn", "ensemble"),
        code=(*MODELS, "pipelines/runtime/dataclass_files.py", "pipelines/steps/ladder.py", "reports/evaluation"),
        settings=ladder.settings,
    ),
    Step(
        "models", "analysis/models", model_set.build,
        reads=("prepare", "features", "embeddings", "heads", "cnn", "ensemble", "ladder"),
        code=(*MODELS, "pipelines/steps/model_set.py"),
        inputs=model_set.inputs,
    ),
    Step(
        "bundle", "analysis/bundle", bundle.build,
        reads=("prepare", "models", "ladder"),
        code=(*ANALYSES, "pipelines/steps/model_set.py", "pipelines/steps/bundle.py", "reports/model_card.py"),
    ),
    Step(
        "importances", "analysis/importances", importances.build,
        reads=("prepare", "features", "embeddings", "heads", "models"),
        code=(*ANALYSES, "pipelines/analysis/importances.py"),
        settings=importances.settings,
    ),
    Step(
        "attributions", "analysis/attributions", attributions.build,
        reads=("prepare", "features", "embeddings", "heads", "models", "importances"),
        code=(*ANALYSES, "pipelines/analysis/importances.py", "pipelines/analysis/attributions.py"),
        settings=attributions.settings,
    ),
    Step(
        "leakage", "analysis/leakage", leakage.build,
        reads=("prepare", "features"),
        code=(*MODELS, "pipelines/analysis/leakage.py"),
        settings=leakage.settings, part_of=leakage.part_of,
    ),
    Step(
        "stain", "analysis/stain", stain.build,
        reads=("prepare", "features", "embeddings", "heads", "cnn", "ensemble", "models", "ladder"),
        code=(*ANALYSES, "pipelines/analysis/stain.py"),
        settings=stain.settings,
    ),
    Step(
        "saliency", "analysis/saliency", saliency.build,
        reads=("prepare", "cnn"),
        code=(*MODELS, "models/inspection", "reports/evaluation", "pipelines/analysis/saliency.py"),
        part_of=saliency.part_of,
    ),
    Step(
        "sections", "analysis/sections", sections.build,
        reads=(
            "prepare", "features", "embeddings", "heads", "cnn", "ensemble", "ladder",
            "importances", "attributions", "leakage", "stain", "saliency",
        ),
        code=(*SECTIONS, "pipelines/steps/sections.py"),
        inputs=sections.inputs,
    ),
    Step(
        "figures", "analysis/figures", figures.build,
        reads=("sections",),
        code=(*CONTENT, "pipelines/steps/figures.py", "reports/page/static_figures.py"),
    ),
    Step(
        "report", "7-report", report.build,
        reads=("sections", "figures"),
        code=(*MODELS, *CONTENT, "pipelines/steps/report.py", "reports/page", "reports/templates", "reports/words.py"),
    ),
    Step(
        "predictions", "8-predictions", predictions.build,
        reads=("prepare", "bundle"),
        code=(*ANALYSES, "pipelines/predict", "pipelines/steps/bundle.py", "pipelines/steps/predictions.py"),
        part_of=predictions.part_of,
    ),
)  # fmt: skip

#: What `make ensemble` adds to `make baseline`.
ENSEMBLE_ONLY = frozenset({"cnn", "ensemble", "saliency"})


def plan_run(config: Config, root: Path, *, rebuild: bool = False, screen: Screen | None = None) -> Run:
    """Open a run of these steps.

    Parameters
    ----------
    config : Config
    root : Path
        Folder of all runs.
    rebuild : bool
        Replace results that were made with another configuration.
    screen : Screen, optional
    """
    return Run(config, root, {step.name: step for step in STEPS}, rebuild, screen or Screen())
