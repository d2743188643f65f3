"""Whether stain tells the label, as a section."""

from __future__ import annotations

import pandas as pd

from reports.section import Section
from reports.stain import FEWEST_SLIDES, StainGroups, group_scores


def stain_section(stain: StainGroups | None, predictions: pd.DataFrame, model: str) -> Section:
    """Show groups of slides by stain, their share of positives, and how a model ranks within each.

    Parameters
    ----------
    stain : StainGroups or None
        None where it cannot be told.
    predictions : DataFrame
        ``slide, label, prob_<model>``.
    model : str

    Returns
    -------
    Section
    """
    absent = f"Not known: it takes the “stain” family of features and {FEWEST_SLIDES} slides or more."
    if stain is None:
        return Section("stain", "Does stain tell the label?", None, absent=absent, nav="Stain")
    groups = group_scores(stain, predictions, model)
    content = {"words": stain.words(), "groups": groups.to_dict("records"), "model": model}
    return Section("stain", "Does stain tell the label?", content, tables={"stain-groups": groups}, nav="Stain")
