"""A probe beside the steps: what every model says of held-out patches whose stains were altered, slide by slide."""

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
from histoblend.models.names import ALONE, NORMALISED, needs_slides, split_model_name
from histoblend.models.predictor import Predictor, choose_blends, open_predictor
from histoblend.pipelines.analysis.model_set import models_of
from histoblend.pipelines.results import feature_tables, patches_of, predictions_of, read_ladder
from histoblend.pipelines.run_files import PREDICTIONS
from histoblend.pipelines.runtime.artefacts import Outcome
from histoblend.pipelines.runtime.dataclass_files import load_view, save_view
from histoblend.pipelines.tables import known_slides, read_values

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


#: Held-out patches that are judged, and the slides that they come from, at most: the fine-tuned network takes a tenth
#: of a second for each patch and draw.
MOST_PATCHES = 112
MOST_SLIDES = 40
#: Patches of a slide that slide context compares with, the judged ones included, at most.
SLIDE_PATCHES = 32


#: Patches that one thread takes at a time.
SHARD = 16

VIEW = "view"


def build(run: Run, folder: Path) -> Outcome:
    """Write what every model says of patches with altered stains, and what the report shows of stain."""
    notes = {} if why_no_probe(patches_of(run).table) else probe_stain(run, folder)
    predictions = predictions_of(run)
    save_view(stain_view(run, folder, predictions, read_ladder(run)), folder / VIEW)
    return Outcome(len(predictions), notes)


def read_stain(run: Run) -> StainView:
    """What the report of a run shows of stain."""
    return load_view(run.step("stain").folder / VIEW, StainView, StainGroups)


def why_no_probe(table: pd.DataFrame) -> str:
    """Say why stains cannot be shifted on held-out slides; empty where they can.

    Parameters
    ----------
    table : DataFrame
        ``label, slide, split``.
    """
    test = table[table["split"] == "test"]
    if test.empty:
        return "No slides were held out, so there is nothing to shift stains on that no model has learned from."
    if test["slide"].nunique() + test["slide"].isna().sum() < 2:
        return "Only one slide was held out: it takes two or more to tell what a shift of stain does between slides."
    if test["label"].nunique() < 2:
        return "The held-out slides hold one class only, so no ranking of them can be judged."
    return ""


@dataclass(frozen=True)
class Sample:
    """Held-out patches that are judged, and others of their slides.

    Attributes
    ----------
    rows : ndarray of shape (n,), int
        Rows of the table, the judged ones first.
    judged : int
        How many are judged; the rest are there for slide context to compare with.
    """

    rows: np.ndarray
    judged: int


def choose_sample(table: pd.DataFrame, seed: int) -> Sample:
    """Choose held-out patches evenly over the held-out slides, each slide's in its own share of positives.

    Of more than `MOST_SLIDES` slides some are drawn at random. Small slides give all that they have, and leave the rest
    to the others. A patch without a slide is a slide of its own.

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
    most = MOST_SLIDES if test["slide"].notna().any() else MOST_PATCHES
    if len(parts) > most:
        parts = [parts[place] for place in np.sort(rng.choice(len(parts), most, replace=False))]
    quota = _quota([len(part) for part in parts], MOST_PATCHES)
    labels = table["label"].to_numpy()
    judged, others = [], []
    for part in parts:
        spread = _spread(rng.permutation(part), labels, quota)
        judged.append(spread)
        rest = np.setdiff1d(part, spread)
        others.append(rng.permutation(rest)[: max(SLIDE_PATCHES - len(spread), 0)])
    chosen = np.concatenate(judged)
    return Sample(np.concatenate([np.sort(chosen), np.sort(np.concatenate(others))]), len(chosen))


def slide_names(table: pd.DataFrame) -> np.ndarray:
    """Slide of each patch, or the patch itself where it has none, ndarray of str."""
    own = "patch:" + table["patch_id"].astype(str)
    return table["slide"].astype(object).where(table["slide"].notna(), own).astype(str).to_numpy()


def _quota(sizes: list[int], most: int) -> int:
    """Largest number a slide with which all together stay within ``most``; at least one."""
    quota = 1
    while sum(min(size, quota + 1) for size in sizes) <= most and quota < max(sizes):
        quota += 1
    return quota


def _spread(rows: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """So many rows, positives in their own share, rounded, and both classes where there are both."""
    if len(rows) <= count:
        return rows
    ordered = rows[np.argsort(labels[rows], kind="stable")]
    # From the first to the last: with two or more, both classes of a mixed slide are in.
    return ordered[np.round(np.linspace(0, len(rows) - 1, count)).astype(int)]


def probe_stain(run: Run, folder: Path) -> dict[str, int]:
    """Write what every model says of the sample, as it is and with altered stains, into ``folder``.

    ``predictions.parquet`` holds ``patch_id, slide, label, alteration, strength, draw, prob_<model>``, a row a patch
    and alteration; strength 0 is the patches as they are.

    Returns
    -------
    dict from str to int
        How many patches were judged, of how many slides, beside how many others.
    """
    patches, bundle = patches_of(run), models_of(run)
    sample = choose_sample(patches.table, run.config.seed)
    table = patches.table.iloc[sample.rows].reset_index(drop=True)
    pixels = np.asarray(patches.pixels[sample.rows])
    chosen = alterations(slide_names(table), _divide_slides(run), run.config.seed)
    shown = table.iloc[: sample.judged][["patch_id", "slide", "label"]]
    parts = []
    with open_predictor(bundle, list(bundle.index["models"])) as predictor:
        judge = partial(_judge, run, predictor, table["slide"], sample.judged)
        with run.screen.progress("altered stains", len(chosen) * len(pixels)) as progress:
            for number, alter in enumerate(chosen):
                said = judge(alter(pixels), folder / f"work-{number}", progress)
                how = shown.assign(alteration=alter.kind, strength=alter.strength, draw=alter.draw)
                parts.append(how.assign(**said))
    pd.concat(parts, ignore_index=True).to_parquet(folder / PREDICTIONS, index=False)
    for number in range(len(chosen)):
        shutil.rmtree(folder / f"work-{number}")
    slides = len(set(slide_names(shown)))
    return {"patches": sample.judged, "slides": slides, "beside": len(pixels) - sample.judged}


def _judge(
    run: Run,
    predictor: Predictor,
    slides: pd.Series,
    judged: int,
    pixels: np.ndarray,
    folder: Path,
    progress: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """Probability of each judged patch by every model, ``prob_<model>`` to ndarray of shape (judged,), float64.

    The other patches are there for slide context to compare with.
    """
    alone = [name for name in predictor.members if not needs_slides(name)]
    places = [predictor.members.index(name) for name in alone]
    # Where stains are altered, slides are normalised by what they look like then.
    shown = StainedPixels(
        pixels, stains_of(stain_sums(pixels), known_slides(slides), pixels.shape[1] * pixels.shape[2])
    )

    def by_itself(some: StainedPixels) -> np.ndarray:
        values = predictor(some.pixels, some.stains)
        return np.concatenate([values.members[:, places], values.table[:, predictor.compared]], axis=1)

    def compared(some: StainedPixels) -> np.ndarray:
        return predictor.features(some.pixels, some.stains, compared_only=True)[:, predictor.compared]

    options: dict[str, Any] = {"shard_size": SHARD, "prefer": "threads", "workers": _threads(run), "progress": progress}
    judging = len(alone) + predictor.width
    values = extract_shards(by_itself, shown[:judged], folder / "judged", judging, dtype=np.float64, **options)
    said = {f"prob_{name}": np.asarray(values[:, number]) for number, name in enumerate(alone)}
    if predictor.width:
        beside = extract_shards(compared, shown[judged:], folder / "beside", predictor.width, **options)
        table = np.concatenate([values[:, len(alone) :].astype(np.float32), beside])
        said |= {f"prob_{name}": found for name, found in _in_context(predictor, table, slides, judged).items()}
    said = {f"prob_{name}": said[f"prob_{name}"] for name in predictor.members if f"prob_{name}" in said}
    if run.has("ensemble"):
        # A few patches of each slide are judged: too few for their mean to say what it says of a slide.
        blend = choose_blends(predictor.bundle, tiled=True)[0]
        said["prob_ensemble"] = blend.combine(np.column_stack([said[f"prob_{name}"] for name in blend.members]))
    return said


def _in_context(predictor: Predictor, table: np.ndarray, slides: pd.Series, judged: int) -> dict[str, np.ndarray]:
    """Probability of the first ``judged`` patches by each member that compares them with the rest of their slide."""
    names = pd.Series(known_slides(slides))
    parts = [*names.groupby(names).indices.values(), *np.flatnonzero(names.isna())[:, None]]
    found = {name: np.empty(judged) for name in predictor.members if needs_slides(name)}
    for rows in parts:
        inside = rows[rows < judged]
        if len(inside):
            reference = predictor.reference(partial(np.take, table[rows], axis=1), len(rows))
            for name, probability in predictor.within_slide(table[inside], reference).items():
                found[name][inside] = probability
    return found


def _threads(run: Run) -> int:
    """Threads that predict: ONNX Runtime gets one session for each of ours; Keras runs its own."""
    engines = [run.step(name).manifest["notes"]["engine"] for name in ("embeddings", "cnn") if run.has(name)]
    return run.workers if all(engine["name"] == "onnx" for engine in engines) else 1


def stain_view(run: Run, folder: Path, predictions: pd.DataFrame, steps: pd.DataFrame) -> StainView:
    """What the report shows of stain: groups of slides, who tells them apart, and what shifted stains do.

    Parameters
    ----------
    run : Run
    folder : Path
        With the predictions of altered patches, where there are any.
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
    groups = _divide_slides(run)
    if groups is None:
        return view
    rungs = [model for model in models if split_model_name(model)[0] not in ALONE]
    slides = patches_of(run).table["slide"].astype(object)
    families = []
    for name, step in feature_tables(run).items():
        if name.endswith(NORMALISED):  # whose stains tell slides apart no longer
            continue
        values, columns = read_values(step.folder)
        if (found := stain_families(values, columns, groups, slides, **options)) is not None:
            families.append(found)
    told = pd.concat(families).sort_values("auc", ascending=False, kind="stable") if families else None
    return replace(
        view,
        groups=groups,
        scores=group_table(groups, predictions, rungs, **options),
        slides=group_slides(groups, predictions, rungs),
        families=None if told is None else told.reset_index(drop=True),
    )


def _divide_slides(run: Run) -> StainGroups | None:
    """Slides in two by their stain; None where it cannot be told."""
    if not run.has("features"):
        return None
    values, columns = read_values(run.step("features").folder)
    table = patches_of(run).table
    slides = table["slide"].where(is_known(table["slide"]))
    return stain_groups(values, columns, table["label"].to_numpy(), slides, seed=run.config.seed)
