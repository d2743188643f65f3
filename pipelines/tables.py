"""Feature tables of finished steps, and the sets of columns that models are fitted on."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.patches import PatchSet
from histoblend.data.splits import is_known
from histoblend.data.storage.arrays import StoredRows, names_in, open_array
from histoblend.features.extract import write_rows
from histoblend.models.names import CONTEXT_RUNGS, tables_of
from histoblend.pipelines.config import Config
from histoblend.pipelines.run_files import COLUMNS, VALUES
from histoblend.pipelines.runtime.resources import check_disk, check_memory

if TYPE_CHECKING:
    from histoblend.features.handcrafted.slide_context import SlideReference
    from histoblend.features.slide_stain import NormalisedPixels


#: Ending of a task's name if its patches are stain-normalised.
STAINED = ", stains normalised by slide"
#: Rows of a table that are processed together.
BLOCK = 4096
#: Most training patches of analyses that fit models, or compare all pairs of patches, for many sets of columns. Their
#: intervals resample slides, so further patches of the same slides narrow them little.
MAX_PATCHES = 6000
#: Most bytes of slides' references that are kept, for centres and again for spreads.
_KEPT_BYTES = 128 * 2**20


def chosen_families(config: Config) -> tuple[str, ...]:
    """Names of the configured feature families, in the order of the table.

    Raises
    ------
    InputError
        A family is unknown (the message names the nearest one).
    """
    from histoblend.features.handcrafted.families import FAMILIES, family_named

    chosen = {family_named(name).name for name in config.features.families}
    return tuple(family.name for family in FAMILIES if not chosen or family.name in chosen)


def read_values(folder: Path) -> tuple[StoredRows, list[str]]:
    """Open the table of a finished step: values (n, columns), float32, read when indexed, and column names."""
    return StoredRows(folder / VALUES), json.loads((folder / COLUMNS).read_text(encoding="utf-8"))


Table = tuple[np.ndarray, list[str]]

#: Sets that are stored as the table of a step.
_STORED = {"handcrafted": "features", "embeddings": "embeddings"}


class FeatureSets(Mapping[str, Table]):
    """Values and column names of each configured set of columns.

    A set is assembled on every access, so that only one is in memory: for 220,025 patches, "both" and "context" take
    two gigabytes each. An item is a pair of the values, shape (n, columns), float32, and the column names. Use
    :meth:`stored` if some rows or one pass over all rows are enough.

    Parameters
    ----------
    config : Config
    folders : mapping
        Name in :data:`models.names.TABLES` to the folder of the step, for the steps of the run.
    slides : Series of str
        Slide of each patch, missing if unknown. If no slide is known, sets in slide context are left out.

    Raises
    ------
    InputError
        All sets are in slide context, and no slide is known.
    """

    def __init__(self, config: Config, folders: Mapping[str, Path], slides: pd.Series) -> None:
        self._folders = dict(folders)
        self._tables = {name: read_values(folder) for name, folder in folders.items()}
        known = is_known(slides)
        self._where = known_slides(slides)
        #: Rows of each slide, and references of slides, by tables and slide.
        self._rows_of = {str(slide): rows for slide, rows in _by_slide(self._where)}
        self._references: dict[tuple[str, str], SlideReference] = {}
        names: dict[str, None] = {}
        for name in config.heads.features:
            if name == "families":
                names |= dict.fromkeys(chosen_families(config))
            elif name not in CONTEXT_RUNGS or known.any():
                names[name] = None
        if not names:
            given = ", ".join(config.heads.features)
            raise InputError(
                f"heads.features must contain a set that does not need slides, as no slide is known; got {given}. "
                "Add one, such as 'handcrafted'."
            )
        self._names = tuple(names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # a mapping's own test would assemble the set

    def __getitem__(self, name: str) -> Table:
        """Assemble a set; InputError if it does not fit into memory."""
        if name not in self._names:
            raise KeyError(name)
        if name in _STORED:
            table = _STORED[name]
            return open_array(self._folders[table] / VALUES, mapped=True), self._tables[table][1]
        if name == "both" or name in CONTEXT_RUNGS:
            # Tables and the joined one; in slide context then the joined columns, the relative ones, and both together.
            copies = 4 if name in CONTEXT_RUNGS else 2
            width = sum(self._tables[part][0].shape[1] for part in tables_of(name))
            check_memory(copies * 4 * len(self._where) * width, f"the columns of {name!r}")
        return self._assemble(name, slice(None))

    def columns(self, name: str) -> list[str]:
        """Column names of a set."""
        return self._assemble(name, slice(0))[1]

    def file(self, name: str, scratch: Path, workers: int = 1) -> Path:
        """Return the path of an ``.npy`` file of a set: the step's file, or a new one assembled in ``scratch``.

        Only one block of rows, and what the patches of each slide are compared with, are in memory at once.
        """
        if name in _STORED:
            return self._folders[_STORED[name]] / VALUES
        from histoblend.features.handcrafted.slide_context import trust
        from histoblend.features.networks.embeddings import ahead

        path, count = scratch / f"{name}.npy", len(self._where)
        if path.is_file():
            return path
        scratch.mkdir(exist_ok=True)
        check_disk(scratch, 4 * count * len(self.columns(name)), f"the columns of {name!r}")
        # In the order of rows, although each slide is compared with itself: the disk is much slower in another order.
        rows = self.stored(name)
        if name in CONTEXT_RUNGS:
            slides = [slide for slide, own in self._rows_of.items() if trust(len(own)) > 0]
            # Before the blocks, so that no two threads compute the reference of one slide.
            deque(ahead(lambda slide: self._reference(name, slide), slides, workers), maxlen=0)
        blocks = ahead(rows.__getitem__, list(_chunks(np.arange(count))), workers)
        write_rows(path, blocks, rows.shape, np.float32, scratch=True)
        return path

    def stored(self, name: str, rows: np.ndarray | None = None) -> StoredSet:
        """Open some rows of a set, by default all. They are read when indexed, and not kept in memory."""
        return StoredSet(self, name, np.arange(len(self._where)) if rows is None else rows)

    def blocks_of(self, name: str, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield positions in ``rows``, at most `BLOCK` at once, and the values of these rows.

        Bit-identical to these rows of the whole set. In slide context, the rest of a slide is read for its reference.
        """
        left = np.ones(len(rows), dtype=bool)
        if name in CONTEXT_RUNGS:
            from histoblend.features.handcrafted.slide_context import trust

            start = len(self._columns_of(name)) if name == "in-slide" else 0
            for slide, positions in _by_slide(self._where[rows]):
                if trust(len(self._rows_of[slide])) > 0:
                    left[positions] = False
                    reference = self._reference(name, slide)
                    for part in _chunks(positions):
                        yield part, reference.relate(self._raw(name, rows[part]))[:, start:]
        for part in _chunks(np.flatnonzero(left)):
            yield part, self._assemble(name, rows[part])[0]

    def _reference(self, name: str, slide: str) -> SlideReference:
        """What the patches of a slide are compared with."""
        from histoblend.features.handcrafted.slide_context import join_references

        return join_references([self._table_reference(table, slide) for table in tables_of(name)])

    def _table_reference(self, table: str, slide: str) -> SlideReference:
        """Reference of one table, which several sets share. It is kept, unless the references become too large."""
        from histoblend.features.handcrafted.slide_context import slide_reference

        if (table, slide) in self._references:
            return self._references[table, slide]
        (values, columns), rows = self._tables[table], self._rows_of[slide]

        def take(positions: np.ndarray) -> np.ndarray:
            return np.concatenate([values[part][:, positions] for part in _chunks(rows)])

        reference = slide_reference(take, len(rows), columns)
        if len(self._references) * reference.centre.nbytes < _KEPT_BYTES:
            self._references[table, slide] = reference
        return reference

    def _columns_of(self, name: str) -> list[str]:
        """Columns of the tables of a set."""
        return [column for part in tables_of(name) for column in self._tables[part][1]]

    def _raw(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        """Rows of the tables of a set, side by side."""
        parts = [self._tables[part][0][rows] for part in tables_of(name)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _assemble(self, name: str, rows: slice | np.ndarray) -> Table:
        """Assemble some rows of a set. In slide context, they must be complete slides, or of slides without weight."""
        columns = self._columns_of(name)
        if name in CONTEXT_RUNGS:
            values, names = context_table(self._raw(name, rows), columns, self._where[rows])
            start = len(columns) if name == "in-slide" else 0
            return values[:, start:], names[start:]
        if name in _STORED or name == "both":
            return self._raw(name, rows), columns
        kept = [index for index, column in enumerate(columns) if column.startswith(f"{name}_")]
        return self._tables["features"][0][rows, kept], [columns[index] for index in kept]


class StoredSet:
    """Some rows of a set of columns, read and assembled when they are indexed. Made by :meth:`FeatureSets.stored`.

    Attributes
    ----------
    shape : tuple of int
    ndim : int
    """

    def __init__(self, sets: FeatureSets, name: str, rows: np.ndarray) -> None:
        self._sets, self._name, self._rows = sets, name, rows
        self.shape, self.ndim = (len(rows), len(sets.columns(name))), 2

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """Read rows, float32."""
        rows = self._rows[index]
        values = np.empty((len(rows), self.shape[1]), np.float32)
        for positions, block in self._sets.blocks_of(self._name, rows):
            values[positions] = block
        return values

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield positions among these rows, at most `BLOCK` at once, and the values there."""
        return self._sets.blocks_of(self._name, self._rows)


def _by_slide(slides: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Slides and their positions, without patches of unknown slides."""
    return [(str(slide), np.asarray(rows)) for slide, rows in pd.Series(slides).groupby(slides).indices.items()]


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))


def known_slides(slides: pd.Series) -> np.ndarray:
    """Slide of each patch, or None if unknown: ndarray of shape (n,), dtype object.

    Inferred slides, and the group of patches missing from a slide map, count as unknown. They are only used for splits.
    """
    return slides.where(is_known(slides), None).to_numpy(dtype=object)


def slides_in_one_fold(table: pd.DataFrame, slides: np.ndarray) -> bool:
    """Whether every known slide is in one fold only. Otherwise predictions would leak labels between folds."""
    return bool(table.groupby(slides)["fold"].nunique().max() == 1)


def calibration_patches(patches: PatchSet, seed: int) -> np.ndarray:
    """Patches that 8-bit networks are calibrated on: a sample of training slides, never of held-out ones."""
    from histoblend.features.networks.onnx_int8 import sample_rows

    train = np.flatnonzero(patches.table["split"] == "train")
    return np.asarray(patches.pixels[train[sample_rows(len(train), seed)]])


def input_pixels(patches: PatchSet, *, normalised: bool) -> np.ndarray | StoredRows | NormalisedPixels:
    """Patches of a run, unchanged or stain-normalised by slide. Normalised patches are computed when they are read."""
    from histoblend.features.slide_stain import NormalisedPixels, stain_sums, stains_of

    pixels = patches.pixels
    if not normalised:
        return pixels
    sums = np.concatenate([stain_sums(pixels[start : start + BLOCK]) for start in range(0, len(pixels), BLOCK)])
    stains = stains_of(sums, known_slides(patches.table["slide"]), pixels.shape[1] * pixels.shape[2])
    return NormalisedPixels(pixels, stains)


def context_table(raw: np.ndarray, columns: list[str], slides: np.ndarray) -> Table:
    """Add slide context: columns relative to their slide and, for handcrafted columns, amounts of the slide's stains.

    Parameters
    ----------
    raw : ndarray of shape (n, columns), float32
        Rows of complete slides.
    columns : list of str
    slides : ndarray of shape (n,), dtype object
        Slide of each row; None if unknown.
    """
    from histoblend.features.handcrafted.slide_context import slide_context, slide_stains

    relative, relative_columns = slide_context(raw, slides, columns)
    stains, stain_columns = slide_stains(raw, slides, columns)
    return np.concatenate([raw, relative, stains], axis=1), columns + relative_columns + stain_columns


def check_table_room(folder: Path, patches: int, columns: int) -> None:
    """Check that the disk has room for a table twice: as shards, and as the joined table."""
    present = sum((folder / name).stat().st_size for name in names_in(folder, ".npy"))
    purpose = f"{columns} columns of {patches} patches, temporarily stored twice,"
    check_disk(folder, 2 * 4 * patches * columns - present, purpose)


def check_finite(folder: Path, patches: pd.DataFrame) -> None:
    """Check that the table of a finished step has no NaN or infinity, before heads are fitted on it.

    Parameters
    ----------
    folder : Path
    patches : DataFrame
        ``patch_id``, rows as in the table.

    Raises
    ------
    InputError
        A value is not finite. The message names the column and patch of the first one, and their number.
    """
    values, names = read_values(folder)
    first, count = None, 0
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        bad = np.argwhere(~np.isfinite(block))
        count += len(bad)
        if first is None and len(bad):
            first = (start + int(bad[0][0]), int(bad[0][1]), float(block[tuple(bad[0])]))
    if first is not None:
        row, column, value = first
        raise InputError(_not_finite(names[column], patches["patch_id"].iloc[row], value, count, folder))


@contextmanager
def finite_columns(names: list[str], patches: pd.DataFrame) -> Iterator[None]:
    """Report the column name and patch id if a feature is not finite."""
    from histoblend.features.extract import NonFiniteError

    try:
        yield
    except NonFiniteError as error:
        name, patch = names[error.column], patches["patch_id"].iloc[error.row]
        raise InputError(_not_finite(name, patch, error.value, error.count, None)) from error


def _not_finite(column: str, patch: str, value: float, count: int, folder: Path | None) -> str:
    where = f"{folder}: " if folder else ""
    others = f" ({count} such values)" if count > 1 else ""
    fix = "Rebuild the step (--rebuild)" if folder else "Change the feature so that it is finite for this patch"
    return f"{where}column {column!r} of patch {patch!r} must be finite; got {value}{others}. {fix}, or leave it out."


def write_columns(folder: Path, names: list[str]) -> None:
    """Write ``columns.json`` of a table."""
    (folder / COLUMNS).write_text(json.dumps(names), encoding="utf-8")
