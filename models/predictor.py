"""Prediction with a bundle: from pixels to the members' probabilities and their blend."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histoblend.data.audit.flags import own_flags
from histoblend.data.audit.measures import measure
from histoblend.data.errors import InputError
from histoblend.models.bundle import Bundle
from histoblend.models.names import NORMALISED, TABLES, needs_slides, tables_of
from histoblend.models.outliers import OUTLIERS, Outliers

if TYPE_CHECKING:
    from histoblend.features.handcrafted.slide_context import SlideReference

CNN = "cnn"
NETWORKS = "embeddings"
#: Flags of a patch. The last depends on its distance from the training patches, the others on its pixels.
FLAGS = ("blank", "black", "blurred", "saturated", "pen", "out-of-distribution")


@dataclass(frozen=True)
class Values:
    """Predictions for n patches, each without the rest of its slide.

    Attributes
    ----------
    members : ndarray of shape (n, members), dtype float64
        Probabilities; NaN for members that need the patch's slide.
    flags : ndarray of shape (n, len(FLAGS)), dtype bool
    distance : ndarray of shape (n,), dtype float64
        Distance from the training patches, in units of the threshold.
    table : ndarray of shape (n, columns), dtype float32
        Features, in the order of :attr:`Predictor.columns`; no columns if none are needed.
    """

    members: np.ndarray
    flags: np.ndarray
    distance: np.ndarray
    table: np.ndarray


class Predictor:
    """Predicts patches with a bundle. Made by :func:`open_predictor`; threads may call it concurrently.

    Attributes
    ----------
    members : tuple of str
        Models whose probabilities are computed.
    families : tuple of str
        Handcrafted families needed by the members or by the distance from the training patches.
    tables : tuple of str
        Needed tables: of :data:`models.names.TABLES`, and "cnn".
    columns : dict from str to int
        Position of each column in a patch's features, table by table.
    compared : ndarray of int
        Positions of the columns that members in slide context compare over a slide.
    """

    def __init__(self, bundle: Bundle, members: Sequence[str], folder: Path) -> None:
        """Load everything. A network that can only be opened from a file is unpacked into ``folder``."""
        from histoblend.features.handcrafted.slide_context import context_columns

        self.bundle, self.members = bundle, tuple(members)
        self._outliers = Outliers.from_files(bundle.inside(OUTLIERS)) if bundle.inside(OUTLIERS) else None
        sets = {name: bundle.index["models"][name]["columns"] for name in self.members if name != CNN}
        spaces = {*sets.values(), *([self._outliers.space] if self._outliers else [])}
        needed = {table for space in spaces for table in tables_of(space)} | ({CNN} if CNN in self.members else set())
        self.tables = tuple(table for table in (*TABLES, CNN) if table in needed)
        bases = {table.removesuffix(NORMALISED) for table in needed}
        self.families = tuple(bundle.index["features"]["families"]) if "features" in bases else ()
        self.embed: Any = self._open_networks() if "embeddings" in bases else None
        self.cnn: Any = self._open_cnn(folder) if CNN in needed else None
        self._names = {table: self._column_names(table) for table in self.tables}
        names = (name for names in self._names.values() for name in names)
        self.columns = {name: position for position, name in enumerate(names)}
        self.heads = {name: bundle.head(name) for name in sets}
        self.compared = self._compared_positions()
        related = {name: position for position, name in enumerate(context_columns(self._compared_names()))}
        self._positions = {
            name: self._positions_of(columns, related if needs_slides(name) else self.columns)
            for name, columns in sets.items()
        }
        self._outlier_positions = (
            self._positions_of(self._outliers.space, self.columns) if self._outliers else np.arange(0)
        )

    def _open_networks(self) -> Any:
        from histoblend.features.networks.stored import open_networks

        return open_networks(self.bundle.index["networks"], self.bundle.inside(NETWORKS))

    def _open_cnn(self, folder: Path) -> Any:
        from histoblend.models.cnn import open_cnn

        return open_cnn(self.bundle.unpack(CNN, folder))

    def _column_names(self, table: str) -> list[str]:
        """Names of a table's columns."""
        from histoblend.features.handcrafted.families import columns
        from histoblend.features.slide_stain import normalised_name

        if table == CNN:
            names = self.cnn.columns
        elif table.startswith("embeddings"):
            names = list(self.embed.columns)
        else:
            names = [column.name for column in columns(self.families)]
        return list(map(normalised_name, names)) if table.endswith(NORMALISED) else names

    def _compared_positions(self) -> np.ndarray:
        tables = {table for member in self.members if needs_slides(member) for table in tables_of(_columns_of(member))}
        names = [name for table in self.tables if table in tables for name in self._names[table]]
        return np.array([self.columns[name] for name in names], dtype=int)

    def _compared_names(self) -> list[str]:
        return list(np.array(list(self.columns), dtype=object)[self.compared])

    @property
    def width(self) -> int:
        """Number of columns that are compared over a slide."""
        return len(self.compared)

    @property
    def normalises(self) -> bool:
        """Whether some features use stain-normalised patches, which need the stains of their slides."""
        return any(table.endswith(NORMALISED) for table in self.tables)

    def _positions_of(self, name: str, computed: Mapping[str, int]) -> np.ndarray:
        """Positions of the columns of a set among those in ``computed``."""
        for column in (columns := self.bundle.index["columns"][name]):
            if column not in computed:
                raise InputError(
                    f"{self.bundle.folder}: expected the column {column}, which this version does not compute. "
                    f"Use the version that made the bundle (commit {self.bundle.index.get('commit')})."
                )
        return np.array([computed[column] for column in columns])

    def __call__(self, pixels: np.ndarray, stains: np.ndarray | None = None) -> Values:
        """Predict each patch by itself, given the stains of its slide.

        Parameters
        ----------
        pixels : ndarray of shape (n, height, width, 3), dtype uint8
        stains : ndarray of shape (n, 2, 3), dtype float64, optional
            Used if :attr:`normalises`: from :func:`features.slide_stain.stains_of`. By default slides are unknown.

        Returns
        -------
        Values
            A row depends only on its own patch and stains, bit for bit.
        """
        return self._predict(pixels, stains)

    def rehearse(self) -> None:
        """Predict two random patches, so that mismatched parts of a bundle fail before any file is read."""
        size = self.bundle.index["patch"]["size"]
        pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
        values = self._predict(pixels)
        if any(needs_slides(name) for name in self.members):
            self.with_slide(np.concatenate([values.table[:, self.compared]] * 4))

    def features(
        self, pixels: np.ndarray, stains: np.ndarray | None = None, *, compared_only: bool = False
    ) -> np.ndarray:
        """Features of patches, with arguments as for :meth:`__call__`: ndarray of shape (n, :attr:`columns`), float32.

        Use ``compared_only`` for patches that others are only compared with. The fine-tuned network's log-odds are then
        those of a single view.
        """
        from histoblend.features.slide_stain import normalise_by_slide

        normalised = pixels if stains is None else normalise_by_slide(pixels, stains)
        parts = [np.empty((len(pixels), 0), np.float32)]
        for table in self.tables:
            patches = normalised if table.endswith(NORMALISED) else pixels
            parts.append(self.table(table, patches, plain=compared_only or CNN not in self.members))
        return np.concatenate(parts, axis=1)

    def table(self, name: str, patches: np.ndarray, *, plain: bool = False) -> np.ndarray:
        """Columns of one table for patches, already normalised if the table needs that. ``plain`` is as for the CNN."""
        from histoblend.features.handcrafted.families import compute

        if name == CNN:
            values: np.ndarray = self.cnn(patches, plain=plain)
            return values
        return self.embed(patches) if name.startswith("embeddings") else compute(patches, self.families)

    def _predict(self, pixels: np.ndarray, stains: np.ndarray | None = None) -> Values:
        table = self.features(pixels, stains)
        members = np.full((len(pixels), len(self.members)), np.nan)
        for column, name in enumerate(self.members):
            if name == CNN:
                members[:, column] = _expit(table[:, self.columns[self.cnn.columns[0]]])
            elif not needs_slides(name):
                members[:, column] = self.heads[name].predict_proba(self.row_values(name, table))[:, 1]
        flags, distance = self.flags(pixels, table)
        return Values(members, flags, distance, table)

    def flags(self, pixels: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flags of patches, (n, len(FLAGS)) bool, and distances from the training patches, given their features."""
        distance = np.full(len(pixels), np.nan)
        if self._outliers is not None:
            distance = self._outliers.distance(table[:, self._outlier_positions])
        flags = own_flags(measure(pixels).table())[list(FLAGS[:-1])].to_numpy(dtype=bool)
        return np.column_stack([flags, distance > 1]), distance

    @property
    def outlier_tables(self) -> tuple[str, ...]:
        """Tables that the distance from the training patches needs."""
        return tables_of(self._outliers.space) if self._outliers else ()

    def row_values(self, member: str, table: np.ndarray) -> np.ndarray:
        """Select a member's columns, (n, k) float32, from a table of :attr:`columns` or of slide-context columns."""
        return np.ascontiguousarray(table[:, self._positions[member]])

    def with_slide(self, table: np.ndarray) -> dict[str, np.ndarray]:
        """Probabilities from the members that need slides, for all patches of one slide.

        Parameters
        ----------
        table : ndarray of shape (n, columns), dtype float32
            The :attr:`compared` columns of all patches of the slide.

        Returns
        -------
        dict from member to ndarray of shape (n,), dtype float64
        """
        return self.within_slide(table, self.reference(lambda columns: table[:, columns], len(table)))

    def reference(self, take: Callable[[np.ndarray], np.ndarray], patches: int) -> SlideReference:
        """Reference that the patches of a slide are compared with; see :func:`slide_context.slide_reference`."""
        from histoblend.features.handcrafted.slide_context import slide_reference

        return slide_reference(take, patches, self._compared_names())

    def within_slide(self, table: np.ndarray, reference: SlideReference) -> dict[str, np.ndarray]:
        """Probabilities from the members that need slides, for some patches of one slide.

        Parameters
        ----------
        table : ndarray of shape (m, columns), dtype float32
            The :attr:`compared` columns of these patches.
        reference : SlideReference
            Of the whole slide.

        Returns
        -------
        dict from member to ndarray of shape (m,), dtype float64
            A patch gets the same bits in any selection of the slide's patches.
        """
        related = reference.relate(table)
        members = [name for name in self.members if needs_slides(name)]
        return {name: self.heads[name].predict_proba(self.row_values(name, related))[:, 1] for name in members}


@contextlib.contextmanager
def open_predictor(bundle: Bundle, members: Sequence[str]) -> Iterator[Predictor]:
    """Load everything that the members need, and release it when the context ends.

    Raises
    ------
    InputError
        Parts of the bundle cannot be read or do not fit together.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            predictor = Predictor(bundle, members, Path(folder))
            predictor.rehearse()
        except (InputError, OSError, MemoryError):
            raise
        except Exception as error:  # parts of a malicious bundle can make libraries raise anything
            raise InputError(
                f"{bundle.folder}: expected a bundle that can predict; got {type(error).__name__}: {error}. "
                "Get the bundle again, or use the version that made it."
            ) from error
        yield predictor


def _columns_of(member: str) -> str:
    return member.partition("_")[2]


def _expit(margins: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return np.asarray(expit(margins.astype(np.float64)))
