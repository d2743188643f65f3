"""The registry of handcrafted features: all families, in the order of the feature table.

To add a family, write one file with its columns and one function that computes them from planes, and add one row to
`FAMILIES`.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from histoblend.data.errors import InputError
from histoblend.data.workers import count_workers
from histoblend.features.handcrafted import (
    channels,
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
from histoblend.features.handcrafted.kernel import are_cached

_BATCH = 64

FAMILIES: tuple[Family, ...] = (
    Family("colour", colour.COLUMNS, colour.colour, 0.06),
    Family("stain", stain.COLUMNS, stain.stain, 0.05),
    Family("cooccurrence", cooccurrence.COLUMNS, cooccurrence.cooccurrence, 0.11),
    Family("runs", run_lengths.COLUMNS, run_lengths.runs, 0.05),
    Family("lbp", lbp.COLUMNS, lbp.lbp, 0.15),
    Family("gradient", gradient.COLUMNS, gradient.gradient, 0.17),
    Family("gabor", gabor.COLUMNS, gabor.gabor, 0.08),
    Family("multiscale", multiscale.COLUMNS, multiscale.multiscale, 0.04),
    Family("nuclei", nuclei.COLUMNS, nuclei.nuclei, 0.18),
)

#: Themes and their families. A family that is not listed is its own theme.
THEMES: dict[str, tuple[str, ...]] = {
    "colour": ("colour",),
    "texture": ("cooccurrence", "runs", "lbp", "gradient", "gabor", "multiscale"),
    "nuclei": ("nuclei",),
    "stain": ("stain",),
    "embeddings": ("embedding",),
}


class Parts(NamedTuple):
    """The four parts of a column name."""

    family: str
    statistic: str
    channel: str
    region: str


def family_named(name: str) -> Family:
    """Return the family with this name.

    Raises
    ------
    InputError
        If there is none; the message names the nearest.
    """
    names = [family.name for family in FAMILIES]
    if name in names:
        return FAMILIES[names.index(name)]
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise InputError(f"family must be one of {', '.join(names)}; got {name!r}.{hint}")


def families_named(names: Sequence[str] | None) -> tuple[Family, ...]:
    """Return the families with these names in the given order, or all families if None.

    Raises
    ------
    ValueError
        If a name is unknown or given twice, or if the list is empty.
    """
    if names is None:
        return FAMILIES
    if isinstance(names, str) or not len(names) or len(set(names)) < len(names):
        raise ValueError(f"families must be a non-empty list of different names; got {names!r}.")
    return tuple(family_named(name) for name in names)


def columns(families: Sequence[str] | None = None) -> tuple[Column, ...]:
    """Return the columns of these families (None for all), in the order of `compute`."""
    return tuple(column for family in families_named(families) for column in family.columns)


def parse_column(name: str) -> Parts:
    """Split a column name into family, statistic, channel and region.

    Raises
    ------
    ValueError
        If the name does not have exactly four parts.
    """
    parts = name.split("_")
    if len(parts) != 4 or not all(parts):
        raise ValueError(f"a column name must be family_statistic_channel_region; got {name!r}.")
    return Parts(*parts)


def group_columns(names: Sequence[str], by: str) -> dict[str, list[int]]:
    """Group columns.

    Parameters
    ----------
    names : sequence of str
        ``family_statistic_channel_region``.
    by : {"family", "theme", "region"}
        Themes are those of `THEMES`. A family that is not listed there is its own theme.

    Returns
    -------
    dict from str to list of int
        Positions in `names` of each group's columns. Groups are in order of first appearance.

    Raises
    ------
    ValueError
        If `by` is another word, or a name does not have four parts.
    """
    if by not in ("family", "theme", "region"):
        raise ValueError(f"by must be 'family', 'theme' or 'region'; got {by!r}.")
    themes = {family: theme for theme, families in THEMES.items() for family in families}
    groups: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        parts = parse_column(name)
        group = themes.get(parts.family, parts.family) if by == "theme" else getattr(parts, by)
        groups.setdefault(group, []).append(position)
    return groups


def compute(patches: np.ndarray, families: Sequence[str] | None = None) -> np.ndarray:
    """Compute the table of handcrafted features.

    Parameters
    ----------
    patches : ndarray of shape (n, height, width, 3), dtype uint8
        RGB, at least 32 × 32 pixels. A read-only memory map works too.
    families : sequence of str, optional
        Names of families; all by default.

    Returns
    -------
    ndarray of shape (n, k), dtype float32
        One column per entry of ``columns(families)``, finite for any pixels. Each row depends on its own patch only and
        is bit-identical for any batch size.

    Raises
    ------
    ValueError
        If a family is unknown, the shape is wrong, or patches are smaller than 32 × 32 pixels.
    TypeError
        If the values are not uint8.
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
    """Compile the kernels of these families, unless an earlier process did and left them in the cache on disk.

    The first `compute` does this too, but without reporting progress. All families take about 20 seconds of one core.

    Parameters
    ----------
    families : sequence of str, optional
        Names of families; all by default.
    workers : int
        Number of processes, which share the cache; -1 uses one process per core. They start only if there is something
        to compile. 1 compiles in this process, or loads all kernels from the cache.
    progress : callable, optional
        Called with the number of families that just finished.

    Raises
    ------
    ValueError
        If a family is unknown or given twice, or if the list is empty.
    """
    # slowest first, so that no worker ends with a long family
    chosen = sorted(families_named(families), key=lambda family: -family.cost)
    report = progress or (lambda _: None)
    workers = count_workers(workers)
    # starting processes takes seconds
    missing = [family.name for family in chosen if workers == 1 or not _is_cached(family)]
    for _ in range(len(chosen) - len(missing)):
        report(1)
    if len(missing) < 2 or workers == 1:
        for name in missing:
            _compile_family(name)
            report(1)
        return
    from joblib import Parallel, delayed, parallel_config

    with parallel_config("loky", inner_max_num_threads=1):
        pool = Parallel(n_jobs=min(workers, len(missing)), return_as="generator_unordered")
        for _ in pool(delayed(_compile_family)(name) for name in missing):
            report(1)


def _is_cached(family: Family) -> bool:
    return are_cached(channels, sys.modules[family.compute.__module__])


def _compile_family(name: str) -> None:
    compute(np.zeros((1, SMALLEST, SMALLEST, 3), np.uint8), [name])
