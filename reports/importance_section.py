"""What models rely on, as a section: groups of columns first, then the features to explore."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from histoblend.models.inspection.permutation import GroupView, sum_by_family
from histoblend.reports.explorer import ExplorerView, explore
from histoblend.reports.importance_groups import group_charts, group_content, group_tables
from histoblend.reports.section import Section


def importances_section(
    importances: pd.DataFrame,
    sentences: Mapping[str, str],
    view: ExplorerView | None = None,
    groups: GroupView | None = None,
) -> Section:
    """Show what models rely on.

    Parameters
    ----------
    importances : DataFrame
        From :mod:`models.inspection.permutation`, of any models and measures; may be empty.
    sentences : mapping from feature name to str
        What each feature is.
    view : ExplorerView, optional
        What features open with, and single patches.
    groups : GroupView, optional
        Importance of families, themes, regions and clusters.

    Returns
    -------
    Section
    """
    sums = sum_by_family(importances) if len(importances) else pd.DataFrame()
    explorer = explore(importances, sums, sentences, view)
    shown = group_content(importances, groups) if groups is not None else None
    return Section(
        "importances",
        "Importances",
        {"groups": shown, "explorer": explorer.content} if len(importances) else None,
        absent="No importances were computed. The step that trains heads fills this section.",
        charts=(group_charts(groups) if groups is not None else {}) | explorer.charts,
        tables={"importances": importances, "families": sums}
        | (group_tables(importances, groups) if groups is not None else {})
        | explorer.tables,
        data={"explorer": explorer.data},
    )
