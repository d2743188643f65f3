"""Sentences about AUC within slides: which pairs of patches it counts, why it is missing and what a gain means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from histoblend.features.handcrafted.slide_context import ENOUGH
from histoblend.models.names import CONTEXT_RUNGS
from histoblend.reports.words import difference, span

_SPLITS = {"oof": "out of fold", "test": "on the test slides"}

#: What a gain between slides, over pairs of patches from different slides, depends on.
BETWEEN_SLIDES = (
    "A gain between slides depends on the share of tumour among the patches that were sampled from each slide: a model "
    "also gains there by scoring every patch of a slide with much tumour higher. A slide that is cut completely into "
    "tiles has a far smaller share of tumour, so a gain between slides may not carry over to heat maps. A gain within "
    "slides does not depend on that share and carries over."
)

#: The same for the terminal.
BETWEEN_SLIDES_BRIEFLY = (
    "a gain between slides depends on the share of tumour among each slide's sampled patches, so it may not carry over "
    "to heat maps. A gain within slides carries over."
)

#: Exception: models whose scores depend on the share of tumour even within a slide.
SLIDE_CONTEXT = (
    "Models in slide context are an exception, also as members of an ensemble: they compare a patch with the other "
    "patches of its slide, so another share of tumour also changes their scores within the slide, and their gain "
    f"carries over only if {ENOUGH} or more patches of a slide are predicted together."
)


def within_words(ladder: pd.DataFrame) -> str:
    """Say which pairs AUC within slides counts in this run, and why it is missing.

    Parameters
    ----------
    ladder : DataFrame
        From :func:`reports.evaluation.ladder.ladder`.
    """
    if ladder.within_share.isna().all():
        return (
            "AUC within slides is missing: no slide is known. Give a slide map (data.slide_map); inferred slides do "
            "not count, since they mix real ones."
        )
    covered, missing = [], []
    for split, words in _SPLITS.items():
        rows = ladder[ladder.split == split].to_dict("records")
        if not rows:
            continue
        row = max(rows, key=lambda row: row["patches"])  # some models are scored on fewer patches
        if row["mixed_slides"]:
            slides = f"{row['mixed_slides']} of {row['slides']} slides contain both classes"
            covered.append(f"{100 * row['within_share']:.1f} % of all pairs {words} ({slides})")
        else:
            missing.append(words)
    text = "AUC within slides counts only pairs of a positive and a negative patch from the same slide"
    text += f": {', and '.join(covered)}." if covered else "."
    return text + (f" It is missing {' and '.join(missing)}: no known slide contains both classes." if missing else "")


def between_words(ladder: pd.DataFrame, *, briefly: bool = False) -> str:
    """Say whether gains carry over to other slides; with the exception of slide context, if a model uses it."""
    exception = [SLIDE_CONTEXT] * bool(ladder.rung.isin(CONTEXT_RUNGS).any())
    return " ".join([BETWEEN_SLIDES_BRIEFLY if briefly else BETWEEN_SLIDES, *exception])


def has_within(ladder: pd.DataFrame) -> bool:
    """Whether any model has an AUC within slides."""
    return bool(ladder.auc_within.notna().any())


def gain_within_words(row: Mapping[Any, Any]) -> str:
    """Say how much a model's AUC differs from the compared one within and between slides; empty if unknown."""
    if pd.isna(row["gain_within"]):
        return ""
    within, between = (
        difference(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in ("gain_within", "gain_between")
    )
    return f"Difference within slides: {within}. Difference between slides: {between}."


def score_within_words(row: Mapping[Any, Any]) -> str:
    """Return a model's AUC within slides with its interval; empty if unknown."""
    value = row.get("auc_within")
    if value is None or pd.isna(value):
        return ""
    low, high = row["auc_within_low"], row["auc_within_high"]
    return f"{value:.3f}" + ("" if pd.isna(low) else f" ({span(low, high)})")
