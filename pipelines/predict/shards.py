"""Patches of any source through a bundle's models, a shard at a time, in files that survive an interruption."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.data.patches import Source
from histoblend.data.storage.parts import Parts
from histoblend.data.workers import count_workers
from histoblend.features.handcrafted.slide_context import ENOUGH, FEWEST
from histoblend.features.slide_stain import stain_sums, stains_of
from histoblend.models.predictor import FLAGS, Blend, Predictor, needs_slides
from histoblend.models.slide_means import slide_means
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.tables import known_slides

#: Patches worked on at a time by each worker: 256 of 96 × 96 are 7 MB, their features a few more.
SHARD = 256
POINT = "youden"


@dataclass(frozen=True)
class Options:
    """What a prediction depends on beside the bundle and the patches.

    Attributes
    ----------
    model : str
        See :func:`models.predictor.choose_blends`.
    point : str
        Operating point whose threshold makes a label of a probability.
    prevalence : float
        Share of positives where the patches come from; 0 to leave probabilities as they are.
    workers : int
        Threads; -1 for one per core.
    shard : int
        Patches worked on at a time. No number depends on it, nor on the workers.
    """

    model: str = ""
    point: str = POINT
    prevalence: float = 0.0
    workers: int = 1
    shard: int = SHARD


@dataclass(frozen=True)
class Found:
    """What was found out about the patches of a source, a row a patch; rows that could not be read are missing.

    Attributes
    ----------
    rows : ndarray of shape (n,), int
        Rows of the source's table.
    members : DataFrame
        Probability by each member; NaN where a member needs a slide that is unknown.
    probability : ndarray of shape (n,), dtype float64
    label : ndarray of shape (n,), dtype int
    flags : list of str
    alone : ndarray of shape (n,), dtype bool
        Predicted without slide context.
    reasons : dict from int to str
        Why a row could not be read.
    """

    rows: np.ndarray
    members: pd.DataFrame
    probability: np.ndarray
    label: np.ndarray
    flags: list[str]
    alone: np.ndarray
    reasons: dict[int, str]


def predict_source(
    predictor: Predictor,
    blends: tuple[Blend, Blend | None],
    source: Source,
    slides: pd.Series | None,
    parts: Parts,
    *,
    options: Options,
    screen: Screen,
) -> Found:
    """Predict all patches of a source.

    Parameters
    ----------
    predictor : Predictor
        Of all members that the blends need here.
    blends : pair of Blend
        From :func:`models.predictor.choose_blends`.
    source : Source
        Its table needs no ``label``. Where it has a method ``expect``, that is told beforehand which ranges of rows
        are going to be read.
    slides : Series of str, optional
        Slide of each row, missing where unknown.
    parts : Parts
        Of this prediction.
    options : Options
    screen : Screen
    """
    compared = slides is not None and any(map(needs_slides, predictor.members))
    total = len(source.table)
    starts = range(0, total, options.shard)
    tasks = [(start, min(start + options.shard, total)) for start in starts]
    stains = None
    if slides is not None and predictor.normalises:
        looks = _Stains(source, parts)
        _make_all(looks, tasks, "looking at stains", options.workers, screen)
        stains = stains_of(looks.join(starts), known_slides(slides), source.size**2)
    _compile(predictor, screen)
    shards = _Shards(predictor, source, parts, keep_features=compared, stains=stains)
    _make_all(shards, tasks, "predicting", options.workers, screen)
    members, flags, reasons = shards.join(starts)
    rows = np.array([row for row in range(total) if row not in reasons], dtype=int)
    alone = np.ones(total, bool)
    if slides is not None and blends[0].needs_slides:
        alone = _compare(shards, predictor, slides, rows, members, options.shard, screen)
    if blends[0].needs_slides and blends[1] is None and alone[rows].any():
        raise InputError(
            f"{blends[0].name} compares a patch with the rest of its slide, and {int(alone[rows].sum())} patches have "
            "no slide, or one of too few patches. Give their slides (SLIDES), or another MODEL."
        )
    probability, label = _blend(predictor, blends, members, slides, alone, options)
    names = [" ".join(name for name, on in zip(FLAGS, row, strict=True) if on) for row in flags[rows]]
    table = pd.DataFrame(members[rows], columns=list(predictor.members))
    return Found(rows, table, probability[rows], label[rows], names, alone[rows], reasons)


def _compile(predictor: Predictor, screen: Screen) -> None:
    """Compile kernels before a bar stands still over it."""
    if predictor.families:
        from histoblend.features.handcrafted.families import compile_kernels

        with screen.progress("compiling kernels", len(predictor.families), "families") as progress:
            compile_kernels(predictor.families, progress=progress)


def _make_all(work: _Work, tasks: list[tuple[int, int]], what: str, workers: int, screen: Screen) -> None:
    """Make the parts that are missing, and show how far that is."""
    left = [task for task in tasks if not work.is_made(task[0])]
    if hasattr(work.source, "expect"):
        work.source.expect(left)
    with screen.progress(what, sum(stop - start for start, stop in tasks)) as progress:
        progress(sum(stop - start for start, stop in set(tasks).difference(left)))
        for count in _run(work, left, workers):
            progress(count)


def _run(work: _Work, tasks: list[tuple[int, int]], workers: int) -> Iterator[int]:
    """Make every part and yield the number of its patches."""
    from threadpoolctl import threadpool_limits

    workers = count_workers(workers)
    with threadpool_limits(1):
        if min(workers, len(tasks)) <= 1:
            yield from (work.make(*task) for task in tasks)
            return
        from joblib import Parallel, delayed, parallel_config

        # Threads: decoding, kernels, ONNX Runtime and XGBoost let go of the interpreter's lock.
        with parallel_config("threading"):
            pool = Parallel(n_jobs=min(workers, len(tasks)), return_as="generator_unordered")
            yield from pool(delayed(work.make)(*task) for task in tasks)


class _Work(Protocol):
    """What makes a part of some rows at a time."""

    source: Source

    def is_made(self, start: int) -> bool:
        """Whether the part that begins with this row is there."""

    def make(self, start: int, stop: int) -> int:
        """Make the part of rows start to stop; return how many these are."""


class _Stains:
    """Sums of tissue's densities, of some rows at a time: small parts, made before slides can be normalised."""

    def __init__(self, source: Source, parts: Parts) -> None:
        self.source, self.parts = source, parts

    def is_made(self, start: int) -> bool:
        """Whether the part that begins with this row is there."""
        return self.parts.find(_stains_name(start)) is not None

    def make(self, start: int, stop: int) -> int:
        """Sum up rows start to stop; rows that cannot be read count for nothing."""
        pixels, reasons = self.source.read(start, stop)
        sums = stain_sums(pixels)
        sums[list(reasons)] = 0
        self.parts.keep(_stains_name(start), {"sums": sums})
        return stop - start

    def join(self, starts: Sequence[int]) -> np.ndarray:
        """Sums of all rows."""
        return np.concatenate([self.parts.read(_stains_name(start))["sums"] for start in starts])


def _stains_name(start: int) -> str:
    return f"stains-{start:08d}"


#: Arrays of a shard that are joined over all shards.
JOINED = ("members", "flags", "lost", "reasons")


class _Shards:
    """Predictions of some rows at a time, a part each."""

    def __init__(
        self,
        predictor: Predictor,
        source: Source,
        parts: Parts,
        *,
        keep_features: bool,
        stains: np.ndarray | None = None,
    ) -> None:
        self.predictor, self.source, self.parts, self.keep_features = predictor, source, parts, keep_features
        self.stains = stains
        seen = " ".join(predictor.members).encode() + (b"" if stains is None else stains.tobytes())
        self._kind = hashlib.sha256(seen).hexdigest()[:8]

    def name(self, start: int) -> str:
        """Name of the shard that begins with this row; it says which members the shard holds, by which stains."""
        return f"{self._kind}{'-features' if self.keep_features else ''}-{start:08d}"

    def is_made(self, start: int) -> bool:
        """Whether the shard that begins with this row is there."""
        return self.parts.find(self.name(start), *JOINED) is not None

    def make(self, start: int, stop: int) -> int:
        """Predict rows start to stop; return how many these are."""
        pixels, reasons = self.source.read(start, stop)
        good = np.array([row for row in range(stop - start) if row not in reasons], dtype=int)
        members = np.full((stop - start, len(self.predictor.members)), np.nan)
        flags = np.zeros((stop - start, len(FLAGS)), bool)
        features = np.zeros((stop - start, 0), np.float32)
        if len(good):  # heads refuse to predict nothing
            stains = None if self.stains is None else self.stains[start:stop][good]
            values = self.predictor(np.ascontiguousarray(pixels[good]), stains)
            members[good], flags[good] = values.members, values.flags
            if self.keep_features:
                compared = values.table[:, self.predictor.compared]
                features = np.zeros((stop - start, compared.shape[1]), np.float32)
                features[good] = compared
        arrays = {
            "members": members,
            "flags": flags,
            "features": features,
            "lost": np.array(sorted(reasons), dtype=np.int64),
            "reasons": np.array([reasons[row] for row in sorted(reasons)], dtype=np.str_),
        }
        self.parts.keep(self.name(start), arrays)
        return stop - start

    def features(self, start: int) -> np.ndarray:
        """Features of a finished shard that members in slide context compare."""
        return self.parts.read(self.name(start), "features")["features"]

    def join(self, starts: Sequence[int]) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Members, flags and reasons of all rows."""
        members, flags = [], []
        reasons: dict[int, str] = {}
        for start in starts:
            part = self.parts.read(self.name(start), *JOINED)
            members.append(part["members"])
            flags.append(part["flags"])
            pairs = zip(part["lost"].tolist(), part["reasons"].tolist(), strict=True)
            reasons |= {start + row: reason for row, reason in pairs}
        return np.concatenate(members), np.concatenate(flags), reasons


def _compare(
    shards: _Shards,
    predictor: Predictor,
    slides: pd.Series,
    rows: np.ndarray,
    members: np.ndarray,
    shard: int,
    screen: Screen,
) -> np.ndarray:
    """Fill in the members that need slides, a slide at a time; return which rows are predicted without.

    What is in memory at a time are one shard's features, and a few columns of one slide's.
    """
    alone = np.ones(len(slides), bool)
    small, few = 0, 0
    for slide_rows in slides.iloc[rows].groupby(slides.iloc[rows], sort=False).indices.values():
        inside = rows[np.sort(slide_rows)]
        if len(inside) <= FEWEST:
            few += len(inside)
            continue
        small += len(inside) if len(inside) < ENOUGH else 0
        alone[inside] = False
        if shards.keep_features:
            _relate(shards, predictor, inside, members, shard)
    if few:
        screen.warn(f"{few} patches stand in slides of {FEWEST} patches or fewer, which say nothing about a slide")
    if small:
        screen.warn(f"{small} patches stand in slides of fewer than {ENOUGH} patches: slide context is weak there")
    if alone[rows].any() and not alone[rows].all():
        screen.say(f"  {int(alone[rows].sum())} patches are predicted without slide context")
    return alone


def _relate(shards: _Shards, predictor: Predictor, rows: np.ndarray, members: np.ndarray, shard: int) -> None:
    """Fill in the members in slide context for the rows of one slide."""
    pieces = [(start, rows[rows // shard == start // shard]) for start in np.unique(rows // shard) * shard]
    with Columns(len(rows), shards.parts.folder) as columns:
        for start, piece in pieces:
            columns.add(shards.features(start)[piece - start])
        reference = predictor.reference(columns.take, len(rows))
    for start, piece in pieces:
        for name, probability in predictor.within_slide(shards.features(start)[piece - start], reference).items():
            members[piece, predictor.members.index(name)] = probability


def _blend(
    predictor: Predictor,
    blends: tuple[Blend, Blend | None],
    members: np.ndarray,
    slides: pd.Series | None,
    alone: np.ndarray,
    options: Options,
) -> tuple[np.ndarray, np.ndarray]:
    """Probability and label of every row; rows that could not be read hold NaN and 0."""
    probability, label = np.full(len(members), np.nan), np.zeros(len(members), int)
    prevalence = float(predictor.bundle.index["prevalence"])
    for blend, chosen in ((blends[0], ~alone), (blends[1] or blends[0], alone)):
        places = [predictor.members.index(name) for name in blend.members if name in predictor.members]
        rows = chosen & np.isfinite(members[:, places]).all(axis=1)
        if len(places) < len(blend.members) or not rows.any():
            continue
        table = np.ascontiguousarray(members[np.ix_(rows, places)])
        means = slide_means(table, known_slides(slides[rows])) if blend.slide_means and slides is not None else None
        found = blend.combine(table, means)
        # Sensitivity and specificity do not depend on prevalence, so the operating point stays where it was chosen.
        label[rows] = found >= blend.thresholds[options.point]
        if options.prevalence:
            from histoblend.models.calibration import shift_prevalence

            found = shift_prevalence(found, prevalence, options.prevalence)
        probability[rows] = found
    return probability, label


#: Bytes up to which a table stays in memory.
MOST_IN_MEMORY = 64_000_000


class Columns:
    """Rows of float32 values, turned into columns.

    Parameters
    ----------
    rows : int
        That are going to be added.
    folder : Path
        Where a large table is kept meanwhile, in a file that no break leaves behind.
    """

    def __init__(self, rows: int, folder: Path) -> None:
        self.rows, self.folder = rows, folder
        self._added = 0
        self._array: np.ndarray | None = None
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Columns:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, rows: np.ndarray) -> None:
        """Add some rows, (m, columns) float32, after those that are there."""
        if self._array is None and self._file is None:
            if 4 * self.rows * rows.shape[1] <= MOST_IN_MEMORY:
                self._array = np.empty((rows.shape[1], self.rows), np.float32)
            else:
                self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 (closed by __exit__)
        end = self._added + len(rows)
        if self._array is not None:
            self._array[:, self._added : end] = rows.T
        elif self._file is not None:
            for number, column in enumerate(np.ascontiguousarray(rows.T)):
                self._file.seek(4 * (number * self.rows + self._added))
                self._file.write(column.data)
        self._added = end

    def take(self, places: np.ndarray) -> np.ndarray:
        """Values of some columns over all rows, (rows, len(places)) float32."""
        if self._array is not None:
            return np.ascontiguousarray(self._array[places].T)
        if self._file is None:
            raise ValueError("columns must be taken after all rows were added; none was.")
        taken = np.empty((self.rows, len(places)), np.float32)
        for number, place in enumerate(places.tolist()):
            self._file.seek(4 * place * self.rows)
            taken[:, number] = np.frombuffer(self._file.read(4 * self.rows), np.float32)
        return taken
