"""From pixels to the members' probabilities and the blend of them, with nothing but a bundle."""

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
from histoblend.data.sources.images import RESIZING
from histoblend.models.bundle import INDEX, Bundle
from histoblend.models.file_checks import check_shape
from histoblend.models.names import (
    ENSEMBLES,
    FOR_HEAT_MAPS,
    NORMALISED,
    TABLES,
    WITH_SLIDES,
    WITHOUT_SLIDES,
    needs_slides,
    tables_of,
)
from histoblend.models.outliers import OUTLIERS, Outliers

if TYPE_CHECKING:
    from histoblend.features.handcrafted.slide_context import SlideReference

CNN = "cnn"
ENSEMBLE = "ensemble"
ENSEMBLE_FILE = "ensemble.json"
NETWORKS = "embeddings"
#: Flags that a patch's own pixels decide, and the last that its distance to the training patches does.
FLAGS = ("blank", "black", "blurred", "saturated", "pen", "out-of-distribution")


#: What an index must hold.
SHAPE = {
    "libraries": {...: str},
    "patch": {"size": int, "resize": str},
    "prevalence": float,
    "features": {"families": [str], "code": str},
    "networks": [{"engine": str}],
    "columns": {...: [str]},
    "models": {...: {"columns": str, "auc": float, "thresholds": {...: float}}},
}


@dataclass(frozen=True)
class Blend:
    """What turns the members' probabilities of a patch into one.

    Attributes
    ----------
    name : str
    members : tuple of str
    combine : callable
        Probabilities (n, members) float64 and, with ``slide_means``, their means over slides to (n,) float64.
    thresholds : dict from str to float
        Probability from which on a patch counts as positive, by operating point.
    slide_means : bool
        Whether ``combine`` takes the members' means over each patch's slide.
    """

    name: str
    members: tuple[str, ...]
    combine: Callable[..., np.ndarray]
    thresholds: dict[str, float]
    slide_means: bool = False

    @property
    def needs_slides(self) -> bool:
        """Whether a patch is compared with the rest of its slide."""
        return self.slide_means or any(map(needs_slides, self.members))


@dataclass(frozen=True)
class Values:
    """What is found out about n patches, each by itself.

    Attributes
    ----------
    members : ndarray of shape (n, members), dtype float64
        Probabilities; NaN for members that need the patch's slide.
    flags : ndarray of shape (n, len(FLAGS)), dtype bool
    distance : ndarray of shape (n,), dtype float64
        To the training patches, in units of the threshold.
    table : ndarray of shape (n, columns), dtype float32
        Of :attr:`Predictor.columns`; no columns where nobody needs them.
    """

    members: np.ndarray
    flags: np.ndarray
    distance: np.ndarray
    table: np.ndarray


def choose_blends(bundle: Bundle, model: str = "", *, tiled: bool = False) -> tuple[Blend, Blend | None]:
    """What predicts patches of known slides, and what predicts the others.

    Parameters
    ----------
    bundle : Bundle
    model : str
        A member's name, or "ensemble". Empty for the ensemble and, in a bundle without one, for the head with the
        largest out-of-fold AUC.
    tiled : bool
        Whether slides are cut into tiles completely. The mean over a slide then tells another share of tumour than
        over the sampled patches that the ensemble has learned from, and is left out.

    Returns
    -------
    with_slides : Blend
    without : Blend or None
        None where the model needs slides and nothing stands in for it.

    Raises
    ------
    InputError
        The bundle has no such model, or its index lacks something.
    """
    _check_index(bundle)
    models = bundle.index["models"]
    stored = bundle.json(ENSEMBLE_FILE)
    if stored is not None and model in ("", ENSEMBLE):
        blends = _ensembles(stored, tiled)
        lacking = sorted({name for blend in blends if blend for name in blend.members} - set(models))
        if lacking:
            raise InputError(
                f"{bundle.folder}: expected every member of the ensemble; {', '.join(lacking)} is missing. "
                "Get the bundle again."
            )
        return blends
    known = [*([ENSEMBLE] if stored is not None else []), *models]
    if model and model not in models:
        raise InputError(f"{bundle.folder}: the model must be one of {', '.join(known)}; got {model!r}.")
    if model:
        blend = _single(model, models[model])
        return blend, None if blend.needs_slides else blend
    ranked = sorted(models, key=lambda name: -models[name]["auc"])
    alone = [name for name in ranked if not needs_slides(name)]
    return _single(ranked[0], models[ranked[0]]), _single(alone[0], models[alone[0]]) if alone else None


def _check_index(bundle: Bundle) -> None:
    """Refuse an index that whoever reads a bundle would stumble over: anybody can seal one."""
    place, index = f"{bundle.folder}: {INDEX}", bundle.index
    check_shape(place, index, SHAPE)
    size, resize, prevalence = index["patch"]["size"], index["patch"]["resize"], index["prevalence"]
    if not 16 <= size <= 4096 or resize not in RESIZING or not 0 < prevalence < 1 or not index["models"]:
        raise InputError(
            f"{place}: expected a patch of 16 to 4096 pixels, a rule for other sizes ({', '.join(RESIZING)}), a "
            f"prevalence between 0 and 1, and a model; got {size}, {resize!r}, {prevalence} and "
            f"{len(index['models'])} models. Get the bundle again."
        )


def _ensembles(stored: dict[str, Any], tiled: bool) -> tuple[Blend, Blend | None]:
    from histoblend.models.ensemble import Ensemble

    blends: dict[str, Blend] = {}
    for name in ENSEMBLES:
        if stored.get(name) is not None:
            fitted = Ensemble.from_dict(stored[name])
            means = fitted.slide_means
            blends[name] = Blend(ENSEMBLE, tuple(fitted.members), fitted.predict, dict(fitted.thresholds), means)
    if WITH_SLIDES not in blends:
        raise InputError(
            f"{ENSEMBLE_FILE}: expected an ensemble called {WITH_SLIDES!r}; there is none. Get the bundle again."
        )
    with_slides = blends.get(FOR_HEAT_MAPS, blends[WITH_SLIDES]) if tiled else blends[WITH_SLIDES]
    return with_slides, blends.get(WITHOUT_SLIDES) if with_slides.needs_slides else with_slides


def _single(name: str, entry: dict[str, Any]) -> Blend:
    return Blend(name, (name,), lambda probabilities, _=None: probabilities[:, 0], dict(entry["thresholds"]))


class Predictor:
    """What a bundle finds out about patches. Made by :func:`open_predictor`; threads may call it at the same time.

    Attributes
    ----------
    members : tuple of str
        Models whose probabilities are computed.
    families : tuple of str
        Handcrafted families that they, or the distance to the training patches, need.
    tables : tuple of str
        Of :data:`models.names.TABLES`, those that they need.
    columns : dict from str to int
        Place of each column of a patch's features, table by table.
    compared : ndarray of int
        Places of the columns that members in slide context compare over a slide.
    """

    def __init__(self, bundle: Bundle, members: Sequence[str], folder: Path) -> None:
        """Load everything; ``folder`` is where a network lies that can only be opened from a file."""
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
        self._names = {table: self._names_in(table) for table in self.tables}
        listed = (name for names in self._names.values() for name in names)
        self.columns = {name: place for place, name in enumerate(listed)}
        self.heads = {name: bundle.head(name) for name in sets}
        self.compared = self._compared()
        related = {name: place for place, name in enumerate(context_columns(self._compared_names()))}
        self._places = {
            name: self._place(columns, related if needs_slides(name) else self.columns)
            for name, columns in sets.items()
        }
        self._outlier_places = self._place(self._outliers.space, self.columns) if self._outliers else np.arange(0)

    def _open_networks(self) -> Any:
        from histoblend.features.networks.stored import open_networks

        return open_networks(self.bundle.index["networks"], self.bundle.inside(NETWORKS))

    def _open_cnn(self, folder: Path) -> Any:
        from histoblend.models.cnn import open_cnn

        return open_cnn(self.bundle.unpack(CNN, folder))

    def _names_in(self, table: str) -> list[str]:
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

    def _compared(self) -> np.ndarray:
        tables = {table for member in self.members if needs_slides(member) for table in tables_of(_set_of(member))}
        names = [name for table in self.tables if table in tables for name in self._names[table]]
        return np.array([self.columns[name] for name in names], dtype=int)

    def _compared_names(self) -> list[str]:
        return list(np.array(list(self.columns), dtype=object)[self.compared])

    @property
    def width(self) -> int:
        """How many columns are compared over a slide."""
        return len(self.compared)

    @property
    def normalises(self) -> bool:
        """Whether patches are also shown stain-normalised, for which their slides' stains must be known."""
        return any(table.endswith(NORMALISED) for table in self.tables)

    def _place(self, name: str, made: Mapping[str, int]) -> np.ndarray:
        """Places of the columns of a set among those that are made here."""
        for column in (wanted := self.bundle.index["columns"][name]):
            if column not in made:
                raise InputError(
                    f"{self.bundle.folder}: expected the column {column}, which this version does not make. "
                    f"Use the version that made the bundle (commit {self.bundle.index.get('commit')})."
                )
        return np.array([made[column] for column in wanted])

    def __call__(self, pixels: np.ndarray, stains: np.ndarray | None = None) -> Values:
        """Find out what each patch shows by itself, given the stains of its slide.

        Parameters
        ----------
        pixels : ndarray of shape (n, height, width, 3), dtype uint8
        stains : ndarray of shape (n, 2, 3), dtype float64, optional
            Where :attr:`normalises`: from :func:`features.slide_stain.stains_of`; by default slides are unknown.

        Returns
        -------
        Values
            A row depends on its own patch and stains only, bit for bit, whatever patches stand beside it.
        """
        return self._find_out(pixels, stains)

    def rehearse(self) -> None:
        """Predict two made-up patches: parts that do not fit together show before the first file is read."""
        size = self.bundle.index["patch"]["size"]
        pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
        values = self._find_out(pixels)
        if any(needs_slides(name) for name in self.members):
            self.with_slide(np.concatenate([values.table[:, self.compared]] * 4))

    def features(
        self, pixels: np.ndarray, stains: np.ndarray | None = None, *, compared_only: bool = False
    ) -> np.ndarray:
        """Features of patches, as :meth:`__call__` takes them: ndarray of shape (n, :attr:`columns`), float32.

        With ``compared_only`` they serve to compare other patches with: the network's log-odds are those of one view.
        """
        from histoblend.features.handcrafted.families import compute
        from histoblend.features.slide_stain import normalise_by_slide

        normalised = pixels if stains is None else normalise_by_slide(pixels, stains)
        parts = [np.empty((len(pixels), 0), np.float32)]
        for table in self.tables:
            some = normalised if table.endswith(NORMALISED) else pixels
            if table == CNN:
                parts.append(self.cnn(some, plain=compared_only))
            else:
                parts.append(self.embed(some) if table.startswith("embeddings") else compute(some, self.families))
        return np.concatenate(parts, axis=1)

    def _find_out(self, pixels: np.ndarray, stains: np.ndarray | None = None) -> Values:
        table = self.features(pixels, stains)
        members = np.full((len(pixels), len(self.members)), np.nan)
        for place, name in enumerate(self.members):
            if name == CNN:
                members[:, place] = _expit(table[:, self.columns[self.cnn.columns[0]]])
            elif not needs_slides(name):
                members[:, place] = self.heads[name].predict_proba(self.row_values(name, table))[:, 1]
        distance = np.full(len(pixels), np.nan)
        if self._outliers is not None:
            distance = self._outliers.distance(table[:, self._outlier_places])
        flags = own_flags(measure(pixels).table())[list(FLAGS[:-1])].to_numpy(dtype=bool)
        return Values(members, np.column_stack([flags, distance > 1]), distance, table)

    def row_values(self, member: str, table: np.ndarray) -> np.ndarray:
        """Columns of a member, (n, k) float32, out of :attr:`columns` or, in slide context, what is made of them."""
        return np.ascontiguousarray(table[:, self._places[member]])

    def with_slide(self, table: np.ndarray) -> dict[str, np.ndarray]:
        """Probabilities by the members that need slides, of all patches of one slide.

        Parameters
        ----------
        table : ndarray of shape (n, columns), dtype float32
            Those of :attr:`columns` that are :attr:`compared`, of the slide's patches.

        Returns
        -------
        dict from member to ndarray of shape (n,), dtype float64
        """
        return self.within_slide(table, self.reference(lambda places: table[:, places], len(table)))

    def reference(self, take: Callable[[np.ndarray], np.ndarray], patches: int) -> SlideReference:
        """What the patches of a slide are compared with; see :func:`slide_context.slide_reference`."""
        from histoblend.features.handcrafted.slide_context import slide_reference

        return slide_reference(take, patches, self._compared_names())

    def within_slide(self, table: np.ndarray, reference: SlideReference) -> dict[str, np.ndarray]:
        """Probabilities by the members that need slides, of some patches of one slide.

        Parameters
        ----------
        table : ndarray of shape (m, columns), dtype float32
            Those of :attr:`columns` that are :attr:`compared`, of these patches.
        reference : SlideReference
            Of the whole slide.

        Returns
        -------
        dict from member to ndarray of shape (m,), dtype float64
            The same bits whichever of the slide's patches are given at a time.
        """
        related = reference.relate(table)
        wanted = [name for name in self.members if needs_slides(name)]
        return {name: self.heads[name].predict_proba(self.row_values(name, related))[:, 1] for name in wanted}


@contextlib.contextmanager
def open_predictor(bundle: Bundle, members: Sequence[str]) -> Iterator[Predictor]:
    """Load what these members need, for as long as it is used.

    Raises
    ------
    InputError
        The bundle's parts cannot be read, or do not fit together.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            predictor = Predictor(bundle, members, Path(folder))
            predictor.rehearse()
        except (InputError, OSError, MemoryError):
            raise
        except Exception as error:  # parts sealed by somebody else can fail in as many ways as libraries read them
            raise InputError(
                f"{bundle.folder}: expected a bundle that predicts; got {type(error).__name__}: {error}. "
                "Get the bundle again, or use the version that made it."
            ) from error
        yield predictor


def _set_of(member: str) -> str:
    return member.partition("_")[2]


def _expit(margins: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return np.asarray(expit(margins.astype(np.float64)))
