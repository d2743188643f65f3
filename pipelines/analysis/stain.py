"""The stain probe: predictions of every model for held-out patches whose stains were altered slide by slide."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoblend.data.splits import is_known
from histoblend.features.extract import extract_shards
from histoblend.features.slide_stain import StainedPixels, stain_sums, stains_of
from histoblend.models.blends import choose_blends
from histoblend.models.inspection.stain import (
    StainGroups,
    StainView,
    group_slides,
    group_table,
    shift_curves,
    stain_families,
    stain_groups,
)
from histoblend.models.inspection.stain_shifts import alterations
from histoblend.models.names import NORMALISED, SINGLE_FAMILIES, needs_slides, split_model_name
from histoblend.models.predictor import Predictor, open_predictor
from histoblend.pipelines.analysis.model_set import models_of
from histoblend.pipelines.results import feature_tables, patches_of, predictions_of, read_ladder
from histoblend.pipelines.run_files import PREDICTIONS
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.runtime.dataclass_files import load_dataclass, save_dataclass
from histoblend.pipelines.tables import known_slides, read_values

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


#: Most held-out patches, of all slides together. They are few, because each is altered and predicted again for every
#: stain and draw, and the fine-tuned network takes 0.1 s each time.
MAX_PATCHES = 112
#: Most slides that these patches come from.
MAX_SLIDES = 40
#: Most patches per slide that slide context compares with, including the predicted ones.
SLIDE_PATCHES = 32


#: Patches per shard; one thread computes one shard.
SHARD = 16

VIEW = "view"


def build(run: Run, folder: Path) -> StepResult:
    """Write the predictions for patches with altered stains, and the content of the report's stain section."""
    notes = {} if why_no_probe(patches_of(run).table) else probe_stain(run, folder)
    predictions = predictions_of(run)
    save_dataclass(stain_view(run, folder, predictions, read_ladder(run)), folder / VIEW)
    return StepResult(len(predictions), notes)


def read_stain(run: Run) -> StainView:
    """Content of the stain section of a run's report."""
    return load_dataclass(run.step("stain").folder / VIEW, StainView, StainGroups)


def why_no_probe(table: pd.DataFrame) -> str:
    """Explain why the effect of shifted stains cannot be measured; empty if it can.

    Parameters
    ----------
    table : DataFrame
        ``label, slide, split``.
    """
    test = table[table["split"] == "test"]
    if test.empty:
        return "No slides were held out. Shifted stains need slides that no model was trained on."
    if test["slide"].nunique() + test["slide"].isna().sum() < 2:
        return "Only one slide was held out. The effect of stain differences between slides needs two or more."
    if test["label"].nunique() < 2:
        return "The held-out slides have one class only, so the AUC is not defined."
    return ""


@dataclass(frozen=True)
class Sample:
    """Held-out patches to predict, and other patches of the same slides.

    Attributes
    ----------
    rows : ndarray of shape (n,), int
        Rows of the table; those to predict come first.
    n_predicted : int
        Number of patches to predict. The others only serve as the slide's reference for models in slide context.
    """

    rows: np.ndarray
    n_predicted: int


def choose_sample(table: pd.DataFrame, seed: int) -> Sample:
    """Choose held-out patches evenly over slides, keeping each slide's share of positives.

    If there are more than `MAX_SLIDES` slides, that many are drawn at random. All patches of small slides are used,
    and larger slides provide the rest. A patch without a slide counts as a separate slide.

    Parameters
    ----------
    table : DataFrame
        ``patch_id, label, slide, split``.
    seed : int

    Returns
    -------
    Sample
    """
    rng = np.random.default_rng(seed)
    test = table[table["split"] == "test"]
    parts = [
        test.index.to_numpy()[rows] for rows in pd.Series(slide_names(test)).groupby(slide_names(test)).indices.values()
    ]
    most = MAX_SLIDES if test["slide"].notna().any() else MAX_PATCHES
    if len(parts) > most:
        parts = [parts[number] for number in np.sort(rng.choice(len(parts), most, replace=False))]
    quota = _patches_per_slide([len(part) for part in parts], MAX_PATCHES)
    labels = table["label"].to_numpy()
    predicted, others = [], []
    for part in parts:
        stratified = _stratified(rng.permutation(part), labels, quota)
        predicted.append(stratified)
        rest = np.setdiff1d(part, stratified)
        others.append(rng.permutation(rest)[: max(SLIDE_PATCHES - len(stratified), 0)])
    chosen = np.concatenate(predicted)
    return Sample(np.concatenate([np.sort(chosen), np.sort(np.concatenate(others))]), len(chosen))


def slide_names(table: pd.DataFrame) -> np.ndarray:
    """Slide of each patch, or a name made from the patch id if the slide is unknown, ndarray of str."""
    own = "patch:" + table["patch_id"].astype(str)
    return table["slide"].astype(object).where(table["slide"].notna(), own).astype(str).to_numpy()


def _patches_per_slide(sizes: list[int], most: int) -> int:
    """Largest number of patches per slide with a total of at most ``most``; at least one."""
    quota = 1
    while sum(min(size, quota + 1) for size in sizes) <= most and quota < max(sizes):
        quota += 1
    return quota


def _stratified(rows: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """At most `count` rows with about the same share of positives, and both classes if both occur."""
    if len(rows) <= count:
        return rows
    ordered = rows[np.argsort(labels[rows], kind="stable")]
    # Includes the first and the last row, so that two or more rows of a mixed slide have both classes.
    return ordered[np.round(np.linspace(0, len(rows) - 1, count)).astype(int)]


def probe_stain(run: Run, folder: Path) -> dict[str, int]:
    """Predict the sample with every model, with original and altered stains, and write the results into ``folder``.

    ``predictions.parquet`` has the columns ``patch_id, slide, label, alteration, strength, draw, prob_<model>`` and one
    row per patch and alteration. Strength 0 means the original patches.

    Returns
    -------
    dict from str to int
        Number of predicted patches, of their slides, and of the other patches.
    """
    patches, bundle = patches_of(run), models_of(run)
    sample = choose_sample(patches.table, run.config.seed)
    table = patches.table.iloc[sample.rows].reset_index(drop=True)
    pixels = np.asarray(patches.pixels[sample.rows])
    chosen = alterations(slide_names(table), _group_slides(run), run.config.seed)
    predicted = table.iloc[: sample.n_predicted][["patch_id", "slide", "label"]]
    parts = []
    with open_predictor(bundle, list(bundle.index["models"])) as predictor:
        predict = partial(_predict, run, predictor, table["slide"], sample.n_predicted)
        with run.screen.progress("altered stains", len(chosen) * len(pixels)) as progress:
            for number, alter in enumerate(chosen):
                probabilities = predict(alter(pixels), folder / f"work-{number}", progress)
                part = predicted.assign(alteration=alter.kind, strength=alter.strength, draw=alter.draw)
                parts.append(part.assign(**probabilities))
    pd.concat(parts, ignore_index=True).to_parquet(folder / PREDICTIONS, index=False)
    for number in range(len(chosen)):
        shutil.rmtree(folder / f"work-{number}")
    slides = len(set(slide_names(predicted)))
    return {"patches": sample.n_predicted, "slides": slides, "beside": len(pixels) - sample.n_predicted}


def _predict(
    run: Run,
    predictor: Predictor,
    slides: pd.Series,
    n_predicted: int,
    pixels: np.ndarray,
    folder: Path,
    progress: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """Probabilities of the first ``n_predicted`` patches by every model, by column name ``prob_<model>``, float64.

    The other patches only serve as the slide's reference for models in slide context.
    """
    single = [name for name in predictor.members if not needs_slides(name)]
    indices = [predictor.members.index(name) for name in single]
    # Slides are stain-normalised by their altered stains.
    stained = StainedPixels(
        pixels, stains_of(stain_sums(pixels), known_slides(slides), pixels.shape[1] * pixels.shape[2])
    )

    def predict_patches(batch: StainedPixels) -> np.ndarray:
        values = predictor(np.asarray(batch.pixels), batch.stains)
        return np.concatenate([values.members[:, indices], values.table[:, predictor.compared]], axis=1)

    def reference_columns(batch: StainedPixels) -> np.ndarray:
        return predictor.features(np.asarray(batch.pixels), batch.stains, compared_only=True)[:, predictor.compared]

    options: dict[str, Any] = {"shard_size": SHARD, "prefer": "threads", "workers": _threads(run), "progress": progress}
    width = len(single) + predictor.width
    values = extract_shards(
        predict_patches, stained[:n_predicted], folder / "judged", width, dtype=np.float64, **options
    )
    probabilities = {f"prob_{name}": np.asarray(values[:, number]) for number, name in enumerate(single)}
    if predictor.width:
        others = extract_shards(reference_columns, stained[n_predicted:], folder / "beside", predictor.width, **options)
        table = np.concatenate([values[:, len(single) :].astype(np.float32), others])
        in_context = _predict_in_context(predictor, table, slides, n_predicted)
        probabilities |= {f"prob_{name}": probability for name, probability in in_context.items()}
    names = [f"prob_{name}" for name in predictor.members]
    probabilities = {name: probabilities[name] for name in names if name in probabilities}
    if run.has("ensemble"):
        # The heat-map blend uses no slide means: a few sampled patches estimate the mean of their slide poorly.
        blend = choose_blends(predictor.bundle, tiled=True)[0]
        columns = np.column_stack([probabilities[f"prob_{name}"] for name in blend.members])
        probabilities["prob_ensemble"] = blend.combine(columns)
    return probabilities


def _predict_in_context(
    predictor: Predictor, table: np.ndarray, slides: pd.Series, n_predicted: int
) -> dict[str, np.ndarray]:
    """Probability of the first ``n_predicted`` patches by each member in slide context."""
    names = pd.Series(known_slides(slides))
    by_slide = [*names.groupby(names).indices.values(), *np.flatnonzero(names.isna())[:, None]]
    probabilities = {name: np.empty(n_predicted) for name in predictor.members if needs_slides(name)}
    for rows in by_slide:
        predicted = rows[rows < n_predicted]
        if len(predicted):
            reference = predictor.reference(partial(np.take, table[rows], axis=1), len(rows))
            for name, probability in predictor.within_slide(table[predicted], reference).items():
                probabilities[name][predicted] = probability
    return probabilities


def _threads(run: Run) -> int:
    """Number of prediction threads: with ONNX Runtime one session per worker; Keras uses its own threads."""
    engines = [run.step(name).manifest["notes"]["engine"] for name in ("embeddings", "cnn") if run.has(name)]
    return run.workers if all(engine["name"] == "onnx" for engine in engines) else 1


def stain_view(run: Run, folder: Path, predictions: pd.DataFrame, steps: pd.DataFrame) -> StainView:
    """Content of the stain section: groups of slides, families that predict the group, and shifted stains.

    Parameters
    ----------
    run : Run
    folder : Path
        Contains the predictions of altered patches, if there are any.
    predictions : DataFrame
        ``patch_id, slide, split, label, prob_<model>`` of every model.
    steps : DataFrame
        The ladder.
    """
    options = {"draws": run.config.report.draws, "seed": run.config.seed}
    models = [model for model in dict.fromkeys(steps["model"]) if split_model_name(model)[0] != "prevalence"]
    shifted = None
    if (folder / PREDICTIONS).is_file():
        thresholds = dict(zip(steps["model"], steps["threshold"], strict=True))
        shifted = shift_curves(pd.read_parquet(folder / PREDICTIONS), models, thresholds, **options)
    trained = run.config.cnn.jitter if run.has("cnn") and run.config.cnn.stain == "jitter" else 0.0
    view = StainView(shifted=shifted, absent=why_no_probe(patches_of(run).table), trained=trained)
    groups = _group_slides(run)
    if groups is None:
        return view
    rungs = [model for model in models if split_model_name(model)[0] not in SINGLE_FAMILIES]
    out_of_fold = predictions[predictions.split == "train"]
    slides = patches_of(run).table["slide"].astype(object)
    families = []
    for name, step in feature_tables(run).items():
        if name.endswith(NORMALISED):  # normalised stains no longer distinguish slides
            continue
        values, columns = read_values(step.folder)
        if (table := stain_families(values, columns, groups, slides, **options)) is not None:
            families.append(table)
    ranked = pd.concat(families).sort_values("auc", ascending=False, kind="stable") if families else None
    return replace(
        view,
        groups=groups,
        scores=group_table(groups, out_of_fold, rungs, **options),
        slides=group_slides(groups, out_of_fold, rungs),
        families=None if ranked is None else ranked.reset_index(drop=True),
    )


def _group_slides(run: Run) -> StainGroups | None:
    """Group the slides by stain; None if this is not possible."""
    if not run.has("features"):
        return None
    values, columns = read_values(run.step("features").folder)
    table = patches_of(run).table
    slides = table["slide"].where(is_known(table["slide"]))
    return stain_groups(values, columns, table["label"].to_numpy(), slides, seed=run.config.seed)
