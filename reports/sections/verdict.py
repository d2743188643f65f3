"""The verdict in sentences: the result, what improved it, and reasons for caution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from histoblend.models.inspection.stain import StainGroups
from histoblend.models.names import CONTEXT_RUNGS, RUNGS, split_model_name
from histoblend.reports.page.section import records
from histoblend.reports.within_slides import score_within_words
from histoblend.reports.words import FEW_SLIDES, RUNG_WORDS, head_words, model_words, signed, span

Row = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """Summary at the top of the report.

    Attributes
    ----------
    best : str
        Model with the highest out-of-fold AUC.
    reached : str
        Result: how good the best model is, with intervals.
    helped : tuple of str
        Steps of the ladder, grouped by whether they improved the AUC.
    distrust : tuple of str
        Reasons for caution, a few sentences each.
    """

    best: str
    reached: str
    helped: tuple[str, ...]
    distrust: tuple[str, ...]


def judge(
    ladder: pd.DataFrame,
    *,
    slide_map: bool,
    inferred: bool = False,
    phantom: bool = False,
    slide_aucs: Sequence[float] = (),
    stain: StainGroups | None = None,
    doubts_on_ensemble: Sequence[str] = (),
) -> Verdict:
    """Turn a ladder into sentences.

    Parameters
    ----------
    ladder : DataFrame
        From :func:`reports.evaluation.ladder.ladder`.
    slide_map : bool
        Whether slides are known. Without them, patches of one slide are in both training and test sets.
    inferred : bool
        Whether slides are clusters of similar patches, because there is no slide map.
    phantom : bool
        Whether the patches are synthetic.
    slide_aucs : sequence of float
        AUC of the best model within each slide that has enough patches of both classes.
    stain : StainGroups, optional
        Whether the slides' stain is associated with their share of positives.
    doubts_on_ensemble : sequence of str
        Reasons for caution that apply if the ensemble is the best model.
    """
    rows: list[Row] = records(ladder)
    oof = [row for row in rows if row["split"] == "oof" and row["rung"] != RUNGS[0]]
    if not oof:
        raise ValueError("a verdict needs at least one model besides 'prevalence'; got none. Train a head first.")
    best = max(oof, key=lambda row: row["auc"])
    test = next((row for row in rows if row["split"] == "test" and row["model"] == best["model"]), None)
    cautions = [
        *_data_cautions(best, test, slide_map, phantom, inferred),
        *_score_cautions(best, test, len(oof), slide_aucs),
        *(doubts_on_ensemble if best["rung"] == "ensemble" else ()),
    ]
    if stain is not None and stain.confounded:
        cautions.insert(0, stain.words())
    return Verdict(
        best["model"],
        _result(best, test, slide_map, "inferred slide" if inferred else "slide"),
        _improvements(oof),
        tuple(cautions),
    )


def _result(best: Row, test: Row | None, slide_map: bool, unit: str) -> str:
    sample = f"{best['slides']} {unit}s" if slide_map else f"{best['patches']:,} patches"
    text = (
        f"The best model by out-of-fold AUC is {model_words(best['model'])}: {best['auc']:.3f} "
        f"(95 % CI {span(best['auc_low'], best['auc_high'])}) on {sample}. Each {unit if slide_map else 'patch'} was "
        "predicted by a model that was not trained on it."
    )
    if test is None:
        return text + f" No test set was held out.{_within_slides(best, test)}"
    test_sample = (
        f"{test['slides']} {unit.replace('slide', 'test slide')}s" if slide_map else f"{test['patches']:,} test patches"
    )
    return text + (
        f" On the {test_sample}, which were not used for any choice, its AUC is {test['auc']:.3f} "
        f"({span(test['auc_low'], test['auc_high'])}).{_within_slides(best, test)}"
    )


def _within_slides(best: Row, test: Row | None) -> str:
    """The best model's AUC over pairs of patches from the same slide, if slides are known."""
    scores = [score_within_words(row) for row in (best, test) if row is not None]
    if not any(scores):
        return ""
    splits = ("out of fold", "on the test slides")
    parts = [f"{score} {words}" for score, words in zip(scores, splits, strict=False) if score]
    return f" Within slides (over pairs of patches from the same slide), its AUC is {' and '.join(parts)}."


def _improvements(oof: list[Row]) -> tuple[str, ...]:
    # The gain over prevalence is left out: pooling inflates it, and nobody doubts it.
    steps = [row for row in oof if isinstance(row["below"], str) and row["below"] != RUNGS[0]]
    if not steps:
        return ("Each head has only one rung, so there are no steps to compare.",)
    groups = [
        ("Improved the AUC (95 % CI of the gain above 0)", [s for s in steps if s["gain_low"] > 0]),
        ("Inconclusive (95 % CI includes 0)", [s for s in steps if s["gain_low"] <= 0 <= s["gain_high"]]),
        ("Lowered the AUC (95 % CI below 0)", [s for s in steps if s["gain_high"] < 0]),
    ]
    return tuple(f"{title}: {_step_words(part)}." for title, part in groups if part)


def _step_words(rows: list[Row]) -> str:
    """Name steps, with the gain for each head."""
    gains: dict[str, list[str]] = {}
    for row in rows:
        rung, head = split_model_name(row["model"])
        other = RUNG_WORDS[split_model_name(row["below"])[0]] if head else model_words(row["below"])
        interval = f"{signed(row['gain_low'])} to {signed(row['gain_high'])}"
        by = f"{head_words(head)} " if head else ""
        gains.setdefault(f"{RUNG_WORDS[rung]} over {other}", []).append(f"{by}{signed(row['gain'])}, {interval}")
    return "; ".join(f"{step} ({'; '.join(heads)})" for step, heads in gains.items())


def _data_cautions(best: Row, test: Row | None, slide_map: bool, phantom: bool, inferred: bool) -> list[str]:
    cautions = []
    if phantom:
        cautions.append(
            "The patches are a phantom: synthetic images with a known truth. These scores test the program and say "
            "nothing about medicine."
        )
    if not slide_map:
        cautions.append(
            "No slide map was given, so patches of one slide can be in both training and test sets. Every score here "
            "is optimistic, and the intervals are too narrow. On one real sample, a split that ignored slides raised "
            "the AUC by 0.06 to 0.08."
        )
    if inferred:
        cautions.append(
            "No slide map was given. Clusters of patches with similar stain are used instead of slides. They mix real "
            "slides, so every score here is optimistic. On one real sample, such clusters removed a third of the "
            "optimism of a random split."
        )
    if best["rung"] in CONTEXT_RUNGS:
        cautions.append(
            "The best model uses slide context: it compares a patch with the other patches of its slide. To reach "
            "these scores, prediction also needs many patches per slide: 16 or more, with about the same share of "
            "tumour as the whole slide."
        )
    for name, row in [("Out-of-fold predictions cover", best), ("The test set has", test)]:
        if slide_map and row is not None and row["slides"] < FEW_SLIDES:
            cautions.append(
                f"{name} only {row['slides']} slides. The sample size is the number of slides, not of patches: an "
                f"interval from resampling {row['slides']} slides is rough and tends to be too narrow."
            )
    return cautions


def _score_cautions(best: Row, test: Row | None, models: int, slide_aucs: Sequence[float]) -> list[str]:
    cautions = []
    if len(slide_aucs) > 1:
        cautions.append(
            "Results differ between slides. Within single slides (at least five patches of each class), the best "
            f"model's AUC ranges from {min(slide_aucs):.2f} to {max(slide_aucs):.2f}. Slides from another laboratory "
            "may fall anywhere in this range, or outside it."
        )
    if test is not None and not best["auc_low"] <= test["auc"] <= best["auc_high"]:
        side, difficulty = ("below", "harder") if test["auc"] < best["auc_low"] else ("above", "easier")
        cautions.append(f"The test AUC is {side} the out-of-fold interval: the test slides are {difficulty}.")
    if models > 1:
        cautions.append(
            f"The best of {models} models was chosen by the same out-of-fold AUC that is quoted here, so this AUC is "
            "slightly optimistic. The test AUC was not used for the choice."
        )
    return cautions
