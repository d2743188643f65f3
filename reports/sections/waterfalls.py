"""Why a patch got its score: contributions by family, by cluster within a family, and by column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histoblend.models.inspection.importance_evidence import family_members
from histoblend.models.inspection.shapley import ShapleyValues
from histoblend.reports.evaluation.explorer import ExplorerView
from histoblend.reports.page.section import Section
from histoblend.reports.sections.importance_board import cluster_names

#: Most groups that are listed for a family, and most columns for a cluster. The others are added up.
GROUPS, COLUMNS = 4, 3


class Waterfalls:
    """Waterfalls of one model as nested lists.

    Parameters
    ----------
    features : sequence of str
    clusters : mapping from str to list of str
        Names of the columns of each cluster, by its leader.
    """

    def __init__(self, features: Sequence[str], clusters: Mapping[str, list[str]]) -> None:
        leader_of = {name: leader for leader, names in clusters.items() for name in names}
        self.features = list(features)
        self.families: list[tuple[str, list[tuple[str, list[int]]]]] = []
        for family, positions in family_members(features).items():
            groups: dict[str, list[int]] = {}
            for position in positions:
                name = self.features[position]
                groups.setdefault(leader_of.get(name, name), []).append(position)
            self.families.append((family, list(groups.items())))

    def tree(self, shares: np.ndarray, base: float) -> list[Any]:
        """Waterfall of one patch.

        Parameters
        ----------
        shares : ndarray of shape (features,)
            Contributions to the log-odds.
        base : float

        Returns
        -------
        list
            ``[base, families]``. A family is ``[name, columns, sum, groups]``, the largest first, and a group is
            ``[name, columns, sum]``, with its columns ``[[name, value], …]`` if it has several. The name of a cluster
            is that of its leader. The last group, or column, is the sum of all others: its name is "", or their number.
        """
        families: list[tuple[str, int, float, list[Any]]] = []
        for family, groups in self.families:
            total = float(sum(shares[positions].sum() for _, positions in groups))
            count = sum(len(positions) for _, positions in groups)
            listed = list(self._groups(groups, shares)) if count > 1 else []
            families.append((family, count, _rounded(total), listed))
        families.sort(key=lambda row: -abs(row[2]))
        return [_rounded(base), [list(row) for row in families]]

    def _groups(self, groups: Sequence[tuple[str, list[int]]], shares: np.ndarray) -> Iterator[list[Any]]:
        sums = [float(shares[positions].sum()) for _, positions in groups]
        order = np.argsort(-np.abs(sums), kind="stable")
        for number in order[:GROUPS]:
            name, positions = groups[number]
            if len(positions) == 1:
                yield [self.features[positions[0]], 1, _rounded(sums[number])]
            else:
                yield [name, len(positions), _rounded(sums[number]), self._columns(positions, shares)]
        rest = order[GROUPS:]
        if len(rest):
            yield ["", sum(len(groups[number][1]) for number in rest), _rounded(sum(sums[number] for number in rest))]

    def _columns(self, positions: Sequence[int], shares: np.ndarray) -> list[list[Any]]:
        order = sorted(positions, key=lambda position: -abs(shares[position]))
        rows: list[list[Any]] = [[self.features[each], _rounded(float(shares[each]))] for each in order[:COLUMNS]]
        rest = order[COLUMNS:]
        return [*rows, [len(rest), _rounded(float(shares[rest].sum()))]] if rest else rows


def _rounded(value: float) -> float:
    return round(value, 3) + 0.0  # adding 0 turns −0 into 0


def names_in(tree: Sequence[Any]) -> Iterator[str]:
    """Names of the columns and clusters in a waterfall."""
    for *_, groups in tree[1]:
        for name, _, _, *columns in groups:
            yield from [name] if name else []
            yield from (column for column, _ in columns[0] if isinstance(column, str)) if columns else ()


def numbered(tree: Sequence[Any], index: Mapping[str, int]) -> list[Any]:
    """The waterfall with numbers instead of names: −1 for an empty name, and −n for n further columns."""

    def column(name: str | int, value: float) -> list[float]:
        return [index[name] if isinstance(name, str) else -name, value]

    def group(name: str, count: int, total: float, columns: Sequence[Any] = ()) -> list[Any]:
        rows = [[column(*each) for each in columns]] if columns else []
        return [index.get(name, -1), count, total, *rows]

    families = [[*family, [group(*each) for each in groups]] for *family, groups in tree[1]]
    return [tree[0], families, *tree[2:]]


def waterfall_data(view: ExplorerView, shown: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Waterfalls by model and patch.

    Parameters
    ----------
    view : ExplorerView
    shown : sequence of str
        Patches that other sections show. They are explained by the best model, if its data allow it.

    Returns
    -------
    dict from model to dict from patch to list
        From :meth:`Waterfalls.tree`, with how the patch was predicted appended: "test" or "fold".
    """
    trees: dict[str, dict[str, list[Any]]] = {}
    place = {patch: row for row, patch in enumerate(view.explained.patch_id)}
    own = [*view.cases.patch_id, *view.examples.patch_id]
    for model, attribution in view.attributions.items():
        maker = Waterfalls(attribution.features, cluster_names(view, model))
        wanted = dict.fromkeys([*own, *shown] if model == view.best else view.cases.patch_id)
        trees[model] = {
            patch: [*maker.tree(attribution.shares[place[patch]], attribution.base), "test"]
            for patch in wanted
            if patch in place
        }
        if model == view.best:
            trees[model] |= _traced(view, maker, set(wanted))
    return trees


def _traced(view: ExplorerView, maker: Waterfalls, wanted: set[str]) -> dict[str, list[Any]]:
    """Waterfalls of training patches, by the fits that did not see their slides."""
    rows = view.traced[view.traced.patch_id.isin(wanted)]
    return {
        str(patch): [*maker.tree(values.shares[int(place)], values.base), "fold"]
        for patch, fold, place in zip(rows.patch_id, rows.fold, rows.place, strict=True)
        for values in [view.folds[str(fold)]]
    }


def shown_patches(sections: Sequence[Section]) -> list[str]:
    """Patches with a picture in any of these sections: values of ``patch_id`` in their content."""
    return list(dict.fromkeys(patch for section in sections for patch in _patch_ids(section.content)))


def _patch_ids(content: Any) -> Iterator[str]:
    if isinstance(content, Mapping):
        if isinstance(content.get("patch_id"), str):
            yield content["patch_id"]
        for value in content.values():
            yield from _patch_ids(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _patch_ids(value)


def grouped(attribution: ShapleyValues) -> ShapleyValues:
    """Contributions of whole families: a figure for print has room for these only."""
    members = family_members(attribution.features)
    sums = np.column_stack([attribution.shares[:, positions].sum(axis=1) for positions in members.values()])
    return ShapleyValues(list(members), sums, np.full(sums.shape, np.nan, np.float32), attribution.base)


def case_table(view: ExplorerView) -> pd.DataFrame:
    """Contributions of every column to the example patches: ``case, model, patch_id, feature, value, log_odds``."""
    from histoblend.reports.sections.shapley_charts import share_table

    tables = [
        share_table(view.attributions[row["model"]], row["place"]).assign(
            case=row["case"], model=row["model"], patch_id=row["patch_id"]
        )
        for row in view.cases.to_dict("records")
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
