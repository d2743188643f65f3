"""What the verdict, its cautions and the next steps are derived from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from histoblend.data.splits import is_known
from histoblend.models.inspection.stain import StainGroups
from histoblend.models.names import RUNGS
from histoblend.reports.evaluation.ladder import SPLITS, rows_with_predictions
from histoblend.reports.page.section import records
from histoblend.reports.words import FEW_SLIDES, direction, signed

Row = dict[str, Any]

#: With fewer slides with tumour than this, sensitivity and AUC are mostly those of single slides.
FEW_WITH_TUMOUR = 5
#: Words for a gain: its 95 % interval is above 0; includes 0 and the estimate is above 0; or the estimate is not.
CLEAR, BORDERLINE, NONE = "clear", "borderline", "none"


@dataclass(frozen=True)
class Evidence:
    """Results of a run that the first screen is derived from.

    Attributes
    ----------
    steps : tuple of dict
        Out-of-fold rows of the ladder, without ``prevalence``.
    best : dict
        The step with the highest AUC.
    test : dict or None
        The best model's row on the test set.
    below : dict or None
        The step that the best model is compared with.
    slide_map : bool
        Whether slides are known or inferred. Without them, patches of one slide are in both training and test sets.
    inferred : bool
        Whether slides are clusters of similar patches, because there is no slide map.
    phantom : bool
        Whether the patches are synthetic.
    tumour_slides : mapping from "oof" and "test" to int
        Number of scored slides with at least one positive patch.
    slide_aucs : sequence of float
        AUC of the best model within each slide that has enough patches of both classes.
    stain : StainGroups or None
        Whether the slides' stain is associated with their share of positives.
    slide_context : bool
        Whether the best model compares a patch with the other patches of its slide.
    rates : mapping from "oof" and "test" to dict
        Sensitivity and specificity of the best model at the default threshold, with intervals; empty if unknown.
    doubts_on_ensemble : sequence of str
        Reasons for caution that apply if the ensemble is the best model.
    warnings : sequence of str
        Warnings about the patches and their split.
    data_shown : bool
        Whether the data card shows how many patches were set aside.
    """

    steps: tuple[Row, ...]
    best: Row
    test: Row | None
    below: Row | None
    slide_map: bool = True
    inferred: bool = False
    phantom: bool = False
    tumour_slides: Mapping[str, int] = field(default_factory=dict)
    slide_aucs: Sequence[float] = ()
    stain: StainGroups | None = None
    slide_context: bool = False
    rates: Mapping[str, Row] = field(default_factory=dict)
    doubts_on_ensemble: Sequence[str] = ()
    warnings: Sequence[str] = ()
    data_shown: bool = False

    @classmethod
    def from_ladder(cls, ladder: pd.DataFrame, **known: Any) -> Evidence:
        """Choose the best model of a ladder, and add what else is known.

        Parameters
        ----------
        ladder : DataFrame
            From :func:`reports.evaluation.ladder.ladder`, without single families.
        **known
            Other attributes.

        Raises
        ------
        ValueError
            The ladder has no model besides ``prevalence``.
        """
        rows: list[Row] = records(ladder)
        steps = tuple(row for row in rows if row["split"] == "oof" and row["rung"] != RUNGS[0])
        if not steps:
            raise ValueError("a verdict needs at least one model besides 'prevalence'; got none. Train a head first.")
        best = max(steps, key=lambda row: row["auc"])
        test = next((row for row in rows if row["split"] == "test" and row["model"] == best["model"]), None)
        below = next((row for row in steps if row["model"] == best["below"]), None)
        return cls(steps, best, test, below, **known)

    @property
    def unit(self) -> str:
        """What the scores are resampled by: "slide", "inferred slide" or "patch"."""
        return "patch" if not self.slide_map else "inferred slide" if self.inferred else "slide"

    @property
    def confounded(self) -> bool:
        """Whether stain and label are confounded."""
        return self.stain is not None and self.stain.confounded

    @property
    def gain(self) -> str:
        """Word for the gain over the model in `below`; empty without one."""
        if self.below is None:
            return ""
        if direction(self.best["gain_low"], self.best["gain_high"]) == 1:
            return CLEAR
        return BORDERLINE if signed(self.best["gain"]).startswith("+") else NONE

    @property
    def test_side(self) -> str:
        """Whether the test AUC is "below" or "above" the out-of-fold interval; empty if inside or without a test."""
        if self.test is None or self.best["auc_low"] <= self.test["auc"] <= self.best["auc_high"]:
            return ""
        return "below" if self.test["auc"] < self.best["auc_low"] else "above"

    def falling_rates(self) -> list[tuple[str, float, float]]:
        """Name, out-of-fold value and test value of each rate that the test set has below its out-of-fold interval."""
        if not {"oof", "test"} <= set(self.rates):
            return []
        oof, test = self.rates["oof"], self.rates["test"]
        return [
            (rate, oof[rate], test[rate])
            for rate in ("sensitivity", "specificity")
            if round(test[rate], 2) < round(oof[f"{rate}_low"], 2)
        ]

    def few(self) -> list[tuple[str, str]]:
        """For "oof" and "test", if their slides are few: the split, and how many slides there are, with tumour."""
        if not self.slide_map:
            return []
        found = []
        for split, row, kind in (("test", self.test, "test"), ("oof", self.best, "training")):
            if row is None:
                continue
            slides, tumour = int(row["slides"]), self.tumour_slides.get(split)
            noun = f"{kind} {self.unit}s"
            if slides < FEW_SLIDES:
                found.append(
                    (split, f"there are only {slides} {noun}" + ("" if tumour is None else f", {tumour} with tumour"))
                )
            elif tumour is not None and tumour < FEW_WITH_TUMOUR:
                found.append((split, f"only {tumour} of {slides} {noun} contain tumour"))
        return found


def count_tumour_slides(predictions: pd.DataFrame, model: str) -> dict[str, int]:
    """Count the slides with at least one positive patch among those that a model is scored on, by "oof" and "test".

    Slides that a slide map does not list do not count. Splits without a known or inferred slide are left out.
    """
    scored = predictions[rows_with_predictions(predictions, model) & predictions.slide.notna().to_numpy()]
    if is_known(scored.slide).any():
        scored = scored[is_known(scored.slide)]
    counts = {}
    for split, name in SPLITS.items():
        part = scored[scored.split == split]
        if len(part):
            counts[name] = int(part.slide[part.label == 1].nunique())
    return counts


def known(row: Row | None, name: str) -> float | None:
    """A value of a row of the ladder; None if it is missing."""
    value = math.nan if row is None else float(row.get(name, math.nan))
    return None if math.isnan(value) else value
