"""What the numbers were taken on: folds, leakage meter and the audit."""

from __future__ import annotations

from typing import Any

import pandas as pd

from histoblend.reports.audit import AuditView, consequence, example_groups, leakage_words
from histoblend.reports.pictures import data_uri
from histoblend.reports.section import Section


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
