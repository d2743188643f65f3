"""Two runs on the same patches: where their predictions can be paired, and how far they differ."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.models.metrics import METRICS, bootstrap, measure
from histoblend.models.names import ALONE
from histoblend.models.resampling import percentile_interval, slide_groups
from histoblend.reports.evaluation.ladder import SPLITS, rungs_below

#: Stands in a table of differences for each run's own best model.
BEST = "best"

_COLUMNS = ["first", "second", "split", "model", "first_model", "second_model", "patches", "slides"] + [
    name + end for name in METRICS for end in ("_first", "_second", "", "_low", "_high")
]


@dataclass(frozen=True)
class RunResults:
    """What a comparison reads of a finished run.

    Attributes
    ----------
    name : str
        Of its folder.
    predictions : DataFrame
        ``patch_id, slide, split, fold, label, prob_<model>``, and ``sha256`` of the pixels where it is known.
    ladder : DataFrame
        From :func:`reports.evaluation.ladder.ladder`.
    settings : mapping from str to object
        Flat: dotted keys of the configuration.
    made : mapping from str to object
        Flat: what else tells runs apart, such as commit and versions.
    """

    name: str
    predictions: pd.DataFrame
    ladder: pd.DataFrame
    settings: Mapping[str, object] = field(default_factory=dict)
    made: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairing:
    """Patches that two runs have in common, or why they cannot be paired.

    Attributes
    ----------
    first, second : DataFrame
        Predictions of both runs, row by row of the same patch; without rows where they are not paired.
    refused : str
        Why not; empty where they are.
    left_out : int
        Patches that only one of the runs holds.
    other_folds : bool
        Whether the folds of the training patches differ.
    """

    first: pd.DataFrame
    second: pd.DataFrame
    refused: str = ""
    left_out: int = 0
    other_folds: bool = False


def pair(one: RunResults, two: RunResults) -> Pairing:
    """Join two runs' predictions on the patches, where that is honest.

    Every prediction in the table is of a model that had not seen the patch's slide: out of fold in training, a refit
    on all training slides on the test slides. So a patch counts where both runs held it out, each in its own way. That
    is no longer so for a choice: where a slide tests one run and trains the other, the second run's choices have seen
    it, so such runs are not paired.

    Parameters
    ----------
    one, two : RunResults

    Returns
    -------
    Pairing
    """
    first, second = (run.predictions.set_index("patch_id") for run in (one, two))
    nothing = one.predictions.iloc[:0], two.predictions.iloc[:0]
    for run, table in ((one, first), (two, second)):
        if not table.index.is_unique:
            twice = table.index[table.index.duplicated()][0]
            return Pairing(*nothing, f"{run.name} holds the patch {twice} twice.")
    common = first.index[first.index.isin(second.index)]
    if not len(common):
        return Pairing(*nothing, "they have no patch in common.")
    left_out = len(first) + len(second) - 2 * len(common)
    first, second = first.loc[common], second.loc[common]
    refused = _disagreement(one.name, two.name, first, second)
    if refused:
        return Pairing(*nothing, refused, left_out)
    other = bool((first.fold != second.fold).any())
    return Pairing(first.reset_index(), second.reset_index(), left_out=left_out, other_folds=other)


def _disagreement(one: str, two: str, first: pd.DataFrame, second: pd.DataFrame) -> str:
    """Why the same patches do not stand for the same question in two runs; empty where they do."""
    labels = first.label != second.label
    if labels.any():
        patch = str(labels.idxmax())
        return (
            f"{labels.sum():,} common patches have another label: {patch} is {first.label[patch]} in {one} and "
            f"{second.label[patch]} in {two}."
        )
    if "sha256" in first and "sha256" in second:
        pixels = (first.sha256 != second.sha256) & first.sha256.notna() & second.sha256.notna()
        if pixels.any():
            return (
                f"{pixels.sum():,} common patches have other pixels, such as {pixels.idxmax()}: another picture under "
                "the same name, or read in another way."
            )
    slides = (first.slide.fillna("") != second.slide.fillna("")) | (first.slide.isna() != second.slide.isna())
    if slides.any():
        patch = str(slides.idxmax())
        names = ["unknown" if pd.isna(slide) else slide for slide in (first.slide[patch], second.slide[patch])]
        return (
            f"{slides.sum():,} common patches have another slide: that of {patch} is {names[0]} in {one} and "
            f"{names[1]} in {two}."
        )
    splits = first.split != second.split
    if splits.any():
        patch = str(splits.idxmax())
        tested, trained = (one, two) if first.split[patch] == "test" else (two, one)
        what = f"patch {patch}" if pd.isna(first.slide[patch]) else f"slide {first.slide[patch]}"
        return (
            f"{splits.sum():,} common patches stand on different sides of the split: {what} tests {tested} and trains "
            f"{trained}, whose choices have seen it. Runs with the same split.test_share, split.groups and seed can be "
            "paired."
        )
    return ""


def differences(
    one: RunResults, two: RunResults, pairing: Pairing, *, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """What the second run's models score more than the first's on the patches that both predict.

    Parameters
    ----------
    one, two : RunResults
    pairing : Pairing
        Of these runs.
    draws, seed : int
        For the bootstrap of slides; both models of a difference share the draws.

    Returns
    -------
    DataFrame
        ``first, second, split, model, first_model, second_model, patches, slides`` and, for each of
        :data:`models.metrics.METRICS`, ``<metric>_first``, ``<metric>_second``, the difference ``<metric>`` and its
        95 % interval. A row for each model that both have, and one for each run's own best, :data:`BEST`. Empty where
        runs are not paired; splits on which no interval can be had are left out.
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
    """The difference between two models on one split, as a row; none where it cannot be judged."""
    rows = (pairing.first.split == split).to_numpy()
    scores = np.stack(
        [pairing.first[f"prob_{models[0]}"].to_numpy(float), pairing.second[f"prob_{models[1]}"].to_numpy(float)],
        axis=1,
    )
    rows = rows & ~np.isnan(scores).any(axis=1)
    part, scores = pairing.first[rows], scores[rows]
    if part.label.nunique() < 2:
        return []
    cuts = np.array([_threshold(run.ladder, model) for run, model in zip(runs, models, strict=True)])
    labels = part.label.to_numpy()
    try:
        drawn = bootstrap(labels, scores, cuts, slide_groups(part.slide), draws=draws, seed=seed).values
    except InputError:  # too few slides with both classes
        return []
    point = measure(labels, scores, cuts)
    low, high = percentile_interval(drawn[:, 1] - drawn[:, 0])
    row: dict[str, Any] = {"first": runs[0].name, "second": runs[1].name, "split": SPLITS[split], "model": name}
    row |= {"first_model": models[0], "second_model": models[1], "patches": len(part), "slides": part.slide.nunique()}
    for i, metric in enumerate(METRICS):
        row |= {f"{metric}_first": point[0, i], f"{metric}_second": point[1, i], metric: point[1, i] - point[0, i]}
        row |= {f"{metric}_low": low[i], f"{metric}_high": high[i]}
    return [row]


def _models(ladder: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(ladder.model[~ladder.rung.isin(ALONE)]))


def best_model(ladder: pd.DataFrame) -> str:
    """The model of a ladder with the highest out-of-fold AUC; a family alone is none."""
    oof = ladder[(ladder.split == "oof") & ~ladder.rung.isin((*ALONE, "prevalence"))]
    return str(oof.sort_values("auc", kind="stable").model.iloc[-1])


def _threshold(ladder: pd.DataFrame, model: str) -> float:
    return float(ladder.threshold[ladder.model == model].iloc[0])
