"""What is odd about patches, flagged by stated rules, and what follows from it.

Every flag is a rule on numbers that stand in the audit table beside it, never a list of ids. Thresholds were set on
2,965 real PCam patches, looked at one by one around each, and on the phantom, whose faults are on record.
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

#: Least share of tissue with which a patch is compared with others: what is nearly empty looks like all that is.
LEAST_TISSUE = 0.05

#: Slides with copies of one patch are united as long as no group comes to hold more than this share of all patches.
MOST = 0.2


@dataclass(frozen=True)
class Flag:
    """A row of :data:`FLAGS`.

    Attributes
    ----------
    name : str
        Column of the audit table, and key of the ``audit`` section in the configuration where it has a policy.
    sentence : str
        What it says of a patch.
    policies : tuple of str
        What can be done about it, the default first; empty where there is no choice.
    """

    name: str
    sentence: str
    policies: tuple[str, ...]


KEEP, DROP, GROUP = "keep", "drop", "group"

FLAGS: tuple[Flag, ...] = (
    Flag("undecodable", "cannot be read", ()),
    Flag("exact_duplicate", "has the same pixels as another patch", (GROUP, DROP, KEEP)),
    Flag("near_duplicate", "shows the picture of another patch: turned, mirrored or stored anew", (GROUP, DROP, KEEP)),
    Flag("across_slides", "has a duplicate in another slide", (GROUP, DROP, KEEP)),
    Flag("across_splits", "has a duplicate on the other side of the official split", (DROP, KEEP)),
    Flag("contradictory", "has the same pixels as a patch with the other label", (DROP, KEEP)),
    Flag("near_contradictory", "is a near duplicate of a patch with the other label", (KEEP, DROP)),
    Flag("blank", "is bare glass: less than 1 % tissue, and hardly any contrast", (KEEP, DROP)),
    Flag("black", "is black: beyond the scanned area", (KEEP, DROP)),
    Flag("blurred", "is out of focus: too little fine detail beside the coarse", (KEEP, DROP)),
    Flag("saturated", "is overexposed or cut off: three tenths of the pixels at 0 or 255", (KEEP, DROP)),
    Flag("pen", "is dark over a fifth of its area: pen ink, a thick fold or the frame", (KEEP, DROP)),
    Flag("no_slide", "has no slide, while others have", (GROUP, DROP)),
)
"""All flags, in the order of the table."""

POLICIES = {flag.name: flag.policies for flag in FLAGS if flag.policies}

#: Flags that a patch's own pixels decide.
_RULES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "blank": lambda m: (m.tissue < 0.01) & (m.contrast < 6) & (m.brightness > 180),
    "black": lambda m: m.dark >= 0.95,
    "blurred": lambda m: (m.sharpness < 0.5) & (m.detail > 8) & (m.tissue >= LEAST_TISSUE) & (m.dark < 0.95),
    "saturated": lambda m: (m.clipped >= 0.3) & (m.dark < 0.95),
    "pen": lambda m: (m.ink >= 0.2) & (m.dark < 0.95),
}


def own_flags(measures: pd.DataFrame) -> pd.DataFrame:
    """Flags that a patch's own pixels decide: ``blank, black, blurred, saturated, pen``.

    Parameters
    ----------
    measures : DataFrame
        From :meth:`Measures.table`.
    """
    return pd.DataFrame({name: rule(measures).to_numpy() for name, rule in _RULES.items()})


def comparable(measures: pd.DataFrame) -> np.ndarray:
    """Whether a patch shows enough to be compared with others, ndarray of shape (n,), dtype bool.

    Glass and frame look alike everywhere: that two of them are equal says nothing about slides or labels.
    """
    return np.asarray((measures.tissue >= LEAST_TISSUE) & (measures.dark < 0.95))


def examine(table: pd.DataFrame, measures: Measures) -> pd.DataFrame:
    """Flag every patch.

    Parameters
    ----------
    table : DataFrame
        ``patch_id, label, slide, sha256`` and, where a data set comes with a split, ``official``.
    measures : Measures
        Rows as in ``table``.

    Returns
    -------
    DataFrame
        A row a patch: ``patch_id, label, slide`` (and ``official``); a column a measure; a column a flag, true or
        false; ``exact_of`` and ``set``, the lowest row with the same pixels and the lowest row of all its duplicates;
        ``similarity`` to the patch that it was found by (1 for equal pixels, missing without a duplicate) and
        ``symmetry`` (what turns that patch into this one, see :class:`data.audit.duplicates.NearPairs`).
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
    for side in (pairs.second, pairs.first):
        similarity[side] = pairs.similarity
    symmetry[pairs.first] = pairs.symmetry
    similarity[exact] = 1
    flags = {
        "undecodable": np.zeros(len(table), bool),
        "exact_duplicate": exact,
        "near_duplicate": np.isin(exact_of, np.append(pairs.first, pairs.second)),
        **_set_flags(table, exact_of, sets, usable),
        **own_flags(values),
        "no_slide": _left_out(table["slide"]),
    }
    kept = [name for name in ("patch_id", "label", "slide", "official") if name in table]
    ordered = pd.DataFrame({flag.name: flags[flag.name] for flag in FLAGS})
    links = pd.DataFrame({"exact_of": exact_of, "set": sets, "similarity": similarity, "symmetry": symmetry})
    return pd.concat([table[kept].reset_index(drop=True), values, ordered, links], axis=1)


def audit(
    patches: np.ndarray, labels: Sequence[int] | None = None, slides: Sequence[str | None] | None = None
) -> pd.DataFrame:
    """Look for odd patches: duplicates, contradicting labels, blank, black, blurred, saturated and marked ones.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        RGB, at least 32 × 32 pixels.
    labels : sequence of int, optional
        0 or 1. Without labels none contradict each other.
    slides : sequence of str or None, optional
        Slide of each patch, None where it is unknown.

    Returns
    -------
    DataFrame
        One row per patch, as :func:`examine` describes it; ``patch_id`` is the row number.

    Raises
    ------
    ValueError
        The patches have another shape or dtype, or an argument has another length.
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
    found = examine(table, measure(np.ascontiguousarray(patches)))
    return found.drop(columns="label") if labels is None else found


@dataclass(frozen=True)
class Decision:
    """What follows from the flags.

    Attributes
    ----------
    dropped_by : ndarray of shape (n,), dtype object
        Name of the flag that a patch is dropped for; empty where it stays.
    first, second : ndarray of shape (links,), int
        Rows, both staying, that must not be separated.
    """

    dropped_by: np.ndarray
    first: np.ndarray
    second: np.ndarray


def decide(audit: pd.DataFrame, groups: np.ndarray, policies: Mapping[str, str]) -> Decision:
    """Apply the policies: what is dropped, and what stays together.

    Copies of one patch in several slides unite these slides. Where that would chain slides into a group of more than
    `MOST` of all patches, no slides are united: of such copies those in one slide stay, and the others are dropped. A
    copy without a slide is dropped wherever another has one.

    Parameters
    ----------
    audit : DataFrame
        From :func:`examine`.
    groups : ndarray of shape (n,)
        What is kept together anyway: see :func:`data.splits.base_groups`.
    policies : mapping
        Flag to policy; see :data:`POLICIES`.

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
            _drop(dropped_by, _first_staying(audit[column], dropped_by) != np.arange(len(audit)), name)
    sides = official_sides(audit)
    if policies["across_splits"] == DROP and sides is not None:
        tested = audit["set"].isin(audit["set"][(sides == TEST) & (dropped_by == "")])
        _drop(dropped_by, audit["across_splits"] & (sides != TEST) & tested, "across_splits")
    across = policies["across_slides"]
    if across == GROUP:
        _drop(dropped_by, _away(audit, dropped_by) & ~is_known(audit["slide"]), "across_slides")
        if _chains(groups, *_links(audit, dropped_by, policies)):
            across = DROP
    if across == DROP:
        _drop(dropped_by, _away(audit, dropped_by), "across_slides")
    first, second = _links(audit, dropped_by, policies)
    if across == KEEP:
        same = groups[first] == groups[second]
        first, second = first[same], second[same]
    return Decision(dropped_by, first, second)


def reason(flag: str) -> str:
    """Why a patch is dropped, in words, for the list of patches set aside."""
    if flag == "across_slides":
        return "has a duplicate in another slide, which is kept (audit.across_slides)"
    return f"{next(row.sentence for row in FLAGS if row.name == flag)} (audit.{flag})"


def summarise(audit: pd.DataFrame, policies: Mapping[str, str]) -> pd.DataFrame:
    """What was found and what was done.

    Parameters
    ----------
    audit : DataFrame
        From :func:`examine`, with ``dropped_by`` from :class:`Decision`.
    policies : mapping

    Returns
    -------
    DataFrame
        ``flag, patches, share, positive, policy, dropped, meaning``, a row a flag: how many patches have it, their
        share of all, the share of positives among them, and how many were dropped for it.
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
    """Patches to look at: at most ``most`` a flag, spread over the data set; a duplicate stands after its picture.

    Returns
    -------
    DataFrame
        ``flag, row``; rows of ``audit``.
    """
    found = []
    for flag in FLAGS[1:]:
        rows = np.flatnonzero(audit[flag.name])
        paired = bool(audit.loc[rows, "set"].duplicated().any())
        if paired:
            # One picture and one copy of each set, side by side.
            place = audit.loc[rows].groupby("set").cumcount()
            rows = np.stack([audit.loc[rows, "set"][(place == 1).to_numpy()], rows[place == 1]], 1).ravel()
        step = 2 if paired else 1
        chosen = np.unique(np.linspace(0, max(len(rows) // step - 1, 0), most // step).round().astype(int))
        places = (step * chosen[:, None] + np.arange(step)).ravel()
        found += [{"flag": flag.name, "row": int(row)} for row in rows[places[places < len(rows)]]]
    return pd.DataFrame(found, columns=["flag", "row"])


def _left_out(slides: pd.Series) -> np.ndarray:
    """Whether a patch has no slide while others have."""
    known = is_known(slides).to_numpy()
    return ~known if known.any() else np.zeros(len(known), bool)


def _set_flags(
    table: pd.DataFrame, exact_of: np.ndarray, sets: np.ndarray, usable: np.ndarray
) -> dict[str, np.ndarray]:
    """Flags that come from comparing duplicates with each other; patches without tissue take no part."""
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
    """Whether a row's set holds more than one value, ndarray of shape (n,), dtype bool."""
    spread = pd.Series(values).groupby(sets).agg(["min", "max"])
    return np.isin(sets, spread.index[spread["min"] != spread["max"]])


def _drop(dropped_by: np.ndarray, rows: np.ndarray | pd.Series, name: str) -> None:
    """Note who is dropped, in place; the first reason stands."""
    dropped_by[np.asarray(rows, bool) & (dropped_by == "")] = name


def _first_staying(members: pd.Series, dropped_by: np.ndarray) -> np.ndarray:
    """Lowest row of each row's set that is not dropped; the row itself where it is dropped."""
    own = np.arange(len(members))
    staying = dropped_by == ""
    first = pd.Series(own[staying]).groupby(members.to_numpy()[staying]).min()
    return np.where(staying, members.map(first).fillna(-1).to_numpy(dtype=np.int64), own)


def _away(audit: pd.DataFrame, dropped_by: np.ndarray) -> np.ndarray:
    """Whether a patch that stays stands in another slide than the first of its set that has one."""
    members = audit.loc[audit["across_slides"] & (dropped_by == ""), ["set", "slide"]]
    members = members.assign(slide=members["slide"].astype(object).fillna(UNMAPPED), lost=~is_known(members["slide"]))
    home = members.sort_values("lost", kind="stable").groupby("set")["slide"].first()
    away = np.zeros(len(audit), bool)
    away[members.index] = members["slide"] != members["set"].map(home)
    return away


def _links(audit: pd.DataFrame, dropped_by: np.ndarray, policies: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows that stay and must stay together: each with the first of its set, on the same official side."""
    first = np.arange(len(audit))
    if policies["near_duplicate"] == GROUP:
        second = _first_staying(audit["set"], dropped_by)
    elif policies["exact_duplicate"] == GROUP:
        second = _first_staying(audit["exact_of"].where(comparable(audit), pd.Series(first)), dropped_by)
    else:
        second = first
    together = first != second
    sides = official_sides(audit)
    if sides is not None:
        together &= sides[first] == sides[second]
    return first[together], second[together]


def _chains(groups: np.ndarray, first: np.ndarray, second: np.ndarray) -> bool:
    """Whether uniting makes a group larger than `MOST` of all patches and than any was before."""
    before = np.bincount(pd.factorize(groups)[0]).max()
    after = np.bincount(pd.factorize(unite(groups, first, second))[0]).max()
    return bool(after > max(MOST * len(groups), before))
