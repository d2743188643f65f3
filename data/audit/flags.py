"""Flag unusual patches by fixed rules, and decide which patches are dropped or kept together.

Every flag is a rule on columns of the audit table, never a list of ids. The thresholds were set on 2,965 real PCam
patches, by visual inspection of the patches near each threshold, and on the phantom, whose faults are known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoblend.data.audit.duplicates import exact_duplicates, near_duplicates
from histoblend.data.audit.measures import Measures, measure
from histoblend.data.splits import TEST, UNMAPPED, components, is_known, official_sides, unite

#: Minimum share of tissue of patches that are compared with others. Nearly empty patches all look alike.
MIN_TISSUE = 0.05

#: Slides that share a duplicate are merged into one group unless the group would exceed this share of all patches.
MAX_GROUP_SHARE = 0.2


@dataclass(frozen=True)
class Flag:
    """A row of :data:`FLAGS`.

    Attributes
    ----------
    name : str
        Column of the audit table, and key of the ``audit`` section in the configuration if it has policies.
    sentence : str
        What the flag says about a patch.
    policies : tuple of str
        Possible treatments, the default first; empty if there is no choice.
    """

    name: str
    sentence: str
    policies: tuple[str, ...]


KEEP, DROP, GROUP = "keep", "drop", "group"

FLAGS: tuple[Flag, ...] = (
    Flag("undecodable", "cannot be read", ()),
    Flag("exact_duplicate", "has the same pixels as another patch", (GROUP, DROP, KEEP)),
    Flag("near_duplicate", "shows the image of another patch: rotated, mirrored or recompressed", (GROUP, DROP, KEEP)),
    Flag("across_slides", "has a duplicate in another slide", (GROUP, DROP, KEEP)),
    Flag("across_splits", "has a duplicate in another part of the official split", (DROP, KEEP)),
    Flag("contradictory", "has the same pixels as a patch with the other label", (DROP, KEEP)),
    Flag("near_contradictory", "is a near duplicate of a patch with the other label", (KEEP, DROP)),
    Flag("blank", "is bare glass: less than 1 % tissue and almost no contrast", (KEEP, DROP)),
    Flag("black", "is black: outside the scanned area", (KEEP, DROP)),
    Flag("blurred", "is out of focus: little fine detail relative to coarse detail", (KEEP, DROP)),
    Flag("saturated", "is overexposed or clipped: at least 30 % of the pixels at 0 or 255", (KEEP, DROP)),
    Flag("pen", "is dark over at least 20 % of its area: pen ink, a thick fold or the frame", (KEEP, DROP)),
    Flag("no_slide", "has no slide, while other patches have one", (GROUP, DROP)),
)
"""All flags, in the order of the table."""

POLICIES = {flag.name: flag.policies for flag in FLAGS if flag.policies}

#: Flags that depend only on a patch's own pixels.
_RULES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "blank": lambda m: (m.tissue < 0.01) & (m.contrast < 6) & (m.brightness > 180),
    "black": lambda m: m.dark >= 0.95,
    "blurred": lambda m: (m.sharpness < 0.5) & (m.detail > 8) & (m.tissue >= MIN_TISSUE) & (m.dark < 0.95),
    "saturated": lambda m: (m.clipped >= 0.3) & (m.dark < 0.95),
    "pen": lambda m: (m.ink >= 0.2) & (m.dark < 0.95),
}


def own_flags(measures: pd.DataFrame) -> pd.DataFrame:
    """Return the flags that depend only on a patch's own pixels: ``blank, black, blurred, saturated, pen``.

    Parameters
    ----------
    measures : DataFrame
        From :meth:`Measures.table`.
    """
    return pd.DataFrame({name: rule(measures).to_numpy() for name, rule in _RULES.items()})


def comparable(measures: pd.DataFrame) -> np.ndarray:
    """Return whether a patch has enough content to be compared with others, ndarray of shape (n,), dtype bool.

    Glass and frame look alike on all slides. Equal patches of glass or frame say nothing about slides or labels.
    """
    return np.asarray((measures.tissue >= MIN_TISSUE) & (measures.dark < 0.95))


def examine(table: pd.DataFrame, measures: Measures) -> pd.DataFrame:
    """Flag every patch.

    Parameters
    ----------
    table : DataFrame
        ``patch_id, label, slide, sha256`` and, if known, ``centre`` and the data set's own split ``official``.
    measures : Measures
        In the row order of ``table``.

    Returns
    -------
    DataFrame
        One row per patch: ``patch_id, label, slide`` (``centre, official``); one column per measure; one boolean column
        per flag; ``exact_of``, the lowest row with the same pixels; ``set``, the lowest row of its set of duplicates;
        ``similarity`` to the matching patch (1 for equal pixels, missing without a duplicate); ``symmetry``, which maps
        the matching patch to this one (see :class:`data.audit.duplicates.NearPairs`).
    """
    values = measures.table()
    usable = comparable(values)
    rows = np.arange(len(table))
    exact_of = exact_duplicates(table["sha256"].tolist())
    exact = _differs_within(exact_of, rows)
    same = usable & (exact_of != rows)
    pairs = near_duplicates(measures.bits, measures.vectors, rows[usable & (exact_of == rows)])
    sets = components(len(table), np.append(rows[same], pairs.first), np.append(exact_of[same], pairs.second))
    similarity, symmetry = np.full(len(table), np.nan, np.float32), np.zeros(len(table), np.int8)
    for rows_of_pair in (pairs.second, pairs.first):
        similarity[rows_of_pair] = pairs.similarity
    symmetry[pairs.first] = pairs.symmetry
    similarity[exact] = 1
    flags = {
        "undecodable": np.zeros(len(table), bool),
        "exact_duplicate": exact,
        "near_duplicate": np.isin(exact_of, np.append(pairs.first, pairs.second)),
        **_set_flags(table, exact_of, sets, usable),
        **own_flags(values),
        "no_slide": _lacks_slide(table["slide"]),
    }
    columns = [name for name in ("patch_id", "label", "slide", "centre", "official") if name in table]
    ordered = pd.DataFrame({flag.name: flags[flag.name] for flag in FLAGS})
    links = pd.DataFrame({"exact_of": exact_of, "set": sets, "similarity": similarity, "symmetry": symmetry})
    return pd.concat([table[columns].reset_index(drop=True), values, ordered, links], axis=1)


def audit(
    patches: np.ndarray, labels: Sequence[int] | None = None, slides: Sequence[str | None] | None = None
) -> pd.DataFrame:
    """Flag unusual patches: duplicates, contradictory labels, blank, black, blurred, saturated or pen-marked patches.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        RGB, at least 32 × 32 pixels.
    labels : sequence of int, optional
        0 or 1. Without labels, no contradictions are reported.
    slides : sequence of str or None, optional
        Slide of each patch; None if unknown.

    Returns
    -------
    DataFrame
        One row per patch, with the columns of :func:`examine`; ``patch_id`` is the row number.

    Raises
    ------
    ValueError
        If the patches have another shape or dtype, or an argument has another length.
    """
    if patches.ndim != 4 or patches.shape[3] != 3 or patches.dtype != np.uint8 or min(patches.shape[1:3]) < 32:
        raise ValueError(
            "patches must be uint8 RGB of shape (n, height, width, 3) with at least 32 × 32 pixels; got "
            f"{patches.dtype} {patches.shape}."
        )
    for name, given in (("labels", labels), ("slides", slides)):
        if given is not None and len(given) != len(patches):
            raise ValueError(f"{name} must have one entry per patch, {len(patches)}; got {len(given)}.")
    table = pd.DataFrame(
        {
            "patch_id": np.arange(len(patches)).astype(str),
            "label": 0 if labels is None else np.asarray(labels, dtype=int),
            "slide": None if slides is None else pd.Series(list(slides), dtype=object),
            "sha256": [hashlib.sha256(np.ascontiguousarray(patch).data).hexdigest() for patch in patches],
        }
    )
    audited = examine(table, measure(np.ascontiguousarray(patches)))
    return audited.drop(columns="label") if labels is None else audited


@dataclass(frozen=True)
class Decision:
    """Which patches are dropped, and which must stay together.

    Attributes
    ----------
    dropped_by : ndarray of shape (n,), dtype object
        Name of the flag that a patch is dropped for; empty if it is kept.
    first, second : ndarray of shape (links,), int
        Pairs of kept rows that must stay in one group.
    """

    dropped_by: np.ndarray
    first: np.ndarray
    second: np.ndarray


def decide(audit: pd.DataFrame, groups: np.ndarray, policies: Mapping[str, str]) -> Decision:
    """Apply the policies: decide which patches are dropped and which stay together.

    Duplicates in several slides merge these slides into one group. If a group would then exceed `MAX_GROUP_SHARE` of
    all patches, no slides are merged: the duplicates in one slide are kept, and those in other slides are dropped. A
    duplicate without a slide is dropped if another one has a slide.

    Parameters
    ----------
    audit : DataFrame
        From :func:`examine`.
    groups : ndarray of shape (n,)
        Groups that are kept together in any case, see :func:`data.splits.base_groups`.
    policies : mapping
        Maps flags to policies, see :data:`POLICIES`.

    Returns
    -------
    Decision
    """
    dropped_by = np.full(len(audit), "", dtype=object)
    for name in ("contradictory", "near_contradictory", *_RULES, "no_slide"):
        if policies[name] == DROP:
            _drop(dropped_by, audit[name], name)
    for name, column in (("exact_duplicate", "exact_of"), ("near_duplicate", "set")):
        if policies[name] == DROP:
            _drop(dropped_by, _first_kept(audit[column], dropped_by) != np.arange(len(audit)), name)
    sides = official_sides(audit)
    if policies["across_splits"] == DROP and sides is not None:
        tested = audit["set"].isin(audit["set"][(sides == TEST) & (dropped_by == "")])
        _drop(dropped_by, audit["across_splits"] & (sides != TEST) & tested, "across_splits")
    across = policies["across_slides"]
    if across == GROUP:
        _drop(dropped_by, _in_other_slide(audit, dropped_by) & ~is_known(audit["slide"]), "across_slides")
        if _exceeds_group_share(groups, *_links(audit, dropped_by, policies)):
            across = DROP
    if across == DROP:
        _drop(dropped_by, _in_other_slide(audit, dropped_by), "across_slides")
    first, second = _links(audit, dropped_by, policies)
    if across == KEEP:
        same = groups[first] == groups[second]
        first, second = first[same], second[same]
    return Decision(dropped_by, first, second)


def reason(flag: str) -> str:
    """Return why a patch is dropped, for the list of excluded patches."""
    if flag == "across_slides":
        return "has a duplicate in another slide, which is kept (audit.across_slides)"
    return f"{next(row.sentence for row in FLAGS if row.name == flag)} (audit.{flag})"


def summarise(audit: pd.DataFrame, policies: Mapping[str, str]) -> pd.DataFrame:
    """Count the patches per flag and the patches dropped for it.

    Parameters
    ----------
    audit : DataFrame
        From :func:`examine`, with ``dropped_by`` from :class:`Decision`.
    policies : mapping

    Returns
    -------
    DataFrame
        One row per flag, columns ``flag, patches, share, positive, policy, dropped, meaning``: the number of patches
        with the flag, their share of all patches, the share of positives among them, and the number dropped for it.
    """
    rows = []
    for flag in FLAGS:
        having = audit[audit[flag.name]]
        rows.append(
            {
                "flag": flag.name,
                "patches": len(having),
                "share": len(having) / max(len(audit), 1),
                "positive": float(having["label"].mean()) if len(having) else np.nan,
                "policy": policies.get(flag.name, DROP),
                "dropped": int((audit["dropped_by"] == flag.name).sum()),
                "meaning": flag.sentence,
            }
        )
    return pd.DataFrame(rows)


def choose_examples(audit: pd.DataFrame, most: int = 8) -> pd.DataFrame:
    """Choose at most ``most`` example patches per flag, spread over the data set; a duplicate follows its original.

    Returns
    -------
    DataFrame
        ``flag, row``, where ``row`` is a row of ``audit``.
    """
    examples = []
    for flag in FLAGS[1:]:
        rows = np.flatnonzero(audit[flag.name])
        paired = bool(audit.loc[rows, "set"].duplicated().any())
        if paired:
            # One original and one copy of each set, next to each other.
            rank = audit.loc[rows].groupby("set").cumcount()
            rows = np.stack([audit.loc[rows, "set"][(rank == 1).to_numpy()], rows[rank == 1]], 1).ravel()
        step = 2 if paired else 1
        chosen = np.unique(np.linspace(0, max(len(rows) // step - 1, 0), most // step).round().astype(int))
        positions = (step * chosen[:, None] + np.arange(step)).ravel()
        examples += [{"flag": flag.name, "row": int(row)} for row in rows[positions[positions < len(rows)]]]
    return pd.DataFrame(examples, columns=["flag", "row"])


def _lacks_slide(slides: pd.Series) -> np.ndarray:
    """Return whether a patch has no slide while others have one."""
    known = is_known(slides).to_numpy()
    return ~known if known.any() else np.zeros(len(known), bool)


def _set_flags(
    table: pd.DataFrame, exact_of: np.ndarray, sets: np.ndarray, usable: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the flags that compare duplicates with each other; patches without tissue are excluded."""
    labels = table["label"].to_numpy()
    slides = pd.factorize(table["slide"].astype(object), use_na_sentinel=False)[0]
    sides = official_sides(table)
    contradictory = usable & _differs_within(exact_of, labels)
    return {
        "across_slides": _differs_within(sets, slides),
        "across_splits": np.zeros(len(table), bool) if sides is None else _differs_within(sets, sides),
        "contradictory": contradictory,
        "near_contradictory": _differs_within(sets, labels) & ~contradictory,
    }


def _differs_within(sets: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return whether a row's set has more than one value, ndarray of shape (n,), dtype bool."""
    spread = pd.Series(values).groupby(sets).agg(["min", "max"])
    return np.isin(sets, spread.index[spread["min"] != spread["max"]])


def _drop(dropped_by: np.ndarray, rows: np.ndarray | pd.Series, name: str) -> None:
    """Mark rows as dropped, in place; the first reason is kept."""
    dropped_by[np.asarray(rows, bool) & (dropped_by == "")] = name


def _first_kept(members: pd.Series, dropped_by: np.ndarray) -> np.ndarray:
    """Return the lowest kept row of each row's set; a dropped row gets its own number."""
    own = np.arange(len(members))
    kept = dropped_by == ""
    first = pd.Series(own[kept]).groupby(members.to_numpy()[kept]).min()
    return np.where(kept, members.map(first).fillna(-1).to_numpy(dtype=np.int64), own)


def _in_other_slide(audit: pd.DataFrame, dropped_by: np.ndarray) -> np.ndarray:
    """Return whether a kept patch is in another slide than the first patch of its set that has a slide."""
    members = audit.loc[audit["across_slides"] & (dropped_by == ""), ["set", "slide"]]
    members = members.assign(
        slide=members["slide"].astype(object).fillna(UNMAPPED), unknown=~is_known(members["slide"])
    )
    first_slide = members.sort_values("unknown", kind="stable").groupby("set")["slide"].first()
    elsewhere = np.zeros(len(audit), bool)
    elsewhere[members.index] = members["slide"] != members["set"].map(first_slide)
    return elsewhere


def _links(audit: pd.DataFrame, dropped_by: np.ndarray, policies: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of kept rows that stay together: each row and the first of its set, if in the same official part."""
    first = np.arange(len(audit))
    if policies["near_duplicate"] == GROUP:
        second = _first_kept(audit["set"], dropped_by)
    elif policies["exact_duplicate"] == GROUP:
        second = _first_kept(audit["exact_of"].where(comparable(audit), pd.Series(first)), dropped_by)
    else:
        second = first
    together = first != second
    sides = official_sides(audit)
    if sides is not None:
        together &= sides[first] == sides[second]
    return first[together], second[together]


def _exceeds_group_share(groups: np.ndarray, first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether merging makes a group larger than `MAX_GROUP_SHARE` and larger than any group was before."""
    before = np.bincount(pd.factorize(groups)[0]).max()
    after = np.bincount(pd.factorize(unite(groups, first, second))[0]).max()
    return bool(after > max(MAX_GROUP_SHARE * len(groups), before))
