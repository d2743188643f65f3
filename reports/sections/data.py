"""The Data section: data card, folds, leakage of a random split, and the audit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from histoblend.reports.page.images import data_uri
from histoblend.reports.page.section import Section
from histoblend.reports.sections.data_card import DataCard, card_rows, count_words
from histoblend.reports.words import signed, span


def data_section(
    predictions: pd.DataFrame, audit: AuditView | None, leakage: pd.DataFrame | None, card: DataCard | None = None
) -> Section:
    """Show the data card, counts per fold, how much a random split inflates the AUC, and the audit's results."""
    tables: dict[str, pd.DataFrame] = {}
    if audit is not None:
        tables |= {"audit": audit.summary, "slides-audited": audit.slides}
    if leakage is not None:
        tables["leakage"] = leakage
    content = {
        "card": card_rows(card or DataCard(), predictions, duplicate_words(audit)),
        "rows": _data_rows(predictions),
        "audit": _audit_content(audit),
        "leakage": leakage_words(leakage),
    }
    finding = f"The data are {count_words(predictions)}{_inflation_words(leakage)}."
    return Section("data", "Data", content, tables=tables, finding=finding)


def _inflation_words(leakage: pd.DataFrame | None) -> str:
    """Say in a clause whether a split that ignores slides inflates the AUC; empty if not measured."""
    if leakage is None:
        return ""
    gap = leakage.iloc[2]
    if gap["low"] > 0:
        return f"; a split that ignores slides would inflate the AUC by {gap['auc']:.3f}"
    return "; whether a split that ignores slides inflates the AUC is inconclusive (95 % CI includes 0)"


def duplicate_words(audit: AuditView | None) -> str:
    """Say how many duplicates the audit flagged, and what was done with them."""
    if audit is None:
        return "not checked"
    rows = {row["flag"]: row for row in audit.summary.to_dict("records")}
    found = [
        f"{int(rows[flag]['patches']):,} {kind} ({consequence(rows[flag])})"
        for flag, kind in (("exact_duplicate", "exact"), ("near_duplicate", "near"))
        if flag in rows and rows[flag]["patches"]
    ]
    return ", ".join(found) or "none"


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


def _audit_content(view: AuditView | None) -> dict[str, Any] | None:
    """Flags, pictures and slides of the audit, as the template takes them."""
    if view is None:
        return None
    rows = view.summary.to_dict("records")
    flags = [{**row, "done": consequence(row)} for row in rows if row["patches"]]
    unused = [{"flag": row["flag"], "meaning": row["meaning"]} for row in rows if not row["patches"]]
    groups = example_groups(view)
    for group in groups:
        for card in group["cards"]:
            pixels = view.pictures[card["picture"]]
            card |= {"image": data_uri(pixels), "height": pixels.shape[0], "width": pixels.shape[1], "box": None}
    return {"flags": flags, "unused": unused, "groups": groups, "slides": view.slides.to_dict("records")}


#: What each policy does, in words. :func:`consequence` adds the number of dropped patches.
DONE = {"keep": "kept", "group": "kept on one side of the split", "drop": "dropped"}


@dataclass(frozen=True)
class AuditView:
    """Results of the audit.

    Attributes
    ----------
    summary : DataFrame
        ``flag, patches, share, positive, policy, dropped, meaning``, one row per flag.
    examples : DataFrame
        ``flag, patch_id, slide, label, similarity, dropped_by``, one row per picture.
    pictures : ndarray of shape (examples, height, width, 3), dtype uint8
    slides : DataFrame
        ``slide, patches, dropped, positive, red, green, blue, nuclei_red, nuclei_blue, fibres_red, fibres_blue``.
    """

    summary: pd.DataFrame
    examples: pd.DataFrame
    pictures: np.ndarray
    slides: pd.DataFrame


def consequence(row: Mapping[Any, Any]) -> str:
    """What was done with the patches of one row of the summary."""
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
    """Say how much a random split inflates the AUC.

    Parameters
    ----------
    meter : DataFrame or None
        ``folds ("grouped", "random", "inflation"), auc, low, high, patches, slides, inferred``. None if no slide is
        known, or only one slide has patches of one of the labels.
    """
    if meter is None:
        return (
            "How much a random split inflates the AUC cannot be measured here. Either slides are unknown and were not "
            "inferred (split.groups), or only one slide has patches of one of the labels."
        )
    grouped, random, gap = (meter.iloc[row] for row in range(3))
    kind = "inferred slides" if gap["inferred"] else "slides"
    text = (
        f"Logistic regression on handcrafted features scores AUC {random['auc']:.3f} "
        f"({span(random['low'], random['high'])}) with random folds and {grouped['auc']:.3f} "
        f"({span(grouped['low'], grouped['high'])}) when each fold keeps whole {kind}. Ignoring {kind} changes the AUC "
        f"by {signed(gap['auc'])} (95 % CI {signed(gap['low'])} to {signed(gap['high'])}), on the same "
        f"{gap['patches']:,} training patches of {gap['slides']} {kind}."
    )
    if gap["inferred"]:
        text += " Inferred slides mix real slides, so the true change is probably larger."
    return text


def example_groups(view: AuditView) -> list[dict[str, Any]]:
    """Examples of each flag: ``flag, meaning, patches, cards``. A card's ``picture`` is its index in the pictures."""
    summary = view.summary.set_index("flag")
    groups = []
    for flag, part in view.examples.groupby("flag", sort=False):
        row = summary.loc[flag]
        cards = [{"picture": int(str(index)), **card} for index, card in part.to_dict("index").items()]
        groups.append({"flag": flag, "meaning": row["meaning"], "patches": int(row["patches"].item()), "cards": cards})
    return groups
