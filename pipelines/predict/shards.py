"""Run the patches of any source through a bundle's models, in shards that survive an interruption."""

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
from histoblend.models.blends import Blend
from histoblend.models.predictor import FLAGS, Predictor, needs_slides
from histoblend.models.slide_means import slide_means
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.tables import known_slides

#: Patches that each worker processes at once: 256 patches of 96 × 96 px take 7 MB, their features a few more.
SHARD = 256
POINT = "youden"


@dataclass(frozen=True)
class Options:
    """What a prediction depends on besides the bundle and the patches.

    Attributes
    ----------
    model : str
        See :func:`models.blends.choose_blends`.
    point : str
        Operating point whose threshold turns probabilities into labels.
    prevalence : float
        Share of positives where the patches come from; 0 leaves probabilities unchanged.
    workers : int
        Threads; -1 for one per core.
    shard : int
        Patches per shard. Results do not depend on it, nor on the number of workers.
    """

    model: str = ""
    point: str = POINT
    prevalence: float = 0.0
    workers: int = 1
    shard: int = SHARD


@dataclass(frozen=True)
class PredictedPatches:
    """Predictions for the patches of a source, one row per patch. Rows that could not be read are missing.

    Attributes
    ----------
    rows : ndarray of shape (n,), int
        Row numbers in the source's table.
    members : DataFrame
        Probability by each member; NaN if the member needs a slide and the slide is unknown.
    probability : ndarray of shape (n,), dtype float64
    label : ndarray of shape (n,), dtype int
    flags : list of str
    without_context : ndarray of shape (n,), dtype bool
        Whether the patch was predicted without slide context.
    reasons : dict from int to str
        Reason for each row that could not be read.
    """

    rows: np.ndarray
    members: pd.DataFrame
    probability: np.ndarray
    label: np.ndarray
    flags: list[str]
    without_context: np.ndarray
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
) -> PredictedPatches:
    """Predict all patches of a source.

    Parameters
    ----------
    predictor : Predictor
        Holds all members that the blends need here.
    blends : pair of Blend
        From :func:`models.blends.choose_blends`.
    source : Source
        Its table needs no ``label``. If it has a method ``expect``, that method is first called with the ranges of
        rows that will be read.
    slides : Series of str, optional
        Slide of each row; missing if unknown.
    parts : Parts
        Files of the finished shards.
    options : Options
    screen : Screen
    """
    in_context = slides is not None and any(map(needs_slides, predictor.members))
    total = len(source.table)
    starts = range(0, total, options.shard)
    tasks = [(start, min(start + options.shard, total)) for start in starts]
    stains = None
    if slides is not None and predictor.normalises:
        stain_shards = _StainShards(source, parts)
        _make_shards(stain_shards, tasks, "measuring stains", options.workers, screen)
        stains = stains_of(stain_shards.join(starts), known_slides(slides), source.size**2)
    _compile(predictor, screen)
    shards = _Shards(predictor, source, parts, keep_features=in_context, stains=stains)
    _make_shards(shards, tasks, "predicting", options.workers, screen)
    members, flags, reasons = shards.join(starts)
    rows = np.array([row for row in range(total) if row not in reasons], dtype=int)
    without_context = np.ones(total, bool)
    if slides is not None and blends[0].needs_slides:
        without_context = _predict_in_context(shards, predictor, slides, rows, members, options.shard, screen)
    if blends[0].needs_slides and blends[1] is None and without_context[rows].any():
        raise InputError(
            f"{blends[0].name} compares a patch with the rest of its slide, but {int(without_context[rows].sum())} "
            "patches have no slide or too few patches in their slide. Give their slides (SLIDES), or another MODEL."
        )
    probability, label = _blend(predictor, blends, members, slides, without_context, options)
    names = [" ".join(name for name, on in zip(FLAGS, row, strict=True) if on) for row in flags[rows]]
    table = pd.DataFrame(members[rows], columns=list(predictor.members))
    return PredictedPatches(rows, table, probability[rows], label[rows], names, without_context[rows], reasons)


def _compile(predictor: Predictor, screen: Screen) -> None:
    """Compile kernels first, so that the progress bar of the prediction does not stall."""
    if predictor.families:
        from histoblend.features.handcrafted.families import compile_kernels

        with screen.progress("compiling kernels", len(predictor.families), "families") as progress:
            compile_kernels(predictor.families, progress=progress)


def _make_shards(shards: _ShardMaker, tasks: list[tuple[int, int]], label: str, workers: int, screen: Screen) -> None:
    """Make the missing shards and show the progress."""
    missing = [task for task in tasks if not shards.is_made(task[0])]
    if hasattr(shards.source, "expect"):
        shards.source.expect(missing)
    with screen.progress(label, sum(stop - start for start, stop in tasks)) as progress:
        progress(sum(stop - start for start, stop in set(tasks).difference(missing)))
        for count in _run(shards, missing, workers):
            progress(count)


def _run(shards: _ShardMaker, tasks: list[tuple[int, int]], workers: int) -> Iterator[int]:
    """Make every shard and yield its number of patches."""
    from threadpoolctl import threadpool_limits

    workers = count_workers(workers)
    with threadpool_limits(1):
        if min(workers, len(tasks)) <= 1:
            yield from (shards.make(*task) for task in tasks)
            return
        from joblib import Parallel, delayed, parallel_config

        # Threads: decoding, kernels, ONNX Runtime and XGBoost release the GIL.
        with parallel_config("threading"):
            pool = Parallel(n_jobs=min(workers, len(tasks)), return_as="generator_unordered")
            yield from pool(delayed(shards.make)(*task) for task in tasks)


class _ShardMaker(Protocol):
    """Makes the shard of a range of rows."""

    source: Source

    def is_made(self, start: int) -> bool:
        """Whether the shard that starts at this row exists."""

    def make(self, start: int, stop: int) -> int:
        """Make the shard of rows start to stop and return their number."""


class _StainShards:
    """Sums of tissue densities for ranges of rows. They are small, and stain normalisation needs them first."""

    def __init__(self, source: Source, parts: Parts) -> None:
        self.source, self.parts = source, parts

    def is_made(self, start: int) -> bool:
        """Whether the shard that starts at this row exists."""
        return self.parts.find(_stains_name(start)) is not None

    def make(self, start: int, stop: int) -> int:
        """Compute the sums of rows start to stop; rows that cannot be read get zeros."""
        pixels, reasons = self.source.read(start, stop)
        sums = stain_sums(pixels)
        sums[list(reasons)] = 0
        self.parts.keep(_stains_name(start), {"sums": sums})
        return stop - start

    def join(self, starts: Sequence[int]) -> np.ndarray:
        """Return the sums of all rows."""
        return np.concatenate([self.parts.read(_stains_name(start))["sums"] for start in starts])


def _stains_name(start: int) -> str:
    return f"stains-{start:08d}"


#: Arrays of a shard that are joined over all shards.
JOINED = ("members", "flags", "lost", "reasons")


class _Shards:
    """Predictions for ranges of rows, one file per shard."""

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
        content = " ".join(predictor.members).encode() + (b"" if stains is None else stains.tobytes())
        self._key = hashlib.sha256(content).hexdigest()[:8]

    def name(self, start: int) -> str:
        """Name of the shard that starts at this row. It depends on the members and stains."""
        return f"{self._key}{'-features' if self.keep_features else ''}-{start:08d}"

    def is_made(self, start: int) -> bool:
        """Whether the shard that starts at this row exists."""
        return self.parts.find(self.name(start), *JOINED) is not None

    def make(self, start: int, stop: int) -> int:
        """Predict rows start to stop and return their number."""
        pixels, reasons = self.source.read(start, stop)
        readable = np.array([row for row in range(stop - start) if row not in reasons], dtype=int)
        members = np.full((stop - start, len(self.predictor.members)), np.nan)
        flags = np.zeros((stop - start, len(FLAGS)), bool)
        features = np.zeros((stop - start, 0), np.float32)
        if len(readable):  # heads refuse an empty table
            stains = None if self.stains is None else self.stains[start:stop][readable]
            values = self.predictor(np.ascontiguousarray(pixels[readable]), stains)
            members[readable], flags[readable] = values.members, values.flags
            if self.keep_features:
                compared = values.table[:, self.predictor.compared]
                features = np.zeros((stop - start, compared.shape[1]), np.float32)
                features[readable] = compared
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
        """Features of a finished shard that members with slide context compare."""
        return self.parts.read(self.name(start), "features")["features"]

    def join(self, starts: Sequence[int]) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        """Return the members, flags and reasons of all rows."""
        members, flags = [], []
        reasons: dict[int, str] = {}
        for start in starts:
            part = self.parts.read(self.name(start), *JOINED)
            members.append(part["members"])
            flags.append(part["flags"])
            pairs = zip(part["lost"].tolist(), part["reasons"].tolist(), strict=True)
            reasons |= {start + row: reason for row, reason in pairs}
        return np.concatenate(members), np.concatenate(flags), reasons


def _predict_in_context(
    shards: _Shards,
    predictor: Predictor,
    slides: pd.Series,
    rows: np.ndarray,
    members: np.ndarray,
    shard: int,
    screen: Screen,
) -> np.ndarray:
    """Fill in the members that need slides, slide by slide. Return which rows are predicted without slide context.

    Memory holds the features of one shard and a few feature columns of one slide.
    """
    without_context = np.ones(len(slides), bool)
    small, few = 0, 0
    for slide_rows in slides.iloc[rows].groupby(slides.iloc[rows], sort=False).indices.values():
        inside = rows[np.sort(slide_rows)]
        if len(inside) <= FEWEST:
            few += len(inside)
            continue
        small += len(inside) if len(inside) < ENOUGH else 0
        without_context[inside] = False
        if shards.keep_features:
            _predict_slide(shards, predictor, inside, members, shard)
    if few:
        screen.warn(f"{few} patches are in slides of {FEWEST} patches or fewer, too few for slide context")
    if small:
        screen.warn(f"{small} patches are in slides of fewer than {ENOUGH} patches, where slide context is weak")
    if without_context[rows].any() and not without_context[rows].all():
        screen.warn(f"{int(without_context[rows].sum())} patches are predicted without slide context")
    return without_context


def _predict_slide(shards: _Shards, predictor: Predictor, rows: np.ndarray, members: np.ndarray, shard: int) -> None:
    """Fill in the members with slide context for the rows of one slide."""
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
    without_context: np.ndarray,
    options: Options,
) -> tuple[np.ndarray, np.ndarray]:
    """Probability and label of every row. Rows that could not be read get NaN and 0."""
    probability, label = np.full(len(members), np.nan), np.zeros(len(members), int)
    prevalence = float(predictor.bundle.index["prevalence"])
    for blend, chosen in ((blends[0], ~without_context), (blends[1] or blends[0], without_context)):
        indices = [predictor.members.index(name) for name in blend.members if name in predictor.members]
        rows = chosen & np.isfinite(members[:, indices]).all(axis=1)
        if len(indices) < len(blend.members) or not rows.any():
            continue
        table = np.ascontiguousarray(members[np.ix_(rows, indices)])
        means = slide_means(table, known_slides(slides[rows])) if blend.slide_means and slides is not None else None
        combined = blend.combine(table, means)
        # Sensitivity and specificity do not depend on prevalence, so the threshold applies before the shift.
        label[rows] = combined >= blend.thresholds[options.point]
        if options.prevalence:
            from histoblend.models.calibration import shift_prevalence

            combined = shift_prevalence(combined, prevalence, options.prevalence)
        probability[rows] = combined
    return probability, label


#: Largest table that is kept in memory, in bytes.
MAX_IN_MEMORY = 64_000_000


class Columns:
    """Table of float32 values that is written by rows and read by columns.

    Parameters
    ----------
    rows : int
        Number of rows that will be added.
    folder : Path
        Folder for the temporary file of a large table. An interruption does not leave the file behind.
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
        """Append rows, (m, columns) float32."""
        if self._array is None and self._file is None:
            if 4 * self.rows * rows.shape[1] <= MAX_IN_MEMORY:
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

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the values of some columns for all rows, (rows, len(indices)) float32."""
        if self._array is not None:
            return np.ascontiguousarray(self._array[indices].T)
        if self._file is None:
            raise ValueError("rows must be added before columns are taken; got none.")
        taken = np.empty((self.rows, len(indices)), np.float32)
        for number, index in enumerate(indices.tolist()):
            self._file.seek(4 * index * self.rows)
            taken[:, number] = np.frombuffer(self._file.read(4 * self.rows), np.float32)
        return taken
