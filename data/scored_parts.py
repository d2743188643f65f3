"""The parts of a split that scores are given on: whether their slides allow any."""

from __future__ import annotations

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.slide_kinds import Kinds
from histoblend.data.splits import BY_PATCH, TEST, official_sides


def check_scored(table: pd.DataFrame) -> None:
    """Check that test set and folds hold both labels, and slides enough for intervals, before anything is trained.

    Intervals come from drawing slides with replacement, and most draws must hold both labels.

    Parameters
    ----------
    table : DataFrame
        ``patch_id, label, slide`` and either ``split`` or, before there is one, ``official`` where the data set came
        with a split. Nothing is checked where there is neither.

    Raises
    ------
    InputError
        A part holds one label only, or one slide of each label and no other.
    """
    official = official_sides(table)
    sides = table["split"].to_numpy() if "split" in table else official
    for side in () if sides is None else np.unique(sides):
        part = table[sides == side]
        kinds = _kinds(part)
        if not kinds.drawn_with_both:
            noun = "slides" if part["slide"].notna().any() else "patches"
            raise InputError(_refusal(kinds, noun, side == TEST, official is not None))


def _kinds(part: pd.DataFrame) -> Kinds:
    """Slides by the labels that they hold; a patch without a slide counts as one."""
    slides = part["slide"].astype(object)
    units = slides.where(slides.notna(), BY_PATCH + part["patch_id"].astype(str))
    labels = part["label"].groupby(units.to_numpy())
    return Kinds.of(labels.sum().to_numpy(), (labels.size() - labels.sum()).to_numpy())


def _refusal(kinds: Kinds, noun: str, test: bool, official: bool) -> str:
    name = "test set" if test else "training part"
    whole = f"the {'official ' if official else ''}{name}"
    remedy = f"Add {noun} to the {name}"
    if test and official:
        remedy += ", or take the official test set out of the folder: one is then held out from the rest"
    return (
        f"{whole} must hold {noun} with label 1 and {noun} with label 0, at least three of them where none holds both: "
        f"no score has an interval otherwise. Got {kinds.words(noun)}. {remedy}."
    )
