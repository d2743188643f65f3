"""The Ladder section: table, forest plot, ROC curves, and each family alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from histoblend.models.metrics import METRICS
from histoblend.models.names import CONTEXT_RUNGS, RUNGS, SINGLE_FAMILIES
from histoblend.reports.page import figures
from histoblend.reports.page.section import Chart, Section, records
from histoblend.reports.within_slides import BETWEEN_SLIDES, SLIDE_CONTEXT, has_within, within_words


def ladder_section(ladder: pd.DataFrame, curves: pd.DataFrame, families: Mapping[str, tuple[int, float]]) -> Section:
    """Show every rung, its gain and its cost.

    Parameters
    ----------
    ladder : DataFrame
        From :func:`reports.evaluation.ladder.ladder`.
    curves : DataFrame
        From :func:`reports.evaluation.ladder.roc_table`.
    families : mapping from name to (columns, milliseconds)
        Number of columns of each family of handcrafted features, and its time per patch on one core.

    Returns
    -------
    Section
    """
    # Families alone have a separate table: among the rungs they would hide the ladder.
    rungs = ladder[~ladder.rung.isin(SINGLE_FAMILIES)]
    within = has_within(rungs)
    metrics = ["auc", "auc_within", *METRICS[1:]] if within else METRICS
    forest = [(figures.METRIC_WORDS[name][0], figures.forest(rungs, name)) for name in metrics]
    words = {"oof": "out-of-fold", "test": "test"}
    roc = [(words[split], figures.roc(curves, split)) for split in dict.fromkeys(curves.split)]
    return Section(
        "ladder",
        "Ladder",
        {
            "rows": _ladder_rows(rungs, within),
            "alone": _alone_rows(ladder, families),
            "within": within,
            "within_words": within_words(rungs),
            "between_words": [BETWEEN_SLIDES] + [SLIDE_CONTEXT] * bool(rungs.rung.isin(CONTEXT_RUNGS).any()),
        },
        charts={
            "forest": Chart(_forest_words(rungs), forest),
            "roc": Chart("ROC curves of all models. The AUC column of the ladder has the areas under them.", roc),
        },
        tables={"ladder": ladder, "roc": curves},
    )


def _ladder_rows(ladder: pd.DataFrame, within: bool) -> list[dict[str, Any]]:
    """Rows of the ladder with the marks of the table; `within` adds the scores and gains within slides."""
    rows = records(ladder)
    for row in rows:
        row["ground"] = row["rung"] == RUNGS[0]
        row["aucs"] = [_with_interval(row, name) for name in ("auc", "auc_within")[: 2 if within else 1]]
        row["gains"] = [
            (*_with_interval(row, name), _mark(row, name))
            for name in ("gain", "gain_within", "gain_between")[: 3 if within else 1]
        ]
        row["others"] = [_with_interval(row, name) for name in METRICS[1:]]
    return rows


def _with_interval(row: Mapping[str, Any], name: str) -> tuple[Any, Any, Any]:
    return row[name], row[f"{name}_low"], row[f"{name}_high"]


def _mark(row: Mapping[str, Any], name: str) -> str:
    """Whether a gain's interval is above 0, below 0 or includes it; empty without a gain or an interval."""
    value, low, high = _with_interval(row, name)
    if pd.isna(value) or pd.isna(low):
        return ""
    return "up" if low > 0 else "down" if high < 0 else "open"


def _alone_rows(ladder: pd.DataFrame, families: Mapping[str, tuple[int, float]]) -> list[dict[str, Any]]:
    """One row per family of handcrafted features and split, best first, with a score for each head."""
    rows = []
    if not ladder.rung.isin(SINGLE_FAMILIES).any():
        return []
    for family, (columns, cost) in families.items():
        part = ladder[ladder.rung == family]
        for split in dict.fromkeys(part.split):
            heads = part[part.split == split].set_index("head")
            scores = {str(head): (row.auc, row.auc_low, row.auc_high) for head, row in heads.iterrows()}
            rows.append({"family": family, "columns": columns, "cost": cost, "split": split, "scores": scores})
    return sorted(rows, key=lambda row: (row["split"] == "test", -max(score[0] for score in row["scores"].values())))


def _forest_words(ladder: pd.DataFrame) -> str:
    oof = ladder[ladder.split == "oof"].to_dict("records")
    parts = [f"{figures.short_name(row['model'])} {row['auc']:.3f}" for row in oof]
    return "Forest plot of each model's score with its 95 % interval. Out-of-fold AUC: " + ", ".join(parts) + "."
