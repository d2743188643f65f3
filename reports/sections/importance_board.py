"""The board of the Importances section: families, clusters and ten single columns, with intervals and trust."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from histoblend.models.inspection.ensemble_shapley import Blending
from histoblend.models.inspection.importance_evidence import CLEAR, LEADING_SHARE, trust_checks
from histoblend.reports.evaluation.explorer import ExplorerView, board_columns
from histoblend.reports.page.section import records
from histoblend.reports.words import short_model_words

#: Most clusters on the board, and most names of members that are listed for each.
CLUSTERS, MEMBERS = 6, 12

#: The rules of the trust badge, as shown on the page.
RULES = {
    "separates": "The 95 % interval of its separation is above 0.",
    "stable": f"It is among the leading {LEADING_SHARE:.0%} of the columns in every fold.".replace("%", " %"),
    "alone": "It is in no cluster of strongly correlated columns, which would share its credit arbitrarily.",
}


def board(view: ExplorerView, model: str) -> dict[str, Any]:
    """Content of the board of one model.

    Returns
    -------
    dict
        ``total``, the separation of the whole model. ``families`` and ``clusters``: name, number of columns,
        separation, low, high and, for clusters, names of members. ``columns``: name, separation, low, high, direction
        (1, −1 or 0), best and worst rank over folds, number of ranked columns, trust, and reasons against it.
    """
    part = view.evidence[view.evidence.model == model]
    members = cluster_names(view, model)
    families = part[part.kind == "family"].sort_values("separation", ascending=False, kind="stable")
    clusters = part[part.kind == "cluster"].sort_values("separation", ascending=False, kind="stable")
    return {
        "total": _rounded(float(families.separation.sum())),
        "families": [[row["unit"], int(row["columns"]), *_limits(row)] for row in records(families)],
        "clusters": [
            [row["unit"], int(row["columns"]), *_limits(row), members[str(row["unit"])][:MEMBERS]]
            for row in records(clusters.head(CLUSTERS))
        ],
        "clustered": len(clusters),
        "columns": _column_rows(board_columns(view.evidence, model), members),
    }


def cluster_names(view: ExplorerView, model: str) -> dict[str, list[str]]:
    """Names of the columns of each cluster of a model, by its leader."""
    rows = view.clusters[view.clusters.model == model]
    return {str(row["unit"]): str(row["members"]).split() for row in records(rows)}


def _column_rows(rows: pd.DataFrame, members: Mapping[str, list[str]]) -> list[list[Any]]:
    sizes = {name: len(names) for names in members.values() for name in names}
    checks = trust_checks(rows, sizes)
    listed = []
    for row, check in zip(records(rows), records(checks), strict=True):
        name, direction = str(row["unit"]), row["direction"]
        ranks = [None if pd.isna(row[key]) else int(row[key]) for key in ("first", "last", "ranked")]
        listed.append(
            [
                name,
                *_limits(row),
                0 if pd.isna(direction) or abs(direction) < CLEAR else int(np.sign(direction)),
                *ranks,
                check["trust"],
                _reasons(check, row, sizes.get(name, 1)),
            ]
        )
    return listed


def _reasons(check: Mapping[str, Any], row: Mapping[str, Any], size: int) -> list[str]:
    """Why a column is not trusted fully."""
    reasons = []
    if not check["separates"]:
        reasons.append("95 % interval includes\xa00" if pd.notna(row["low"]) else "no interval: too few slides")
    if not check["stable"]:
        reasons.append("rank changes over folds" if pd.notna(row["last"]) else "no ranks over folds")
    if not check["alone"]:
        others = size - 1
        reasons.append(f"shares credit with {others:,} correlated column{'s' if others > 1 else ''}")
    return reasons


def _limits(row: Mapping[str, Any]) -> list[float | None]:
    return [None if pd.isna(row[key]) else _rounded(float(row[key])) for key in ("separation", "low", "high")]


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def about(model: str, blend: Blending | None) -> str:
    """Say how a model's contributions are computed."""
    if model != "ensemble" or blend is None:
        if model.startswith("xgboost"):
            return "Contributions are exact Shapley values of the trees, computed by XGBoost."
        return "A contribution is the coefficient times the distance of the column from its mean over training patches."
    members = [
        f"{short_model_words(member)} × {weight:.2f}"
        for member, weight in zip(blend.members, blend.weights, strict=True)
    ]
    means = [
        f"{short_model_words(member)} × {weight:.2f}"
        for member, weight in zip(blend.members, blend.mean_weights, strict=True)
        if weight
    ]
    text = (
        "The ensemble is explained through its members: each contribution is the member’s weight times the member’s "
        f"contribution. Weights of log-odds: {'; '.join(members)}."
    )
    if means:
        text += f" It also adds the members’ mean log-odds over the patch’s slide: {'; '.join(means)}."
    end = "Calibration is included." if blend.calibrated else "The sum is the log-odds before calibration."
    return f"{text} {end}"
