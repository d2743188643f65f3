"""Sentences that say what the numbers say: what was reached, what helped, what to distrust."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from histoblend.models.inspection.stain import StainGroups
from histoblend.models.names import BESIDE, RUNGS, split_model_name
from histoblend.reports.page.section import records
from histoblend.reports.within_slides import score_within_words
from histoblend.reports.words import FEW_SLIDES, RUNG_WORDS, head_words, model_words, signed, span

Row = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What the report says before it shows anything.

    Attributes
    ----------
    best : str
        Model with the highest out-of-fold AUC.
    reached : str
        How good the best model is, with intervals.
    helped : tuple of str
        Steps up the ladder, by what can be said of them.
    distrust : tuple of str
        Reasons for doubt, a sentence or two each.
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
        Whether slides are known: without them, patches of one slide stand on both sides of the split.
    inferred : bool
        Whether slides are clusters of like patches, in place of a slide map.
    phantom : bool
        Whether the patches are synthetic.
    slide_aucs : sequence of float
        AUC of the best model within each slide that holds enough of both classes.
    stain : StainGroups, optional
        Whether the slides' stain goes with their share of positives.
    doubts_on_ensemble : sequence of str
        What to distrust where the ensemble is the best model.
    """
    rows: list[Row] = records(ladder)
    oof = [row for row in rows if row["split"] == "oof" and row["rung"] != RUNGS[0]]
    if not oof:
        raise ValueError("a verdict needs at least one model beside 'prevalence'; got none. Train a head first.")
    best = max(oof, key=lambda row: row["auc"])
    test = next((row for row in rows if row["split"] == "test" and row["model"] == best["model"]), None)
    doubts = [
        *_doubts_on_data(best, test, slide_map, phantom, inferred),
        *_doubts_on_scores(best, test, len(oof), slide_aucs),
        *(doubts_on_ensemble if best["rung"] == "ensemble" else ()),
    ]
    if stain is not None and stain.confounded:
        doubts.insert(0, stain.words())
    return Verdict(
        best["model"],
        _reached(best, test, slide_map, "inferred slide" if inferred else "slide"),
        _helped(oof),
        tuple(doubts),
    )


def _reached(best: Row, test: Row | None, slide_map: bool, unit: str) -> str:
    where = f"{best['slides']} {unit}s" if slide_map else f"{best['patches']:,} patches"
    text = (
        f"The best of the models by out-of-fold AUC is {model_words(best['model'])}: {best['auc']:.3f} "
        f"(95 % interval {span(best['auc_low'], best['auc_high'])}) on {where}, each scored by a model that never saw "
        f"that {unit if slide_map else 'patch'}"
    )
    if test is None:
        return text + f". No test set was held out.{_within(best, test)}"
    held = (
        f"{test['slides']} {unit.replace('slide', 'test slide')}s" if slide_map else f"{test['patches']:,} test patches"
    )
    interval = span(test["auc_low"], test["auc_high"])
    return text + f"; on the {held} that no choice has touched, {test['auc']:.3f} ({interval}).{_within(best, test)}"


def _within(best: Row, test: Row | None) -> str:
    """The best model's AUC over pairs of patches from the same slide, where slides are known."""
    scores = [score_within_words(row) for row in (best, test) if row is not None]
    if not any(scores):
        return ""
    where = ("out of fold", "on the test slides")
    said = [f"{score} {words}" for score, words in zip(scores, where, strict=False) if score]
    return f" Within slides, that is over pairs of patches from the same slide, its AUC is {' and '.join(said)}."


def _helped(oof: list[Row]) -> tuple[str, ...]:
    # The gain over prevalence is left out: pooling flatters it, and nobody doubts it.
    steps = [row for row in oof if isinstance(row["below"], str) and row["below"] != RUNGS[0]]
    if not steps:
        return ("There is one rung a head, so no step can be said to have helped.",)
    groups = [
        ("Helped (the interval of the gain in AUC lies above zero)", [s for s in steps if s["gain_low"] > 0]),
        ("Not shown to help (it holds zero)", [s for s in steps if s["gain_low"] <= 0 <= s["gain_high"]]),
        ("Made it worse (it lies below zero)", [s for s in steps if s["gain_high"] < 0]),
    ]
    return tuple(f"{title}: {_steps(part)}." for title, part in groups if part)


def _steps(rows: list[Row]) -> str:
    """Name steps, with the gain under each head."""
    gains: dict[str, list[str]] = {}
    for row in rows:
        rung, head = split_model_name(row["model"])
        other = RUNG_WORDS[split_model_name(row["below"])[0]] if head else model_words(row["below"])
        interval = f"{signed(row['gain_low'])} to {signed(row['gain_high'])}"
        by = f"{head_words(head)} " if head else ""
        gains.setdefault(f"{RUNG_WORDS[rung]} over {other}", []).append(f"{by}{signed(row['gain'])}, {interval}")
    return "; ".join(f"{step} ({'; '.join(heads)})" for step, heads in gains.items())


def _doubts_on_data(best: Row, test: Row | None, slide_map: bool, phantom: bool, inferred: bool) -> list[str]:
    doubts = []
    if phantom:
        doubts.append(
            "The patches are a phantom: synthetic images with planted truth. These scores test the program and say "
            "nothing about medicine."
        )
    if not slide_map:
        doubts.append(
            "No slide map was given, so patches of one slide stand in training and in test: every score here is "
            "optimistic, and the intervals are too narrow. On one real sample a split that ignored slides flattered "
            "the AUC by 0.06 to 0.08."
        )
    if inferred:
        doubts.append(
            "No slide map was given. Clusters of patches with like stain stand in for slides; they mix real ones, so "
            "every score here is optimistic. On one real sample such clusters took a third off what a random split "
            "flatters."
        )
    if best["rung"] in BESIDE:
        doubts.append(
            "The best model uses slide context: it compares a patch with the rest of its slide, so its scores presume "
            "a slide's worth of patches (16 or more, as tumour-rich or tumour-poor as whole slides are) at prediction "
            "time too."
        )
    for name, row in [("Out-of-fold predictions cover", best), ("The test set holds", test)]:
        if slide_map and row is not None and row["slides"] < FEW_SLIDES:
            doubts.append(
                f"{name} only {row['slides']} slides: slides are the sample here, not patches, and an interval from "
                f"resampling {row['slides']} of them is itself rough and tends to be too narrow."
            )
    return doubts


def _doubts_on_scores(best: Row, test: Row | None, models: int, slide_aucs: Sequence[float]) -> list[str]:
    doubts = []
    if len(slide_aucs) > 1:
        doubts.append(
            "Slides differ: within single slides (five patches of each class or more) the best model's AUC runs from "
            f"{min(slide_aucs):.2f} to {max(slide_aucs):.2f}. The next laboratory's slides may lie anywhere in "
            "there, or outside."
        )
    if test is not None and not best["auc_low"] <= test["auc"] <= best["auc_high"]:
        side = "below" if test["auc"] < best["auc_low"] else "above"
        doubts.append(f"The test AUC lies {side} the out-of-fold interval: the two sets of slides are unlike.")
    if models > 1:
        doubts.append(
            f"The best of {models} models was picked by the very out-of-fold AUC quoted, which flatters it a little; "
            "the test AUC was not used to pick."
        )
    return doubts
