"""Pair the predictions of two runs on the same patches, and compute the differences between their scores."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.models.metrics import METRICS, bootstrap, measure
from histoblend.models.names import SINGLE_FAMILIES
from histoblend.models.resampling import percentile_interval, slide_groups
from histoblend.reports.evaluation.ladder import SPLITS, rungs_below

#: Name, in a table of differences, for each run's own best model.
BEST = "best"

_COLUMNS = ["first", "second", "split", "model", "first_model", "second_model", "patches", "slides"] + [
    name + end for name in METRICS for end in ("_first", "_second", "", "_low", "_high")
]


@dataclass(frozen=True)
class RunResults:
    """Results of a finished run that a comparison needs.

    Attributes
    ----------
    name : str
        Name of the run's folder.
    predictions : DataFrame
        ``patch_id, slide, split, fold, label, prob_<model>``, and ``sha256`` of the pixels if known.
    ladder : DataFrame
        From :func:`reports.evaluation.ladder.ladder`.
    settings : mapping from str to object
        Configuration as a flat mapping with dotted keys.
    made : mapping from str to object
        Other facts that distinguish runs, such as commit and versions, as a flat mapping.
    embedding_cost : float
        Core-seconds per 1,000 patches of the networks that embed them; NaN if unknown.
    stain : DataFrame or None
        ``model, alteration, change, …``: change in AUC if stains of test slides are altered, if it was measured.
    """

    name: str
    predictions: pd.DataFrame
    ladder: pd.DataFrame
    settings: Mapping[str, object] = field(default_factory=dict)
    made: Mapping[str, object] = field(default_factory=dict)
    embedding_cost: float = np.nan
    stain: pd.DataFrame | None = None


@dataclass(frozen=True)
class Pairing:
    """Patches that two runs have in common, or the reason why the runs cannot be paired.

    Attributes
    ----------
    first, second : DataFrame
        Predictions of both runs. Row i is the same patch in both. Without rows if the runs are not paired.
    refused : str
        Reason why the runs are not paired; empty if they are.
    left_out : int
        Number of patches that are in only one of the runs.
    other_folds : bool
        Whether the folds of the training patches differ.
    """

    first: pd.DataFrame
    second: pd.DataFrame
    refused: str = ""
    left_out: int = 0
    other_folds: bool = False


def pair(one: RunResults, two: RunResults) -> Pairing:
    """Join two runs' predictions by patch, if the comparison is fair.

    Every prediction comes from a model that was not trained on the patch's slide: out of fold for training slides, and
    refitted on all training slides for test slides. Patches may therefore be compared even if their folds differ. Runs
    are not paired if a slide is a test slide in one run and a training slide in the other, because the other run's
    choices, such as thresholds, were made on that slide.

    Parameters
    ----------
    one, two : RunResults

    Returns
    -------
    Pairing
    """
    first, second = (run.predictions.set_index("patch_id") for run in (one, two))
    no_rows = one.predictions.iloc[:0], two.predictions.iloc[:0]
    for run, table in ((one, first), (two, second)):
        if not table.index.is_unique:
            duplicate = table.index[table.index.duplicated()][0]
            return Pairing(*no_rows, f"{run.name} contains the patch {duplicate} twice.")
    common = first.index[first.index.isin(second.index)]
    if not len(common):
        return Pairing(*no_rows, "they have no patch in common.")
    left_out = len(first) + len(second) - 2 * len(common)
    first, second = first.loc[common], second.loc[common]
    reason = _disagreement(one.name, two.name, first, second)
    if reason:
        return Pairing(*no_rows, reason, left_out)
    folds_differ = bool((first.fold != second.fold).any())
    return Pairing(first.reset_index(), second.reset_index(), left_out=left_out, other_folds=folds_differ)


def _disagreement(one: str, two: str, first: pd.DataFrame, second: pd.DataFrame) -> str:
    """Reason why the same patches are not comparable between two runs; empty if they are."""
    labels = first.label != second.label
    if labels.any():
        patch = str(labels.idxmax())
        return (
            f"{labels.sum():,} common patches have different labels: {patch} is {first.label[patch]} in {one} and "
            f"{second.label[patch]} in {two}."
        )
    if "sha256" in first and "sha256" in second:
        pixels = (first.sha256 != second.sha256) & first.sha256.notna() & second.sha256.notna()
        if pixels.any():
            return (
                f"{pixels.sum():,} common patches have different pixels, such as {pixels.idxmax()}. The images "
                "differ or were read with different settings."
            )
    slides = (first.slide.fillna("") != second.slide.fillna("")) | (first.slide.isna() != second.slide.isna())
    if slides.any():
        patch = str(slides.idxmax())
        names = ["unknown" if pd.isna(slide) else slide for slide in (first.slide[patch], second.slide[patch])]
        return (
            f"{slides.sum():,} common patches have different slides: that of {patch} is {names[0]} in {one} and "
            f"{names[1]} in {two}."
        )
    splits = first.split != second.split
    if splits.any():
        patch = str(splits.idxmax())
        tested, trained = (one, two) if first.split[patch] == "test" else (two, one)
        kind, name = ("patch", patch) if pd.isna(first.slide[patch]) else ("slide", first.slide[patch])
        return (
            f"{splits.sum():,} common patches are in different splits: {kind} {name} is a test {kind} in {tested} "
            f"and a training {kind} in {trained}. Use runs with the same split.test_share, split.groups and seed."
        )
    return ""


def differences(
    one: RunResults, two: RunResults, pairing: Pairing, *, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Differences in score, second run minus first run, on the patches that both predict.

    Parameters
    ----------
    one, two : RunResults
    pairing : Pairing
        From :func:`pair` for these runs.
    draws, seed : int
        For the bootstrap of slides. Both models of a difference share the draws.

    Returns
    -------
    DataFrame
        ``first, second, split, model, first_model, second_model, patches, slides`` and, for each of
        :data:`models.metrics.METRICS`, ``<metric>_first``, ``<metric>_second``, the difference ``<metric>`` and its
        95 % interval. One row for each run's own best model (:data:`BEST`) and one per model that both runs have. Empty
        if the runs are not paired. Splits without an interval are left out.
    """
    rows = []
    if not pairing.refused:
        pairs = [(BEST, best_model(one.ladder), best_model(two.ladder))]
        shared = [model for model in rungs_below(_models(one.ladder)) if model in set(_models(two.ladder))]
        pairs += [(model, model, model) for model in shared if model != "prevalence"]
        for split, (name, models) in itertools.product(SPLITS, [(row[0], row[1:]) for row in pairs]):
            rows += _difference((one, two), pairing, split, name, models, draws, seed)
    return pd.DataFrame(rows, columns=_COLUMNS)


def _difference(
    runs: tuple[RunResults, RunResults],
    pairing: Pairing,
    split: str,
    name: str,
    models: tuple[str, str],
    draws: int,
    seed: int,
) -> list[dict[str, Any]]:
    """The difference between two models on one split, as one row; no row if it cannot be computed."""
    rows = (pairing.first.split == split).to_numpy()
    scores = np.stack(
        [pairing.first[f"prob_{models[0]}"].to_numpy(float), pairing.second[f"prob_{models[1]}"].to_numpy(float)],
        axis=1,
    )
    rows = rows & ~np.isnan(scores).any(axis=1)
    part, scores = pairing.first[rows], scores[rows]
    if part.label.nunique() < 2:
        return []
    thresholds = np.array([_threshold(run.ladder, model) for run, model in zip(runs, models, strict=True)])
    labels = part.label.to_numpy()
    try:
        values = bootstrap(labels, scores, thresholds, slide_groups(part.slide), draws=draws, seed=seed).values
    except InputError:  # too few slides with both classes
        return []
    point = measure(labels, scores, thresholds)
    low, high = percentile_interval(values[:, 1] - values[:, 0])
    row: dict[str, Any] = {"first": runs[0].name, "second": runs[1].name, "split": SPLITS[split], "model": name}
    row |= {"first_model": models[0], "second_model": models[1], "patches": len(part), "slides": part.slide.nunique()}
    for i, metric in enumerate(METRICS):
        row |= {f"{metric}_first": point[0, i], f"{metric}_second": point[1, i], metric: point[1, i] - point[0, i]}
        row |= {f"{metric}_low": low[i], f"{metric}_high": high[i]}
    return [row]


def _models(ladder: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(ladder.model[~ladder.rung.isin(SINGLE_FAMILIES)]))


def best_model(ladder: pd.DataFrame) -> str:
    """The model of a ladder with the highest out-of-fold AUC, without single families and ``prevalence``."""
    oof = ladder[(ladder.split == "oof") & ~ladder.rung.isin((*SINGLE_FAMILIES, "prevalence"))]
    return str(oof.sort_values("auc", kind="stable").model.iloc[-1])


def _threshold(ladder: pd.DataFrame, model: str) -> float:
    return float(ladder.threshold[ladder.model == model].iloc[0])
