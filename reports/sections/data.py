"""What the numbers were taken on: folds, leakage meter and the audit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from histoblend.reports.page.images import data_uri
from histoblend.reports.page.section import Section
from histoblend.reports.words import signed, span


def data_section(predictions: pd.DataFrame, audit: AuditView | None, leakage: pd.DataFrame | None) -> Section:
    """Show counts and prevalence of each part, how far a random split flatters, and what the audit found."""
    tables: dict[str, pd.DataFrame] = {}
    if audit is not None:
        tables |= {"audit": audit.summary, "slides-audited": audit.slides}
    if leakage is not None:
        tables["leakage"] = leakage
    content = {"rows": _data_rows(predictions), "audit": _audit(audit), "leakage": leakage_words(leakage)}
    return Section("data", "Data", content, tables=tables)


def _data_rows(predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """Patches, slides and prevalence of each fold and of the test set."""
    rows = []
    for fold, part in predictions.groupby("fold", sort=True):
        name = "test" if (part.split == "test").all() else f"fold {fold}"
        rows.append(
            {"name": name, "patches": len(part), "slides": part.slide.nunique(), "prevalence": part.label.mean()}
        )
    rows.sort(key=lambda row: row["name"] == "test")
    total = {"patches": len(predictions), "slides": predictions.slide.nunique(), "prevalence": predictions.label.mean()}
    return [*rows, {"name": "all", **total}]


def _audit(view: AuditView | None) -> dict[str, Any] | None:
    """Flags, pictures and slides of the audit, ready to be shown."""
    if view is None:
        return None
    flags = [{**row, "done": consequence(row)} for row in view.summary.to_dict("records")]
    groups = example_groups(view)
    for group in groups:
        for card in group["cards"]:
            pixels = view.pictures[card["place"]]
            card |= {"image": data_uri(pixels), "height": pixels.shape[0], "width": pixels.shape[1], "box": None}
    return {"flags": flags, "groups": groups, "slides": view.slides.to_dict("records")}


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
        known, or only one holds a label.
    """
    if meter is None:
        return (
            "How far a random split flatters cannot be measured here: no slide is known, and none was inferred "
            "(split.groups), or only one slide holds one of the labels."
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
