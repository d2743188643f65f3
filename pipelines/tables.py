"""Feature tables of finished steps, and the columns that each model sees."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.patches import PatchSet
from histoblend.data.splits import is_known
from histoblend.data.storage.arrays import names_in, open_array
from histoblend.data.storage.atomic import PARTIAL
from histoblend.models.names import BESIDE, tables_of
from histoblend.pipelines.config import Config
from histoblend.pipelines.run_files import COLUMNS, VALUES
from histoblend.pipelines.runtime.resources import check_disk, check_memory

if TYPE_CHECKING:
    from histoblend.features.slide_stain import NormalisedPixels


#: Ends the name of a task on stain-normalised patches.
STAINED = ", stains normalised by slide"
#: Rows of a table that are looked at together.
BLOCK = 4096


def chosen_families(config: Config) -> tuple[str, ...]:
    """Names of the configured feature families, in the table's order.

    Raises
    ------
    InputError
        A name is not in the table (the nearest is named).
    """
    from histoblend.features.handcrafted.families import FAMILIES, family_named

    wanted = {family_named(name).name for name in config.features.families}
    return tuple(family.name for family in FAMILIES if not wanted or family.name in wanted)


def read_values(folder: Path) -> tuple[np.ndarray, list[str]]:
    """The table of a finished step: values (n, columns) float32, memory-mapped, and column names."""
    return open_array(folder / VALUES, mapped=True), json.loads((folder / COLUMNS).read_text(encoding="utf-8"))


Table = tuple[np.ndarray, list[str]]

#: Sets that are a step's own table.
_STORED = {"handcrafted": "features", "embeddings": "embeddings"}


class FeatureSets(Mapping[str, Table]):
    """Columns of each configured set: colour, handcrafted, embeddings, both, those in slide context, single families.

    A set is put together each time it is asked for, so that only one is in memory: at 220,025 patches "both" and
    "context" are two gigabytes each. Its values have shape (n, columns), float32; column names stand beside them.

    Parameters
    ----------
    config : Config
    folders : mapping
        Of :data:`models.names.TABLES`, to the folders of those steps, where they ran.
    slides : Series of str
        Slide of each patch, missing where unknown. Where no slide is known, sets in slide context are left out.

    Raises
    ------
    InputError
        All sets are in slide context, and no slide is known.
    """

    def __init__(self, config: Config, folders: Mapping[str, Path], slides: pd.Series) -> None:
        self._folders = dict(folders)
        self._tables: dict[str, Table] = {name: read_values(folder) for name, folder in folders.items()}
        known = is_known(slides)
        self._where = known_slides(slides)
        names: dict[str, None] = {}
        for name in config.heads.features:
            if name == "families":
                names |= dict.fromkeys(chosen_families(config))
            elif name not in BESIDE or known.any():
                names[name] = None
        if not names:
            given = ", ".join(config.heads.features)
            raise InputError(f"sets must not all need slides, as none is known; got {given}. Add to heads.features.")
        self._names = tuple(names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Table:
        """Put a set together; InputError where memory will not hold it."""
        if name not in self._names:
            raise KeyError(name)
        if name in _STORED:
            return self._tables[_STORED[name]]
        if name == "both" or name in BESIDE:
            # A table that is put together stands beside its parts for a moment, as does one relative to the slide.
            copies = 3 if name in BESIDE else 1
            needed = copies * sum(self._tables[part][0].nbytes for part in tables_of(name))
            check_memory(needed, f"the columns of {name!r}")
        return self._put_together(name, slice(None))

    def columns(self, name: str) -> list[str]:
        """Column names of a set."""
        return self._put_together(name, slice(0))[1]

    def file(self, name: str, scratch: Path) -> Path:
        """Return an ``.npy`` file of a set: the step's own, or one that is put together in ``scratch`` piece by piece.

        At most a slide's patches, or a block of rows, are in memory at a time.
        """
        if name in _STORED:
            return self._folders[_STORED[name]] / VALUES
        path, count = scratch / f"{name}.npy", len(self._where)
        if path.is_file():
            return path
        scratch.mkdir(exist_ok=True)
        check_disk(scratch, 4 * count * len(self.columns(name)), f"the columns of {name!r}")
        partial = path.with_suffix(PARTIAL)
        table = np.lib.format.open_memmap(partial, "w+", np.float32, (count, len(self.columns(name))))
        for rows in self._pieces(name):
            table[rows] = self._put_together(name, rows)[0]
        table.flush()
        partial.replace(path)
        return path

    def _pieces(self, name: str) -> Iterator[np.ndarray]:
        """Row numbers, a block at a time; a slide at a time where rows are compared with the rest of their slide."""
        blocks = [np.arange(len(self._where))]
        if name in BESIDE:
            slides = pd.Series(self._where)
            yield from (np.asarray(rows) for rows in slides.groupby(slides).indices.values())
            blocks = [np.flatnonzero(slides.isna())]
        yield from (rows[at : at + BLOCK] for rows in blocks for at in range(0, len(rows), BLOCK))

    def _put_together(self, name: str, rows: slice | np.ndarray) -> Table:
        """Some rows of a set; of one in slide context they must be whole slides."""
        parts = [self._tables[part] for part in tables_of(name)]
        raw = parts[0][0][rows] if len(parts) == 1 else np.concatenate([values[rows] for values, _ in parts], axis=1)
        columns = [column for _, names in parts for column in names]
        if name in BESIDE:
            values, names = context_table(raw, columns, self._where[rows])
            start = len(columns) if name == "in-slide" else 0
            return values[:, start:], names[start:]
        if name in _STORED or name == "both":
            return raw, columns
        kept = [place for place, column in enumerate(columns) if column.startswith(f"{name}_")]
        return np.ascontiguousarray(raw[:, kept]), [columns[place] for place in kept]


def known_slides(slides: pd.Series) -> np.ndarray:
    """Slide of each patch, or None: ndarray of shape (n,), dtype object.

    Patches that a slide map leaves out, and inferred slides, are groups to split by, not slides to compare with.
    """
    return slides.where(is_known(slides), None).to_numpy(dtype=object)


def held_out_whole(table: pd.DataFrame, slides: np.ndarray) -> bool:
    """Whether every known slide is in one fold: elsewhere its other patches' predictions saw labels of the fold."""
    return bool(table.groupby(slides)["fold"].nunique().max() == 1)


def shown_pixels(patches: PatchSet, *, normalised: bool) -> np.ndarray | NormalisedPixels:
    """Patches of a run as they are, or stain-normalised by their slides, computed as they are read."""
    from histoblend.features.slide_stain import NormalisedPixels, stain_sums, stains_of

    pixels = patches.pixels
    if not normalised:
        return pixels
    sums = np.concatenate([stain_sums(pixels[at : at + BLOCK]) for at in range(0, len(pixels), BLOCK)])
    stains = stains_of(sums, known_slides(patches.table["slide"]), pixels.shape[1] * pixels.shape[2])
    return NormalisedPixels(pixels, stains)


def context_table(raw: np.ndarray, columns: list[str], slides: np.ndarray) -> Table:
    """Columns, the same relative to the rest of the slide and, of handcrafted ones, amounts of the slide's own stains.

    Parameters
    ----------
    raw : ndarray of shape (n, columns), float32
        Of whole slides.
    columns : list of str
    slides : ndarray of shape (n,), dtype object
        None where it is unknown.
    """
    from histoblend.features.handcrafted.slide_context import slide_context, slide_stains

    relative, more = slide_context(raw, slides, columns)
    stains, others = slide_stains(raw, slides, columns)
    return np.concatenate([raw, relative, stains], axis=1), columns + more + others


def check_table_room(folder: Path, patches: int, columns: int) -> None:
    """See that the disk holds a table twice: in shards, and joined before these are removed."""
    there = sum((folder / name).stat().st_size for name in names_in(folder, ".npy"))
    check_disk(folder, 2 * 4 * patches * columns - there, f"{columns} columns of {patches} patches, twice for a while,")


def check_finite(folder: Path, patches: pd.DataFrame) -> None:
    """See that a finished step's table holds no NaN and no infinity, before heads are fitted on it.

    Parameters
    ----------
    folder : Path
    patches : DataFrame
        ``patch_id``, rows as in the table.

    Raises
    ------
    InputError
        Names the column and the patch of the first such value, and how many there are.
    """
    values, names = read_values(folder)
    first, count = None, 0
    for start in range(0, len(values), BLOCK):
        bad = np.argwhere(~np.isfinite(values[start : start + BLOCK]))
        count += len(bad)
        if first is None and len(bad):
            first = (start + int(bad[0][0]), int(bad[0][1]))
    if first is not None:
        row, column = first
        raise InputError(_not_finite(names[column], patches["patch_id"].iloc[row], values[row, column], count, folder))


@contextmanager
def finite_columns(names: list[str], patches: pd.DataFrame) -> Iterator[None]:
    """Say a column's name and a patch's id where a feature is not finite."""
    from histoblend.features.extract import NotFinite

    try:
        yield
    except NotFinite as error:
        name, patch = names[error.column], patches["patch_id"].iloc[error.row]
        raise InputError(_not_finite(name, patch, error.value, error.count, None)) from error


def _not_finite(column: str, patch: str, value: float, count: int, folder: Path | None) -> str:
    place = f"{folder}: " if folder else ""
    others = f" ({count} such values)" if count > 1 else ""
    mend = "Make the step again (--rebuild)" if folder else "Make the feature defined for its pixels"
    return f"{place}column {column!r} of patch {patch!r} must be finite; got {value}{others}. {mend}, or leave it out."


def write_columns(folder: Path, names: list[str]) -> None:
    """Write ``columns.json`` of a table."""
    (folder / COLUMNS).write_text(json.dumps(names), encoding="utf-8")
