"""The registry of handcrafted features: every family, in the order of the table.

A new family is one file, with its columns and one function from planes to numbers, and one row in `FAMILIES`.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.workers import count_workers
from histoblend.features.handcrafted import (
    colour,
    cooccurrence,
    gabor,
    gradient,
    lbp,
    multiscale,
    nuclei,
    run_lengths,
    stain,
)
from histoblend.features.handcrafted.channels import SMALLEST, Planes
from histoblend.features.handcrafted.column import Column, Family

_BATCH = 64

FAMILIES: tuple[Family, ...] = (
    Family("colour", colour.COLUMNS, colour.colour, 0.12),
    Family("stain", stain.COLUMNS, stain.stain, 0.1),
    Family("cooccurrence", cooccurrence.COLUMNS, cooccurrence.cooccurrence, 0.23),
    Family("runs", run_lengths.COLUMNS, run_lengths.runs, 0.09),
    Family("lbp", lbp.COLUMNS, lbp.lbp, 0.48),
    Family("gradient", gradient.COLUMNS, gradient.gradient, 0.31),
    Family("gabor", gabor.COLUMNS, gabor.gabor, 0.16),
    Family("multiscale", multiscale.COLUMNS, multiscale.multiscale, 0.09),
    Family("nuclei", nuclei.COLUMNS, nuclei.nuclei, 0.5),
)

#: Families that answer one question, by the name of the question. A family
#: that no row names is a theme of its own.
THEMES: dict[str, tuple[str, ...]] = {
    "colour": ("colour",),
    "texture": ("cooccurrence", "runs", "lbp", "gradient", "gabor", "multiscale"),
    "nuclei": ("nuclei",),
    "stain": ("stain",),
    "embeddings": ("embedding",),
}


class Parts(NamedTuple):
    """The four parts of a column's name."""

    family: str
    statistic: str
    channel: str
    region: str


def family_named(name: str) -> Family:
    """Return the family of this name.

    Raises
    ------
    InputError
        When there is none; names the nearest.
    """
    names = [family.name for family in FAMILIES]
    if name in names:
        return FAMILIES[names.index(name)]
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise InputError(f"family must be one of {', '.join(names)}; got {name!r}.{hint}")


def families_named(names: Sequence[str] | None) -> tuple[Family, ...]:
    """Return the families of these names in the order given, or all of them for None.

    Raises
    ------
    ValueError
        When a name is unknown, given twice, or none is given.
    """
    if names is None:
        return FAMILIES
    if isinstance(names, str) or not len(names) or len(set(names)) < len(names):
        raise ValueError(f"families must be a list of different names, at least one; got {names!r}.")
    return tuple(family_named(name) for name in names)


def columns(families: Sequence[str] | None = None) -> tuple[Column, ...]:
    """Return the columns of these families (None: all), in the order of `compute`."""
    return tuple(column for family in families_named(families) for column in family.columns)


def parse_column(name: str) -> Parts:
    """Split a column's name into family, statistic, channel and region.

    Raises
    ------
    ValueError
        When it has not exactly four parts.
    """
    parts = name.split("_")
    if len(parts) != 4 or not all(parts):
        raise ValueError(f"a column's name must be family_statistic_channel_region; got {name!r}.")
    return Parts(*parts)


def group_columns(names: Sequence[str], by: str) -> dict[str, list[int]]:
    """Sort columns into groups.

    Parameters
    ----------
    names : sequence of str
        ``family_statistic_channel_region``.
    by : {"family", "theme", "region"}
        Themes are those of `THEMES`; a family that none names is a theme of its own.

    Returns
    -------
    dict from str to list of int
        Places in `names` of each group's columns; groups in the order in which they first appear.

    Raises
    ------
    ValueError
        `by` is another word, or a name has not four parts.
    """
    if by not in ("family", "theme", "region"):
        raise ValueError(f"by must be 'family', 'theme' or 'region'; got {by!r}.")
    themes = {family: theme for theme, families in THEMES.items() for family in families}
    groups: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        parts = parse_column(name)
        group = themes.get(parts.family, parts.family) if by == "theme" else getattr(parts, by)
        groups.setdefault(group, []).append(place)
    return groups


def compute(patches: np.ndarray, families: Sequence[str] | None = None) -> np.ndarray:
    """Compute the table of handcrafted features.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        RGB, at least 32 × 32 pixels; a read-only memory map will do.
    families : sequence of str, optional
        Names of families; all when left out.

    Returns
    -------
    ndarray of shape (n, k), dtype float32
        One column per entry of ``columns(families)``; finite on any pixels. A row depends on its own patch only, bit
        for bit, however the patches are cut into batches.

    Raises
    ------
    ValueError
        When a family is unknown, the shape is another, or patches are smaller than 32 × 32.
    TypeError
        When the values are not uint8.
    """
    chosen = families_named(families)
    Planes(patches[:1])
    table = np.empty((len(patches), len(columns(families))), np.float32)
    for start in range(0, len(patches), _BATCH):
        planes = Planes(patches[start : start + _BATCH])
        table[start : start + _BATCH] = np.concatenate([family.compute(planes) for family in chosen], axis=1)
    return table


def compile_kernels(
    families: Sequence[str] | None = None, *, workers: int = 1, progress: Callable[[int], None] | None = None
) -> None:
    """Compile the kernels of these families, or load them where an earlier process has left them in the cache.

    The first `compute` does so by itself, but stands silent meanwhile: about half a minute of one core for all
    families.

    Parameters
    ----------
    families : sequence of str, optional
        Names of families; all when left out.
    workers : int
        Processes that share the work through the cache; 1 compiles in this one, -1 takes one per core.
    progress : callable, optional
        Called with the number of families just finished.

    Raises
    ------
    ValueError
        When a family is unknown, given twice, or none is given.
    """
    # dearest first, so that no worker is left with a long one at the end
    names = [family.name for family in sorted(families_named(families), key=lambda family: -family.cost)]
    report = progress or (lambda _: None)
    workers = count_workers(workers)
    if workers == 1:
        for name in names:
            _compile_family(name)
            report(1)
        return
    from joblib import Parallel, delayed, parallel_config

    with parallel_config("loky", inner_max_num_threads=1):
        pool = Parallel(n_jobs=min(workers, len(names)), return_as="generator_unordered")
        for _ in pool(delayed(_compile_family)(name) for name in names):
            report(1)


def _compile_family(name: str) -> None:
    compute(np.zeros((1, SMALLEST, SMALLEST, 3), np.uint8), [name])


def catalogue() -> str:
    """Return docs/features.md: every family, what it computes, and its columns."""
    lines = [
        "# Handcrafted features",
        "",
        f"{len(columns())} columns in {len(FAMILIES)} families, generated from `features/handcrafted/families.py` by "
        "`python -m histoblend.features.handcrafted.families docs/features.md`.",
        "A name reads `family_statistic_channel_region`.",
    ]
    for family in FAMILIES:
        explanation = inspect.cleandoc(family.compute.__doc__ or "").split("\n\nParameters\n")[0]
        cost = f"about {family.cost:g} ms of one core for a patch of 96 × 96 pixels"
        lines += ["", f"## {family.name} ({len(family.columns)} columns, {cost})", "", explanation, ""]
        lines += ["| column | what | unit | range | reference |", "|---|---|---|---|---|"]
        lines += [
            f"| `{column.name}` | {column.sentence} | {column.unit} | {column.low:g} to {column.high:g} "
            f"| {column.reference} |"
            for column in family.columns
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(catalogue(), encoding="utf-8")
