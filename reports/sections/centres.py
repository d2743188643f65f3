"""Words and rows about centres that models were not fitted on, for the report and the terminal."""

from __future__ import annotations

from typing import Any

import pandas as pd

from histoblend.reports.evaluation.centres import MEAN
from histoblend.reports.page.section import records
from histoblend.reports.words import difference, model_words, span


def centre_words(centres: pd.DataFrame | None) -> str:
    """Say how the best model scores on left-out centres, on average and on the worst; empty without centres.

    Parameters
    ----------
    centres : DataFrame or None
        From :func:`reports.evaluation.centres.score_centres`.
    """
    if centres is None:
        return ""
    scored = centres[centres["auc"].notna()]
    one_label = centres[centres["auc"].isna()]["centre"].unique()
    without = f" Centres with one label, which have no AUC: {', '.join(one_label)}." if len(one_label) else ""
    if scored.empty:
        return f"No left-out centre has patches of both labels, so scores on a new centre are unknown.{without}"
    means = scored[scored["centre"] == MEAN]
    mean: dict[str, Any] = records(means.loc[[means["auc"].idxmax()]])[0]
    each = scored[(scored["model"] == mean["model"]) & (scored["centre"] != MEAN)]
    worst: dict[str, Any] = records(each.loc[[each["auc"].idxmin()]])[0]
    return (
        "Each model was fitted on the training slides of all centres but one, and scored on that one. Best on average: "
        f"{model_words(mean['model'])}, mean AUC {_score(mean)} over {len(each)} centres; worst centre: "
        f"{worst['centre']}, AUC {_score(worst)}. Change from folds that mix the centres, on the same patches: "
        f"{difference(mean['change'], mean['change_low'], mean['change_high'])}. Part of a loss is due to fewer "
        f"training slides. The model's usual out-of-fold AUC, {mean['pooled']:.3f}, also counts pairs of patches from "
        "different centres. If centres differ in their share of tumour, knowing the centre is enough to order many of "
        f"these.{without}"
    )


def centre_rows(centres: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Rows of the table, with the mean of each model first; empty without centres."""
    if centres is None:
        return []
    order = pd.factorize(centres["model"])[0], (centres["centre"] != MEAN).to_numpy()
    rows: list[dict[str, Any]] = records(
        centres.assign(first=order[0], then=order[1]).sort_values(["first", "then"], kind="stable")
    )
    return rows


def _score(row: dict[str, Any]) -> str:
    interval = "" if pd.isna(row["auc_low"]) else f" ({span(row['auc_low'], row['auc_high'])})"
    return f"{row['auc']:.3f}{interval}"
