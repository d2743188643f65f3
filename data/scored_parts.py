"""Check that the parts of a split on which scores are computed have enough slides of each label."""

from __future__ import annotations

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.slide_kinds import SlideCounts
from histoblend.data.splits import BY_PATCH, TEST, official_sides


def check_scored(table: pd.DataFrame) -> None:
    """Check before training that the test set and the folds hold both labels, and enough slides for intervals.

    Intervals come from drawing slides with replacement; most draws must hold both labels.

    Parameters
    ----------
    table : DataFrame
        ``patch_id, label, slide`` and either ``split`` or, before the split is made, ``official`` if the data set has
        an official split. Without either column, nothing is checked.

    Raises
    ------
    InputError
        A part holds only one label, or only one slide of each label.
    """
    official = official_sides(table)
    sides = table["split"].to_numpy() if "split" in table else official
    for side in () if sides is None else np.unique(sides):
        part = table[sides == side]
        counts = _count_slides(part)
        if not counts.most_draws_hold_both:
            noun = "slides" if part["slide"].notna().any() else "patches"
            raise InputError(_refusal(counts, noun, side == TEST, official is not None))


def _count_slides(part: pd.DataFrame) -> SlideCounts:
    """Count slides by the labels that they hold; a patch without a slide counts as one slide."""
    slides = part["slide"].astype(object)
    units = slides.where(slides.notna(), BY_PATCH + part["patch_id"].astype(str))
    labels = part["label"].groupby(units.to_numpy())
    return SlideCounts.of(labels.sum().to_numpy(), (labels.size() - labels.sum()).to_numpy())


def _refusal(counts: SlideCounts, noun: str, test: bool, official: bool) -> str:
    name = "test set" if test else "training part"
    whole = f"the {'official ' if official else ''}{name}"
    remedy = f"Add {noun} to the {name}"
    if test and official:
        remedy += ", or remove the official test set from the folder: a test set is then drawn from the rest"
    return (
        f"{whole} must hold {noun} with label 1 and {noun} with label 0, and at least three {noun} if none holds both. "
        f"Otherwise no score has a confidence interval. Got {counts.words(noun)}. {remedy}."
    )
