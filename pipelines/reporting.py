"""Step 7 and the stable outputs: ladder, importances, report, predictions.parquet, ladder.csv and the bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from models.bundle import load_head, seal_bundle
from models.heads import LogisticHead
from pipelines.artefacts import Outcome, StepSpec, replace_folder
from pipelines.config import Config
from pipelines.fitting import COSTS, PREDICTIONS, SETS
from pipelines.prepare import balance, split_warnings
from reports.importance import fitted_importance, permutation_importance
from reports.ladder import ladder
from reports.metrics import slide_groups
from reports.page import ReportInputs, write_report

if TYPE_CHECKING:
    from pipelines.baseline import Run

LADDER = "ladder.csv"
BUNDLE = "bundle"

#: Embedding columns mean nothing one by one: they are shuffled as one.
TOGETHER = ("embedding",)


def report_spec(config: Config, inputs: Mapping[str, str]) -> StepSpec:
    """What the report depends on; ``inputs`` are the digests of the heads and the feature tables."""
    sources = ("data", "features", "models", "reports", "pipelines/prepare.py", "pipelines/tables.py")
    section = {**config.report.model_dump(), "name": config.name}
    return StepSpec("report", "7-report", (*sources, "pipelines/reporting.py"), section, inputs, config.seed)


def make_report(run: Run, folder: Path) -> Outcome:
    """Write ``ladder.csv``, ``report.html`` and the figures' numbers into ``folder``."""
    predictions = pd.read_parquet(run.heads[0] / PREDICTIONS)
    models = [name.removeprefix("prob_") for name in map(str, predictions.columns) if name.startswith("prob_")]
    steps = ladder(predictions, models, draws=run.config.report.draws, seed=run.config.seed, costs=rung_costs(run))
    phantom = run.config.data.source == "phantom"
    inputs = ReportInputs(
        title=f"Histoblend: {run.config.name}",
        predictions=predictions,
        ladder=steps,
        importances=importances(run, predictions),
        patches=run.patches,
        warnings=tuple(split_warnings(run.patches.table, run.prepared[1]["notes"]["set_aside"])),
        facts=facts(run),
        sentences=column_sentences(),
        phantom=phantom,
    )
    write_report(folder, inputs)
    return Outcome(len(predictions))


def rung_costs(run: Run) -> dict[str, tuple[float, float]]:
    """Core-seconds and peak memory (MB) of each model: the feature tables that it needs, and all its fits."""
    steps = {name: manifest for name, (_, manifest) in run.tables.items()}
    seconds = {name: manifest["notes"]["core_seconds"] for name, manifest in steps.items()}
    if "features" in steps:
        # The colour rung needs the colour family only.
        seconds["colour"] = steps["features"]["notes"]["ms_a_patch"]["colour"] * steps["features"]["rows"] / 1e3
    needs = {
        "colour": ("colour",),
        "handcrafted": ("features",),
        "embeddings": ("embeddings",),
        "both": ("features", "embeddings"),
        "context": ("features",),
    }
    costs = {"prevalence": (0.0, 0.0)}
    for row in pd.read_csv(run.heads[0] / COSTS).to_dict("records"):
        wanted = needs[row["model"].partition("_")[2]]
        peaks = [steps["features" if name == "colour" else name]["peak_mb"] for name in wanted]
        total = row["seconds"] + sum(seconds[name] for name in wanted)
        costs[row["model"]] = (round(total, 1), max(row["peak_mb"], *peaks))
    return costs


def importances(run: Run, predictions: pd.DataFrame) -> pd.DataFrame:
    """What each refitted head relies on: gain or coefficients, and permutation on the held-out slides."""
    from joblib import Parallel, delayed

    sets = run.sets()
    test = predictions[predictions["split"] == "test"]
    tasks = [
        delayed(_importance)(run.config, run.heads[0], f"{head}_{features}", values[test.index], columns, test)
        for features, (values, columns) in sets.items()
        for head in run.config.heads.heads
    ]
    # Threads: XGBoost and the bootstrap let go of the interpreter lock.
    return pd.concat(Parallel(n_jobs=run.workers, prefer="threads")(tasks), ignore_index=True)


def _importance(
    config: Config, heads: Path, model: str, X: np.ndarray, columns: list[str], test: pd.DataFrame
) -> pd.DataFrame:
    """Importances of one model; ``X`` and ``test`` are the held-out slides."""
    head, features = load_head(heads / model), model.partition("_")[2]
    linear = isinstance(head, LogisticHead)
    fitted = head.coef_[0] if linear else head.feature_importances_
    found = [fitted_importance(fitted, columns, measure="coefficient" if linear else "gain", model=model)]
    # Column by column only where columns have a meaning and no embedding stands in for them.
    units: dict[str, tuple[Literal["family", "column"], ...]] = {
        "handcrafted": ("family", "column"),
        "both": ("family",),
        "context": ("family",),
    }
    found += [
        permutation_importance(
            partial(_positive, head),
            X,
            test["label"].to_numpy(),
            columns,
            slide_groups(test["slide"]),
            repeats=config.report.repeats,
            seed=config.seed,
            by=unit,
            together=TOGETHER,
            model=model,
        )
        for unit in units.get(features, ())
    ]
    return pd.concat(found, ignore_index=True)


def _positive(head: Any, X: np.ndarray) -> np.ndarray:
    return head.predict_proba(X)[:, 1]


def facts(run: Run) -> dict[str, Any]:
    """How the numbers came about: configuration, split, and every step's manifest without its file list."""
    steps = {folder.name: manifest for folder, manifest in [run.prepared, *run.tables.values(), run.heads]}
    wanted = (
        "rows",
        "seconds",
        "peak_mb",
        "made",
        "commit",
        "python",
        "machine",
        "libraries",
        "inputs",
        "code",
        "notes",
    )
    return {
        "configuration": run.config.model_dump(mode="json", exclude={"engine"}),
        "split": balance(run.patches.table).to_dict("records"),
        "patches digest": run.patches.digest,
        "test predictions": "from a refit of every head on all training slides",
        "steps": {name: {key: manifest[key] for key in wanted} for name, manifest in steps.items()},
    }


def column_sentences() -> dict[str, str]:
    """What each handcrafted column is, in a sentence, and the same relative to the slide."""
    from features.context import in_slide_name
    from features.table import columns

    raw = {column.name: column.sentence for column in columns()}
    relative = {in_slide_name(name): f"{text} Relative to the patch's slide." for name, text in raw.items()}
    return raw | relative


def publish(run: Run, folder: Path) -> None:
    """Write the stable outputs into the run folder: ``predictions.parquet``, ``ladder.csv`` and ``bundle/``."""
    for source in (run.heads[0] / PREDICTIONS, folder / LADDER):
        temporary = run.folder / f".{source.name}.tmp"
        shutil.copyfile(source, temporary)
        temporary.replace(run.folder / source.name)
    write_bundle(run, pd.read_csv(folder / LADDER))


def write_bundle(run: Run, steps: pd.DataFrame) -> None:
    """Write the refitted heads, their columns and thresholds as a sealed bundle."""
    target, partial = run.folder / BUNDLE, run.folder / f"{BUNDLE}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    heads, manifest = run.heads
    thresholds = steps[steps["split"] == "oof"].set_index("model")["threshold"]
    models = {}
    for model in manifest["notes"]["models"]:
        shutil.copytree(heads / model, partial / model)
        models[model] = {"threshold": float(thresholds[model]), "columns": model.partition("_")[2]}
    train = run.patches.table[run.patches.table["split"] == "train"]
    content = {
        "run": run.config.name,
        "made": manifest["made"],
        "commit": manifest["commit"],
        "libraries": manifest["libraries"],
        "patch": {"size": run.config.data.size, "source": run.config.data.source},
        "features": {name: table["config"] for name, (_, table) in run.tables.items()},
        "prevalence": float(train["label"].mean()),
        "columns": json.loads((heads / SETS).read_text(encoding="utf-8")),
        "models": models,
    }
    seal_bundle(partial, content)
    replace_folder(partial, target)


def show_ladder(run: Run) -> None:
    """Show the ladder in the terminal: out-of-fold, then on the held-out slides."""
    steps = pd.read_csv(run.folder / LADDER)
    for split, words in (("oof", "out-of-fold, by slide"), ("test", "held-out slides")):
        part = steps[steps["split"] == split]
        shown = pd.DataFrame(
            {
                "rung": part["rung"],
                "head": part["head"].fillna("–"),
                "AUC (95 % interval)": _with_interval(part, "auc"),
                "gain over rung below": _with_interval(part, "gain", sign="+"),
                "Brier": part["brier"].map("{:.3f}".format),
                "acc.": part["accuracy"].map("{:.3f}".format),
                "s": part["seconds"].map("{:.0f}".format),
                "MB": part["peak_mb"].map("{:.0f}".format),
            }
        )
        slides = int(part["slides"].iloc[0])
        run.screen.table(shown, f"{words}: {part['patches'].iloc[0]} patches, {slides or 'unknown'} slides")
    run.screen.say(
        "intervals: slides resampled; acc.: accuracy at the threshold chosen out-of-fold; "
        "s, MB: core-seconds and peak memory, features included"
    )


def _with_interval(part: pd.DataFrame, name: str, sign: str = "") -> pd.Series:
    texts = [
        "" if np.isnan(value) else f"{value:{sign}.3f} ({low:{sign}.2f} to {high:{sign}.2f})"
        for value, low, high in zip(part[name], part[f"{name}_low"], part[f"{name}_high"], strict=True)
    ]
    return pd.Series(texts, part.index)
