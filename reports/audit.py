"""What the report's Data section says about the patches themselves: flags, pictures, slides and the leakage meter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from histoblend.reports.verdict import signed, span

#: What a policy does, in words; with dropped patches their number is said as well.
DONE = {"keep": "kept", "group": "kept on one side of the split", "drop": "dropped"}


@dataclass(frozen=True)
class AuditView:
    """What the audit left behind.

    Attributes
    ----------
    summary : DataFrame
        ``flag, patches, share, positive, policy, dropped, meaning``, a row a flag.
    examples : DataFrame
        ``flag, patch_id, slide, label, similarity, dropped_by``, a row a picture.
    pictures : ndarray of shape (examples, height, width, 3), dtype uint8
    slides : DataFrame
        ``slide, patches, dropped, positive, red, green, blue, nuclei_red, nuclei_blue, fibres_red, fibres_blue``.
    """

    summary: pd.DataFrame
    examples: pd.DataFrame
    pictures: np.ndarray
    slides: pd.DataFrame


def consequence(row: Mapping[Any, Any]) -> str:
    """What was done about the patches of one row of the summary."""
    patches, dropped = int(row["patches"]), int(row["dropped"])
    if not patches:
        return ""
    if dropped == patches or (row["policy"] == "drop" and dropped):
        return f"{dropped:,} dropped"
    if row["policy"] == "drop":
        return "dropped for another reason"
    done = DONE[str(row["policy"])]
    return f"{dropped:,} dropped, the others {done}" if dropped else done


def leakage_words(meter: pd.DataFrame | None) -> str:
    """Say what the leakage meter shows.

    Parameters
    ----------
    meter : DataFrame or None
        ``folds ("grouped", "random", "inflation"), auc, low, high, patches, slides, inferred``; None where no slide is
        known.
    """
    if meter is None:
        return (
            "How far a random split flatters cannot be measured here: no slide is known, and none was inferred "
            "(split.groups)."
        )
    grouped, random, gap = (meter.iloc[row] for row in range(3))
    kind = "inferred slides" if gap["inferred"] else "slides"
    text = (
        f"Logistic regression on handcrafted features scores AUC {random['auc']:.3f} "
        f"({span(random['low'], random['high'])}) when patches are dealt into folds at random and {grouped['auc']:.3f} "
        f"({span(grouped['low'], grouped['high'])}) when {kind} stay together. Ignoring {kind} changes the AUC by "
        f"{signed(gap['auc'])} (95 % interval {signed(gap['low'])} to {signed(gap['high'])}), on the same "
        f"{gap['patches']:,} training patches of {gap['slides']} {kind}."
    )
    if gap["inferred"]:
        text += " Inferred slides mix real ones, so the true figure is likely to be larger."
    return text


def example_groups(view: AuditView) -> list[dict[str, Any]]:
    """Pictures of each flag that has any: ``flag, meaning, patches, cards``; a card holds ``place`` in the pictures."""
    meanings = view.summary.set_index("flag")
    groups = []
    for flag, part in view.examples.groupby("flag", sort=False):
        row = meanings.loc[flag]
        cards = [{"place": int(str(place)), **card} for place, card in part.to_dict("index").items()]
        groups.append({"flag": flag, "meaning": row["meaning"], "patches": int(row["patches"].item()), "cards": cards})
    return groups
